//! Admission: versions, order, and the bounds of what may be staged.
//!
//! A source's batch gets versions and a place in its lane, is appended to the log, and goes to the
//! sequencer. Nothing is bound to a time here. Invariants: a key's admitted versions strictly
//! increase; a lane's sequence numbers have no gap; staged bytes are bounded per source.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex};

use ahash::AHashMap;

use super::lanes::StagedBatch;
use crate::limits;
use crate::model::{Change, Key, ObjectId, Row};

/// The last admitted version of a key: one that lives, or one that was deleted.
#[derive(Debug, Clone)]
struct LastVersion {
    version: u64,
    /// Its bytes are shared with the arranged documents, so keeping it here costs a pointer.
    live: Option<Row>,
}

#[derive(Debug, Default)]
struct SourceState {
    keys: AHashMap<Key, LastVersion>,
    /// Keys whose last version lives.
    live: usize,
    lanes: AHashMap<String, LaneState>,
    staged_bytes: usize,
    /// Those of them that are bound only with a batch that is to come: they cannot make room.
    open_bytes: usize,
}

#[derive(Debug, Default, Clone)]
struct LaneState {
    sequence: u64,
    /// Bytes of the lane's last batches that its next one goes on with; `None` when the last one was an end.
    open_bytes: Option<usize>,
    position: Option<String>,
    /// The marks of the last batches, oldest first.
    marks: VecDeque<(u64, Marks)>,
}

/// Where a lane stood, in its source's own terms.
type Marks = BTreeMap<String, u64>;

/// Batches whose marks are remembered a lane.
const MARKS_MAX: usize = 1024;

impl LaneState {
    fn note(&mut self, sequence: u64, position: Option<Standing>) {
        self.sequence = self.sequence.max(sequence);
        let Some(Standing { position, marks }) = position else {
            return;
        };
        self.reached(sequence, marks);
        self.position = Some(position);
    }

    /// Where the lane stood after a batch: the last word on it counts.
    fn reached(&mut self, sequence: u64, marks: Marks) {
        if marks.is_empty() {
            return;
        }
        if self.marks.back().is_some_and(|(last, _)| *last == sequence) {
            self.marks.pop_back();
        }
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((sequence, marks));
    }

    /// The first remembered batch with which a mark had reached a number.
    fn covering(&self, name: &str, mark: u64) -> Option<u64> {
        let reached = |marks: &Marks| marks.get(name).is_some_and(|at| *at >= mark);
        let found = self.marks.partition_point(|(_, marks)| !reached(marks));
        self.marks.get(found).map(|(sequence, _)| *sequence)
    }
}

/// A position with its marks: read before the lock is taken, because a position may be long.
struct Standing {
    position: String,
    marks: Marks,
}

impl Standing {
    fn of(position: Option<String>) -> Option<Standing> {
        position.map(|position| Standing {
            marks: marks(&position),
            position,
        })
    }
}

/// `{"marks":{…}}` of a position.
fn marks(position: &str) -> Marks {
    #[derive(serde::Deserialize)]
    struct Position {
        #[serde(default)]
        marks: Marks,
    }
    // Positions of other shapes have none.
    serde_json::from_str::<Position>(position).map_or_else(|_| Marks::new(), |found| found.marks)
}

/// What admission made of a batch.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) changes: Vec<Change>,
    pub(super) ignored: u64,
    pub(super) sequence: u64,
    pub(super) bytes: usize,
    pub(super) is_open: bool,
}

/// The admission state of all sources.
#[derive(Debug, Default)]
pub(super) struct Ingest {
    sources: Mutex<AHashMap<ObjectId, SourceState>>,
    room: Condvar,
}

/// A batch on its way in; its position is read before the lock: other sources are admitted meanwhile.
pub(super) struct Offer {
    source: ObjectId,
    lane: String,
    changes: Vec<(Key, Option<Row>, Option<u64>)>,
    position: Option<Standing>,
    /// Whether what it begins goes on; `None` leaves the lane as it is.
    is_open: Option<bool>,
}

impl Offer {
    /// One that ends what it is a part of.
    pub(super) fn new(
        source: ObjectId,
        lane: &str,
        changes: Vec<(Key, Option<Row>, Option<u64>)>,
        position: Option<String>,
    ) -> Offer {
        Offer {
            source,
            lane: lane.to_owned(),
            changes,
            position: Standing::of(position),
            is_open: Some(false),
        }
    }

    /// See [`super::lanes::StagedBatch::is_open`]; `None`: open if the lane is.
    pub(super) fn open(self, is_open: Option<bool>) -> Offer {
        Offer { is_open, ..self }
    }
}

