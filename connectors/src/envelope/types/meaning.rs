//! What a value means: by the logical name in its schema, else by its shape and the declared type.
//!
//! The names are those of Debezium 3 (`io.debezium.time.*`, `io.debezium.data.*`) and Kafka Connect
//! (`org.apache.kafka.connect.data.*`). An unknown name is read by its primitive type.

use engine::error::DataError;
use engine::model::{Column, SqlType};
use serde_json::Value as Json;

use super::{BinaryMode, Datum, Decimal, DecimalMode, Rules, TimePrecision, TimeUnit};
use super::{binary, temporal};
use crate::format::{ConnectKind, ConnectSchema, Node};

type Meaning = Result<Option<Datum>, DataError>;

/// The meaning of a value that is not null; `None` where the shape cannot mean anything.
pub(super) fn of(
    node: &Node<'_>,
    schema: Option<&ConnectSchema>,
    column: &Column,
    rules: &Rules,
) -> Meaning {
    if let Node::Branch(place, node) = node {
        // One of several types: the branch has the meaning.
        let schema = schema.filter(|schema| schema.kind == ConnectKind::Union);
        let branch = schema.and_then(|schema| schema.fields.get(*place));
        return match branch {
            Some((_, schema)) => of(node, Some(schema), column, rules),
            None => by_shape(node, column),
        };
    }
    match schema {
        Some(schema) => match named(node, schema, column)? {
            Some(named) => Ok(named),
            None => by_kind(node, schema, column, rules),
        },
        None => by_column(node, column, rules),
    }
}

/// By logical name. The outer `None`: the name says nothing more than the primitive type.
fn named(
    node: &Node<'_>,
    schema: &ConnectSchema,
    column: &Column,
) -> Result<Option<Option<Datum>>, DataError> {
    let Some(name) = schema.name.as_deref() else {
        return Ok(None);
    };
    let time = |unit: TimeUnit| match node.as_i64() {
        Some(count) => unit.micros(count),
        None => None,
    };
    Ok(Some(match name {
        "org.apache.kafka.connect.data.Decimal" => {
            let scale = schema.parameter("scale").and_then(|text| text.parse().ok());
            unscaled(node, scale.unwrap_or(0))
        }
        "io.debezium.data.VariableScaleDecimal" => variable_scale(node),
        "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => {
            node.as_i64().map(Datum::Date)
        }
        "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => {
            time(TimeUnit::Millis).map(Datum::Time)
        }
        "io.debezium.time.MicroTime" => time(TimeUnit::Micros).map(Datum::Time),
        "io.debezium.time.NanoTime" => time(TimeUnit::Nanos).map(Datum::Time),
        "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
            return infinite_or(time(TimeUnit::Millis).map(Datum::Timestamp), node, column);
        }
        "io.debezium.time.MicroTimestamp" => time(TimeUnit::Micros).map(Datum::Timestamp),
        "io.debezium.time.NanoTimestamp" => time(TimeUnit::Nanos).map(Datum::Timestamp),
        "io.debezium.time.MicroDuration" => time(TimeUnit::Micros).map(Datum::Duration),
        "io.debezium.time.NanoDuration" => time(TimeUnit::Nanos).map(Datum::Duration),
        "io.debezium.data.Json" => node.as_str().map(|text| Datum::JsonText(text.to_owned())),
        "io.debezium.data.Bits" => bits(node, schema),
        "io.debezium.data.SparseVector" => sparse_vector(node, column),
        // ZonedTimestamp, ZonedTime, IsoDate, IsoTime, IsoTimestamp, Interval, Year, Uuid, Xml,
        // Enum, EnumSet, Ltree, Tsvector, DoubleVector, FloatVector, geometry structs.
        _ => return Ok(None),
    }))
}

/// A count of milliseconds that overflows microseconds is one of PostgreSQL's infinities.
fn infinite_or(
    datum: Option<Datum>,
    node: &Node<'_>,
    column: &Column,
) -> Result<Option<Option<Datum>>, DataError> {
    match datum {
        None if node.as_i64().is_some() => Err(temporal::infinite(column)),
        datum => Ok(Some(datum)),
    }
}

fn by_kind(node: &Node<'_>, schema: &ConnectSchema, column: &Column, rules: &Rules) -> Meaning {
    Ok(match (schema.kind, node) {
        (ConnectKind::Bytes, Node::Text(text)) => binary::unbase64(text).map(Datum::Bytes),
        (ConnectKind::String, Node::Text(text)) if column.sql_type == SqlType::Bytea => {
            return bytes_as_text(text, column, rules);
        }
        // `decimal.handling.mode=string` and ranges, enums, uuid, xml: text is text.
        (ConnectKind::String, Node::Text(text)) => Some(Datum::Text(text.to_string())),
        (ConnectKind::Literal, Node::Text(text)) => literal(text, column),
        (ConnectKind::Array, Node::Array(_)) => return list(node, schema.items.as_deref(), column),
        _ => return by_shape(node, column),
    })
}

