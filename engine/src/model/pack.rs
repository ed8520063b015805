//! A packed row's bytes, written straight from its values.
//!
//! The idea: `arrow-row` packs columns, so a row of values would first become an array a column and be
//! copied out of a batch after that. Its format is documented (see `arrow_row::RowConverter`) and simple,
//! so one pass over the values writes the same bytes:
//!
//! ```text
//! fixed width    1, the value big endian, so that bytes compare as values do      NULL: zeros
//! texts, bytes   2, four blocks of 8, then blocks of 32, padded with zeros;       NULL: 0
//!                behind a block 255, behind the last one how many bytes count     empty: 1
//! ```
//!
//! Invariant: the bytes are those of `arrow-row`, which reads them (the test compares them on random
//! values). Limits: ascending order, NULL first: the codec's only one.

use super::{SqlType, Value};

/// Blocks of a text's first bytes, so that short texts are not padded far.
const SHORT: usize = 8;
/// How many bytes lie in such blocks.
const SHORT_BYTES: usize = 32;
/// Blocks of the bytes behind them.
const LONG: usize = 32;
/// What follows a block that is not the last one.
const GOES_ON: u8 = 0xff;

/// Appends a value of a column.
///
/// # Panics
/// When the value is neither of the column's type nor NULL.
pub(super) fn append(out: &mut Vec<u8>, sql_type: SqlType, value: &Value) {
    match (sql_type, value) {
        (_, Value::Null) => match fixed_width(sql_type) {
            Some(width) => out.resize(out.len() + 1 + width, 0),
            None => out.push(0),
        },
        (SqlType::Boolean, Value::Bool(v)) => out.extend_from_slice(&[1, u8::from(*v)]),
        (SqlType::Int4, Value::Int(v)) => fixed(out, signed((*v as i32).to_be_bytes())),
        (SqlType::Int8, Value::Int(v)) => fixed(out, signed(v.to_be_bytes())),
        (SqlType::Float4, Value::Float(v)) => {
            let bits = (*v as f32).to_bits() as i32;
            // Negative numbers count the other way.
            let ordered = bits ^ ((bits >> 31) as u32 >> 1) as i32;
            fixed(out, signed(ordered.to_be_bytes()));
        }
        (SqlType::Float8, Value::Float(v)) => {
            let bits = v.to_bits() as i64;
            let ordered = bits ^ ((bits >> 63) as u64 >> 1) as i64;
            fixed(out, signed(ordered.to_be_bytes()));
        }
        (SqlType::Numeric(..), Value::Numeric(v, _)) => fixed(out, signed(v.to_be_bytes())),
        (SqlType::TimestampTz | SqlType::Timestamp, Value::Timestamp(v)) => {
            fixed(out, signed(v.to_be_bytes()));
        }
        (SqlType::Date, Value::Date(v)) => fixed(out, signed(v.to_be_bytes())),
        (SqlType::Text | SqlType::Jsonb | SqlType::Uuid, Value::Text(v)) => {
            variable(out, v.as_bytes());
        }
        (SqlType::Bytea, Value::Bytes(v)) => variable(out, v),
        (SqlType::Vector(_), Value::Vector(v)) => {
            let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
            variable(out, &bytes);
        }
        (_, other) => panic!("{other:?} in a column of type {sql_type}"),
    }
}

/// Bytes of a value of a type that has a fixed width.
fn fixed_width(sql_type: SqlType) -> Option<usize> {
    match sql_type {
        SqlType::Boolean => Some(1),
        SqlType::Int4 | SqlType::Float4 | SqlType::Date => Some(4),
        SqlType::Int8 | SqlType::Float8 | SqlType::TimestampTz | SqlType::Timestamp => Some(8),
        SqlType::Numeric(..) => Some(16),
        SqlType::Text | SqlType::Jsonb | SqlType::Uuid | SqlType::Bytea | SqlType::Vector(_) => {
            None
        }
    }
}

fn fixed<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) {
    out.push(1);
    out.extend_from_slice(&bytes);
}

/// Two's complement as bytes that compare like the numbers.
fn signed<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    bytes[0] ^= 0x80;
    bytes
}

fn variable(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        out.push(1);
        return;
    }
    out.push(2);
    let (first, rest) = bytes.split_at(bytes.len().min(SHORT_BYTES));
    blocks::<SHORT>(out, first);
    if !rest.is_empty() {
        *out.last_mut().expect("a block was written") = GOES_ON;
        blocks::<LONG>(out, rest);
    }
}