impl Ingest {
    /// Gives versions and sequence numbers to batches that belong together, each of a source of its
    /// own; calls `log` while the order of their lanes is held.
    pub(super) fn admit<R>(&self, offers: Vec<Offer>, log: impl FnOnce(Vec<Admitted>) -> R) -> R {
        let mut sources = self.sources.lock().expect("no panic while held");
        let admitted = offers.into_iter().map(|offer| {
            let state = sources.entry(offer.source).or_default();
            state.admit(offer)
        });
        log(admitted.collect())
    }

    /// The same for one batch if `check`, which is told whether a key was ever admitted, finds nothing
    /// against it while the source's order is held.
    pub(super) fn admit_if<R, E>(
        &self,
        offer: Offer,
        check: impl FnOnce(&dyn Fn(&Key) -> bool) -> Result<(), E>,
        log: impl FnOnce(Admitted) -> R,
    ) -> Result<R, E> {
        let mut sources = self.sources.lock().expect("no panic while held");
        let state = sources.entry(offer.source).or_default();
        check(&|key| state.keys.contains_key(key))?;
        Ok(log(state.admit(offer)))
    }

    /// Notes where a lane has come to since its last batch.
    pub(super) fn reached(&self, source: ObjectId, lane: &str, position: &str) {
        let marks = marks(position);
        let mut sources = self.sources.lock().expect("no panic while held");
        let lane = sources
            .get_mut(&source)
            .and_then(|state| state.lanes.get_mut(lane));
        // A lane without a batch is nowhere yet.
        if let Some(lane) = lane {
            lane.reached(lane.sequence, marks);
        }
    }

    /// Notes a logged batch again, at start.
    pub(super) fn replay(
        &self,
        source: ObjectId,
        lane: &str,
        sequence: u64,
        changes: &[Change],
        position: Option<String>,
    ) {
        let position = Standing::of(position);
        let mut sources = self.sources.lock().expect("no panic while held");
        let state = sources.entry(source).or_default();
        for change in changes {
            state.note(&change.key, change.version, change.row.clone());
        }
        let lane = state.lanes.entry(lane.to_owned()).or_default();
        lane.note(sequence, position);
    }

    /// Notes staged bytes that replay found unbound.
    pub(super) fn note_staged(&self, batch: &StagedBatch) {
        let mut sources = self.sources.lock().expect("no panic while held");
        let state = sources.entry(batch.source).or_default();
        state.staged(&batch.lane, batch.bytes, batch.is_open);
    }

    /// Bytes were bound or dropped.
    pub(super) fn release(&self, source: ObjectId, bytes: usize) {
        let mut sources = self.sources.lock().expect("no panic while held");
        if let Some(state) = sources.get_mut(&source) {
            state.staged_bytes = state.staged_bytes.saturating_sub(bytes);
        }
        drop(sources);
        self.room.notify_all();
    }

    /// Whether a source may stage more.
    pub(super) fn has_room(&self, source: ObjectId) -> bool {
        let sources = self.sources.lock().expect("no panic while held");
        sources.get(&source).is_none_or(SourceState::has_room)
    }

    /// Waits for room, at most 100 ms.
    pub(super) fn wait_room(&self, source: ObjectId) {
        let sources = self.sources.lock().expect("no panic while held");
        let is_full = sources.get(&source).is_some_and(|state| !state.has_room());
        if is_full {
            let pause = std::time::Duration::from_millis(100);
            drop(
                self.room
                    .wait_timeout(sources, pause)
                    .expect("no panic while held"),
            );
        }
    }

    /// The position of a lane's last batch.
    pub(super) fn position(&self, source: ObjectId, lane: &str) -> Option<String> {
        let sources = self.sources.lock().expect("no panic while held");
        sources.get(&source)?.lanes.get(lane)?.position.clone()
    }

    /// The live rows of a source.
    pub(super) fn live(&self, source: ObjectId) -> Vec<(Key, Row)> {
        let sources = self.sources.lock().expect("no panic while held");
        let Some(state) = sources.get(&source) else {
            return Vec::new();
        };
        let live = state.keys.iter();
        let live = live.filter_map(|(key, last)| Some((key.clone(), last.live.clone()?)));
        live.collect()
    }

    /// The row of a key at the end of what was admitted.
    pub(super) fn row(&self, source: ObjectId, key: &Key) -> Option<Row> {
        let sources = self.sources.lock().expect("no panic while held");
        let last = sources.get(&source)?.keys.get(key)?;
        last.live.clone()
    }

    /// The batch, as lane and sequence, with which a mark of a source had reached a number.
    pub(super) fn covering(
        &self,
        source: ObjectId,
        name: &str,
        mark: u64,
    ) -> Option<(String, u64)> {
        let sources = self.sources.lock().expect("no panic while held");
        let mut lanes = sources.get(&source)?.lanes.iter();
        lanes.find_map(|(lane, state)| Some((lane.clone(), state.covering(name, mark)?)))
    }

