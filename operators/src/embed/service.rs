//! The queue in front of the encoders: memo, single flight, batches, breaker.
//!
//! ```text
//! request ── memo hit, refused lately ──────────────▶ done
//!    └─ join or queue ─▶ lane of the model ─ questions first, documents a fixed share
//!                          │ own threads: batch by tokens ─▶ Embedder ─▶ memo.put ─▶ every waiter's done
//! embed_question, embed_text ─ cache ─ join or queue ─┘
//! ```
//!
//! Invariants:
//! - neither `request` nor `embed_question` ever waits for an encoder; each model has threads of
//!   its own, so a slow one holds up no other;
//! - of equal `(model, content hash)` one is embedded and all waiters are called;
//! - a document waits through any number of failures of the encoder or of the store that are not
//!   its own text's, and is embedded once; a question fails at once, so that search can go on without
//!   its leg;
//! - a text that the model refuses fails no other text, and is not offered again for a while;
//! - callbacks run on the lane's thread, or on the caller's when the memo had the vector; they must
//!   be short and may call the service.
//!
//! Limits: texts of documents that wait take at most [`limits::EMBED_QUEUE_BYTES_MAX`] a model. What
//! comes then is turned away, not kept: its documents are live without their vectors, and who has
//! them asks again when [`EmbedService::take_gap`] says so.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use engine::contract::{EmbedError, EmbedFault, Embedder, VectorMemo};
use engine::limits;
use engine::model::{ContentHash, ModelId, VectorRef};
use hashbrown::HashMap;

use super::lane::{Lane, LaneHandle};

/// Counter: tokens embedded, by `model`.
pub const TOKENS_TOTAL: &str = "headwater_embed_tokens_total";
/// Counter: texts embedded, by `model`.
pub const TEXTS_TOTAL: &str = "headwater_embed_texts_total";
/// Counter: calls of an encoder, by `model` and `outcome` (`ok`, `transient`, `permanent`, `refused`).
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
/// Counter: texts that the model refused, by `model`.
pub const REFUSED_TOTAL: &str = "headwater_embed_refused_total";
/// Counter: texts that found no room in the queue, by `model`.
pub const OVERFLOW_TOTAL: &str = "headwater_embed_queue_overflow_total";

/// Which documents go first. Questions go before both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits: a push, a small edit.
    Push,
    /// A first fill, a backlog.
    Bulk,
}

/// What a text is to a model: some embed questions behind another prompt than documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TextKind {
    /// A question.
    Question,
    /// A document's text.
    Passage,
}

/// How soon a caller needs a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Before documents: somebody waits for an answer.
    Now,
    /// In turns with documents: one of a long list.
    InTurn,
}

/// Called once for each item of a request.
pub type DocumentDone = Box<dyn Fn(ContentHash, Result<VectorRef, EmbedError>) + Send + Sync>;
/// Called once with a question's vector.
pub type QuestionDone = Box<dyn FnOnce(Result<Arc<[f32]>, EmbedError>) + Send>;

/// How the service works; defaults from [`limits`].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedConfig {
    /// Threads on which a model of this machine's cores embeds documents; it has one more for
    /// questions. Other models say how many calls they take.
    pub document_threads: usize,
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
            document_threads: 1,
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

    /// Adds an encoder and starts its threads. One with the same id is replaced and keeps its queue:
    /// the vectors are the same, the way to them (a key, a limit) may be another.
    pub fn register(&self, embedder: Arc<dyn Embedder>) {
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        match lanes.get(&embedder.id()) {
            Some(handle) => handle.lane().replace(embedder),
            None => {
                let id = embedder.id();
                let lane = LaneHandle::start(&self.config, embedder, self.store.clone());
                lanes.insert(id, lane);
            }
        }
    }

    /// Removes an encoder; what waits for it fails, to be asked again. A batch under way is dropped.
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
        self.lane(model).map(|lane| lane.embedder())
    }

    /// Asks for the vectors of documents' texts: `(hash, text, tokens)`, tokens 0 when nobody counted
    /// them. `done` is called once for each item (a hash given twice: twice). Never waits for the
    /// encoder.
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
        self.embed_text(model, text, TextKind::Question, Urgency::Now, done);
    }

    /// Asks for a text's vector for the caller alone: it is remembered for a while, never stored.
    /// Fails like a question.
    pub fn embed_text(
        &self,
        model: ModelId,
        text: &str,
        kind: TextKind,
        urgency: Urgency,
        done: QuestionDone,
    ) {
        match self.lane(model) {
            Some(lane) => lane.embed_text(text, kind, urgency, done),
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

    /// Why the last call failed, while the encoder does not answer.
    pub fn trouble(&self, model: ModelId) -> Option<String> {
        self.lane(model).and_then(|lane| lane.trouble())
    }

    /// Whether a document's text waits or is being embedded: its vector will be announced to whoever
    /// asked first.
    pub fn is_waiting(&self, model: ModelId, text: ContentHash) -> bool {
        self.lane(model).is_some_and(|lane| lane.is_waiting(text))
    }

    /// How many texts the model refused and is not offered for now.
    pub fn refused(&self, model: ModelId) -> usize {
        self.lane(model).map_or(0, |lane| lane.refused())
    }

    /// Whether who has documents without vectors should ask for them again: some were turned away
    /// and there is room now, or one was refused, or may be offered again. True once.
    pub fn take_gap(&self, model: ModelId) -> bool {
        self.lane(model).is_some_and(|lane| lane.take_gap())
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
        fault: EmbedFault::Model,
    }
}
