//! From the bytes of a message to a tree of values, with the schema that came along.
//!
//! The idea: every envelope reads [`Node`]s and [`ConnectSchema`]s and never bytes, so a format is
//! one module that makes them. JSON carries Kafka Connect's schema beside the payload, or none; raw
//! formats are one value; Avro maps its own schema to the same [`ConnectSchema`] (Connect's logical
//! type names travel in the property `connect.name`); the fields of CSV are texts that each column
//! reads by its own type.
//!
//! ```text
//! bytes ─ json ─▶ Payload { schema?, node } ┐
//! bytes ─ raw  ─▶ Payload { node }          ├─▶ envelope
//! bytes ─ avro ─▶ Payload { schema, node }  │
//! bytes ─ csv  ─▶ Payload { schema, node }  ┘
//! ```
//!
//! Invariants: numbers keep their digits until a column's type is known; members keep their order;
//! a [`Node`] borrows from the message, and from the schema that it was read by. A format that needs
//! the world (a registry) and does not get it says [`Wait`]: nothing was read. Limits: nesting at most
//! [`json::DEPTH_MAX`].

pub mod avro;
pub mod connect;
pub mod csv;
pub mod json;
pub mod raw;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use engine::error::{DataError, WorldError};
use engine::model::preview;
use serde_json::Value as Json;

pub use connect::{ConnectKind, ConnectSchema};

/// How the bytes of a key or a value are written.
#[derive(Debug, Clone, Default)]
pub enum Format {
    /// JSON, bare or as `{"schema":…,"payload":…}`.
    #[default]
    Json,
    /// UTF-8 text: one value.
    Text,
    /// Bytes: one value.
    Bytes,
    /// Avro.
    Avro(avro::Schemas),
    /// One record of CSV.
    Csv(Arc<csv::Csv>),
}

/// Why a key or a value was not read.
#[derive(Debug)]
pub enum Failure {
    /// It is bad.
    Data(DataError),
    /// The world did not let us.
    Wait(Wait),
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Failure::Data(error)
    }
}

/// What is needed to read a message could not be had. Nothing was read of it, and nothing is known
/// of it: it is to be tried again.
#[derive(Debug)]
pub struct Wait {
    /// Why.
    pub error: WorldError,
    /// When trying again can help, counted from now.
    pub after: Duration,
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
    /// An integer, from formats that have them.
    Int(i64),
    /// A double, from formats that have them; also NaN and infinities.
    Float(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// Bytes, from formats that have them.
    Bytes(Cow<'a, [u8]>),
    /// A list.
    Array(Vec<Node<'a>>),
    /// Members in their order; of equal names the last counts.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
    /// A value of one of several types, and which: the field of the same place in a schema of
    /// [`ConnectKind::Union`].
    Branch(usize, Box<Node<'a>>),
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
            Node::Branch(_, node) => node.get(name),
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
            Node::Branch(_, node) => node.as_str(),
            _ => None,
        }
    }

    /// An integer; also one written as a string, as some converters do.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Node::Number(text) | Node::Text(text) => text.parse().ok(),
            Node::Int(value) => u64::try_from(*value).ok(),
            Node::Branch(_, node) => node.as_u64(),
            _ => None,
        }
    }

    /// A signed integer.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Node::Number(text) => text.parse().ok(),
            Node::Int(value) => Some(*value),
            Node::Branch(_, node) => node.as_i64(),
            _ => None,
        }
    }

    /// The names of an object's members, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let members = match self {
            Node::Object(members) => &members[..],
            Node::Branch(_, node) => match &**node {
                Node::Object(members) => &members[..],
                _ => &[],
            },
            _ => &[],
        };
        members.iter().map(|(name, _)| &**name)
    }

    /// The same value for `serde_json`: numbers beyond 64 bits become doubles, bytes base64, NaN
    /// and infinities their names.
    pub fn to_json(&self) -> Json {
        match self {
            Node::Null => Json::Null,
            Node::Bool(value) => Json::from(*value),
            Node::Number(text) => number_json(text),
            Node::Int(value) => Json::from(*value),
            Node::Float(value) if value.is_finite() => Json::from(*value),
            Node::Float(value) if value.is_nan() => Json::from("NaN"),
            Node::Float(value) if *value > 0.0 => Json::from("Infinity"),
            Node::Float(_) => Json::from("-Infinity"),
            Node::Text(text) => Json::from(&**text),
            Node::Bytes(bytes) => engine::model::Value::Bytes(Arc::from(&**bytes))
                .to_json(engine::model::SqlType::Bytea),
            Node::Array(items) => items.iter().map(Node::to_json).collect(),
            Node::Object(members) => members
                .iter()
                .map(|(name, node)| (name.to_string(), node.to_json()))
                .collect(),
            Node::Branch(_, node) => node.to_json(),
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
    avro: avro::Last,
}

impl Reader {
    /// A reader of one format.
    pub fn new(format: Format) -> Self {
        Reader {
            format,
            ..Reader::default()
        }
    }

    /// Decodes the bytes of `what` (`key`, `value`) of a message with these headers. No bytes are
    /// `Null`.
    pub fn read<'a>(
        &'a mut self,
        bytes: Option<&'a [u8]>,
        headers: &avro::Headers<'_>,
        what: &str,
    ) -> Result<Payload<'a>, Failure> {
        let bare = |node| Payload { schema: None, node };
        let Some(bytes) = bytes else {
            return Ok(bare(Node::Null));
        };
        match &self.format {
            Format::Text => Ok(raw::text(bytes, what).map(bare)?),
            Format::Bytes => Ok(bare(Node::Bytes(Cow::Borrowed(bytes)))),
            Format::Json => {
                let (schema, node) = json::parse_wrapped(bytes, what)?;
                let schema = schema
                    .map(|text| self.schemas.get(text, what))
                    .transpose()?
                    .flatten();
                Ok(Payload { schema, node })
            }
            Format::Avro(schemas) => self.avro.read(schemas, bytes, headers, what),
            Format::Csv(csv) => Ok(csv.read(bytes, what)?),
        }
    }
}
