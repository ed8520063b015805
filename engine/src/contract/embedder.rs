//! A model that turns texts to vectors.

use std::time::Duration;

use crate::error::WorldError;
use crate::model::{ContentHash, ModelId, VectorRef};

/// Whose fault it is that a batch was not embedded: what the queue does about it follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbedFault {
    /// The world's (a network, a device, a busy server): the batch is tried again after a back-off.
    World {
        /// The least wait that the other side asked for.
        retry_after: Option<Duration>,
    },
    /// The model's (a wrong key, another length than declared): nothing is embedded until a person
    /// acts. Texts wait.
    Model,
    /// A text's: at least one of the batch can never be embedded. The others can.
    Text,
}

impl EmbedFault {
    /// The world's, without a word of when to try again.
    pub const WORLD: EmbedFault = EmbedFault::World { retry_after: None };
}

/// Why a batch was not embedded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("model {model}: {detail}")]
pub struct EmbedError {
    /// The model's name.
    pub model: String,
    /// What happened.
    pub detail: String,
    /// Whose fault it is.
    pub fault: EmbedFault,
}

impl EmbedError {
    /// Whether trying the same again can help, without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.fault, EmbedFault::World { .. })
    }
}

/// What one call of an encoder may carry, and how many calls may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Texts of one call, at most.
    pub texts: usize,
    /// Tokens of one call; `None`: as many as fit the aimed time of a call at the measured rate,
    /// because whoever comes next waits for its end.
    pub tokens: Option<usize>,
    /// Calls under way at once; `None`: as many as the engine has threads for. With several, one is
    /// kept for questions.
    pub calls: Option<usize>,
}

impl CallLimits {
    /// An encoder on this machine's cores: calls no longer than a question may wait, on the engine's
    /// threads.
    pub const LOCAL: CallLimits = CallLimits {
        texts: usize::MAX,
        tokens: None,
        calls: None,
    };
}

/// Where the tokens of a text lie.
///
/// `ends[i]` is the byte offset just past token `i`'s bytes in the text, non-decreasing; special
/// tokens are not included (see [`Embedder::special_tokens`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenSpans {
    /// Byte offset of each token's first byte.
    pub starts: Vec<u32>,
    /// Byte offset just past each token's last byte.
    pub ends: Vec<u32>,
}

/// Turns texts to unit vectors.
///
/// Laws, checked by `testing::embedder_laws` for every implementation:
/// - *Batch-invariant*: a text's vector is bitwise the same alone and in any batch, at any place.
/// - *Unit*: |v| = 1 within 1e-5, every component finite, `dimensions()` long.
/// - *Stable*: equal texts have bitwise equal vectors for the life of a `ModelId`.
/// - Texts longer than `max_tokens` are cut by the model's own rule, never refused.
pub trait Embedder: Send + Sync {
    /// Identity: weights + tokenizer + pooling + prompts + dimensions + precision class, never the
    /// device.
    fn id(&self) -> ModelId;
    /// The name for messages.
    fn name(&self) -> &str;
    /// Length of a vector.
    fn dimensions(&self) -> usize;
    /// The longest sequence the model sees, special tokens included.
    fn max_tokens(&self) -> usize;
    /// How many tokens the model adds to a document's text: special ones (`[CLS]`, `[SEP]`: 2) and
    /// those of a prompt.
    fn special_tokens(&self) -> usize;
    /// Tokens of a text, special tokens excluded, uncut. Cost: linear in the text.
    fn token_spans(&self, text: &str) -> TokenSpans;
    /// What one call may carry.
    fn call_limits(&self) -> CallLimits;
    /// Why vectors come slower than declared, though they come: a device that rests. Replies say it.
    fn degraded(&self) -> Option<String> {
        None
    }
    /// Embeds a batch of documents' texts: one vector a text, in order. May take long; never called
    /// on a worker.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;
    /// The same for questions, which some models embed behind a prompt of their own.
    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;
}

/// Remembers which `(model, content hash)` has a vector already, and keeps new ones.
///
/// The durable embedding store implements it; tests use `testing::MemoryMemo`.
/// Laws: `get` after a `put` that returned gives its reference; a second `put` for the same pair
/// returns the first one's. Both are called from several threads at once.
pub trait VectorMemo: Send + Sync {
    /// Where the vector lies, if there is one. Cheap: called under no lock, but for every request.
    fn get(&self, model: ModelId, content: ContentHash) -> Option<VectorRef>;
    /// Keeps a vector. On return it may be referred to; whether it is synced is the store's rule.
    fn put(
        &self,
        model: ModelId,
        content: ContentHash,
        vector: &[f32],
    ) -> Result<VectorRef, WorldError>;
}
