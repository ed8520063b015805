//! Avro schemas, compiled for reading.
//!
//! The idea: a table of types that name each other by number, so that a type may contain itself,
//! and beside it the [`ConnectSchema`] that the envelopes know. What a value *means* is taken from
//! Connect's annotations (`connect.name`, `connect.parameters`), else from Avro's logical type.
//!
//! ```text
//! {"type":"long","connect.name":"io.debezium.time.MicroTimestamp"} ─┬▶ Type { Long }
//!                                                                  └▶ ConnectSchema { Integer, name }
//! ```
//!
//! Invariants: every [`TypeId`] of a compiled schema is one of its types; a compiled schema can be
//! read without recursion beyond [`DEPTH_MAX`](super::super::json::DEPTH_MAX). Unknown logical types
//! are read as what they annotate, as the specification asks for; so are names that Avro's grammar
//! forbids, because registries hold some. Limits: [`AVRO_SCHEMA_BYTES_MAX`], [`CONNECT_TYPES_MAX`].
//!
//! Source: the Avro 1.12 specification.

use std::collections::HashMap;
use std::sync::Arc;

use engine::limits::AVRO_SCHEMA_BYTES_MAX;
use serde_json::{Map, Value as Json};

use super::connect;
use crate::format::ConnectSchema;

/// Types of one schema, each counted as often as it is named: a few lines of schema can name each
/// other into billions.
pub const CONNECT_TYPES_MAX: usize = 65_536;
/// Nesting of a schema's text.
const NESTING_MAX: usize = 100;

/// A place in [`Schema::types`].
pub(super) type TypeId = usize;

/// A schema that values can be read by.
#[derive(Debug)]
pub struct Schema {
    pub(super) types: Vec<Type>,
    pub(super) root: TypeId,
    /// What the root is; of a union of several, one for each branch.
    pub(super) connect: Vec<Arc<ConnectSchema>>,
}

/// How bytes are read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum(Vec<String>),
    Array(TypeId),
    Map(TypeId),
    Union(Vec<TypeId>),
    Record(Vec<Field>),
    /// A type that the reader's schema does not take; the reason.
    Refused(String),
}

/// What is made of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// The value itself.
    Itself,
    /// Text of 16 bytes.
    Uuid,
    /// Text of months, days and milliseconds.
    Duration,
    /// Bytes that hold an integer and its scale.
    BigDecimal,
    /// Text of bytes (the reader's schema has a string).
    Text,
    /// Bytes of a text (the reader's schema has bytes).
    Bytes,
}

/// One type.
#[derive(Debug, Clone)]
pub(super) struct Type {
    pub(super) kind: Kind,
    pub(super) made: Made,
    /// The full name of a record, enum or fixed, and its aliases.
    pub(super) names: Vec<String>,
    /// The logical name that the envelopes know, with its parameters.
    pub(super) logical: Option<(String, Vec<(String, String)>)>,
    /// The symbol that stands for unknown ones.
    pub(super) default_symbol: Option<String>,
}

/// One field of a record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) type_id: TypeId,
    pub(super) default: Option<Json>,
    pub(super) origin: Origin,
}

/// Where a field's value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Origin {
    /// The bytes.
    Written,
    /// The bytes, but the reader's schema has no such field.
    Unread,
    /// The reader's default.
    Default(super::Node<'static>),
}

impl Schema {
    /// Compiles a schema's text; `references` are the texts of the schemas that it names, each
    /// behind those that it names itself.
    ///
    /// Errors: the reason, as half a sentence.
    pub fn parse(text: &str, references: &[String]) -> Result<Schema, String> {
        let bytes = text.len() + references.iter().map(String::len).sum::<usize>();
        if bytes > AVRO_SCHEMA_BYTES_MAX {
            return Err(format!(
                "it has {bytes} bytes; the limit AVRO_SCHEMA_BYTES_MAX is {AVRO_SCHEMA_BYTES_MAX}"
            ));
        }
        let mut parser = Parser::default();
        for reference in references {
            parser.text(reference)?;
        }
        let root = parser.text(text)?;
        Schema::compile(parser.types, root)
    }