/// Writes bytes in blocks, each with the byte behind it; some bytes.
fn blocks<const SIZE: usize>(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(SIZE) * (SIZE + 1), 0);
    let mut left = bytes;
    for block in out[start..].chunks_exact_mut(SIZE + 1) {
        match left.split_first_chunk::<SIZE>() {
            Some((whole, rest)) => {
                block[..SIZE].copy_from_slice(whole);
                block[SIZE] = GOES_ON;
                left = rest;
            }
            None => {
                block[..left.len()].copy_from_slice(left);
                block[SIZE] = left.len() as u8;
                return;
            }
        }
    }
    *out.last_mut().expect("a block was written") = SIZE as u8;
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::{Column, RowCodec, Schema, column_array};
    use super::*;

    const TYPES: [SqlType; 14] = [
        SqlType::Boolean,
        SqlType::Int4,
        SqlType::Int8,
        SqlType::Float4,
        SqlType::Float8,
        SqlType::Numeric(30, 4),
        SqlType::Text,
        SqlType::Jsonb,
        SqlType::Uuid,
        SqlType::Bytea,
        SqlType::Vector(3),
        SqlType::TimestampTz,
        SqlType::Timestamp,
        SqlType::Date,
    ];

    /// Lengths at and around every block's end come often.
    fn length(random: &mut ChaCha8Rng) -> usize {
        let blocks = random.random_range(0..6_usize) * [1, 8, 32][random.random_range(0..3_usize)];
        (blocks + random.random_range(0..3_usize)).saturating_sub(1)
    }

    fn value(random: &mut ChaCha8Rng, sql_type: SqlType) -> Value {
        if random.random_bool(0.2) {
            return Value::Null;
        }
        let wide = random.next_u64() as i64 >> random.random_range(0..64_u32);
        let float = match random.random_range(0..6) {
            0 => f64::NAN,
            1 => f64::NEG_INFINITY,
            2 => -0.0,
            _ => f64::from(wide as f32) / 3.0,
        };
        match sql_type {
            SqlType::Boolean => Value::Bool(random.random()),
            SqlType::Int4 => Value::Int(i64::from(wide as i32)),
            SqlType::Int8 => Value::Int(wide),
            SqlType::Float4 | SqlType::Float8 => Value::Float(float),
            SqlType::Numeric(_, scale) => Value::Numeric(i128::from(wide) * 1_000_003, scale),
            SqlType::Text | SqlType::Jsonb | SqlType::Uuid => {
                let letters = (0..length(random)).map(|_| random.random_range('\0'..'ÿ'));
                Value::Text(letters.collect::<String>().into())
            }
            SqlType::Bytea => Value::Bytes((0..length(random)).map(|_| random.random()).collect()),
            SqlType::Vector(_) => Value::Vector([float as f32, 0.5, -1.0].into()),
            SqlType::TimestampTz | SqlType::Timestamp => Value::Timestamp(wide),
            SqlType::Date => Value::Date(wide as i32),
        }
    }

    #[test]
    fn the_bytes_are_those_of_arrow_row() {
        for seed in 0..2_000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let count = random.random_range(1..6);
            let types: Vec<SqlType> = (0..count)
                .map(|_| TYPES[random.random_range(0..TYPES.len())])
                .collect();
            let column = |sql_type: &SqlType| Column::new("c", *sql_type);
            let schema = Schema {
                columns: types.iter().map(column).collect(),
                key: Vec::new(),
            };
            let codec = RowCodec::new(schema).unwrap();
            let rows: Vec<Vec<Value>> = (0..4)
                .map(|_| types.iter().map(|t| value(&mut random, *t)).collect())
                .collect();
            let columns = types.iter().enumerate();
            let arrays = columns.map(|(at, t)| column_array(*t, rows.iter().map(|row| &row[at])));
            let arrays: Vec<_> = arrays.collect();
            let packed: Vec<_> = rows.iter().map(|row| codec.pack(row)).collect();
            assert_eq!(packed, codec.pack_arrays(&arrays), "seed {seed}: {rows:?}");
        }
    }

    #[test]
    #[should_panic(expected = "Int(1) in a column of type text")]
    fn a_value_of_another_type_is_refused() {
        append(&mut Vec::new(), SqlType::Text, &Value::Int(1));
    }
}
