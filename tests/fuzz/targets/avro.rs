//! Avro: framing, schemas, values by schemas, and resolution to a reader's schema.
//!
//! An input begins with a byte that says what it is: texts of schemas and a value (any bytes), the
//! choices of which a schema and a value are made, or a framed message. A value that was made must be
//! read as what it was made of; the rest of the laws hold for any bytes.

use std::sync::Arc;

use connectors::envelope::{Decoder, Envelope, Options};
use connectors::format::avro::{self, Schema, Schemas};
use connectors::format::{Format, Node};
use engine::model::SqlType;

use super::avro_maker::Maker;
use super::checks;
use crate::dice::Dice;

/// Values that take no bytes, and values that a byte may stand for: what `avro::decode` promises.
const EMPTY_VALUES_MAX: usize = 65_536;
const VALUES_PER_BYTE: usize = 8;

pub fn run(input: &[u8]) {
    match input.split_first() {
        Some((b'F', rest)) => framing(rest),
        Some((b'M', rest)) => made(rest),
        Some((_, rest)) => texts(rest),
        None => {}
    }
}

/// The writer's schema, the reader's, and a value, apart by bytes 255.
fn texts(input: &[u8]) {
    let mut parts = input.splitn(3, |byte| *byte == 255);
    let mut part = || parts.next().unwrap_or_default();
    let (writer, reader, value) = (part(), part(), part());
    let parse = |text: &[u8]| Schema::parse(std::str::from_utf8(text).ok()?, &[]).ok();
    let Some(writer) = parse(writer) else {
        return;
    };
    read(&writer, value);
    let own = avro::resolved(&writer, &writer);
    if let Ok(own) = own {
        read(&own, value);
    }
    if let Some(reader) = parse(reader) {
        // References: what the reader names may be the writer's.
        match avro::resolved(&writer, &reader) {
            Ok(resolved) => drop(read(&resolved, value)),
            Err(reason) => assert!(!reason.is_empty()),
        }
        drop(avro::resolved(&reader, &writer));
    }
    rows(writer, value);
}

/// A schema and a value by choice; then the value damaged, and by another schema.
fn made(input: &[u8]) {
    let mut dice = Dice::of(input);
    let mut maker = Maker::new(&mut dice);
    let json = maker.record(4);
    let mut bytes = Vec::new();
    let expected = maker.value(&json, 5, &mut bytes);
    let wanted = maker.evolved(&json);
    let text = json.to_string();
    let schema = Schema::parse(&text, &[]);
    let schema = schema.unwrap_or_else(|reason| panic!("{reason}: {text}"));
    let found = avro::decode(&schema, &bytes, "value");
    let found = found.unwrap_or_else(|error| panic!("{error}: {bytes:?} by {text}"));
    checks::same(&found.node, &expected);
    let own = avro::resolved(&schema, &schema);
    let own = own.unwrap_or_else(|reason| panic!("{reason}: {text} as itself"));
    checks::same(
        &avro::decode(&own, &bytes, "value").map(|payload| payload.node),
        &Ok(expected),
    );
    if let Ok(reader) = Schema::parse(&wanted.to_string(), &[])
        && let Ok(resolved) = avro::resolved(&schema, &reader)
    {
        read(&resolved, &bytes);
    }
    for _ in 0..2 {
        if !bytes.is_empty() {
            let at = dice.index(bytes.len());
            bytes[at] = dice.below(256) as u8;
        }
    }
    read(&schema, &bytes);
    rows(schema, &bytes);
}

/// Reads any bytes by a schema. Whether they are a value.
fn read(schema: &Schema, bytes: &[u8]) -> bool {
    let found = avro::decode(schema, bytes, "value");
    checks::same(&found, &avro::decode(schema, bytes, "value"));
    match &found {
        Ok(payload) => {
            let most = bytes.len() * VALUES_PER_BYTE + EMPTY_VALUES_MAX;
            let nodes = checks::nodes(&payload.node);
            assert!(nodes <= most, "{nodes} values of {} bytes", bytes.len());
            // Two that a big-decimal has beside itself.
            assert!(
                !matches!(payload.node, Node::Branch(..)),
                "the root is the branch"
            );
        }
        Err(error) => checks::letter(error),
    }
    found.is_ok()
}

/// A value as a row of all types.
fn rows(schema: Schema, bytes: &[u8]) {
    let format = Format::Avro(Schemas::Inline(Arc::new(schema)));
    let columns = checks::columns(SqlType::Text);
    let options = Options {
        value_format: format,
        ..Options::default()
    };
    let mut columns_but_key = columns.clone();
    columns_but_key.key = Vec::new();
    for schema in [columns, columns_but_key] {
        let decoder = Decoder::new(schema.clone(), Envelope::Append, options.clone());
        // Names of a schema are no bytes of its message.
        checks::message(&schema, decoder, None, bytes, bytes.len() + (1 << 20));
    }
}

/// Where a message says its schema: headers and value, apart by bytes 255.
fn framing(input: &[u8]) {
    const NAMES: [&str; 6] = [
        "__value_schema_id",
        "__key_schema_id",
        "apicurio.value.globalId",
        "apicurio.value.contentId",
        "apicurio.key.globalId",
        "other",
    ];
    let mut parts = input.split(|byte| *byte == 255);
    let value = parts.next().unwrap_or_default();
    let header = |part: &'_ [u8]| {
        let name = part.first().map(|at| NAMES[usize::from(*at) % NAMES.len()]);
        name.map(|name| (name, part.to_vec()))
    };
    let headers: Vec<_> = parts.filter_map(header).collect();
    let headers: Vec<(&str, Option<&[u8]>)> = headers
        .iter()
        .map(|(name, value)| (*name, Some(&value[1..])))
        .collect();
    for what in ["key", "value"] {
        let found = avro::locate(value, &headers, what);
        assert_eq!(found, avro::locate(value, &headers, what));
        match found {
            Ok((id, datum)) => {
                assert!(value.ends_with(datum) && value.len() - datum.len() <= 5);
                assert!(!id.to_string().is_empty());
            }
            Err(error) => checks::letter(&error),
        }
    }
}
