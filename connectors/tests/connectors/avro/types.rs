//! What columns make of Avro's logical types and of Connect's annotations: one row, every type; and
//! Debezium's events in Avro, equal to the same events in JSON.

use std::sync::Arc;

use apache_avro::types::Value;
use apache_avro::{Days, Decimal, Duration, Millis, Months};
use connectors::envelope::table::Table;
use connectors::envelope::{Decoder, Envelope, Options, RawRecord};
use connectors::format::Format;
use connectors::format::avro::{Schema, Schemas};
use engine::model::{Schema as Columns, SqlType};
use serde_json::{Value as Json, json};

use super::encode;
use crate::envelope::{Rows, schema};

/// Upserts one value: the row as JSON, or the letter as `code: detail`.
fn row(columns: &Columns, avro: &Json, value: &[u8]) -> Result<Json, String> {
    let avro = Schema::parse(&avro.to_string(), &[]).unwrap();
    let options = Options {
        value_format: Format::Avro(Schemas::Inline(Arc::new(avro))),
        ..Options::default()
    };
    let mut decoder = Decoder::new(columns.clone(), Envelope::Append, options);
    let decoded = decoder.decode(&record(None, value));
    let decoded = decoded.expect("nothing to wait for");
    if let Some(letter) = decoded.letters.first() {
        return Err(format!("{}: {}", letter.code, letter.detail));
    }
    let values = decoded.changes[0].row.as_ref().unwrap().complete().unwrap();
    let row = std::iter::zip(&columns.columns, values);
    Ok(row
        .map(|(column, value)| value.to_json(column.sql_type))
        .collect())
}

fn record<'a>(key: Option<&'a [u8]>, value: &'a [u8]) -> RawRecord<'a> {
    RawRecord {
        key,
        value: Some(value),
        headers: &[],
        topic: "t",
        partition: 0,
        offset: 0,
        timestamp: None,
    }
}

/// One value in a column of a type.
fn cell(avro: Json, value: Value, sql_type: SqlType) -> Result<Json, String> {
    let avro = json!({"type": "record", "name": "R", "fields": [{"name": "c", "type": avro}]});
    let bytes = encode(&avro.to_string(), Value::Record(vec![("c".into(), value)]));
    row(&schema(&[("c", sql_type)], &[]), &avro, &bytes).map(|row| row[0].clone())
}

