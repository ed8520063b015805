//! The queue in front of the encoders: memo, single flight, batches, breaker.
//!
//! ```text
//! request ── memo hit ──────────────────────────────▶ done
//!    └─ join or queue ─▶ lane of the model ─ questions first, documents a fixed share
//!                          │ own threads: batch by tokens ─▶ Embedder ─▶ memo.put ─▶ every waiter's done
//! embed_question ─ cache ─ join or queue ─┘
//! ```
//!
//! Invariants:
//! - neither `request` nor `embed_question` ever waits for an encoder; each model has threads of
//!   its own, so a slow one holds up no other;
//! - of equal `(model, content hash)` one is embedded and all waiters are called;
//! - a document waits through any number of transient failures, of the encoder or of the store,
//!   and is embedded once; a question fails at once, so that search can go on without its leg;
//! - callbacks run on the lane's thread, or on the caller's when the memo had the vector; they must
//!   be short and may call the service.
//!
//! Limits: the queue itself is unbounded: staged bytes bound what is asked for (`limits`).

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use engine::contract::{EmbedError, Embedder, VectorMemo};
use engine::limits;
use engine::model::{ContentHash, ModelId, VectorRef};
use hashbrown::HashMap;

use super::lane::{Lane, LaneHandle};

/// Counter: tokens embedded, by `model`.
pub const TOKENS_TOTAL: &str = "headwater_embed_tokens_total";
/// Counter: texts embedded, by `model`.
pub const TEXTS_TOTAL: &str = "headwater_embed_texts_total";
/// Counter: calls of an encoder, by `model` and `outcome` (`ok`, `transient`, `permanent`).
pub const BATCHES_TOTAL: &str = "headwater_embed_batches_total";
/// Histogram: seconds of a call of an encoder, by `model`.
pub const BATCH_SECONDS: &str = "headwater_embed_batch_seconds";
/// Counter: requests answered from the memo, by `model`.
pub const MEMO_HITS_TOTAL: &str = "headwater_embed_memo_hits_total";
/// Gauge: texts that wait or are being embedded, by `model`.
pub const QUEUE_TEXTS: &str = "headwater_embed_queue_texts";
/// Gauge: 1 while the breaker is open, by `model`.
pub const BREAKER_OPEN: &str = "headwater_embed_breaker_open";
/// Counter: questions answered from the cache, by `model`.
pub const QUESTION_CACHE_HITS_TOTAL: &str = "headwater_embed_question_cache_hits_total";
/// Counter: questions that had to be embedded, by `model`.
pub const QUESTION_CACHE_MISSES_TOTAL: &str = "headwater_embed_question_cache_misses_total";

/// Which documents go first. Questions go before both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits: a push, a small edit.
    Push,
    /// A first fill, a backlog.
    Bulk,
}

/// Called once for each item of a request.
pub type DocumentDone = Box<dyn Fn(ContentHash, Result<VectorRef, EmbedError>) + Send + Sync>;
/// Called once with a question's vector.
pub type QuestionDone = Box<dyn FnOnce(Result<Arc<[f32]>, EmbedError>) + Send>;

/// How the service works; defaults from [`limits`].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedConfig {
    /// Threads that call one model's encoder; part of the process's thread budget.
    pub threads_per_model: usize,
    /// Tokens of a batch, at least, when as many wait.
    pub batch_tokens_min: usize,
    /// Tokens of a batch, at most.
    pub batch_tokens_max: usize,
    /// Aimed time of a batch: the number of tokens follows the measured rate.
    pub batch_time: Duration,
    /// Question batches in a row before waiting documents get one.
    pub question_batches_max: u32,
    /// Question vectors remembered per model.
    pub question_cache_entries: usize,
    /// Failures in a row that open the breaker.
    pub breaker_failures: u32,
    /// First wait after a failure; doubles.
    pub backoff: Duration,
    /// Longest wait after a failure.
    pub backoff_max: Duration,
}

