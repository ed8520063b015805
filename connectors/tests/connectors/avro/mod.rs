//! Avro: the decoder against the `apache-avro` crate, types, resolution, and a registry.

mod law;
mod registry;
mod resolution;
mod types;

use apache_avro::types::Value;
use connectors::format::avro::{self, Schema};
use connectors::format::{Node, Payload};
use serde_json::Value as Json;

/// A value as the reference implementation writes it.
pub fn encode(schema: &str, value: Value) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(schema).unwrap();
    encode_by(&schema, value)
}

/// The same by a parsed schema.
pub fn encode_by(schema: &apache_avro::Schema, value: Value) -> Vec<u8> {
    let writer = apache_avro::writer::datum::GenericDatumWriter::builder(schema);
    let writer = writer.validate(false).build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

/// What we read.
pub fn decode(schema: &str, bytes: &[u8]) -> Json {
    let schema = Schema::parse(schema, &[]).unwrap();
    avro::decode(&schema, bytes, "value")
        .unwrap()
        .node
        .to_json()
}

/// Why we do not.
pub fn refused(schema: &str, bytes: &[u8]) -> String {
    let schema = Schema::parse(schema, &[]).unwrap();
    avro::decode(&schema, bytes, "value").unwrap_err().detail
}

/// The number of an union's branch is kept only where there are several.
#[test]
fn a_root_of_several_records_is_the_record_that_came() {
    let schema = r#"[{"type":"record","name":"A","fields":[{"name":"a","type":"int"}]},
                     {"type":"record","name":"B","fields":[{"name":"b","type":"string"}]}]"#;
    let schema = Schema::parse(schema, &[]).unwrap();
    let Payload { schema, node } = avro::decode(&schema, &[2, 2, b'x'], "value").unwrap();
    assert_eq!(
        node,
        Node::Object(vec![("b".into(), Node::Text("x".into()))])
    );
    assert_eq!(schema.unwrap().name.as_deref(), Some("B"));
}

#[test]
fn damaged_values_say_where_and_what() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"id","type":"long"},
        {"name":"after","type":["null",{"type":"record","name":"Row","fields":[
            {"name":"title","type":"string"},
            {"name":"tags","type":{"type":"array","items":"string"}},
            {"name":"is_open","type":"boolean"}]}]}]}"#;
    let whole = [2, 2, 4, b'a', b'b', 2, 2, b'x', 0, 1];
    assert_eq!(
        decode(schema, &whole),
        serde_json::json!({"id": 1, "after": {"title": "ab", "tags": ["x"], "is_open": true}})
    );
    let cases: [(&[u8], &str); 8] = [
        (&[], "at byte 0, field id: the bytes end in an integer"),
        (
            &[255; 11],
            "at byte 0, field id: an integer has more than 64 bits",
        ),
        (&[2, 4], "at byte 1, field after: branch 2, there are 2"),
        (
            &whole[..3],
            "at byte 2, field after.title: the text has a length of 2, 0 bytes are left",
        ),
        (
            &[2, 2, 4, 0xff, b'b', 2],
            "at byte 3, field after.title: the text is not UTF-8",
        ),
        (
            &[2, 2, 0, 4, 2, b'x', 9, 0],
            "at byte 6, field after.tags.1: the text has a length of -5, 1 bytes are left",
        ),
        (
            &[2, 2, 0, 0, 7],
            "at byte 4, field after.is_open: a boolean is neither 0 nor 1",
        ),
        (
            &[2, 0, 0, 0],
            "at byte 2: 2 bytes are left behind the value",
        ),
    ];
    for (bytes, expected) in cases {
        let found = refused(schema, bytes);
        let expected = format!("the value does not follow its schema {expected}");
        assert_eq!(found, expected, "{bytes:?}");
    }
}

/// A few bytes must not become a lot of memory, whatever lengths they claim.
#[test]
fn lengths_are_believed_as_far_as_there_are_bytes() {
    let nulls = r#"{"type":"array","items":"null"}"#;
    // One block of 2^40 nulls.
    let claimed = [0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 0];
    assert!(refused(nulls, &claimed).contains("more than its bytes can hold"));
    let bytes = r#""bytes""#;
    assert!(refused(bytes, &claimed).contains("bytes are left"));
    // A million blocks of one null each are more values than bytes allow.
    let empties = r#"{"type":"array","items":{"type":"record","name":"E","fields":[]}}"#;
    let fine = [4, 0];
    assert_eq!(decode(empties, &fine), serde_json::json!([{}, {}]));
    // A tree nested without an end.
    let tree = r#"{"type":"record","name":"T","fields":[{"name":"t","type":{"type":"array","items":"T"}}]}"#;
    assert!(refused(tree, &[2; 5_000]).contains("nested too deeply"));
}

#[test]
fn schemas_that_are_none() {
    let cases = [
        (
            "{",
            "it is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (r#"{"type":"x.Y"}"#, "the type \"x.Y\" is not defined"),
        (
            r#"{"type":"record","name":"R"}"#,
            "a record has no \"fields\"",
        ),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"nope"}]}"#,
            "field \"a\": the type \"nope\" is not defined",
        ),
        (r#"["null",["int"]]"#, "a union lies directly in a union"),
        (r#"{"type":"fixed","name":"F"}"#, "a fixed has no \"size\""),
        ("7", "7 is no schema"),
    ];
    for (text, expected) in cases {
        assert_eq!(Schema::parse(text, &[]).unwrap_err(), expected, "{text}");
    }
    let deep = r#"{"type":"array","items":"#.repeat(120) + "\"int\"" + &"}".repeat(120);
    let error = Schema::parse(&deep, &[]).unwrap_err();
    assert!(
        error.contains("nested too deeply") || error.contains("recursion"),
        "{error}"
    );
    // Forty records, each with two of the next: a trillion in all.
    let record = |n: usize, inner: &str| {
        format!(
            r#"{{"type":"record","name":"R{n}","fields":[{{"name":"a","type":{inner}}},{{"name":"b","type":"R{}"}}]}}"#,
            n + 1
        )
    };
    let leaf = r#"{"type":"record","name":"R40","fields":[]}"#.to_owned();
    let bomb = (0..40).rev().fold(leaf, |inner, n| record(n, &inner));
    assert!(
        Schema::parse(&bomb, &[])
            .unwrap_err()
            .contains("more than 65536 times")
    );
}

/// Depth that no text shows: a few kilobytes of types that name each other must not end the stack.
#[test]
fn types_that_lie_deep_by_their_names_are_refused() {
    let field = |n: usize| {
        let inside = match n {
            0 => String::new(),
            n => format!(r#"{{"name":"f","type":"R{}"}}"#, n - 1),
        };
        format!(r#"{{"name":"r{n}","type":{{"type":"record","name":"R{n}","fields":[{inside}]}}}}"#)
    };
    let chain = |length: usize| {
        let fields: Vec<String> = (0..length).map(field).collect();
        let fields = fields.join(",");
        format!(r#"{{"type":"record","name":"Root","fields":[{fields}]}}"#)
    };
    assert!(Schema::parse(&chain(100), &[]).is_ok());
    assert_eq!(
        Schema::parse(&chain(10_000), &[]).unwrap_err(),
        "its types lie in each other more than 128 deep"
    );
}
