//! Times in all of `time.precision.mode`: counts of units, and ISO text.
//!
//! Limits: years −9999 to 9999 (what replies can show). PostgreSQL's infinities have no value here and
//! are refused. Dates before 1582-10-15 are taken as sent; Debezium's snapshot and stream differ
//! there (Julian against proleptic Gregorian), see `docs/debezium-types.md`.

use engine::error::DataError;
use engine::model::{Column, SqlType, Value};
use serde_json::Value as Json;

/// Microseconds of a day.
pub(super) const DAY_MICROS: i64 = 86_400_000_000;
/// −9999-01-01 and 9999-12-31 in days since the epoch.
const DAYS: std::ops::RangeInclusive<i64> = -4_371_587..=2_932_896;

/// The unit of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeUnit {
    Millis,
    Micros,
    Nanos,
}

impl TimeUnit {
    /// In microseconds. PostgreSQL has none smaller, so nanoseconds lose nothing of it.
    pub(super) fn micros(self, count: i64) -> Option<i64> {
        match self {
            TimeUnit::Millis => count.checked_mul(1_000),
            TimeUnit::Micros => Some(count),
            TimeUnit::Nanos => Some(count.div_euclid(1_000)),
        }
    }
}

/// A timestamp within range.
pub(super) fn timestamp(micros: i64, column: &Column) -> Result<Value, DataError> {
    match DAYS.contains(&micros.div_euclid(DAY_MICROS)) {
        true => Ok(Value::Timestamp(micros)),
        false => Err(infinite(column)),
    }
}

/// A date within range.
pub(super) fn date(days: i64, column: &Column) -> Result<Value, DataError> {
    match i32::try_from(days) {
        Ok(short) if DAYS.contains(&days) => Ok(Value::Date(short)),
        _ => Err(infinite(column)),
    }
}

/// The error for a time that has no value here.
pub(super) fn infinite(column: &Column) -> DataError {
    let detail = format!(
        "column \"{}\": an infinite time, or one outside the years -9999 to 9999",
        column.name
    );
    DataError::new("infinite-time", detail)
        .expected(column.sql_type.to_string())
        .hint("declare the column as TEXT with time.precision.mode=isostring, or leave it out")
}

/// ISO 8601 text: with a zone, or without (taken as UTC), date alone included.
pub(super) fn parse_timestamp(text: &str, column: &Column) -> Result<Option<Value>, DataError> {
    if is_infinite(text) {
        return Err(infinite(column));
    }
    let json = Json::from(text);
    let as_type = |sql_type| Value::from_json(&json, &Column::new("", sql_type)).ok();
    // A text with a zone is an instant in either type; one without counts as UTC.
    Ok(as_type(SqlType::TimestampTz).or_else(|| as_type(SqlType::Timestamp)))
}

/// ISO 8601 text; a trailing `Z` (isostring mode) is ignored.
pub(super) fn parse_date(text: &str, column: &Column) -> Result<Option<Value>, DataError> {
    if is_infinite(text) {
        return Err(infinite(column));
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    Ok(Value::from_json(&Json::from(text), column).ok())
}

fn is_infinite(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity" | "Infinity" | "-Infinity")
}

/// NaN and infinities as text: PostgreSQL's, Java's, and Debezium's `NAN`.
pub(super) fn not_finite(text: &str) -> Option<f64> {
    match text {
        "NaN" | "NAN" => Some(f64::NAN),
        "Infinity" | "POSITIVE_INFINITY" => Some(f64::INFINITY),
        "-Infinity" | "NEGATIVE_INFINITY" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// `2026-11-21`; `None` out of range.
pub(super) fn date_text(days: i64) -> Option<String> {
    let days = i32::try_from(days).ok().filter(|_| DAYS.contains(&days))?;
    text(&Value::Date(days), SqlType::Date)
}

/// `2026-11-21T10:00:00.000001`; `None` out of range.
pub(super) fn timestamp_text(micros: i64) -> Option<String> {
    if !DAYS.contains(&micros.div_euclid(DAY_MICROS)) {
        return None;
    }
    text(&Value::Timestamp(micros), SqlType::Timestamp)
}

fn text(value: &Value, sql_type: SqlType) -> Option<String> {
    value.to_json(sql_type).as_str().map(str::to_owned)
}

/// `10:00:00`, `10:00:00.000001`, `24:00:00`, and MySQL's `-838:59:59`; `None` where it is no time of
/// either.
pub(super) fn time_text(micros: i64) -> Option<String> {
    if micros.unsigned_abs() >= 839 * 3_600_000_000 {
        return None;
    }
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    Some(match rest {
        0 => format!("{sign}{hours:02}:{minutes:02}:{seconds:02}"),
        _ => format!("{sign}{hours:02}:{minutes:02}:{seconds:02}.{rest:06}"),
    })
}

/// ISO 8601 in seconds: `PT1.5S`, `-PT60S`.
pub(super) fn duration_text(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let (seconds, rest) = (
        micros.unsigned_abs() / 1_000_000,
        micros.unsigned_abs() % 1_000_000,
    );
    match rest {
        0 => format!("{sign}PT{seconds}S"),
        _ => {
            let fraction = format!("{rest:06}");
            format!("{sign}PT{seconds}.{}S", fraction.trim_end_matches('0'))
        }
    }
}
