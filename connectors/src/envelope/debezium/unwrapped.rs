//! Rows unwrapped by ExtractNewRecordState: the row alone, with what `add.fields` adds.
//!
//! A delete is a null (see [`super::State`]), or with `delete.tombstone.handling.mode=rewrite` the
//! old row with `__deleted`. The order is known only if `add.fields` has `source.sequence` and
//! `lsn`: an LSN alone does not order transactions. Truncates do not get through the transform.
//!
//! Limits: deletes that are nulls have no position, so one that is delivered again is taken again,
//! and so is what follows for its key. `rewrite` with `add.fields=op,lsn,source.sequence` is exact.

use engine::error::DataError;

use super::source::{first_of_sequence, transaction_id};
use super::{State, change};
use crate::envelope::order::{LogPosition, Order};
use crate::envelope::row::Layout;
use crate::envelope::{ChangeKind, Decoded, InTransaction, Move, Parts};
use crate::format::Node;

impl State {
    pub(super) fn unwrapped(
        &mut self,
        layout: &Layout,
        parts: &Parts<'_>,
        out: &mut Decoded,
    ) -> Result<(), DataError> {
        layout.check_shape(parts)?;
        let row = &parts.value.node;
        let schema = parts.value.schema.as_deref();
        let op = row.get("__op").and_then(Node::as_str);
        let is_deleted = match row.get("__deleted") {
            Some(Node::Bool(value)) => *value,
            Some(Node::Text(text)) => text == "true",
            _ => op == Some("d"),
        };
        let kind = match (is_deleted, op) {
            (true, _) => ChangeKind::Delete,
            (false, Some("c")) => ChangeKind::Create,
            (false, Some("r")) => ChangeKind::Read,
            (false, _) => ChangeKind::Update,
        };
        let key = self.row_key(layout, parts, (row, schema))?;
        let moved = self.moved(layout, parts, kind);
        let partial = match is_deleted {
            true => None,
            false => {
                self.columns.observe(layout, row, &parts.value, out);
                let take_from = match &moved {
                    Some(Move::From(old)) => old.clone(),
                    _ => key.key.clone(),
                };
                Some(layout.row(row, schema, &key, take_from, parts.record)?)
            }
        };
        let mut change = change(key, partial, kind, moved);
        // Unless deletes are rewritten, the other half of a key change is a null without a position:
        // then neither half has one.
        let is_rewritten = row.get("__deleted").is_some();
        if change.moved.is_none() || is_rewritten {
            change.order = order(row, op);
        }
        let transaction = row.get("__transaction_id").and_then(Node::as_str);
        change.transaction = transaction.map(transaction_id);
        let number = |name| row.get(name).and_then(Node::as_u64);
        out.transaction = change.transaction.clone().map(|id| InTransaction {
            id,
            total_order: number("__transaction_total_order"),
            table_order: number("__transaction_data_collection_order"),
        });
        out.changes.push(change);
        Ok(())
    }
}

fn order(row: &Node<'_>, op: Option<&str>) -> Order {
    let lsn = row.some("__lsn").or_else(|| row.some("__source_lsn"));
    let sequence = row
        .get("__source_sequence")
        .or_else(|| row.get("__sequence"));
    let commit = sequence.and_then(Node::as_str).and_then(first_of_sequence);
    match (lsn.and_then(Node::as_u64), commit, op) {
        (Some(lsn), _, Some("r")) => Order::Snapshot { lsn },
        // An incremental snapshot's reads have no place of their own.
        (None, _, Some("r")) => Order::Incremental,
        (Some(lsn), Some(commit), Some(_)) => Order::Log(LogPosition {
            commit,
            lsn,
            at_ms: row
                .get("__source_ts_ms")
                .and_then(Node::as_u64)
                .unwrap_or(0),
            ..LogPosition::default()
        }),
        // Without the op a snapshot's read cannot be told from a streamed row.
        _ => Order::Offset,
    }
}
