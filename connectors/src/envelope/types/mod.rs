//! Connect's and Debezium's types to ours: `docs/debezium-types.md` is the same as a table.
//!
//! The idea: first what was *meant* (a [`Datum`]: by the schema's logical name, else by the shape
//! and the declared type), then how the declared column takes it. A value that does not fit is an
//! error that names the column; nothing is rounded, cut or guessed.
//!
//! ```text
//! Node + logical name ─▶ Datum ─┐
//! Node + declared type ─▶ Datum ┴─▶ fit(column) ─▶ Value, Unavailable, or an error
//! ```
//!
//! Invariants: NULL comes from null only; a placeholder never becomes a value; equal source values
//! become equal [`Value`]s in all of Debezium's modes. What a schemaless message leaves open is
//! decided by [`Rules`] and never by the look of a value.

pub(crate) mod binary;
mod decimal;
mod meaning;
pub mod placeholder;
mod plain;
mod temporal;

use std::sync::Arc;

use engine::error::DataError;
use engine::limits::TEXT_BYTES_MAX;
use engine::model::{Column, SqlType, Value, shorten};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::format::{ConnectSchema, Node};
use decimal::Decimal;
use placeholder::Placeholder;
use temporal::TimeUnit;

/// How bytes are written: `binary.handling.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BinaryMode {
    /// Taken from the schema: Connect bytes, which JSON writes as base64. Bytes that the schema calls
    /// a string are refused: base64 and hexadecimal cannot be told apart.
    #[default]
    Bytes,
    /// `base64` and `base64-url-safe`. A TOAST value that did not change arrives as null then.
    Base64,
    /// `hex`
    Hex,
}

/// What a string in a NUMERIC column is where no schema says so: `decimal.handling.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecimalMode {
    /// Base64 of the unscaled integer, at the declared column's scale.
    #[default]
    Precise,
    /// Decimal text.
    String,
}

/// The unit of a bare number in a time column where no schema says so: `time.precision.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimePrecision {
    /// Milliseconds: `connect`, or `adaptive` with at most three digits.
    Millis,
    /// Microseconds: `adaptive` with PostgreSQL's own six digits.
    #[default]
    Micros,
    /// Nanoseconds.
    Nanos,
}

/// What the declared columns and the messages leave open.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Debezium's unavailable-value placeholder; `None` where there is none (upsert, append).
    pub placeholder: Option<Placeholder>,
    /// See [`BinaryMode`].
    pub binary: BinaryMode,
    /// See [`DecimalMode`].
    pub decimal: DecimalMode,
    /// See [`TimePrecision`].
    pub time: TimePrecision,
    /// Whether a string in a JSONB column is JSON text (Debezium) or itself the value.
    pub is_json_text: bool,
}

/// One column of a decoded row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Cell {
    /// The value.
    Value(Value),
    /// Not sent: the value that the row had before still holds.
    Unavailable,
    /// Null, or not sent: both arrive as null (`binary.handling.mode=base64`).
    NullOrUnavailable,
}

impl Cell {
    /// The value, if it is known.
    pub fn known(&self) -> Option<&Value> {
        match self {
            Cell::Value(value) => Some(value),
            Cell::Unavailable | Cell::NullOrUnavailable => None,
        }
    }
}

/// All values of a row, if all were sent; else the cells again.
pub fn complete(cells: Vec<Cell>) -> Result<Vec<Value>, Vec<Cell>> {
    if cells.iter().any(|cell| cell.known().is_none()) {
        return Err(cells);
    }
    let known = cells.into_iter().filter_map(|cell| match cell {
        Cell::Value(value) => Some(value),
        Cell::Unavailable | Cell::NullOrUnavailable => None,
    });
    Ok(known.collect())
}

/// What a message means by a value, before a column takes it.
#[derive(Debug, Clone, PartialEq)]
enum Datum {
    Null,
    Bool(bool),
    Number(Decimal),
    /// An integer for a column of integers.
    Int(i64),
    /// A double for a column of such; for other columns only NaN and infinities.
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Days since the epoch.
    Date(i64),
    /// Time of day: microseconds since midnight.
    Time(i64),
    /// Microseconds since the epoch.
    Timestamp(i64),
    /// A span in microseconds.
    Duration(i64),
    /// JSON text.
    JsonText(String),
    /// Lists, maps, structs.
    Json(Json),
    /// A bit string, first bit first, and its number.
    Bits(String),
}

/// Converts one value. `schema` is the field's, where the message carries one.
pub fn cell(
    node: &Node<'_>,
    schema: Option<&ConnectSchema>,
    column: &Column,
    rules: &Rules,
) -> Result<Cell, DataError> {
    let is_binary = column.sql_type == SqlType::Bytea;
    if let Some(placeholder) = &rules.placeholder {
        if placeholder.is(node, is_binary) {
            return Ok(Cell::Unavailable);
        }
        if node.is_null() && is_binary && rules.binary == BinaryMode::Base64 {
            return Ok(Cell::NullOrUnavailable);
        }
    }
    let value = value(node, schema, column, rules)?;
    if value == Value::Null && !column.nullable {
        let detail = format!("column \"{}\": NULL in a NOT NULL column", column.name);
        return Err(DataError::new("null-value", detail).expected(column.sql_type.to_string()));
    }
    Ok(Cell::Value(value))
}