fn bytes_as_text(text: &str, column: &Column, rules: &Rules) -> Meaning {
    match rules.binary {
        BinaryMode::Base64 => Ok(binary::unbase64(text).map(Datum::Bytes)),
        BinaryMode::Hex => Ok(binary::unhex(text).map(Datum::Bytes)),
        BinaryMode::Bytes => {
            let detail = format!(
                "column \"{}\": bytes sent as text; base64 and hexadecimal cannot be told apart",
                column.name
            );
            Err(DataError::new("ambiguous-binary", detail)
                .expected("binary.handling.mode=bytes, or the option BINARY MODE")
                .hint("declare BINARY MODE = 'base64' or 'hex', as the connector has it"))
        }
    }
}

/// Without a schema the declared type decides, and [`Rules`] where it leaves a choice.
fn by_column(node: &Node<'_>, column: &Column, rules: &Rules) -> Meaning {
    Ok(match (column.sql_type, node) {
        (SqlType::Numeric(_, scale), Node::Text(text)) => match rules.decimal {
            _ if temporal::not_finite(text).is_some() => Some(Datum::Text(text.to_string())),
            DecimalMode::String => Some(Datum::Text(text.to_string())),
            DecimalMode::Precise => unscaled(node, i32::from(scale)),
        },
        (SqlType::Numeric(..), Node::Object(_)) => variable_scale(node),
        (SqlType::TimestampTz | SqlType::Timestamp, Node::Number(_)) => {
            let unit = match rules.time {
                TimePrecision::Millis => TimeUnit::Millis,
                TimePrecision::Micros => TimeUnit::Micros,
                TimePrecision::Nanos => TimeUnit::Nanos,
            };
            let Some(count) = node.as_i64() else {
                return Ok(None);
            };
            let micros = unit.micros(count);
            Some(Datum::Timestamp(
                micros.ok_or_else(|| temporal::infinite(column))?,
            ))
        }
        (SqlType::Date, Node::Number(_)) => node.as_i64().map(Datum::Date),
        (SqlType::Bytea, Node::Text(text)) => match rules.binary {
            BinaryMode::Bytes | BinaryMode::Base64 => binary::unbase64(text).map(Datum::Bytes),
            BinaryMode::Hex => binary::unhex(text).map(Datum::Bytes),
        },
        (SqlType::Jsonb, Node::Text(text)) if rules.is_json_text => {
            Some(Datum::JsonText(text.to_string()))
        }
        (SqlType::Vector(_), Node::Object(_)) => sparse_vector(node, column),
        _ => return by_shape(node, column),
    })
}

/// What the shape alone says.
fn by_shape(node: &Node<'_>, column: &Column) -> Meaning {
    Ok(match node {
        Node::Null => Some(Datum::Null),
        Node::Bool(value) => Some(Datum::Bool(*value)),
        Node::Number(text) => Decimal::parse(text).map(Datum::Number),
        Node::Int(value) if matches!(column.sql_type, SqlType::Int4 | SqlType::Int8) => {
            Some(Datum::Int(*value))
        }
        Node::Int(value) => Decimal::parse(&value.to_string()).map(Datum::Number),
        Node::Float(value) if is_float(column) || !value.is_finite() => Some(Datum::Float(*value)),
        Node::Float(value) => Decimal::parse(&value.to_string()).map(Datum::Number),
        // JsonConverter writes a double's NaN as a string.
        Node::Text(text) => match temporal::not_finite(text) {
            Some(value) if is_float(column) => Some(Datum::Float(value)),
            _ => Some(Datum::Text(text.to_string())),
        },
        Node::Bytes(bytes) => Some(Datum::Bytes(bytes.to_vec())),
        Node::Array(_) => return list(node, None, column),
        Node::Object(_) => Some(Datum::Json(node.to_json())),
        Node::Branch(_, node) => return by_shape(node, column),
    })
}

fn is_float(column: &Column) -> bool {
    matches!(column.sql_type, SqlType::Float4 | SqlType::Float8)
}

