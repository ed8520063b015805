//! Kafka Connect's schemas, as JsonConverter writes them beside a payload.
//!
//! ```text
//! {"type":"int64","optional":true,"name":"io.debezium.time.MicroTimestamp","version":1,"field":"at"}
//! ```
//!
//! The name is the logical type: Debezium's and Connect's own say there what the primitive means.
//! Limits: [`SCHEMAS_MAX`] schemas are remembered by their text.

use std::sync::Arc;

use engine::error::DataError;
use engine::model::shorten;
use serde_json::Value as Json;

use super::{Node, json};

/// Schemas remembered per reader: key, value, and those of a topic that carries several tables.
pub const SCHEMAS_MAX: usize = 16;

/// Connect's primitive and complex types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectKind {
    /// `boolean`
    Boolean,
    /// `int8`, `int16`, `int32`, `int64`
    Integer,
    /// `float`, `double` (`float32`, `float64`)
    Float,
    /// `string`
    String,
    /// `bytes`: base64 in JSON
    Bytes,
    /// `array`
    Array,
    /// `map`
    Map,
    /// `struct`
    Struct,
    /// One of several, which are the fields; not a type of Connect's. See [`Node::Branch`].
    Union,
    /// A text that the column reads by its own type; not a type of Connect's.
    Literal,
}

/// One schema: a type, its logical name, and what lies inside.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectSchema {
    /// The type.
    pub kind: ConnectKind,
    /// The logical type, or the name of a struct.
    pub name: Option<String>,
    /// Parameters of the logical type: `scale`, `length`, `allowed`.
    pub parameters: Vec<(String, String)>,
    /// The fields of a struct, in order.
    pub fields: Vec<(String, ConnectSchema)>,
    /// The items of an array.
    pub items: Option<Box<ConnectSchema>>,
    /// Whether null is allowed.
    pub is_optional: bool,
    /// The default of the column, which Connect puts where a value is missing.
    pub default: Option<Json>,
}

impl ConnectSchema {
    /// Reads a schema. `None` for JSON `null` (a tombstone of a schema-carrying topic).
    pub fn parse(node: &Node<'_>, what: &str) -> Result<Option<ConnectSchema>, DataError> {
        if node.is_null() {
            return Ok(None);
        }
        let kind = match node.get("type").and_then(Node::as_str) {
            Some("boolean") => ConnectKind::Boolean,
            Some("int8" | "int16" | "int32" | "int64") => ConnectKind::Integer,
            Some("float" | "double" | "float32" | "float64") => ConnectKind::Float,
            Some("string") => ConnectKind::String,
            Some("bytes") => ConnectKind::Bytes,
            Some("array") => ConnectKind::Array,
            Some("map") => ConnectKind::Map,
            Some("struct") => ConnectKind::Struct,
            other => {
                let quoted = |name| format!("\"{}\"", shorten(name));
                let detail = format!(
                    "the schema of the {what} has the type {}",
                    other.map_or_else(|| "nothing".to_owned(), quoted)
                );
                return Err(DataError::new("invalid-schema", detail)
                    .expected("a Connect schema: boolean, int32, string, struct, …"));
            }
        };
        let text = |name| node.get(name).and_then(Node::as_str).map(str::to_owned);
        let mut fields = Vec::new();
        if let Some(Node::Array(nodes)) = node.get("fields") {
            for field in nodes {
                let name = field.get("field").and_then(Node::as_str);
                if let (Some(name), Some(schema)) = (name, ConnectSchema::parse(field, what)?) {
                    fields.push((name.to_owned(), schema));
                }
            }
        }
        let items = match node.get("items") {
            Some(items) => ConnectSchema::parse(items, what)?.map(Box::new),
            None => None,
        };
        let parameters = match node.get("parameters") {
            Some(Node::Object(members)) => members
                .iter()
                .filter_map(|(name, value)| Some((name.to_string(), value.as_str()?.to_owned())))
                .collect(),
            _ => Vec::new(),
        };
        Ok(Some(ConnectSchema {
            kind,
            name: text("name"),
            parameters,
            fields,
            items,
            is_optional: node.get("optional") == Some(&Node::Bool(true)),
            default: node.some("default").map(Node::to_json),
        }))
    }

    /// The schema of a field.
    pub fn field(&self, name: &str) -> Option<&ConnectSchema> {
        let mut fields = self.fields.iter();
        fields
            .find(|(field, _)| field == name)
            .map(|(_, schema)| schema)
    }

    /// A parameter of the logical type.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters
            .find(|(parameter, _)| parameter == name)
            .map(|(_, value)| &**value)
    }
}

/// The schemas seen lately, by their text: comparing bytes is much cheaper than parsing them.
#[derive(Debug, Default)]
pub struct SchemaMemory {
    known: Vec<(Box<str>, Option<Arc<ConnectSchema>>)>,
}

impl SchemaMemory {
    /// The schema of a text.
    pub fn get(&mut self, text: &str, what: &str) -> Result<Option<Arc<ConnectSchema>>, DataError> {
        if let Some((_, schema)) = self.known.iter().find(|(known, _)| **known == *text) {
            return Ok(schema.clone());
        }
        let schema = ConnectSchema::parse(&json::parse(text.as_bytes(), "schema")?, what)?;
        let schema = schema.map(Arc::new);
        if self.known.len() == SCHEMAS_MAX {
            self.known.remove(0);
        }
        self.known.push((text.into(), schema.clone()));
        Ok(schema)
    }
}
