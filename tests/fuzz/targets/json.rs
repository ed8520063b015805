//! JSON: our reader against `serde_json`, Connect's wrapping, and rows of all types.
//!
//! An input is JSON text. Differences that are meant: numbers keep all digits (`serde_json` refuses
//! 1e999), and a schema beside a payload is not parsed by who passes over it.

use connectors::envelope::{Decoder, Envelope, Options};
use connectors::format::{Format, Node, Reader, json};
use connectors::push;
use engine::model::SqlType;
use serde_json::Value as Json;

use super::checks;

pub fn run(input: &[u8]) {
    let read = json::parse(input, "value");
    checks::same(&read, &json::parse(input, "value"));
    against_serde(input, &read.as_ref().ok());
    match &read {
        Ok(node) => {
            let (nodes, bytes) = (checks::nodes(node), checks::node_bytes(node));
            assert!(
                nodes <= input.len(),
                "{nodes} values of {} bytes",
                input.len()
            );
            assert!(bytes <= input.len(), "{bytes} bytes of {}", input.len());
            let text = node.to_json().to_string();
            let again = json::parse(text.as_bytes(), "value").expect("JSON that we wrote");
            checks::same(&again.to_json().to_string(), &text);
        }
        Err(error) => checks::letter(error),
    }
    wrapped(input, read.ok().as_ref());
    rows(input);
    pushed(input);
}

fn against_serde(input: &[u8], ours: &Option<&Node<'_>>) {
    let theirs = serde_json::from_slice::<Json>(input);
    match (ours, theirs) {
        (None, Err(_)) => {}
        (Some(node), Ok(theirs)) => assert_eq!(node.to_json(), theirs),
        (Some(_), Err(error)) => {
            let text = error.to_string();
            // Which numbers there are is decided by the column that takes them.
            let is_meant = text.starts_with("number out of range");
            assert!(is_meant, "serde_json refuses it: {text}");
        }
        (None, Ok(theirs)) => panic!("serde_json reads it: {theirs}"),
    }
}

/// A payload with its schema is the one that plain reading finds.
fn wrapped(input: &[u8], plain: Option<&Node<'_>>) {
    let found = json::parse_wrapped(input, "value");
    if let (Ok((Some(_), payload)), Some(plain)) = (&found, plain) {
        checks::same(payload, plain.get("payload").expect("a member"));
    }
    let mut reader = Reader::new(Format::Json);
    let first = format!("{:?}", reader.read(Some(input), &[], "value"));
    let second = format!("{:?}", reader.read(Some(input), &[], "value"));
    assert_eq!(first, second, "a schema that is known says the same");
}

/// The text as rows: as the value, and as key and value.
fn rows(input: &[u8]) {
    for envelope in [Envelope::Append, Envelope::Upsert] {
        let schema = checks::columns(SqlType::Text);
        let key = (envelope == Envelope::Upsert).then_some(input);
        let decoder = Decoder::new(schema.clone(), envelope, Options::default());
        checks::message(&schema, decoder, key, input, input.len());
    }
}

/// The text as a line of a push.
fn pushed(input: &[u8]) {
    for key in [SqlType::Int8, SqlType::Numeric(10, 2)] {
        let schema = checks::columns(key);
        let line = push::decode_line(&schema, input);
        checks::same(&line, &push::decode_line(&schema, input));
        match line {
            Ok(change) => {
                for (column, value) in schema.columns.iter().zip(change.values.iter().flatten()) {
                    checks::value(value, column, input.len());
                }
            }
            Err(refused) => checks::letter(&refused.error),
        }
    }
}
