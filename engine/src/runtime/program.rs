//! What runs on the workers: the seam between the runtime, which knows time and order, and the
//! crates above, which know what the dataflows mean.
//!
//! One [`Program`] lives on every worker and sees the same commands in the same order. It must be
//! a pure function of them: every worker builds every dataflow, in the same order, from the same
//! definitions (PROTOCOLS §8.2).

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::worker::Worker;

use super::command::Tick;
use crate::model::{ObjectId, Time, VectorFact};

/// Values that may cross to another process.
pub trait Wire:
    Serialize + DeserializeOwned + Clone + Send + Sync + std::fmt::Debug + 'static
{
}
impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + std::fmt::Debug + 'static> Wire for T {}

/// Identifies a question while it runs.
pub type QuestionId = u64;

/// The part of a worker that knows what dataflows mean.
pub trait Program: 'static {
    /// A declared object; rendering is a pure function of it.
    type Definition: Wire;
    /// A planned question.
    type Question: Wire;
    /// A change of derived state that is an input of its own (cache leases, stores, …).
    type Operation: Wire;

    /// Renders an object. Everything fed from `at` on reaches it.
    fn install(&mut self, worker: &mut Worker, at: Time, id: ObjectId, object: &Self::Definition);
    /// Drops an object's dataflow; its readers were dropped before.
    fn uninstall(&mut self, worker: &mut Worker, id: ObjectId);
    /// Feeds the rows of a tick that this worker owns and advances *every* input to `at + 1`. A tick that
    /// no other worker needs any more is given whole: its rows can be moved.
    fn feed(&mut self, tick: Cow<'_, Tick<Self::Operation>>);
    /// Installs one short-lived dataflow for questions at one sealed time.
    fn ask(&mut self, worker: &mut Worker, at: Time, questions: &[(QuestionId, Self::Question)]);
    /// Drops what is left of a question.
    fn cancel(&mut self, worker: &mut Worker, question: QuestionId);
    /// Nothing before `since` will be read of this object again.
    fn allow_compaction(&mut self, id: ObjectId, since: Time);
    /// These vectors are gone; those that are computed again have other places.
    fn forget(&mut self, facts: &[VectorFact]);
    /// Background upkeep, at most two milliseconds; true when there is more at once.
    fn maintain(&mut self) -> bool;
    /// For each object, the first time not yet complete on any worker (asked of worker 0 only).
    fn uppers(&self, report: &mut dyn FnMut(ObjectId, Time));
}

/// Makes the program of one worker: `(index, peers)`.
pub type ProgramFactory<P> = dyn Fn(usize, usize) -> P + Send + Sync;
