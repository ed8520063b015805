//! Where batches enter: versions, the log, the lane, the prepare threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Shared;
use super::ingest::Offer;
use super::lanes::{LaneId, StagedBatch};
use super::message::{Message, WriteToken};
use super::program::Program;
use crate::contract::{LaneSink, Part, Resume, SinkClosed, SourceBatch};
use crate::durable::{Idempotency, LogSequence, Record, Stage};
use crate::error::WorldError;
use crate::limits;
use crate::model::{ContentHash, Key, ObjectId, Row};

/// Time between two looks whether the log has written what waits.
const LOG_POLL: Duration = Duration::from_millis(2);

/// The one lane of a push source: requests have an order among themselves.
pub const PUSH_LANE: &str = "push";

/// Called once: when a batch is synced, or cannot be.
type OnDurable = Box<dyn FnOnce(Result<(), Arc<WorldError>>) + Send>;

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
        let mut staged = self.stage_parts(vec![part], idempotency, on_durable);
        staged.remove(0)
    }

    /// Stages batches that belong together; `idempotency` is asked about the first.
    fn stage_parts(
        &self,
        parts: Vec<Part>,
        idempotency: impl FnOnce(&Staged) -> Option<Idempotency>,
        on_durable: Option<OnDurable>,
    ) -> Vec<Staged> {
        let shared = &self.shared;
        let at_wall = shared.clock.now_micros();
        let (mut offers, mut rest) = (Vec::new(), Vec::new());
        for Part {
            source,
            name,
            batch,
        } in parts
        {
            for letter in &batch.dead_letters {
                shared.dead_letters.add(at_wall, letter.clone());
            }
            let position = batch.position.map(|position| position.to_string());
            let offer = Offer::new(source, &batch.lane, batch.changes, position.clone());
            offers.push(offer);
            rest.push((source, name, batch.lane, batch.dead_letters, position));
        }
        let lanes = rest
            .iter()
            .map(|(source, _, lane, ..)| (*source, lane.as_str().into()));
        let together: Arc<[LaneId]> = match rest.len() {
            1 => Arc::default(),
            _ => lanes.collect(),
        };
        let names: Vec<Arc<str>> = rest.iter().map(|(_, name, ..)| Arc::clone(name)).collect();
        let (staged, batches) = shared.ingest.admit(offers, |admitted| {
            let (mut idempotency, mut all) = (Some(idempotency), Vec::new());
            let (mut stages, mut batches) = (Vec::new(), Vec::new());
            for (admitted, (source, _, lane, letters, position)) in admitted.into_iter().zip(rest) {
                let token = WriteToken {
                    source,
                    lane: lane.clone(),
                    sequence: admitted.sequence,
                };
                let staged = Staged {
                    token,
                    accepted: admitted.changes.len() as u64,
                    ignored: admitted.ignored,
                };
                let changes = Arc::new(admitted.changes);
                stages.push(Stage {
                    source,
                    lane: lane.clone(),
                    sequence: admitted.sequence,
                    changes: changes.to_vec(),
                    dead_letters: letters,
                    position,
                    idempotency: idempotency.take().and_then(|make| make(&staged)),
                    at_wall,
                });
                batches.push(StagedBatch {
                    source,
                    lane: lane.as_str().into(),
                    sequence: admitted.sequence,
                    changes,
                    bytes: admitted.bytes,
                    is_push: self.is_push,
                    together: Arc::clone(&together),
                });
                all.push(staged);
            }
            let record = match stages.len() {
                1 => Record::Stage(stages.remove(0)),
                _ => Record::Together(stages),
            };
            let logged = shared.log.append(record, on_durable);
            self.last.fetch_max(logged.0, Ordering::Relaxed);
            // Under the lanes' order, so that the mailbox has it too.
            let _ = shared.mailbox.send(Message::Staged(batches.clone()));
            (all, batches)
        });
        for (name, staged) in names.iter().zip(&staged) {
            metrics::counter!("headwater_rows_in_total", "source" => name.to_string())
                .increment(staged.accepted);
            metrics::counter!("headwater_rows_ignored_total", "source" => name.to_string())
                .increment(staged.ignored);
        }
        batches.into_iter().for_each(|batch| shared.prepare(batch));
        staged
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

    fn stage_together(&self, parts: Vec<Part>) -> Result<(), SinkClosed> {
        self.wait_room(parts.iter().map(|part| part.source))?;
        if !parts.is_empty() {
            self.stage_parts(parts, |_| None, None);
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
        self.shared.ingest.live(self.source)
    }

    fn row(&self, key: &Key) -> Option<Row> {
        self.shared.ingest.row(self.source, key)
    }

    fn lanes(&self) -> Vec<String> {
        self.shared.ingest.lanes(self.source)
    }
}
