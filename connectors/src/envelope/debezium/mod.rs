//! `ENVELOPE DEBEZIUM`: change events, wrapped or unwrapped, of Debezium's connectors and Arroyo.
//!
//! ```text
//! value ┬ null ──────────────────────▶ tombstone
//!       ├ status, ts_ms alone, ddl ──▶ control: transactions, heartbeats, schema history
//!       ├ before, after, op, source ─▶ c r u d ─▶ RowChange;  t m ─▶ Marker
//!       ├ before, after, op ─────────▶ Arroyo: whole images
//!       └ a flat row, __deleted ─────▶ unwrapped (ExtractNewRecordState)
//! ```
//!
//! Invariants: a row's key is the message's key; where the row has the key columns too they must
//! agree. `before` is looked at only to learn what it identifies ([`identity`]), except Arroyo's.
//! Source: Debezium 3.3, `documentation/modules/ROOT/pages/connectors/postgresql.adoc`.

mod control;
mod document;
pub mod identity;
mod moved;
mod place;
mod source;
mod unwrapped;

use std::collections::HashMap;
use std::sync::Arc;

use engine::error::DataError;

use super::row::{Layout, RowKey};
use super::types::Cell;
use super::{ChangeKind, Decoded, Marker, Move, Order, Parts, RowChange};
use crate::arroyo::{Debezium, DebeziumOp, UpdatingData};
use crate::format::{ConnectSchema, Node, Payload, connect::SchemaMemory};
use engine::model::{Value, shorten};
use source::{SnapshotPhase, Source};

/// What the decoder remembers between messages.
#[derive(Debug)]
pub(super) struct State {
    is_unwrapped: Option<bool>,
    identity: identity::Watch,
    columns: Columns,
    header_schemas: SchemaMemory,
    /// By partition the key of a delete that was just refused: its tombstone is, too.
    refused: HashMap<i32, Vec<u8>>,
}

/// The columns of the last row, to notice a change.
#[derive(Debug, Default)]
struct Columns {
    schema: Option<Arc<ConnectSchema>>,
    names: Option<Vec<String>>,
}

/// A row image with its schema.
type Image<'a> = (&'a Node<'a>, Option<&'a ConnectSchema>);

impl State {
    pub(super) fn new(is_unwrapped: Option<bool>) -> State {
        State {
            is_unwrapped,
            identity: identity::Watch::default(),
            columns: Columns::default(),
            header_schemas: SchemaMemory::default(),
            refused: HashMap::new(),
        }
    }

    /// Decodes one message.
    pub(super) fn decode(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        out: &mut Decoded,
    ) -> Result<(), DataError> {
        let value = &parts.value;
        let refused = self.refused.remove(&parts.record.partition);
        if value.node.is_null() {
            if refused.is_some() && refused.as_deref() == parts.record.key {
                return Ok(());
            }
            return self.tombstone(layout, parts, out);
        }
        if let Some(marker) = control::read(value) {
            out.markers.push(marker);
            return Ok(());
        }
        let is_unwrapped = self.is_unwrapped.unwrap_or_else(|| !is_envelope(value));
        match is_unwrapped {
            true => self.unwrapped(layout, parts, out),
            false => self.event(layout, parts, out),
        }
    }

    fn tombstone(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        out: &mut Decoded,
    ) -> Result<(), DataError> {
        let key = layout.message_key(&parts.key, parts.record)?;
        let key = key.ok_or_else(|| layout.missing_key(&layout.key_names()))?;
        let moved = self.moved(layout, parts, ChangeKind::Delete);
        out.changes.push(RowChange {
            key: key.key,
            row: None,
            kind: ChangeKind::Tombstone,
            order: Order::Offset,
            moved,
            transaction: None,
        });
        Ok(())
    }

