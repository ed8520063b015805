//! From Avro's types to the schemas that the envelopes know.
//!
//! | Avro | Connect |
//! |---|---|
//! | `connect.name`, `connect.parameters` | themselves |
//! | `date` | `org.apache.kafka.connect.data.Date` |
//! | `time-millis`, `time-micros` | `…connect.data.Time`, `io.debezium.time.MicroTime` |
//! | `timestamp-millis`, `-micros`, `-nanos`, also `local-` | `…connect.data.Timestamp`, `io.debezium.time.MicroTimestamp`, `NanoTimestamp` |
//! | `decimal` | `org.apache.kafka.connect.data.Decimal` with its scale |
//! | `big-decimal` | `io.debezium.data.VariableScaleDecimal` |
//! | `uuid`, `duration` | a string |
//! | a union of null and one other | the other, optional |
//! | a union of several | [`ConnectKind::Union`], its branches as fields |
//!
//! Invariant: a type that lies within itself is a struct without fields there: nothing reads
//! columns from so deep.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json};

use super::schema::{CONNECT_TYPES_MAX, Kind, Made, Origin, Type, TypeId, branches, text};
use crate::format::json::DEPTH_MAX;
use crate::format::{ConnectKind, ConnectSchema};

const DATE: &str = "org.apache.kafka.connect.data.Date";
const TIME: &str = "org.apache.kafka.connect.data.Time";
const TIMESTAMP: &str = "org.apache.kafka.connect.data.Timestamp";
const DECIMAL: &str = "org.apache.kafka.connect.data.Decimal";
const MICRO_TIME: &str = "io.debezium.time.MicroTime";
const MICRO_TIMESTAMP: &str = "io.debezium.time.MicroTimestamp";
const NANO_TIMESTAMP: &str = "io.debezium.time.NanoTimestamp";
const VARIABLE_SCALE: &str = "io.debezium.data.VariableScaleDecimal";

/// Reads a type's logical name: Connect's annotation, else Avro's logical type where it fits.
pub(super) fn annotate(found: &mut Type, members: &Map<String, Json>) {
    let avro = text(members, "logicalType").unwrap_or_default();
    let name = match (avro, &found.kind) {
        ("date", Kind::Int) => DATE,
        ("time-millis", Kind::Int) => TIME,
        ("time-micros", Kind::Long) => MICRO_TIME,
        ("timestamp-millis" | "local-timestamp-millis", Kind::Long) => TIMESTAMP,
        ("timestamp-micros" | "local-timestamp-micros", Kind::Long) => MICRO_TIMESTAMP,
        ("timestamp-nanos" | "local-timestamp-nanos", Kind::Long) => NANO_TIMESTAMP,
        ("decimal", Kind::Bytes | Kind::Fixed(_)) => DECIMAL,
        ("big-decimal", Kind::Bytes) => {
            found.made = Made::BigDecimal;
            VARIABLE_SCALE
        }
        ("uuid", Kind::Fixed(16)) => {
            found.made = Made::Uuid;
            ""
        }
        ("duration", Kind::Fixed(12)) => {
            found.made = Made::Duration;
            ""
        }
        _ => "",
    };
    let mut parameters: Vec<(String, String)> = Vec::new();
    if let Some(Json::Object(own)) = members.get("connect.parameters") {
        let own = own.iter();
        let own = own.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        parameters.extend(own);
    }
    let has_scale = parameters.iter().any(|(name, _)| name == "scale");
    if name == DECIMAL && !has_scale {
        let scale = members.get("scale").and_then(Json::as_i64).unwrap_or(0);
        parameters.push(("scale".to_owned(), scale.to_string()));
    }
    let name = text(members, "connect.name").unwrap_or(name);
    found.logical = (!name.is_empty()).then(|| (name.to_owned(), parameters));
}

/// The schema of a root: one, or one for each branch of a union of several.
pub(super) fn schemas(types: &[Type], root: TypeId) -> Result<Vec<Arc<ConnectSchema>>, String> {
    let mut maker = Maker {
        types,
        inside: Vec::new(),
        depth: 0,
        left: CONNECT_TYPES_MAX,
    };
    let whole = maker.schema(root)?;
    Ok(match whole.kind {
        ConnectKind::Union => {
            let branches = whole.fields.into_iter();
            branches.map(|(_, branch)| Arc::new(branch)).collect()
        }
        _ => vec![Arc::new(whole)],
    })
}

