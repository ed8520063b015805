//! The one ordered stream of commands that all workers see (PROTOCOLS §3.4).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::program::QuestionId;
use crate::model::{Change, ObjectId, Time, VectorFact};

/// All changes bound to one time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tick<O> {
    /// Their time.
    pub at: Time,
    /// Rows by source, in lane order; at most one change a key and source.
    pub changes: Vec<(ObjectId, Vec<Change>)>,
    /// Vectors that exist from `at` on, with their bytes (`None` when this process can read them
    /// from its own store).
    pub vectors: Vec<(VectorFact, Option<Arc<[f32]>>)>,
    /// Operations on derived state, in order.
    pub operations: Vec<O>,
    /// Objects whose `since` moved, with the new one.
    pub since: Vec<(ObjectId, Time)>,
}

/// What the sequencer tells every worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command<D, Q, O> {
    /// Feed, and advance all inputs to `at + 1`.
    Tick(Tick<O>),
    /// Answer questions at a sealed time.
    Ask {
        /// The time.
        at: Time,
        /// The questions.
        questions: Vec<(QuestionId, Q)>,
    },
    /// Forget a question.
    Cancel(QuestionId),
    /// Render an object.
    Install {
        /// Its first time.
        at: Time,
        /// Its identity.
        id: ObjectId,
        /// What it is.
        object: D,
    },
    /// Drop an object.
    Uninstall(ObjectId),
    /// The store has forgotten these vectors.
    Forget(Vec<VectorFact>),
    /// Stop the worker.
    Stop,
}
