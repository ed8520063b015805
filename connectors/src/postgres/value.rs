//! PostgreSQL's text of a value, as the log and a cursor give it, to the columns of a source.
//!
//! The idea: the text becomes the same [`Node`] that a message of the type would have, and
//! [`crate::envelope::types`] decides what a column takes; so a table read directly and through
//! Debezium gives equal rows.
//!
//! Invariants: sessions ask for one way of writing ([`SESSION_OPTIONS`]); a value that does not fit is
//! an error with the column's name. Limits: arrays of the built-in types only become JSON, arrays of
//! others stay text; array bounds other than 1 are dropped.

use engine::error::DataError;
use engine::model::{Column, SqlType, Value};

use crate::envelope::types::{self, Cell, DecimalMode, Rules};
use crate::format::Node;

/// Settings under which texts have one form, rows are all there, and a role's own time-outs end no copy.
pub(super) const SESSION_OPTIONS: &str = "-c datestyle=ISO,YMD -c timezone=UTC -c intervalstyle=iso_8601 \
     -c bytea_output=hex -c extra_float_digits=3 -c client_encoding=UTF8 -c xmloption=content \
     -c standard_conforming_strings=on -c row_security=off -c statement_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c lock_timeout=5s -c wal_sender_timeout=60s";

/// Reads one value: the text of a type (its object id in `pg_type`) as a column of a source takes it;
/// no text is NULL. Cost: linear in the text.
///
/// Errors: a value that does not fit, with the column's name.
pub fn value(text: Option<&str>, type_id: u32, column: &Column) -> Result<Value, DataError> {
    let rules = Rules {
        decimal: DecimalMode::String,
        is_json_text: is_json(type_id) || text.is_some_and(|text| is_own_json(text, type_id)),
        ..Rules::default()
    };
    let node = text.map_or(Node::Null, |text| node(text, type_id, column.sql_type));
    match types::cell(&node, None, column, &rules)? {
        Cell::Value(value) => Ok(value),
        Cell::Unavailable | Cell::NullOrUnavailable => {
            unreachable!("without a placeholder every value is there")
        }
    }
}

fn node<'a>(text: &'a str, type_id: u32, wanted: SqlType) -> Node<'a> {
    match wanted {
        // As PostgreSQL writes it.
        SqlType::Text => Node::Text(text.into()),
        SqlType::TimestampTz | SqlType::Timestamp => Node::Text(time(text).into()),
        SqlType::Bytea => match types::binary::unhex(text) {
            Some(bytes) if text.starts_with("\\x") => Node::Bytes(bytes.into()),
            _ => Node::Text(text.into()),
        },
        SqlType::Jsonb => match element_of(type_id) {
            Some(element) => array(text, element).unwrap_or(Node::Text(text.into())),
            None => scalar(text, type_id),
        },
        // By the column and not by the type's id: a domain has an id of its own.
        SqlType::Boolean => match text {
            "t" => Node::Bool(true),
            "f" => Node::Bool(false),
            _ => scalar(text, type_id),
        },
        SqlType::Int4
        | SqlType::Int8
        | SqlType::Float4
        | SqlType::Float8
        | SqlType::Numeric(..) => match is_number(text) {
            true => Node::Number(text.into()),
            false => Node::Text(text.into()),
        },
        SqlType::Date | SqlType::Uuid | SqlType::Vector(_) => Node::Text(text.into()),
    }
}

/// A single value, by its type.
fn scalar(text: &str, type_id: u32) -> Node<'_> {
    match type_id {
        BOOL => Node::Bool(text == "t"),
        INT2 | INT4 | INT8 | OID | FLOAT4 | FLOAT8 | NUMERIC if is_number(text) => {
            Node::Number(text.into())
        }
        _ => Node::Text(text.into()),
    }
}

/// Whether a numeric type's text is a number of JSON's grammar: NaN and infinities are not.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|first: char| first.is_ascii_digit())
}

