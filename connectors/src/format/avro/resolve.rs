//! A writer's schema seen through a reader's: Avro's resolution, done once for a pair of schemas.
//!
//! The idea: what is read stays what the writer wrote, so the result is a schema again: the
//! writer's types in their order, with the reader's names, without what the reader has not, and
//! with the reader's defaults behind. What cannot be resolved is refused where a value meets it, not
//! before: a writer whose union has one branch too many is read as long as it does not use it.
//!
//! ```text
//! writer {a: int, b: string}  ┐
//! reader {x (alias a): long,  ├─▶ {x: int from the bytes, b: read and dropped, c: default 0}
//!         c: int = 0}         ┘
//! ```
//!
//! Promotions of numbers change nothing here: a column takes an int where it takes a long. The
//! logical type is the writer's, else the reader's: the writer knows what it counted.
//!
//! Source: the Avro 1.12 specification, "Schema Resolution".

use std::borrow::Cow;
use std::collections::HashMap;

use engine::model::preview;
use serde_json::Value as Json;

use super::Node;
use super::datum::EMPTY_VALUES_MAX;
use super::schema::{CONNECT_TYPES_MAX, Field, Kind, Made, Origin, Schema, Type, TypeId, branches};
use super::special;

/// Nesting of defaults: a record's default may lie in the record's default.
const DEFAULT_DEPTH_MAX: usize = 32;
/// Nesting of pairs: two types that contain themselves meet in as many ways as their lengths have
/// products.
const PAIR_DEPTH_MAX: usize = 512;

/// The schema that reads what `writer` wrote as `reader` has it.
///
/// Errors: the reason, as half a sentence: the roots do not match, a field without a default is
/// missing, or a default is no value of its type.
pub fn resolve(writer: &Schema, reader: &Schema) -> Result<Schema, String> {
    let mut resolver = Resolver {
        writer,
        reader,
        types: Vec::new(),
        pairs: HashMap::new(),
        copies: HashMap::new(),
        depth: 0,
        defaults_left: EMPTY_VALUES_MAX,
    };
    let root = resolver.pair(writer.root, reader.root)?;
    match &resolver.types[root].kind {
        Kind::Refused(reason) => Err(reason.clone()),
        _ => Schema::compile(resolver.types, root),
    }
}

struct Resolver<'s> {
    writer: &'s Schema,
    reader: &'s Schema,
    types: Vec<Type>,
    pairs: HashMap<(TypeId, TypeId), TypeId>,
    copies: HashMap<TypeId, TypeId>,
    depth: usize,
    /// Values that defaults may still have: those of a few records can double at each level.
    defaults_left: usize,
}

type Resolved<T> = Result<T, String>;

