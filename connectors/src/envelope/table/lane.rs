//! One partition: what of it was seen before.
//!
//! The idea: a connector that restarts sends again from an older position, in the same order and to
//! the same partitions. So everything below the highest position seen was seen, and at it exactly the
//! (event, key) pairs that are remembered: several events share one position (both halves of a key
//! change, all rows of a COPY).
//!
//! Invariants: memory is the events at one position, plus keys of lone tombstones until the mark
//! moves. Snapshots' reads neither set nor obey the mark (a transaction may begin before a snapshot
//! and be streamed after it), but a snapshot *below* what the partition has seen tells of a new
//! history: the database was restored or replaced, and its log began again.

use std::collections::HashSet;

use engine::model::Key;
use serde::{Deserialize, Serialize};

use crate::envelope::ChangeKind;
use crate::envelope::order::{LogKind, LogPosition, Order};

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
    at_mark: HashSet<(ChangeKind, Key)>,
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

    /// The LSN of the highest position seen.
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
        let is_old = position.is_before(&mark)
            || position == mark && self.at_mark.contains(&(kind, key.clone()));
        is_old && !self.reopened.contains(key)
    }

    fn admit_log(&mut self, key: &Key, kind: ChangeKind, position: LogPosition) -> Admission {
        let mark = self.mark.filter(|mark| position.is_before(mark));
        if mark.is_some() {
            return match self.reopened.contains(key) {
                true => Admission::New,
                false => Admission::SeenBefore,
            };
        }
        let mut admission = Admission::New;
        if self.mark != Some(position) {
            // The log of another server, which begins further back.
            let is_other = self.mark.is_some_and(|mark| position.lsn < mark.lsn);
            if is_other && matches!(position.kind, LogKind::Binlog(_)) {
                admission = Admission::NewHistory;
            }
            self.mark = Some(position);
            self.at_mark.clear();
            self.reopened.clear();
        }
        if position.kind == LogKind::Shared {
            return admission;
        }
        let is_new = self.at_mark.insert((kind, key.clone()));
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
