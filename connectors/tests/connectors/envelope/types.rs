//! Every Debezium type in every mode, as `docs/debezium-types.md` has them; the eleventh behaviour.

use connectors::envelope::types::{Cell, Rules, cell};
use connectors::envelope::{BinaryMode, DecimalMode, TimePrecision};
use connectors::format::{ConnectSchema, json as format_json};
use engine::model::{Column, SqlType};
use serde_json::{Value as Json, json};

/// The value of a column as JSON, or the error's code and text.
fn read(sql_type: SqlType, schema: &Json, value: &Json, rules: &Rules) -> Result<Json, String> {
    let (schema, value) = (schema.to_string(), value.to_string());
    let schema = format_json::parse(schema.as_bytes(), "schema").unwrap();
    let schema = ConnectSchema::parse(&schema, "value").unwrap();
    let node = format_json::parse(value.as_bytes(), "value").unwrap();
    match cell(&node, schema.as_ref(), &Column::new("c", sql_type), rules) {
        Ok(Cell::Value(value)) => Ok(value.to_json(sql_type)),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(format!("{}: {}", error.code, error.detail)),
    }
}

fn named(kind: &str, name: &str) -> Json {
    json!({"type": kind, "name": name})
}

#[test]
fn logical_types() {
    use SqlType as T;
    let decimal = |scale: &str| json!({"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": scale}});
    let bits =
        json!({"type": "bytes", "name": "io.debezium.data.Bits", "parameters": {"length": "10"}});
    let time = |kind: &str, name: &str| named(kind, &format!("io.debezium.time.{name}"));
    let connect =
        |kind: &str, name: &str| named(kind, &format!("org.apache.kafka.connect.data.{name}"));
    let data = |kind: &str, name: &str| named(kind, &format!("io.debezium.data.{name}"));
    let at = "2026-11-21T10:00:00.000000";
    let micros = 1_795_255_200_000_000_i64;
    let cases = [
        // NUMERIC: precise, of variable scale, as string, as double.
        (
            T::Numeric(10, 2),
            decimal("2"),
            json!("MDk="),
            json!("123.45"),
        ),
        (
            T::Numeric(12, 4),
            decimal("2"),
            json!("MDk="),
            json!("123.4500"),
        ),
        (T::Text, decimal("2"), json!("MDk="), json!("123.45")),
        (T::Float8, decimal("2"), json!("MDk="), json!(123.45)),
        (
            T::Numeric(10, 2),
            data("struct", "VariableScaleDecimal"),
            json!({"scale": 3, "value": "MDkA"}),
            json!("3160.32"),
        ),
        (
            T::Numeric(10, 2),
            json!({"type": "string"}),
            json!("-0.50"),
            json!("-0.50"),
        ),
        (
            T::Numeric(10, 2),
            json!({"type": "double"}),
            json!(1e-2),
            json!("0.01"),
        ),
        (
            T::Float8,
            json!({"type": "double"}),
            json!("NaN"),
            json!("NaN"),
        ),
        (
            T::Float8,
            json!({"type": "string"}),
            json!("NAN"),
            json!("NaN"),
        ),
        (T::Float8, json!({"type": "float"}), json!(0.1), json!(0.1)),
        // adaptive, adaptive_time_microseconds, microseconds, nanoseconds
        (
            T::Date,
            time("int32", "Date"),
            json!(20_778),
            json!("2026-11-21"),
        ),
        (
            T::Text,
            time("int32", "Date"),
            json!(20_778),
            json!("2026-11-21"),
        ),
        (
            T::Text,
            time("int32", "Time"),
            json!(36_000_000),
            json!("10:00:00"),
        ),
        (
            T::Text,
            time("int64", "MicroTime"),
            json!(36_000_000_001_i64),
            json!("10:00:00.000001"),
        ),
        (
            T::Text,
            time("int64", "NanoTime"),
            json!(36_000_000_001_000_i64),
            json!("10:00:00.000001"),
        ),
        (
            T::Int8,
            time("int64", "MicroTime"),
            json!(36_000_000_001_i64),
            json!(36_000_000_001_i64),
        ),
        (
            T::Timestamp,
            time("int64", "Timestamp"),
            json!(micros / 1_000),
            json!(at),
        ),
        (
            T::Timestamp,
            time("int64", "MicroTimestamp"),
            json!(micros),
            json!(at),
        ),
        (
            T::Timestamp,
            time("int64", "NanoTimestamp"),
            json!(micros * 1_000),
            json!(at),
        ),
        (
            T::TimestampTz,
            time("int64", "MicroTimestamp"),
            json!(micros),
            json!(format!("{at}Z")),
        ),
        (
            T::TimestampTz,
            time("string", "ZonedTimestamp"),
            json!("2026-11-21T12:00:00+02:00"),
            json!(format!("{at}Z")),
        ),
        (
            T::Text,
            time("string", "ZonedTime"),
            json!("10:00:00Z"),
            json!("10:00:00Z"),
        ),
        // connect
        (
            T::Date,
            connect("int32", "Date"),
            json!(20_778),
            json!("2026-11-21"),
        ),
        (
            T::Text,
            connect("int32", "Time"),
            json!(36_000_000),
            json!("10:00:00"),
        ),
        (
            T::Timestamp,
            connect("int64", "Timestamp"),
            json!(micros / 1_000),
            json!(at),
        ),
        // isostring
        (
            T::Date,
            time("string", "IsoDate"),
            json!("2026-11-21Z"),
            json!("2026-11-21"),
        ),
        (
            T::Timestamp,
            time("string", "IsoTimestamp"),
            json!("2026-11-21T10:00:00Z"),
            json!(at),
        ),
        (
            T::Text,
            time("string", "IsoTime"),
            json!("10:00:00Z"),
            json!("10:00:00Z"),
        ),
        (T::Int4, time("int32", "Year"), json!(2026), json!(2026)),
        // interval
        (
            T::Int8,
            time("int64", "MicroDuration"),
            json!(1_500_000),
            json!(1_500_000),
        ),
        (
            T::Text,
            time("int64", "MicroDuration"),
            json!(-1_500_000),
            json!("-PT1.5S"),
        ),
        (
            T::Text,
            time("string", "Interval"),
            json!("P1Y2M3DT4H5M6.78S"),
            json!("P1Y2M3DT4H5M6.78S"),
        ),
        // text of any kind
        (
            T::Jsonb,
            data("string", "Json"),
            json!("{\"a\": [1, null]}"),
            json!({"a": [1, null]}),
        ),
        (
            T::Text,
            data("string", "Json"),
            json!("{\"a\": 1}"),
            json!("{\"a\": 1}"),
        ),
        (
            T::Uuid,
            data("string", "Uuid"),
            json!("550E8400-E29B-41D4-A716-446655440000"),
            json!("550e8400-e29b-41d4-a716-446655440000"),
        ),
        (T::Text, data("string", "Enum"), json!("red"), json!("red")),
        (
            T::Text,
            json!({"type": "string"}),
            json!("[2026-01-01,2027-01-01)"),
            json!("[2026-01-01,2027-01-01)"),
        ),
        (
            T::Jsonb,
            json!({"type": "map"}),
            json!({"a": "1"}),
            json!({"a": "1"}),
        ),
        // bits, bytes, arrays, vectors
        (T::Text, bits.clone(), json!("BQI="), json!("1000000101")),
        (T::Int4, bits, json!("BQI="), json!(0b10_0000_0101)),
        (
            T::Bytea,
            json!({"type": "bytes"}),
            json!("aGVsbG8="),
            json!("aGVsbG8="),
        ),
        (
            T::Jsonb,
            json!({"type": "array", "items": {"type": "int32"}}),
            json!([1, null]),
            json!([1, null]),
        ),
        (
            T::Vector(2),
            data("array", "DoubleVector"),
            json!([0.5, 1.0]),
            json!([0.5, 1.0]),
        ),
        (
            T::Vector(3),
            data("struct", "SparseVector"),
            json!({"dimensions": 3, "vector": {"1": 0.5, "3": 2.0}}),
            json!([0.5, 0.0, 2.0]),
        ),
        (
            T::Vector(2),
            json!({"type": "string"}),
            json!("[0.5,1]"),
            json!([0.5, 1.0]),
        ),
        // MySQL's booleans
        (T::Boolean, json!({"type": "int16"}), json!(1), json!(true)),
        (
            T::Int8,
            json!({"type": "int64"}),
            json!(i64::MAX),
            json!(i64::MAX),
        ),
    ];
    for (sql_type, schema, value, expected) in cases {
        let found = read(sql_type, &schema, &value, &Rules::default());
        assert_eq!(found, Ok(expected), "{schema} {value} as {sql_type}");
    }
}

