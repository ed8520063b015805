//! Work done off the workers before a batch is bound: evaluate, chunk, hash, ask for vectors
//! (PROTOCOLS §4.1).

use super::lanes::StagedBatch;
use crate::model::{ContentHash, ModelId, VectorRef};

/// A vector that a batch needs, with its place when it is stored already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Of which model.
    pub model: ModelId,
    /// Of which text.
    pub content: ContentHash,
    /// Where it lies, if it does.
    pub at: Option<VectorRef>,
}

/// What preparing a batch found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Whether its rows go into an index, which takes more time than arranging them.
    pub is_indexed: bool,
    /// Tokens of its texts.
    pub tokens: usize,
    /// The vectors of its chunks.
    pub wants: Vec<Want>,
    /// How long the batch may wait for them; the least of the indexes that read the source.
    pub deadline_ms: u64,
}

/// Prepares batches on the engine's prepare threads, in any order.
///
/// Missing vectors are requested here; each that gets stored is announced by
/// [`super::Engine::vector_stored`], before or after `prepare` returns.
pub trait Preparer: Send + Sync {
    /// Prepares one batch. Bad rows are not errors here: the dataflow makes dead letters of them.
    fn prepare(&self, batch: &StagedBatch) -> Prepared;
    /// Whether the model's circuit breaker is open: then nothing waits for its vectors.
    fn is_open(&self, model: &ModelId) -> bool;
    /// Whether a vector is stored.
    fn has_vector(&self, at: VectorRef) -> bool;
    /// The bytes of a stored vector.
    fn vector(&self, at: VectorRef) -> Option<std::sync::Arc<[f32]>>;
}
