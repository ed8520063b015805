//! The bytes of one value, read by a compiled schema.
//!
//! Invariants: any bytes give a value or an error, never a panic, and never more than eight values a
//! byte and [`EMPTY_VALUES_MAX`] beside: a length is believed only as far as bytes are left.
//! Texts, bytes and the names of fields are borrowed, numbers are not written as text. Limits:
//! nesting at most [`DEPTH_MAX`].
//!
//! Cost: linear in the bytes.

use std::borrow::Cow;

use super::schema::{Field, Kind, Made, Origin, Schema, TypeId};
use super::special;
use crate::format::Node;
use crate::format::json::DEPTH_MAX;

/// Values of one message that take no bytes (nulls, empty records, defaults): a damaged length must
/// not make billions of them.
pub const EMPTY_VALUES_MAX: usize = 65_536;
/// Values that one byte may stand for: records lie in records.
const VALUES_PER_BYTE: usize = 8;
/// Room made for the items of a block before they are seen.
const RESERVED_MAX: usize = 1_024;

/// Why bytes do not follow their schema.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken {
    /// The byte, from 0.
    pub at: usize,
    /// Half a sentence.
    pub reason: Cow<'static, str>,
    /// The fields and items that lead there, the innermost first.
    path: Vec<String>,
}

impl Broken {
    /// `after.title`; empty at the root.
    pub fn path(&self) -> String {
        let path: Vec<&str> = self.path.iter().rev().map(|step| &**step).collect();
        path.join(".")
    }
}

type Read<T> = Result<T, Broken>;

/// Reads a whole value: nothing may be left behind it.
pub fn read<'a>(schema: &'a Schema, bytes: &'a [u8]) -> Read<Node<'a>> {
    let mut reader = Reader {
        schema,
        bytes,
        at: 0,
        depth: 0,
        left: bytes.len() * VALUES_PER_BYTE + EMPTY_VALUES_MAX,
    };
    let node = reader.value(schema.root)?;
    match bytes.len() - reader.at {
        0 => Ok(node),
        left => Err(reader.broken(format!("{left} bytes are left behind the value"))),
    }
}

struct Reader<'a> {
    schema: &'a Schema,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// Values that may still come.
    left: usize,
}

impl<'a> Reader<'a> {
    fn broken(&self, reason: impl Into<Cow<'static, str>>) -> Broken {
        Broken {
            at: self.at,
            reason: reason.into(),
            path: Vec::new(),
        }
    }