#[test]
fn b11_values_that_cannot_be_known_or_kept() {
    use SqlType as T;
    let time = |kind: &str, name: &str| named(kind, &format!("io.debezium.time.{name}"));
    let infinite =
        "infinite-time: column \"c\": an infinite time, or one outside the years -9999 to 9999";
    let lost = "ambiguous-array: column \"c\": an array of several dimensions, whose values Debezium does not send, or of nulls only";
    let not_a_number =
        "not-a-number: column \"c\": NaN or an infinity in a column of type numeric(10,2)";
    let array = |items: &str| json!({"type": "array", "items": {"type": items}});
    let cases = [
        (
            T::Numeric(10, 2),
            json!({"type": "string"}),
            json!("NAN"),
            not_a_number,
        ),
        (
            T::Numeric(10, 2),
            json!({"type": "double"}),
            json!("NaN"),
            not_a_number,
        ),
        (
            T::Numeric(10, 2),
            json!({"type": "string"}),
            json!("1.005"),
            "out-of-range: column \"c\": 1.005 does not fit numeric(10,2)",
        ),
        (
            T::Numeric(4, 2),
            json!({"type": "string"}),
            json!("100"),
            "out-of-range: column \"c\": 100 does not fit numeric(4,2)",
        ),
        (
            T::Int4,
            json!({"type": "int64"}),
            json!(3_000_000_000_u64),
            "out-of-range: column \"c\": 3000000000 does not fit integer",
        ),
        (T::Date, time("int32", "Date"), json!(i32::MAX), infinite),
        (
            T::Timestamp,
            time("int64", "MicroTimestamp"),
            json!(9_223_372_036_825_200_000_i64),
            infinite,
        ),
        (
            T::Timestamp,
            time("int64", "Timestamp"),
            json!(9_223_372_036_825_200_i64),
            infinite,
        ),
        (
            T::TimestampTz,
            time("string", "ZonedTimestamp"),
            json!("infinity"),
            infinite,
        ),
        (T::Jsonb, array("int32"), json!([null, null]), lost),
        (
            T::Jsonb,
            array("string"),
            json!(["[Ljava.lang.String;@1b2c3d"]),
            lost,
        ),
        (
            T::Bytea,
            json!({"type": "string"}),
            json!("abcd"),
            "ambiguous-binary: column \"c\": bytes sent as text; base64 and hexadecimal cannot be told apart",
        ),
        (
            T::Int4,
            json!({"type": "string"}),
            json!("x"),
            "wrong-type: column \"c\": expected integer, found \"x\"",
        ),
        (
            T::Vector(3),
            json!({"type": "array"}),
            json!([1, 2]),
            "wrong-type: column \"c\": expected vector(3), found [1,2]",
        ),
    ];
    for (sql_type, schema, value, expected) in cases {
        let found = read(sql_type, &schema, &value, &Rules::default());
        assert_eq!(
            found,
            Err(expected.to_owned()),
            "{schema} {value} as {sql_type}"
        );
    }
    // numeric(5,-2): the scale −2 arrives as 2046, the integer with 2046 zeros more.
    let mut magnitude = vec![12u8];
    for _ in 0..2_048 {
        let mut carry = 0u32;
        for byte in magnitude.iter_mut().rev() {
            let value = u32::from(*byte) * 10 + carry;
            *byte = value as u8;
            carry = value >> 8;
        }
        if carry > 0 {
            magnitude.insert(0, carry as u8);
        }
    }
    magnitude.insert(0, 0);
    let value = engine::model::Value::Bytes(magnitude.into()).to_json(T::Bytea);
    let schema = json!({"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2046"}});
    assert_eq!(
        read(T::Numeric(5, 0), &schema, &value, &Rules::default()),
        Ok(json!("1200"))
    );
}