#[test]
fn every_logical_type_has_its_column() {
    let int = |logical: &str| json!({"type": "int", "logicalType": logical});
    let long = |logical: &str| json!({"type": "long", "logicalType": logical});
    let at = "2026-11-21T10:00:00.123456Z";
    let (micros, millis) = (1_795_255_200_123_456, 1_795_255_200_123);
    let decimal = |size: Option<u64>| match size {
        None => json!({"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}),
        Some(size) => json!({"type": "fixed", "name": "D", "size": size, "logicalType": "decimal",
                             "precision": 10, "scale": 2}),
    };
    let uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    let uuid_value = || Value::Uuid(uuid.parse().unwrap());
    let duration = Duration::new(Months::new(14), Days::new(3), Millis::new(14_706_780));
    let price = || Value::Decimal(Decimal::from((-1234i64).to_be_bytes()));
    let numeric = SqlType::Numeric(10, 2);
    let cases = [
        (
            int("date"),
            Value::Date(20_778),
            SqlType::Date,
            json!("2026-11-21"),
        ),
        (
            int("date"),
            Value::Date(-1),
            SqlType::Text,
            json!("1969-12-31"),
        ),
        (
            int("time-millis"),
            Value::TimeMillis(36_000_001),
            SqlType::Text,
            json!("10:00:00.001000"),
        ),
        (
            long("time-micros"),
            Value::TimeMicros(36_000_000_001),
            SqlType::Text,
            json!("10:00:00.000001"),
        ),
        (
            long("time-micros"),
            Value::TimeMicros(7),
            SqlType::Int8,
            json!(7),
        ),
        (
            long("timestamp-millis"),
            Value::TimestampMillis(millis),
            SqlType::TimestampTz,
            json!("2026-11-21T10:00:00.123000Z"),
        ),
        (
            long("timestamp-micros"),
            Value::TimestampMicros(micros),
            SqlType::TimestampTz,
            json!(at),
        ),
        (
            long("timestamp-nanos"),
            Value::TimestampNanos(micros * 1_000 + 999),
            SqlType::TimestampTz,
            json!(at),
        ),
        (
            long("local-timestamp-millis"),
            Value::LocalTimestampMillis(millis),
            SqlType::Timestamp,
            json!("2026-11-21T10:00:00.123000"),
        ),
        (
            long("local-timestamp-micros"),
            Value::LocalTimestampMicros(micros),
            SqlType::Timestamp,
            json!("2026-11-21T10:00:00.123456"),
        ),
        (
            long("local-timestamp-nanos"),
            Value::LocalTimestampNanos(-1),
            SqlType::Timestamp,
            json!("1969-12-31T23:59:59.999999"),
        ),
        (decimal(None), price(), numeric, json!("-12.34")),
        (decimal(Some(8)), price(), numeric, json!("-12.34")),
        (decimal(None), price(), SqlType::Text, json!("-12.34")),
        (
            json!({"type": "string", "logicalType": "uuid"}),
            uuid_value(),
            SqlType::Uuid,
            json!(uuid),
        ),
        (
            json!({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}),
            uuid_value(),
            SqlType::Uuid,
            json!(uuid),
        ),
        (
            json!({"type": "fixed", "name": "I", "size": 12, "logicalType": "duration"}),
            Value::Duration(duration),
            SqlType::Text,
            json!("P1Y2M3DT4H5M6.78S"),
        ),
        (
            json!("boolean"),
            Value::Boolean(true),
            SqlType::Boolean,
            json!(true),
        ),
        (json!("int"), Value::Int(-5), SqlType::Int4, json!(-5)),
        (
            json!("long"),
            Value::Long(1 << 60),
            SqlType::Int8,
            json!(1i64 << 60),
        ),
        (json!("long"), Value::Long(5), numeric, json!("5.00")),
        (
            json!("float"),
            Value::Float(0.1),
            SqlType::Float4,
            json!(0.1f32),
        ),
        (
            json!("float"),
            Value::Float(0.1),
            SqlType::Float8,
            json!(0.1),
        ),
        (
            json!("double"),
            Value::Double(0.1),
            SqlType::Float8,
            json!(0.1),
        ),
        (json!("double"), Value::Double(0.1), numeric, json!("0.10")),
        (
            json!("double"),
            Value::Double(f64::NEG_INFINITY),
            SqlType::Float8,
            json!("-Infinity"),
        ),
        (
            json!("bytes"),
            Value::Bytes(b"hi".to_vec()),
            SqlType::Bytea,
            json!("aGk="),
        ),
        (
            json!({"type": "fixed", "name": "F", "size": 2}),
            Value::Fixed(2, b"hi".to_vec()),
            SqlType::Bytea,
            json!("aGk="),
        ),
        (
            json!("string"),
            Value::String("x".into()),
            SqlType::Text,
            json!("x"),
        ),
        (
            json!({"type": "enum", "name": "E", "symbols": ["A", "B"]}),
            Value::Enum(1, "B".into()),
            SqlType::Text,
            json!("B"),
        ),
        (
            json!({"type": "array", "items": "double"}),
            Value::Array(vec![Value::Double(0.5), Value::Double(2.0)]),
            SqlType::Vector(2),
            json!([0.5, 2.0]),
        ),
        (
            json!({"type": "map", "values": "long"}),
            Value::Map([("a".to_owned(), Value::Long(1))].into()),
            SqlType::Jsonb,
            json!({"a": 1}),
        ),
    ];
    for (avro, value, sql_type, expected) in cases {
        let nullable = json!(["null", avro.clone()]);
        let wrapped = Value::Union(1, Box::new(value.clone()));
        assert_eq!(
            cell(nullable.clone(), wrapped, sql_type),
            Ok(expected.clone()),
            "{avro}"
        );
        assert_eq!(cell(avro, value, sql_type), Ok(expected));
        let null = Value::Union(0, Box::new(Value::Null));
        assert_eq!(cell(nullable, null, sql_type), Ok(Json::Null));
    }
}

#[test]
fn one_of_several_types_means_what_its_branch_means() {
    let union = json!(["null", "string", {"type": "long", "logicalType": "timestamp-millis"},
        {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}]);
    let branch = |at, value| Value::Union(at, Box::new(value));
    let price = Value::Decimal(Decimal::from(1234i64.to_be_bytes()));
    assert_eq!(
        cell(
            union.clone(),
            branch(3, price.clone()),
            SqlType::Numeric(10, 2)
        ),
        Ok(json!("12.34"))
    );
    assert_eq!(
        cell(
            union.clone(),
            branch(2, Value::TimestampMillis(0)),
            SqlType::TimestampTz
        ),
        Ok(json!("1970-01-01T00:00:00.000000Z"))
    );
    assert_eq!(
        cell(
            union.clone(),
            branch(1, Value::String("2026-11-21".into())),
            SqlType::TimestampTz
        ),
        Ok(json!("2026-11-21T00:00:00.000000Z"))
    );
    assert_eq!(
        cell(union.clone(), branch(0, Value::Null), SqlType::TimestampTz),
        Ok(Json::Null)
    );
    assert_eq!(
        cell(union, branch(3, price), SqlType::TimestampTz),
        Err("wrong-type: column \"c\": expected timestamptz, found \"AAAAAAAABNI=\"".to_owned())
    );
}

#[test]
fn what_does_not_fit_names_its_column() {
    let cases = [
        (
            json!("string"),
            Value::String("x".into()),
            SqlType::Int8,
            "wrong-type: column \"c\": expected bigint, found \"x\"",
        ),
        (
            json!("long"),
            Value::Long(1 << 40),
            SqlType::Int4,
            "out-of-range: column \"c\": 1099511627776 does not fit integer",
        ),
        (
            json!("long"),
            Value::Long(5),
            SqlType::TimestampTz,
            "wrong-type: column \"c\": expected timestamptz, found 5",
        ),
        (
            json!("double"),
            Value::Double(1e300),
            SqlType::Float4,
            "out-of-range: column \"c\": the number does not fit real",
        ),
        (
            json!("double"),
            Value::Double(f64::NAN),
            SqlType::Numeric(10, 2),
            "not-a-number: column \"c\": NaN or an infinity in a column of type numeric(10,2)",
        ),
        (
            json!({"type": "string", "logicalType": "uuid"}),
            Value::String("x".into()),
            SqlType::Uuid,
            "wrong-type: column \"c\": expected uuid, found \"x\"",
        ),
    ];
    for (avro, value, sql_type, expected) in cases {
        // The reference implementation judges texts of a uuid itself.
        let avro_text = avro.clone();
        let plain = if avro_text["logicalType"] == "uuid" {
            json!("string")
        } else {
            avro
        };
        assert_eq!(
            cell(plain, value, sql_type),
            Err(expected.to_owned()),
            "{avro_text}"
        );
    }
}

/// The column types of Debezium, as Connect's Avro data writes them: annotations at primitive types.
fn debezium_row() -> Json {
    let named =
        |avro: &str, name: &str| json!({"type": avro, "connect.version": 1, "connect.name": name});
    let optional = |schema: Json| json!(["null", schema]);
    json!({"type": "record", "name": "Value", "fields": [
        {"name": "id", "type": "long"},
        {"name": "title", "type": optional(json!("string")), "default": null},
        {"name": "price", "type": optional(json!({"type": "bytes", "scale": 2, "precision": 10,
            "connect.version": 1, "connect.parameters": {"scale": "2", "connect.decimal.precision": "10"},
            "connect.name": "org.apache.kafka.connect.data.Decimal", "logicalType": "decimal"})), "default": null},
        {"name": "any", "type": optional(json!({"type": "record", "name": "VariableScaleDecimal",
            "namespace": "io.debezium.data", "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
            "connect.doc": "Variable scaled decimal", "connect.version": 1,
            "connect.name": "io.debezium.data.VariableScaleDecimal"})), "default": null},
        {"name": "at", "type": optional(named("long", "io.debezium.time.MicroTimestamp")), "default": null},
        {"name": "zoned", "type": optional(named("string", "io.debezium.time.ZonedTimestamp")), "default": null},
        {"name": "day", "type": optional(named("int", "io.debezium.time.Date")), "default": null},
        {"name": "clock", "type": optional(named("long", "io.debezium.time.MicroTime")), "default": null},
        {"name": "meta", "type": optional(named("string", "io.debezium.data.Json")), "default": null},
        {"name": "bits", "type": optional(json!({"type": "bytes", "connect.version": 1,
            "connect.parameters": {"length": "3"}, "connect.name": "io.debezium.data.Bits"})), "default": null},
        {"name": "tags", "type": optional(json!({"type": "array", "items": ["null", "string"]})), "default": null},
    ], "connect.name": "db.public.docs.Value"})
}

fn debezium_columns() -> Columns {
    let columns = [
        ("id", SqlType::Int8),
        ("title", SqlType::Text),
        ("price", SqlType::Numeric(10, 2)),
        ("any", SqlType::Numeric(38, 3)),
        ("at", SqlType::Timestamp),
        ("zoned", SqlType::TimestampTz),
        ("day", SqlType::Date),
        ("clock", SqlType::Text),
        ("meta", SqlType::Jsonb),
        ("bits", SqlType::Text),
        ("tags", SqlType::Jsonb),
    ];
    schema(&columns, &["id"])
}

fn some(value: Value) -> Value {
    Value::Union(1, Box::new(value))
}

fn full_row(title: &str) -> Value {
    let text = |text: &str| Value::String(text.to_owned());
    let scaled = vec![
        ("scale".to_owned(), Value::Int(3)),
        ("value".to_owned(), Value::Bytes(vec![0x30, 0x39])),
    ];
    let values = [
        ("id", Value::Long(7)),
        ("title", some(text(title))),
        ("price", some(Value::Decimal(Decimal::from([0x04, 0xd2])))),
        ("any", some(Value::Record(scaled))),
        ("at", some(Value::Long(1_795_255_200_123_456))),
        ("zoned", some(text("2026-11-21T11:00:00+01:00"))),
        ("day", some(Value::Int(20_778))),
        ("clock", some(Value::Long(36_000_000_001))),
        ("meta", some(text("{\"a\": [1]}"))),
        ("bits", some(Value::Bytes(vec![0b101]))),
        (
            "tags",
            some(Value::Array(vec![
                some(text("x")),
                Value::Union(0, Box::new(Value::Null)),
            ])),
        ),
    ];
    Value::Record(
        values
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
    )
}

/// Create, an update that leaves the title alone, delete and tombstone, as the Avro converter writes
/// them: the envelopes and the table do not know that it is not JSON.
#[test]
fn debezium_s_events_in_avro() {
    let envelope = json!({"type": "record", "name": "Envelope", "namespace": "db.public.docs", "fields": [
        {"name": "before", "type": ["null", debezium_row()], "default": null},
        {"name": "after", "type": ["null", "Value"], "default": null},
        {"name": "source", "type": {"type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql",
            "fields": [
                {"name": "connector", "type": "string"},
                {"name": "snapshot", "type": ["null", {"type": "string", "connect.version": 1,
                    "connect.parameters": {"allowed": "true,first,last,false,incremental"}, "connect.default": "false",
                    "connect.name": "io.debezium.data.Enum"}], "default": null},
                {"name": "sequence", "type": ["null", "string"], "default": null},
                {"name": "txId", "type": ["null", "long"], "default": null},
                {"name": "lsn", "type": ["null", "long"], "default": null}]}},
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": ["null", "long"], "default": null}],
        "connect.version": 2, "connect.name": "db.public.docs.Envelope"});
    let key = json!({"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]});
    let null = || Value::Union(0, Box::new(Value::Null));
    let event = |op: &str, before: Value, after: Value, lsn: i64| {
        let text = |text: &str| Value::String(text.to_owned());
        let source = [
            ("connector", text("postgresql")),
            ("snapshot", some(text("false"))),
            ("sequence", some(text(&format!("[\"{lsn}\",\"{lsn}\"]")))),
            ("txId", some(Value::Long(750))),
            ("lsn", some(Value::Long(lsn))),
        ];
        let source = source
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec();
        let members = [
            ("before", before),
            ("after", after),
            ("source", Value::Record(source)),
            ("op", text(op)),
            ("ts_ms", some(Value::Long(1))),
        ];
        let members = members
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec();
        encode(&envelope.to_string(), Value::Record(members))
    };
    let inline = |schema: &Json| {
        let schema = Schema::parse(&schema.to_string(), &[]).unwrap();
        Format::Avro(Schemas::Inline(Arc::new(schema)))
    };
    let options = Options {
        key_format: inline(&key),
        value_format: inline(&envelope),
        ..Options::default()
    };
    let columns = debezium_columns();
    let mut decoder = Decoder::new(columns.clone(), Envelope::Debezium, options);
    let (mut table, mut rows) = (Table::new(1), Rows::default());
    let key = encode(
        &key.to_string(),
        Value::Record(vec![("id".into(), Value::Long(7))]),
    );
    let mut offset = 0;
    let mut send = |value: Option<&[u8]>| {
        offset += 1;
        let message = RawRecord {
            value,
            offset,
            ..record(Some(&key), &[])
        };
        let decoded = decoder.decode(&message).expect("nothing to wait for");
        let applied = table.apply(decoded, &rows);
        assert_eq!(applied.letters, []);
        rows.take(&applied.outputs);
        let row = |values: &Vec<engine::model::Value>| -> Json {
            let row = std::iter::zip(&columns.columns, values);
            row.map(|(column, value)| value.to_json(column.sql_type))
                .collect()
        };
        rows.0.values().map(row).collect::<Json>()
    };
    let expected = json!([[
        7, "first", "12.34", "12.345", "2026-11-21T10:00:00.123456", "2026-11-21T10:00:00.000000Z",
        "2026-11-21", "10:00:00.000001", {"a": [1]}, "101", ["x", null]
    ]]);
    assert_eq!(
        send(Some(&event("c", null(), some(full_row("first")), 10))),
        expected
    );
    let unsent = full_row("__debezium_unavailable_value");
    assert_eq!(send(Some(&event("u", null(), some(unsent), 20))), expected);
    assert_eq!(
        send(Some(&event("d", some(full_row("first")), null(), 30))),
        json!([])
    );
    assert_eq!(send(None), json!([]));
}