struct Maker<'t> {
    types: &'t [Type],
    /// The records that we are in.
    inside: Vec<TypeId>,
    depth: usize,
    left: usize,
}

impl Maker<'_> {
    /// Types that name each other can lie deeper than their text: no value could be read so deep.
    fn schema(&mut self, id: TypeId) -> Result<ConnectSchema, String> {
        if self.depth == DEPTH_MAX {
            return Err(format!(
                "its types lie in each other more than {DEPTH_MAX} deep"
            ));
        }
        self.depth += 1;
        let made = self.made(id);
        self.depth -= 1;
        made
    }

    fn made(&mut self, id: TypeId) -> Result<ConnectSchema, String> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            format!("its types name each other more than {CONNECT_TYPES_MAX} times")
        })?;
        let found = &self.types[id];
        let mut made = ConnectSchema {
            kind: kind(found),
            name: None,
            parameters: Vec::new(),
            fields: Vec::new(),
            items: None,
            is_optional: found.kind == Kind::Null,
            default: None,
        };
        match &found.kind {
            Kind::Union(all) => return self.union(all),
            Kind::Array(items) => made.items = Some(Box::new(self.schema(*items)?)),
            Kind::Record(_) if self.inside.contains(&id) => {}
            Kind::Record(fields) => {
                self.inside.push(id);
                for field in fields.iter().filter(|field| field.origin != Origin::Unread) {
                    let mut schema = self.schema(field.type_id)?;
                    let default = field.default.as_ref().filter(|json| !json.is_null());
                    schema.default = default.map(|json| as_node_json(json, schema.kind));
                    made.fields.push((field.name.clone(), schema));
                }
                self.inside.pop();
            }
            _ => {}
        }
        match &found.logical {
            Some((name, parameters)) => {
                made.name = Some(name.clone());
                made.parameters.clone_from(parameters);
            }
            None if matches!(found.kind, Kind::Record(_)) => {
                made.name = found.names.first().cloned();
            }
            None => {}
        }
        Ok(made)
    }

    fn union(&mut self, all: &[TypeId]) -> Result<ConnectSchema, String> {
        let others = branches(self.types, all);
        let has_null = all.iter().any(|id| self.types[*id].kind == Kind::Null);
        let mut made = match others[..] {
            [] => self.schema(all[0])?,
            [one] => self.schema(one)?,
            _ => {
                let branches = others.iter().enumerate();
                let branches = branches.map(|(at, id)| Ok((at.to_string(), self.schema(*id)?)));
                ConnectSchema {
                    kind: ConnectKind::Union,
                    name: None,
                    parameters: Vec::new(),
                    fields: branches.collect::<Result<_, String>>()?,
                    items: None,
                    is_optional: false,
                    default: None,
                }
            }
        };
        made.is_optional |= has_null;
        Ok(made)
    }
}

fn kind(found: &Type) -> ConnectKind {
    match (found.made, &found.kind) {
        (Made::Uuid | Made::Duration | Made::Text, _) => ConnectKind::String,
        (Made::BigDecimal, _) => ConnectKind::Struct,
        (Made::Bytes, _) | (_, Kind::Bytes | Kind::Fixed(_)) => ConnectKind::Bytes,
        (_, Kind::Boolean) => ConnectKind::Boolean,
        (_, Kind::Int | Kind::Long) => ConnectKind::Integer,
        (_, Kind::Float | Kind::Double) => ConnectKind::Float,
        (_, Kind::Array(_)) => ConnectKind::Array,
        (_, Kind::Map(_)) => ConnectKind::Map,
        (_, Kind::Record(_)) => ConnectKind::Struct,
        (_, Kind::Union(_)) => ConnectKind::Union,
        (_, Kind::String | Kind::Enum(_) | Kind::Null | Kind::Refused(_)) => ConnectKind::String,
    }
}

/// A default as [`crate::format::Node::to_json`] would write the value: Avro writes bytes as the
/// characters of their numbers.
fn as_node_json(json: &Json, kind: ConnectKind) -> Json {
    match (kind, json) {
        (ConnectKind::Bytes, Json::String(text)) => {
            let bytes: Vec<u8> = text.chars().map(|c| c as u32 as u8).collect();
            Json::from(STANDARD.encode(bytes))
        }
        (_, json) => json.clone(),
    }
}
