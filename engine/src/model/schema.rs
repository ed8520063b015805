//! Columns and their types: PostgreSQL's names, Arrow's layout.

use arrow_schema::{DataType, Field, TimeUnit};
use serde::{Deserialize, Serialize};

/// A column type that a collection may have. Names are PostgreSQL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SqlType {
    /// `boolean`
    Boolean,
    /// `integer` (32 bits)
    Int4,
    /// `bigint` (64 bits)
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric(precision, scale)`, at most 38 digits
    Numeric(u8, i8),
    /// `text`
    Text,
    /// `bytea`
    Bytea,
    /// `timestamptz`: microseconds since the epoch, UTC
    TimestampTz,
    /// `timestamp` without a zone, microseconds
    Timestamp,
    /// `date`, days since the epoch
    Date,
    /// `jsonb`: canonical JSON text
    Jsonb,
    /// `uuid`, as canonical text
    Uuid,
    /// `vector(n)`: n 32-bit floats, little endian bytes
    Vector(u32),
}

impl SqlType {
    /// The Arrow type that carries it. `jsonb` and `uuid` travel as text, `vector` as bytes; the
    /// field's metadata `sql_type` keeps the difference.
    pub fn arrow(self) -> DataType {
        match self {
            SqlType::Boolean => DataType::Boolean,
            SqlType::Int4 => DataType::Int32,
            SqlType::Int8 => DataType::Int64,
            SqlType::Float4 => DataType::Float32,
            SqlType::Float8 => DataType::Float64,
            SqlType::Numeric(precision, scale) => DataType::Decimal128(precision, scale),
            SqlType::Text | SqlType::Jsonb | SqlType::Uuid => DataType::Utf8,
            SqlType::Bytea | SqlType::Vector(_) => DataType::Binary,
            SqlType::TimestampTz => {
                DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
            }
            SqlType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlType::Date => DataType::Date32,
        }
    }
}

impl std::fmt::Display for SqlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SqlType::Boolean => f.write_str("boolean"),
            SqlType::Int4 => f.write_str("integer"),
            SqlType::Int8 => f.write_str("bigint"),
            SqlType::Float4 => f.write_str("real"),
            SqlType::Float8 => f.write_str("double precision"),
            SqlType::Numeric(precision, scale) => write!(f, "numeric({precision},{scale})"),
            SqlType::Text => f.write_str("text"),
            SqlType::Bytea => f.write_str("bytea"),
            SqlType::TimestampTz => f.write_str("timestamptz"),
            SqlType::Timestamp => f.write_str("timestamp"),
            SqlType::Date => f.write_str("date"),
            SqlType::Jsonb => f.write_str("jsonb"),
            SqlType::Uuid => f.write_str("uuid"),
            SqlType::Vector(n) => write!(f, "vector({n})"),
        }
    }
}

/// A named, typed column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// Folded to lower case unless it was quoted.
    pub name: String,
    /// Its type.
    pub sql_type: SqlType,
    /// False for key columns and `NOT NULL`.
    pub nullable: bool,
}

impl Column {
    /// A nullable column.
    pub fn new(name: &str, sql_type: SqlType) -> Self {
        Column {
            name: name.to_owned(),
            sql_type,
            nullable: true,
        }
    }

    /// The Arrow field, with `sql_type` in its metadata.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.sql_type.arrow(), self.nullable)
            .with_metadata([("sql_type".to_owned(), self.sql_type.to_string())].into())
    }
}

/// The columns of a relation and which of them are its unique key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct Schema {
    /// In declared order.
    pub columns: Vec<Column>,
    /// Positions of the key columns, in declared order; never empty for a source.
    pub key: Vec<usize>,
}

impl Schema {
    /// The position of a column.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}
