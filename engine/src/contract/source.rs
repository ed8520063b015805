//! A source of changes, outside the engine's time.
//!
//! A source runs on a thread of its own and writes batches to lanes through a [`LaneSink`]. The
//! sink logs the batch and gives back-pressure by blocking. Versions, if the outside world has
//! none, are given by the sink.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value as Json;

use crate::error::{DataError, DeadLetter, WorldError};
use crate::model::{ContentHash, Key, ObjectId, Row};
use crate::telemetry;

/// One batch of one lane, in the lane's order.
#[derive(Debug, Clone, Default)]
pub struct SourceBatch {
    /// The lane: `""` for a source with one order, a path, `topic/3`.
    pub lane: String,
    /// `(key, row, version)`: `row = None` deletes; `version = None` lets the sink count from the
    /// key's last version.
    pub changes: Vec<(Key, Option<Row>, Option<u64>)>,
    /// Bad data met on the way, in order; [`DeadLetter::after`] tells between which changes.
    pub dead_letters: Vec<DeadLetter>,
    /// Where the lane stands after this batch, for resumption: opaque to the engine, but for
    /// `{"marks":{"name":n,…}}`. A mark never decreases; a question may wait until one reaches a
    /// number ([`crate::runtime::Engine::covering`]).
    pub position: Option<Json>,
}

/// What a transaction of the outside world does to one of several sources.
#[derive(Debug, Clone)]
pub struct Part {
    /// The source ([`LaneSink::source`]).
    pub source: ObjectId,
    /// Its name, for metrics.
    pub name: Arc<str>,
    /// What it does there.
    pub batch: SourceBatch,
}

/// The engine is shutting down or the source was dropped: return from [`Source::run`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pipeline no longer takes this source's rows")]
pub struct SinkClosed;

/// Takes batches into the input log.
pub trait LaneSink: Send + Sync {
    /// Stages a batch. Blocks while the source's staged bytes are over the limit (back-pressure).
    /// On return the batch is on its way to the log, not yet synced.
    fn stage(&self, batch: SourceBatch) -> Result<(), SinkClosed>;
    /// Stages a transaction: one batch of each of several sources, whose readers share a thread.
    /// They are logged as one record and become visible at one time. Blocks as [`LaneSink::stage`]
    /// does, while any of the sources has no room. A sink that is closed gives the parts back.
    ///
    /// `is_open`: the transaction goes on. What was staged becomes visible together with the next batch of
    /// each of its lanes, also after a restart; the last call names every lane that has something of it
    /// (if only with an empty batch). What is open takes memory until then, and no room.
    fn stage_together(&self, parts: Vec<Part>, is_open: bool) -> Result<(), Vec<Part>>;
    /// Notes that a lane has come to a position (its marks, see [`SourceBatch::position`]) without
    /// anything to stage. Not logged: after a restart the lane stands where its last batch left it.
    fn reached(&self, lane: &str, position: &Json);
    /// The source, for [`Part`].
    fn source(&self) -> ObjectId;
    /// Waits until everything staged before is synced; then the upstream may be confirmed.
    fn sync(&self) -> Result<(), SinkClosed>;
}

/// What a source finds when it starts again.
pub trait Resume: Send + Sync {
    /// The position of the lane's last logged batch.
    fn position(&self, lane: &str) -> Option<Json>;
    /// The live keys, with the hash of each packed row ([`ContentHash::of`] its bytes), so that a
    /// source without positions (files) can find what changed and what vanished.
    fn live(&self) -> Vec<(Key, ContentHash)>;
    /// The live keys alone.
    fn keys(&self) -> Vec<Key> {
        self.live().into_iter().map(|(key, _)| key).collect()
    }
    /// The row of a key after everything staged so far, for sources that send parts of rows.
    fn row(&self, key: &Key) -> Option<Row>;
    /// The lanes that have logged batches.
    fn lanes(&self) -> Vec<String>;
    /// The source's dead letters that are kept, oldest first, for sources that tell them elsewhere;
    /// only those ask.
    fn letters(&self) -> Vec<Arc<DeadLetter>> {
        Vec::new()
    }
}

