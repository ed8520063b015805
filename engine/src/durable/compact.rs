//! Compaction: the log's past, folded into the state as of one time.
//!
//! ```text
//!  manifest:  base 4 │ 5 │ 6 │ 7 │ 8 (open)          since
//!             └── all at or before since ┘ ▲             │
//!  pass 1     read them, remember for each key which change won (24 bytes a key, no rows)
//!  pass 2     read them again, write the winners ─▶ base 9 │ base 10     synced, not yet listed
//!  swap       manifest:  base 9 │ base 10 │ 8 (open)                      one atomic replace
//!  sweep      delete 4, 5, 6, 7
//! ```
//!
//! What the base keeps, each bound to at most [`Compacted::at`]: the last admitted change of every
//! key ([`is_admitted`]; a delete only while it guards its version), vector facts, where each lane
//! stood, replies of the last 24 h, the dead letters that the running collection keeps, too
//! ([`LetterBook`]), all DDL, the time reservation. Records that were staged but not bound are carried over as they are: a later
//! segment binds them.
//!
//! Invariants: replaying the base and the rest gives the state that replaying the old segments
//! gives, for every time ≥ `at`; a crash at any point leaves the old or the new list in the
//! manifest; appends go on meanwhile, they only touch the open segment.
//!
//! Cost: two sequential reads of the old segments, one write of what lives; memory for 24 bytes a
//! key, 48 a vector fact and DEAD_LETTERS_BYTES_MAX of letters. Rewriting when as much is new as the base is large
//! ([`super::InputLog::compactable_bytes`]) keeps the write amplification near two.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::frame;
use super::log::InputLog;
use super::manifest::{Manifest, Sealed, Segment, segment_name};
use super::record::{
    BaseLetters, BaseReply, BaseRow, BaseRows, Ddl, Held, LaneState, Record, Replayed, Unbound,
    is_admitted, is_forgotten,
};
use super::replay::Reader;
use super::writer::Shared;
use crate::contract::AppendFile;
use crate::error::WorldError;
use crate::letters::LetterBook;
use crate::limits::{BASE_RECORD_BYTES_MAX, IDEMPOTENCY_SECONDS};
use crate::model::{Change, ContentHash, ModelId, ObjectId, Time, VectorFact, VectorRef};
use crate::telemetry;

/// What compaction may forget.
#[derive(Clone, Default)]
pub struct CompactOptions {
    /// The present, microseconds since the epoch: replies older than 24 h go.
    pub now: Time,
    /// Whether a vector fact is still needed; all are kept when not told.
    pub keep_vector: Option<Arc<dyn Fn(ModelId, ContentHash) -> bool + Send + Sync>>,
    /// Whether a source still exists: rows, lanes and replies of others go; all are kept when not
    /// told.
    pub keep_source: Option<Arc<dyn Fn(ObjectId) -> bool + Send + Sync>>,
    /// Whether a source of this name exists: dead letters of others go (those of a source that was
    /// replaced stay); all are kept when not told.
    pub keep_letters: Option<Arc<dyn Fn(&str) -> bool + Send + Sync>>,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// The time of the new base: earlier times can no longer be replayed.
    pub at: Time,
    /// Bytes of the old segments.
    pub bytes_before: u64,
    /// Bytes of the new base.
    pub bytes_after: u64,
    /// Rows and tombstones in it.
    pub rows: u64,
}

impl InputLog {
    /// Folds the sealed segments that lie wholly at or before `since` into a base.
    ///
    /// Runs on the caller's thread, beside appends; one at a time, a second caller waits. `None`
    /// when there is nothing to fold, or a replay is still being read. On an error the log is as
    /// it was.
    pub fn compact(
        &self,
        since: Time,
        options: &CompactOptions,
    ) -> Result<Option<Compacted>, WorldError> {
        run(&self.shared, since, options)
    }

    /// [`InputLog::compact`] on a thread of its own; `done` gets the outcome there.
    pub fn compact_in_background(
        &self,
        since: Time,
        options: CompactOptions,
        done: impl FnOnce(Result<Option<Compacted>, WorldError>) + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name("log-compaction".to_owned())
            .spawn(move || done(run(&shared, since, &options)))
            .expect("the system can start one more thread")
    }
}

/// The longest prefix of sealed segments at or before `since`.
pub(super) fn compactable(manifest: &Manifest, since: Time) -> &[Segment] {
    let is_past = |segment: &&Segment| {
        segment
            .sealed
            .is_some_and(|sealed| sealed.time.is_none_or(|time| time <= since))
    };
    &manifest.segments[..manifest.segments.iter().take_while(is_past).count()]
}