/// Converts one value that is there.
pub fn value(
    node: &Node<'_>,
    schema: Option<&ConnectSchema>,
    column: &Column,
    rules: &Rules,
) -> Result<Value, DataError> {
    if node.is_null() {
        return Ok(Value::Null);
    }
    match plain::value(node, schema, column) {
        Some(value) => Ok(value),
        None => by_meaning(node, schema, column, rules),
    }
}

fn by_meaning(
    node: &Node<'_>,
    schema: Option<&ConnectSchema>,
    column: &Column,
    rules: &Rules,
) -> Result<Value, DataError> {
    let wrong = || wrong_type(column, &node.shortened());
    let datum = meaning::of(node, schema, column, rules)?.ok_or_else(wrong)?;
    let value = fit(&datum, column)?.ok_or_else(wrong)?;
    match &value {
        Value::Text(text) if text.len() > TEXT_BYTES_MAX => Err(too_large(column, text.len())),
        _ => Ok(value),
    }
}

/// `2026-11-21T10:00:00.000001`, from microseconds since the epoch; `None` out of range.
pub(super) fn time_text(micros: i64) -> Option<String> {
    temporal::timestamp_text(micros)
}

fn too_large(column: &Column, bytes: usize) -> DataError {
    let detail = format!(
        "column \"{}\": the text has {bytes} bytes; the limit TEXT_BYTES_MAX is {TEXT_BYTES_MAX}",
        column.name
    );
    DataError::new("text-too-large", detail).hint("cut the text into several documents")
}

fn wrong_type(column: &Column, found: &str) -> DataError {
    let detail = format!(
        "column \"{}\": expected {}, found {found}",
        column.name, column.sql_type
    );
    DataError::new("wrong-type", detail).expected(column.sql_type.to_string())
}

fn out_of_range(column: &Column, found: &str) -> DataError {
    let detail = format!(
        "column \"{}\": {} does not fit {}",
        column.name,
        shorten(found),
        column.sql_type
    );
    DataError::new("out-of-range", detail).expected(column.sql_type.to_string())
}

/// The datum as the column's type. `None`: the column does not take such a thing.
fn fit(datum: &Datum, column: &Column) -> Result<Option<Value>, DataError> {
    let sql_type = column.sql_type;
    Ok(match sql_type {
        _ if *datum == Datum::Null => Some(Value::Null),
        SqlType::Boolean => fit_boolean(datum),
        SqlType::Int4 | SqlType::Int8 => fit_integer(datum, column)?,
        SqlType::Float4 | SqlType::Float8 => fit_float(datum, column)?,
        SqlType::Numeric(precision, scale) => fit_numeric(datum, column, precision, scale)?,
        SqlType::Text => fit_text(datum),
        SqlType::Bytea => match datum {
            Datum::Bytes(bytes) => Some(Value::Bytes(Arc::from(&**bytes))),
            _ => None,
        },
        SqlType::TimestampTz | SqlType::Timestamp => match datum {
            Datum::Timestamp(micros) => Some(temporal::timestamp(*micros, column)?),
            Datum::Date(days) => {
                let micros = days.checked_mul(temporal::DAY_MICROS);
                let micros = micros.ok_or_else(|| temporal::infinite(column))?;
                Some(temporal::timestamp(micros, column)?)
            }
            Datum::Text(text) => temporal::parse_timestamp(text, column)?,
            _ => None,
        },
        SqlType::Date => match datum {
            Datum::Date(days) => Some(temporal::date(*days, column)?),
            Datum::Timestamp(micros) if micros % temporal::DAY_MICROS == 0 => {
                Some(temporal::date(micros / temporal::DAY_MICROS, column)?)
            }
            Datum::Text(text) => temporal::parse_date(text, column)?,
            _ => None,
        },
        SqlType::Jsonb => fit_json(datum),
        SqlType::Uuid => match datum {
            Datum::Text(text) => Value::from_json(&Json::from(&**text), column).ok(),
            _ => None,
        },
        SqlType::Vector(_) => match datum {
            Datum::Json(json) => Value::from_json(json, column).ok(),
            // pgvector's own text, from a connector that does not know the type.
            Datum::Text(text) | Datum::JsonText(text) => serde_json::from_str::<Json>(text)
                .ok()
                .and_then(|json| Value::from_json(&json, column).ok()),
            _ => None,
        },
    })
}

fn fit_boolean(datum: &Datum) -> Option<Value> {
    match datum {
        Datum::Bool(value) => Some(Value::Bool(*value)),
        // MySQL's tinyint(1) and bit(1).
        Datum::Number(number) => match number.at_scale(0)? {
            0 => Some(Value::Bool(false)),
            1 => Some(Value::Bool(true)),
            _ => None,
        },
        _ => None,
    }
}

