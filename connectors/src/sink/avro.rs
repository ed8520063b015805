//! Rows as Avro, with schemas made from the columns.
//!
//! | SQL | Avro |
//! |---|---|
//! | `BOOLEAN`, `INTEGER`, `BIGINT`, `REAL`, `DOUBLE PRECISION` | `boolean`, `int`, `long`, `float`, `double` |
//! | `NUMERIC(p,s)` | `bytes`, logical type `decimal` |
//! | `TEXT`, `UUID`, `JSONB` | `string`; with `uuid`; with Debezium's name `io.debezium.data.Json` |
//! | `BYTEA` | `bytes` |
//! | `TIMESTAMPTZ`, `TIMESTAMP`, `DATE` | `long` `timestamp-micros`, `local-timestamp-micros`; `int` `date` |
//! | `VECTOR(n)` | an array of `float` |
//!
//! A column that may be NULL is a union with null, which is its default. Messages have Confluent's form:
//! a byte 0, the schema's id in 4 bytes, the value. The subjects are `<topic>-key` and `<topic>-value`.
//!
//! Invariants: the schema is a function of the columns and the topic. Names that Avro does not take are
//! written with `_` for each character that is in the way, as Debezium does it; two columns that become
//! one are refused.
//! Source: Apache Avro 1.12, specification.

use engine::error::WorldError;
use engine::model::{Column, Schema, SqlType, Value};
use serde_json::{Value as Json, json};

use super::Envelope;
use super::encode::Event;

/// What `source.version` says.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The ids of the schemas of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avro {
    /// Of the key.
    pub key: u32,
    /// Of the value.
    pub value: u32,
}

/// The schemas of a topic, as JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaTexts {
    /// Of the key.
    pub key: String,
    /// Of the value.
    pub value: String,
}

/// The schemas of the messages of a collection.
///
/// Errors: columns that Avro cannot tell apart.
pub fn schemas(
    schema: &Schema,
    envelope: Envelope,
    topic: &str,
) -> Result<SchemaTexts, WorldError> {
    let mut seen: Vec<(String, &str)> = Vec::new();
    for column in &schema.columns {
        let field = name(&column.name);
        if let Some((_, other)) = seen.iter().find(|(known, _)| *known == field) {
            return Err(WorldError::Service {
                service: "FORMAT AVRO".to_owned(),
                detail: format!(
                    "the columns \"{other}\" and \"{}\" would both be the field {field}; rename one \
                     in a view",
                    column.name
                ),
                is_transient: false,
            });
        }
        seen.push((field, &column.name));
    }
    let namespace = namespace(topic);
    let all = || schema.columns.iter();
    let keys = schema.key.iter().map(|at| &schema.columns[*at]);
    let key = record("Key", Some(&namespace), keys.map(field).collect());
    let value = match envelope {
        Envelope::Upsert => record("Value", Some(&namespace), all().map(field).collect()),
        Envelope::Debezium => envelope_record(&namespace, all().map(field).collect()),
    };
    Ok(SchemaTexts {
        key: key.to_string(),
        value: value.to_string(),
    })
}

fn record(name: &str, namespace: Option<&str>, fields: Vec<Json>) -> Json {
    let mut record = json!({"type": "record", "name": name, "fields": fields});
    if let Some(namespace) = namespace {
        record["namespace"] = Json::from(namespace);
    }
    record
}

fn envelope_record(namespace: &str, columns: Vec<Json>) -> Json {
    let value = record("Value", None, columns);
    let plain = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let source = record(
        "Source",
        None,
        vec![
            plain("version", "string"),
            plain("connector", "string"),
            plain("name", "string"),
            plain("ts_ms", "long"),
            plain("snapshot", "string"),
            plain("db", "string"),
            plain("table", "string"),
            plain("ts_us", "long"),
        ],
    );
    record(
        "Envelope",
        Some(namespace),
        vec![
            json!({"name": "before", "type": ["null", value], "default": null}),
            json!({"name": "after", "type": ["null", "Value"], "default": null}),
            json!({"name": "source", "type": source}),
            plain("op", "string"),
            plain("ts_ms", "long"),
        ],
    )
}

