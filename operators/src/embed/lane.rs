//! One model's lane of the [service](super::service): its threads and what they do with a batch.
//!
//! ```text
//! queue ─ next() ─▶ call: the encoder ─┬─ vectors ─▶ memo.put, or the caller ─▶ waiters
//!   ▲                                  ├─ a text is refused ─▶ halves, until it is alone ─▶ its waiters
//!   └────────── put back ──────────────┴─ the world, the model: breaker; callers' texts fail
//! ```
//!
//! Invariants: the lock is held for bookkeeping only, never across an encoder, the store or a
//! callback; who waits is called once.

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, VectorMemo};
use engine::model::{ContentHash, ModelId, VectorRef};
use metrics::{counter, gauge, histogram};

use super::breaker::Admission;
use super::queue::{Asked, Done, Item, Queue, Turn, Work, estimate};
use super::service::{
    BATCH_SECONDS, BATCHES_TOTAL, BREAKER_OPEN, EmbedConfig, MEMO_HITS_TOTAL, OVERFLOW_TOTAL,
    Priority, QUESTION_CACHE_HITS_TOTAL, QUESTION_CACHE_MISSES_TOTAL, QUEUE_TEXTS, QuestionDone,
    REFUSED_TOTAL, TEXTS_TOTAL, TOKENS_TOTAL, TextKind, Urgency,
};

/// Owns a lane: dropping it stops the lane's threads.
pub(super) struct LaneHandle(Arc<Lane>);

/// See the module.
pub(super) struct Lane {
    config: EmbedConfig,
    model: ModelId,
    name: String,
    threads: usize,
    embedder: RwLock<Arc<dyn Embedder>>,
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
        let limits = embedder.call_limits();
        let threads = threads(config, limits);
        let lane = Arc::new(Lane {
            config: config.clone(),
            model: embedder.id(),
            name: embedder.name().to_owned(),
            threads,
            embedder: RwLock::new(embedder),
            store,
            queue: Mutex::new(Queue::new(config, limits, threads)),
            wake: Condvar::new(),
        });
        for i in 0..threads {
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
    pub(super) fn embedder(&self) -> Arc<dyn Embedder> {
        let embedder = self.embedder.read();
        embedder.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another way to the same vectors, used from the next call on.
    pub(super) fn replace(&self, embedder: Arc<dyn Embedder>) {
        let limits = embedder.call_limits();
        let mut slot = self
            .embedder
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = embedder;
        drop(slot);
        // Threads stay as many as they were.
        let calls = threads(&self.config, limits).min(self.threads);
        self.lock().set_limits(limits, calls);
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().breaker.is_open()
    }

    pub(super) fn pending(&self) -> usize {
        self.lock().texts.len()
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    pub(super) fn is_waiting(&self, text: ContentHash) -> bool {
        self.lock().texts.contains_key(&text)
    }

    pub(super) fn refused(&self) -> usize {
        self.lock().refused.len()
    }

    pub(super) fn take_gap(&self) -> bool {
        self.lock().take_gap(Instant::now())
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
                    self.count(MEMO_HITS_TOTAL, 1);
                    done(hash, Ok(at));
                }
                None => fresh.push((hash, text, tokens)),
            }
        }
        if fresh.is_empty() {
            return;
        }
        let longest = u32::try_from(self.embedder().max_tokens()).unwrap_or(u32::MAX);
        let now = Instant::now();
        let mut failed = Vec::new();
        let mut queue = self.lock();
        for (hash, text, tokens) in fresh {
            let counted = if tokens == 0 { estimate(&text) } else { tokens };
            if queue.is_stopping {
                failed.push((hash, self.stopped()));
            } else if let Some(error) = queue.refused.get(hash, now) {
                failed.push((hash, error.clone()));
            } else if !queue.add(hash, text, counted.min(longest), priority, &done) {
                self.count(OVERFLOW_TOTAL, 1);
                failed.push((hash, self.full()));
            }
        }
        self.note_length(&queue);
        drop(queue);
        self.wake.notify_one();
        failed
            .into_iter()
            .for_each(|(hash, error)| done(hash, Err(error)));
    }