fn fit_integer(datum: &Datum, column: &Column) -> Result<Option<Value>, DataError> {
    let value = match datum {
        Datum::Int(value) => Some(i128::from(*value)),
        Datum::Number(number) => number.at_scale(0),
        Datum::Time(micros) | Datum::Duration(micros) | Datum::Timestamp(micros) => {
            Some(i128::from(*micros))
        }
        Datum::Bits(bits) => i128::from_str_radix(bits, 2).ok(),
        _ => return Ok(None),
    };
    let text = || match datum {
        Datum::Number(number) => number.to_string(),
        Datum::Int(n) | Datum::Time(n) | Datum::Duration(n) | Datum::Timestamp(n) => n.to_string(),
        Datum::Bits(bits) => bits.clone(),
        _ => String::new(),
    };
    let value = value.and_then(|value| i64::try_from(value).ok());
    let is_in_range =
        |value: &i64| column.sql_type == SqlType::Int8 || i32::try_from(*value).is_ok();
    match value.filter(is_in_range) {
        Some(value) => Ok(Some(Value::Int(value))),
        None => Err(out_of_range(column, &text())),
    }
}

fn fit_float(datum: &Datum, column: &Column) -> Result<Option<Value>, DataError> {
    let value = match datum {
        Datum::Number(number) => number.to_f64(),
        Datum::Float(value) if value.is_finite() => Some(*value),
        Datum::Float(value) => return Ok(Some(Value::Float(*value))),
        Datum::Text(text) => match (temporal::not_finite(text), Decimal::parse(text)) {
            (Some(value), _) => return Ok(Some(Value::Float(value))),
            (None, Some(number)) => number.to_f64(),
            (None, None) => return Ok(None),
        },
        _ => return Ok(None),
    };
    // A `real` holds the nearest 32-bit value, so that equal values are equal rows.
    let value = value.map(|value| match column.sql_type {
        SqlType::Float4 => f64::from(value as f32),
        _ => value,
    });
    match value.filter(|value| value.is_finite()) {
        Some(value) => Ok(Some(Value::Float(value))),
        None => Err(out_of_range(column, "the number")),
    }
}

fn fit_numeric(
    datum: &Datum,
    column: &Column,
    precision: u8,
    scale: i8,
) -> Result<Option<Value>, DataError> {
    let number = match datum {
        Datum::Number(number) => number.clone(),
        Datum::Float(_) => return Err(not_a_number(column)),
        Datum::Text(text) => match Decimal::parse(text) {
            Some(number) => number,
            None if temporal::not_finite(text).is_some() => return Err(not_a_number(column)),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let digits = number.at_scale(scale).filter(|digits| {
        let count = digits.unsigned_abs().checked_ilog10().unwrap_or(0);
        count < u32::from(precision)
    });
    match digits {
        Some(digits) => Ok(Some(Value::Numeric(digits, scale))),
        None => Err(out_of_range(column, &number.to_string())
            .hint("declare the column with more digits, or as TEXT")),
    }
}

fn not_a_number(column: &Column) -> DataError {
    let detail = format!(
        "column \"{}\": NaN or an infinity in a column of type {}",
        column.name, column.sql_type
    );
    DataError::new("not-a-number", detail)
        .expected("a finite number")
        .hint("declare the column as DOUBLE PRECISION or TEXT to keep such values")
}

fn fit_text(datum: &Datum) -> Option<Value> {
    let text = match datum {
        Datum::Text(text) | Datum::JsonText(text) | Datum::Bits(text) => text.clone(),
        Datum::Bool(value) => value.to_string(),
        Datum::Number(number) => number.to_string(),
        Datum::Int(value) => value.to_string(),
        Datum::Float(value) if value.is_nan() => "NaN".to_owned(),
        Datum::Float(value) if *value > 0.0 => "Infinity".to_owned(),
        Datum::Float(_) => "-Infinity".to_owned(),
        Datum::Date(days) => temporal::date_text(*days)?,
        Datum::Time(micros) => temporal::time_text(*micros)?,
        Datum::Timestamp(micros) => temporal::timestamp_text(*micros)?,
        Datum::Duration(micros) => temporal::duration_text(*micros),
        Datum::Json(json) => json.to_string(),
        Datum::Null | Datum::Bytes(_) => return None,
    };
    Some(Value::Text(text.into()))
}

fn fit_json(datum: &Datum) -> Option<Value> {
    let json = match datum {
        Datum::JsonText(text) => serde_json::from_str(text).ok()?,
        Datum::Json(json) => json.clone(),
        Datum::Bool(value) => Json::from(*value),
        Datum::Number(number) => serde_json::from_str(&number.to_string()).ok()?,
        Datum::Text(text) => Json::from(&**text),
        _ => return None,
    };
    Some(Value::Text(json.to_string().into()))
}
