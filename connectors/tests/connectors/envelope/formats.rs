//! The JSON reader against `serde_json`, and the other formats.

use connectors::envelope::{Envelope, Metadata, Options};
use connectors::format::{Format, Node, json as format_json};
use engine::model::SqlType;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use super::{Message, Topic, schema};

fn random_json(rng: &mut ChaCha8Rng, depth: usize) -> Json {
    match rng.random_range(0..if depth == 0 { 6 } else { 8 }) {
        0 => Json::Null,
        1 => Json::from(rng.random_bool(0.5)),
        2 => Json::from(rng.random::<i64>()),
        3 => Json::from(rng.random_range(-1_000_000..1_000_000) as f64 / 64.0),
        4 | 5 => {
            let alphabet = [
                'a',
                '"',
                '\\',
                '\n',
                '\u{1}',
                'é',
                '→',
                '\u{1f600}',
                '/',
                ' ',
            ];
            let length = rng.random_range(0..8);
            let text: String = (0..length)
                .map(|_| alphabet[rng.random_range(0..10)])
                .collect();
            Json::from(text)
        }
        6 => (0..rng.random_range(0..4))
            .map(|_| random_json(rng, depth - 1))
            .collect(),
        _ => {
            let members = (0..rng.random_range(0..4))
                .map(|at| (format!("m{at}"), random_json(rng, depth - 1)));
            Json::Object(members.collect())
        }
    }
}

/// Equal but for the last digits of doubles, which `serde_json` rounds more coarsely.
fn is_equal(ours: &Json, theirs: &Json) -> bool {
    match (ours, theirs) {
        (Json::Number(a), Json::Number(b)) if a.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= a.abs() * 1e-14
        }
        (Json::Array(a), Json::Array(b)) => {
            a.len() == b.len() && std::iter::zip(a, b).all(|(a, b)| is_equal(a, b))
        }
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(name, a)| b.get(name).is_some_and(|b| is_equal(a, b)))
        }
        (ours, theirs) => ours == theirs,
    }
}

/// Equal trees for good texts; for damaged ones the same verdict, and no panic.
#[test]
fn json_is_read_as_serde_json_reads_it() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..20_000 {
        let json = random_json(&mut rng, 4);
        let text = match rng.random_bool(0.5) {
            true => json.to_string(),
            false => serde_json::to_string_pretty(&json).unwrap(),
        };
        let node = format_json::parse(text.as_bytes(), "value").unwrap();
        assert_eq!(node.to_json(), json, "{text}");
        let mut damaged = text.into_bytes();
        for _ in 0..rng.random_range(1..3) {
            let at = rng.random_range(0..damaged.len());
            let noise = b"{}[],:\"\\u0d8e+-.1tfn \xff\x01";
            damaged[at] = noise[rng.random_range(0..noise.len())];
        }
        let ours = format_json::parse(&damaged, "value");
        let theirs: Result<Json, _> = serde_json::from_slice(&damaged);
        let shown = String::from_utf8_lossy(&damaged);
        match (ours, theirs) {
            (Ok(node), Ok(json)) => assert!(is_equal(&node.to_json(), &json), "{shown}"),
            (Err(_), Err(_)) => {}
            // Numbers beyond a double are numbers here; they fail in a column of doubles.
            (Ok(_), Err(error)) if error.to_string().contains("out of range") => {}
            (ours, theirs) => panic!("{shown}: {ours:?} against {theirs:?}"),
        }
        let _ = format_json::parse_wrapped(&damaged, "value");
    }
    let deep = "[".repeat(200) + &"]".repeat(200);
    let error = format_json::parse(deep.as_bytes(), "value").unwrap_err();
    assert_eq!(
        error.detail,
        "the value is not valid JSON at byte 128: nested too deeply"
    );
}

