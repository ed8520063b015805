//! Where batches enter: versions, the log, the lane, the prepare threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ahash::AHashMap;

use super::Shared;
use super::ingest::{Admitted, Offer};
use super::lanes::{self, StagedBatch};
use super::message::{Message, WriteToken};
use super::program::Program;
use crate::contract::{LaneSink, Part, Resume, SinkClosed, SourceBatch};
use crate::durable::{Idempotency, LogSequence, Record, Stage};
use crate::error::{DeadLetter, WorldError};
use crate::letters::LetterId;
use crate::limits;
use crate::model::{ContentHash, Key, ObjectId, Row};

/// Time between two looks whether the log has written what waits.
const LOG_POLL: Duration = Duration::from_millis(2);

/// The one lane of a push source: requests have an order among themselves.
pub const PUSH_LANE: &str = "push";

/// The engine's end of a source.
pub struct EngineSink<P: Program> {
    shared: Arc<Shared<P>>,
    source: ObjectId,
    name: String,
    is_push: bool,
    last: AtomicU64,
    stop: Arc<AtomicBool>,
}

/// What became of a staged batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Names it for readers.
    pub token: WriteToken,
    /// Changes taken.
    pub accepted: u64,
    /// Changes not above their key's version.
    pub ignored: u64,
}

/// Called with the outcome of a sync.
pub type OnDurable = Box<dyn FnOnce(Result<(), Arc<WorldError>>) + Send>;

/// Why a dead letter was not replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReplayed {
    /// It is not there any more.
    Gone,
    /// The letter did not name this row, which has been written: nobody knows which is newer.
    OrderUnknown(Key),
}

/// What is logged beside the changes of a source.
struct Entry {
    source: ObjectId,
    name: Arc<str>,
    lane: String,
    position: Option<String>,
    resolved: Vec<LetterId>,
    letters: Vec<Arc<DeadLetter>>,
    at_wall: u64,
}

impl<P: Program> EngineSink<P> {
    pub(super) fn new(shared: Arc<Shared<P>>, source: ObjectId, name: &str, is_push: bool) -> Self {
        EngineSink {
            shared,
            source,
            name: name.to_owned(),
            is_push,
            last: AtomicU64::new(0),
            stop: Arc::default(),
        }
    }

    /// Waits for room or for the disk only until `stop` is set.
    pub fn until(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = stop;
        self
    }

