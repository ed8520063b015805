//! Single values: what connectors make and replies show. Inside the dataflow rows are packed
//! ([`super::Row`]); values exist only at the edges.

use std::sync::Arc;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use serde::{Deserialize, Serialize};

use super::SqlType;

/// One value of one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// `boolean`
    Bool(bool),
    /// `integer` and `bigint`
    Int(i64),
    /// `real` and `double precision`
    Float(f64),
    /// `numeric`: unscaled digits and scale
    Numeric(i128, i8),
    /// `text`, `uuid`, `jsonb` (canonical JSON text)
    Text(Arc<str>),
    /// `bytea`
    Bytes(Arc<[u8]>),
    /// `timestamptz` and `timestamp`: microseconds since the epoch
    Timestamp(i64),
    /// `date`: days since the epoch
    Date(i32),
    /// `vector(n)`
    Vector(Arc<[f32]>),
}

/// A value that does not fit its column: a data error, shown with the column's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column \"{column}\": expected {expected}, found {found}")]
pub struct ValueError {
    /// The column.
    pub column: String,
    /// What the column takes.
    pub expected: String,
    /// What came, shortened to 80 characters.
    pub found: String,
}

impl Value {
    /// Reads a JSON value as a column's type: int64 is exact, NUMERIC also as a string,
    /// `bytea` is base64, times are RFC 3339, vectors are arrays of finite numbers.
    pub fn from_json(
        json: &serde_json::Value,
        column: &super::Column,
    ) -> Result<Value, ValueError> {
        convert(json, column.sql_type).ok_or_else(|| ValueError {
            column: column.name.clone(),
            expected: column.sql_type.to_string(),
            found: preview(json),
        })
    }

    /// The value's form in replies (API page: NUMERIC, NaN and infinities are strings, `bytea` is
    /// base64, times are RFC 3339 in UTC with microseconds).
    pub fn to_json(&self, sql_type: SqlType) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::from(*value),
            Value::Int(value) => Json::from(*value),
            Value::Float(value) if value.is_finite() => Json::from(*value),
            Value::Float(value) if value.is_nan() => Json::from("NaN"),
            Value::Float(value) => Json::from(if *value > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }),
            Value::Numeric(digits, scale) => Json::from(numeric_text(*digits, *scale)),
            Value::Text(text) if sql_type == SqlType::Jsonb => {
                serde_json::from_str(text).unwrap_or(Json::Null)
            }
            Value::Text(text) => Json::from(&**text),
            Value::Bytes(bytes) => Json::from(BASE64.encode(bytes)),
            Value::Timestamp(micros) => Json::from(timestamp_text(*micros, sql_type)),
            Value::Date(days) => Json::from(date_text(*days)),
            Value::Vector(vector) => vector.iter().map(|x| Json::from(f64::from(*x))).collect(),
        }
    }
}

/// A value for an error message: its JSON, cut after 80 characters.
pub fn preview(json: &serde_json::Value) -> String {
    shorten(&json.to_string())
}

/// A text for an error message, cut after 80 characters.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn convert(json: &serde_json::Value, sql_type: SqlType) -> Option<Value> {
    use serde_json::Value as Json;
    Some(match (sql_type, json) {
        (_, Json::Null) => Value::Null,
        (SqlType::Boolean, Json::Bool(value)) => Value::Bool(*value),
        (SqlType::Int4, Json::Number(n)) => Value::Int(i64::from(i32::try_from(n.as_i64()?).ok()?)),
        (SqlType::Int8, Json::Number(n)) => Value::Int(n.as_i64()?),
        (SqlType::Float4, Json::Number(n)) => real(n.as_f64()?)?,
        (SqlType::Float8, Json::Number(n)) => Value::Float(n.as_f64()?),
        (SqlType::Float4 | SqlType::Float8, Json::String(text)) => Value::Float(match &**text {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            _ => return None,
        }),
        (SqlType::Numeric(precision, scale), Json::String(text)) => {
            parse_numeric(text, precision, scale)?
        }
        (SqlType::Numeric(precision, scale), Json::Number(n)) => {
            parse_numeric(&n.to_string(), precision, scale)?
        }
        (SqlType::Text, Json::String(text)) => Value::Text(Arc::from(&**text)),
        (SqlType::Jsonb, json) => Value::Text(Arc::from(json.to_string())),
        (SqlType::Uuid, Json::String(text)) => parse_uuid(text)?,
        (SqlType::Bytea, Json::String(text)) => Value::Bytes(BASE64.decode(text).ok()?.into()),
        (SqlType::TimestampTz, Json::String(text)) => Value::Timestamp(instant(text)?),
        (SqlType::Timestamp, Json::String(text)) => {
            Value::Timestamp(since_epoch(text.parse().ok()?)?)
        }
        (SqlType::Date, Json::String(text)) => {
            let date: jiff::civil::Date = text.parse().ok()?;
            Value::Date(EPOCH.date().until(date).ok()?.get_days())
        }
        (SqlType::Vector(n), Json::Array(items)) if items.len() == n as usize => {
            let floats: Option<Vec<f32>> = items
                .iter()
                .map(|item| item.as_f64().map(|x| x as f32).filter(|x| x.is_finite()))
                .collect();
            Value::Vector(floats?.into())
        }
        _ => return None,
    })
}

