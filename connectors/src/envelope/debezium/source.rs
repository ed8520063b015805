//! The `source` block: where in the source's history an event stands.

use super::place;
use crate::envelope::InTransaction;
use crate::envelope::order::{LogPosition, Order};
use crate::format::{Node, json};

/// `source.snapshot`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SnapshotPhase {
    /// `false`, null, absent: from the log.
    Streaming,
    /// The first row of the snapshot, or of this table in it.
    First,
    /// A row in between.
    Within,
    /// The last row.
    Last,
    /// An incremental snapshot's read.
    Incremental,
}

/// What the envelope needs of `source`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    is_postgres: bool,
    pub(super) is_mongodb: bool,
    /// The place in the log, of connectors other than PostgreSQL's.
    place: Option<LogPosition>,
    pub(super) phase: SnapshotPhase,
    pub(super) lsn: Option<u64>,
    /// `sequence[0]`; `None` where there is no sequence at all.
    commit: Option<u64>,
    at_ms: u64,
    transaction: Option<String>,
}

impl Source {
    pub(super) fn read(node: &Node<'_>) -> Source {
        let text = |name| node.get(name).and_then(Node::as_str);
        let phase = match node.get("snapshot") {
            Some(Node::Bool(true)) => SnapshotPhase::Within,
            Some(Node::Text(text)) => match &**text {
                "true" => SnapshotPhase::Within,
                "first" | "first_in_data_collection" => SnapshotPhase::First,
                "last" | "last_in_data_collection" => SnapshotPhase::Last,
                "incremental" => SnapshotPhase::Incremental,
                _ => SnapshotPhase::Streaming,
            },
            _ => SnapshotPhase::Streaming,
        };
        let id = node.some("txId");
        let transaction = id.and_then(|id| match id {
            Node::Number(id) | Node::Text(id) => Some(id.to_string()),
            Node::Int(id) => Some(id.to_string()),
            _ => None,
        });
        Source {
            is_postgres: text("connector") == Some("postgresql"),
            is_mongodb: text("connector") == Some("mongodb"),
            place: match text("connector") {
                Some("mysql" | "mariadb") => place::binlog(node),
                Some("sqlserver") => place::sql_server(node),
                Some("mongodb") => place::mongodb(node),
                _ => None,
            },
            phase,
            lsn: node.get("lsn").and_then(Node::as_u64),
            commit: text("sequence").and_then(first_of_sequence),
            at_ms: place::at_ms(node),
            transaction,
        }
    }

    /// The event's order, without its index in the transaction.
    pub(super) fn order(&self) -> Order {
        match (self.phase, self.is_postgres, self.lsn, self.commit) {
            (SnapshotPhase::Incremental, ..) => Order::Incremental,
            (SnapshotPhase::Streaming, true, Some(lsn), Some(commit)) => Order::Log(LogPosition {
                commit,
                lsn,
                at_ms: self.at_ms,
                ..LogPosition::default()
            }),
            (SnapshotPhase::Streaming, ..) => self.place.map_or(Order::Offset, Order::Log),
            (_, true, Some(lsn), _) => Order::Snapshot { lsn },
            _ => Order::Offset,
        }
    }

    /// The order with `transaction.total_order`.
    pub(super) fn with_index(&self, order: Order, envelope: &Node<'_>) -> Order {
        let total = envelope
            .some("transaction")
            .and_then(|t| t.get("total_order"));
        match (order, total.and_then(Node::as_u64)) {
            // Their own places are finer.
            (Order::Log(_), _) if !self.is_postgres => order,
            (Order::Log(position), Some(index)) => Order::Log(LogPosition { index, ..position }),
            (order, _) => order,
        }
    }

    /// The transaction's id: `transaction.id` up to the colon, else `source.txId`.
    pub(super) fn transaction(&self, envelope: &Node<'_>) -> Option<String> {
        let named = envelope.some("transaction").and_then(|t| t.get("id"));
        match named.and_then(Node::as_str) {
            Some(id) => Some(transaction_id(id)),
            None => self.transaction.clone(),
        }
    }
}

/// The `transaction` block of an envelope.
pub(super) fn in_transaction(envelope: &Node<'_>) -> Option<InTransaction> {
    let block = envelope.some("transaction")?;
    Some(InTransaction {
        id: transaction_id(block.get("id")?.as_str()?),
        total_order: block.get("total_order").and_then(Node::as_u64),
        table_order: block.get("data_collection_order").and_then(Node::as_u64),
    })
}

/// PostgreSQL's connector writes `txid:lsn`, and the LSN differs between BEGIN, END and every event.
/// Colons in other connectors' ids (a GTID, a commit LSN of SQL Server) belong to them.
pub(super) fn transaction_id(id: &str) -> String {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match id.split_once(':') {
        Some((id, lsn)) if is_number(id) && is_number(lsn) => id.to_owned(),
        _ => id.to_owned(),
    }
}

/// `["24023119","24023128"]` → 24023119; `[null,"24023128"]` → 0.
pub(super) fn first_of_sequence(text: &str) -> Option<u64> {
    match json::parse(text.as_bytes(), "sequence").ok()? {
        Node::Array(items) => match items.first()? {
            Node::Null => Some(0),
            first => first.as_u64(),
        },
        _ => None,
    }
}
