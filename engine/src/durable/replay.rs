//! Reading the log back: frames → records → what happened, in order.
//!
//! ```text
//!  segment files ─▶ SegmentReader ─▶ Record ─▶ Binder ─▶ Replayed
//!                   (frames, 1 MiB)            (stages wait for their tick)
//! ```
//!
//! Invariants: every byte below a segment's durable length is read and checked, or the replay ends
//! with [`WorldError::Corrupt`]; after an error nothing more comes.
//!
//! Memory: one segment's read buffer and the staged records that no tick has bound yet, which are
//! bounded by the staged bytes of the sources.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::frame::{self, HEADER_BYTES, Unreadable};
use super::record::{BoundTick, LaneRange, Record, Replayed, Stage, Tick, Unbound, corrupt};
use super::writer::Shared;
use crate::contract::Store;
use crate::error::WorldError;
use crate::model::ObjectId;

const READ_BYTES: usize = 1 << 20;

/// Reads the frames of one segment.
pub(super) struct SegmentReader {
    name: String,
    /// Bytes to read.
    size: u64,
    /// Where `buffer[start]` stands in the file.
    offset: u64,
    buffer: Vec<u8>,
    start: usize,
}

/// One frame with its place.
pub(super) struct PlacedFrame<'a> {
    pub offset: u64,
    pub kind: u8,
    pub payload: &'a [u8],
}

impl SegmentReader {
    pub fn new(name: String, size: u64) -> Self {
        SegmentReader {
            name,
            size,
            offset: 0,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Where the next frame starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame; `None` at the first place where none can be read, the end or not.
    pub fn next_or_tail(
        &mut self,
        store: &dyn Store,
    ) -> Result<Option<PlacedFrame<'_>>, WorldError> {
        self.fill(store, HEADER_BYTES)?;
        if let Err(Unreadable::Short(needed)) = frame::decode(&self.buffer[self.start..]) {
            self.fill(store, needed)?;
        }
        let Ok(frame) = frame::decode(&self.buffer[self.start..]) else {
            return Ok(None);
        };
        let placed = PlacedFrame {
            offset: self.offset,
            kind: frame.kind,
            payload: frame.payload,
        };
        self.start += frame.len();
        self.offset += frame.len() as u64;
        Ok(Some(placed))
    }

    /// The next frame of a segment of which every byte was durable; `None` at its end.
    pub fn next(&mut self, store: &dyn Store) -> Result<Option<PlacedFrame<'_>>, WorldError> {
        let (offset, size, name) = (self.offset, self.size, self.name.clone());
        if offset == size {
            return Ok(None);
        }
        match self.next_or_tail(store)? {
            Some(frame) => Ok(Some(frame)),
            None => {
                let detail = format!("the segment has {size} durable bytes, but no record here");
                Err(corrupt(&name, offset, detail))
            }
        }
    }

    /// Makes at least `needed` bytes available, or all that are left.
    fn fill(&mut self, store: &dyn Store, needed: usize) -> Result<(), WorldError> {
        let have = self.buffer.len() - self.start;
        let left = self.size - self.offset;
        if have >= needed || have as u64 == left {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let wanted = needed.max(READ_BYTES).min(left as usize) - have;
        let more = store.read_at(&self.name, self.offset + have as u64, wanted)?;
        self.buffer.extend_from_slice(&more);
        Ok(())
    }
}

/// Staged records that wait for their tick, by lane.
#[derive(Default)]
pub(super) struct Binder {
    waiting: HashMap<(ObjectId, String), VecDeque<(StagedBy, Stage)>>,
    staged: u64,
}

/// Which record staged a batch: its place among those, and whether the transaction goes on.
type StagedBy = (u64, bool);

impl Binder {
    /// A staged record came.
    pub fn stage(&mut self, stages: Vec<Stage>, is_open: bool) {
        self.staged += 1;
        for stage in stages {
            let lane = (stage.source, stage.lane.clone());
            let waiting = self.waiting.entry(lane).or_default();
            waiting.push_back(((self.staged, is_open), stage));
        }
    }

    /// Takes the records that a tick binds; the error says which one is missing.
    pub fn bind(&mut self, tick: Tick) -> Result<BoundTick, String> {
        let mut stages = Vec::new();
        for range in &tick.lanes {
            self.bind_range(range, &mut stages)?;
        }
        Ok(BoundTick {
            at: tick.at,
            stages,
            vectors: tick.vectors,
        })
    }

    fn bind_range(&mut self, range: &LaneRange, out: &mut Vec<Stage>) -> Result<(), String> {
        let lane = (range.source, range.lane.clone());
        let waiting = self.waiting.entry(lane.clone()).or_default();
        for sequence in range.from..=range.through {
            match waiting.pop_front() {
                Some((_, stage)) if stage.sequence == sequence => out.push(stage),
                found => {
                    return Err(format!(
                        "a tick binds batch {sequence} of lane {:?} of source {}, but {}",
                        range.lane,
                        range.source,
                        match found {
                            Some((_, stage)) => format!("the next one is {}", stage.sequence),
                            None => "none is staged".to_owned(),
                        }
                    ));
                }
            }
        }
        if waiting.is_empty() {
            self.waiting.remove(&lane);
        }
        Ok(())
    }

