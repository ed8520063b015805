//! A model that turns texts to vectors.

use crate::error::WorldError;
use crate::model::{ContentHash, ModelId, VectorRef};

/// Why a batch was not embedded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("model {model}: {detail}")]
pub struct EmbedError {
    /// The model's name.
    pub model: String,
    /// What happened.
    pub detail: String,
    /// Whether trying again can help.
    pub is_transient: bool,
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
    /// Identity: weights + tokenizer + pooling + prompts + precision class, never the device.
    fn id(&self) -> ModelId;
    /// The name for messages.
    fn name(&self) -> &str;
    /// Length of a vector.
    fn dimensions(&self) -> usize;
    /// The longest sequence the model sees, special tokens included.
    fn max_tokens(&self) -> usize;
    /// How many special tokens the model adds to a text (`[CLS]`, `[SEP]`: 2).
    fn special_tokens(&self) -> usize;
    /// Tokens of a text, special tokens excluded, uncut. Cost: linear in the text.
    fn token_spans(&self, text: &str) -> TokenSpans;
    /// Embeds a batch: one vector a text, in order. May take long; never called on a worker.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;
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