    pub(super) fn compile(types: Vec<Type>, root: TypeId) -> Result<Schema, String> {
        let connect = connect::schemas(&types, root)?;
        Ok(Schema {
            types,
            root,
            connect,
        })
    }
}

impl Type {
    pub(super) fn new(kind: Kind) -> Type {
        Type {
            kind,
            made: Made::Itself,
            names: Vec::new(),
            logical: None,
            default_symbol: None,
        }
    }
}

/// The branches of a union that have values: neither null nor refused.
pub(super) fn branches(types: &[Type], all: &[TypeId]) -> Vec<TypeId> {
    let all = all.iter().copied();
    all.filter(|id| !matches!(types[*id].kind, Kind::Null | Kind::Refused(_)))
        .collect()
}

#[derive(Default)]
struct Parser {
    types: Vec<Type>,
    /// By full name.
    names: HashMap<String, TypeId>,
    nesting: usize,
}

type Parsed<T> = Result<T, String>;

impl Parser {
    fn text(&mut self, text: &str) -> Parsed<TypeId> {
        let json = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"));
        // A registry may hold the bare name of a primitive type, as Avro's own tools write it.
        match json {
            Err(_) if primitive(text.trim()).is_some() => self.schema(&Json::from(text.trim()), ""),
            json => self.schema(&json?, ""),
        }
    }

    fn push(&mut self, found: Type) -> TypeId {
        self.types.push(found);
        self.types.len() - 1
    }

    fn schema(&mut self, json: &Json, namespace: &str) -> Parsed<TypeId> {
        if self.nesting == NESTING_MAX {
            return Err("it is nested too deeply".to_owned());
        }
        self.nesting += 1;
        let found = match json {
            Json::String(name) => self.named(name, namespace),
            Json::Array(branches) => self.union(branches, namespace),
            Json::Object(members) => self.object(members, namespace),
            other => Err(format!("{other} is no schema")),
        };
        self.nesting -= 1;
        found
    }

    /// A primitive type, or one that was defined before.
    fn named(&mut self, name: &str, namespace: &str) -> Parsed<TypeId> {
        if let Some(kind) = primitive(name) {
            return Ok(self.push(Type::new(kind)));
        }
        let known = self.names.get(&full_name(name, namespace));
        let known = known.or_else(|| self.names.get(name)).copied();
        known.ok_or_else(|| format!("the type \"{name}\" is not defined"))
    }

    fn union(&mut self, branches: &[Json], namespace: &str) -> Parsed<TypeId> {
        let ids = branches.iter().map(|branch| match branch {
            Json::Array(_) => Err("a union lies directly in a union".to_owned()),
            branch => self.schema(branch, namespace),
        });
        let ids: Vec<TypeId> = ids.collect::<Parsed<_>>()?;
        match ids.is_empty() {
            true => Err("a union has no branches".to_owned()),
            false => Ok(self.push(Type::new(Kind::Union(ids)))),
        }
    }

    fn object(&mut self, members: &Map<String, Json>, namespace: &str) -> Parsed<TypeId> {
        let name = match members.get("type") {
            Some(Json::String(name)) => name,
            // {"type":{"type":…}}
            Some(inner) => return self.schema(inner, namespace),
            None => return Err("a schema has no \"type\"".to_owned()),
        };
        let kind = match &**name {
            "record" | "error" => return self.record(members, namespace),
            "enum" => Kind::Enum(texts(members, "symbols")?),
            "fixed" => {
                let size = members.get("size").and_then(Json::as_u64);
                let size = size.and_then(|size| usize::try_from(size).ok());
                Kind::Fixed(size.ok_or("a fixed has no \"size\"")?)
            }
            "array" => Kind::Array(self.schema(inner(members, "items")?, namespace)?),
            "map" => Kind::Map(self.schema(inner(members, "values")?, namespace)?),
            name => match primitive(name) {
                Some(kind) => kind,
                None => return self.named(name, namespace),
            },
        };
        let mut found = Type::new(kind);
        connect::annotate(&mut found, members);
        if let Kind::Enum(_) = found.kind {
            found.default_symbol = text(members, "default").map(str::to_owned);
        }
        match found.kind {
            Kind::Enum(_) | Kind::Fixed(_) => {
                let id = self.define(members, namespace)?;
                found.names = std::mem::take(&mut self.types[id].names);
                self.types[id] = found;
                Ok(id)
            }
            _ => Ok(self.push(found)),
        }
    }

