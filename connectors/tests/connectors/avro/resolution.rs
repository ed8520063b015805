//! A writer's schema through a reader's: Avro's resolution, case by case, and against the reference
//! implementation where it agrees with the specification.

use apache_avro::types::Value;
use connectors::format::avro::{self, Schema};
use serde_json::{Value as Json, json};

use super::{encode, encode_by};

/// What a value written by one schema is to a reader of another.
fn read(writer: &Json, value: Value, reader: &Json) -> Json {
    let bytes = encode(&writer.to_string(), value);
    let writer = Schema::parse(&writer.to_string(), &[]).unwrap();
    let reader = Schema::parse(&reader.to_string(), &[]).unwrap();
    let resolved = avro::resolved(&writer, &reader).unwrap();
    match avro::decode(&resolved, &bytes, "value") {
        Ok(found) => found.node.to_json(),
        Err(error) => Json::from(error.detail),
    }
}

/// Why a schema cannot be read as another.
fn mismatch(writer: &Json, reader: &Json) -> String {
    let writer = Schema::parse(&writer.to_string(), &[]).unwrap();
    let reader = Schema::parse(&reader.to_string(), &[]).unwrap();
    avro::resolved(&writer, &reader).unwrap_err()
}

fn record(fields: Json) -> Json {
    json!({"type": "record", "name": "R", "fields": fields})
}

fn fields(values: &[(&str, Value)]) -> Value {
    let values = values.iter();
    Value::Record(values.map(|(n, v)| ((*n).to_owned(), v.clone())).collect())
}

#[test]
fn fields_are_matched_by_name_and_alias_dropped_and_filled() {
    let writer = record(json!([
        {"name": "a", "type": "int"},
        {"name": "gone", "type": {"type": "array", "items": "string"}},
        {"name": "old", "type": "string"},
    ]));
    let reader = record(json!([
        {"name": "new", "aliases": ["older", "old"], "type": "string"},
        {"name": "a", "type": "long"},
        {"name": "n", "type": ["null", "int"], "default": null},
        {"name": "flags", "type": {"type": "map", "values": "boolean"}, "default": {"x": true}},
        {"name": "raw", "type": "bytes", "default": "\u{0}\u{ff}"},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}, "default": "B"},
        {"name": "sub", "type": {"type": "record", "name": "S", "fields": [
            {"name": "x", "type": "double", "default": 1.5},
            {"name": "y", "type": ["int", "string"]}]}, "default": {"y": 4}},
    ]));
    let value = fields(&[
        ("a", Value::Int(-7)),
        ("gone", Value::Array(vec![Value::String("x".into())])),
        ("old", Value::String("text".into())),
    ]);
    assert_eq!(
        read(&writer, value, &reader),
        json!({"a": -7, "new": "text", "n": null, "flags": {"x": true}, "raw": "AP8=", "e": "B",
               "sub": {"x": 1.5, "y": 4}})
    );
    let missing = record(json!([{"name": "b", "type": "int"}]));
    assert_eq!(
        mismatch(&writer, &missing),
        "the field \"b\" of R is not written and has no default"
    );
    let wrong = record(json!([{"name": "b", "type": "int", "default": "x"}]));
    assert_eq!(
        mismatch(&writer, &wrong),
        "the field \"b\" of R: the default \"x\" does not fit"
    );
}

