//! Types: from a declaration's words and from Arrow to [`SqlType`], and from a cast's to Arrow.

use arrow_schema::DataType;
use datafusion_sql::sqlparser::ast::{DataType as AstType, ExactNumberInfo, TimezoneInfo};
use datafusion_sql::sqlparser::tokenizer::Token;
use engine::limits::DIMENSIONS_MAX;
use engine::model::SqlType;

use super::cursor::{Cursor, nearest};
use crate::problem::Problem;

/// Digits of a NUMERIC, and those behind its point when none are given.
const NUMERIC_DEFAULT: (u8, i8) = (38, 10);
const NUMERIC_DIGITS_MAX: u8 = 38;

const NAMES: [(&str, SqlType); 17] = [
    ("boolean", SqlType::Boolean),
    ("bool", SqlType::Boolean),
    ("integer", SqlType::Int4),
    ("int", SqlType::Int4),
    ("int4", SqlType::Int4),
    ("bigint", SqlType::Int8),
    ("int8", SqlType::Int8),
    ("real", SqlType::Float4),
    ("float4", SqlType::Float4),
    ("float8", SqlType::Float8),
    ("text", SqlType::Text),
    ("bytea", SqlType::Bytea),
    ("timestamptz", SqlType::TimestampTz),
    ("timestamp", SqlType::Timestamp),
    ("date", SqlType::Date),
    ("jsonb", SqlType::Jsonb),
    ("uuid", SqlType::Uuid),
];

const EXPECTED: &str = "a type: BOOLEAN, INTEGER, BIGINT, REAL, DOUBLE PRECISION, NUMERIC(p, s), \
     TEXT, BYTEA, TIMESTAMPTZ, TIMESTAMP, DATE, JSONB, UUID or VECTOR(n)";

/// PostgreSQL types that we do not have, and what to take instead.
const INSTEAD: [(&str, &str); 10] = [
    ("smallint", "INTEGER"),
    ("int2", "INTEGER"),
    ("serial", "BIGINT"),
    ("bigserial", "BIGINT"),
    ("json", "JSONB"),
    ("char", "TEXT"),
    ("character", "TEXT"),
    ("string", "TEXT"),
    ("datetime", "TIMESTAMPTZ"),
    ("money", "NUMERIC(12, 2)"),
];

/// Reads a column's type.
pub(super) fn column_type(cursor: &mut Cursor<'_>) -> Result<SqlType, Problem> {
    let at = cursor.position();
    let Some(Token::Word(word)) = cursor.peek().map(|token| &token.token) else {
        return Err(cursor.unexpected(&[EXPECTED]));
    };
    let name = word.value.to_lowercase();
    cursor.next();
    let sql_type = match &*name {
        "double" => {
            cursor.expect("PRECISION")?;
            SqlType::Float8
        }
        "float" => SqlType::Float8,
        "varchar" => SqlType::Text,
        "numeric" | "decimal" => return numeric(cursor),
        "vector" => return vector(cursor),
        _ => match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, sql_type)) => *sql_type,
            None => {
                let problem = Problem::invalid(format!("there is no type {}", name.to_uppercase()))
                    .at(at.line, at.column)
                    .expected(EXPECTED);
                let instead = INSTEAD
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, to)| *to);
                let near = nearest(&name, NAMES.iter().map(|(known, _)| *known));
                return Err(match (instead, near) {
                    (Some(instead), _) => problem.hint(format!("use {instead}")),
                    (None, Some(near)) => {
                        problem.hint(format!("did you mean {}?", near.to_uppercase()))
                    }
                    (None, None) => problem,
                });
            }
        },
    };
    let sql_type = match sql_type {
        SqlType::Timestamp if cursor.eat_all(&["WITH", "TIME", "ZONE"]) => SqlType::TimestampTz,
        other => {
            cursor.eat_all(&["WITHOUT", "TIME", "ZONE"]);
            other
        }
    };
    no_modifier(cursor, &name)?;
    Ok(sql_type)
}

fn no_modifier(cursor: &Cursor<'_>, name: &str) -> Result<(), Problem> {
    let at = cursor.position();
    let is_array = cursor.is_token(&Token::LBracket);
    if !is_array && !cursor.is_token(&Token::LParen) {
        return Ok(());
    }
    let name = name.to_uppercase();
    let problem = if is_array {
        Problem::not_supported(format!("arrays of {name} are not supported")).hint("use JSONB")
    } else {
        Problem::not_supported(format!("{name} takes no length or precision here")).hint(format!(
            "write {name} alone; times always have microseconds"
        ))
    };
    Err(problem.at(at.line, at.column))
}

