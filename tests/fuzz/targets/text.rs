//! Texts: CSV records, and fields that columns read by their own types.
//!
//! An input is a delimiter's number and a record. What is a record is held against the `csv` crate;
//! the fields that come of any input, written again, must read as they were.

use std::sync::Arc;

use connectors::envelope::{Decoder, Envelope, Options};
use connectors::format::csv::Csv;
use connectors::format::{ConnectKind, ConnectSchema, Format, Node};
use engine::model::{Column, SqlType};

use super::checks;

const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

pub fn run(input: &[u8]) {
    let Some((choice, record)) = input.split_first() else {
        return;
    };
    let delimiter = DELIMITERS[usize::from(*choice) % DELIMITERS.len()];
    let Ok(text) = std::str::from_utf8(record) else {
        return;
    };
    if let Some(fields) = fields(delimiter, text) {
        against_csv(delimiter, text, &fields);
        again(delimiter, &fields);
    }
    rows(delimiter, record);
    if let Ok(names) = Csv::header(delimiter, text) {
        assert!(
            names
                .iter()
                .all(|name| text.contains(&**name) || text.contains("\"\""))
        );
    }
    for column in checks::columns(SqlType::Text).columns {
        literal(text, &column);
    }
}

/// The fields of a record, whatever their number.
fn fields(delimiter: u8, text: &str) -> Option<Vec<Option<String>>> {
    // One more than its delimiters are the most that it can have.
    let most = text.bytes().filter(|byte| *byte == delimiter).count() + 1;
    let read = |count: usize| {
        let names = (0..count).map(|at| at.to_string()).collect();
        let csv = Csv::new(delimiter, "", names);
        csv.read(text.as_bytes(), "value")
            .map(|payload| match payload.node {
                Node::Object(members) => members
                    .into_iter()
                    .map(|(_, node)| node.as_str().map(str::to_owned))
                    .collect(),
                node => panic!("{node:?}"),
            })
    };
    match read(most) {
        Ok(fields) => Some(fields),
        Err(error) => {
            // "the value has 2 fields for 3 columns": delimiters in quotes.
            let found = error.detail.split_once(" has ")?.1;
            let count = found.split(' ').next()?.parse().ok()?;
            read(count).ok()
        }
    }
}

fn against_csv(delimiter: u8, text: &str, ours: &[Option<String>]) {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut records = reader.records();
    let Some(theirs) = records.next() else {
        // It passes over empty lines; ours are one field.
        return assert_eq!(ours, [None]);
    };
    let theirs = theirs.expect("UTF-8 is a record");
    let ours: Vec<&str> = ours
        .iter()
        .map(|field| field.as_deref().unwrap_or(""))
        .collect();
    assert_eq!(ours, theirs.iter().collect::<Vec<_>>());
    assert!(records.next().is_none(), "one record");
}

/// Fields written with quotes, null without, are the same fields.
fn again(delimiter: u8, fields: &[Option<String>]) {
    let written = fields.iter().map(|field| match field {
        Some(field) => format!("\"{}\"", field.replace('"', "\"\"")),
        None => String::new(),
    });
    let written = written.collect::<Vec<_>>();
    let written = written.join(&char::from(delimiter).to_string());
    assert_eq!(self::fields(delimiter, &written).as_deref(), Some(fields));
}

/// The record as a row of all types.
fn rows(delimiter: u8, record: &[u8]) {
    let schema = checks::columns(SqlType::Text);
    let names = schema.columns.iter().map(|column| column.name.clone());
    let csv = Csv::new(delimiter, "NULL", names.collect());
    let options = Options {
        value_format: Format::Csv(Arc::new(csv)),
        ..Options::default()
    };
    let decoder = Decoder::new(schema.clone(), Envelope::Append, options);
    checks::message(&schema, decoder, None, record, record.len());
}

/// A text that a column reads by its own type.
fn literal(text: &str, column: &Column) {
    let schema = ConnectSchema {
        kind: ConnectKind::Literal,
        name: None,
        parameters: Vec::new(),
        fields: Vec::new(),
        items: None,
        is_optional: true,
        default: None,
    };
    let node = Node::Text(text.into());
    let rules = connectors::envelope::Rules::default();
    let read = || connectors::envelope::types::value(&node, Some(&schema), column, &rules);
    checks::same(&read(), &read());
    match read() {
        Ok(value) => checks::value(&value, column, text.len()),
        Err(error) => {
            checks::letter(&error);
            assert_eq!(error.column(), Some(&*column.name), "{error}");
        }
    }
}
