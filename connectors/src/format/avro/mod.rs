//! Avro: the writer's schema decodes, from a registry or from the statement.
//!
//! ```text
//! bytes, headers ─ wire ─▶ id, datum ─ registry ─▶ Schema ─ datum ─▶ Payload { schema, node }
//!                                         │  client (HTTP) ─ schema ─ resolve (the reader's schema)
//!                                         └─ cannot be asked: Wait, the message is tried again
//! ```
//!
//! Why our own parser and decoder, and not the `apache-avro` crate's, which is the oracle in the
//! tests: its parsed schema has no place for the annotations of primitive types, and Connect says
//! there what a `long` or a `string` means (`connect.name`); its decoder takes bytes that end too
//! early for null; it refuses whole schemas for defaults that Connect writes; and it copies every text
//! and every field's name of every message. Ours reads into [`Node`]s that borrow from the message and
//! from the schema.
//!
//! Invariants: what is read is what the writer's schema says, resolved to the reader's where there is
//! one; any bytes make a value or a dead letter that says what is wrong, at which byte and field.
//!
//! Limits: no single-object encoding and no container files; without a registry all messages have the
//! schema of the statement.

mod client;
mod connect;
mod datum;
mod registry;
mod resolve;
mod schema;
mod special;
mod subjects;
mod wire;

use std::sync::Arc;

use engine::error::DataError;
use engine::model::shorten;

use super::{Failure, Node, Payload};
pub use client::Address;
pub use registry::Registry;
pub use schema::{CONNECT_TYPES_MAX, Schema};
pub use subjects::Subjects;
pub use wire::{Headers, SchemaId, locate};

/// Where the schemas of a format come from. Clones share what is known.
#[derive(Debug, Clone)]
pub enum Schemas {
    /// The statement: messages are values and nothing else.
    Inline(Arc<Schema>),
    /// A registry: messages name their schema.
    Registry(Registry),
}

/// The schema of the last message: nearly always that of the next.
#[derive(Debug, Default)]
pub(super) struct Last {
    known: Option<(Option<SchemaId>, Arc<Schema>)>,
}

/// The schema that values written by `writer` are read by, as `reader` has them.
///
/// Errors: the reason why the one cannot be read as the other, as half a sentence.
pub fn resolved(writer: &Schema, reader: &Schema) -> Result<Schema, String> {
    resolve::resolve(writer, reader)
}

/// Decodes a value that has no id in front. `what` names it in errors: `key`, `value`.
pub fn decode<'a>(
    schema: &'a Schema,
    bytes: &'a [u8],
    what: &str,
) -> Result<Payload<'a>, DataError> {
    decode_from(schema, bytes, 0, None, what)
}

impl Last {
    /// Decodes one key or value.
    pub(super) fn read<'a>(
        &'a mut self,
        schemas: &Schemas,
        bytes: &'a [u8],
        headers: &Headers<'_>,
        what: &str,
    ) -> Result<Payload<'a>, Failure> {
        let (id, datum, schema) = match schemas {
            Schemas::Inline(schema) => (None, bytes, Arc::clone(schema)),
            Schemas::Registry(registry) => {
                let (id, datum) = wire::locate(bytes, headers, what)?;
                let schema = match &self.known {
                    Some((known, schema)) if *known == Some(id) => Arc::clone(schema),
                    _ => registry.schema(id)?,
                };
                (Some(id), datum, schema)
            }
        };
        // Held here, because what is read borrows from it.
        let (_, schema) = self.known.insert((id, schema));
        let before = bytes.len() - datum.len();
        Ok(decode_from(schema, datum, before, id, what)?)
    }
}

/// Decodes bytes that begin at byte `before` of the message's part.
fn decode_from<'a>(
    schema: &'a Schema,
    bytes: &'a [u8],
    before: usize,
    id: Option<SchemaId>,
    what: &str,
) -> Result<Payload<'a>, DataError> {
    let node = datum::read(schema, bytes).map_err(|broken| {
        let of = id.map_or_else(|| "its schema".to_owned(), |id| id.to_string());
        let path = broken.path();
        let field = match path.is_empty() {
            true => String::new(),
            false => format!(", field {}", shorten(&path)),
        };
        let at = before + broken.at;
        let detail = format!(
            "the {what} does not follow {of} at byte {at}{field}: {}",
            broken.reason
        );
        DataError::new("invalid-avro", detail)
            .expected("a value of its schema, and nothing behind it")
    })?;
    // A union of events at the root: the branch is the event.
    let (place, node) = match node {
        Node::Branch(place, node) => (place, *node),
        node => (0, node),
    };
    Ok(Payload {
        schema: schema.connect.get(place).cloned(),
        node,
    })
}
