//! One model's lane of the [service](super::service): its queue and the loop of its threads.
//!
//! ```text
//! next(): store what the store refused ▷ questions (at most n batches in a row) ▷ documents
//! documents: pushes first, bulk first in every fourth batch; as many tokens as the aimed time allows
//! ```
//!
//! Invariants: the lock is held for bookkeeping only, never across an encoder, the store or a
//! callback; an item leaves `texts` exactly when its waiters are about to be called.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{EmbedError, Embedder, VectorMemo};
use engine::model::{ContentHash, ModelId, VectorRef};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use metrics::{counter, gauge, histogram};

use super::breaker::{Admission, Breaker};
use super::question_cache::QuestionCache;
use super::service::{
    BATCH_SECONDS, BATCHES_TOTAL, BREAKER_OPEN, EmbedConfig, MEMO_HITS_TOTAL, Priority,
    QUESTION_CACHE_HITS_TOTAL, QUESTION_CACHE_MISSES_TOTAL, QUEUE_TEXTS, QuestionDone, TEXTS_TOTAL,
    TOKENS_TOTAL,
};

/// Called for each item; shared by the items of a request.
type Done = Arc<dyn Fn(ContentHash, Result<VectorRef, EmbedError>) + Send + Sync>;

/// Every this many document batches, bulk goes first.
const BULK_EVERY: u32 = 4;
/// Assumed before anything was measured: tokens a millisecond.
const FIRST_RATE: f64 = 8.0;

/// One document text that somebody waits for.
struct Waiting {
    text: Arc<str>,
    tokens: u32,
    priority: Priority,
    is_running: bool,
    waiters: Vec<Done>,
    /// Computed, but the store refused it so far.
    vector: Option<Vec<f32>>,
}

/// One question that somebody waits for.
struct Asked {
    text: Arc<str>,
    answers: Vec<QuestionDone>,
}

struct Queue {
    texts: HashMap<ContentHash, Waiting>,
    push: VecDeque<ContentHash>,
    bulk: VecDeque<ContentHash>,
    /// Computed vectors that wait for the store.
    unstored: Vec<ContentHash>,
    store_retry_at: Option<Instant>,
    store_failures: u32,
    questions: VecDeque<ContentHash>,
    asked: HashMap<ContentHash, Asked>,
    cache: QuestionCache,
    breaker: Breaker,
    question_batches: u32,
    document_batches: u32,
    tokens_per_ms: f64,
    is_stopping: bool,
}

/// What a thread does next.
enum Work {
    Store(Vec<ContentHash>),
    Questions(Vec<(ContentHash, Arc<str>)>),
    Documents(Vec<Item>),
}

/// One document text of a batch.
struct Item {
    hash: ContentHash,
    text: Arc<str>,
    tokens: u32,
}

/// Owns a lane: dropping it stops the lane's threads.
pub(super) struct LaneHandle(Arc<Lane>);

