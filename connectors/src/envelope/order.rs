//! Where an event stands in its source's own order (PROTOCOLS §7.1).
//!
//! PostgreSQL logs events in the order of their writing and commits in another, so an LSN alone is
//! neither an identity nor monotone. Debezium's `source.sequence[0]` is the commit before the event's
//! transaction: with the LSN inside the transaction it orders all streamed events of a slot. A
//! snapshot's reads stand outside of that order: transactions that began before it may be streamed
//! after it, with lower positions.
//!
//! | connector | commit | lsn | index | one place is |
//! |---|---|---|---|---|
//! | PostgreSQL | `sequence[0]` | `lsn` | `total_order` | what is written at once |
//! | SQL Server | `commit_lsn` | `change_lsn` | `event_serial_no` | one event |
//! | MySQL, MariaDB | the GTID's number, else the file's | file and `pos` | `row` | one row |
//! | MongoDB to 3.3 | | `ts_ms` in seconds, `ord` | | a transaction of several documents |
//!
//! A MySQL server that takes another's place has files of its own, so there an event is old only if its
//! GTID *and* its place in the files say so; what one of them doubts is new. Group replication gives each
//! member a block of one UUID's numbers, so numbers are compared within one member.
//!
//! Within a transaction SQL Server's connector orders by the change or by the command
//! (`data.query.mode`), so its commits alone are ordered. From Debezium 3.4 on MongoDB's `ts_ms` is the wall
//! clock, with which `ord` means nothing: such an event has no place.
//!
//! What is delivered again was written at the same time as ever. An event that was written later than
//! all that were seen is new, whatever its place says: the log began again. (Not of PostgreSQL: a truncate
//! comes again through any partition, and its clock may be set back.)

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// What a place in the log tells.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum LogKind {
    /// Places are ordered, and one holds each (event, key) once.
    #[default]
    Total,
    /// Places are ordered, and one may hold an (event, key) several times.
    Shared,
    /// A binlog of MySQL, and which: places of another one say nothing.
    Binlog(u64),
    /// Transactions are ordered, and not what is in them.
    Commit,
}

/// A place in a database's log, as Debezium tells it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct LogPosition {
    /// The transaction. PostgreSQL: `source.sequence[0]`, the last commit before it; 0 where there was
    /// none since the connector started for the first time.
    pub commit: u64,
    /// `source.lsn`
    pub lsn: u64,
    /// `transaction.total_order`, where transaction metadata is on; else 0.
    pub index: u64,
    /// What it tells.
    pub kind: LogKind,
    /// `source.ts_ms`: when it was written, by the database's clock, milliseconds since the epoch; 0 where
    /// that is not told.
    pub at_ms: u64,
}

impl LogPosition {
    /// Whether everything at this place was sent before what is at `mark`.
    pub fn is_before(&self, mark: &LogPosition) -> bool {
        let place = |position: &LogPosition| (position.lsn, position.index);
        match (self.kind, mark.kind) {
            (LogKind::Commit, LogKind::Commit) => self.commit < mark.commit,
            (LogKind::Binlog(log), LogKind::Binlog(other)) => {
                let is_same_file = self.lsn >> BINLOG_BITS == mark.lsn >> BINLOG_BITS;
                let is_not_later =
                    self.commit < mark.commit || self.commit == mark.commit && is_same_file;
                log == other && is_not_later && place(self) < place(mark)
            }
            _ => (self.commit, place(self)) < (mark.commit, place(mark)),
        }
    }

    /// Whether two events have one place.
    pub fn is_at(&self, mark: &LogPosition) -> bool {
        match (self.kind, mark.kind) {
            (LogKind::Commit, LogKind::Commit) => {
                (self.commit, self.at_ms) == (mark.commit, mark.at_ms)
            }
            _ => self == mark,
        }
    }

    /// How what is written here stands to a truncate, or a truncate to another one; `None`: that is not
    /// known. PostgreSQL: TRUNCATE locks the table until its commit, so every other transaction wrote
    /// there before it and has committed, or writes after its commit: the LSN alone tells.
    pub fn to_truncate(&self, truncate: &LogPosition) -> Option<Ordering> {
        match (self.kind, truncate.kind) {
            (LogKind::Binlog(_) | LogKind::Commit, _) | (_, LogKind::Binlog(_)) => {
                if self.is_at(truncate) {
                    Some(Ordering::Equal)
                } else if self.is_before(truncate) {
                    Some(Ordering::Less)
                } else {
                    let is_after = truncate.is_before(self);
                    is_after.then_some(Ordering::Greater)
                }
            }
            _ => Some(self.lsn.cmp(&truncate.lsn)),
        }
    }
}

/// Bits of a place in a file of a binlog; the number of the file stands above.
pub const BINLOG_BITS: u32 = 40;

/// The order of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Streamed from a database's log.
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

    /// The place against which a truncate is compared, of a streamed change or a snapshot's read.
    pub fn place(&self) -> Option<LogPosition> {
        match self {
            Order::Log(position) => Some(*position),
            Order::Snapshot { lsn } => Some(LogPosition {
                lsn: *lsn,
                ..LogPosition::default()
            }),
            Order::Incremental | Order::Offset => None,
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