#[test]
fn numbers_keep_their_digits() {
    let text = b"12345678901234567890.123456789";
    let node = format_json::parse(text, "value").unwrap();
    assert_eq!(node, Node::Number("12345678901234567890.123456789".into()));
    let columns = [("id", SqlType::Int8), ("n", SqlType::Numeric(38, 9))];
    let mut topic = Topic::new(
        schema(&columns, &["id"]),
        Envelope::Upsert,
        Options::default(),
        1,
    );
    let mut message = Message::new(json!(1), Json::Null);
    message.value = Some("{\"n\":12345678901234567890.123456789}".into());
    topic.send(&message);
    assert_eq!(topic.json(), json!([[1, "12345678901234567890.123456789"]]));
}

#[test]
fn a_wrapped_value_is_one_with_exactly_these_members() {
    let cases = [
        (r#"{"schema":null,"payload":1}"#, true),
        (
            r#" { "payload" : [1] , "schema" : {"type":"x","a":"}\"]"} } "#,
            true,
        ),
        (r#"{"schema":null,"payload":1,"more":2}"#, false),
        (r#"{"payload":1}"#, false),
        (r#"[1]"#, false),
    ];
    for (text, is_wrapped) in cases {
        let (schema, _) = format_json::parse_wrapped(text.as_bytes(), "value").unwrap();
        assert_eq!(schema.is_some(), is_wrapped, "{text}");
    }
}

#[test]
fn raw_text_and_bytes_with_the_message_s_own_columns() {
    let columns = [
        ("key", SqlType::Text),
        ("line", SqlType::Text),
        ("at", SqlType::TimestampTz),
        ("headers", SqlType::Jsonb),
        ("partition", SqlType::Int4),
        ("offset", SqlType::Int8),
        ("topic", SqlType::Text),
    ];
    let metadata = vec![
        (0, Metadata::Key),
        (2, Metadata::Timestamp),
        (3, Metadata::Headers),
        (4, Metadata::Partition),
        (5, Metadata::Offset),
        (6, Metadata::Topic),
    ];
    let options = Options {
        key_format: Format::Text,
        value_format: Format::Text,
        metadata,
        ..Options::default()
    };
    let mut schema = schema(&columns, &["partition", "offset"]);
    let mut topic = Topic::new(schema.clone(), Envelope::Append, options.clone(), 2);
    let message = Message {
        key: Some("k".into()),
        value: Some("a line".into()),
        headers: vec![("h".into(), "v".into())],
    };
    topic.send(&message);
    topic.send_to(1, &message);
    let row = |partition: i64| {
        json!(["k", "a line", "2023-11-14T22:13:20.000000Z", [{"key": "h", "value": "v"}],
            partition, 0, "app.public.tickets"])
    };
    assert_eq!(topic.json(), json!([row(0), row(1)]));
    // Without a declared key the position is the key.
    schema.key = Vec::new();
    let mut topic = Topic::new(schema, Envelope::Append, options, 1);
    topic.send(&message);
    let key = topic.rows.0.keys().next().unwrap();
    assert_eq!(
        key.as_str(),
        r#"{"topic":"app.public.tickets","partition":0,"offset":0}"#
    );
}

#[test]
fn upserts_by_key() {
    let columns = [("id", SqlType::Text), ("n", SqlType::Int4)];
    let options = Options {
        key_format: Format::Text,
        ..Options::default()
    };
    let mut topic = Topic::new(schema(&columns, &["id"]), Envelope::Upsert, options, 1);
    let message = |value: Option<&str>| Message {
        key: Some("a".into()),
        value: value.map(str::to_owned),
        headers: Vec::new(),
    };
    topic.send(&message(Some(r#"{"n":1}"#)));
    topic.send(&message(Some(r#"{"n":2,"id":"ignored"}"#)));
    assert_eq!(topic.json(), json!([["a", 2]]));
    topic.send(&message(None));
    assert_eq!(topic.json(), json!([]));
    topic.send(&message(Some(r#"{"n":3}"#)));
    topic.send(&message(Some("null")));
    assert_eq!(topic.json(), json!([]));
}