    fn check_stop(&self) -> Result<(), SinkClosed> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(SinkClosed),
            false => Ok(()),
        }
    }

    /// Whether there is room for more staged bytes; a push is refused (429) without.
    pub fn has_room(&self) -> bool {
        self.shared.ingest.has_room(self.source)
    }

    /// Stages a batch; `on_durable` is called when it is synced, or cannot be.
    ///
    /// `idempotency` makes, from what was taken, what a repetition of the request is told.
    pub fn stage_now(
        &self,
        batch: SourceBatch,
        idempotency: impl FnOnce(&Staged) -> Option<Idempotency>,
        on_durable: Option<OnDurable>,
    ) -> Staged {
        let part = Part {
            source: self.source,
            name: self.name.as_str().into(),
            batch,
        };
        let mut staged = self.stage_parts(vec![part], false, idempotency, on_durable);
        staged.remove(0)
    }

    /// Stages batches that belong together, each of a source of its own, and to what comes next if
    /// `is_open`; `idempotency` is asked about the first.
    fn stage_parts(
        &self,
        parts: Vec<Part>,
        is_open: bool,
        idempotency: impl FnOnce(&Staged) -> Option<Idempotency>,
        on_durable: Option<OnDurable>,
    ) -> Vec<Staged> {
        let shared = &self.shared;
        let at_wall = shared.clock.now_micros();
        let (mut offers, mut entries) = (Vec::new(), Vec::new());
        for Part {
            source,
            name,
            mut batch,
        } in parts
        {
            let letters = self.unanswered(&mut batch, at_wall);
            let position = batch.position.map(|position| position.to_string());
            let offer = Offer::new(source, &batch.lane, batch.changes, position.clone());
            offers.push(offer.open(Some(is_open)));
            entries.push(Entry {
                source,
                name,
                lane: batch.lane,
                position,
                resolved: Vec::new(),
                letters,
                at_wall,
            });
        }
        let names: Vec<Arc<str>> = entries
            .iter()
            .map(|entry| Arc::clone(&entry.name))
            .collect();
        let (staged, batches) = shared.ingest.admit(offers, |admitted| {
            for (entry, admitted) in entries.iter_mut().zip(&admitted) {
                let keys = admitted.changes.iter().map(|change| &change.key);
                entry.resolved = shared.dead_letters.resolve(&entry.name, keys);
            }
            self.log(entries, admitted, idempotency, on_durable)
        });
        self.finish(&names, &staged, batches);
        staged
    }

    /// Stages what a dead letter comes to now, if the letter is still there and nothing newer can
    /// have come for its keys; `on_durable` as in [`EngineSink::stage_now`].
    ///
    /// Errors: nothing was done, and the letter (if it is there) stays.
    pub fn stage_replayed(
        &self,
        id: LetterId,
        lane: &str,
        changes: Vec<(Key, Option<Row>, Option<u64>)>,
        on_durable: Option<OnDurable>,
    ) -> Result<Staged, NotReplayed> {
        let shared = &self.shared;
        let keys: Vec<Key> = changes.iter().map(|(key, ..)| key.clone()).collect();
        let check = |was_admitted: &dyn Fn(&Key) -> bool| {
            let listed = shared.dead_letters.get(id).ok_or(NotReplayed::Gone)?;
            let own = listed.kept.letter.key.as_ref();
            // A good record of the letter's own key would have ended it. Of another key nobody has
            // watched what came since.
            let is_known = |key: &&Key| own != Some(*key) && was_admitted(key);
            match keys.iter().find(is_known) {
                Some(key) => Err(NotReplayed::OrderUnknown(key.clone())),
                None => Ok(()),
            }
        };
        let admitted = |admitted: Admitted| {
            let entry = Entry {
                source: self.source,
                name: self.name.as_str().into(),
                lane: lane.to_owned(),
                position: None,
                resolved: shared.dead_letters.resolve_through(id),
                letters: Vec::new(),
                at_wall: shared.clock.now_micros(),
            };
            self.log(vec![entry], vec![admitted], |_| None, on_durable)
        };
        // Between the pieces of a transaction it does not end it.
        let offer = Offer::new(self.source, lane, changes, None).open(None);
        let (mut staged, batches) = shared.ingest.admit_if(offer, check, admitted)?;
        self.finish(&[self.name.as_str().into()], &staged, batches);
        Ok(staged.remove(0))
    }

    /// The letters that no later change of their batch answers; the others are only counted.
    fn unanswered(&self, batch: &mut SourceBatch, at_wall: u64) -> Vec<Arc<DeadLetter>> {
        let letters = std::mem::take(&mut batch.dead_letters);
        if letters.iter().all(|letter| letter.key.is_none()) {
            return letters.into_iter().map(Arc::new).collect();
        }
        let changes = batch.changes.iter().enumerate();
        let last: AHashMap<&Key, usize> = changes.map(|(at, (key, ..))| (key, at)).collect();
        let is_answered = |letter: &DeadLetter| {
            let last = letter.key.as_ref().and_then(|key| last.get(key));
            last.is_some_and(|last| *last >= letter.after)
        };
        let (answered, open): (Vec<_>, Vec<_>) = letters.into_iter().partition(is_answered);
        self.shared.dead_letters.count_answered(at_wall, &answered);
        open.into_iter().map(Arc::new).collect()
    }

    /// Logs what was admitted as one record, under the lanes' order.
    fn log(
        &self,
        entries: Vec<Entry>,
        admitted: Vec<Admitted>,
        idempotency: impl FnOnce(&Staged) -> Option<Idempotency>,
        on_durable: Option<OnDurable>,
    ) -> (Vec<Staged>, Vec<StagedBatch>) {
        let shared = &self.shared;
        let lanes = entries
            .iter()
            .map(|entry| (entry.source, entry.lane.as_str().into()));
        let together = lanes::together(lanes);
        let (mut idempotency, mut all) = (Some(idempotency), Vec::new());
        let is_open = admitted.iter().any(|admitted| admitted.is_open);
        let (mut stages, mut batches) = (Vec::new(), Vec::new());
        for (entry, admitted) in entries.into_iter().zip(admitted) {
            let token = WriteToken {
                source: entry.source,
                lane: entry.lane.clone(),
                sequence: admitted.sequence,
            };
            let staged = Staged {
                token,
                accepted: admitted.changes.len() as u64,
                ignored: admitted.ignored,
            };
            // In the order in which the log has them: what ends before what begins.
            let letters = entry.letters.iter().map(Arc::clone);
            shared.dead_letters.add(entry.at_wall, letters);
            let changes = Arc::new(admitted.changes);
            batches.push(StagedBatch {
                source: entry.source,
                lane: entry.lane.as_str().into(),
                sequence: admitted.sequence,
                changes: Arc::clone(&changes),
                bytes: admitted.bytes,
                is_push: self.is_push,
                together: Arc::clone(&together),
                is_open: admitted.is_open,
            });
            stages.push(Stage {
                source: entry.source,
                lane: entry.lane,
                sequence: admitted.sequence,
                changes,
                resolved: entry.resolved,
                dead_letters: entry.letters,
                position: entry.position,
                idempotency: idempotency.take().and_then(|make| make(&staged)),
                at_wall: entry.at_wall,
            });
            all.push(staged);
        }
        let logged = shared
            .log
            .append(Record::staged(stages, is_open), on_durable);
        self.last.fetch_max(logged.0, Ordering::Relaxed);
        // Under the lanes' order, so that the mailbox has it too.
        let _ = shared.mailbox.send(Message::Staged(batches.clone()));
        (all, batches)
    }

    fn finish(&self, names: &[Arc<str>], staged: &[Staged], batches: Vec<StagedBatch>) {
        for (name, staged) in names.iter().zip(staged) {
            metrics::counter!("headwater_rows_in_total", "source" => name.to_string())
                .increment(staged.accepted);
            metrics::counter!("headwater_rows_ignored_total", "source" => name.to_string())
                .increment(staged.ignored);
        }
        for batch in batches {
            self.shared.prepare(batch);
        }
    }

    /// Waits until all of some sources may stage, and the log is not far behind.
    fn wait_room(&self, sources: impl Iterator<Item = ObjectId>) -> Result<(), SinkClosed> {
        for source in sources {
            while !self.shared.ingest.has_room(source) {
                self.check_stop()?;
                self.shared.ingest.wait_room(source);
            }
        }
        // Also what is no row (letters, positions) waits for a disk that is slow or full.
        while self.shared.log.queued_bytes() > limits::LOG_QUEUED_BYTES_MAX {
            self.check_stop()?;
            std::thread::sleep(LOG_POLL);
        }
        Ok(())
    }
}