fn parse_uuid(text: &str) -> Option<Value> {
    let hex: String = text
        .chars()
        .filter(|c| *c != '-')
        .collect::<String>()
        .to_lowercase();
    (hex.len() == 32 && hex.chars().all(|c| c.is_ascii_hexdigit())).then(|| {
        let parts = [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ];
        Value::Text(parts.join("-").into())
    })
}

fn parse_numeric(text: &str, precision: u8, scale: i8) -> Option<Value> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let scale_len = usize::try_from(scale).ok()?;
    if whole.is_empty() && fraction.is_empty() || fraction.len() > scale_len {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction:0<scale_len$}").parse().ok()?;
    let fits = digits.checked_ilog10().unwrap_or(0) < u32::from(precision);
    fits.then_some(Value::Numeric(
        if negative { -digits } else { digits },
        scale,
    ))
}

fn numeric_text(digits: i128, scale: i8) -> String {
    let scale = usize::try_from(scale).unwrap_or(0);
    let text = format!("{:0>width$}", digits.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = text.split_at(text.len() - scale);
    let sign = if digits < 0 { "-" } else { "" };
    if scale == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction}")
    }
}

/// A `real`: the nearest 32-bit value, so that equal values are equal rows. `None` beyond its range.
fn real(value: f64) -> Option<Value> {
    let nearest = value as f32;
    let is_in_range = nearest.is_finite();
    is_in_range.then(|| Value::Float(f64::from(nearest)))
}

/// Times are counted in the calendar and not by jiff's instants, which lack the last day of the year
/// 9999: what many tables have for "for ever".
const EPOCH: DateTime = jiff::civil::datetime(1970, 1, 1, 0, 0, 0, 0);

/// RFC 3339 in microseconds since the epoch.
fn instant(text: &str) -> Option<i64> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Some(at.as_microsecond());
    }
    let pieces = Pieces::parse(text).ok()?;
    if pieces.time_zone_annotation().is_some() {
        return None;
    }
    let offset = SignedDuration::from_secs(pieces.to_numeric_offset()?.seconds().into());
    let local = pieces.date().to_datetime(pieces.time()?);
    since_epoch(local.checked_sub(offset).ok()?)
}

fn since_epoch(at: DateTime) -> Option<i64> {
    i64::try_from(at.duration_since(EPOCH).as_micros()).ok()
}

/// Four digits; before the year 0 six and a sign, as ISO 8601 has it.
fn year_text(year: i16) -> String {
    match year {
        0.. => format!("{year:04}"),
        _ => format!("-{:06}", year.unsigned_abs()),
    }
}

fn timestamp_text(micros: i64, sql_type: SqlType) -> String {
    let Ok(at) = EPOCH.checked_add(SignedDuration::from_micros(micros)) else {
        return micros.to_string();
    };
    let zone = if sql_type == SqlType::TimestampTz {
        "Z"
    } else {
        ""
    };
    let rest = at.strftime("-%m-%dT%H:%M:%S%.6f");
    format!("{}{rest}{zone}", year_text(at.year()))
}