    /// Makes room for a named type, so that what lies inside may name it.
    fn define(&mut self, members: &Map<String, Json>, namespace: &str) -> Parsed<TypeId> {
        let name = text(members, "name").ok_or("a named type has no \"name\"")?;
        let namespace = text(members, "namespace").unwrap_or(namespace);
        let full = full_name(name, namespace);
        let space = full.rsplit_once('.').map_or("", |(space, _)| space);
        let aliases = match members.get("aliases") {
            Some(_) => texts(members, "aliases")?,
            None => Vec::new(),
        };
        let aliases = aliases.iter().map(|alias| full_name(alias, space));
        let mut found = Type::new(Kind::Null);
        found.names = std::iter::once(full.clone()).chain(aliases).collect();
        let id = self.push(found);
        match self.names.insert(full, id) {
            None => Ok(id),
            Some(_) => Err(format!("the type \"{name}\" is defined twice")),
        }
    }

    fn record(&mut self, members: &Map<String, Json>, namespace: &str) -> Parsed<TypeId> {
        let id = self.define(members, namespace)?;
        let space = self.types[id].names[0].rsplit_once('.');
        let space = space.map_or(String::new(), |(space, _)| space.to_owned());
        let Some(Json::Array(all)) = members.get("fields") else {
            return Err("a record has no \"fields\"".to_owned());
        };
        let mut fields: Vec<Field> = Vec::with_capacity(all.len());
        for field in all {
            let field = field.as_object().ok_or("a field is no object")?;
            let name = text(field, "name").ok_or("a field has no \"name\"")?;
            let inside = |reason| format!("field \"{name}\": {reason}");
            let type_id = inner(field, "type").and_then(|json| self.schema(json, &space));
            let aliases = match field.get("aliases") {
                Some(_) => texts(field, "aliases").map_err(inside)?,
                None => Vec::new(),
            };
            fields.push(Field {
                name: name.to_owned(),
                aliases,
                type_id: type_id.map_err(inside)?,
                default: field.get("default").cloned(),
                origin: Origin::Written,
            });
        }
        let mut found = Type::new(Kind::Record(fields));
        found.names = std::mem::take(&mut self.types[id].names);
        connect::annotate(&mut found, members);
        self.types[id] = found;
        Ok(id)
    }
}

fn primitive(name: &str) -> Option<Kind> {
    Some(match name {
        "null" => Kind::Null,
        "boolean" => Kind::Boolean,
        "int" => Kind::Int,
        "long" => Kind::Long,
        "float" => Kind::Float,
        "double" => Kind::Double,
        "bytes" => Kind::Bytes,
        "string" => Kind::String,
        _ => return None,
    })
}

fn full_name(name: &str, namespace: &str) -> String {
    match namespace {
        _ if name.contains('.') => name.to_owned(),
        "" => name.to_owned(),
        namespace => format!("{namespace}.{name}"),
    }
}

pub(super) fn text<'j>(members: &'j Map<String, Json>, name: &str) -> Option<&'j str> {
    members.get(name).and_then(Json::as_str)
}

fn inner<'j>(members: &'j Map<String, Json>, name: &str) -> Parsed<&'j Json> {
    let found = members.get(name);
    found.ok_or_else(|| format!("\"{name}\" is missing"))
}

fn texts(members: &Map<String, Json>, name: &str) -> Parsed<Vec<String>> {
    let texts = members.get(name).and_then(Json::as_array);
    let texts = texts.and_then(|all| {
        let texts = all.iter().map(|one| one.as_str().map(str::to_owned));
        texts.collect()
    });
    texts.ok_or_else(|| format!("\"{name}\" is no list of names"))
}
