//! A deterministic encoder without weights: a bag of hashed words on the unit sphere.
//!
//! Texts that share words are near, others almost orthogonal, so that searches in tests find what
//! a reader would expect. Tokens are maximal runs without white space. Delays and failures are
//! scripted, and every embedded text is counted, so that "each once" can be checked.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::contract::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans, VectorMemo};
use crate::error::WorldError;
use crate::model::{ContentHash, ModelId, VectorRef};

/// Special tokens it pretends to add.
const SPECIAL_TOKENS: usize = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
pub struct HashedEmbedder {
    name: String,
    dimensions: usize,
    max_tokens: usize,
    delay: Mutex<Duration>,
    /// Outcomes of the next calls: `Some` fails.
    script: Mutex<VecDeque<Option<EmbedFault>>>,
    /// Calls that end before this fail.
    failing_until: Mutex<Option<Instant>>,
    limits: CallLimits,
    /// Texts that fail for good, alone or in a batch.
    poisoned: Mutex<Vec<String>>,
    counts: Mutex<HashMap<String, u64>>,
    batches: AtomicU64,
}

impl HashedEmbedder {
    /// An encoder with vectors of this length; the name is part of its id.
    pub fn new(name: &str, dimensions: usize) -> Self {
        assert!(dimensions > 0, "a vector has components");
        HashedEmbedder {
            name: name.to_owned(),
            dimensions,
            max_tokens: 256,
            delay: Mutex::new(Duration::ZERO),
            script: Mutex::default(),
            failing_until: Mutex::default(),
            limits: CallLimits::LOCAL,
            poisoned: Mutex::default(),
            counts: Mutex::default(),
            batches: AtomicU64::new(0),
        }
    }

    /// The same with another maximum length, special tokens included.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        assert!(max_tokens > SPECIAL_TOKENS, "room for text");
        self.max_tokens = max_tokens;
        self
    }

    /// The same with limits of a call, as a remote encoder has.
    pub fn with_call_limits(mut self, limits: CallLimits) -> Self {
        self.limits = limits;
        self
    }

    /// How long each call takes from now on.
    pub fn set_delay(&self, delay: Duration) {
        *lock(&self.delay) = delay;
    }

    /// Appends outcomes of calls to come: `None` works, `Some` fails.
    pub fn script(&self, outcomes: impl IntoIterator<Item = Option<EmbedFault>>) {
        lock(&self.script).extend(outcomes);
    }

    /// Makes all calls fail, for so long from now on, as a world does that is away.
    pub fn fail_for(&self, duration: Duration) {
        *lock(&self.failing_until) = Some(Instant::now() + duration);
    }

    /// Makes a text fail for good, whatever batch it is in.
    pub fn poison(&self, text: &str) {
        lock(&self.poisoned).push(text.to_owned());
    }

    /// How often a text was embedded with success.
    pub fn count_of(&self, text: &str) -> u64 {
        lock(&self.counts).get(text).copied().unwrap_or(0)
    }

    /// Texts embedded with success, repetitions counted.
    pub fn total(&self) -> u64 {
        lock(&self.counts).values().sum()
    }

    /// Calls so far, failed ones included.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::SeqCst)
    }

    /// The vector of a text, not counted.
    pub fn vector(&self, text: &str) -> Vec<f32> {
        let spans = self.token_spans(text);
        let mut vector = vec![0.0_f32; self.dimensions];
        // A direction of its own for the empty text: a vector is never zero.
        add_word(&mut vector, "", 0.05);
        let room = self.max_tokens - SPECIAL_TOKENS;
        for (&start, &end) in spans.starts.iter().zip(&spans.ends).take(room) {
            add_word(
                &mut vector,
                &text[start as usize..end as usize].to_lowercase(),
                1.0,
            );
        }
        let norm = vector
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        vector
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) / norm) as f32);
        vector
    }

    fn error(&self, detail: &str, fault: EmbedFault) -> EmbedError {
        EmbedError {
            model: self.name.clone(),
            detail: detail.to_owned(),
            fault,
        }
    }
}

/// Adds a word's own pseudo-random direction.
fn add_word(vector: &mut [f32], word: &str, weight: f32) {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&ContentHash::of(word.as_bytes()).0);
    let mut rng = ChaCha8Rng::from_seed(seed);
    for x in vector {
        *x += weight * rng.random_range(-1.0_f32..1.0);
    }
}