fn date_text(days: i32) -> String {
    let since = SignedDuration::from_hours(24 * i64::from(days));
    EPOCH.date().checked_add(since).map_or_else(
        |_| days.to_string(),
        |at| format!("{}{}", year_text(at.year()), at.strftime("-%m-%d")),
    )
}

/// Writes padding, takes text with and without it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    #[test]
    fn json_and_values_round_trip() {
        let cases = [
            (SqlType::Boolean, "true"),
            (SqlType::Int8, "9223372036854775807"),
            (SqlType::Float8, "1.5"),
            (SqlType::Float8, "\"NaN\""),
            (SqlType::Numeric(10, 2), "\"-12.34\""),
            (SqlType::Text, "\"héllo\""),
            (SqlType::Jsonb, "{\"a\":[1,null]}"),
            (SqlType::Bytea, "\"aGVsbG8=\""),
            (SqlType::TimestampTz, "\"2026-11-21T10:00:00.000001Z\""),
            (SqlType::Date, "\"1969-12-31\""),
            (SqlType::Date, "\"9999-12-31\""),
            (SqlType::Date, "\"-009999-01-01\""),
            (SqlType::TimestampTz, "\"9999-12-31T23:59:59.999999Z\""),
            (SqlType::Timestamp, "\"9999-12-31T23:59:59.999999\""),
            (SqlType::TimestampTz, "\"-009999-01-01T00:00:00.000000Z\""),
            (SqlType::Timestamp, "\"-000043-03-15T12:00:00.000000\""),
            (SqlType::Float4, "0.10000000149011612"),
            (SqlType::Vector(2), "[0.5,-1.0]"),
            (SqlType::Uuid, "\"550e8400-e29b-41d4-a716-446655440000\""),
        ];
        for (sql_type, text) in cases {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            let value = Value::from_json(&json, &Column::new("c", sql_type)).unwrap();
            assert_eq!(value.to_json(sql_type), json, "{sql_type}");
        }
    }

    #[test]
    fn times_at_the_end_of_the_calendar_have_their_offset() {
        let read = |text: &str| {
            let column = Column::new("c", SqlType::TimestampTz);
            let value = Value::from_json(&text.into(), &column).ok()?;
            value
                .to_json(SqlType::TimestampTz)
                .as_str()
                .map(str::to_owned)
        };
        let last = "9999-12-31T23:59:59.000000Z";
        assert_eq!(read("9999-12-31T21:59:59-02:00").as_deref(), Some(last));
        assert_eq!(read("9999-12-31T23:59:59-02:00"), None);
        assert_eq!(read("9999-12-31T23:59:59"), None);
    }

    #[test]
    fn a_real_is_the_nearest_32_bit_value() {
        let column = Column::new("c", SqlType::Float4);
        let read = |x: f64| Value::from_json(&x.into(), &column).ok();
        assert_eq!(read(0.1), Some(Value::Float(f64::from(0.1_f32))));
        assert_eq!(read(1e300), None);
    }

    /// The nearest double, and the one that is written again: not its neighbour.
    #[test]
    fn doubles_are_read_as_they_are_written() {
        let text = "2.0269223372036854e23";
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        let column = Column::new("c", SqlType::Float8);
        let value = Value::from_json(&json, &column).unwrap();
        assert_eq!(value, Value::Float(text.parse().unwrap()));
        let column = Column::new("c", SqlType::Jsonb);
        let value = Value::from_json(&json, &column).unwrap();
        let again = Value::from_json(&value.to_json(SqlType::Jsonb), &column).unwrap();
        assert_eq!(again, value);
    }

    #[test]
    fn a_value_that_does_not_fit_names_its_column() {
        let column = Column::new("age", SqlType::Int4);
        let error = Value::from_json(&serde_json::json!("x"), &column).unwrap_err();
        assert_eq!(
            error.to_string(),
            "column \"age\": expected integer, found \"x\""
        );
        for bad in [serde_json::json!([1.0]), serde_json::json!([1.0, 1e300])] {
            assert!(Value::from_json(&bad, &Column::new("v", SqlType::Vector(2))).is_err());
        }
    }
}