    /// What no tick bound, by record, in the order of the log.
    pub fn into_unbound(self) -> impl Iterator<Item = Unbound> {
        let mut all: BTreeMap<StagedBy, Vec<Stage>> = BTreeMap::new();
        for (record, stage) in self.waiting.into_values().flatten() {
            all.entry(record).or_default().push(stage);
        }
        let all = all.into_iter();
        all.map(|((_, is_open), stages)| Unbound { stages, is_open })
    }
}

/// Reads records of several segments in order and resolves ticks.
pub(super) struct Reader {
    store: Arc<dyn Store>,
    /// Names and lengths of the segments still to read.
    segments: VecDeque<(String, u64)>,
    current: Option<SegmentReader>,
    binder: Binder,
    bytes_done: u64,
}

impl Reader {
    pub fn new(store: Arc<dyn Store>, segments: impl IntoIterator<Item = (String, u64)>) -> Self {
        Reader {
            store,
            segments: segments.into_iter().collect(),
            current: None,
            binder: Binder::default(),
            bytes_done: 0,
        }
    }

    /// The next event; `None` at the end, when [`Reader::into_unbound`] has the rest.
    pub fn next(&mut self) -> Result<Option<Replayed>, WorldError> {
        loop {
            if self.current.is_none() {
                let Some((name, size)) = self.segments.pop_front() else {
                    return Ok(None);
                };
                self.current = Some(SegmentReader::new(name, size));
            }
            let reader = self.current.as_mut().expect("just set");
            let name = reader.name.clone();
            let Some(frame) = reader.next(&*self.store)? else {
                self.current = None;
                continue;
            };
            self.bytes_done += (HEADER_BYTES + frame.payload.len()) as u64;
            let bad = |detail: String| corrupt(&name, frame.offset, detail);
            match Record::decode(frame.kind, frame.payload).map_err(bad)? {
                Record::Stage(stage) => self.binder.stage(vec![stage], false),
                Record::Together(stages) => self.binder.stage(stages, false),
                Record::Open(stages) => self.binder.stage(stages, true),
                Record::Tick(tick) => {
                    let bound = self.binder.bind(tick).map_err(bad)?;
                    return Ok(Some(Replayed::Tick(bound)));
                }
                Record::Ddl(ddl) => return Ok(Some(Replayed::Ddl(ddl))),
                Record::Reserve(until) => return Ok(Some(Replayed::Reserve(until))),
                Record::Since(at) => return Ok(Some(Replayed::Since(at))),
                Record::BaseRows(rows) => return Ok(Some(Replayed::Rows(rows))),
                Record::BaseVectors(facts) => return Ok(Some(Replayed::Vectors(facts))),
                Record::BaseLanes(lanes) => return Ok(Some(Replayed::Lanes(lanes))),
                Record::BaseReplies(replies) => return Ok(Some(Replayed::Replies(replies))),
                Record::Forget(names) => return Ok(Some(Replayed::Forget(names))),
                Record::BaseLetters(letters) => return Ok(Some(Replayed::Letters(letters))),
            }
        }
    }

    /// What no tick bound, by record.
    pub fn into_unbound(self) -> impl Iterator<Item = Unbound> {
        self.binder.into_unbound()
    }
}

/// All that the log held when it was opened, as an iterator in the order of application (see
/// [`Replayed`] for the grammar). After an `Err` it ends.
///
/// Drop it when it is read: compaction waits for that.
pub struct Replay {
    shared: Arc<Shared>,
    reader: Option<Reader>,
    unbound: VecDeque<Unbound>,
    bytes_total: u64,
    bytes_done: u64,
}

impl Replay {
    pub(super) fn new(shared: &Arc<Shared>, open_bytes: u64) -> Self {
        let segments: Vec<(String, u64)> = {
            let manifest = shared.manifest.lock().expect("no panic under this lock");
            let bytes = |sealed: Option<super::manifest::Sealed>| sealed.map(|s| s.bytes);
            manifest
                .segments
                .iter()
                .map(|segment| (segment.name(), bytes(segment.sealed).unwrap_or(open_bytes)))
                .collect()
        };
        shared.is_replaying.store(true, Ordering::Release);
        let bytes_total = segments.iter().map(|(_, bytes)| bytes).sum();
        let reader = Some(Reader::new(Arc::clone(&shared.store), segments));
        let unbound = VecDeque::new();
        Replay {
            shared: Arc::clone(shared),
            reader,
            unbound,
            bytes_total,
            bytes_done: 0,
        }
    }

    /// Bytes to read.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Bytes read so far.
    pub fn bytes_done(&self) -> u64 {
        self.reader
            .as_ref()
            .map_or(self.bytes_done, |reader| reader.bytes_done)
    }
}

impl Iterator for Replay {
    type Item = Result<Replayed, WorldError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(reader) = &mut self.reader else {
            return self
                .unbound
                .pop_front()
                .map(|staged| Ok(Replayed::Unbound(staged)));
        };
        match reader.next() {
            Ok(Some(event)) => Some(Ok(event)),
            Ok(None) => {
                self.bytes_done = reader.bytes_done;
                let reader = self.reader.take().expect("just matched");
                self.unbound = reader.into_unbound().collect();
                self.next()
            }
            Err(error) => {
                self.bytes_done = reader.bytes_done;
                self.reader = None;
                Some(Err(error))
            }
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.shared.is_replaying.store(false, Ordering::Release);
    }
}