impl Embedder for HashedEmbedder {
    fn id(&self) -> ModelId {
        let text = format!(
            "hashed {} {} {}",
            self.name, self.dimensions, self.max_tokens
        );
        ModelId(ContentHash::of(text.as_bytes()).0)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn special_tokens(&self) -> usize {
        SPECIAL_TOKENS
    }

    fn token_spans(&self, text: &str) -> TokenSpans {
        let mut spans = TokenSpans::default();
        for word in text.split_whitespace() {
            let start = word.as_ptr().addr() - text.as_ptr().addr();
            spans.starts.push(start as u32);
            spans.ends.push((start + word.len()) as u32);
        }
        spans
    }

    fn call_limits(&self) -> CallLimits {
        self.limits
    }

    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.embed(texts)
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let delay = *lock(&self.delay);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        if let Some(Some(fault)) = lock(&self.script).pop_front() {
            return Err(self.error("scripted failure", fault));
        }
        if lock(&self.failing_until).is_some_and(|until| Instant::now() < until) {
            return Err(self.error("scripted failure", EmbedFault::WORLD));
        }
        if texts
            .iter()
            .any(|text| lock(&self.poisoned).iter().any(|bad| bad == text))
        {
            return Err(self.error("a text that always fails", EmbedFault::Text));
        }
        let mut counts = lock(&self.counts);
        for text in texts {
            *counts.entry((*text).to_owned()).or_default() += 1;
        }
        drop(counts);
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }
}

/// Vectors in memory, with failures on demand.
#[derive(Default)]
pub struct MemoryMemo {
    inner: Mutex<MemoInner>,
}

#[derive(Default)]
struct MemoInner {
    refs: HashMap<(ModelId, ContentHash), VectorRef>,
    vectors: Vec<Vec<f32>>,
    failures: u32,
}

impl MemoryMemo {
    /// The vector behind a reference.
    pub fn vector(&self, at: VectorRef) -> Option<Vec<f32>> {
        lock(&self.inner)
            .vectors
            .get(usize::try_from(at.0).ok()?)
            .cloned()
    }

    /// How many vectors were kept.
    pub fn len(&self) -> usize {
        lock(&self.inner).vectors.len()
    }

    /// Whether none was kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets the next calls of `put` fail, as on a full disk.
    pub fn fail_puts(&self, count: u32) {
        lock(&self.inner).failures = count;
    }
}

impl VectorMemo for MemoryMemo {
    fn get(&self, model: ModelId, content: ContentHash) -> Option<VectorRef> {
        lock(&self.inner).refs.get(&(model, content)).copied()
    }

    fn put(
        &self,
        model: ModelId,
        content: ContentHash,
        vector: &[f32],
    ) -> Result<VectorRef, WorldError> {
        let mut inner = lock(&self.inner);
        if inner.failures > 0 {
            inner.failures -= 1;
            return Err(WorldError::Service {
                service: "memory memo".to_owned(),
                detail: "scripted failure".to_owned(),
                is_transient: true,
            });
        }
        if let Some(at) = inner.refs.get(&(model, content)) {
            return Ok(*at);
        }
        let at = VectorRef(inner.vectors.len() as u64);
        inner.vectors.push(vector.to_vec());
        inner.refs.insert((model, content), at);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::embedder_laws;

    #[test]
    fn the_hashed_embedder_keeps_the_laws() {
        for dimensions in [1, 8, 384] {
            embedder_laws(&HashedEmbedder::new("hashed", dimensions));
        }
        embedder_laws(&HashedEmbedder::new("short", 16).with_max_tokens(5));
    }

    #[test]
    fn texts_that_share_words_are_near() {
        let embedder = HashedEmbedder::new("hashed", 256);
        let texts = [
            "reset the second factor",
            "the second factor reset",
            "weather in eu-west",
        ];
        let vectors = embedder.embed(&texts).unwrap();
        let dot = |a: usize, b: usize| -> f32 {
            vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum()
        };
        assert!(dot(0, 1) > 0.99);
        assert!(dot(0, 2) < 0.3);
    }
}
