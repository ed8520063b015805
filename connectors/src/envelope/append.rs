//! `ENVELOPE APPEND`: every message is a row of its own.
//!
//! Its key is the declared one (from the row, the message's key, or metadata columns), or, where none
//! is declared, the message's topic, partition and offset, so that a message read twice is one row.

use engine::error::DataError;
use engine::model::Key;
use serde_json::Value as Json;

use super::row::{Layout, RowKey};
use super::{ChangeKind, Decoded, Order, Parts, RowChange};
use crate::key;

/// Decodes one message.
pub(super) fn decode(
    layout: &Layout,
    parts: &Parts<'_>,
    out: &mut Decoded,
) -> Result<(), DataError> {
    if parts.value.node.is_null() {
        return Err(
            DataError::new("missing-value", "a message to append has no value")
                .hint("use ENVELOPE UPSERT where null deletes"),
        );
    }
    layout.check_shape(parts)?;
    let key = self::key(layout, parts)?;
    let schema = parts.value.schema.as_deref();
    let take_from = key.key.clone();
    let row = layout.row(&parts.value.node, schema, &key, take_from, parts.record)?;
    out.changes.push(RowChange {
        key: key.key,
        row: Some(row),
        kind: ChangeKind::Create,
        order: Order::Offset,
        moved: None,
        transaction: None,
    });
    Ok(())
}

/// The key of a message: the declared one, or its place.
pub(super) fn key(layout: &Layout, parts: &Parts<'_>) -> Result<RowKey, DataError> {
    match layout.schema.key[..] {
        [] => Ok(RowKey {
            values: Vec::new(),
            key: position_key(parts)?,
        }),
        _ => row_key(layout, parts),
    }
}

/// The declared key: in the row, else in the message's key.
fn row_key(layout: &Layout, parts: &Parts<'_>) -> Result<RowKey, DataError> {
    let schema = parts.value.schema.as_deref();
    let in_row = layout.key_of(&parts.value.node, schema, parts.record);
    match in_row {
        Err(error) if error.code == "missing-key" => {
            layout.message_key(&parts.key, parts.record)?.ok_or(error)
        }
        in_row => in_row,
    }
}

fn position_key(parts: &Parts<'_>) -> Result<Key, DataError> {
    let record = parts.record;
    key::checked(Key::from_json_text(&format!(
        "{{\"topic\":{},\"partition\":{},\"offset\":{}}}",
        Json::from(record.topic),
        record.partition,
        record.offset
    )))
}
