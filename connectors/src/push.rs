//! Decodes the lines of a push: `{"op":"upsert","key":…,"value":{…},"version":n}`.
//!
//! Pure functions: bytes and a schema in, changes and errors out. Each line is judged alone, so that
//! one bad line costs no other; of several lines with one key the last wins. Keys are made
//! canonical through their column's type: two spellings of a UUID are one key, and so are `1`, `1.0`
//! and `"1.00"` in a `numeric(10,2)` column or `1` and `1.0` in a `double precision` column. An
//! integer column takes `1` only; `1.0` is of the wrong type there.
//!
//! Errors name the column or the byte (counting from 0); limits are [`LINE_BYTES_MAX`], [`TEXT_BYTES_MAX`] and
//! `KEY_BYTES_MAX`.

use std::collections::HashMap;

use engine::error::{DataError, DeadLetter};
use engine::letters::Redecoded;
use engine::limits::{LINE_BYTES_MAX, TEXT_BYTES_MAX};
use engine::model::{Column, Key, Row, RowCodec, Schema, Value, preview, shorten};
use engine::runtime::PUSH_LANE;
use serde_json::{Map, Value as Json};

use crate::key;

/// One decoded line.
#[derive(Debug, Clone, PartialEq)]
pub struct PushChange {
    /// The document.
    pub key: Key,
    /// One value per column of the schema; `None` deletes.
    pub values: Option<Vec<Value>>,
    /// The source's own order, if it has one.
    pub version: Option<u64>,
}

/// All lines of a push.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PushBatch {
    /// What to take, with line numbers, in the order of the lines; one change a key.
    pub changes: Vec<(u64, PushChange)>,
    /// Good lines that a later line of the same key replaced: accepted, never visible.
    pub superseded: u64,
    /// Lines refused.
    pub rejected: Vec<(u64, Refused)>,
}

/// A line that is not taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Why.
    pub error: DataError,
    /// The row that it speaks of, where that could be read.
    pub key: Option<Key>,
}

/// Decodes numbered lines. Cost: linear in their bytes.
pub fn decode_lines<'a>(
    schema: &Schema,
    lines: impl IntoIterator<Item = (u64, &'a [u8])>,
) -> PushBatch {
    let mut batch = PushBatch::default();
    let mut changes: Vec<Option<(u64, PushChange)>> = Vec::new();
    let mut last: HashMap<Key, usize> = HashMap::new();
    for (number, line) in lines {
        match decode_line(schema, line) {
            Ok(change) => {
                if let Some(earlier) = last.insert(change.key.clone(), changes.len()) {
                    changes[earlier] = None;
                    batch.superseded += 1;
                }
                changes.push(Some((number, change)));
            }
            Err(refused) => batch.rejected.push((number, refused)),
        }
    }
    batch.changes = changes.into_iter().flatten().collect();
    batch
}

/// A push, packed for the engine.
#[derive(Debug, Clone, Default)]
pub struct Decoded {
    /// `(key, row, version)`, the last line of each key.
    pub changes: Vec<(Key, Option<Row>, Option<u64>)>,
    /// Good lines, those that a later line of their key replaced included.
    pub accepted: u64,
    /// Lines refused, with the number of changes that came before each.
    pub rejected: Vec<(u64, Refused, usize)>,
}

/// Decodes numbered lines and packs their rows.
pub fn decode<'a>(schema: &Schema, lines: impl IntoIterator<Item = (u64, &'a [u8])>) -> Decoded {
    let codec = RowCodec::new(schema.clone()).expect("the language declares packable types only");
    let batch = decode_lines(schema, lines);
    let accepted = batch.changes.len() as u64 + batch.superseded;
    let taken = &batch.changes;
    let place = |(line, refused): (u64, Refused)| {
        let after = taken.partition_point(|(number, _)| *number < line);
        (line, refused, after)
    };
    let rejected = batch.rejected.into_iter().map(place).collect();
    let pack = |(_, change): (u64, PushChange)| {
        let row = change.values.map(|values| codec.pack(&values));
        (change.key, row, change.version)
    };
    let changes = batch.changes.into_iter().map(pack).collect();
    Decoded {
        changes,
        accepted,
        rejected,
    }
}