fn field(column: &Column) -> Json {
    let own = match column.sql_type {
        SqlType::Boolean => json!("boolean"),
        SqlType::Int4 => json!("int"),
        SqlType::Int8 => json!("long"),
        SqlType::Float4 => json!("float"),
        SqlType::Float8 => json!("double"),
        SqlType::Numeric(precision, scale) => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        SqlType::Text => json!("string"),
        SqlType::Bytea => json!("bytes"),
        SqlType::TimestampTz => json!({"type": "long", "logicalType": "timestamp-micros"}),
        SqlType::Timestamp => json!({"type": "long", "logicalType": "local-timestamp-micros"}),
        SqlType::Date => json!({"type": "int", "logicalType": "date"}),
        SqlType::Jsonb => json!({"type": "string", "connect.name": "io.debezium.data.Json"}),
        SqlType::Uuid => json!({"type": "string", "logicalType": "uuid"}),
        SqlType::Vector(_) => json!({"type": "array", "items": "float"}),
    };
    match column.nullable {
        true => json!({"name": name(&column.name), "type": ["null", own], "default": null}),
        false => json!({"name": name(&column.name), "type": own}),
    }
}

/// A name as Avro takes it.
fn name(text: &str) -> String {
    let mut out: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

/// A topic as a namespace.
fn namespace(topic: &str) -> String {
    let parts = topic.split('.').filter(|part| !part.is_empty()).map(name);
    parts.collect::<Vec<_>>().join(".")
}

impl Avro {
    pub(super) fn key(&self, schema: &Schema, row: &[Value]) -> Vec<u8> {
        let mut out = framed(self.key);
        for at in &schema.key {
            column(&mut out, &schema.columns[*at], &row[*at]);
        }
        out
    }

    pub(super) fn row(&self, schema: &Schema, row: &[Value]) -> Vec<u8> {
        let mut out = framed(self.value);
        columns(&mut out, schema, row);
        out
    }

    pub(super) fn event(
        &self,
        schema: &Schema,
        event: &Event<'_>,
        before: Option<&[Value]>,
        after: Option<&[Value]>,
    ) -> Vec<u8> {
        let mut out = framed(self.value);
        for image in [before, after] {
            long(&mut out, i64::from(image.is_some()));
            if let Some(row) = image {
                columns(&mut out, schema, row);
            }
        }
        text(&mut out, VERSION);
        text(&mut out, "headwater");
        text(&mut out, event.sink);
        long(&mut out, event.millis());
        text(&mut out, event.snapshot());
        text(&mut out, "headwater");
        text(&mut out, event.collection);
        long(&mut out, event.micros());
        text(&mut out, event.op);
        long(&mut out, event.millis());
        out
    }
}

fn framed(id: u32) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(id.to_be_bytes());
    out
}

fn columns(out: &mut Vec<u8>, schema: &Schema, row: &[Value]) {
    for (one, value) in schema.columns.iter().zip(row) {
        column(out, one, value);
    }
}

fn column(out: &mut Vec<u8>, column: &Column, value: &Value) {
    if column.nullable {
        long(out, i64::from(*value != Value::Null));
    }
    match (value, column.sql_type) {
        // Of a union with null that is all; a column without NULL has none.
        (Value::Null, _) => {}
        (Value::Bool(value), _) => out.push(u8::from(*value)),
        (Value::Int(value), _) | (Value::Timestamp(value), _) => long(out, *value),
        (Value::Date(days), _) => long(out, i64::from(*days)),
        (Value::Float(value), SqlType::Float4) => {
            out.extend((*value as f32).to_le_bytes());
        }
        (Value::Float(value), _) => out.extend(value.to_le_bytes()),
        (Value::Numeric(unscaled, _), _) => bytes(out, shortest(&unscaled.to_be_bytes())),
        (Value::Text(value), _) => text(out, value),
        (Value::Bytes(value), _) => bytes(out, value),
        (Value::Vector(values), _) => {
            if !values.is_empty() {
                long(out, i64::try_from(values.len()).unwrap_or(i64::MAX));
                values
                    .iter()
                    .for_each(|value| out.extend(value.to_le_bytes()));
            }
            long(out, 0);
        }
    }
}

/// Two's complement without bytes that say nothing.
fn shortest(bytes: &[u8]) -> &[u8] {
    let mut bytes = bytes;
    while let [first, second, ..] = bytes {
        let is_sign = matches!((first, second >> 7), (0, 0) | (0xff, 1));
        if !is_sign {
            break;
        }
        bytes = &bytes[1..];
    }
    bytes
}

fn long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest > 0x7f {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    long(out, i64::try_from(value.len()).unwrap_or(i64::MAX));
    out.extend(value);
}

fn text(out: &mut Vec<u8>, value: &str) {
    bytes(out, value.as_bytes());
}
