//! Laws that several targets hold.

use connectors::envelope::{Decoder, RawRecord, RowChange};
use connectors::format::Node;
use engine::error::DataError;
use engine::model::{Column, RowCodec, Schema, SqlType, Value};

/// Longest sentence of a letter: two keys of KEY_BYTES_MAX may stand in it.
const SENTENCE_BYTES_MAX: usize = 10_000;
/// What a value may have beside a multiple of its message: the zeros of a large exponent, a vector.
const VALUE_BYTES_FREE: usize = 64 << 10;
/// How much larger a value may be than its message: `\u0001` for one byte, in JSON in JSON.
const VALUE_BYTES_FACTOR: usize = 16;

/// A column of each type, `k` the key; the first decides what keys are.
pub fn columns(key: SqlType) -> Schema {
    let types = [
        ("k", key),
        ("b", SqlType::Boolean),
        ("i", SqlType::Int4),
        ("l", SqlType::Int8),
        ("r", SqlType::Float4),
        ("d", SqlType::Float8),
        ("n", SqlType::Numeric(10, 2)),
        ("w", SqlType::Numeric(38, 0)),
        ("t", SqlType::Text),
        ("x", SqlType::Text),
        ("y", SqlType::Bytea),
        ("z", SqlType::TimestampTz),
        ("s", SqlType::Timestamp),
        ("a", SqlType::Date),
        ("j", SqlType::Jsonb),
        ("u", SqlType::Uuid),
        ("v", SqlType::Vector(3)),
    ];
    let column = |(name, sql_type): &(&str, SqlType)| Column {
        nullable: *name != "k",
        ..Column::new(name, *sql_type)
    };
    Schema {
        columns: types.iter().map(column).collect(),
        key: vec![0],
    }
}

/// Equal, where NaN equals itself.
pub fn same<T: std::fmt::Debug>(first: &T, second: &T) {
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}

/// A letter is a few sentences about one thing.
pub fn letter(error: &DataError) {
    let is_kebab = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    assert!(
        error.code.bytes().all(is_kebab),
        "the code {:?}",
        error.code
    );
    let texts = [
        Some(&error.detail),
        error.expected.as_ref(),
        error.hint.as_ref(),
    ];
    for text in texts.into_iter().flatten() {
        let bytes = text.len();
        assert!(
            bytes > 0 && bytes <= SENTENCE_BYTES_MAX,
            "{} has {bytes} bytes",
            error.code
        );
    }
}

/// A value fits its column, shows itself as JSON that reads back, and is not out of proportion.
pub fn value(value: &Value, column: &Column, input: usize) {
    let fits = match (value, column.sql_type) {
        (Value::Null, _) => column.nullable,
        (Value::Bool(_), SqlType::Boolean) => true,
        (Value::Int(value), SqlType::Int4) => i32::try_from(*value).is_ok(),
        (Value::Int(_), SqlType::Int8) => true,
        (Value::Float(value), SqlType::Float4) => {
            value.is_nan() || f64::from(*value as f32) == *value
        }
        (Value::Float(_), SqlType::Float8) => true,
        (Value::Numeric(digits, scale), SqlType::Numeric(precision, declared)) => {
            let most = 10_u128.pow(u32::from(precision));
            *scale == declared && digits.unsigned_abs() < most
        }
        (Value::Text(text), SqlType::Jsonb) => {
            serde_json::from_str::<serde_json::Value>(text).is_ok()
        }
        (Value::Text(text), SqlType::Uuid) => text.len() == 36,
        (Value::Text(_), SqlType::Text) | (Value::Bytes(_), SqlType::Bytea) => true,
        (Value::Timestamp(_), SqlType::TimestampTz | SqlType::Timestamp) => true,
        (Value::Date(_), SqlType::Date) => true,
        (Value::Vector(floats), SqlType::Vector(count)) => floats.len() == count as usize,
        _ => false,
    };
    assert!(fits, "{value:?} in a column of type {}", column.sql_type);
    let bytes = match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    };
    assert!(
        bytes <= input * VALUE_BYTES_FACTOR + VALUE_BYTES_FREE,
        "{bytes} bytes of {input}"
    );
    let json = value.to_json(column.sql_type);
    if json.is_null() {
        // NULL, and JSON's own null, which replies do not tell apart.
        return;
    }
    let again = Value::from_json(&json, column);
    let again = again.unwrap_or_else(|error| panic!("{value:?} shows itself as {json}: {error}"));
    same(&again, value);
}

/// All values of a row, and the row packed.
pub fn row(codec: &RowCodec, values: &[Value], input: usize) {
    let columns = &codec.schema().columns;
    assert_eq!(values.len(), columns.len());
    for (column, one) in std::iter::zip(columns, values) {
        value(one, column, input);
    }
    same(&codec.unpack(&codec.pack(values)), &values.to_vec());
}

/// A message alone: its letters, and its rows beside `bytes` that they may have come from.
pub fn message(
    schema: &Schema,
    mut decoder: Decoder,
    key: Option<&[u8]>,
    value: &[u8],
    bytes: usize,
) {
    let decoded = decoder.decode(&RawRecord {
        key,
        value: Some(value),
        headers: &[],
        topic: "t",
        partition: 0,
        offset: 0,
        timestamp: None,
    });
    let decoded = decoded.expect("nothing to wait for");
    decoded.letters.iter().for_each(letter);
    for one in &decoded.changes {
        change(schema, one, bytes);
    }
}

/// The known values of a change.
pub fn change(schema: &Schema, change: &RowChange, input: usize) {
    let Some(row) = &change.row else {
        return;
    };
    assert_eq!(row.cells.len(), schema.columns.len());
    for (column, cell) in std::iter::zip(&schema.columns, &row.cells) {
        if let Some(known) = cell.known() {
            value(known, column, input);
        }
    }
}

/// How many values a tree has.
pub fn nodes(node: &Node<'_>) -> usize {
    match node {
        Node::Array(items) => 1 + items.iter().map(nodes).sum::<usize>(),
        Node::Object(members) => 1 + members.iter().map(|(_, node)| nodes(node)).sum::<usize>(),
        Node::Branch(_, node) => nodes(node),
        _ => 1,
    }
}

/// Reads a tree's bytes: texts, names and bytes.
pub fn node_bytes(node: &Node<'_>) -> usize {
    match node {
        Node::Number(text) | Node::Text(text) => text.len(),
        Node::Bytes(bytes) => bytes.len(),
        Node::Array(items) => items.iter().map(node_bytes).sum(),
        Node::Object(members) => {
            let of = |(name, node): &(std::borrow::Cow<'_, str>, Node<'_>)| {
                name.len() + node_bytes(node)
            };
            members.iter().map(of).sum()
        }
        Node::Branch(_, node) => node_bytes(node),
        Node::Null | Node::Bool(_) | Node::Int(_) | Node::Float(_) => 0,
    }
}
