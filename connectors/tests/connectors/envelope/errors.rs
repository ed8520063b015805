//! The exact words of what a message can be refused for.

use connectors::envelope::{Envelope, Options};
use engine::model::{Column, SqlType};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use super::{Message, Topic, event, schema, streamed, tickets};

fn debezium(message: &Message) -> String {
    Topic::debezium(tickets()).refuse(message)
}

fn value(text: &str) -> Message {
    Message {
        key: Some(r#"{"id":1}"#.into()),
        value: Some(text.into()),
        headers: Vec::new(),
    }
}

/// A letter is a few sentences, whatever a message has in the place of a word.
#[test]
fn words_of_a_message_are_shortened() {
    let (long, short) = ("x".repeat(100_000), "x".repeat(80));
    assert_eq!(
        debezium(&value(&format!(
            r#"{{"op":"{long}","after":{{}},"source":{{}}}}"#
        ))),
        format!("bad-op: \"op\" is \"{short}…\"")
    );
    let schema = format!(r#"{{"schema":{{"type":"{long}"}},"payload":{{}}}}"#);
    assert_eq!(
        debezium(&value(&schema)),
        format!("invalid-schema: the schema of the value has the type \"{short}…\"")
    );
}

#[test]
fn damaged_messages() {
    assert_eq!(
        debezium(&value(r#"{"op":"#)),
        "invalid-json: the value is not valid JSON at byte 6: the text ends too early"
    );
    assert_eq!(
        debezium(&value(r#"{"op":"c" "after":1}"#)),
        "invalid-json: the value is not valid JSON at byte 10: expected `,` or `}`"
    );
    assert_eq!(
        debezium(&value(r#"{"schema":{"type":"decimal"},"payload":{}}"#)),
        "invalid-schema: the schema of the value has the type \"decimal\""
    );
    let mut bad_key = value("{}");
    bad_key.key = Some("{".into());
    assert_eq!(
        debezium(&bad_key),
        "invalid-json: the key is not valid JSON at byte 1: expected a string"
    );
    assert_eq!(debezium(&value("3")), "wrong-type: the value is 3");
}

#[test]
fn events_that_are_none() {
    let row = json!({"id": 1, "title": "a", "body": "b"});
    assert_eq!(
        debezium(&event("x", Json::Null, row.clone(), streamed(1, 10))),
        "bad-op: \"op\" is \"x\""
    );
    let mut no_after = event("c", row.clone(), Json::Null, streamed(1, 10));
    no_after.key = Some(r#"{"id":1}"#.into());
    assert_eq!(
        debezium(&no_after),
        "missing-image: an event with \"op\":\"c\" has no \"after\""
    );
    let mut other_key = event("c", Json::Null, row.clone(), streamed(1, 10));
    other_key.key = Some(r#"{"id":2}"#.into());
    assert_eq!(
        debezium(&other_key),
        "contradicting-key: the message's key is 2, the row's is 1"
    );
    other_key.key = Some(r#"{"email":"x"}"#.into());
    assert_eq!(
        debezium(&other_key),
        "key-columns-differ: the message's key has (email); the source's key is (id)"
    );
    let mut no_key = event(
        "c",
        Json::Null,
        json!({"title": "a", "body": "b"}),
        streamed(1, 10),
    );
    no_key.key = None;
    assert_eq!(
        debezium(&no_key),
        "missing-key: neither the key nor the row has \"id\""
    );
    no_key.value = None;
    assert_eq!(
        debezium(&no_key),
        "missing-key: neither the key nor the row has \"id\""
    );
    assert_eq!(
        debezium(&value(r#"{"before":null,"after":null,"op":"d"}"#)),
        "missing-image: an event with \"op\":\"d\" has no \"before\""
    );
}

#[test]
fn values_that_do_not_fit() {
    let row = json!({"id": 1, "title": {"a": 1}, "body": 7});
    let mut topic = Topic::debezium(tickets());
    // TEXT takes what has a text.
    topic.send(&event("c", Json::Null, row, streamed(1, 10)));
    assert_eq!(topic.json(), json!([[1, "{\"a\":1}", "7"]]));
    let bad = event("c", Json::Null, json!({"id": "x"}), streamed(2, 20));
    assert_eq!(
        topic.refuse(&bad),
        "wrong-type: column \"id\": expected bigint, found \"x\""
    );
    let mut schema = schema(&[("id", SqlType::Int8)], &["id"]);
    schema.columns.push(Column {
        nullable: false,
        ..Column::new("n", SqlType::Int4)
    });
    let mut topic = Topic::new(schema, Envelope::Upsert, Options::default(), 1);
    assert_eq!(
        topic.refuse(&value("{}")),
        "null-value: column \"n\": NULL in a NOT NULL column"
    );
    let long = format!("{{\"id\":{}}}", "9".repeat(30));
    let mut message = value(r#"{"n":1}"#);
    message.key = Some(long);
    assert_eq!(
        topic.refuse(&message),
        "out-of-range: column \"id\": 999999999999999999999999999999 does not fit bigint"
    );
}

/// Whatever bytes come, a message makes changes, markers or letters, and no panic.
#[test]
fn damaged_messages_never_panic() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let row = json!({"id": 1, "title": "a", "body": ["x", 1e3]});
    let wrapped = json!({"schema": {"type": "struct", "fields": [{"type": "int64", "field": "id"},
        {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}, "field": "title"},
        {"type": "array", "items": {"type": "string"}, "field": "body"}]},
        "payload": {"id": 1, "title": "MDk=", "body": ["x"]}});
    let seeds = [
        event("u", row.clone(), row.clone(), streamed(1, 10)),
        event("d", row.clone(), Json::Null, streamed(1, 10))
            .header("__debezium.newkey", json!({"id": 2})),
        event("t", Json::Null, Json::Null, streamed(1, 10)),
        Message::new(json!({"id": 1}), wrapped),
    ];
    for envelope in [Envelope::Debezium, Envelope::Upsert, Envelope::Append] {
        let mut topic = Topic::new(tickets(), envelope, Options::default(), 2);
        for _ in 0..10_000 {
            let mut message = seeds[rng.random_range(0..seeds.len())].clone();
            let damage = |text: &mut String, rng: &mut ChaCha8Rng| {
                let mut bytes = std::mem::take(text).into_bytes();
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes.truncate(at),
                    1 => bytes[at] = b"{}[],:\"0-9n"[rng.random_range(0..11)],
                    _ => drop(bytes.splice(at..at, bytes[..at / 2].to_vec())),
                }
                *text = String::from_utf8_lossy(&bytes).into_owned();
            };
            match rng.random_range(0..3) {
                0 => damage(message.value.as_mut().unwrap(), &mut rng),
                1 => message.key.iter_mut().for_each(|key| damage(key, &mut rng)),
                _ => {
                    let headers = message.headers.iter_mut();
                    headers.for_each(|(_, value)| damage(value, &mut rng));
                }
            }
            topic.send_to(0, &message);
        }
    }
}

#[test]
fn appends_need_a_value() {
    let schema = schema(&[("line", SqlType::Text)], &[]);
    let mut topic = Topic::new(schema, Envelope::Append, Options::default(), 1);
    assert_eq!(
        topic.refuse(&Message::default()),
        "missing-value: a message to append has no value"
    );
}

#[test]
fn too_many_rows_that_wait() {
    let mut topic = Topic::debezium(tickets());
    let unsent = |id: usize| {
        let row = json!({"id": id, "title": "a", "body": "__debezium_unavailable_value"});
        event("u", Json::Null, row, streamed(1, 10 + id as u64))
    };
    for id in 0..engine::limits::ENVELOPE_PARKED_ROWS_MAX {
        topic.send(&unsent(id));
    }
    assert_eq!(
        topic.refuse(&unsent(10_000)),
        "too-many-unavailable: row 10000: 10000 rows wait for values that were not sent; the limit \
         is ENVELOPE_PARKED_ROWS_MAX"
    );
}

#[test]
fn a_truncate_whose_order_is_unknown_says_so() {
    let mut topic = Topic::new(tickets(), Envelope::Debezium, Options::default(), 2);
    let source = json!({"connector": "vitess", "snapshot": "false", "vgtid": "[]"});
    let mut truncate = event("t", Json::Null, Json::Null, source);
    truncate.key = None;
    let applied = topic.send_to(0, &truncate);
    assert_eq!(
        (&*applied.letters[0].code, &*applied.letters[0].detail),
        (
            "truncate-order-unknown",
            "a truncate may have deleted rows that were written after it: the source sends no order \
             across partitions"
        )
    );
}

#[test]
fn a_snapshot_that_began_again_and_is_too_large_says_so() {
    let mut topic = Topic::debezium(tickets());
    let read = |phase: &str, lsn: u64, id: usize| {
        let row = json!({"id": id, "title": "a", "body": "b"});
        event("r", Json::Null, row, super::snapshot(phase, lsn))
    };
    topic.send(&read("first", 10, 0));
    topic.send(&read("first", 20, 0));
    for id in 1..engine::limits::ENVELOPE_SNAPSHOT_KEYS_MAX {
        topic.send(&read("true", 20, id));
    }
    let applied = topic.send_to(0, &read("true", 20, 70_000));
    assert_eq!(
        (&*applied.letters[0].code, &*applied.letters[0].detail),
        (
            "snapshot-order-unknown",
            "a snapshot began again and is larger than ENVELOPE_SNAPSHOT_KEYS_MAX rows: rows that were \
             deleted before it may stay"
        )
    );
    assert_eq!(applied.letters[0].key, None);
}

/// The row is named wherever its key can be read and is not what is doubted.
#[test]
fn letters_name_their_row() {
    let key = |topic: &mut Topic, message: &Message| {
        let applied = topic.send_to(0, message);
        assert_eq!(applied.letters.len(), 1, "{applied:?}");
        let key = applied.letters[0].key.clone();
        key.map(|key| key.as_str().to_owned())
    };
    let upserts = || Topic::new(tickets(), Envelope::Upsert, Options::default(), 1);
    let one = Some("1".to_owned());
    assert_eq!(key(&mut upserts(), &value("{")), one);
    let unkeyed = Message {
        key: None,
        ..value(r#"{"id":7,"title":3,"body":{"a":"#)
    };
    assert_eq!(
        key(&mut upserts(), &unkeyed),
        None,
        "not even the row can be read"
    );
    let mut bad_key = value(r#"{"title":"a"}"#);
    bad_key.key = Some(r#"{"id":"x"}"#.into());
    assert_eq!(key(&mut upserts(), &bad_key), None);
    let mut topic = Topic::debezium(tickets());
    assert_eq!(key(&mut topic, &value(r#"{"op":"#)), one);
    let row = json!({"id": 1, "title": "a", "body": "b"});
    let mut other_key = event("c", Json::Null, row, streamed(1, 10));
    other_key.key = Some(r#"{"id":2}"#.into());
    assert_eq!(key(&mut topic, &other_key), None, "which of the two?");
    let columns = [("line", SqlType::Text)];
    let mut appends = Topic::new(
        schema(&columns, &[]),
        Envelope::Append,
        Options::default(),
        1,
    );
    assert_eq!(
        key(&mut appends, &Message::default()).as_deref(),
        Some(r#"{"topic":"app.public.tickets","partition":0,"offset":0}"#)
    );
}
