//! Where an event stands in its source's own order (PROTOCOLS §7.1).
//!
//! PostgreSQL logs events in the order of their writing and commits in another, so an LSN alone is
//! neither an identity nor monotone. Debezium's `source.sequence[0]` is the commit before the event's
//! transaction: with the LSN inside the transaction it orders all streamed events of a slot. A
//! snapshot's reads stand outside of that order: transactions that began before it may be streamed
//! after it, with lower positions.

use serde::{Deserialize, Serialize};

/// A place in PostgreSQL's log, as Debezium tells it. Ordered.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct LogPosition {
    /// `source.sequence[0]`: the last commit before the event's transaction; 0 where there was none
    /// since the connector started for the first time.
    pub commit: u64,
    /// `source.lsn`
    pub lsn: u64,
    /// `transaction.total_order`, where transaction metadata is on; else 0.
    pub index: u64,
}

/// The order of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Streamed from PostgreSQL's log.
    Log(LogPosition),
    /// Read by a snapshot at this log position.
    Snapshot {
        /// `source.lsn` of the snapshot: equal for all its rows.
        lsn: u64,
    },
    /// Read by an incremental snapshot, between streamed events. Debezium has dropped the reads
    /// that lost to a streamed event within their watermarks; what is sent is new where it stands.
    Incremental,
    /// No order but the offset's.
    Offset,
}

impl Order {
    /// The place in the log, of a streamed change.
    pub fn log(&self) -> Option<LogPosition> {
        match self {
            Order::Log(position) => Some(*position),
            Order::Snapshot { .. } | Order::Incremental | Order::Offset => None,
        }
    }

    /// The LSN, of a streamed change or a snapshot's read.
    pub fn lsn(&self) -> Option<u64> {
        match self {
            Order::Log(position) => Some(position.lsn),
            Order::Snapshot { lsn } => Some(*lsn),
            Order::Incremental | Order::Offset => None,
        }
    }
}