    pub(super) fn embed_text(
        &self,
        text: &str,
        kind: TextKind,
        urgency: Urgency,
        done: QuestionDone,
    ) {
        let hash = match kind {
            TextKind::Question => ContentHash::of(text.as_bytes()),
            // Apart from the question of the same words.
            TextKind::Passage => ContentHash::of(format!("passage\0{text}").as_bytes()),
        };
        let mut queue = self.lock();
        if let Some(vector) = queue.cache.get(hash) {
            drop(queue);
            self.count(QUESTION_CACHE_HITS_TOTAL, 1);
            done(Ok(vector));
            return;
        }
        let must_wait = matches!(queue.breaker.admits(Instant::now()), Admission::Wait(_));
        let refusal = if queue.is_stopping {
            Some(self.stopped())
        } else if must_wait && (queue.breaker.is_open() || queue.breaker.was_told()) {
            Some(self.resting(&queue))
        } else {
            None
        };
        if let Some(error) = refusal {
            drop(queue);
            done(Err(error));
            return;
        }
        self.count(QUESTION_CACHE_MISSES_TOTAL, 1);
        let turn = match urgency {
            Urgency::Now => Turn::Questions,
            Urgency::InTurn => Turn::Documents,
        };
        let taken = queue.ask(hash, text, kind, turn, done);
        drop(queue);
        match taken {
            Ok(()) => self.wake.notify_one(),
            Err(done) => done(Err(self.full())),
        }
    }