/// See the module.
pub(super) struct Lane {
    config: EmbedConfig,
    model: ModelId,
    name: String,
    embedder: Arc<dyn Embedder>,
    store: Arc<dyn VectorMemo>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl LaneHandle {
    /// Starts the threads.
    pub(super) fn start(
        config: &EmbedConfig,
        embedder: Arc<dyn Embedder>,
        store: Arc<dyn VectorMemo>,
    ) -> Self {
        let queue = Queue {
            texts: HashMap::new(),
            push: VecDeque::new(),
            bulk: VecDeque::new(),
            unstored: Vec::new(),
            store_retry_at: None,
            store_failures: 0,
            questions: VecDeque::new(),
            asked: HashMap::new(),
            cache: QuestionCache::new(config.question_cache_entries),
            breaker: Breaker::new(config.breaker_failures, config.backoff, config.backoff_max),
            question_batches: 0,
            document_batches: 0,
            tokens_per_ms: FIRST_RATE,
            is_stopping: false,
        };
        let lane = Arc::new(Lane {
            config: config.clone(),
            model: embedder.id(),
            name: embedder.name().to_owned(),
            embedder,
            store,
            queue: Mutex::new(queue),
            wake: Condvar::new(),
        });
        for i in 0..config.threads_per_model.max(1) {
            let worker = lane.clone();
            std::thread::Builder::new()
                .name(format!("embed-{i}"))
                .spawn(move || worker.run())
                .expect("the operating system gives a thread at start");
        }
        LaneHandle(lane)
    }

    pub(super) fn lane(&self) -> Arc<Lane> {
        self.0.clone()
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Lane {
    pub(super) fn embedder(&self) -> &Arc<dyn Embedder> {
        &self.embedder
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().breaker.is_open()
    }

    pub(super) fn pending(&self) -> usize {
        self.lock().texts.len()
    }

    pub(super) fn request(
        &self,
        items: Vec<(ContentHash, Arc<str>, u32)>,
        priority: Priority,
        done: Done,
    ) {
        let mut fresh = Vec::with_capacity(items.len());
        for (hash, text, tokens) in items {
            match self.store.get(self.model, hash) {
                Some(at) => {
                    counter!(MEMO_HITS_TOTAL, "model" => self.name.clone()).increment(1);
                    done(hash, Ok(at));
                }
                None => fresh.push((hash, text, tokens)),
            }
        }
        if fresh.is_empty() {
            return;
        }
        let mut queue = self.lock();
        if queue.is_stopping {
            drop(queue);
            fresh
                .into_iter()
                .for_each(|(hash, _, _)| done(hash, Err(self.stopped())));
            return;
        }
        for (hash, text, tokens) in fresh {
            queue.add(hash, text, tokens, priority, done.clone());
        }
        self.note_length(&queue);
        drop(queue);
        self.wake.notify_one();
    }

    pub(super) fn embed_question(&self, text: &str, done: QuestionDone) {
        let hash = ContentHash::of(text.as_bytes());
        let mut queue = self.lock();
        if let Some(vector) = queue.cache.get(hash) {
            drop(queue);
            counter!(QUESTION_CACHE_HITS_TOTAL, "model" => self.name.clone()).increment(1);
            done(Ok(vector));
            return;
        }
        let must_wait = matches!(queue.breaker.admits(Instant::now()), Admission::Wait(_));
        if queue.is_stopping || (queue.breaker.is_open() && must_wait) {
            let error = if queue.is_stopping {
                self.stopped()
            } else {
                self.resting()
            };
            drop(queue);
            done(Err(error));
            return;
        }
        counter!(QUESTION_CACHE_MISSES_TOTAL, "model" => self.name.clone()).increment(1);
        match queue.asked.entry(hash) {
            Entry::Occupied(mut asked) => asked.get_mut().answers.push(done),
            Entry::Vacant(slot) => {
                slot.insert(Asked {
                    text: Arc::from(text),
                    answers: vec![done],
                });
                queue.questions.push_back(hash);
            }
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Fails what waits and lets the threads end.
    fn stop(&self) {
        let mut queue = self.lock();
        queue.is_stopping = true;
        let texts = std::mem::take(&mut queue.texts);
        let asked = std::mem::take(&mut queue.asked);
        self.note_length(&queue);
        drop(queue);
        self.wake.notify_all();
        for (hash, waiting) in texts {
            waiting
                .waiters
                .iter()
                .for_each(|done| done(hash, Err(self.stopped())));
        }
        for asked in asked.into_values() {
            asked
                .answers
                .into_iter()
                .for_each(|done| done(Err(self.stopped())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No invariant is broken half-way by a panic inside: bookkeeping does not call out.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, detail: &str, is_transient: bool) -> EmbedError {
        EmbedError {
            model: self.name.clone(),
            detail: detail.to_owned(),
            is_transient,
        }
    }

    fn stopped(&self) -> EmbedError {
        self.error("the model is being unloaded", true)
    }

    fn resting(&self) -> EmbedError {
        self.error(
            "failed several times in a row and is tried again later",
            true,
        )
    }

    fn note_length(&self, queue: &Queue) {
        gauge!(QUEUE_TEXTS, "model" => self.name.clone()).set(queue.texts.len() as f64);
    }

    /// The loop of a thread.
    fn run(&self) {
        while let Some(work) = self.next() {
            match work {
                Work::Store(hashes) => self.store_again(hashes),
                Work::Questions(batch) => self.answer(batch),
                Work::Documents(batch) => self.embed(batch),
            }
        }
    }

    /// Waits for something to do; `None` when stopping.
    fn next(&self) -> Option<Work> {
        let mut queue = self.lock();
        loop {
            if queue.is_stopping {
                return None;
            }
            let now = Instant::now();
            let store_wait = queue
                .store_retry_at
                .map(|at| at.saturating_duration_since(now));
            if store_wait == Some(Duration::ZERO) {
                queue.store_retry_at = None;
                return Some(Work::Store(std::mem::take(&mut queue.unstored)));
            }
            let admission = queue.breaker.admits(now);
            if let Some(work) = queue.choose(admission, &self.config) {
                return Some(work);
            }
            let breaker_wait = match admission {
                Admission::Wait(wait) if queue.has_documents() => Some(wait),
                _ => None,
            };
            let wait = store_wait.into_iter().chain(breaker_wait).min();
            queue = match wait {
                Some(wait) => {
                    let waited = self.wake.wait_timeout(queue, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Calls the encoder and notes how it went. A result of the wrong shape is a permanent error.
    fn call(&self, texts: &[&str], tokens: u64) -> Result<Vec<Vec<f32>>, EmbedError> {
        let started = Instant::now();
        let result = self.embedder.embed(texts).and_then(|vectors| {
            let width = self.embedder.dimensions();
            let is_vector = |v: &Vec<f32>| v.len() == width && v.iter().all(|x| x.is_finite());
            if vectors.len() == texts.len() && vectors.iter().all(is_vector) {
                return Ok(vectors);
            }
            let detail = format!("expected {} finite vectors of {width} numbers", texts.len());
            Err(self.error(&detail, false))
        });
        let elapsed = started.elapsed();
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) if error.is_transient => "transient",
            Err(_) => "permanent",
        };
        counter!(BATCHES_TOTAL, "model" => self.name.clone(), "outcome" => outcome).increment(1);
        histogram!(BATCH_SECONDS, "model" => self.name.clone()).record(elapsed.as_secs_f64());
        let mut queue = self.lock();
        match &result {
            Ok(_) => {
                counter!(TOKENS_TOTAL, "model" => self.name.clone()).increment(tokens);
                counter!(TEXTS_TOTAL, "model" => self.name.clone()).increment(texts.len() as u64);
                let rate = tokens as f64 / (elapsed.as_secs_f64() * 1e3).max(1e-3);
                queue.tokens_per_ms += 0.2 * (rate - queue.tokens_per_ms);
                if queue.breaker.succeed() {
                    gauge!(BREAKER_OPEN, "model" => self.name.clone()).set(0.0);
                    tracing::info!(model = self.name, "the encoder is back");
                }
            }
            Err(error) if error.is_transient => {
                if queue.breaker.fail(Instant::now(), jitter()) {
                    gauge!(BREAKER_OPEN, "model" => self.name.clone()).set(1.0);
                    tracing::warn!(model = self.name, %error, "the encoder's breaker opens");
                }
            }
            Err(_) => queue.breaker.abstain(),
        }
        drop(queue);
        // Others may have waited for the end of a probe.
        self.wake.notify_all();
        result
    }

    fn embed(&self, batch: Vec<Item>) {
        // Somebody may have stored one between the request's look-up and its joining the queue.
        let mut todo = Vec::with_capacity(batch.len());
        for item in batch {
            match self.store.get(self.model, item.hash) {
                Some(at) => self.deliver(item.hash, Ok(at)),
                None => todo.push(item),
            }
        }
        if todo.is_empty() {
            self.lock().breaker.abstain();
            return;
        }
        let texts: Vec<&str> = todo.iter().map(|item| &*item.text).collect();
        let tokens = todo.iter().map(|item| u64::from(item.tokens)).sum();
        match self.call(&texts, tokens) {
            Ok(vectors) => {
                for (item, vector) in todo.iter().zip(vectors) {
                    self.keep(item.hash, vector);
                }
            }
            Err(error) if error.is_transient => {
                let mut queue = self.lock();
                todo.iter().rev().for_each(|item| queue.put_back(item.hash));
            }
            Err(error) if todo.len() == 1 => self.deliver(todo[0].hash, Err(error)),
            // One bad text must not fail its neighbours.
            Err(_) => todo.into_iter().for_each(|item| self.embed(vec![item])),
        }
    }

    fn answer(&self, batch: Vec<(ContentHash, Arc<str>)>) {
        let texts: Vec<&str> = batch.iter().map(|(_, text)| &**text).collect();
        let tokens = texts.iter().map(|text| estimate(text) as u64).sum();
        match self.call(&texts, tokens) {
            Ok(vectors) => {
                for ((hash, _), vector) in batch.into_iter().zip(vectors) {
                    let vector: Arc<[f32]> = vector.into();
                    let mut queue = self.lock();
                    queue.cache.insert(hash, vector.clone());
                    let asked = queue.asked.remove(&hash);
                    drop(queue);
                    reply(asked, &Ok(vector));
                }
            }
            Err(error) if error.is_transient || batch.len() == 1 => {
                for (hash, _) in batch {
                    let asked = self.lock().asked.remove(&hash);
                    reply(asked, &Err(error.clone()));
                }
                self.refuse_questions();
            }
            Err(_) => batch
                .into_iter()
                .for_each(|question| self.answer(vec![question])),
        }
    }

    /// When the breaker has opened, fails the questions that still wait.
    fn refuse_questions(&self) {
        let mut queue = self.lock();
        if !queue.breaker.is_open() {
            return;
        }
        let hashes = std::mem::take(&mut queue.questions);
        let refused: Vec<_> = hashes.iter().map(|hash| queue.asked.remove(hash)).collect();
        drop(queue);
        refused
            .into_iter()
            .for_each(|asked| reply(asked, &Err(self.resting())));
    }

    /// Stores a vector and calls its waiters; a vector that the store refuses is kept for later.
    fn keep(&self, hash: ContentHash, vector: Vec<f32>) {
        if !self.lock().texts.contains_key(&hash) {
            // Stopped meanwhile.
            return;
        }
        match self.store.put(self.model, hash, &vector) {
            Ok(at) => {
                self.lock().store_failures = 0;
                self.deliver(hash, Ok(at));
            }
            Err(error) => {
                tracing::warn!(model = self.name, %error, "a vector could not be stored");
                let mut queue = self.lock();
                let Some(waiting) = queue.texts.get_mut(&hash) else {
                    return;
                };
                waiting.vector = Some(vector);
                queue.unstored.push(hash);
                let step = self
                    .config
                    .backoff
                    .saturating_mul(1 << queue.store_failures.min(20));
                queue.store_failures = queue.store_failures.saturating_add(1);
                queue.store_retry_at = Some(Instant::now() + step.min(self.config.backoff_max));
            }
        }
    }

    /// Offers the store again what it refused.
    fn store_again(&self, hashes: Vec<ContentHash>) {
        for hash in hashes {
            let vector = self
                .lock()
                .texts
                .get_mut(&hash)
                .and_then(|w| w.vector.take());
            if let Some(vector) = vector {
                self.keep(hash, vector);
            }
        }
    }

    /// Calls everybody who waits for a document's vector.
    fn deliver(&self, hash: ContentHash, result: Result<VectorRef, EmbedError>) {
        let mut queue = self.lock();
        let waiting = queue.texts.remove(&hash);
        self.note_length(&queue);
        drop(queue);
        for done in waiting.into_iter().flat_map(|waiting| waiting.waiters) {
            done(hash, result.clone());
        }
    }
}

/// Calls everybody who waits for a question's vector.
fn reply(asked: Option<Asked>, result: &Result<Arc<[f32]>, EmbedError>) {
    for done in asked.into_iter().flat_map(|asked| asked.answers) {
        done(result.clone());
    }
}

/// Tokens of a question, roughly: it is not tokenised before its turn.
fn estimate(text: &str) -> usize {
    text.len() / 4 + 2
}

/// A number in [0, 1) that differs between processes and calls.
fn jitter() -> f64 {
    (RandomState::new().hash_one(0_u8) >> 11) as f64 / (1_u64 << 53) as f64
}

impl Queue {
    fn add(
        &mut self,
        hash: ContentHash,
        text: Arc<str>,
        tokens: u32,
        priority: Priority,
        done: Done,
    ) {
        match self.texts.entry(hash) {
            Entry::Occupied(mut entry) => {
                let waiting = entry.get_mut();
                waiting.waiters.push(done);
                if waiting.priority <= priority {
                    return;
                }
                // A push wants what waited as bulk: queue it again, the later turn finds nothing.
                waiting.priority = priority;
            }
            Entry::Vacant(slot) => {
                let (is_running, vector, waiters) = (false, None, vec![done]);
                slot.insert(Waiting {
                    text,
                    tokens,
                    priority,
                    is_running,
                    waiters,
                    vector,
                });
            }
        }
        match priority {
            Priority::Push => self.push.push_back(hash),
            Priority::Bulk => self.bulk.push_back(hash),
        }
    }

    /// After a transient failure: to the front of its queue.
    fn put_back(&mut self, hash: ContentHash) {
        let Some(waiting) = self.texts.get_mut(&hash) else {
            return;
        };
        waiting.is_running = false;
        match waiting.priority {
            Priority::Push => self.push.push_front(hash),
            Priority::Bulk => self.bulk.push_front(hash),
        }
    }

    fn has_documents(&self) -> bool {
        !self.push.is_empty() || !self.bulk.is_empty()
    }

    /// The next batch that may run.
    fn choose(&mut self, admission: Admission, config: &EmbedConfig) -> Option<Work> {
        // While the store refuses vectors, computing more would only fill memory.
        let may_embed = !matches!(admission, Admission::Wait(_)) && self.unstored.is_empty();
        // A question does not wait for the back-off of the first failures: it tries, or fails.
        let may_ask = !matches!(admission, Admission::Wait(_)) || !self.breaker.is_open();
        let budget = match admission {
            Admission::Probe => 1,
            _ => {
                let aimed = self.tokens_per_ms * config.batch_time.as_secs_f64() * 1e3;
                (aimed as usize).clamp(config.batch_tokens_min, config.batch_tokens_max)
            }
        };
        let documents_first = may_embed
            && (self.question_batches >= config.question_batches_max || self.questions.is_empty());
        if documents_first {
            let batch = self.take_documents(budget);
            if !batch.is_empty() {
                self.question_batches = 0;
                return Some(self.begin(admission, Work::Documents(batch)));
            }
        }
        if may_ask {
            let batch = self.take_questions(budget);
            if !batch.is_empty() {
                self.question_batches += 1;
                return Some(self.begin(admission, Work::Questions(batch)));
            }
        }
        None
    }

    fn begin(&mut self, admission: Admission, work: Work) -> Work {
        if admission == Admission::Probe {
            self.breaker.begin_probe();
        }
        work
    }

    /// Documents up to `budget` tokens, at least one if any waits.
    fn take_documents(&mut self, budget: usize) -> Vec<Item> {
        let bulk_first = self.document_batches % BULK_EVERY == BULK_EVERY - 1;
        let mut batch = Vec::new();
        let mut tokens = 0;
        for is_bulk in [bulk_first, !bulk_first] {
            while tokens < budget {
                let hashes = if is_bulk {
                    &mut self.bulk
                } else {
                    &mut self.push
                };
                let Some(hash) = hashes.pop_front() else {
                    break;
                };
                let Some(waiting) = self.texts.get_mut(&hash) else {
                    continue;
                };
                if waiting.is_running {
                    continue;
                }
                waiting.is_running = true;
                tokens += waiting.tokens.max(1) as usize;
                batch.push(Item {
                    hash,
                    text: waiting.text.clone(),
                    tokens: waiting.tokens,
                });
            }
        }
        if !batch.is_empty() {
            self.document_batches = self.document_batches.wrapping_add(1);
        }
        batch
    }

    /// Questions up to `budget` tokens, at least one if any waits.
    fn take_questions(&mut self, budget: usize) -> Vec<(ContentHash, Arc<str>)> {
        let mut batch = Vec::new();
        let mut tokens = 0;
        while tokens < budget {
            let Some(hash) = self.questions.pop_front() else {
                break;
            };
            let Some(asked) = self.asked.get(&hash) else {
                continue;
            };
            tokens += estimate(&asked.text);
            batch.push((hash, asked.text.clone()));
        }
        batch
    }
}
