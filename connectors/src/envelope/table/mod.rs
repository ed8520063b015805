//! The rows of one table from its changes in the order of their arrival.
//!
//! ```text
//! Decoded ─▶ lane: seen before? ─▶ truncated since? ─▶ unsent: fill in, or park ─▶ Output
//!              │ (log position, (event, key) at it)       ▲ LiveRows
//!              └ memory: O(partitions)                    └ memory: rows that wait
//! ```
//!
//! The law, checked on generated histories: when everything that was sent has arrived, the rows equal
//! the source's table, whatever was delivered twice, from older offsets, or late in another
//! partition. What cannot be known is a letter and never a guess.
//!
//! Invariants: one partition's messages come in the order of their offsets, but truncates that go ahead
//! ([`Table::truncate_ahead`]); [`LiveRows`] shows everything that was put out before. Limits:
//! `ENVELOPE_PARKED_ROWS_MAX` rows that wait, `ENVELOPE_RECENT_ROWS_MAX` keys remembered for a truncate that
//! other partitions ran ahead of.
//! A topic whose number of partitions grows moves keys between partitions: an old re-delivery may
//! then meet a partition that never saw it. Drain the topic first.

mod lane;
mod recent;
mod unsent;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use engine::error::DataError;
use engine::limits::ENVELOPE_SNAPSHOT_KEYS_MAX;
use engine::model::{Key, Value};
use serde::{Deserialize, Serialize};

use super::order::{LogKind, LogPosition, Order};
use super::{ChangeKind, Decoded, Marker, Move, RowChange};
use lane::{Admission, Lane};
use recent::Recent;
use unsent::{Arrival, MoveName, Unsent};

/// The table as it stands after everything that was put out.
pub trait LiveRows {
    /// The row of a key, one value a column.
    fn row(&self, key: &Key) -> Option<Vec<Value>>;
}

/// What to do to the table.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A row comes, or takes the place of the key's row.
    Upsert {
        /// Its key.
        key: Key,
        /// One value a column.
        values: Vec<Value>,
    },
    /// A row goes, if it is there.
    Delete {
        /// Its key.
        key: Key,
    },
    /// All rows go but those that were written after the truncate and arrived before it.
    Truncate {
        /// They stay.
        survivors: BTreeSet<Key>,
    },
    /// A snapshot begins. At a restart the rows that it does not read again are ghosts: see
    /// [`Table::sweep`].
    SnapshotStarted {
        /// Whether one began before.
        is_restart: bool,
    },
    /// The last row of the snapshot was read, in this partition: others may still bring some.
    SnapshotEnded,
}

/// How a message comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// For the first time, as far as is known.
    First,
    /// A truncate that has no effect, because a later one was taken: it may not have come before.
    Overtaken,
    /// It, or all that it changes, was taken before: it has no effect.
    Again,
}

/// What is bad, and of which row.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// The row, where it is known.
    pub key: Option<Key>,
    /// The cause.
    pub error: DataError,
}

impl Letter {
    fn of(key: &Key, error: DataError) -> Letter {
        let key = Some(key.clone());
        Letter { key, error }
    }
}

impl From<DataError> for Letter {
    fn from(error: DataError) -> Letter {
        Letter { key: None, error }
    }
}

impl std::ops::Deref for Letter {
    type Target = DataError;

    fn deref(&self) -> &DataError {
        &self.error
    }
}

/// What one message comes to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Applied {
    /// To be done in this order.
    pub outputs: Vec<Output>,
    /// What is not or cannot be known.
    pub letters: Vec<Letter>,
    /// Changes that were delivered before, or that a truncate had overtaken.
    pub dropped: u64,
}

/// The state of one table: what re-deliveries and unsent values need, not the rows. Serialisable,
/// so that a restart goes on where the input log ends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    lanes: BTreeMap<i32, Lane>,
    partitions: usize,
    /// The place of the last truncate.
    truncated_at: Option<LogPosition>,
    recent: Recent,
    unsent: Unsent,
    snapshot: Option<Option<u64>>,
    /// Keys written since a snapshot began again.
    touched: Option<HashSet<Key>>,
}

impl Table {
    /// The state of a table whose topic has this many partitions.
    pub fn new(partitions: usize) -> Table {
        Table {
            lanes: BTreeMap::new(),
            partitions,
            truncated_at: None,
            recent: Recent::default(),
            unsent: Unsent::default(),
            snapshot: None,
            touched: None,
        }
    }