fn run(
    shared: &Shared,
    since: Time,
    options: &CompactOptions,
) -> Result<Option<Compacted>, WorldError> {
    let _one_at_a_time = shared.compaction.lock().expect("no panic under this lock");
    if shared.is_replaying.load(Ordering::Acquire) {
        return Ok(None);
    }
    let old: Vec<Segment> = {
        let manifest = shared.manifest.lock().expect("no panic under this lock");
        compactable(&manifest, since).to_vec()
    };
    if old.iter().all(|segment| segment.is_base) {
        return Ok(None);
    }
    let survey = Survey::of(reader(shared, &old), options)?;
    if survey.at == 0 {
        return Ok(None); // Rows are staged, but no tick or statement has a time yet.
    }
    let (at, rows) = (survey.at, survey.winners.len() as u64);

    let mut base = BaseWriter::new(shared);
    let written = write_base(shared, &old, survey, options, &mut base)
        .and_then(|()| base.finish())
        .and_then(|()| swap(shared, &old, &base.done));
    if let Err(error) = written {
        let open = base.open.take().map(|(number, _)| number);
        for number in base.done.iter().map(|segment| segment.number).chain(open) {
            // Not listed: if this fails too, the next start deletes it.
            let _ = shared.store.remove(&segment_name(number));
        }
        return Err(error);
    }
    for segment in &old {
        if let Err(error) = shared.store.remove(&segment.name()) {
            tracing::warn!(%error, "an old segment stays until the next start");
        }
    }
    metrics::counter!(telemetry::LOG_COMPACTIONS.name).increment(1);
    let bytes = |segments: &[Segment]| {
        segments
            .iter()
            .map(|segment| segment.sealed.map_or(0, |sealed| sealed.bytes))
            .sum()
    };
    let (bytes_before, bytes_after) = (bytes(&old), bytes(&base.done));
    tracing::info!(
        at,
        bytes_before,
        bytes_after,
        rows,
        "compacted the input log"
    );
    Ok(Some(Compacted {
        at,
        bytes_before,
        bytes_after,
        rows,
    }))
}

fn reader(shared: &Shared, segments: &[Segment]) -> Reader {
    let length = |segment: &Segment| segment.sealed.expect("only sealed segments").bytes;
    Reader::new(
        Arc::clone(&shared.store),
        segments
            .iter()
            .map(|segment| (segment.name(), length(segment))),
    )
}

/// Lists `new` in the place of `old`.
fn swap(shared: &Shared, old: &[Segment], new: &[Segment]) -> Result<(), WorldError> {
    let mut manifest = shared.manifest.lock().expect("no panic under this lock");
    assert_eq!(
        &manifest.segments[..old.len()],
        old,
        "only compaction changes sealed segments"
    );
    let mut next = manifest.clone();
    next.segments.splice(..old.len(), new.iter().cloned());
    next.save(&*shared.store)?;
    *manifest = next;
    Ok(())
}

/// The change of a key that holds, by its place in the order of binding.
struct Winner {
    order: u64,
    held: Held,
}

/// Pass 1: everything but the rows, replies and letters themselves.
#[derive(Default)]
struct Survey {
    at: Time,
    reserved: Time,
    ddl: Vec<Ddl>,
    winners: HashMap<(ObjectId, ContentHash), Winner, ahash::RandomState>,
    facts: BTreeMap<(ModelId, ContentHash), VectorRef>,
    lanes: BTreeMap<(ObjectId, String), LaneState>,
}

impl Survey {
    fn of(mut reader: Reader, options: &CompactOptions) -> Result<Survey, WorldError> {
        let mut survey = Survey::default();
        let mut order = 0;
        while let Some(event) = reader.next()? {
            for_each_change(&event, |source, at, change| {
                order += 1;
                survey.change(source, at, change, order);
            });
            survey.event(event);
        }
        let keeps = |source: ObjectId| options.keep_source.as_ref().is_none_or(|keep| keep(source));
        // By the base's time, not by the present: a tick after the base that was decided while the
        // delete still guarded its version must be decided the same way again.
        let at = survey.at;
        survey.winners.retain(|(source, _), winner| {
            keeps(*source) && (winner.held.is_live || !is_forgotten(winner.held.at, at))
        });
        survey.lanes.retain(|(source, _), _| keeps(*source));
        if let Some(keep) = &options.keep_vector {
            survey
                .facts
                .retain(|(model, content), _| keep(*model, *content));
        }
        Ok(survey)
    }

    fn change(&mut self, source: ObjectId, at: Time, change: &Change, order: u64) {
        let key = (source, ContentHash::of(change.key.as_str().as_bytes()));
        let held = self.winners.get(&key).map(|winner| winner.held);
        if is_admitted(held, change.version, at) {
            let held = Held {
                version: change.version,
                is_live: change.row.is_some(),
                at,
            };
            self.winners.insert(key, Winner { order, held });
        }
    }