/// `(p)`, `(p, s)` or nothing.
fn numeric(cursor: &mut Cursor<'_>) -> Result<SqlType, Problem> {
    if !cursor.is_token(&Token::LParen) {
        return Ok(SqlType::Numeric(NUMERIC_DEFAULT.0, NUMERIC_DEFAULT.1));
    }
    let at = cursor.position();
    let mut inner = cursor.group("(precision, scale)")?;
    let precision = whole(&mut inner, "a precision from 1 to 38")?;
    let scale = if inner.eat_token(&Token::Comma) {
        whole(&mut inner, "a scale")?
    } else {
        0
    };
    inner.finish(&["\")\""])?;
    make_numeric(precision, scale).ok_or_else(|| {
        Problem::invalid(format!("NUMERIC({precision}, {scale}) cannot be kept"))
            .at(at.line, at.column)
            .expected("a precision from 1 to 38 and a scale from 0 to the precision")
    })
}

fn make_numeric(precision: u64, scale: u64) -> Option<SqlType> {
    let precision = u8::try_from(precision)
        .ok()
        .filter(|p| (1..=NUMERIC_DIGITS_MAX).contains(p))?;
    let scale = i8::try_from(scale)
        .ok()
        .filter(|s| u8::try_from(*s).is_ok_and(|s| s <= precision))?;
    Some(SqlType::Numeric(precision, scale))
}

fn vector(cursor: &mut Cursor<'_>) -> Result<SqlType, Problem> {
    let mut inner = cursor.group("(dimensions)")?;
    let at = inner.position();
    let dimensions = whole(&mut inner, "a number of dimensions")?;
    inner.finish(&["\")\""])?;
    match u32::try_from(dimensions) {
        Ok(dimensions) if (1..=DIMENSIONS_MAX).contains(&dimensions) => {
            Ok(SqlType::Vector(dimensions))
        }
        _ => Err(
            Problem::invalid(format!("a vector cannot have {dimensions} dimensions"))
                .at(at.line, at.column)
                .expected(format!("from 1 to {DIMENSIONS_MAX}")),
        ),
    }
}

/// A whole number without a sign.
pub(super) fn whole(cursor: &mut Cursor<'_>, what: &str) -> Result<u64, Problem> {
    match cursor.peek().map(|token| &token.token) {
        Some(Token::Number(text, _)) => match text.parse() {
            Ok(number) => {
                cursor.next();
                Ok(number)
            }
            Err(_) => Err(cursor.unexpected(&[what])),
        },
        _ => Err(cursor.unexpected(&[what])),
    }
}

/// The type of an expression's value; `None` for those that have no place in a row.
pub(super) fn from_arrow(data_type: &DataType) -> Option<SqlType> {
    Some(match data_type {
        DataType::Boolean => SqlType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            SqlType::Int4
        }
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => SqlType::Int8,
        DataType::Float16 | DataType::Float32 => SqlType::Float4,
        DataType::Float64 => SqlType::Float8,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            SqlType::Numeric(*precision, *scale)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => SqlType::Text,
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => SqlType::Bytea,
        DataType::Timestamp(_, Some(_)) => SqlType::TimestampTz,
        DataType::Timestamp(_, None) => SqlType::Timestamp,
        DataType::Date32 | DataType::Date64 => SqlType::Date,
        _ => return None,
    })
}

/// The Arrow type of `CAST(… AS t)` and `t '…'`.
pub(super) fn plan_cast_type(sql_type: &AstType) -> Result<DataType, String> {
    let known = match sql_type {
        AstType::Boolean | AstType::Bool => SqlType::Boolean,
        AstType::Int(None) | AstType::Integer(None) | AstType::Int4(None) => SqlType::Int4,
        AstType::BigInt(None) | AstType::Int8(None) => SqlType::Int8,
        AstType::Real | AstType::Float4 => SqlType::Float4,
        AstType::Float8 | AstType::DoublePrecision | AstType::Float(_) => SqlType::Float8,
        AstType::Numeric(info) | AstType::Decimal(info) | AstType::Dec(info) => {
            let (precision, scale) = match info {
                ExactNumberInfo::None => (u64::from(NUMERIC_DEFAULT.0), 10),
                ExactNumberInfo::Precision(precision) => (*precision, 0),
                ExactNumberInfo::PrecisionAndScale(precision, scale) => {
                    (*precision, u64::try_from(*scale).unwrap_or(u64::MAX))
                }
            };
            make_numeric(precision, scale)
                .ok_or("a NUMERIC has a precision from 1 to 38 and a scale from 0 to it")?
        }
        AstType::Text | AstType::Varchar(None) => SqlType::Text,
        AstType::Bytea => SqlType::Bytea,
        AstType::Date => SqlType::Date,
        AstType::Timestamp(precision, zone) if precision.is_none_or(|p| p == 6) => match zone {
            TimezoneInfo::Tz | TimezoneInfo::WithTimeZone => SqlType::TimestampTz,
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => SqlType::Timestamp,
        },
        AstType::Interval { .. } => {
            return Ok(DataType::Interval(arrow_schema::IntervalUnit::MonthDayNano));
        }
        other => {
            return Err(format!(
                "a cast to {other} is not supported by this version"
            ));
        }
    };
    Ok(known.arrow())
}