    /// The topic has more partitions now.
    pub fn set_partitions(&mut self, partitions: usize) {
        self.partitions = partitions;
    }

    /// Rows that wait for values which were not sent.
    pub fn parked_rows(&self) -> usize {
        self.unsent.parked_rows()
    }

    /// What is not known now: an error for each row that waits, in the order of their keys.
    pub fn unresolved(&self) -> Vec<Letter> {
        self.unsent.unresolved()
    }

    /// After [`Output::SnapshotEnded`] of a restart, when all partitions are read up to their ends of
    /// that moment: the live keys that neither the snapshot nor a later event brought. Delete them.
    pub fn sweep<'a>(&mut self, live: impl IntoIterator<Item = &'a Key>) -> Vec<Key> {
        let Some(touched) = self.touched.take() else {
            return Vec::new();
        };
        let ghosts = live.into_iter().filter(|key| !touched.contains(*key));
        ghosts.cloned().collect()
    }

    /// Whether a message comes for the first time, as far as is known.
    pub fn delivery(&self, decoded: &Decoded) -> Delivery {
        // A truncate has no key, and comes again through any partition.
        let mut truncates = decoded.truncates();
        let to_last = truncates.find_map(|order| self.to_last_truncate(order.place()));
        if to_last == Some(Ordering::Equal) {
            return Delivery::Again;
        }
        let truncates = decoded.truncates();
        let truncates = truncates.map(|order| (Key::default(), ChangeKind::Delete, order));
        let changes = decoded.changes.iter();
        let changes = changes.map(|change| (change.key.clone(), change.kind, change.order));
        let mut all = truncates.chain(changes).peekable();
        let lane = self.lanes.get(&decoded.partition);
        let lane = lane.filter(|_| all.peek().is_some());
        let is_again =
            lane.is_some_and(|lane| all.all(|(key, kind, order)| lane.has_seen(&key, kind, order)));
        match is_again && !decoded.truncates().any(|order| self.may_be_new(order)) {
            true => Delivery::Again,
            false if to_last == Some(Ordering::Less) => Delivery::Overtaken,
            false => Delivery::First,
        }
    }

    /// Takes one message. Cost: a few look-ups a change.
    pub fn apply(&mut self, decoded: Decoded, live: &impl LiveRows) -> Applied {
        let mut out = Applied::default();
        let lane = self.lanes.entry(decoded.partition).or_default();
        if !lane.advance(decoded.offset) {
            out.dropped = decoded.changes.len() as u64;
            return out;
        }
        let key = &decoded.key;
        let letters = decoded.letters.into_iter().map(|error| Letter {
            key: key.clone(),
            error,
        });
        out.letters = letters.collect();
        for marker in &decoded.markers {
            match marker {
                Marker::SnapshotFirst { lsn } => self.begin_snapshot(*lsn, &mut out),
                Marker::Truncate { order } => self.truncate(decoded.partition, *order, &mut out),
                _ => {}
            }
        }
        for change in decoded.changes {
            self.change(decoded.partition, change, live, &mut out);
        }
        let is_last = |marker: &Marker| matches!(marker, Marker::SnapshotLast { .. });
        if decoded.markers.iter().any(is_last) {
            out.outputs.push(Output::SnapshotEnded);
        }
        out
    }

    /// A run begins with the first of its reads that arrives, in whatever partition: those of one run
    /// share an LSN. Without LSNs it begins with the marker.
    fn begin_snapshot(&mut self, lsn: Option<u64>, out: &mut Applied) {
        let is_late = match (self.snapshot, lsn) {
            (Some(Some(run)), Some(lsn)) => lsn <= run,
            _ => false,
        };
        if is_late {
            return;
        }
        let is_restart = self.snapshot.is_some();
        self.snapshot = Some(lsn);
        if is_restart {
            self.touched = match lsn {
                // Other partitions may have brought reads of it before this one brought its first.
                None if self.partitions > 1 => {
                    let error = unordered_snapshot(
                        "rows that it does not read again stay: the source sends no order across \
                         partitions",
                    );
                    out.letters.push(error.into());
                    None
                }
                // Partitions that are ahead have brought rows written after the snapshot.
                _ => {
                    let later = self
                        .recent
                        .after(lsn.and_then(|lsn| Order::Snapshot { lsn }.place()));
                    if later.is_forgetful {
                        let error = unordered_snapshot(
                            "rows that were written after it may be taken for ghosts: partitions ran \
                             further ahead of it than ENVELOPE_RECENT_ROWS_MAX rows",
                        );
                        out.letters.push(error.into());
                    }
                    Some(later.keys.into_iter().collect())
                }
            };
        }
        out.outputs.push(Output::SnapshotStarted { is_restart });
    }

    /// Takes the truncates of a message before earlier ones of its partition, which were written later.
    pub fn truncate_ahead(&mut self, decoded: &Decoded) -> Applied {
        let mut out = Applied::default();
        for order in decoded.truncates() {
            self.admit_truncate(order, &mut out);
        }
        out
    }

    fn truncate(&mut self, partition: i32, order: Order, out: &mut Applied) {
        let lane = self.lanes.entry(partition).or_default();
        match lane.admit(&Key::default(), ChangeKind::Delete, order) {
            Admission::SeenBefore if !self.may_be_new(order) => {
                if self.is_unseen(order) {
                    out.letters.push(late_truncate().into());
                }
                out.dropped += 1;
                return;
            }
            Admission::NewHistory => self.begin_history(order),
            Admission::New | Admission::SeenBefore => {}
        }
        self.admit_truncate(order, out);
    }

    /// A truncate that its partition does not speak against.
    fn admit_truncate(&mut self, order: Order, out: &mut Applied) {
        let at = order.place();
        if self.to_last_truncate(at).is_some_and(Ordering::is_le) {
            out.dropped += 1;
            return;
        }
        if at.is_none() && self.partitions > 1 {
            let error = unordered_truncate("the source sends no order across partitions");
            out.letters.push(error.into());
        }
        let after = self.recent.after(at);
        if after.is_forgetful {
            let error = unordered_truncate(
                "partitions ran further ahead of it than ENVELOPE_RECENT_ROWS_MAX rows",
            );
            out.letters.push(error.into());
        } else if after.is_doubtful {
            let error = unordered_truncate(
                "another server wrote rows of other partitions, and only the servers' clocks order \
                 them",
            );
            out.letters.push(error.into());
        }
        let survivors = after.keys;
        self.truncated_at = at.or(self.truncated_at);
        self.unsent.truncate(at);
        if let Some(touched) = &mut self.touched {
            touched.retain(|key| survivors.contains(key));
        }
        out.outputs.push(Output::Truncate { survivors });
    }

    fn change(
        &mut self,
        partition: i32,
        change: RowChange,
        live: &impl LiveRows,
        out: &mut Applied,
    ) {
        let lane = self.lanes.entry(partition).or_default();
        if lane.is_echo(&change.key, change.kind) {
            return;
        }
        match lane.admit(&change.key, change.kind, change.order) {
            Admission::SeenBefore => {
                out.dropped += 1;
                return;
            }
            Admission::NewHistory => self.begin_history(change.order),
            Admission::New => {}
        }
        if self.is_truncated(change.order, &self.lanes[&partition]) {
            out.dropped += 1;
            return;
        }
        if let Order::Snapshot { lsn } = change.order {
            self.begin_snapshot(Some(lsn), out);
            if self.snapshot != Some(Some(lsn)) {
                // Of a run that died, in a partition that is behind: the later run reads the row
                // again, or it is gone.
                out.dropped += 1;
                return;
            }
        }
        self.remember(&change, out);
        match change.row {
            None => self.delete(change, live, out),
            Some(_) => self.upsert(change, live, out),
        }
    }

    /// The log began again: what is known of places says nothing any more.
    fn begin_history(&mut self, order: Order) {
        self.truncated_at = None;
        self.recent = Recent::default();
        if self.snapshot != Some(order.lsn()) {
            self.snapshot = Some(None);
        }
    }

    /// Where a truncate stands to the last one; `None`: nobody knows.
    fn to_last_truncate(&self, place: Option<LogPosition>) -> Option<Ordering> {
        let (place, last) = place.zip(self.truncated_at)?;
        place.to_truncate(&last)
    }

    /// Whether a truncate may come for the first time in a partition that has seen what was written later.
    /// A connector that is killed loses what it had not sent, of each partition the last; and a truncate,
    /// which has no key, then comes through another partition than the one that lost it. While some partition
    /// has not come so far, [`Recent`] knows the rows that it leaves.
    fn may_be_new(&self, order: Order) -> bool {
        let has_come = |at: LogPosition| {
            let marks = self.lanes.values().filter_map(Lane::mark);
            marks.filter(|mark| at.is_before(mark)).count()
        };
        let is_behind = |at| has_come(at) < self.partitions;
        self.is_unseen(order) && order.place().is_some_and(is_behind)
    }

    /// Whether a truncate was not taken before, nor what a snapshot read after it.
    fn is_unseen(&self, order: Order) -> bool {
        let Order::Log(at) = order else {
            return false;
        };
        let is_read = matches!(self.snapshot, Some(Some(run)) if at.lsn <= run);
        let is_later = self.to_last_truncate(Some(at)).is_none_or(Ordering::is_gt);
        let is_exact = matches!(at.kind, LogKind::Total | LogKind::Binlog(_));
        self.partitions > 1 && is_exact && is_later && !is_read
    }

    /// Whether a truncate that came through another partition stands after the change.
    fn is_truncated(&self, order: Order, lane: &Lane) -> bool {
        let Some(at) = self.truncated_at else {
            return false;
        };
        let is_before = |place: LogPosition| place.to_truncate(&at) == Some(Ordering::Less);
        match order {
            // A row that is read after the truncate was inserted after it: by an event of the same
            // partition, before the read.
            Order::Incremental => lane.mark().is_none_or(&is_before),
            order => order.place().is_some_and(is_before),
        }
    }

    fn remember(&mut self, change: &RowChange, out: &mut Applied) {
        if self.partitions > 1 {
            let lanes = &self.lanes;
            let all_seen = lanes.len() >= self.partitions;
            let behind = lanes.values().map(Lane::mark_lsn).min().flatten();
            let behind = behind.filter(|_| all_seen);
            let is_live = change.row.is_some();
            self.recent.saw(&change.key, change.order, is_live, behind);
        }
        if let Some(touched) = &mut self.touched {
            touched.insert(change.key.clone());
            // They are written with every batch.
            if touched.len() > ENVELOPE_SNAPSHOT_KEYS_MAX {
                self.touched = None;
                out.letters.push(large_snapshot().into());
            }
        }
    }

    fn delete(&mut self, change: RowChange, live: &impl LiveRows, out: &mut Applied) {
        let name = match &change.moved {
            Some(Move::To(to)) => Some(MoveName::new(&change.key, to, change.order)),
            _ => None,
        };
        self.unsent
            .delete(&change.key, name, || live.row(&change.key), out);
        out.outputs.push(Output::Delete { key: change.key });
    }

    fn upsert(&mut self, change: RowChange, live: &impl LiveRows, out: &mut Applied) {
        let Some(row) = change.row else {
            return;
        };
        let name = match &change.moved {
            Some(Move::From(from)) => Some(MoveName::new(from, &change.key, change.order)),
            _ => None,
        };
        let arrival = Arrival {
            key: change.key.clone(),
            cells: row.cells,
            order: change.order,
            is_new: change.kind == ChangeKind::Create,
        };
        self.unsent
            .upsert(arrival, name, || live.row(&change.key), out);
    }
}

fn unordered_snapshot(what: &str) -> DataError {
    DataError::new(
        "snapshot-order-unknown",
        format!("a snapshot began again; {what}"),
    )
    .hint(
        "read the table again (a new snapshot) while nothing else is written, or use one partition",
    )
}

fn large_snapshot() -> DataError {
    DataError::new(
        "snapshot-order-unknown",
        "a snapshot began again and is larger than ENVELOPE_SNAPSHOT_KEYS_MAX rows: rows that were \
         deleted before it may stay",
    )
    .hint("drop the source and create it again")
}

fn late_truncate() -> DataError {
    DataError::new(
        "truncate-too-late",
        "a truncate came when all partitions had shown later changes, and was passed over: rows that it deletes \
         may be there",
    )
    .hint(
        "read the table again (a new snapshot), or use one partition for tables that are truncated",
    )
}

fn unordered_truncate(reason: &str) -> DataError {
    DataError::new(
        "truncate-order-unknown",
        format!("a truncate may have deleted rows that were written after it: {reason}"),
    )
    .hint(
        "read the table again (a new snapshot), or use one partition for tables that are truncated",
    )
}
