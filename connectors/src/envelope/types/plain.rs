//! Most values: texts and integers without a logical type, in columns of their own kind.
//!
//! The idea: what needs no rules is read at once, without the [`super::Datum`] in between and its copies.
//!
//! Invariant: what is read here comes to the same on the long way, which also has the words for what does
//! not fit; the test compares the two.

use std::sync::Arc;

use engine::limits::TEXT_BYTES_MAX;
use engine::model::{Column, SqlType, Value};

use crate::format::{ConnectKind, ConnectSchema, Node};

/// The value, if it is such a one.
pub(super) fn value(
    node: &Node<'_>,
    schema: Option<&ConnectSchema>,
    column: &Column,
) -> Option<Value> {
    let is = |kind| schema.is_none_or(|schema| schema.name.is_none() && schema.kind == kind);
    match (node, column.sql_type) {
        (Node::Text(text), SqlType::Text)
            if is(ConnectKind::String) && text.len() <= TEXT_BYTES_MAX =>
        {
            Some(Value::Text(Arc::from(&**text)))
        }
        (Node::Number(digits), SqlType::Int4 | SqlType::Int8) if is(ConnectKind::Integer) => {
            let value = digits.parse::<i64>().ok()?;
            let fits = column.sql_type == SqlType::Int8 || i32::try_from(value).is_ok();
            fits.then_some(Value::Int(value))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::{Rules, by_meaning};
    use super::*;
    use crate::format::json;

    #[test]
    fn it_is_what_the_long_way_comes_to() {
        let numbers = [
            "0",
            "-0",
            "7",
            "-12",
            "2147483647",
            "2147483648",
            "-2147483649",
            "1.0",
            "1e2",
            "1.5",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "1e400",
        ];
        let texts = [
            "",
            "a",
            "NaN",
            "12",
            "null",
            "über\n",
            "__debezium_unavailable_value",
        ];
        let types = ["boolean", "int32", "int64", "double", "string", "bytes"];
        let schemas = types.map(|name| {
            let text = format!("{{\"type\":\"{name}\"}}");
            let node = json::parse(text.as_bytes(), "schema").unwrap();
            ConnectSchema::parse(&node, "schema").unwrap()
        });
        let numbers = numbers.map(|text| Node::Number(Cow::Borrowed(text)));
        let texts = texts.map(|text| Node::Text(Cow::Borrowed(text)));
        let nodes: Vec<Node<'_>> = numbers.into_iter().chain(texts).collect();
        let mut read = 0;
        for schema in schemas.into_iter().chain([None]) {
            for sql_type in [SqlType::Text, SqlType::Int4, SqlType::Int8, SqlType::Uuid] {
                let column = Column::new("c", sql_type);
                for node in &nodes {
                    let Some(found) = value(node, schema.as_ref(), &column) else {
                        continue;
                    };
                    read += 1;
                    let long = by_meaning(node, schema.as_ref(), &column, &Rules::default());
                    assert_eq!(long.unwrap(), found, "{node:?} {sql_type} {schema:?}");
                }
            }
        }
        // By two types of integers, one of texts, and none.
        assert_eq!(read, 3 * (5 + 9) + 2 * 7);
    }
}