/// Decodes the line of a dead letter again.
pub fn redecode(schema: &Schema, letter: &DeadLetter) -> Redecoded {
    if !letter.is_whole() {
        return Redecoded::Refused(format!(
            "only {} of its {} bytes are kept",
            letter.payload.len(),
            letter.bytes
        ));
    }
    let decoded = decode(schema, [(1, &*letter.payload)]);
    match decoded.rejected.into_iter().next() {
        Some((_, refused, _)) => Redecoded::StillBad(refused.error),
        None => Redecoded::Good {
            lane: PUSH_LANE.to_owned(),
            changes: decoded.changes,
        },
    }
}

/// Decodes one line.
pub fn decode_line(schema: &Schema, line: &[u8]) -> Result<PushChange, Refused> {
    let mut key = None;
    decode_to(schema, line, &mut key).map_err(|error| Refused { error, key })
}

/// Notes the key as soon as it is read: a line whose value is bad still names its row.
fn decode_to(
    schema: &Schema,
    line: &[u8],
    found: &mut Option<Key>,
) -> Result<PushChange, DataError> {
    if line.len() > LINE_BYTES_MAX {
        let detail = format!(
            "the line has {} bytes; the limit LINE_BYTES_MAX is {LINE_BYTES_MAX}",
            line.len()
        );
        return Err(DataError::new("line-too-large", detail));
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        DataError::new(
            "invalid-utf8",
            format!("the line is not UTF-8 at byte {at}"),
        )
        .expected("UTF-8")
    })?;
    let json: Json = serde_json::from_str(text).map_err(|error| invalid_json(&error, "line"))?;
    let Json::Object(mut line) = json else {
        return Err(
            DataError::new("wrong-type", "the line is not a JSON object")
                .expected(r#"{"op":"upsert","key":…,"value":{…}}"#),
        );
    };
    let op = line.remove("op");
    let key = line.remove("key");
    let value = line.remove("value").filter(|value| !value.is_null());
    let version = line.remove("version");
    let key = read_key(schema, key);
    if let Ok((key, _)) = &key {
        *found = Some(key.clone());
    }
    let version = self::version(version)?;
    if let Some(name) = line.keys().next() {
        return Err(DataError::new(
            "unknown-field",
            format!("unknown field \"{}\"", shorten(name)),
        )
        .expected("op, key, value, version"));
    }
    let is_delete = match op.as_ref().map(|op| op.as_str()) {
        Some(Some("upsert")) => false,
        Some(Some("delete")) => true,
        _ => {
            let found = op.map_or_else(|| "nothing".to_owned(), |op| preview(&op));
            return Err(DataError::new("bad-op", format!("\"op\" is {found}"))
                .expected("\"upsert\" or \"delete\""));
        }
    };
    let (key, key_values) = key?;
    if is_delete {
        if value.is_some() {
            return Err(
                DataError::new("unexpected-value", "a delete has a \"value\"")
                    .hint("leave \"value\" out, or use \"op\":\"upsert\""),
            );
        }
        return Ok(PushChange {
            key,
            values: None,
            version,
        });
    }
    let value = match value {
        Some(Json::Object(value)) => value,
        None if schema.columns.len() == schema.key.len() => Map::new(),
        None => {
            return Err(
                DataError::new("missing-value", "an upsert has no \"value\"")
                    .expected("an object with the columns"),
            );
        }
        Some(other) => {
            return Err(
                DataError::new("wrong-type", format!("\"value\" is {}", preview(&other)))
                    .expected("an object with the columns"),
            );
        }
    };
    let values = Some(row(schema, value, &key_values)?);
    Ok(PushChange {
        key,
        values,
        version,
    })
}

fn invalid_json(error: &serde_json::Error, what: &str) -> DataError {
    let place = if error.line() > 1 {
        format!("line {}, column {}", error.line(), error.column())
    } else {
        format!("column {}", error.column())
    };
    let text = error.to_string();
    let reason = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(reason, _)| reason);
    DataError::new(
        "invalid-json",
        format!("the {what} is not valid JSON at {place}: {reason}"),
    )
    .expected("UTF-8 JSON")
}

fn version(json: Option<Json>) -> Result<Option<u64>, DataError> {
    match json {
        None | Some(Json::Null) => Ok(None),
        Some(json) => json.as_u64().map(Some).ok_or_else(|| {
            DataError::new("wrong-type", format!("\"version\" is {}", preview(&json)))
                .expected("an integer from 0 to 18446744073709551615")
        }),
    }
}