    /// The lanes of a source that have batches.
    pub(super) fn lanes(&self, source: ObjectId) -> Vec<String> {
        let sources = self.sources.lock().expect("no panic while held");
        let lanes = sources
            .get(&source)
            .map(|state| state.lanes.keys().cloned());
        lanes.into_iter().flatten().collect()
    }

    /// Rows live at the end of what was admitted, and bytes staged, of a source.
    pub(super) fn sizes(&self, source: ObjectId) -> (usize, usize) {
        let sources = self.sources.lock().expect("no panic while held");
        sources
            .get(&source)
            .map_or((0, 0), |state| (state.live, state.staged_bytes))
    }

    /// Forgets a source.
    pub(super) fn drop_source(&self, source: ObjectId) {
        self.sources
            .lock()
            .expect("no panic while held")
            .remove(&source);
        self.room.notify_all();
    }
}

impl SourceState {
    /// Whatever is still open waits for what is to come, and may not keep it out.
    fn has_room(&self) -> bool {
        self.staged_bytes < limits::STAGED_BYTES_MAX + self.open_bytes
    }

    /// Notes the bytes of a lane's batch.
    fn staged(&mut self, lane: &str, bytes: usize, is_open: bool) {
        self.staged_bytes += bytes;
        let Some(lane) = self.lanes.get_mut(lane) else {
            return;
        };
        let before = lane.open_bytes.take();
        match is_open {
            true => {
                self.open_bytes += bytes;
                lane.open_bytes = Some(before.unwrap_or(0) + bytes);
            }
            false => self.open_bytes -= before.unwrap_or(0),
        }
    }

    fn admit(&mut self, offer: Offer) -> Admitted {
        let mut admitted = Admitted {
            changes: Vec::with_capacity(offer.changes.len()),
            ..Admitted::default()
        };
        for (key, row, version) in offer.changes {
            let is_live = row.is_some();
            let standing = |version| LastVersion {
                version,
                live: row.clone(),
            };
            let (version, was_live) = match self.keys.entry(key.clone()) {
                Entry::Vacant(free) => {
                    let version = version.unwrap_or(1);
                    free.insert(standing(version));
                    (version, false)
                }
                Entry::Occupied(mut taken) => {
                    let last = taken.get().version;
                    let version = version.unwrap_or(last + 1);
                    if version <= last {
                        admitted.ignored += 1;
                        continue;
                    }
                    (version, taken.insert(standing(version)).live.is_some())
                }
            };
            self.live += usize::from(is_live);
            self.live -= usize::from(was_live);
            let change = Change { key, row, version };
            admitted.bytes += change.staged_bytes();
            admitted.changes.push(change);
        }
        let lane = self.lanes.entry(offer.lane.clone()).or_default();
        admitted.sequence = lane.sequence + 1;
        lane.note(admitted.sequence, offer.position);
        admitted.is_open = offer.is_open.unwrap_or(lane.open_bytes.is_some());
        self.staged(&offer.lane, admitted.bytes, admitted.is_open);
        admitted
    }

    fn note(&mut self, key: &Key, version: u64, live: Option<Row>) {
        self.live += usize::from(live.is_some());
        let last = self.keys.insert(key.clone(), LastVersion { version, live });
        self.live -= usize::from(last.is_some_and(|last| last.live.is_some()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_covered_by_the_first_batch_that_reached_it() {
        let ingest = Ingest::default();
        let source = ObjectId(1);
        for next in [3_u64, 5, 5, 9] {
            let position = format!("{{\"marks\":{{\"t/0\":{next}}}}}");
            let offer = Offer::new(source, "lane", Vec::new(), Some(position));
            ingest.admit(vec![offer], |_| ());
        }
        let at = |mark| ingest.covering(source, "t/0", mark);
        assert_eq!(at(1), Some(("lane".to_owned(), 1)));
        assert_eq!(at(4), Some(("lane".to_owned(), 2)));
        assert_eq!(at(9), Some(("lane".to_owned(), 4)));
        assert_eq!(at(10), None);
        // Nothing came, but the lane went on: its last batch covers that.
        ingest.reached(source, "lane", r#"{"marks":{"t/0":12}}"#);
        ingest.reached(source, "lane", r#"{"marks":{"t/0":14}}"#);
        assert_eq!(at(14), Some(("lane".to_owned(), 4)));
        assert_eq!(at(15), None);
        assert_eq!(ingest.covering(source, "t/1", 1), None);
        assert_eq!(marks("\"a path\""), Marks::new());
    }
}
