//! The headers of a key change: `__debezium.newkey` on the delete, `__debezium.oldkey` on the create.
//!
//! Their form is the `header.converter`'s: JSON with or without a schema, or Java's own text of a
//! struct, `Struct{id=2}`. A header that cannot be read is as good as none: both halves are whole
//! changes, and a value that was not sent is reported where it is missed.

use std::borrow::Cow;

use engine::model::SqlType;

use super::State;
use crate::envelope::row::Layout;
use crate::envelope::{ChangeKind, Move, Parts};
use crate::format::{Node, Payload, json};

impl State {
    /// The other half of a key change, where the message names it.
    pub(super) fn moved(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        kind: ChangeKind,
    ) -> Option<Move> {
        let name = match kind {
            ChangeKind::Delete | ChangeKind::Tombstone => "__debezium.newkey",
            ChangeKind::Create | ChangeKind::Update => "__debezium.oldkey",
            ChangeKind::Read => return None,
        };
        let mut headers = parts.record.headers.iter();
        let (_, bytes) = headers.find(|(header, _)| *header == name)?;
        let payload = self.header(layout, parts, (*bytes)?)?;
        let key = layout.message_key(&payload, parts.record).ok()??.key;
        Some(match kind {
            ChangeKind::Delete | ChangeKind::Tombstone => Move::To(key),
            _ => Move::From(key),
        })
    }

    fn header<'a>(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        bytes: &'a [u8],
    ) -> Option<Payload<'a>> {
        let Ok((schema, node)) = json::parse_wrapped(bytes, "header") else {
            let node = java_struct(std::str::from_utf8(bytes).ok()?, layout)?;
            return Some(Payload { schema: None, node });
        };
        let schema = match schema {
            Some(text) => self.header_schemas.get(text, "header").ok()?,
            // The key's own schema says what the header's values are.
            None => parts.key.schema.clone(),
        };
        Some(Payload { schema, node })
    }
}

/// `Struct{id=2,part=a}`. Values are not quoted, so a comma in one makes the text unreadable: the
/// key then lacks a column.
fn java_struct<'a>(text: &'a str, layout: &Layout) -> Option<Node<'a>> {
    let inner = text.strip_prefix("Struct{")?.strip_suffix('}')?;
    let mut members = Vec::new();
    for part in inner.split(',') {
        let (name, value) = part.split_once('=')?;
        let column = layout.key_columns().find(|column| column.name == name)?;
        let value = Cow::Borrowed(value);
        let node = match column.sql_type {
            SqlType::Text | SqlType::Uuid => Node::Text(value),
            SqlType::Int4 | SqlType::Int8 => Node::Number(value),
            _ => return None,
        };
        members.push((Cow::Borrowed(name), node));
    }
    Some(Node::Object(members))
}