#[test]
fn numbers_grow_and_texts_are_bytes() {
    for (writer, value, readers) in [
        (
            "int",
            Value::Int(3),
            &["int", "long", "float", "double"][..],
        ),
        ("long", Value::Long(3), &["long", "float", "double"]),
        ("float", Value::Float(3.0), &["float", "double"]),
        ("string", Value::String("hi".into()), &["string"]),
    ] {
        for reader in readers {
            let found = read(&json!(writer), value.clone(), &json!(reader));
            match writer {
                "string" => assert_eq!(found, json!("hi")),
                _ => assert_eq!(found.as_f64(), Some(3.0), "{writer} as {reader}"),
            }
        }
    }
    let (string, bytes) = (json!("string"), json!("bytes"));
    assert_eq!(
        read(&string, Value::String("hi".into()), &bytes),
        json!("aGk=")
    );
    assert_eq!(
        read(&bytes, Value::Bytes(b"hi".to_vec()), &string),
        json!("hi")
    );
    assert_eq!(
        read(&bytes, Value::Bytes(vec![0xff]), &string),
        json!("the value does not follow its schema at byte 2: bytes for a string are not UTF-8")
    );
    assert_eq!(
        mismatch(&json!("long"), &json!("int")),
        "the writer has long, the reader's schema int"
    );
}

#[test]
fn enums_and_unions() {
    let symbols = |symbols: Json| json!({"type": "enum", "name": "x.E", "symbols": symbols});
    let mut reader = symbols(json!(["A", "B"]));
    let writer = symbols(json!(["A", "C"]));
    let c = || Value::Enum(1, "C".into());
    assert_eq!(read(&writer, c(), &reader), json!("C"));
    reader["default"] = json!("B");
    assert_eq!(read(&writer, c(), &reader), json!("B"));

    let union = |at, value| Value::Union(at, Box::new(value));
    let writer = json!(["null", "int", "string"]);
    let text = || union(2, Value::String("x".into()));
    assert_eq!(
        read(&writer, text(), &json!(["string", "long"])),
        json!("x")
    );
    assert_eq!(
        read(&writer, union(1, Value::Int(5)), &json!("long")),
        json!(5)
    );
    assert_eq!(
        read(&writer, union(0, Value::Null), &json!("long")),
        json!(
            "the value does not follow its schema at byte 1: the writer has null, the reader's \
               schema long"
        )
    );
    assert_eq!(
        read(&json!("int"), Value::Int(5), &json!(["null", "double"])),
        json!(5)
    );
    assert_eq!(
        mismatch(&json!("boolean"), &json!(["null", "double"])),
        "the writer has boolean, the reader's schema union"
    );
}

#[test]
fn a_type_within_itself_is_resolved_once() {
    let list = |more: Json| {
        let mut fields = vec![
            json!({"name": "v", "type": "int"}),
            json!({"name": "next", "type": ["null", "R"]}),
        ];
        fields.extend(more.as_array().unwrap().iter().cloned());
        record(Json::from(fields))
    };
    let reader = list(json!([{"name": "w", "type": "string", "default": "-"}]));
    let end = fields(&[
        ("v", Value::Int(2)),
        ("next", Value::Union(0, Box::new(Value::Null))),
    ]);
    let value = fields(&[
        ("v", Value::Int(1)),
        ("next", Value::Union(1, Box::new(end))),
    ]);
    assert_eq!(
        read(&list(json!([])), value, &reader),
        json!({"v": 1, "next": {"v": 2, "next": null, "w": "-"}, "w": "-"})
    );
    // A default that needs itself is none.
    let endless = record(json!([{"name": "r", "type": "R", "default": {}}]));
    assert!(mismatch(&record(json!([])), &endless).contains("does not fit"));
}

/// A circle of 27 types meets a circle of 28 in 756 pairs, each inside the one before.
#[test]
fn circles_of_types_do_not_end_the_stack() {
    let circle = |length: usize| {
        let last = json!(["null", "n0.R"]);
        (0..length).rev().fold(last, |inner, n| {
            let fields = json!([{"name": "next", "type": inner}]);
            let here = json!({"type": "record", "name": "R", "namespace": format!("n{n}"), "fields": fields});
            match n {
                0 => here,
                _ => json!(["null", here]),
            }
        })
    };
    assert_eq!(
        mismatch(&circle(27), &circle(28)),
        "its types and the reader's name each other too often"
    );
    let (writer, reader) = (circle(20).to_string(), circle(10).to_string());
    let writer = Schema::parse(&writer, &[]).unwrap();
    let resolved = avro::resolved(&writer, &Schema::parse(&reader, &[]).unwrap()).unwrap();
    let found = avro::decode(&resolved, &[2, 2, 0], "value").unwrap();
    assert_eq!(
        found.node.to_json(),
        json!({"next": {"next": {"next": null}}})
    );
}