    fn fact(&mut self, fact: &VectorFact) {
        self.facts.insert((fact.model, fact.content), fact.at);
    }

    fn event(&mut self, event: Replayed) {
        match event {
            Replayed::Since(at) => self.at = self.at.max(at),
            Replayed::Reserve(until) => self.reserved = until,
            Replayed::Ddl(ddl) => {
                self.at = self.at.max(ddl.at);
                self.ddl.push(ddl);
            }
            Replayed::Vectors(facts) => facts.iter().for_each(|fact| self.fact(fact)),
            Replayed::Lanes(lanes) => {
                for lane in lanes {
                    self.lanes.insert((lane.source, lane.lane.clone()), lane);
                }
            }
            Replayed::Tick(tick) => {
                self.at = self.at.max(tick.at);
                tick.vectors.iter().for_each(|fact| self.fact(fact));
                for stage in tick.stages {
                    let lane = self
                        .lanes
                        .entry((stage.source, stage.lane.clone()))
                        .or_insert_with(|| LaneState {
                            source: stage.source,
                            lane: stage.lane,
                            sequence: 0,
                            position: None,
                        });
                    lane.sequence = stage.sequence;
                    lane.position = stage.position.or(lane.position.take());
                }
            }
            Replayed::Rows(_)
            | Replayed::Replies(_)
            | Replayed::Letters(_)
            | Replayed::Forget(_)
            | Replayed::Unbound(_) => {}
        }
    }
}

fn for_each_change(event: &Replayed, mut f: impl FnMut(ObjectId, Time, &Change)) {
    match event {
        Replayed::Rows(rows) => {
            rows.rows
                .iter()
                .for_each(|row| f(rows.source, row.at, &row.change));
        }
        Replayed::Tick(tick) => {
            for stage in &tick.stages {
                stage
                    .changes
                    .iter()
                    .for_each(|change| f(stage.source, tick.at, change));
            }
        }
        _ => {}
    }
}

fn note_letters(book: &mut LetterBook, event: &Replayed) {
    match event {
        Replayed::Letters(base) => {
            base.causes
                .iter()
                .for_each(|counts| book.restore_counts(counts));
            base.letters
                .iter()
                .for_each(|kept| book.restore(kept.clone()));
        }
        Replayed::Forget(names) => {
            book.retain_sources(|source| !names.iter().any(|name| name == source));
        }
        Replayed::Tick(tick) => {
            for stage in &tick.stages {
                for id in &stage.resolved {
                    book.resolve(*id);
                }
                for letter in &stage.dead_letters {
                    book.add(stage.at_wall, Arc::clone(letter));
                }
            }
        }
        _ => {}
    }
}

/// Writes what the collection keeps.
fn write_letters(book: &LetterBook, base: &mut BaseWriter<'_>) -> Result<(), WorldError> {
    let mut record = BaseLetters {
        causes: book.causes(),
        letters: Vec::new(),
    };
    if record.causes.is_empty() {
        return Ok(());
    }
    let mut bytes = 0;
    for listed in book.list(None, None, 0, usize::MAX) {
        bytes += listed.kept.letter.cost();
        record.letters.push(listed.kept);
        if bytes >= BASE_RECORD_BYTES_MAX {
            bytes = 0;
            base.write(&Record::BaseLetters(std::mem::take(&mut record)))?;
        }
    }
    base.write(&Record::BaseLetters(record))
}

fn for_each_reply(event: Replayed, mut f: impl FnMut(BaseReply)) {
    match event {
        Replayed::Replies(replies) => replies.into_iter().for_each(f),
        Replayed::Tick(tick) => {
            for stage in tick.stages {
                let (source, at_wall) = (stage.source, stage.at_wall);
                if let Some(idempotency) = stage.idempotency {
                    f(BaseReply {
                        source,
                        idempotency,
                        at_wall,
                    });
                }
            }
        }
        _ => {}
    }
}

