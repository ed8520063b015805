//! From the bytes of a message to a tree of values, with the schema that came along.
//!
//! The idea: every envelope reads [`Node`]s and [`ConnectSchema`]s and never bytes, so a format is
//! one file that makes them. JSON carries Kafka Connect's schema beside the payload, or none; raw
//! formats are one value; Avro maps its own schema to the same [`ConnectSchema`] (Connect's logical
//! type names travel in the property `connect.name`).
//!
//! ```text
//! bytes ─ json ─▶ Payload { schema?, node } ┐
//! bytes ─ raw  ─▶ Payload { node }          ├─▶ envelope
//! bytes ─ avro ─▶ Payload { schema, node }  ┘   (the seam: one more arm of Reader::read)
//! ```
//!
//! Invariants: numbers keep their digits until a column's type is known; members keep their order;
//! a [`Node`] borrows from the message. Limits: nesting at most [`json::DEPTH_MAX`].

pub mod connect;
pub mod json;
pub mod raw;

use std::borrow::Cow;
use std::sync::Arc;

use engine::error::DataError;
use engine::model::preview;
use serde_json::Value as Json;

pub use connect::{ConnectKind, ConnectSchema};

/// How the bytes of a key or a value are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// JSON, bare or as `{"schema":…,"payload":…}`.
    #[default]
    Json,
    /// UTF-8 text: one value.
    Text,
    /// Bytes: one value.
    Bytes,
}

/// One value of a message, borrowing from it.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number in JSON's grammar, with all its digits.
    Number(Cow<'a, str>),
    /// A string.
    Text(Cow<'a, str>),
    /// Bytes, from formats that have them.
    Bytes(Cow<'a, [u8]>),
    /// A list.
    Array(Vec<Node<'a>>),
    /// Members in their order; of equal names the last counts.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// A member of an object; `None` where there is none, or where this is no object.
    pub fn get(&self, name: &str) -> Option<&Node<'a>> {
        match self {
            Node::Object(members) => members
                .iter()
                .rev()
                .find(|(member, _)| member == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// A member that is there and not null.
    pub fn some(&self, name: &str) -> Option<&Node<'a>> {
        self.get(name).filter(|node| !node.is_null())
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Node::Null)
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer; also one written as a string, as some converters do.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Node::Number(text) | Node::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// A signed integer.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Node::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The names of an object's members, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let members = match self {
            Node::Object(members) => &members[..],
            _ => &[],
        };
        members.iter().map(|(name, _)| &**name)
    }

    /// The same value for `serde_json`: numbers beyond 64 bits become doubles, bytes base64.
    pub fn to_json(&self) -> Json {
        match self {
            Node::Null => Json::Null,
            Node::Bool(value) => Json::from(*value),
            Node::Number(text) => number_json(text),
            Node::Text(text) => Json::from(&**text),
            Node::Bytes(bytes) => engine::model::Value::Bytes(Arc::from(&**bytes))
                .to_json(engine::model::SqlType::Bytea),
            Node::Array(items) => items.iter().map(Node::to_json).collect(),
            Node::Object(members) => members
                .iter()
                .map(|(name, node)| (name.to_string(), node.to_json()))
                .collect(),
        }
    }

    /// The value as JSON text of at most 80 characters, for messages.
    pub fn shortened(&self) -> String {
        preview(&self.to_json())
    }
}

fn number_json(text: &str) -> Json {
    if text == "-0" {
        return Json::from(-0.0);
    }
    let integer = text.parse::<i64>().map(Json::from);
    let integer = integer.or_else(|_| text.parse::<u64>().map(Json::from));
    integer.unwrap_or_else(|_| text.parse::<f64>().map_or(Json::Null, Json::from))
}

/// A decoded key or value.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload<'a> {
    /// The Connect schema that came with it.
    pub schema: Option<Arc<ConnectSchema>>,
    /// The value; `Null` also where the message had none.
    pub node: Node<'a>,
}

impl Payload<'_> {
    /// Of a message that has no such part.
    pub fn null() -> Self {
        Payload {
            schema: None,
            node: Node::Null,
        }
    }
}

/// Reads payloads of one format; remembers the schemas that it saw lately.
#[derive(Debug, Default)]
pub struct Reader {
    format: Format,
    schemas: connect::SchemaMemory,
}

impl Reader {
    /// A reader of one format.
    pub fn new(format: Format) -> Self {
        Reader {
            format,
            schemas: connect::SchemaMemory::default(),
        }
    }

    /// Decodes the bytes of `what` (`key`, `value`). No bytes are `Null`.
    pub fn read<'a>(
        &mut self,
        bytes: Option<&'a [u8]>,
        what: &str,
    ) -> Result<Payload<'a>, DataError> {
        let bare = |node| Payload { schema: None, node };
        let Some(bytes) = bytes else {
            return Ok(bare(Node::Null));
        };
        match self.format {
            Format::Text => raw::text(bytes, what).map(bare),
            Format::Bytes => Ok(bare(Node::Bytes(Cow::Borrowed(bytes)))),
            Format::Json => {
                let (schema, node) = json::parse_wrapped(bytes, what)?;
                let schema = schema
                    .map(|text| self.schemas.get(text, what))
                    .transpose()?
                    .flatten();
                Ok(Payload { schema, node })
            }
        }
    }
}