/// A text that stands for a value of the column's type, in PostgreSQL's spellings.
fn literal(text: &str, column: &Column) -> Option<Datum> {
    let trimmed = text.trim();
    let as_text = |text: &str| Some(Datum::Text(text.to_owned()));
    match column.sql_type {
        SqlType::Text => as_text(text),
        SqlType::Boolean => match &*trimmed.to_ascii_lowercase() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Some(Datum::Bool(true)),
            "f" | "false" | "n" | "no" | "off" | "0" => Some(Datum::Bool(false)),
            _ => None,
        },
        SqlType::Int4 | SqlType::Int8 => Decimal::parse(trimmed).map(Datum::Number),
        // A backslash is no character of base64, so the two cannot be taken for each other.
        SqlType::Bytea => match trimmed.strip_prefix("\\x") {
            Some(digits) => binary::unhex(digits).map(Datum::Bytes),
            None => binary::unbase64(trimmed).map(Datum::Bytes),
        },
        SqlType::Jsonb => Some(Datum::JsonText(text.to_owned())),
        _ => as_text(trimmed),
    }
}

/// Arrays. Debezium has no arrays of several dimensions: of `int[][]` only nulls arrive, of
/// `text[][]` Java's object names. Both are refused.
fn list(node: &Node<'_>, items: Option<&ConnectSchema>, column: &Column) -> Meaning {
    let Node::Array(nodes) = node else {
        return Ok(None);
    };
    let is_number =
        items.is_some_and(|items| matches!(items.kind, ConnectKind::Integer | ConnectKind::Float));
    let is_lost = |node: &Node<'_>| match node {
        Node::Null => is_number,
        Node::Text(text) => text.starts_with("[Ljava.lang."),
        _ => false,
    };
    if !nodes.is_empty() && nodes.iter().all(is_lost) {
        let detail = format!(
            "column \"{}\": an array of several dimensions, whose values Debezium does not send, \
             or of nulls only",
            column.name
        );
        return Err(DataError::new("ambiguous-array", detail)
            .expected("an array of one dimension")
            .hint("cast the column in the source, or leave it out of the declaration"));
    }
    Ok(Some(Datum::Json(node.to_json())))
}

/// An unscaled integer in base64 (or bytes) at a scale. PostgreSQL's negative scales arrive as
/// 2048 − n: that is the true scale of the integer that was sent.
fn unscaled(node: &Node<'_>, scale: i32) -> Option<Datum> {
    let bytes = match node {
        Node::Text(text) => binary::unbase64(text)?,
        Node::Bytes(bytes) => bytes.to_vec(),
        // `decimal.format=numeric` of the JSON converter.
        Node::Number(text) => return Decimal::parse(text).map(Datum::Number),
        Node::Int(value) => return Decimal::parse(&value.to_string()).map(Datum::Number),
        _ => return None,
    };
    Decimal::from_unscaled(&bytes, scale).map(Datum::Number)
}

fn variable_scale(node: &Node<'_>) -> Option<Datum> {
    let scale = i32::try_from(node.get("scale")?.as_i64()?).ok()?;
    unscaled(node.get("value")?, scale)
}

/// Bits arrive as bytes in little endian order; `length` says how many count.
fn bits(node: &Node<'_>, schema: &ConnectSchema) -> Option<Datum> {
    let bytes = match node {
        Node::Text(text) => binary::unbase64(text)?,
        Node::Bytes(bytes) => bytes.to_vec(),
        Node::Bool(value) => return Some(Datum::Bool(*value)),
        _ => return None,
    };
    let length = schema
        .parameter("length")
        .and_then(|text| text.parse().ok());
    // `bit varying` without a length says 2³¹ − 1.
    let length = length.map_or(bytes.len() * 8, |length: usize| length.min(bytes.len() * 8));
    let bit = |at: usize| match bytes[at / 8] >> (at % 8) & 1 {
        0 => '0',
        _ => '1',
    };
    Some(Datum::Bits((0..length).rev().map(bit).collect()))
}

/// pgvector's `sparsevec`: `{"dimensions":n,"vector":{"index from 1":value}}`.
fn sparse_vector(node: &Node<'_>, column: &Column) -> Option<Datum> {
    let SqlType::Vector(dimensions) = column.sql_type else {
        return Some(Datum::Json(node.to_json()));
    };
    if node.get("dimensions")?.as_u64()? != u64::from(dimensions) {
        return None;
    }
    let mut dense = vec![Json::from(0.0); dimensions as usize];
    let Node::Object(entries) = node.get("vector")? else {
        return None;
    };
    for (index, value) in entries {
        let index = index.parse::<usize>().ok()?.checked_sub(1)?;
        *dense.get_mut(index)? = value.to_json();
    }
    Some(Datum::Json(Json::from(dense)))
}
