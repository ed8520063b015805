//! Packed rows: ordered, hashable bytes in arrow-row's format, decoded by batch (PROTOCOLS §6.1).
//!
//! The dataflow moves, compares and retracts [`Row`]s without knowing their columns; only a
//! [`RowCodec`], made from a [`Schema`], can look inside. Values are packed by [`super::pack`], arrays by `arrow-row`:
//! the bytes are the same. Cost: two copies to pack, one to unpack.

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder,
    Float64Builder, Int32Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef};
use arrow_row::{RowConverter, SortField};
use arrow_schema::ArrowError;
use serde::{Deserialize, Serialize};

use super::{Schema, SqlType, Value, pack};

/// One packed row. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Row(Arc<[u8]>);

impl Row {
    /// Wraps packed bytes.
    pub fn from_bytes(bytes: &[u8]) -> Row {
        Row(Arc::from(bytes))
    }

    /// The packed bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Row;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("packed row bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Row, E> {
                Ok(Row::from_bytes(bytes))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Row, E> {
                Ok(Row(Arc::from(bytes)))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// Packs and unpacks the rows of one schema.
///
/// `Send + Sync`; make one per relation and share it.
#[derive(Debug)]
pub struct RowCodec {
    schema: Schema,
    converter: RowConverter,
}

impl RowCodec {
    /// A codec for a schema.
    pub fn new(schema: Schema) -> Result<Self, ArrowError> {
        let fields = schema
            .columns
            .iter()
            .map(|column| SortField::new(column.sql_type.arrow()))
            .collect();
        Ok(RowCodec {
            converter: RowConverter::new(fields)?,
            schema,
        })
    }

    /// The schema.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Packs one row of values, one per column, each of the column's type or `Null`.
    ///
    /// # Panics
    /// When a value's variant does not fit the column: callers convert by [`Value::from_json`].
    pub fn pack(&self, values: &[Value]) -> Row {
        self.pack_in(&mut Vec::new(), values)
    }

    /// The same with a buffer that is used again, for many rows: a pass over the values and one copy.
    pub fn pack_in(&self, buffer: &mut Vec<u8>, values: &[Value]) -> Row {
        assert!(
            values.len() >= self.schema.columns.len(),
            "a value a column"
        );
        buffer.clear();
        for (column, value) in self.schema.columns.iter().zip(values) {
            pack::append(buffer, column.sql_type, value);
        }
        Row::from_bytes(buffer)
    }

    /// Packs columns of equal length: `arrays[column][row]` to one [`Row`] a row.
    pub fn pack_arrays(&self, arrays: &[ArrayRef]) -> Vec<Row> {
        let rows = self
            .converter
            .convert_columns(arrays)
            .expect("arrays have the codec's types");
        rows.iter()
            .map(|row| Row::from_bytes(row.as_ref()))
            .collect()
    }

    /// Unpacks a batch to columns: `[columns]` arrays of `rows.len()` values.
    pub fn unpack_arrays<'a>(
        &self,
        rows: impl IntoIterator<Item = &'a Row>,
    ) -> Result<Vec<ArrayRef>, ArrowError> {
        let parser = self.converter.parser();
        self.converter
            .convert_rows(rows.into_iter().map(|row| parser.parse(row.as_bytes())))
    }

    /// Unpacks one row to values.
    pub fn unpack(&self, row: &Row) -> Vec<Value> {
        if self.schema.columns.is_empty() {
            return Vec::new();
        }
        let arrays = self.unpack_arrays([row]).expect("a row of this codec");
        self.schema
            .columns
            .iter()
            .zip(&arrays)
            .map(|(column, array)| array_value(column.sql_type, array, 0))
            .collect()
    }
}

/// Builds an Arrow array of one column from values. Panics on a value of another type.
pub fn column_array<'a>(
    sql_type: SqlType,
    values: impl ExactSizeIterator<Item = &'a Value> + Clone,
) -> ArrayRef {
    // Builders without a size make room for a thousand values.
    let count = values.len();
    let bytes = || values.clone().map(value_bytes).sum::<usize>();
    macro_rules! build {
        ($builder:expr, $pattern:pat => $value:expr) => {{
            let mut builder = $builder;
            for value in values.clone() {
                match value {
                    Value::Null => builder.append_null(),
                    $pattern => builder.append_value($value),
                    other => panic!("{other:?} in a column of type {sql_type}"),
                }
            }
            Arc::new(builder.finish())
        }};
    }
    match sql_type {
        SqlType::Boolean => build!(BooleanBuilder::with_capacity(count), Value::Bool(v) => *v),
        SqlType::Int4 => build!(Int32Builder::with_capacity(count), Value::Int(v) => *v as i32),
        SqlType::Int8 => build!(Int64Builder::with_capacity(count), Value::Int(v) => *v),
        SqlType::Float4 => {
            build!(Float32Builder::with_capacity(count), Value::Float(v) => *v as f32)
        }
        SqlType::Float8 => build!(Float64Builder::with_capacity(count), Value::Float(v) => *v),
        SqlType::Numeric(precision, scale) => {
            let builder = Decimal128Builder::with_capacity(count)
                .with_precision_and_scale(precision, scale)
                .expect("precision checked when the column was declared");
            build!(builder, Value::Numeric(v, _) => *v)
        }
        SqlType::Text | SqlType::Jsonb | SqlType::Uuid => {
            build!(StringBuilder::with_capacity(count, bytes()), Value::Text(v) => &**v)
        }
        SqlType::Bytea => {
            build!(BinaryBuilder::with_capacity(count, bytes()), Value::Bytes(v) => &**v)
        }
        SqlType::Vector(_) => {
            build!(BinaryBuilder::with_capacity(count, bytes()), Value::Vector(v) =>
            v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
        }
        SqlType::TimestampTz => build!(
            TimestampMicrosecondBuilder::with_capacity(count).with_timezone("+00:00"), Value::Timestamp(v) => *v),
        SqlType::Timestamp => {
            build!(TimestampMicrosecondBuilder::with_capacity(count), Value::Timestamp(v) => *v)
        }
        SqlType::Date => build!(Date32Builder::with_capacity(count), Value::Date(v) => *v),
    }
}

/// Bytes that a value takes beside its place.
fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Vector(floats) => floats.len() * 4,
        _ => 0,
    }
}