impl<P: Program> LaneSink for EngineSink<P> {
    fn stage(&self, batch: SourceBatch) -> Result<(), SinkClosed> {
        self.wait_room(std::iter::once(self.source))?;
        self.stage_now(batch, |_| None, None);
        Ok(())
    }

    fn stage_together(&self, parts: Vec<Part>, is_open: bool) -> Result<(), Vec<Part>> {
        if self
            .wait_room(parts.iter().map(|part| part.source))
            .is_err()
        {
            return Err(parts);
        }
        if !parts.is_empty() {
            self.stage_parts(parts, is_open, |_| None, None);
        }
        Ok(())
    }

    fn reached(&self, lane: &str, position: &serde_json::Value) {
        let position = position.to_string();
        self.shared.ingest.reached(self.source, lane, &position);
    }

    fn source(&self) -> ObjectId {
        self.source
    }

    fn sync(&self) -> Result<(), SinkClosed> {
        let last = LogSequence(self.last.load(Ordering::Relaxed));
        while !self
            .shared
            .log
            .wait_durable(last, Duration::from_millis(100))
        {
            self.check_stop()?;
        }
        Ok(())
    }
}

impl<P: Program> Resume for EngineSink<P> {
    fn position(&self, lane: &str) -> Option<serde_json::Value> {
        serde_json::from_str(&self.shared.ingest.position(self.source, lane)?).ok()
    }

    fn live(&self) -> Vec<(Key, ContentHash)> {
        // Hashed here, and only for the few sources that compare: not while rows come in.
        let live = self.shared.ingest.live(self.source).into_iter();
        live.map(|(key, row)| (key, ContentHash::of(row.as_bytes())))
            .collect()
    }

    fn keys(&self) -> Vec<Key> {
        let live = self.shared.ingest.live(self.source).into_iter();
        live.map(|(key, _)| key).collect()
    }

    fn row(&self, key: &Key) -> Option<Row> {
        self.shared.ingest.row(self.source, key)
    }

    fn lanes(&self) -> Vec<String> {
        self.shared.ingest.lanes(self.source)
    }

    fn letters(&self) -> Vec<Arc<DeadLetter>> {
        let letters = &self.shared.dead_letters;
        let kept = letters.list(Some(&self.name), None, 0, usize::MAX);
        kept.into_iter().map(|listed| listed.kept.letter).collect()
    }
}