/// `2026-11-21 10:00:00.5+00` → `2026-11-21T10:00:00.5+00:00`; anything else as it is.
fn time(text: &str) -> String {
    let Some((date, rest)) = text.split_once(' ') else {
        return text.to_owned();
    };
    match rest.strip_suffix("+00") {
        Some(time) => format!("{date}T{time}Z"),
        None => format!("{date}T{rest}"),
    }
}

const BOOL: u32 = 16;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const OID: u32 = 26;
const JSON: u32 = 114;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;
const JSONB: u32 = 3802;

/// Built-in array types with what their elements are.
const ARRAYS: [(u32, u32); 27] = [
    (199, JSON),
    (1000, BOOL),
    (1001, 17),
    (1002, 18),
    (1003, 19),
    (1005, INT2),
    (1007, INT4),
    (1009, TEXT),
    (1014, 1042),
    (1015, 1043),
    (1016, INT8),
    (1021, FLOAT4),
    (1022, FLOAT8),
    (1028, OID),
    (1041, 869),
    (1115, 1114),
    (1182, 1082),
    (1183, 1083),
    (1185, 1184),
    (1187, 1186),
    (1231, NUMERIC),
    (1270, 1266),
    (1561, 1560),
    (1563, 1562),
    (2951, 2950),
    (3807, JSONB),
    (143, 142),
];

/// The element type of a built-in array type.
pub(super) fn element_of(type_id: u32) -> Option<u32> {
    let found = ARRAYS.iter().find(|(array, _)| *array == type_id);
    found.map(|(_, element)| *element)
}

fn is_json(type_id: u32) -> bool {
    matches!(type_id, JSON | JSONB)
}

/// Whether a value of a type that is not built in (a domain over `jsonb`) is JSON.
fn is_own_json(text: &str, type_id: u32) -> bool {
    /// Ids from here on are given to what users make.
    const OWN: u32 = 16_384;
    type_id >= OWN && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// `{1,NULL,{2}}`, also with bounds in front: `[0:1]={1,2}`. `None` where it is no array.
fn array(text: &str, element: u32) -> Option<Node<'_>> {
    let start = match text.starts_with('[') {
        true => text.find("={")? + 1,
        false => 0,
    };
    let mut input = Elements {
        text,
        at: start,
        element,
    };
    let node = input.list(0)?;
    (input.at == text.len()).then_some(node)
}

/// Deepest nesting: PostgreSQL's own MAXDIM.
const DEPTH_MAX: usize = 6;

struct Elements<'a> {
    text: &'a str,
    at: usize,
    element: u32,
}

impl<'a> Elements<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// A list, at its opening brace.
    fn list(&mut self, depth: usize) -> Option<Node<'a>> {
        if self.peek()? != b'{' || depth == DEPTH_MAX {
            return None;
        }
        self.at += 1;
        let mut items = Vec::new();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(Node::Array(items));
        }
        loop {
            items.push(match self.peek()? {
                b'{' => self.list(depth + 1)?,
                b'"' => self.quoted()?,
                _ => self.bare()?,
            });
            let next = self.peek()?;
            self.at += 1;
            match next {
                b',' => {}
                b'}' => return Some(Node::Array(items)),
                _ => return None,
            }
        }
    }

    fn quoted(&mut self) -> Option<Node<'a>> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let next = rest.chars().next()?;
            self.at += next.len_utf8();
            match next {
                '"' => break,
                '\\' => {
                    let escaped = self.text[self.at..].chars().next()?;
                    self.at += escaped.len_utf8();
                    text.push(escaped);
                }
                other => text.push(other),
            }
        }
        Some(match is_json(self.element) {
            true => json(&text),
            false => Node::Text(text.into()),
        })
    }

    fn bare(&mut self) -> Option<Node<'a>> {
        let rest = &self.text[self.at..];
        let end = rest.find([',', '}'])?;
        self.at += end;
        let text = &rest[..end];
        Some(match text {
            "NULL" => Node::Null,
            _ if is_json(self.element) => json(text),
            _ => scalar(text, self.element),
        })
    }
}

/// A JSON text as a node; text that is none stays text.
fn json<'a>(text: &str) -> Node<'a> {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(json) => owned(&json),
        Err(_) => Node::Text(text.to_owned().into()),
    }
}

