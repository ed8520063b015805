//! One partition: what of it was seen before.
//!
//! The idea: a connector that restarts sends again from an older position, in the same order and to
//! the same partitions. So everything below the highest position seen was seen, and at it exactly the
//! (event, key) pairs that are remembered: several events share one position (both halves of a key
//! change, all rows of a COPY).
//!
//! Of a log that orders its transactions alone the position is the transaction; more of one than
//! [`COMMIT_EVENTS_MAX`] are not remembered, and are taken again: they end as they did.
//!
//! Invariants: what was written later than all that was seen is new (not of PostgreSQL, whose places
//! alone decide). Memory is the events at one position, plus keys of lone tombstones until the mark
//! moves. Snapshots' reads neither set nor obey the mark (a transaction may begin before a snapshot
//! and be streamed after it), but a snapshot *below* what the partition has seen tells of a new
//! history: the database was restored or replaced, and its log began again.

use std::collections::HashSet;

use engine::model::Key;
use serde::{Deserialize, Serialize};

use crate::envelope::ChangeKind;
use crate::envelope::order::{LogKind, LogPosition, Order};

/// Events of one transaction that are remembered, of a log that orders no more than those: they are
/// written with every batch.
const COMMIT_EVENTS_MAX: usize = 1_024;

/// An event at a position: its place in the transaction, where the position is the transaction, and its
/// op and key.
type AtMark = (u64, u64, ChangeKind, Key);

/// What a lane says of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Not seen before.
    New,
    /// Delivered before.
    SeenBefore,
    /// The first of a log that began again.
    NewHistory,
}

/// The memory of one partition.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Lane {
    offset: Option<i64>,
    mark: Option<LogPosition>,
    /// The latest time at which something was written that was seen.
    newest_ms: u64,
    at_mark: HashSet<AtMark>,
    snapshot: Option<u64>,
    /// The key of the message before, if that was a delete: its tombstone follows.
    deleted: Option<Key>,
    /// Keys that a lone tombstone deleted below the mark: what follows for them is not dropped.
    reopened: HashSet<Key>,
}

impl Lane {
    /// Takes an offset; false where it was read before.
    pub(super) fn advance(&mut self, offset: i64) -> bool {
        let is_new = self.offset.is_none_or(|last| offset > last);
        self.offset = self.offset.max(Some(offset));
        is_new
    }

    /// The highest position seen.
    pub(super) fn mark(&self) -> Option<LogPosition> {
        self.mark
    }

    /// Its LSN.
    pub(super) fn mark_lsn(&self) -> Option<u64> {
        self.mark.map(|mark| mark.lsn)
    }

    /// Whether this is the tombstone that Debezium sends behind a delete. A lone tombstone, whose
    /// delete was compacted away, is a delete.
    pub(super) fn is_echo(&mut self, key: &Key, kind: ChangeKind) -> bool {
        let deleted = self.deleted.take();
        match kind {
            ChangeKind::Tombstone if deleted.as_ref() == Some(key) => return true,
            ChangeKind::Tombstone if self.mark.is_some() => {
                self.reopened.insert(key.clone());
            }
            ChangeKind::Delete => self.deleted = Some(key.clone()),
            _ => {}
        }
        false
    }

    /// Judges a change by its order, and remembers it.
    pub(super) fn admit(&mut self, key: &Key, kind: ChangeKind, order: Order) -> Admission {
        match order {
            Order::Log(position) => self.admit_log(key, kind, position),
            Order::Snapshot { lsn } => self.admit_read(lsn),
            // Its place is not known: the log may have begun again.
            Order::Offset if kind == ChangeKind::Read && self.mark.is_some() => {
                self.mark = None;
                self.at_mark.clear();
                Admission::NewHistory
            }
            Order::Incremental | Order::Offset => Admission::New,
        }
    }

    /// Whether a change was delivered before, as [`Lane::admit`] would say.
    pub(super) fn has_seen(&self, key: &Key, kind: ChangeKind, order: Order) -> bool {
        let (Order::Log(position), Some(mark)) = (order, self.mark) else {
            return false;
        };
        let is_old = self.is_old(&position)
            || position.is_at(&mark) && self.at_mark.contains(&at_mark(key, kind, position));
        is_old && !self.reopened.contains(key)
    }

    /// Whether a position lies below the mark, in the same history.
    fn is_old(&self, position: &LogPosition) -> bool {
        let is_before = self.mark.is_some_and(|mark| position.is_before(&mark));
        // PostgreSQL's positions order everything; its clock may be set back.
        is_before && (position.kind == LogKind::Total || position.at_ms <= self.newest_ms)
    }

    fn admit_log(&mut self, key: &Key, kind: ChangeKind, position: LogPosition) -> Admission {
        if self.is_old(&position) {
            return match self.reopened.contains(key) {
                true => Admission::New,
                false => Admission::SeenBefore,
            };
        }
        let mut admission = Admission::New;
        if !self.mark.is_some_and(|mark| position.is_at(&mark)) {
            // Another log, which begins further back: another server's, or that of a restored database.
            let is_back = self.mark.is_some_and(|mark| match position.kind {
                LogKind::Binlog(_) => position.lsn < mark.lsn,
                _ => position.is_before(&mark),
            });
            if is_back {
                admission = Admission::NewHistory;
            }
            self.mark = Some(position);
            self.newest_ms = self.newest_ms.max(position.at_ms);
            self.at_mark.clear();
            self.reopened.clear();
        }
        if position.kind == LogKind::Shared {
            return admission;
        }
        let is_full = position.kind == LogKind::Commit && self.at_mark.len() >= COMMIT_EVENTS_MAX;
        let name = at_mark(key, kind, position);
        let is_new = match is_full {
            true => !self.at_mark.contains(&name),
            false => self.at_mark.insert(name),
        };
        match is_new || self.reopened.contains(key) {
            true => admission,
            false => Admission::SeenBefore,
        }
    }

    fn admit_read(&mut self, lsn: u64) -> Admission {
        if self.snapshot == Some(lsn) {
            return Admission::New;
        }
        let highest = self.snapshot.max(self.mark_lsn());
        self.snapshot = Some(lsn);
        if highest.is_some_and(|highest| lsn < highest) {
            self.mark = None;
            self.at_mark.clear();
            return Admission::NewHistory;
        }
        Admission::New
    }
}

fn at_mark(key: &Key, kind: ChangeKind, position: LogPosition) -> AtMark {
    let (lsn, index) = match position.kind {
        LogKind::Commit => (position.lsn, position.index),
        _ => (0, 0),
    };
    (lsn, index, kind, key.clone())
}