impl Resolver<'_> {
    fn push(&mut self, found: Type) -> TypeId {
        self.types.push(found);
        self.types.len() - 1
    }

    fn pair(&mut self, w: TypeId, r: TypeId) -> Resolved<TypeId> {
        if let Some(known) = self.pairs.get(&(w, r)) {
            return Ok(*known);
        }
        if self.depth == PAIR_DEPTH_MAX || self.pairs.len() == CONNECT_TYPES_MAX {
            return Err("its types and the reader's name each other too often".to_owned());
        }
        self.depth += 1;
        let pair = self.new_pair(w, r);
        self.depth -= 1;
        pair
    }

    fn new_pair(&mut self, w: TypeId, r: TypeId) -> Resolved<TypeId> {
        let (writer, reader) = (&self.writer.types[w], &self.reader.types[r]);
        if let (false, Kind::Union(all)) = (is_union(writer), &reader.kind) {
            let id = match self.branch(writer, all) {
                Some(branch) => self.pair(w, branch)?,
                None => self.push(refused(writer, reader)),
            };
            self.pairs.insert((w, r), id);
            return Ok(id);
        }
        let id = self.push(Type::new(Kind::Null));
        self.pairs.insert((w, r), id);
        let found = match (&writer.kind, &reader.kind) {
            (Kind::Union(all), _) => {
                let all = all.iter().map(|branch| self.pair(*branch, r));
                Type::new(Kind::Union(all.collect::<Resolved<_>>()?))
            }
            _ if !matches(writer, reader) => refused(writer, reader),
            (Kind::Record(_), Kind::Record(_)) => self.record(w, r)?,
            (Kind::Array(w), Kind::Array(r)) => Type {
                kind: Kind::Array(self.pair(*w, *r)?),
                ..writer.clone()
            },
            (Kind::Map(w), Kind::Map(r)) => Type {
                kind: Kind::Map(self.pair(*w, *r)?),
                ..writer.clone()
            },
            (Kind::Enum(symbols), Kind::Enum(known)) => {
                let symbols = symbols.iter().map(|symbol| match &reader.default_symbol {
                    Some(default) if !known.contains(symbol) => default.clone(),
                    _ => symbol.clone(),
                });
                Type {
                    kind: Kind::Enum(symbols.collect()),
                    ..writer.clone()
                }
            }
            (Kind::Bytes, Kind::String) => Type {
                made: Made::Text,
                ..writer.clone()
            },
            (Kind::String, Kind::Bytes) => Type {
                made: Made::Bytes,
                ..writer.clone()
            },
            _ => Type {
                logical: writer.logical.clone().or_else(|| reader.logical.clone()),
                ..writer.clone()
            },
        };
        self.types[id] = found;
        Ok(id)
    }

    /// The reader's branch for a type: one of the same kind and name, else the first that takes it.
    fn branch(&self, writer: &Type, branches: &[TypeId]) -> Option<TypeId> {
        let types = &self.reader.types;
        let is_same = |id: &&TypeId| {
            let reader = &types[**id];
            let is_kind =
                std::mem::discriminant(&writer.kind) == std::mem::discriminant(&reader.kind);
            let is_name = writer.names.first() == reader.names.first();
            is_kind && is_name && matches(writer, reader)
        };
        let exact = branches.iter().find(is_same);
        let first = || branches.iter().find(|id| matches(writer, &types[**id]));
        exact.or_else(first).copied()
    }

    fn record(&mut self, w: TypeId, r: TypeId) -> Resolved<Type> {
        let (writer, reader) = (&self.writer.types[w], &self.reader.types[r]);
        let (Kind::Record(written), Kind::Record(wanted)) = (&writer.kind, &reader.kind) else {
            return Err("no records".to_owned());
        };
        let source = |field: &Field| {
            let by_name = written.iter().position(|other| other.name == field.name);
            let by_alias = || {
                let mut written = written.iter();
                written.position(|other| field.aliases.contains(&other.name))
            };
            by_name.or_else(by_alias)
        };
        let sources: Vec<Option<usize>> = wanted.iter().map(source).collect();
        let mut fields = Vec::with_capacity(written.len());
        for (at, field) in written.iter().enumerate() {
            let taker = sources.iter().position(|source| *source == Some(at));
            fields.push(match taker.map(|taker| &wanted[taker]) {
                Some(taker) => Field {
                    type_id: self.pair(field.type_id, taker.type_id)?,
                    ..taker.clone()
                },
                None => Field {
                    type_id: self.copy(self.writer, field.type_id),
                    origin: Origin::Unread,
                    ..field.clone()
                },
            });
        }
        for (field, source) in wanted.iter().zip(&sources) {
            if source.is_some() {
                continue;
            }
            let name = reader.names.first().map_or("", |name| name);
            let what = format!("the field \"{}\" of {name}", field.name);
            let Some(default) = &field.default else {
                return Err(format!("{what} is not written and has no default"));
            };
            let left = &mut self.defaults_left;
            let node = default_node(self.reader, field.type_id, default, 0, left);
            let unfit = || format!("{what}: the default {} does not fit", preview(default));
            let node = node.ok_or_else(unfit)?;
            fields.push(Field {
                type_id: self.copy(self.reader, field.type_id),
                origin: Origin::Default(node),
                ..field.clone()
            });
        }
        Ok(Type {
            kind: Kind::Record(fields),
            ..reader.clone()
        })
    }

    /// A type as one schema has it.
    fn copy(&mut self, from: &Schema, id: TypeId) -> TypeId {
        // The writer's and the reader's numbers must not meet.
        let key = match std::ptr::eq(from, self.writer) {
            true => id,
            false => id + self.writer.types.len(),
        };
        if let Some(known) = self.copies.get(&key) {
            return *known;
        }
        let copied = self.push(Type::new(Kind::Null));
        self.copies.insert(key, copied);
        let mut found = from.types[id].clone();
        match &mut found.kind {
            Kind::Array(inner) | Kind::Map(inner) => *inner = self.copy(from, *inner),
            Kind::Union(all) => all.iter_mut().for_each(|id| *id = self.copy(from, *id)),
            Kind::Record(fields) => {
                for field in fields {
                    field.type_id = self.copy(from, field.type_id);
                }
            }
            _ => {}
        }
        self.types[copied] = found;
        copied
    }
}

fn is_union(found: &Type) -> bool {
    matches!(found.kind, Kind::Union(_))
}

/// Whether two types match, not looking inside.
fn matches(writer: &Type, reader: &Type) -> bool {
    use Kind::{Array, Boolean, Bytes, Double, Enum, Fixed, Float, Int, Long, Map, Null, Record};
    match (&writer.kind, &reader.kind) {
        (Null, Null) | (Boolean, Boolean) | (Array(_), Array(_)) | (Map(_), Map(_)) => true,
        (Int, Int | Long | Float | Double) | (Long, Long | Float | Double) => true,
        (Float, Float | Double) | (Double, Double) => true,
        (Bytes | Kind::String, Bytes | Kind::String) => true,
        (Fixed(a), Fixed(b)) => a == b && is_named(writer, reader),
        (Enum(_), Enum(_)) | (Record(_), Record(_)) => is_named(writer, reader),
        _ => false,
    }
}