fn owned<'a>(json: &serde_json::Value) -> Node<'a> {
    use serde_json::Value as Json;
    match json {
        Json::Null => Node::Null,
        Json::Bool(value) => Node::Bool(*value),
        Json::Number(number) => Node::Number(number.to_string().into()),
        Json::String(text) => Node::Text(text.clone().into()),
        Json::Array(items) => Node::Array(items.iter().map(owned).collect()),
        Json::Object(members) => {
            let member = |(name, value): (&String, &Json)| (name.clone().into(), owned(value));
            Node::Object(members.iter().map(member).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::model::Column;
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_become_the_values_that_they_name() {
        let cases = [
            ("t", BOOL, SqlType::Boolean, json!(true)),
            ("-7", INT4, SqlType::Int4, json!(-7)),
            ("9223372036854775807", INT8, SqlType::Int8, json!(i64::MAX)),
            ("1e+20", FLOAT8, SqlType::Float8, json!(1e20)),
            ("-Infinity", FLOAT8, SqlType::Float8, json!("-Infinity")),
            ("12.50", NUMERIC, SqlType::Numeric(6, 2), json!("12.50")),
            ("NaN", NUMERIC, SqlType::Text, json!("NaN")),
            ("\\x00ff", 17, SqlType::Bytea, json!("AP8=")),
            (
                "2026-11-21 10:00:00.5+00",
                1184,
                SqlType::TimestampTz,
                json!("2026-11-21T10:00:00.500000Z"),
            ),
            (
                "2026-11-21 10:00:00",
                1114,
                SqlType::Timestamp,
                json!("2026-11-21T10:00:00.000000"),
            ),
            ("1969-12-31", 1082, SqlType::Date, json!("1969-12-31")),
            (
                "{\"a\": [1, null]}",
                JSONB,
                SqlType::Jsonb,
                json!({"a": [1, null]}),
            ),
            ("{1,NULL,3}", 1007, SqlType::Jsonb, json!([1, null, 3])),
            (
                r#"{"a b","q\"x\\",NULL,"NULL",plain}"#,
                1009,
                SqlType::Jsonb,
                json!(["a b", "q\"x\\", null, "NULL", "plain"]),
            ),
            (
                "[0:1]={{t},{f}}",
                1000,
                SqlType::Jsonb,
                json!([[true], [false]]),
            ),
            (r#"{"{\"a\": 1}"}"#, 3807, SqlType::Jsonb, json!([{"a": 1}])),
            ("{}", 1009, SqlType::Jsonb, json!([])),
            ("7", 90_000, SqlType::Int8, json!(7)),
            ("f", 90_000, SqlType::Boolean, json!(false)),
            ("{\"a\": 1}", 90_000, SqlType::Jsonb, json!({"a": 1})),
            ("a=>1", 90_000, SqlType::Jsonb, json!("a=>1")),
            ("[0.5,-1]", 90_000, SqlType::Vector(2), json!([0.5, -1.0])),
        ];
        for (text, type_id, sql_type, expected) in cases {
            let column = Column::new("c", sql_type);
            let found = value(Some(text), type_id, &column);
            let found = found.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(found.to_json(sql_type), expected, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_names_its_column() {
        let cases = [
            ("infinity", 1184, SqlType::TimestampTz, "infinite-time"),
            ("0044-03-15 BC", 1082, SqlType::Date, "wrong-type"),
            ("70000", INT4, SqlType::Boolean, "wrong-type"),
            ("x", 90_000, SqlType::Int4, "wrong-type"),
            ("NaN", NUMERIC, SqlType::Numeric(6, 2), "not-a-number"),
            ("123456.7", NUMERIC, SqlType::Numeric(6, 2), "out-of-range"),
        ];
        for (text, type_id, sql_type, code) in cases {
            let error = value(Some(text), type_id, &Column::new("c", sql_type)).unwrap_err();
            assert_eq!(error.code, code, "{text}: {error}");
            assert!(error.to_string().contains("\"c\""), "{error}");
        }
    }
}
