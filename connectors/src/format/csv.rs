//! CSV: one record a message.
//!
//! ```text
//! 7,"Reset, please",,2026-11-21   with the columns (id, title, body, day)
//! ─▶ {"id": 7, "title": "Reset, please", "body": null, "day": "2026-11-21"}
//! ```
//!
//! Fields stand in the order of the columns, or of the names that the statement gives. A field in
//! quotes may hold the delimiter, line breaks, and a quote written twice. A field that is the NULL
//! text and stands without quotes is null: so, as in PostgreSQL's COPY, an empty field is NULL and
//! `""` is an empty text. Each column reads its text by its own type ([`ConnectKind::Literal`]).
//!
//! Invariants: every record has exactly as many fields as there are names; fields without escapes
//! are borrowed. Limits: one delimiter of one byte; the quote is `"`.

use std::borrow::Cow;
use std::sync::Arc;

use engine::error::DataError;

use super::{ConnectKind, ConnectSchema, Node, Payload, raw};

/// How records are written.
#[derive(Debug)]
pub struct Csv {
    delimiter: u8,
    null: String,
    names: Vec<String>,
    schema: Arc<ConnectSchema>,
}

/// A field, and whether it stood in quotes.
type Field<'a> = (Cow<'a, str>, bool);

impl Csv {
    /// Records of the columns `names`, in their order.
    ///
    /// # Panics
    /// When the delimiter is not ASCII, or a quote or a line break.
    pub fn new(delimiter: u8, null: &str, names: Vec<String>) -> Csv {
        let is_possible = delimiter.is_ascii() && !matches!(delimiter, b'"' | b'\n' | b'\r');
        assert!(is_possible, "the delimiter {delimiter:#04x}");
        let of = |kind, fields| ConnectSchema {
            kind,
            name: None,
            parameters: Vec::new(),
            fields,
            items: None,
            is_optional: true,
            default: None,
        };
        let literal = |name: &String| (name.clone(), of(ConnectKind::Literal, Vec::new()));
        let fields = names.iter().map(literal).collect();
        Csv {
            delimiter,
            null: null.to_owned(),
            schema: Arc::new(of(ConnectKind::Struct, fields)),
            names,
        }
    }

    /// The names in a header line.
    ///
    /// Errors: a line that is no record, or has a name twice.
    pub fn header(delimiter: u8, line: &str) -> Result<Vec<String>, String> {
        let fields =
            split(line, delimiter).map_err(|(at, reason)| format!("byte {at}: {reason}"))?;
        let mut names: Vec<String> = Vec::new();
        for (name, _) in fields {
            let name = name.trim().to_owned();
            if name.is_empty() || names.contains(&name) {
                return Err(format!("\"{name}\" is no new name"));
            }
            names.push(name);
        }
        Ok(names)
    }

    /// Reads one record. `what` names the part of the message: `key`, `value`.
    pub fn read<'a>(&'a self, bytes: &'a [u8], what: &str) -> Result<Payload<'a>, DataError> {
        let text = raw::utf8(bytes, what)?;
        let fields = split(text, self.delimiter).map_err(|(at, reason)| {
            let detail = format!("the {what} is not a CSV record at byte {at}: {reason}");
            DataError::new("invalid-csv", detail).expected("one record of RFC 4180")
        })?;
        if fields.len() != self.names.len() {
            return Err(self.miscounted(fields.len(), what));
        }
        let members = self
            .names
            .iter()
            .zip(fields)
            .map(|(name, (text, is_quoted))| {
                let is_null = !is_quoted && *text == *self.null;
                let node = if is_null {
                    Node::Null
                } else {
                    Node::Text(text)
                };
                (Cow::Borrowed(&**name), node)
            });
        Ok(Payload {
            schema: Some(Arc::clone(&self.schema)),
            node: Node::Object(members.collect()),
        })
    }

    fn miscounted(&self, found: usize, what: &str) -> DataError {
        let wanted = self.names.len();
        let which = match self.names.get(found..) {
            Some([first, ..]) => format!("column \"{first}\" has none"),
            _ => format!("field {} has no column", wanted + 1),
        };
        let fields = if found == 1 { "field" } else { "fields" };
        let detail = format!("the {what} has {found} {fields} for {wanted} columns: {which}");
        DataError::new("invalid-csv", detail)
            .expected(self.names.join(", "))
            .hint("name the fields in their order: HEADER 'a,b,c'")
    }
}

/// The fields of one record, at most one line break behind it. Errors: the byte and what is wrong.
fn split(text: &str, delimiter: u8) -> Result<Vec<Field<'_>>, (usize, &'static str)> {
    let bytes = text.as_bytes();
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let field = match bytes.get(at) {
            Some(b'"') => {
                let (field, end) = quoted(text, at + 1)?;
                at = end;
                (field, true)
            }
            _ => {
                let start = at;
                let is_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\n' | b'\r');
                at += bytes[at..].iter().take_while(|byte| !is_end(byte)).count();
                (Cow::Borrowed(&text[start..at]), false)
            }
        };
        fields.push(field);
        match &bytes[at..] {
            [] | b"\n" | b"\r" | b"\r\n" => return Ok(fields),
            [byte, ..] if *byte == delimiter => at += 1,
            [b'\n' | b'\r', ..] => return Err((at, "a second line")),
            _ => return Err((at, "text behind a closing quote")),
        }
    }
}

/// The field that begins at `start`, behind its quote, and where it ends.
fn quoted(text: &str, start: usize) -> Result<(Cow<'_, str>, usize), (usize, &'static str)> {
    let bytes = text.as_bytes();
    let mut owned = String::new();
    let (mut from, mut at) = (start, start);
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (None, _) => return Err((start - 1, "a quote is not closed")),
            (Some(b'"'), Some(b'"')) => {
                owned.push_str(&text[from..=at]);
                at += 2;
                from = at;
            }
            (Some(b'"'), _) => {
                let rest = &text[from..at];
                let field = match owned.is_empty() {
                    true => Cow::Borrowed(rest),
                    false => Cow::Owned(owned + rest),
                };
                return Ok((field, at + 1));
            }
            (Some(_), _) => at += 1,
        }
    }
}
