//! A sink: a collection, written to the outside world as it changes.
//!
//! A sink runs on a thread of its own and *asks* for what changed ([`ChangeFeed`]); nothing is pushed
//! at it. So a sink that is slow, or whose world is away, costs the dataflow nothing and holds no
//! changes of its own: what it has not written yet stays in the collection's history, which its hold
//! keeps from being forgotten.
//!
//! ```text
//!  since ≤ hold = progress ──────── changes ────────▶ through < upper
//!                 written outside,   asked for by page,
//!                 with everything    written as one, then the
//!                 before it          hold moves to `through`
//! ```
//!
//! Invariants: the changes of a key come in the order of their times, one for a key and a time, and
//! each one's `before` is the former one's `after`; after a restart the same changes have the same
//! times. Limits: a sink that writes nothing keeps the history since its progress in memory and on
//! disk; its lag is a metric.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::WorldError;
use crate::model::{Key, ObjectId, Row, Time};

/// What one time did to one key, as a whole. `before` and `after` differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowChange {
    /// The row.
    pub key: Key,
    /// The time.
    pub at: Time,
    /// The row as it was; `None`: it was not there.
    pub before: Option<Row>,
    /// The row as it is; `None`: it was deleted.
    pub after: Option<Row>,
}

impl RowChange {
    /// Bytes of key and rows.
    pub fn bytes(&self) -> usize {
        let rows = [&self.before, &self.after].into_iter().flatten();
        self.key.as_str().len() + rows.map(|row| row.as_bytes().len()).sum::<usize>()
    }
}

/// Where the next page of changes begins, by worker. Opaque to sinks.
pub type NextPage = Vec<(usize, Key)>;

/// Some of the changes that were asked for: all of each key that is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangePage {
    /// The changes; those of one key behind each other, by their times.
    pub changes: Vec<RowChange>,
    /// Where to go on; `None` behind the last page.
    pub next: Option<NextPage>,
}

/// Why there are no changes to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The engine is stopping, or the sink was dropped.
    #[error("the collection is no longer read")]
    Closed,
    /// The collection has forgotten what happened there.
    #[error("the collection's history begins at {since}, and the sink has written through {at}")]
    HistoryGone {
        /// The progress that was to be held.
        at: Time,
        /// The first time that is still known.
        since: Time,
    },
    /// The workers did not answer in time; ask again.
    #[error("the workers did not answer: {0}")]
    Late(String),
}

/// One collection, as its sink reads it. Every call blocks; none of them holds up the dataflow.
pub trait ChangeFeed: Send + Sync {
    /// Waits until a time above `after` is sealed, at most so long; the newest sealed time. It can be
    /// read: no time before the collection's first readable one.
    fn sealed(&self, after: Time, wait: Duration) -> Option<Time>;
    /// Keeps all that happens after `at`, in place of the time that was held before.
    ///
    /// Errors: [`FeedError::HistoryGone`], and nothing is held.
    fn hold(&self, at: Time) -> Result<(), FeedError>;
    /// A page of the changes in (`after`, `through`]; the whole collection at `through` when `after`
    /// is `None`. `after` must be held, or `through` without it; `page` is what the last page said.
    ///
    /// `most`: about so many bytes from each worker, and at least one key's changes; more than
    /// SINK_PAGE_BYTES_MAX is taken as that.
    fn changes(
        &self,
        after: Option<Time>,
        through: Time,
        page: Option<NextPage>,
        most: usize,
    ) -> Result<ChangePage, FeedError>;
    /// Remembers in the data folder that everything through a time is written outside. Never ahead of
    /// the truth, perhaps behind it.
    fn note(&self, progress: Time);
}

/// One start of the engine over a data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRun {
    /// Random: no other start has it, of this folder or of a copy.
    pub id: u64,
    /// No time above it was published in this run; set once, by the next start. `None`: the run that lasts.
    pub end: Option<Time>,
}

/// The starts of a data folder, oldest first: by them a sink tells its own progress from that of another
/// server on a copy of the folder.
///
/// Every progress outside names the run that wrote it. A copy knows the runs up to the copying, and how
/// far the last of them came *there*; what the original writes later is beyond that end, or in a run
/// that the copy has never heard of, and the other way round.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRuns(pub Vec<SinkRun>);

/// A progress that this data folder cannot have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForeignProgress {
    /// The run is none of this folder's.
    #[error("was written by a start that this data folder does not know")]
    Unknown,
    /// The run is known, and it ended before.
    #[error("is beyond {0}, where that start ended in this data folder")]
    Beyond(Time),
}

impl SinkRuns {
    /// The run that lasts.
    pub fn current(&self) -> u64 {
        self.0.last().map_or(0, |run| run.id)
    }

    /// Whether a progress is this folder's own. `attempted`: how far the run that lasts may have come.
    ///
    /// Errors: it is another's.
    pub fn check(&self, run: u64, at: Time, attempted: Time) -> Result<(), ForeignProgress> {
        let known = self.0.iter().find(|known| known.id == run);
        let end = known.ok_or(ForeignProgress::Unknown)?;
        let end = end.end.unwrap_or(attempted);
        match at <= end {
            true => Ok(()),
            false => Err(ForeignProgress::Beyond(end)),
        }
    }
}

/// How a sink is doing, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SinkPhase {
    /// It looks where it stands.
    #[default]
    Starting,
    /// It writes, or has nothing to write.
    Running,
    /// Something outside is in its way; it tries again.
    Retrying,
    /// It gave up: a person must do something.
    Failed,
}

impl SinkPhase {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            SinkPhase::Starting => "starting",
            SinkPhase::Running => "running",
            SinkPhase::Retrying => "retrying",
            SinkPhase::Failed => "failed",
        }
    }
}

/// What is known of a running sink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkState {
    /// How it is doing.
    pub phase: SinkPhase,
    /// What is in its way.
    pub error: Option<String>,
    /// Everything through this time is written.
    pub progress: Option<Time>,
    /// Records written since the start.
    pub records: u64,
    /// Transactions committed since the start.
    pub transactions: u64,
}

/// A [`SinkState`] that a sink writes and others read.
#[derive(Debug, Default)]
pub struct SinkStatus(Mutex<SinkState>);

impl SinkStatus {
    /// The state now.
    pub fn get(&self) -> SinkState {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the state.
    pub fn set(&self, change: impl FnOnce(&mut SinkState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a sink runs with.
#[derive(Clone)]
pub struct SinkContext {
    /// The name it was declared under.
    pub name: String,
    /// Which declaration of that name it is: a sink that is made again has another.
    pub id: ObjectId,
    /// The collection's name.
    pub collection: String,
    /// Names this data folder, and no other one: random, made once.
    pub pipeline: String,
    /// The collection.
    pub feed: Arc<dyn ChangeFeed>,
    /// The last noted progress of an earlier run; `None`: it has written nothing.
    pub noted: Option<Time>,
    /// The starts of this data folder that may have written the sink's progress.
    pub runs: SinkRuns,
    /// For people.
    pub status: Arc<SinkStatus>,
    /// Set when the sink must return soon.
    pub stop: Arc<AtomicBool>,
    /// Set before `stop` when the sink is dropped for good: what it keeps outside for itself goes.
    pub dropped: Arc<AtomicBool>,
}

impl SinkContext {
    /// Whether the sink must return.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether the sink is dropped for good.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes a collection to the outside world.
pub trait Sink: Send {
    /// Writes until told to stop. A failing world is tried again in here, with a pause that grows and
    /// a line in the log.
    ///
    /// Errors: what only a person can solve.
    fn run(self: Box<Self>, context: SinkContext) -> Result<(), WorldError>;
}
