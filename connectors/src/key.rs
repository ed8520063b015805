//! Document keys from the values of key columns: one row has one key, however it was written.
//!
//! Invariants: equal values are one key (−0 is 0); NaN, which equals nothing, is none. Limits:
//! [`KEY_BYTES_MAX`].

use engine::error::DataError;
use engine::limits::KEY_BYTES_MAX;
use engine::model::{Column, Key, Schema, SqlType, Value};
use serde_json::Value as Json;

/// One value of a key: equal values must be one value.
pub(crate) fn part(value: Value, column: &Column) -> Result<Value, DataError> {
    match value {
        Value::Float(x) if x.is_nan() => {
            let detail = format!(
                "column \"{}\": NaN cannot be a key: it equals nothing",
                column.name
            );
            Err(DataError::new("wrong-type", detail).expected("a number or an infinity"))
        }
        // −0 equals 0 and must not be a second key.
        Value::Float(x) => Ok(Value::Float(x + 0.0)),
        value => Ok(value),
    }
}

/// The key as canonical JSON: the bare value of a one-column key, else an object in declared order.
pub(crate) fn canonical(schema: &Schema, values: &[Value]) -> Result<Key, DataError> {
    match (&schema.key[..], values) {
        ([at], [Value::Text(text)]) if schema.columns[*at].sql_type != SqlType::Jsonb => {
            return checked(Key::text(text));
        }
        ([_], [Value::Int(value)]) => return Ok(Key::int(*value)),
        _ => {}
    }
    let columns = schema.key.iter().map(|at| &schema.columns[*at]);
    let mut parts = columns
        .zip(values)
        .map(|(column, value)| (&column.name, value.to_json(column.sql_type)));
    let key = if schema.key.len() == 1 {
        Key::from_json(&parts.next().expect("one key column").1)
    } else {
        // Members in declared order, whatever order serde_json's maps have.
        let members: Vec<String> = parts
            .map(|(name, json)| format!("{}:{json}", Json::from(&**name)))
            .collect();
        Key::from_json_text(&format!("{{{}}}", members.join(",")))
    };
    checked(key)
}

/// A key that is not too large.
pub(crate) fn checked(key: Key) -> Result<Key, DataError> {
    if key.as_str().len() <= KEY_BYTES_MAX {
        return Ok(key);
    }
    let detail = format!(
        "the key has {} bytes; the limit KEY_BYTES_MAX is {KEY_BYTES_MAX}",
        key.as_str().len()
    );
    Err(DataError::new("key-too-large", detail))
}
