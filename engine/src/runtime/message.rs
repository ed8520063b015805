//! What the sequencer's mailbox takes.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::lanes::{LaneId, StagedBatch};
use super::preparer::Prepared;
use super::program::{Program, QuestionId};
use crate::durable::LogSequence;
use crate::error::WorldError;
use crate::model::{ContentHash, ModelId, ObjectId, Time, VectorFact};

/// A change of what is declared, as it lies in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum CatalogChange<D> {
    /// A new object.
    Install {
        /// Its identity.
        id: ObjectId,
        /// What it is.
        object: D,
        /// Whether it is a collection that workers keep (a model is not).
        is_collection: bool,
        /// New retentions, microseconds: its own, and those of what it reads, down to the sources: what
        /// waits of them is prepared for it.
        retain: Vec<(ObjectId, u64)>,
    },
    /// An object is dropped.
    Uninstall {
        /// Which one.
        id: ObjectId,
    },
}

/// At which time a question wants to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskTime {
    /// The newest sealed time.
    Newest,
    /// The newest sealed time not before this one (waits).
    NotBefore(Time),
    /// This time.
    At(Time),
    /// The newest sealed time at which these writes and their vectors are visible (waits).
    After(Vec<WriteToken>),
}

/// Names a write: everything of a lane through a sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriteToken {
    /// The source.
    pub source: ObjectId,
    /// The lane.
    pub lane: String,
    /// The batch.
    pub sequence: u64,
}

impl std::fmt::Display for WriteToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "w1.{}.{}.{}", self.source.0, self.sequence, self.lane)
    }
}

impl std::str::FromStr for WriteToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a token of this server");
        let rest = text.strip_prefix("w1.").ok_or_else(bad)?;
        let mut parts = rest.splitn(3, '.');
        let mut part = || parts.next().ok_or_else(bad);
        Ok(WriteToken {
            source: ObjectId(part()?.parse().map_err(|_| bad())?),
            sequence: part()?.parse().map_err(|_| bad())?,
            lane: part()?.to_owned(),
        })
    }
}

/// Why a question was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// `as_of` is outside `since ≤ as_of < upper`.
    #[error("as_of {at} is outside the readable range {since} ≤ as_of < {upper}")]
    OutOfRange {
        /// What was asked.
        at: Time,
        /// Earliest.
        since: Time,
        /// First that is not sealed.
        upper: Time,
    },
    /// The collection was dropped, or has not been installed.
    #[error("the collection is gone")]
    Gone,
    /// A wished position was not reached in time.
    #[error("the position was not reached in time; sealed through {reached}")]
    NotReached {
        /// The newest sealed time.
        reached: Time,
    },
    /// The engine is stopping.
    #[error("the engine is stopping")]
    Stopping,
}

/// A question on its way in.
pub(super) struct AskRequest<P: Program> {
    pub(super) id: QuestionId,
    pub(super) over: Vec<ObjectId>,
    pub(super) at: AskTime,
    pub(super) deadline: Instant,
    /// `None` takes a time and a hold only.
    pub(super) question: Option<P::Question>,
    pub(super) accepted: Box<dyn FnOnce(Result<Time, AskError>) + Send>,
}

/// Called when a declaration is durable and rendered from a time on.
pub type Declared = Box<dyn FnOnce(Result<Time, Arc<WorldError>>) + Send>;

/// What the mailbox takes.
pub(super) enum Message<P: Program> {
    Staged(Vec<StagedBatch>),
    Prepared {
        lane: LaneId,
        sequence: u64,
        prepared: Prepared,
    },
    Vector(VectorFact),
    /// The store is about to forget these.
    Forgotten(Vec<VectorFact>),
    /// The model refuses the text.
    NoVector(ModelId, ContentHash),
    Ask(AskRequest<P>),
    Done(QuestionId),
    Cancel(QuestionId),
    Operate(P::Operation, Box<dyn FnOnce(Time) + Send>),
    Declare(CatalogChange<P::Definition>, Declared),
    Uppers(Vec<(ObjectId, Time)>),
    Durable(LogSequence),
    /// A tick is wanted not later than a time: a TTL is due.
    Due(Time),
    /// What replay held for an object is held by others now.
    Unpin(ObjectId),
    Resume,
    Stop,
}