/// Equal unqualified names, or an alias of the reader's.
fn is_named(writer: &Type, reader: &Type) -> bool {
    let short = |name: &str| {
        name.rsplit_once('.')
            .map_or(name, |(_, name)| name)
            .to_owned()
    };
    let own = writer.names.first().map(|name| short(name));
    let mut names = reader.names.iter();
    names.any(|name| Some(short(name)) == own)
}

fn refused(writer: &Type, reader: &Type) -> Type {
    let reason = format!(
        "the writer has {}, the reader's schema {}",
        word(writer),
        word(reader)
    );
    Type::new(Kind::Refused(reason))
}

fn word(found: &Type) -> String {
    let kind = match &found.kind {
        Kind::Null => "null",
        Kind::Boolean => "boolean",
        Kind::Int => "int",
        Kind::Long => "long",
        Kind::Float => "float",
        Kind::Double => "double",
        Kind::Bytes => "bytes",
        Kind::String => "string",
        Kind::Fixed(_) => "fixed",
        Kind::Enum(_) => "enum",
        Kind::Array(_) => "array",
        Kind::Map(_) => "map",
        Kind::Union(_) => "union",
        Kind::Record(_) => "record",
        Kind::Refused(_) => "nothing",
    };
    match found.names.first() {
        Some(name) => format!("{kind} {name}"),
        None => kind.to_owned(),
    }
}

/// A default as a value. `None` where it is none of its type, or of more values than are `left`.
fn default_node(
    schema: &Schema,
    id: TypeId,
    json: &Json,
    depth: usize,
    left: &mut usize,
) -> Option<Node<'static>> {
    if depth == DEFAULT_DEPTH_MAX {
        return None;
    }
    *left = left.checked_sub(1)?;
    let mut inside = |id: TypeId, json: &Json| default_node(schema, id, json, depth + 1, left);
    let found = &schema.types[id];
    Some(match (&found.kind, json) {
        (Kind::Null, Json::Null) => Node::Null,
        (Kind::Boolean, Json::Bool(value)) => Node::Bool(*value),
        (Kind::Int, json) => Node::Int(i64::from(i32::try_from(json.as_i64()?).ok()?)),
        (Kind::Long, json) => Node::Int(json.as_i64()?),
        (Kind::Float | Kind::Double, Json::Number(number)) => Node::Float(number.as_f64()?),
        (Kind::String, Json::String(text)) => Node::Text(Cow::Owned(text.clone())),
        (Kind::Enum(symbols), Json::String(text)) if symbols.contains(text) => {
            Node::Text(Cow::Owned(text.clone()))
        }
        (Kind::Bytes | Kind::Fixed(_), Json::String(text)) => {
            let bytes = text.chars().map(|c| u8::try_from(u32::from(c)).ok());
            bytes_default(found, bytes.collect::<Option<_>>()?)?
        }
        (Kind::Array(items), Json::Array(all)) => {
            let all = all.iter().map(|json| inside(*items, json));
            Node::Array(all.collect::<Option<_>>()?)
        }
        (Kind::Map(values), Json::Object(members)) => {
            let members = members.iter();
            let members = members
                .map(|(name, json)| Some((Cow::Owned(name.clone()), inside(*values, json)?)));
            Node::Object(members.collect::<Option<_>>()?)
        }
        (Kind::Record(fields), Json::Object(members)) => {
            let fields = fields.iter().map(|field| {
                let json = members.get(&field.name).or(field.default.as_ref())?;
                Some((Cow::Owned(field.name.clone()), inside(field.type_id, json)?))
            });
            Node::Object(fields.collect::<Option<_>>()?)
        }
        (Kind::Union(all), json) => {
            let others = branches(&schema.types, all);
            let taken = |id: &TypeId| inside(*id, json).map(|node| (*id, node));
            let (id, node) = all.iter().find_map(taken)?;
            match others.iter().position(|other| *other == id) {
                Some(place) if others.len() > 1 => Node::Branch(place, Box::new(node)),
                _ => node,
            }
        }
        _ => return None,
    })
}

fn bytes_default(found: &Type, bytes: Vec<u8>) -> Option<Node<'static>> {
    if let Kind::Fixed(size) = found.kind
        && size != bytes.len()
    {
        return None;
    }
    Some(match found.made {
        Made::Uuid => Node::Text(special::uuid(&bytes).into()),
        Made::Duration => Node::Text(special::duration(&bytes).into()),
        Made::BigDecimal => return None,
        Made::Itself | Made::Text | Made::Bytes => Node::Bytes(Cow::Owned(bytes)),
    })
}
