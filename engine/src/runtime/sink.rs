//! Where batches enter: versions, the log, the lane, the prepare threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Shared;
use super::lanes::StagedBatch;
use super::message::{Message, WriteToken};
use super::program::Program;
use crate::contract::{LaneSink, Resume, SinkClosed, SourceBatch};
use crate::durable::{Idempotency, LogSequence, Record, Stage};
use crate::error::WorldError;
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
        on_durable: Option<Box<dyn FnOnce(Result<(), Arc<WorldError>>) + Send>>,
    ) -> Staged {
        let shared = &self.shared;
        let at_wall = shared.clock.now_micros();
        for letter in &batch.dead_letters {
            shared.dead_letters.add(at_wall, letter.clone());
        }
        let position = batch.position.map(|position| position.to_string());
        let logged_position = position.clone();
        let lane = batch.lane;
        let letters = batch.dead_letters;
        let source = self.source;
        let (staged, batch) =
            shared
                .ingest
                .admit(source, &lane, batch.changes, position, |admitted| {
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
                    let idempotency = idempotency(&staged);
                    let changes = Arc::new(admitted.changes);
                    let record = Record::Stage(Stage {
                        source,
                        lane: lane.clone(),
                        sequence: admitted.sequence,
                        changes: changes.to_vec(),
                        dead_letters: letters,
                        position: logged_position,
                        idempotency,
                        at_wall,
                    });
                    let logged = shared.log.append(record, on_durable);
                    self.last.fetch_max(logged.0, Ordering::Relaxed);
                    let batch = StagedBatch {
                        source,
                        lane: lane.as_str().into(),
                        sequence: admitted.sequence,
                        changes,
                        bytes: admitted.bytes,
                        is_push: self.is_push,
                    };
                    // Under the lane's order, so that the mailbox has it too.
                    let _ = shared.mailbox.send(Message::Staged(batch.clone()));
                    (staged, batch)
                });
        metrics::counter!("headwater_rows_in_total", "source" => self.name.clone())
            .increment(staged.accepted);
        metrics::counter!("headwater_rows_ignored_total", "source" => self.name.clone())
            .increment(staged.ignored);
        shared.prepare(batch);
        staged
    }
}

impl<P: Program> LaneSink for EngineSink<P> {
    fn stage(&self, batch: SourceBatch) -> Result<(), SinkClosed> {
        while !self.has_room() {
            self.check_stop()?;
            self.shared.ingest.wait_room(self.source);
        }
        // Also what is no row (letters, positions) waits for a disk that is slow or full.
        while self.shared.log.queued_bytes() > limits::LOG_QUEUED_BYTES_MAX {
            self.check_stop()?;
            std::thread::sleep(LOG_POLL);
        }
        self.stage_now(batch, |_| None, None);
        Ok(())
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
