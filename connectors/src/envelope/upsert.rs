//! `ENVELOPE UPSERT`: the value is the row of the key, null deletes it.
//!
//! Null is no value at all, or what JSON converters make of it: `null` and
//! `{"schema":…,"payload":null}`. Key columns may be left out of the value; where they are in it
//! they are not read.

use engine::error::DataError;

use super::row::{Layout, RowKey};
use super::{ChangeKind, Decoded, Order, Parts, RowChange};

/// Decodes one message.
pub(super) fn decode(
    layout: &Layout,
    parts: &Parts<'_>,
    out: &mut Decoded,
) -> Result<(), DataError> {
    let is_delete = parts.value.node.is_null();
    let key = key(layout, parts)?;
    let row = match is_delete {
        true => None,
        false => {
            layout.check_shape(parts)?;
            {
                let schema = parts.value.schema.as_deref();
                let take_from = key.key.clone();
                Some(layout.row(&parts.value.node, schema, &key, take_from, parts.record)?)
            }
        }
    };
    out.changes.push(RowChange {
        key: key.key,
        kind: match row {
            Some(_) => ChangeKind::Create,
            None => ChangeKind::Delete,
        },
        row,
        order: Order::Offset,
        moved: None,
        transaction: None,
    });
    Ok(())
}

/// The key of a message, else that of its row.
pub(super) fn key(layout: &Layout, parts: &Parts<'_>) -> Result<RowKey, DataError> {
    match layout.message_key(&parts.key, parts.record)? {
        Some(key) => Ok(key),
        // A message without a key can still be a row that has one.
        None if !parts.value.node.is_null() => layout.key_of(
            &parts.value.node,
            parts.value.schema.as_deref(),
            parts.record,
        ),
        None => Err(layout.missing_key(&layout.key_names())),
    }
}
