//! Messages in the shapes that the documentation of Debezium's connectors shows, through the real
//! decoder and table.
//!
//! A file of `shapes/` is JSON lines: the first has `columns` and `key`; one with `value` is a message; one
//! with `rows`, `letters` or `dropped` is what must have come of the messages since the last such line.

use connectors::envelope::{Envelope, Options, TimePrecision};
use engine::model::SqlType;
use serde_json::{Value as Json, json};

use super::{Message, Topic, schema};

fn sql_type(name: &str) -> SqlType {
    match name {
        "BIGINT" => SqlType::Int8,
        "INTEGER" => SqlType::Int4,
        "BOOLEAN" => SqlType::Boolean,
        "TEXT" => SqlType::Text,
        "JSONB" => SqlType::Jsonb,
        "UUID" => SqlType::Uuid,
        "BYTEA" => SqlType::Bytea,
        "DATE" => SqlType::Date,
        "TIMESTAMP" => SqlType::Timestamp,
        "TIMESTAMPTZ" => SqlType::TimestampTz,
        "DOUBLE PRECISION" => SqlType::Float8,
        "NUMERIC(10,2)" => SqlType::Numeric(10, 2),
        "NUMERIC(19,4)" => SqlType::Numeric(19, 4),
        "NUMERIC(20,0)" => SqlType::Numeric(20, 0),
        other => panic!("a type for {other}"),
    }
}

fn topic(head: &Json) -> Topic {
    let text = |json: &Json| json.as_str().expect("a text").to_owned();
    let columns: Vec<(String, SqlType)> = head["columns"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|column| (text(&column[0]), sql_type(&text(&column[1]))))
        .collect();
    let columns: Vec<(&str, SqlType)> = columns.iter().map(|(n, t)| (&**n, *t)).collect();
    let key: Vec<String> = head["key"]
        .as_array()
        .expect("a key")
        .iter()
        .map(text)
        .collect();
    let key: Vec<&str> = key.iter().map(|name| &**name).collect();
    let options = Options {
        time: match head["time"].as_str() {
            Some("nanos") => TimePrecision::Nanos,
            _ => TimePrecision::Micros,
        },
        ..Options::default()
    };
    Topic::new(schema(&columns, &key), Envelope::Debezium, options, 1)
}

fn message(line: &Json) -> Message {
    let text = |json: &Json| (!json.is_null()).then(|| json.to_string());
    let headers = line["headers"].as_object().into_iter().flatten();
    Message {
        key: text(&line["key"]),
        value: text(&line["value"]),
        headers: headers
            .map(|(name, value)| (name.clone(), value.to_string()))
            .collect(),
    }
}

/// Reads a file of shapes.
fn check(name: &str, file: &str) {
    let mut lines = file.lines().enumerate();
    let (_, head) = lines.next().expect("a head");
    let mut topic = topic(&serde_json::from_str(head).expect("JSON"));
    let (mut letters, mut dropped) = (Vec::new(), 0);
    for (at, line) in lines {
        let context = format!("{name} line {}", at + 1);
        let line: Json = serde_json::from_str(line).unwrap_or_else(|e| panic!("{context}: {e}"));
        if line.get("value").is_some() {
            let applied = topic.send_to(0, &message(&line));
            dropped += applied.dropped;
            let all = applied.letters.into_iter();
            letters.extend(all.map(|letter| format!("{}: {}", letter.code, letter.detail)));
            continue;
        }
        if line.get("rows").is_none() && line.get("dropped").is_none() {
            continue;
        }
        if let Some(rows) = line.get("rows") {
            assert_eq!(&topic.json(), rows, "{context}");
        }
        let expected = line.get("letters").cloned().unwrap_or(json!([]));
        assert_eq!(json!(letters), expected, "{context}");
        if let Some(expected) = line.get("dropped") {
            assert_eq!(json!(dropped), *expected, "{context}: dropped");
        }
        letters.clear();
        dropped = 0;
    }
}

macro_rules! shapes {
    ($($name:ident $file:literal)*) => {
        $(
            #[test]
            fn $name() {
                check($file, include_str!(concat!("shapes/", $file)));
            }
        )*
    };
}

shapes! {
    mysql_without_schemas "mysql.jsonl"
    mysql_with_schemas "mysql-schema.jsonl"
    mysql_moves_to_another_server "mysql-gtid.jsonl"
    mysql_spatial_values "mysql-geometry.jsonl"
    sql_server_without_schemas "sqlserver.jsonl"
    sql_server_with_schemas "sqlserver-schema.jsonl"
    sql_server_by_commands "sqlserver-direct.jsonl"
    mongodb_without_schemas "mongodb.jsonl"
    mongodb_with_schemas "mongodb-schema.jsonl"
    mongodb_with_the_wall_clock "mongodb-wall-time.jsonl"
    mongodb_ids_of_all_kinds "mongodb-ids.jsonl"
    events_without_a_row "control.jsonl"
}