    /// Counts a value.
    fn spend(&mut self) -> Read<()> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(self.broken("more values than its bytes can hold"));
        };
        self.left = left;
        Ok(())
    }

    /// A default: its values count, because records that take no bytes may come by thousands.
    fn default(&mut self, node: &'a Node<'static>) -> Read<Node<'a>> {
        self.spend()?;
        Ok(match node {
            Node::Text(text) => Node::Text(Cow::Borrowed(text)),
            Node::Number(text) => Node::Number(Cow::Borrowed(text)),
            Node::Bytes(bytes) => Node::Bytes(Cow::Borrowed(bytes)),
            Node::Array(items) => {
                let items = items.iter().map(|item| self.default(item));
                Node::Array(items.collect::<Read<_>>()?)
            }
            Node::Object(members) => {
                let members = members.iter();
                let members =
                    members.map(|(name, node)| Ok((Cow::Borrowed(&**name), self.default(node)?)));
                Node::Object(members.collect::<Read<_>>()?)
            }
            Node::Branch(place, node) => Node::Branch(*place, Box::new(self.default(node)?)),
            Node::Null | Node::Bool(_) | Node::Int(_) | Node::Float(_) => node.clone(),
        })
    }

    fn value(&mut self, id: TypeId) -> Read<Node<'a>> {
        self.spend()?;
        let schema = self.schema;
        let found = &schema.types[id];
        Ok(match &found.kind {
            Kind::Null => Node::Null,
            Kind::Boolean => match self.take(1)? {
                [0] => Node::Bool(false),
                [1] => Node::Bool(true),
                _ => {
                    self.at -= 1;
                    return Err(self.broken("a boolean is neither 0 nor 1"));
                }
            },
            Kind::Int => self.int()?,
            Kind::Long => Node::Int(self.long()?),
            Kind::Float => Node::Float(special::float(f32::from_le_bytes(self.array()?))),
            Kind::Double => Node::Float(f64::from_le_bytes(self.array()?)),
            Kind::Bytes => {
                let bytes = self.sized("the bytes have")?;
                self.bytes_as(bytes, found.made)?
            }
            Kind::String => {
                let text = self.text()?;
                match found.made {
                    Made::Bytes => Node::Bytes(Cow::Borrowed(text.as_bytes())),
                    _ => Node::Text(Cow::Borrowed(text)),
                }
            }
            Kind::Fixed(size) => {
                let bytes = self.take(*size)?;
                self.bytes_as(bytes, found.made)?
            }
            Kind::Enum(symbols) => {
                let symbol = self.index(symbols.len(), "symbol")?;
                Node::Text(Cow::Borrowed(&symbols[symbol]))
            }
            Kind::Array(items) => self.nested(|reader| reader.items(*items))?,
            Kind::Map(values) => self.nested(|reader| reader.entries(*values))?,
            Kind::Union(branches) => self.union(branches)?,
            Kind::Record(fields) => self.nested(|reader| reader.record(fields))?,
            Kind::Refused(reason) => return Err(self.broken(reason.clone())),
        })
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Read<Node<'a>>) -> Read<Node<'a>> {
        if self.depth == DEPTH_MAX {
            return Err(self.broken("nested too deeply"));
        }
        self.depth += 1;
        let node = read(self)?;
        self.depth -= 1;
        Ok(node)
    }

    fn record(&mut self, fields: &'a [Field]) -> Read<Node<'a>> {
        let mut members = Vec::with_capacity(fields.len());
        for field in fields {
            let node = match &field.origin {
                Origin::Default(node) => self.default(node)?,
                Origin::Written | Origin::Unread => {
                    self.value(field.type_id).map_err(|mut broken| {
                        broken.path.push(field.name.clone());
                        broken
                    })?
                }
            };
            if field.origin != Origin::Unread {
                members.push((Cow::Borrowed(&*field.name), node));
            }
        }
        Ok(Node::Object(members))
    }

    fn items(&mut self, items: TypeId) -> Read<Node<'a>> {
        let mut nodes = Vec::new();
        while let Some(count) = self.block()? {
            nodes.reserve(count.min(RESERVED_MAX));
            for _ in 0..count {
                let node = self.value(items).map_err(|mut broken| {
                    broken.path.push(nodes.len().to_string());
                    broken
                })?;
                nodes.push(node);
            }
        }
        Ok(Node::Array(nodes))
    }

    fn entries(&mut self, values: TypeId) -> Read<Node<'a>> {
        let mut members = Vec::new();
        while let Some(count) = self.block()? {
            members.reserve(count.min(RESERVED_MAX));
            for _ in 0..count {
                let name = self.text()?;
                let node = self.value(values).map_err(|mut broken| {
                    broken.path.push(name.to_owned());
                    broken
                })?;
                members.push((Cow::Borrowed(name), node));
            }
        }
        Ok(Node::Object(members))
    }

    /// The items of the next block of an array or a map; none at its end.
    fn block(&mut self) -> Read<Option<usize>> {
        let start = self.at;
        let count = self.long()?;
        if count < 0 {
            // The block's length in bytes, for readers that skip it.
            self.long()?;
        }
        match usize::try_from(count.unsigned_abs()) {
            Ok(0) => Ok(None),
            Ok(count) if count <= self.left => Ok(Some(count)),
            _ => {
                self.at = start;
                Err(self.broken(format!(
                    "a block has {count} items, more than its bytes can hold"
                )))
            }
        }
    }

    fn union(&mut self, branches: &'a [TypeId]) -> Read<Node<'a>> {
        let branch = self.index(branches.len(), "branch")?;
        let types = &self.schema.types;
        let has_value = |id: &TypeId| !matches!(types[*id].kind, Kind::Null | Kind::Refused(_));
        let id = branches[branch];
        // One of several says which it is.
        let count = |ids: &[TypeId]| ids.iter().filter(|id| has_value(id)).count();
        if !has_value(&id) || count(branches) < 2 {
            return self.value(id);
        }
        let node = self.nested(|reader| reader.value(id))?;
        Ok(Node::Branch(count(&branches[..branch]), Box::new(node)))
    }

    fn bytes_as(&self, bytes: &'a [u8], made: Made) -> Read<Node<'a>> {
        let unfit = |reason| self.broken(reason);
        Ok(match made {
            Made::Itself | Made::Bytes => Node::Bytes(Cow::Borrowed(bytes)),
            Made::Uuid => Node::Text(special::uuid(bytes).into()),
            Made::Duration => Node::Text(special::duration(bytes).into()),
            Made::BigDecimal => {
                special::big_decimal(bytes).ok_or_else(|| unfit("no big-decimal"))?
            }
            Made::Text => match std::str::from_utf8(bytes) {
                Ok(text) => Node::Text(Cow::Borrowed(text)),
                Err(_) => return Err(unfit("bytes for a string are not UTF-8")),
            },
        })
    }

    fn int(&mut self) -> Read<Node<'a>> {
        let start = self.at;
        let long = self.long()?;
        match i32::try_from(long) {
            Ok(_) => Ok(Node::Int(long)),
            Err(_) => {
                self.at = start;
                Err(self.broken(format!("{long} is no int")))
            }
        }
    }

    fn long(&mut self) -> Read<i64> {
        let rest = &self.bytes[self.at..];
        match special::long(rest) {
            Some((value, length)) => {
                self.at += length;
                Ok(value)
            }
            None if rest.len() < 10 => Err(self.broken("the bytes end in an integer")),
            None => Err(self.broken("an integer has more than 64 bits")),
        }
    }

    fn index(&mut self, count: usize, what: &str) -> Read<usize> {
        let start = self.at;
        let index = self.long()?;
        match usize::try_from(index) {
            Ok(index) if index < count => Ok(index),
            _ => {
                self.at = start;
                Err(self.broken(format!("{what} {index}, there are {count}")))
            }
        }
    }

    fn sized(&mut self, what: &str) -> Read<&'a [u8]> {
        let start = self.at;
        let length = self.long()?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => self.take(length),
            _ => {
                self.at = start;
                Err(self.broken(format!(
                    "{what} a length of {length}, {left} bytes are left"
                )))
            }
        }
    }

    fn text(&mut self) -> Read<&'a str> {
        let bytes = self.sized("the text has")?;
        std::str::from_utf8(bytes).map_err(|error| {
            self.at -= bytes.len() - error.valid_up_to();
            self.broken("the text is not UTF-8")
        })
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("so many were taken"))
    }

    fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match rest.get(..count) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => {
                let left = rest.len();
                Err(self.broken(format!("{count} bytes are needed, {left} are left")))
            }
        }
    }
}