/// The key, and its values in the order of `schema.key`.
fn read_key(schema: &Schema, key: Option<Json>) -> Result<(Key, Vec<Value>), DataError> {
    let values = key_values(schema, key)?;
    Ok((key::canonical(schema, &values)?, values))
}

fn key_values(schema: &Schema, key: Option<Json>) -> Result<Vec<Value>, DataError> {
    let names: Vec<&str> = schema
        .key
        .iter()
        .map(|at| &*schema.columns[*at].name)
        .collect();
    let shape = match names[..] {
        [name] => format!("the bare value of \"{name}\""),
        _ => format!("an object with {}", names.join(", ")),
    };
    let key = key.filter(|key| !key.is_null()).ok_or_else(|| {
        DataError::new("missing-key", "the line has no \"key\"").expected(&*shape)
    })?;
    let mut values = Vec::with_capacity(names.len());
    if let [at] = schema.key[..] {
        values.push(key_part(&key, &schema.columns[at])?);
        return Ok(values);
    }
    let Json::Object(mut parts) = key else {
        return Err(
            DataError::new("wrong-type", format!("\"key\" is {}", preview(&key))).expected(shape),
        );
    };
    for at in &schema.key {
        let column = &schema.columns[*at];
        let part = parts
            .remove(&column.name)
            .filter(|part| !part.is_null())
            .ok_or_else(|| {
                DataError::new("missing-key", format!("\"key\" has no \"{}\"", column.name))
                    .expected(&*shape)
            })?;
        values.push(key_part(&part, column)?);
    }
    match parts.keys().next() {
        Some(name) => Err(DataError::new(
            "unknown-field",
            format!("\"key\" has an unknown field \"{}\"", shorten(name)),
        )
        .expected(shape)),
        None => Ok(values),
    }
}

/// One value of a key: equal values must be one value.
fn key_part(json: &Json, column: &Column) -> Result<Value, DataError> {
    key::part(convert(json, column)?, column)
}

/// One value per column: key columns from the key, the others from `value`, missing ones NULL.
fn row(
    schema: &Schema,
    mut value: Map<String, Json>,
    key: &[Value],
) -> Result<Vec<Value>, DataError> {
    let mut out = Vec::with_capacity(schema.columns.len());
    for (at, column) in schema.columns.iter().enumerate() {
        let json = value.remove(&column.name);
        if let Some(place) = schema.key.iter().position(|key| *key == at) {
            let own = json
                .filter(|json| !json.is_null())
                .map(|json| convert(&json, column))
                .transpose()?;
            if let Some(own) = own.filter(|own| *own != key[place]) {
                let show = |value: &Value| preview(&value.to_json(column.sql_type));
                let detail = format!(
                    "column \"{}\": \"key\" says {}, \"value\" says {}",
                    column.name,
                    show(&key[place]),
                    show(&own)
                );
                return Err(DataError::new("contradicting-key", detail)
                    .hint("leave key columns out of \"value\""));
            }
            out.push(key[place].clone());
            continue;
        }
        let converted = json.map_or(Ok(Value::Null), |json| convert(&json, column))?;
        if converted == Value::Null && !column.nullable {
            let detail = format!("column \"{}\": NULL in a NOT NULL column", column.name);
            return Err(DataError::new("null-value", detail).expected(column.sql_type.to_string()));
        }
        out.push(converted);
    }
    if let Some(name) = value.keys().next() {
        let names: Vec<&str> = schema.columns.iter().map(|column| &*column.name).collect();
        return Err(DataError::new(
            "unknown-field",
            format!("\"value\" has an unknown field \"{}\"", shorten(name)),
        )
        .expected(names.join(", ")));
    }
    Ok(out)
}

fn convert(json: &Json, column: &Column) -> Result<Value, DataError> {
    let value = Value::from_json(json, column).map_err(|error| {
        DataError::new("wrong-type", error.to_string()).expected(error.expected.clone())
    })?;
    match &value {
        Value::Text(text) if text.len() > TEXT_BYTES_MAX => {
            let detail = format!(
                "column \"{}\": the text has {} bytes; the limit TEXT_BYTES_MAX is {TEXT_BYTES_MAX}",
                column.name,
                text.len()
            );
            Err(DataError::new("text-too-large", detail)
                .hint("cut the text into several documents"))
        }
        _ => Ok(value),
    }
}
