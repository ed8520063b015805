//! Where a message says which schema it was written by.
//!
//! | where | form |
//! |---|---|
//! | before the value | a byte 0 and the id, 4 bytes big endian (Confluent) |
//! | header `__value_schema_id` | a byte 0 and the id, or a byte 1 and a GUID of 16 bytes (Confluent) |
//! | header `apicurio.value.globalId`, `apicurio.value.contentId` | 8 bytes big endian (Apicurio) |
//!
//! A key has the same with `key` for `value`. A header wins: then nothing stands before the value.

use std::fmt;

use engine::error::DataError;

/// Header names and values, in order.
pub type Headers<'h> = [(&'h str, Option<&'h [u8]>)];

/// How a registry knows a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchemaId {
    /// The Confluent API's id.
    Number(u32),
    /// The Confluent API's GUID.
    Guid([u8; 16]),
    /// Apicurio's id of an artifact's version.
    Global(u64),
    /// Apicurio's id of a content, which the Confluent API of Apicurio counts by.
    Content(u64),
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaId::Number(id) => write!(f, "schema {id}"),
            SchemaId::Guid(bytes) => write!(f, "schema {}", super::special::uuid(bytes)),
            SchemaId::Global(id) => write!(f, "schema with globalId {id}"),
            SchemaId::Content(id) => write!(f, "schema with contentId {id}"),
        }
    }
}

/// The schema's id and the bytes of the value. `what` is `key` or `value`.
///
/// Errors: no id where one belongs, or one that no registry gives.
pub fn locate<'a>(
    bytes: &'a [u8],
    headers: &Headers<'_>,
    what: &str,
) -> Result<(SchemaId, &'a [u8]), DataError> {
    // Of headers with one name the last counts.
    for (name, value) in headers.iter().rev() {
        if let Some(form) = header_form(name, what) {
            let id = header_id(form, value.unwrap_or_default());
            let id = id.ok_or_else(|| bad_header(name, value.unwrap_or_default()))?;
            return Ok((id, bytes));
        }
    }
    match bytes {
        [0, 0, 0, 0, 0, ..] => Err(DataError::new(
            "no-schema-id",
            format!("the {what} names the schema 0, which no registry has"),
        )
        .expected("a byte 0, then the schema's id in 4 bytes")
        .hint("Apicurio writes ids of 8 bytes unless its converter has as-confluent=true")),
        [0, a, b, c, d, rest @ ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            Ok((SchemaId::Number(id), rest))
        }
        _ => Err(no_id(bytes, what)),
    }
}

#[derive(Clone, Copy)]
enum Form {
    Confluent,
    Global,
    Content,
}

/// Whether a header of this name has the id of the key's or the value's schema.
fn header_form(name: &str, what: &str) -> Option<Form> {
    if let Some(rest) = name.strip_prefix("apicurio.") {
        return match rest.strip_prefix(what)? {
            ".globalId" => Some(Form::Global),
            ".contentId" => Some(Form::Content),
            _ => None,
        };
    }
    let rest = name.strip_prefix("__")?.strip_prefix(what)?;
    (rest == "_schema_id").then_some(Form::Confluent)
}

fn header_id(form: Form, value: &[u8]) -> Option<SchemaId> {
    let number = || match value.len() {
        4 => Some(u64::from(u32::from_be_bytes(value.try_into().ok()?))),
        8 => Some(u64::from_be_bytes(value.try_into().ok()?)),
        _ => None,
    };
    match (form, value) {
        (Form::Confluent, [0, id @ ..]) => {
            let id = u32::from_be_bytes(id.try_into().ok()?);
            Some(SchemaId::Number(id))
        }
        (Form::Confluent, [1, guid @ ..]) => Some(SchemaId::Guid(guid.try_into().ok()?)),
        (Form::Confluent, _) => None,
        (Form::Global, _) => number().map(SchemaId::Global),
        (Form::Content, _) => number().map(SchemaId::Content),
    }
}

fn bad_header(name: &str, value: &[u8]) -> DataError {
    let detail = format!(
        "the header {name} has {} bytes that are no schema id",
        value.len()
    );
    DataError::new("no-schema-id", detail)
        .expected("an id of 4 or 8 bytes, or Confluent's version byte with an id or a GUID")
}

fn no_id(bytes: &[u8], what: &str) -> DataError {
    let begins = match bytes.first() {
        None => "is empty".to_owned(),
        Some(0) => format!("has {} bytes", bytes.len()),
        Some(byte) => format!("begins with the byte {byte:#04x}"),
    };
    let detail = format!("the {what} {begins}, and no header names its schema");
    DataError::new("no-schema-id", detail)
        .expected("a byte 0, then the schema's id in 4 bytes; or the id in a header")
        .hint(
            "Apicurio's converter puts the id into a header, which something dropped on the way: set \
             headers.enabled=false and as-confluent=true, or keep the headers",
        )
}
