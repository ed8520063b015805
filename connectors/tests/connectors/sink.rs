//! What sinks write, byte by byte: every envelope in both formats. Avro's own library reads ours back.

use std::sync::Arc;

use apache_avro::types::Value as Datum;
use connectors::sink::Envelope;
use connectors::sink::avro::{Avro, schemas};
use connectors::sink::encode::{Encoder, Message};
use engine::contract::RowChange;
use engine::model::{Column, Key, Row, RowCodec, Schema, SqlType, Value};
use serde_json::{Value as Json, json};

const AT: u64 = 1_763_719_200_000_123;

fn schema() -> Schema {
    let column = |name: &str, sql_type, nullable| Column {
        nullable,
        ..Column::new(name, sql_type)
    };
    Schema {
        columns: vec![
            column("id", SqlType::Int8, false),
            column("the \"name\"", SqlType::Text, true),
            column("lang", SqlType::Text, false),
        ],
        key: vec![0, 2],
    }
}

fn codec() -> Arc<RowCodec> {
    Arc::new(RowCodec::new(schema()).expect("packable"))
}

fn row(name: Option<&str>) -> Option<Row> {
    let name = name.map_or(Value::Null, |name| Value::Text(name.into()));
    let row = [Value::Int(-7), name, Value::Text("de".into())];
    Some(codec().pack(&row))
}

fn change(before: Option<Row>, after: Option<Row>) -> RowChange {
    RowChange {
        key: Key::from_json_text(r#"{"id":-7,"lang":"de"}"#),
        at: AT,
        before,
        after,
    }
}

fn json_of(envelope: Envelope) -> Encoder {
    Encoder::json(codec(), envelope, "audit", "docs")
}

fn texts(messages: &[Message]) -> Vec<(String, Option<String>)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let one = |message: &Message| (text(&message.key), message.value.as_deref().map(text));
    messages.iter().map(one).collect()
}

const KEY: &str = r#"{"id":-7,"lang":"de"}"#;

#[test]
fn upserts_are_rows_and_nulls() {
    let encoder = json_of(Envelope::Upsert);
    let one = |change: &RowChange| texts(&encoder.encode(change, false));
    let told = r#"{"id":-7,"the \"name\"":"é","lang":"de"}"#;
    assert_eq!(
        one(&change(None, row(Some("é")))),
        [(KEY.to_owned(), Some(told.to_owned()))]
    );
    let null = r#"{"id":-7,"the \"name\"":null,"lang":"de"}"#;
    assert_eq!(
        one(&change(row(Some("é")), row(None))),
        [(KEY.to_owned(), Some(null.to_owned()))]
    );
    assert_eq!(one(&change(row(None), None)), [(KEY.to_owned(), None)]);
}

#[test]
fn events_have_the_row_before_and_after() {
    let encoder = json_of(Envelope::Debezium);
    let one = |change: &RowChange, is_snapshot| texts(&encoder.encode(change, is_snapshot));
    let version = env!("CARGO_PKG_VERSION");
    let event = |before: &str, after: &str, snapshot: bool, op: &str| {
        format!(
            r#"{{"before":{before},"after":{after},"source":{{"version":"{version}","connector":"headwater","name":"audit","ts_ms":1763719200000,"snapshot":"{snapshot}","db":"headwater","table":"docs","ts_us":1763719200000123}},"op":"{op}","ts_ms":1763719200000}}"#
        )
    };
    let (a, b) = (
        r#"{"id":-7,"the \"name\"":"a","lang":"de"}"#,
        r#"{"id":-7,"the \"name\"":"b","lang":"de"}"#,
    );
    let key = || KEY.to_owned();
    assert_eq!(
        one(&change(None, row(Some("a"))), true),
        [(key(), Some(event("null", a, true, "r")))]
    );
    assert_eq!(
        one(&change(None, row(Some("a"))), false),
        [(key(), Some(event("null", a, false, "c")))]
    );
    assert_eq!(
        one(&change(row(Some("a")), row(Some("b"))), false),
        [(key(), Some(event(a, b, false, "u")))]
    );
    assert_eq!(
        one(&change(row(Some("b")), None), false),
        [(key(), Some(event(b, "null", false, "d"))), (key(), None)]
    );
}

#[test]
fn avro_is_framed_and_has_exact_bytes() {
    let ids = Avro { key: 258, value: 3 };
    let encoder = json_of(Envelope::Upsert).with_avro(ids);
    let messages = encoder.encode(&change(None, row(Some("é"))), false);
    // -7 is 13 in zig-zag; a text is its length doubled, then its bytes; 2 chooses the text.
    let key = [0, 0, 0, 1, 2, 13, 4, b'd', b'e'];
    let value = [0, 0, 0, 0, 3, 13, 2, 4, 0xc3, 0xa9, 4, b'd', b'e'];
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].key, key);
    assert_eq!(messages[0].value.as_deref(), Some(&value[..]));
    let null = encoder.encode(&change(None, row(None)), false);
    let value = [0, 0, 0, 0, 3, 13, 0, 4, b'd', b'e'];
    assert_eq!(null[0].value.as_deref(), Some(&value[..]));
}