impl Default for EmbedConfig {
    fn default() -> Self {
        EmbedConfig {
            threads_per_model: 1,
            batch_tokens_min: limits::EMBED_BATCH_TOKENS_MIN,
            batch_tokens_max: limits::EMBED_BATCH_TOKENS_MAX,
            batch_time: Duration::from_millis(limits::EMBED_BATCH_MS),
            question_batches_max: limits::EMBED_QUESTION_BATCHES_MAX,
            question_cache_entries: limits::QUESTION_CACHE_ENTRIES_MAX,
            breaker_failures: limits::EMBED_BREAKER_FAILURES,
            backoff: Duration::from_millis(limits::EMBED_BACKOFF_MS),
            backoff_max: Duration::from_millis(limits::EMBED_BACKOFF_MS_MAX),
        }
    }
}

/// See the module.
pub struct EmbedService {
    config: EmbedConfig,
    store: Arc<dyn VectorMemo>,
    lanes: RwLock<HashMap<ModelId, LaneHandle>>,
}

impl EmbedService {
    /// A service without models.
    pub fn new(config: EmbedConfig, store: Arc<dyn VectorMemo>) -> Arc<Self> {
        Arc::new(EmbedService {
            config,
            store,
            lanes: RwLock::default(),
        })
    }

    /// Adds an encoder and starts its threads. One with the same id is kept as it is.
    pub fn register(&self, embedder: Arc<dyn Embedder>) {
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        lanes
            .entry(embedder.id())
            .or_insert_with(|| LaneHandle::start(&self.config, embedder, self.store.clone()));
    }

    /// Removes an encoder; what waits for it fails for good. A batch under way is dropped.
    pub fn unregister(&self, model: ModelId) {
        let removed = self
            .lanes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&model);
        drop(removed);
    }

    /// The registered encoder of a model.
    pub fn embedder(&self, model: ModelId) -> Option<Arc<dyn Embedder>> {
        self.lane(model).map(|lane| lane.embedder().clone())
    }

    /// Asks for the vectors of documents' texts: `(hash, text, tokens)`. `done` is called once for
    /// each item (a hash given twice: twice). Never waits for the encoder.
    pub fn request(
        &self,
        model: ModelId,
        items: Vec<(ContentHash, Arc<str>, u32)>,
        priority: Priority,
        done: DocumentDone,
    ) {
        match self.lane(model) {
            Some(lane) => lane.request(items, priority, Arc::from(done)),
            None => {
                for (hash, _, _) in items {
                    done(hash, Err(unknown(model)));
                }
            }
        }
    }

    /// Asks for a question's vector. `done` gets an error at once while the breaker is open.
    pub fn embed_question(&self, model: ModelId, text: &str, done: QuestionDone) {
        match self.lane(model) {
            Some(lane) => lane.embed_question(text, done),
            None => done(Err(unknown(model))),
        }
    }

    /// Whether the model's breaker is open: nobody should wait for new vectors. An unknown model
    /// counts as open.
    pub fn is_open(&self, model: ModelId) -> bool {
        self.lane(model).is_none_or(|lane| lane.is_open())
    }

    /// Documents' texts that wait or are being embedded.
    pub fn pending(&self, model: ModelId) -> usize {
        self.lane(model).map_or(0, |lane| lane.pending())
    }

    /// Stops all threads after their batch; what waits fails as transient, to be asked again after
    /// a restart. Does not wait for batches under way; their vectors are dropped.
    pub fn stop(&self) {
        let lanes =
            std::mem::take(&mut *self.lanes.write().unwrap_or_else(PoisonError::into_inner));
        drop(lanes);
    }

    fn lane(&self, model: ModelId) -> Option<Arc<Lane>> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        lanes.get(&model).map(LaneHandle::lane)
    }
}

fn unknown(model: ModelId) -> EmbedError {
    EmbedError {
        model: model.to_string(),
        detail: "the model is not loaded, or was dropped".to_owned(),
        is_transient: false,
    }
}