    /// An event with its envelope.
    fn event(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        out: &mut Decoded,
    ) -> Result<(), DataError> {
        let node = &parts.value.node;
        let source = node.some("source").map(Source::read);
        out.transaction = source::in_transaction(node);
        let op = node.get("op").and_then(Node::as_str).unwrap_or_default();
        let order = source.as_ref().map_or(Order::Offset, Source::order);
        let op = match op {
            "t" => {
                out.markers.push(Marker::Truncate { order });
                return Ok(());
            }
            "m" => {
                out.markers.push(control::message(node));
                return Ok(());
            }
            op => op.parse::<DebeziumOp>().map_err(|_| {
                DataError::new("bad-op", format!("\"op\" is \"{}\"", shorten(op)))
                    .expected("c, r, u, d, t or m")
            })?,
        };
        let is_mongodb = source.as_ref().is_some_and(|source| source.is_mongodb);
        let document = node.some("after").filter(|_| is_mongodb);
        let document = document.map(|after| document::of(after, "after"));
        let document = document.transpose()?;
        let envelope = parts.value.schema.as_deref();
        let image = |name: &str| {
            let schema = envelope.and_then(|schema| schema.field(name));
            node.some(name).map(|node| (node, schema))
        };
        let (before, after) = match is_mongodb {
            // Documents are text, and have no schema.
            true => (None, document.as_ref().map(|document| (document, None))),
            false => (image("before"), image("after")),
        };
        let event = Debezium::new(before, after, op).map_err(|missing| {
            if is_mongodb && op == DebeziumOp::Update {
                return document::missing();
            }
            DataError::new("missing-image", missing.to_string())
                .expected("an object with the columns")
        })?;
        let Some(source) = source else {
            return arroyo(layout, parts, event, out);
        };
        if let Some((row, _)) = event.after {
            self.columns.observe(layout, row, &parts.value, out);
        }
        let transaction = source.transaction(node);
        let order = source.with_index(order, node);
        let phase = source.phase;
        if phase == SnapshotPhase::First {
            out.markers.push(Marker::SnapshotFirst { lsn: source.lsn });
        }
        let kind = match (op, source.phase) {
            (DebeziumOp::Create, SnapshotPhase::Streaming) => ChangeKind::Create,
            (DebeziumOp::Create, _) => ChangeKind::Read,
            (DebeziumOp::Update, _) => ChangeKind::Update,
            (DebeziumOp::Delete, _) => ChangeKind::Delete,
        };
        let mut change = match event.after.filter(|_| op != DebeziumOp::Delete) {
            Some(after) => self.upsert(layout, parts, after, event.before, kind, out)?,
            None => self.delete(layout, parts, event.before)?,
        };
        change.order = order;
        change.transaction = transaction;
        out.changes.push(change);
        if phase == SnapshotPhase::Last {
            out.markers.push(Marker::SnapshotLast { lsn: source.lsn });
        }
        Ok(())
    }

    fn upsert(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        (row, schema): Image<'_>,
        before: Option<Image<'_>>,
        kind: ChangeKind,
        out: &mut Decoded,
    ) -> Result<RowChange, DataError> {
        let key = self.row_key(layout, parts, (row, schema))?;
        if let Some((before, schema)) = before {
            let old = layout.key_of(before, schema, parts.record);
            let is_same = old.is_ok_and(|old| old == key);
            if self.identity.saw_update(is_same, layout, before, schema) {
                out.markers.push(Marker::IdentityIsNotKey);
            }
        }
        let moved = self.moved(layout, parts, kind);
        let take_from = match &moved {
            Some(Move::From(old)) => old.clone(),
            _ => key.key.clone(),
        };
        let mut partial = layout.row(row, schema, &key, take_from, parts.record)?;
        if kind != ChangeKind::Update && moved.is_none() {
            // A row that is new has all its values: null is NULL.
            for cell in &mut partial.cells {
                if *cell == Cell::NullOrUnavailable {
                    *cell = Cell::Value(Value::Null);
                }
            }
        }
        Ok(change(key, Some(partial), kind, moved))
    }

    fn delete(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        before: Option<Image<'_>>,
    ) -> Result<RowChange, DataError> {
        let key = match layout.message_key(&parts.key, parts.record)? {
            Some(key) => key,
            None => {
                let (row, schema) =
                    before.ok_or_else(|| layout.missing_key(&layout.key_names()))?;
                layout.key_of(row, schema, parts.record)?
            }
        };
        if let Some((row, schema)) = before {
            let checked = self.identity.check_delete(layout, row, schema);
            checked.inspect_err(|_| {
                let key = parts.record.key.unwrap_or_default().to_vec();
                self.refused.insert(parts.record.partition, key);
            })?;
        }
        let moved = self.moved(layout, parts, ChangeKind::Delete);
        Ok(change(key, None, ChangeKind::Delete, moved))
    }

    /// The key of the message, else that of the row; where both are there they agree.
    fn row_key(
        &self,
        layout: &Layout,
        parts: &Parts<'_>,
        (row, schema): Image<'_>,
    ) -> Result<RowKey, DataError> {
        let Some(key) = layout.message_key(&parts.key, parts.record)? else {
            return layout.key_of(row, schema, parts.record);
        };
        let own = layout.key_of(row, schema, parts.record);
        match own {
            Ok(own) if own != key => {
                let detail = format!(
                    "the message's key is {}, the row's is {}",
                    key.key.as_str(),
                    own.key.as_str()
                );
                Err(DataError::new("contradicting-key", detail)
                    .hint("a transform changed the key or the row, but not both"))
            }
            _ => Ok(key),
        }
    }
}