    /// Fails what waits and lets the threads end.
    fn stop(&self) {
        let mut queue = self.lock();
        queue.is_stopping = true;
        let (texts, asked) = queue.drain();
        self.note_length(&queue);
        drop(queue);
        self.wake.notify_all();
        for (hash, waiting) in texts {
            let waiters = waiting.waiters.iter();
            waiters.for_each(|done| done(hash, Err(self.stopped())));
        }
        for asked in asked {
            reply(Some(asked), &Err(self.stopped()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No invariant is broken half-way by a panic inside: bookkeeping does not call out.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, metric: &'static str, count: u64) {
        counter!(metric, "model" => self.name.clone()).increment(count);
    }

    fn error(&self, detail: String, fault: EmbedFault) -> EmbedError {
        EmbedError {
            model: self.name.clone(),
            detail,
            fault,
        }
    }

    fn stopped(&self) -> EmbedError {
        self.error("it is being unloaded".to_owned(), EmbedFault::WORLD)
    }

    fn full(&self) -> EmbedError {
        let detail = "too many texts wait for it (EMBED_QUEUE_BYTES_MAX); asked for again later";
        self.error(detail.to_owned(), EmbedFault::WORLD)
    }

    fn resting(&self, queue: &Queue) -> EmbedError {
        let last = queue.trouble.as_deref().unwrap_or("it failed");
        let detail = format!("it is tried again later; the last try: {last}");
        let retry_after = match queue.breaker.admits(Instant::now()) {
            Admission::Wait(wait) => Some(wait),
            Admission::Free | Admission::Probe => None,
        };
        self.error(detail, EmbedFault::World { retry_after })
    }

    fn note_length(&self, queue: &Queue) {
        gauge!(QUEUE_TEXTS, "model" => self.name.clone()).set(queue.texts.len() as f64);
    }

    /// The loop of a thread.
    fn run(&self) {
        while let Some(work) = self.next() {
            match work {
                Work::Store(hashes) => self.store_again(hashes),
                Work::Asked(batch, kind, turn) => {
                    self.answer(batch, kind, turn);
                    if turn == Turn::Documents {
                        self.end_shared();
                    }
                }
                Work::Documents(batch) => {
                    self.embed(batch);
                    self.end_shared();
                }
            }
        }
    }

    fn end_shared(&self) {
        self.lock().end_shared();
        self.wake.notify_all();
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
                // Many texts come with one call: whoever takes some wakes the next.
                if queue.has_work() {
                    self.wake.notify_one();
                }
                return Some(work);
            }
            let breaker_wait = match admission {
                Admission::Wait(wait) if queue.has_work() => Some(wait),
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

    /// Calls the encoder and notes how it went.
    fn call(&self, batch: &[Item], kind: TextKind) -> Result<Vec<Vec<f32>>, EmbedError> {
        let texts: Vec<&str> = batch.iter().map(|item| &*item.text).collect();
        let tokens: u64 = batch.iter().map(|item| u64::from(item.tokens)).sum();
        let kind_name = match kind {
            TextKind::Question => "questions",
            TextKind::Passage => "passages",
        };
        let _span = tracing::debug_span!(
            "embed",
            model = &*self.name,
            kind = kind_name,
            texts = texts.len(),
            tokens,
            outcome = tracing::field::Empty,
        )
        .entered();
        let embedder = self.embedder();
        let started = Instant::now();
        // A defect that one text brings out must not end the thread, and with it all embedding.
        let called = catch_unwind(AssertUnwindSafe(|| match kind {
            TextKind::Question => embedder.embed_questions(&texts),
            TextKind::Passage => embedder.embed(&texts),
        }));
        let defect = |_| {
            let detail = "a defect in the encoder; the log has the panic".to_owned();
            Err(self.error(detail, EmbedFault::Text))
        };
        let result = called.unwrap_or_else(defect);
        let result = result.and_then(|vectors| self.checked(vectors, texts.len(), &*embedder));
        self.note(&result, texts.len(), tokens, started);
        // Others may have waited for the end of a probe.
        self.wake.notify_all();
        result
    }

    /// An encoder that breaks its contract must not fill the store with it.
    fn checked(
        &self,
        vectors: Vec<Vec<f32>>,
        count: usize,
        embedder: &dyn Embedder,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let width = embedder.dimensions();
        let expected = format!("expected {count} finite vectors of {width} numbers");
        if vectors.len() != count || vectors.iter().any(|vector| vector.len() != width) {
            return Err(self.error(expected, EmbedFault::Model));
        }
        if vectors.iter().flatten().any(|x| !x.is_finite()) {
            return Err(self.error(expected, EmbedFault::Text));
        }
        Ok(vectors)
    }

    fn note(
        &self,
        result: &Result<Vec<Vec<f32>>, EmbedError>,
        texts: usize,
        tokens: u64,
        started: Instant,
    ) {
        let elapsed = started.elapsed();
        let outcome = match result.as_ref().map_err(|error| error.fault) {
            Ok(_) => "ok",
            Err(EmbedFault::World { .. }) => "transient",
            Err(EmbedFault::Model) => "permanent",
            Err(EmbedFault::Text) => "refused",
        };
        tracing::Span::current().record("outcome", outcome);
        counter!(BATCHES_TOTAL, "model" => self.name.clone(), "outcome" => outcome).increment(1);
        histogram!(BATCH_SECONDS, "model" => self.name.clone()).record(elapsed.as_secs_f64());
        let mut queue = self.lock();
        let has_opened = match result.as_ref().map_err(|error| error.fault) {
            Ok(_) => {
                self.count(TOKENS_TOTAL, tokens);
                self.count(TEXTS_TOTAL, texts as u64);
                let rate = tokens as f64 / (elapsed.as_secs_f64() * 1e3).max(1e-3);
                queue.tokens_per_ms += 0.2 * (rate - queue.tokens_per_ms);
                self.note_success(&mut queue, started);
                false
            }
            // Who blames one text answers the others.
            Err(EmbedFault::Text) => {
                self.note_success(&mut queue, started);
                false
            }
            Err(EmbedFault::World { retry_after }) => {
                queue
                    .breaker
                    .fail(Instant::now(), started, jitter(), retry_after)
            }
            Err(EmbedFault::Model) => queue.breaker.refuse(Instant::now(), jitter()),
        };
        if let Err(error) = result
            && error.fault != EmbedFault::Text
        {
            queue.trouble = Some(error.detail.clone());
            if has_opened {
                gauge!(BREAKER_OPEN, "model" => self.name.clone()).set(1.0);
                tracing::warn!(model = self.name, %error, "the encoder's breaker opens");
            }
        }
    }

    fn note_success(&self, queue: &mut Queue, started: Instant) {
        let was_open = queue.breaker.is_open();
        if !queue.breaker.succeed(started) {
            return;
        }
        queue.trouble = None;
        if was_open {
            gauge!(BREAKER_OPEN, "model" => self.name.clone()).set(0.0);
            tracing::info!(model = self.name, "the encoder is back");
        }
    }

    /// Embeds documents. False: the encoder does not answer now, and what is left waits.
    fn embed(&self, batch: Vec<Item>) -> bool {
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
            return true;
        }
        match self.call(&todo, TextKind::Passage) {
            Ok(vectors) => {
                for (item, vector) in todo.iter().zip(vectors) {
                    self.keep(item.hash, vector);
                }
                true
            }
            Err(error) if error.fault != EmbedFault::Text => {
                self.put_back(&todo);
                self.refuse_asked();
                false
            }
            Err(error) if todo.len() == 1 => {
                self.count(REFUSED_TOTAL, 1);
                let hash = todo[0].hash;
                self.lock().refuse(hash, error.clone(), Instant::now());
                self.deliver(hash, Err(error));
                true
            }
            // One bad text must not fail its neighbours, and costs few calls.
            Err(_) => {
                let rest = todo.split_off(todo.len() / 2);
                if self.embed(todo) {
                    return self.embed(rest);
                }
                self.put_back(&rest);
                false
            }
        }
    }

    fn put_back(&self, items: &[Item]) {
        let mut queue = self.lock();
        let hashes = items.iter().rev().map(|item| item.hash);
        hashes.for_each(|hash| queue.put_back(hash));
    }

    /// Embeds callers' texts. False: the encoder does not answer now, and all that wait were told.
    fn answer(&self, mut batch: Vec<Item>, kind: TextKind, turn: Turn) -> bool {
        match self.call(&batch, kind) {
            Ok(vectors) => {
                for (item, vector) in batch.into_iter().zip(vectors) {
                    let vector: Arc<[f32]> = vector.into();
                    let mut queue = self.lock();
                    // A long list would push out what is asked again and again.
                    if turn == Turn::Questions {
                        queue.cache.insert(item.hash, vector.clone());
                    }
                    let asked = queue.remove_asked(item.hash);
                    drop(queue);
                    reply(asked, &Ok(vector));
                }
                true
            }
            Err(error) if error.fault != EmbedFault::Text || batch.len() == 1 => {
                let is_there = error.fault == EmbedFault::Text;
                self.fail_asked(batch, &error);
                self.refuse_asked();
                is_there
            }
            Err(_) => {
                let rest = batch.split_off(batch.len() / 2);
                if self.answer(batch, kind, turn) {
                    return self.answer(rest, kind, turn);
                }
                let error = self.resting(&self.lock());
                self.fail_asked(rest, &error);
                false
            }
        }
    }

    fn fail_asked(&self, batch: Vec<Item>, error: &EmbedError) {
        for item in batch {
            let asked = self.lock().remove_asked(item.hash);
            reply(asked, &Err(error.clone()));
        }
    }

    /// When the breaker has opened, fails the callers' texts that still wait.
    fn refuse_asked(&self) {
        let mut queue = self.lock();
        if !queue.breaker.is_open() && !queue.breaker.was_told() {
            return;
        }
        let (refused, error) = (queue.drain_asked(), self.resting(&queue));
        drop(queue);
        for asked in refused {
            reply(Some(asked), &Err(error.clone()));
        }
    }

    /// Stores a vector and calls its waiters; a vector that the store refuses is kept for later.
    fn keep(&self, hash: ContentHash, vector: Vec<f32>) {
        if !self.lock().texts.contains_key(&hash) {
            // Stopped meanwhile.
            return;
        }
        match self.store.put(self.model, hash, &vector) {
            Ok(at) => {
                let mut queue = self.lock();
                queue.store_failures = 0;
                queue.refused.remove(hash);
                drop(queue);
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
        let waiting = queue.remove(hash);
        self.note_length(&queue);
        drop(queue);
        for done in waiting.into_iter().flat_map(|waiting| waiting.waiters) {
            done(hash, result.clone());
        }
    }
}

/// Calls everybody who waits for a text's vector.
fn reply(asked: Option<Asked>, result: &Result<Arc<[f32]>, EmbedError>) {
    for done in asked.into_iter().flat_map(|asked| asked.answers) {
        done(result.clone());
    }
}

/// Threads of a model: one for each call that may be under way.
fn threads(config: &EmbedConfig, limits: CallLimits) -> usize {
    let own = config.document_threads.max(1) + 1;
    limits.calls.unwrap_or(own).max(1)
}

/// A number in [0, 1) that differs between processes and calls.
fn jitter() -> f64 {
    (RandomState::new().hash_one(0_u8) >> 11) as f64 / (1_u64 << 53) as f64
}