#[test]
fn without_a_schema_the_declared_type_and_the_rules_decide() {
    use SqlType as T;
    let debezium = Rules {
        is_json_text: true,
        ..Rules::default()
    };
    let millis = Rules {
        time: TimePrecision::Millis,
        ..Rules::default()
    };
    let text = Rules {
        decimal: DecimalMode::String,
        ..Rules::default()
    };
    let hex = Rules {
        binary: BinaryMode::Hex,
        ..Rules::default()
    };
    let at = json!("2026-11-21T10:00:00.000000");
    let cases = [
        (T::Numeric(10, 2), json!("MDk="), &debezium, json!("123.45")),
        (T::Numeric(10, 2), json!("1234"), &text, json!("1234.00")),
        (
            T::Numeric(38, 2),
            json!({"scale": 2, "value": "MDk="}),
            &debezium,
            json!("123.45"),
        ),
        (T::Numeric(10, 2), json!(12.3), &debezium, json!("12.30")),
        (
            T::Timestamp,
            json!(1_795_255_200_000_000_i64),
            &debezium,
            at.clone(),
        ),
        (
            T::Timestamp,
            json!(1_795_255_200_000_i64),
            &millis,
            at.clone(),
        ),
        (T::Timestamp, json!("2026-11-21T10:00:00"), &debezium, at),
        (T::Date, json!(20_778), &debezium, json!("2026-11-21")),
        (T::Bytea, json!("aGVsbG8="), &debezium, json!("aGVsbG8=")),
        (T::Bytea, json!("68656c6c6f"), &hex, json!("aGVsbG8=")),
        (T::Jsonb, json!("{\"a\":1}"), &debezium, json!({"a": 1})),
        (T::Jsonb, json!("plain"), &text, json!("plain")),
        (T::Text, json!(36_000_000), &debezium, json!("36000000")),
        (T::Text, json!(["a"]), &debezium, json!("[\"a\"]")),
        (T::Float8, json!("Infinity"), &debezium, json!("Infinity")),
        (T::Text, json!("NaN"), &debezium, json!("NaN")),
    ];
    for (sql_type, value, rules, expected) in cases {
        let found = read(sql_type, &Json::Null, &value, rules);
        assert_eq!(found, Ok(expected), "{value} as {sql_type}");
    }
}