/// Records that take no bytes, each with a large default.
#[test]
fn the_values_of_defaults_count() {
    let rows = |fields: Json| {
        let row = json!({"type": "record", "name": "Row", "fields": fields});
        record(json!([{"name": "rows", "type": {"type": "array", "items": row}}]))
    };
    let default: Json = (0..1_000).collect();
    let reader =
        rows(json!([{"name": "a", "type": {"type": "array", "items": "int"}, "default": default}]));
    let writer = Schema::parse(&rows(json!([])).to_string(), &[]).unwrap();
    let reader = Schema::parse(&reader.to_string(), &[]).unwrap();
    let resolved = avro::resolved(&writer, &reader).unwrap();
    let few = avro::decode(&resolved, &[120, 0], "value").unwrap().node;
    assert_eq!(few.to_json()["rows"].as_array().unwrap().len(), 60);
    let error = avro::decode(&resolved, &[0xc8, 0x01, 0], "value").unwrap_err();
    assert_eq!(
        error.detail,
        "the value does not follow its schema at byte 2, field rows.65: more values than its bytes \
         can hold"
    );
}

/// Where a column's meaning comes from, after resolution.
#[test]
fn the_writer_knows_what_it_counted() {
    let of = |logical: &str| json!({"type": "long", "logicalType": logical});
    let field = |schema: Json| record(json!([{"name": "at", "type": schema}]));
    let name = |writer: Json, reader: Json| {
        let writer = Schema::parse(&field(writer).to_string(), &[]).unwrap();
        let reader = Schema::parse(&field(reader).to_string(), &[]).unwrap();
        let resolved = avro::resolved(&writer, &reader).unwrap();
        let found = avro::decode(&resolved, &[2], "value").unwrap();
        let schema = found.schema.unwrap();
        schema.field("at").unwrap().name.clone()
    };
    let millis = Some("org.apache.kafka.connect.data.Timestamp".to_owned());
    assert_eq!(name(of("timestamp-millis"), of("timestamp-micros")), millis);
    assert_eq!(name(of("timestamp-millis"), json!("long")), millis);
    assert_eq!(name(json!("long"), of("timestamp-millis")), millis);
    assert_eq!(name(json!("long"), json!("long")), None);
}

/// The reference implementation on the same bytes; it does not know aliases of fields.
#[test]
fn resolution_agrees_with_the_reference_implementation() {
    let writer = record(json!([
        {"name": "a", "type": "int"},
        {"name": "b", "type": ["null", "string"]},
        {"name": "c", "type": {"type": "array", "items": "float"}},
    ]));
    let reader = record(json!([
        {"name": "c", "type": {"type": "array", "items": "double"}},
        {"name": "a", "type": "long"},
        {"name": "d", "type": "string", "default": "none"},
    ]));
    let theirs = apache_avro::Schema::parse_str(&writer.to_string()).unwrap();
    let their_reader = apache_avro::Schema::parse_str(&reader.to_string()).unwrap();
    let value = fields(&[
        ("a", Value::Int(9)),
        ("b", Value::Union(1, Box::new(Value::String("x".into())))),
        (
            "c",
            Value::Array(vec![Value::Float(0.5), Value::Float(-2.0)]),
        ),
    ]);
    let bytes = encode_by(&theirs, value.clone());
    let oracle = apache_avro::reader::datum::GenericDatumReader::builder(&theirs)
        .reader_schema(&their_reader)
        .build()
        .unwrap();
    let oracle = oracle.read_value(&mut &bytes[..]).unwrap();
    let expected: Json = Json::try_from(oracle).unwrap();
    assert_eq!(read(&writer, value, &reader), expected);
}