fn change(
    key: RowKey,
    row: Option<super::PartialRow>,
    kind: ChangeKind,
    moved: Option<Move>,
) -> RowChange {
    RowChange {
        key: key.key,
        row,
        kind,
        order: Order::Offset,
        moved,
        transaction: None,
    }
}

/// The message's key as the declared columns have it.
pub(super) fn key<'a>(layout: &Layout, payload: Payload<'a>) -> Payload<'a> {
    document::key(layout, &payload).unwrap_or(payload)
}

/// Arroyo's `debezium_json`: whole images, no source, no message keys.
fn arroyo(
    layout: &Layout,
    parts: &Parts<'_>,
    event: Debezium<Image<'_>>,
    out: &mut Decoded,
) -> Result<(), DataError> {
    let key_of = |(row, schema): Image<'_>| layout.key_of(row, schema, parts.record);
    let upsert = |(row, schema): Image<'_>, kind| {
        let key = key_of((row, schema))?;
        let row = layout.row(row, schema, &key, key.key.clone(), parts.record)?;
        Ok::<_, DataError>(change(key, Some(row), kind, None))
    };
    match event.into_updating() {
        Some(UpdatingData::Append(new)) => out.changes.push(upsert(new, ChangeKind::Create)?),
        Some(UpdatingData::Retract(old)) => {
            out.changes
                .push(change(key_of(old)?, None, ChangeKind::Delete, None));
        }
        Some(UpdatingData::Update { old, new }) => {
            let (old, new) = (key_of(old)?, upsert(new, ChangeKind::Update)?);
            if old.key != new.key {
                out.changes
                    .push(change(old, None, ChangeKind::Delete, None));
            }
            out.changes.push(new);
        }
        None => {
            return Err(DataError::new(
                "missing-image",
                "an event with \"op\":\"d\" has no \"before\"",
            )
            .expected("an object with the columns"));
        }
    }
    Ok(())
}

/// Whether a value is an envelope: by its schema's name, else by its members.
fn is_envelope(value: &Payload<'_>) -> bool {
    let name = value
        .schema
        .as_ref()
        .and_then(|schema| schema.name.as_ref());
    if name.is_some_and(|name| name.ends_with(".Envelope")) {
        return true;
    }
    let op = value.node.get("op").and_then(Node::as_str);
    let is_op = matches!(op, Some("c" | "r" | "u" | "d" | "t" | "m"));
    let has = |name| value.node.get(name).is_some();
    is_op && (has("after") || has("before") || has("source"))
        // An op nobody knows is an error of the event, not a flat row.
        || op.is_some() && has("source") && has("after")
}

impl Columns {
    /// Compares a row's columns with those of the row before; tells once what changed.
    fn observe(&mut self, layout: &Layout, row: &Node<'_>, value: &Payload<'_>, out: &mut Decoded) {
        let is_same = match (&self.schema, &value.schema) {
            (Some(last), Some(schema)) => Arc::ptr_eq(last, schema),
            _ => false,
        };
        if is_same {
            return;
        }
        let has_new_schema = self.schema.is_some() && self.schema != value.schema;
        self.schema.clone_from(&value.schema);
        let is_own = |name: &&str| !name.starts_with("__");
        let is_known = |names: &Vec<String>| row.names().filter(is_own).eq(names.iter());
        let is_first = self.names.is_none();
        if self.names.as_ref().is_some_and(is_known) && !has_new_schema {
            return;
        }
        let names: Vec<String> = row.names().filter(is_own).map(str::to_owned).collect();
        let declared = layout.schema.columns.iter().enumerate();
        let missing: Vec<String> = declared
            .filter(|(at, column)| !layout.is_metadata(*at) && !names.contains(&column.name))
            .map(|(_, column)| column.name.clone())
            .collect();
        let undeclared: Vec<String> = names
            .iter()
            .filter(|name| layout.schema.position(name).is_none())
            .cloned()
            .collect();
        self.names = Some(names);
        if !is_first || !missing.is_empty() || !undeclared.is_empty() {
            out.markers.push(Marker::SchemaChanged {
                undeclared,
                missing,
            });
        }
    }
}