/// Reads one value of an Arrow array.
pub fn array_value(sql_type: SqlType, array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match sql_type {
        SqlType::Boolean => Value::Bool(array.as_boolean().value(row)),
        SqlType::Int4 => Value::Int(i64::from(array.as_primitive::<Int32Type>().value(row))),
        SqlType::Int8 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        SqlType::Float4 => Value::Float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        SqlType::Float8 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        SqlType::Numeric(_, scale) => {
            Value::Numeric(array.as_primitive::<Decimal128Type>().value(row), scale)
        }
        SqlType::Text | SqlType::Jsonb | SqlType::Uuid => {
            Value::Text(Arc::from(array.as_string::<i32>().value(row)))
        }
        SqlType::Bytea => Value::Bytes(Arc::from(array.as_binary::<i32>().value(row))),
        SqlType::Vector(_) => {
            let bytes = array.as_binary::<i32>().value(row);
            let floats = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            Value::Vector(floats.collect())
        }
        SqlType::TimestampTz | SqlType::Timestamp => {
            Value::Timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        SqlType::Date => Value::Date(array.as_primitive::<Date32Type>().value(row)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    #[test]
    fn rows_round_trip_and_order_like_their_columns() {
        let schema = Schema {
            columns: vec![
                Column::new("id", SqlType::Int8),
                Column::new("body", SqlType::Text),
                Column::new("v", SqlType::Vector(2)),
                Column::new("at", SqlType::TimestampTz),
            ],
            key: vec![0],
        };
        let codec = RowCodec::new(schema).unwrap();
        let values = |id: i64, body: &str| {
            vec![
                Value::Int(id),
                Value::Text(body.into()),
                Value::Vector(vec![0.5, 1.0].into()),
                Value::Null,
            ]
        };
        let (a, b) = (codec.pack(&values(-1, "z")), codec.pack(&values(2, "a")));
        assert!(a < b);
        assert_eq!(codec.unpack(&a), values(-1, "z"));
        assert_eq!(codec.unpack(&b), values(2, "a"));
    }

    #[test]
    fn a_row_may_have_no_columns() {
        let codec = RowCodec::new(Schema::default()).unwrap();
        assert_eq!(codec.unpack(&codec.pack(&[])), []);
    }
}