/// What a source waits for in the outside world, by what waits (its connection, a partition, a table), and
/// what is there that it has not read.
#[derive(Debug, Default)]
pub struct Waits {
    reasons: Mutex<BTreeMap<Cow<'static, str>, String>>,
    behind: Mutex<BTreeMap<String, u64>>,
}

impl Waits {
    /// How much is written at all its places and not read: messages of Kafka, bytes of PostgreSQL's log.
    /// `None` of a source that does not know.
    pub fn behind(&self) -> Option<u64> {
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        (!behind.is_empty()).then(|| behind.values().sum())
    }

    /// Notes how much of one place is not read.
    pub fn is_behind(&self, place: &str, count: u64) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        match behind.get_mut(place) {
            Some(noted) => *noted = count,
            None => drop(behind.insert(place.to_owned(), count)),
        }
    }

    /// Why the source does not read all that it could; `None` when it does.
    pub fn reason(&self) -> Option<String> {
        let waits = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons: Vec<&str> = waits.values().map(String::as_str).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Notes a reason (`None`: no more); whether there is any now.
    fn set(&self, what: impl Into<Cow<'static, str>>, reason: Option<String>) -> bool {
        let mut waits = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => waits.insert(what.into(), reason),
            None => waits.remove(&what.into()),
        };
        !waits.is_empty()
    }
}

/// What a source runs with.
#[derive(Clone)]
pub struct SourceContext {
    /// The name it was declared under.
    pub name: String,
    /// Takes its batches.
    pub sink: Arc<dyn LaneSink>,
    /// What it finds when it starts again.
    pub resume: Arc<dyn Resume>,
    /// Set when the source must return soon.
    pub stop: Arc<AtomicBool>,
    /// Set before `stop` when the source is dropped for good: what it holds upstream (a replication
    /// slot keeps log there) is to be given up.
    pub dropped: Arc<AtomicBool>,
    /// What it waits for, for people.
    pub waits: Arc<Waits>,
}

impl SourceContext {
    /// Tells people that `what` waits, and why: the source goes on trying.
    pub fn waits_for(&self, what: impl Into<Cow<'static, str>>, reason: impl Display) {
        let is_waiting = self.waits.set(what, Some(reason.to_string()));
        self.show(is_waiting);
    }

    /// What waited goes on; nothing when it did not wait. Cost: a lock that nobody else holds long.
    pub fn goes_on(&self, what: impl Into<Cow<'static, str>>) {
        let is_waiting = self.waits.set(what, None);
        self.show(is_waiting);
    }

    /// It has ended: nothing waits any more.
    pub fn waits_no_longer(&self) {
        self.waits
            .reasons
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.show(false);
    }

    fn show(&self, is_waiting: bool) {
        let gauge = metrics::gauge!(telemetry::SOURCE_RETRYING.name, "source" => self.name.clone());
        gauge.set(f64::from(u8::from(is_waiting)));
    }

    /// Whether the source must return.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether the source is dropped for good.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sleeps in steps short enough to notice a stop; false when stopping.
    pub fn sleep(&self, duration: std::time::Duration) -> bool {
        let until = std::time::Instant::now() + duration;
        while !self.is_stopping() {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(std::time::Duration::from_millis(20)));
        }
        false
    }

    /// Reports bad data that belongs to no change.
    pub fn dead_letter(
        &self,
        lane: &str,
        position: String,
        error: DataError,
        payload: Vec<u8>,
    ) -> Result<(), SinkClosed> {
        let letter = DeadLetter::new(&*self.name, position, error, &payload);
        self.sink.stage(SourceBatch {
            lane: lane.to_owned(),
            dead_letters: vec![letter],
            ..SourceBatch::default()
        })
    }
}

/// A reader of the outside world.
///
/// Laws, checked by `testing::source_laws`: after any interruption and a new `run` with the
/// resumed state no change is lost, and a change delivered twice changes nothing; `run` returns
/// within a second of `stop`.
pub trait Source: Send {
    /// Reads until stopped. Returns early only for an error that a person must solve; transient
    /// trouble is retried inside with back-off and a log line.
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError>;
}