/// Pass 2.
fn write_base(
    shared: &Shared,
    old: &[Segment],
    survey: Survey,
    options: &CompactOptions,
    base: &mut BaseWriter<'_>,
) -> Result<(), WorldError> {
    base.write(&Record::Since(survey.at))?;
    for ddl in survey.ddl {
        base.write(&Record::Ddl(ddl))?;
    }
    if survey.reserved > 0 {
        base.write(&Record::Reserve(survey.reserved))?;
    }
    let facts = survey.facts.into_iter();
    let facts: Vec<VectorFact> = facts
        .map(|((model, content), at)| VectorFact { model, content, at })
        .collect();
    for facts in facts.chunks(BASE_RECORD_BYTES_MAX / 48) {
        base.write(&Record::BaseVectors(facts.to_vec()))?;
    }
    let lanes: Vec<LaneState> = survey.lanes.into_values().collect();
    for lanes in lanes.chunks(1024) {
        base.write(&Record::BaseLanes(lanes.to_vec()))?;
    }

    let is_remembered =
        |at_wall: u64| options.now.saturating_sub(at_wall) < IDEMPOTENCY_SECONDS * 1_000_000;
    let keeps = |source: ObjectId| options.keep_source.as_ref().is_none_or(|keep| keep(source));
    let mut pending = Pending::default();
    let mut book = LetterBook::default();
    let mut reader = reader(shared, old);
    let mut order = 0;
    while let Some(event) = reader.next()? {
        for_each_change(&event, |source, at, change| {
            order += 1;
            let key = (source, ContentHash::of(change.key.as_str().as_bytes()));
            if survey
                .winners
                .get(&key)
                .is_some_and(|winner| winner.order == order)
            {
                pending.row(source, at, change);
            }
        });
        note_letters(&mut book, &event);
        for_each_reply(event, |reply| {
            if is_remembered(reply.at_wall) && keeps(reply.source) {
                pending.reply(reply);
            }
        });
        if pending.bytes >= BASE_RECORD_BYTES_MAX {
            pending.write(base)?;
        }
    }
    pending.write(base)?;
    if let Some(keep) = &options.keep_letters {
        book.retain_sources(|source| keep(source));
    }
    write_letters(&book, base)?;
    for Unbound { stages, is_open } in reader.into_unbound() {
        base.write(&Record::staged(stages, is_open))?;
    }
    Ok(())
}

/// Winners that wait to be written in records of a good size.
#[derive(Default)]
struct Pending {
    rows: BTreeMap<ObjectId, Vec<BaseRow>>,
    replies: Vec<BaseReply>,
    bytes: usize,
}

impl Pending {
    fn row(&mut self, source: ObjectId, at: Time, change: &Change) {
        let row = change.row.as_ref().map_or(0, |row| row.as_bytes().len());
        self.bytes += row + change.key.as_str().len() + 24;
        self.rows.entry(source).or_default().push(BaseRow {
            at,
            change: change.clone(),
        });
    }

    fn reply(&mut self, reply: BaseReply) {
        self.bytes += reply.idempotency.key.len() + reply.idempotency.reply.len() + 48;
        self.replies.push(reply);
    }

    fn write(&mut self, base: &mut BaseWriter<'_>) -> Result<(), WorldError> {
        for (source, rows) in std::mem::take(&mut self.rows) {
            base.write(&Record::BaseRows(BaseRows { source, rows }))?;
        }
        let replies = std::mem::take(&mut self.replies);
        if !replies.is_empty() {
            base.write(&Record::BaseReplies(replies))?;
        }
        self.bytes = 0;
        Ok(())
    }
}

/// Writes records to new segments that nobody knows yet.
struct BaseWriter<'a> {
    shared: &'a Shared,
    open: Option<(u64, Box<dyn AppendFile>)>,
    time: Option<Time>,
    buffer: Vec<u8>,
    done: Vec<Segment>,
}

impl<'a> BaseWriter<'a> {
    fn new(shared: &'a Shared) -> Self {
        BaseWriter {
            shared,
            open: None,
            time: None,
            buffer: Vec::new(),
            done: Vec::new(),
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), WorldError> {
        if self.open.is_none() {
            // A number is taken in memory only: after a crash it is free again, as its file is a
            // stranger then.
            let number = {
                let mut manifest = self
                    .shared
                    .manifest
                    .lock()
                    .expect("no panic under this lock");
                manifest.next += 1;
                manifest.next - 1
            };
            let mut file = self.shared.store.append(&segment_name(number))?;
            file.truncate(0)?;
            self.open = Some((number, file));
        }
        // Nothing vouches for a base before the manifest lists it, and then all of it is durable.
        frame::encode(&mut self.buffer, 0, record.kind(), &record.encode());
        self.time = self.time.max(record.time());
        if self.buffer.len() >= BASE_RECORD_BYTES_MAX {
            let (_, file) = self.open.as_mut().expect("opened above");
            file.append(&self.buffer)?;
            self.buffer.clear();
            if file.len() >= self.shared.options.segment_bytes {
                self.finish()?;
            }
        }
        Ok(())
    }

    /// Syncs the segment being written.
    fn finish(&mut self) -> Result<(), WorldError> {
        let Some((number, mut file)) = self.open.take() else {
            return Ok(());
        };
        let sealed = Sealed {
            bytes: file.len() + self.buffer.len() as u64,
            time: self.time.take(),
        };
        self.done.push(Segment {
            number,
            is_base: true,
            sealed: Some(sealed),
        });
        file.append(&self.buffer)?;
        self.buffer.clear();
        file.sync()
    }
}