#[test]
fn avro_schemas_are_made_from_the_columns() {
    let texts = schemas(&schema(), Envelope::Upsert, "app.7-out").expect("schemas");
    let parsed = |text: &str| serde_json::from_str::<Json>(text).expect("JSON");
    assert_eq!(
        parsed(&texts.key),
        json!({"type": "record", "name": "Key", "namespace": "app._7_out", "fields": [
            {"name": "id", "type": "long"}, {"name": "lang", "type": "string"}]})
    );
    assert_eq!(
        parsed(&texts.value)["fields"][1],
        json!({"name": "the__name_", "type": ["null", "string"], "default": null})
    );
    let mut twins = schema();
    twins.columns[1].name = "a b".to_owned();
    twins.columns[2].name = "a-b".to_owned();
    let error = schemas(&twins, Envelope::Upsert, "t").map_err(|error| error.to_string());
    assert_eq!(
        error,
        Err(
            "FORMAT AVRO: the columns \"a b\" and \"a-b\" would both be the field a_b; rename one in a \
             view"
            .to_owned()
        )
    );
}

/// One column of every type, with a value and without.
#[test]
fn the_oracle_reads_every_type_of_an_event() {
    let types = [
        (SqlType::Boolean, Value::Bool(true), Datum::Boolean(true)),
        (SqlType::Int4, Value::Int(-3), Datum::Int(-3)),
        (SqlType::Int8, Value::Int(i64::MIN), Datum::Long(i64::MIN)),
        (SqlType::Float4, Value::Float(0.5), Datum::Float(0.5)),
        (SqlType::Float8, Value::Float(-0.1), Datum::Double(-0.1)),
        (
            SqlType::Numeric(10, 2),
            Value::Numeric(-12_345, 2),
            Datum::Decimal(apache_avro::Decimal::from((-12_345_i16).to_be_bytes())),
        ),
        (
            SqlType::Text,
            Value::Text("x".into()),
            Datum::String("x".to_owned()),
        ),
        (
            SqlType::Bytea,
            Value::Bytes([0, 255].into()),
            Datum::Bytes(vec![0, 255]),
        ),
        (
            SqlType::TimestampTz,
            Value::Timestamp(-1),
            Datum::TimestampMicros(-1),
        ),
        (
            SqlType::Timestamp,
            Value::Timestamp(1),
            Datum::LocalTimestampMicros(1),
        ),
        (SqlType::Date, Value::Date(-719_162), Datum::Date(-719_162)),
        (
            SqlType::Jsonb,
            Value::Text("[1]".into()),
            Datum::String("[1]".to_owned()),
        ),
        (
            SqlType::Vector(2),
            Value::Vector([0.5, -1.0].into()),
            Datum::Array(vec![Datum::Float(0.5), Datum::Float(-1.0)]),
        ),
    ];
    let mut columns = vec![Column {
        nullable: false,
        ..Column::new("id", SqlType::Int4)
    }];
    columns.extend(
        types
            .iter()
            .enumerate()
            .map(|(at, (sql_type, ..))| Column::new(&format!("c{at}"), *sql_type)),
    );
    let schema = Schema {
        columns,
        key: vec![0],
    };
    let codec = Arc::new(RowCodec::new(schema.clone()).expect("packable"));
    let mut full = vec![Value::Int(1)];
    full.extend(types.iter().map(|(_, value, _)| value.clone()));
    let mut empty = vec![Value::Int(1)];
    empty.extend(types.iter().map(|_| Value::Null));
    let change = RowChange {
        key: Key::from_json_text("1"),
        at: AT,
        before: Some(codec.pack(&empty)),
        after: Some(codec.pack(&full)),
    };
    let texts = schemas(&schema, Envelope::Debezium, "all.types").expect("schemas");
    let encoder = Encoder::json(codec, Envelope::Debezium, "audit", "docs")
        .with_avro(Avro { key: 1, value: 2 });
    let messages = encoder.encode(&change, false);
    let value = messages[0].value.as_deref().expect("an event");
    let oracle = apache_avro::Schema::parse_str(&texts.value).expect("a schema");
    let mut bytes = &value[5..];
    let reader = apache_avro::reader::datum::GenericDatumReader::builder(&oracle);
    let reader = reader.build().expect("a reader");
    let read = reader.read_value(&mut bytes).expect("a datum");
    assert!(bytes.is_empty());
    let Datum::Record(fields) = read else {
        panic!("{read:?}")
    };
    let member = |name: &str| {
        let found = fields.iter().find(|(field, _)| field == name);
        found.expect("a field").1.clone()
    };
    let image = |name: &str| match member(name) {
        Datum::Union(1, row) => match *row {
            Datum::Record(columns) => columns.into_iter().map(|(_, value)| value).collect(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let (before, after): (Vec<Datum>, Vec<Datum>) = (image("before"), image("after"));
    assert!(
        before[1..]
            .iter()
            .all(|value| *value == Datum::Union(0, Box::new(Datum::Null)))
    );
    for ((_, _, wanted), found) in types.into_iter().zip(&after[1..]) {
        assert_eq!(*found, Datum::Union(1, Box::new(wanted)));
    }
    assert_eq!(member("op"), Datum::String("u".to_owned()));
    assert_eq!(member("ts_ms"), Datum::Long(1_763_719_200_000));
}
