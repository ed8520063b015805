//! What waits for one model, and who goes next: the bookkeeping of a [lane](super::lane), without
//! threads.
//!
//! ```text
//! store what the store refused ▷ questions, until they had ¾ of the tokens ▷ documents
//! documents: pushes first, bulk first in every fourth batch; texts of callers take every second turn
//! ```
//!
//! Invariants: an item leaves `texts` or `asked` exactly when its waiters are about to be called; a
//! text waits once, whoever asks for it; documents that wait get at least one token of
//! [`EMBED_DOCUMENT_SHARE`], however many questions come; waiting texts of documents, and of callers,
//! take at most [`EMBED_QUEUE_BYTES_MAX`] each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use engine::contract::{CallLimits, EmbedError};
use engine::limits::{EMBED_DOCUMENT_SHARE, EMBED_QUEUE_BYTES_MAX};
use engine::model::{ContentHash, VectorRef};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::breaker::{Admission, Breaker};
use super::question_cache::QuestionCache;
use super::refused::RefusedTexts;
use super::service::{EmbedConfig, Priority, QuestionDone, TextKind};

/// Called for each item; shared by the items of a request.
pub(super) type Done = Arc<dyn Fn(ContentHash, Result<VectorRef, EmbedError>) + Send + Sync>;

/// Every this many document batches, bulk goes first.
const BULK_EVERY: u32 = 4;
/// Assumed before anything was measured: tokens a millisecond.
const FIRST_RATE: f64 = 8.0;

/// One document text that somebody waits for.
pub(super) struct Waiting {
    text: Arc<str>,
    tokens: u32,
    priority: Priority,
    is_running: bool,
    /// Whom to call.
    pub(super) waiters: Vec<Done>,
    /// Computed, but the store refused it so far.
    pub(super) vector: Option<Vec<f32>>,
}

/// One text whose vector a caller wants for itself.
pub(super) struct Asked {
    text: Arc<str>,
    kind: TextKind,
    /// Whom to call.
    pub(super) answers: Vec<QuestionDone>,
}

/// What a thread does next.
pub(super) enum Work {
    /// Offer the store again what it refused.
    Store(Vec<ContentHash>),
    /// Texts of callers, all of one kind.
    Asked(Vec<Item>, TextKind, Turn),
    /// Texts of documents.
    Documents(Vec<Item>),
}

impl Work {
    fn tokens(&self) -> usize {
        match self {
            Work::Store(_) => 0,
            Work::Asked(batch, ..) | Work::Documents(batch) => {
                batch.iter().map(|item| item.tokens as usize).sum()
            }
        }
    }
}

/// Whose turn a batch took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Questions,
    Documents,
}

/// One text of a batch.
pub(super) struct Item {
    pub(super) hash: ContentHash,
    pub(super) text: Arc<str>,
    pub(super) tokens: u32,
}

/// See the module.
pub(super) struct Queue {
    limits: CallLimits,
    /// Calls that may be under way at once.
    calls: usize,
    /// Documents' texts.
    pub(super) texts: HashMap<ContentHash, Waiting>,
    push: VecDeque<ContentHash>,
    bulk: VecDeque<ContentHash>,
    /// Bytes of documents' texts.
    bytes: usize,
    /// Texts were turned away since somebody last asked.
    has_overflowed: bool,
    /// A text was refused since somebody last asked.
    has_refused: bool,
    /// Computed vectors that wait for the store.
    pub(super) unstored: Vec<ContentHash>,
    pub(super) store_retry_at: Option<Instant>,
    pub(super) store_failures: u32,
    /// Texts of callers: those who wait, and long lists.
    questions: VecDeque<ContentHash>,
    background: VecDeque<ContentHash>,
    asked: HashMap<ContentHash, Asked>,
    /// Bytes of callers' texts.
    asked_bytes: usize,
    pub(super) cache: QuestionCache,
    pub(super) refused: RefusedTexts,
    pub(super) breaker: Breaker,
    /// What failed last, while the breaker is not closed.
    pub(super) trouble: Option<String>,
    /// Batches and tokens of questions since documents had a turn.
    question_batches: u32,
    question_tokens: usize,
    /// Tokens that questions may have before documents have their turn.
    question_credit: Option<usize>,
    document_batches: u32,
    /// Calls in the documents' share that are under way.
    document_calls: usize,
    pub(super) tokens_per_ms: f64,
    pub(super) is_stopping: bool,
}

impl Queue {
    pub(super) fn new(config: &EmbedConfig, limits: CallLimits, calls: usize) -> Queue {
        Queue {
            limits,
            calls,
            texts: HashMap::new(),
            push: VecDeque::new(),
            bulk: VecDeque::new(),
            bytes: 0,
            has_overflowed: false,
            has_refused: false,
            unstored: Vec::new(),
            store_retry_at: None,
            store_failures: 0,
            questions: VecDeque::new(),
            background: VecDeque::new(),
            asked: HashMap::new(),
            asked_bytes: 0,
            cache: QuestionCache::new(config.question_cache_entries),
            refused: RefusedTexts::default(),
            breaker: Breaker::new(config.breaker_failures, config.backoff, config.backoff_max),
            trouble: None,
            question_batches: 0,
            question_tokens: 0,
            question_credit: None,
            document_batches: 0,
            document_calls: 0,
            tokens_per_ms: FIRST_RATE,
            is_stopping: false,
        }
    }

    /// What a call may carry from now on, and how many may be under way.
    pub(super) fn set_limits(&mut self, limits: CallLimits, calls: usize) {
        (self.limits, self.calls) = (limits, calls);
    }

    /// Joins or queues a document's text. False: there is no room, and it was not taken.
    pub(super) fn add(
        &mut self,
        hash: ContentHash,
        text: Arc<str>,
        tokens: u32,
        priority: Priority,
        done: &Done,
    ) -> bool {
        // One text has room always, or a large one would never have.
        let is_full = self.bytes > 0 && self.bytes + text.len() > EMBED_QUEUE_BYTES_MAX;
        match self.texts.entry(hash) {
            Entry::Occupied(mut entry) => {
                let waiting = entry.get_mut();
                waiting.waiters.push(done.clone());
                if waiting.priority <= priority {
                    return true;
                }
                // A push wants what waited as bulk: queue it again, the later turn finds nothing.
                waiting.priority = priority;
            }
            Entry::Vacant(_) if is_full => {
                self.has_overflowed = true;
                return false;
            }
            Entry::Vacant(slot) => {
                self.bytes += text.len();
                let (is_running, vector, waiters) = (false, None, vec![done.clone()]);
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
        true
    }

    /// Joins or queues a caller's text. `Err`: there is no room.
    pub(super) fn ask(
        &mut self,
        hash: ContentHash,
        text: &str,
        kind: TextKind,
        turn: Turn,
        done: QuestionDone,
    ) -> Result<(), QuestionDone> {
        let is_full = self.asked_bytes > 0 && self.asked_bytes + text.len() > EMBED_QUEUE_BYTES_MAX;
        match self.asked.entry(hash) {
            Entry::Occupied(mut asked) => asked.get_mut().answers.push(done),
            Entry::Vacant(_) if is_full => return Err(done),
            Entry::Vacant(slot) => {
                self.asked_bytes += text.len();
                slot.insert(Asked {
                    text: Arc::from(text),
                    kind,
                    answers: vec![done],
                });
                match turn {
                    Turn::Questions => self.questions.push_back(hash),
                    Turn::Documents => self.background.push_back(hash),
                }
            }
        }
        Ok(())
    }

    /// Takes a caller's text out: those who wait for it are about to be called.
    pub(super) fn remove_asked(&mut self, hash: ContentHash) -> Option<Asked> {
        let asked = self.asked.remove(&hash)?;
        self.asked_bytes -= asked.text.len();
        Some(asked)
    }

    /// Takes a document's text out: its waiters are about to be called.
    pub(super) fn remove(&mut self, hash: ContentHash) -> Option<Waiting> {
        let waiting = self.texts.remove(&hash)?;
        self.bytes -= waiting.text.len();
        Some(waiting)
    }

    /// Takes out all that waits.
    pub(super) fn drain(&mut self) -> (HashMap<ContentHash, Waiting>, Vec<Asked>) {
        (self.bytes, self.asked_bytes) = (0, 0);
        self.questions.clear();
        self.background.clear();
        let asked = std::mem::take(&mut self.asked);
        (
            std::mem::take(&mut self.texts),
            asked.into_values().collect(),
        )
    }

    /// Takes out the callers' texts that are not under way.
    pub(super) fn drain_asked(&mut self) -> Vec<Asked> {
        let waiting = std::mem::take(&mut self.questions);
        let waiting = waiting
            .into_iter()
            .chain(std::mem::take(&mut self.background));
        waiting.filter_map(|hash| self.remove_asked(hash)).collect()
    }

    /// After a transient failure: to the front of its queue.
    pub(super) fn put_back(&mut self, hash: ContentHash) {
        let Some(waiting) = self.texts.get_mut(&hash) else {
            return;
        };
        waiting.is_running = false;
        match waiting.priority {
            Priority::Push => self.push.push_front(hash),
            Priority::Bulk => self.bulk.push_front(hash),
        }
    }

    /// A text can never be embedded, says the model.
    pub(super) fn refuse(&mut self, hash: ContentHash, error: EmbedError, now: Instant) {
        self.has_refused = true;
        self.refused.insert(hash, error, now);
    }

    /// Whether who has texts for documents should look again: some were turned away and there is
    /// room now, or were refused and may be offered again. True once.
    pub(super) fn take_gap(&mut self, now: Instant) -> bool {
        let has_room = self.bytes <= EMBED_QUEUE_BYTES_MAX / 2;
        let is_gap =
            self.has_refused || self.has_overflowed && has_room || self.refused.take_due(now);
        if is_gap {
            (self.has_overflowed, self.has_refused) = (false, false);
        }
        is_gap
    }

    /// Whether anything waits for the end of a back-off.
    pub(super) fn has_work(&self) -> bool {
        let has_documents = !self.push.is_empty() || !self.bulk.is_empty();
        has_documents || !self.questions.is_empty() || !self.background.is_empty()
    }

    /// The next batch that may run.
    pub(super) fn choose(&mut self, admission: Admission, config: &EmbedConfig) -> Option<Work> {
        // While the store refuses vectors, computing more would only fill memory.
        let is_admitted = !matches!(admission, Admission::Wait(_));
        let is_kept = self.calls > 1 && self.document_calls + 1 >= self.calls;
        let may_embed = is_admitted && !is_kept;
        // A question does not wait for the back-off of the first failures: it tries, or fails.
        let may_ask = is_admitted || !self.breaker.is_open() && !self.breaker.was_told();
        let budget = self.budget(admission, config);
        let times = EMBED_DOCUMENT_SHARE - 1;
        let credit = self.question_credit.unwrap_or(times * budget);
        let had_enough =
            self.question_batches >= config.question_batches_max || self.question_tokens >= credit;
        if may_embed
            && (had_enough || self.questions.is_empty())
            && let Some(work) = self.take_shared(budget)
        {
            (self.question_batches, self.question_tokens) = (0, 0);
            self.question_credit = Some(times * work.tokens());
            self.document_calls += 1;
            return Some(self.begin(admission, work));
        }
        if may_ask {
            let (batch, kind, tokens) = self.take_asked(Turn::Questions, budget);
            if !batch.is_empty() {
                self.question_batches += 1;
                self.question_tokens += tokens;
                return Some(self.begin(admission, Work::Asked(batch, kind, Turn::Questions)));
            }
        }
        None
    }

    /// Notes the end of a batch in the documents' share.
    pub(super) fn end_shared(&mut self) {
        self.document_calls = self.document_calls.saturating_sub(1);
    }

    /// Tokens of the next batch.
    fn budget(&self, admission: Admission, config: &EmbedConfig) -> usize {
        if admission == Admission::Probe {
            return 1;
        }
        self.limits.tokens.unwrap_or_else(|| {
            let aimed = self.tokens_per_ms * config.batch_time.as_secs_f64() * 1e3;
            (aimed as usize).clamp(config.batch_tokens_min, config.batch_tokens_max)
        })
    }

    fn begin(&mut self, admission: Admission, work: Work) -> Work {
        if admission == Admission::Probe {
            self.breaker.begin_probe();
        }
        work
    }

    /// A batch of the documents' share: documents, and every second time callers' long lists.
    fn take_shared(&mut self, budget: usize) -> Option<Work> {
        let turn = self.document_batches;
        self.document_batches = turn.wrapping_add(1);
        let lists_first = turn % 2 == 1;
        for is_list in [lists_first, !lists_first] {
            if is_list {
                let (batch, kind, _) = self.take_asked(Turn::Documents, budget);
                if !batch.is_empty() {
                    return Some(Work::Asked(batch, kind, Turn::Documents));
                }
            } else if self.unstored.is_empty() {
                let batch = self.take_documents(turn, budget);
                if !batch.is_empty() {
                    return Some(Work::Documents(batch));
                }
            }
        }
        self.document_batches = turn;
        None
    }

    /// Documents up to `budget` tokens, at least one if any waits.
    fn take_documents(&mut self, turn: u32, budget: usize) -> Vec<Item> {
        let bulk_first = turn % BULK_EVERY == BULK_EVERY - 1;
        let mut batch = Vec::new();
        let mut tokens = 0;
        for is_bulk in [bulk_first, !bulk_first] {
            while batch.len() < self.limits.texts {
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
                let more = waiting.tokens.max(1) as usize;
                if !batch.is_empty() && tokens + more > budget {
                    hashes.push_front(hash);
                    return batch;
                }
                waiting.is_running = true;
                tokens += more;
                batch.push(Item {
                    hash,
                    text: waiting.text.clone(),
                    tokens: waiting.tokens,
                });
            }
        }
        batch
    }

    /// Callers' texts of one kind up to `budget` tokens, at least one if any waits; with their kind
    /// and tokens.
    fn take_asked(&mut self, turn: Turn, budget: usize) -> (Vec<Item>, TextKind, usize) {
        let hashes = match turn {
            Turn::Questions => &mut self.questions,
            Turn::Documents => &mut self.background,
        };
        let (mut batch, mut of, mut tokens) = (Vec::new(), None, 0);
        while batch.len() < self.limits.texts {
            let Some(&hash) = hashes.front() else {
                break;
            };
            if let Some(asked) = self.asked.get(&hash) {
                let more = estimate(&asked.text);
                let is_full = !batch.is_empty() && tokens + more as usize > budget;
                if is_full || of.is_some_and(|kind| kind != asked.kind) {
                    break;
                }
                of = Some(asked.kind);
                tokens += more as usize;
                batch.push(Item {
                    hash,
                    text: asked.text.clone(),
                    tokens: more,
                });
            }
            hashes.pop_front();
        }
        (batch, of.unwrap_or(TextKind::Question), tokens)
    }
}

/// Tokens of a text, roughly: it is not tokenised before its turn.
pub(super) fn estimate(text: &str) -> u32 {
    u32::try_from(text.len() / 4 + 2).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(limits: CallLimits) -> Queue {
        Queue::new(&EmbedConfig::default(), limits, limits.calls.unwrap_or(1))
    }

    fn hash(text: &str) -> ContentHash {
        ContentHash::of(text.as_bytes())
    }

    fn add(queue: &mut Queue, text: &str, tokens: u32) -> bool {
        let done: Done = Arc::new(|_, _| {});
        queue.add(hash(text), Arc::from(text), tokens, Priority::Bulk, &done)
    }

    fn ask(queue: &mut Queue, text: &str, turn: Turn) {
        let done = Box::new(|_| {});
        let asked = queue.ask(hash(text), text, TextKind::Question, turn, done);
        assert!(asked.is_ok(), "there is room");
    }

    /// What a batch is: who it is for, and how many texts and tokens.
    fn next(queue: &mut Queue) -> Option<(&'static str, usize, u32)> {
        let work = queue.choose(Admission::Free, &EmbedConfig::default())?;
        let (name, batch) = match work {
            Work::Documents(batch) => ("documents", batch),
            Work::Asked(batch, _, Turn::Questions) => ("questions", batch),
            Work::Asked(batch, _, Turn::Documents) => ("lists", batch),
            Work::Store(_) => ("store", Vec::new()),
        };
        Some((
            name,
            batch.len(),
            batch.iter().map(|item| item.tokens).sum(),
        ))
    }

    #[test]
    fn documents_keep_a_quarter_of_the_tokens_under_a_flood_of_long_questions() {
        let limits = CallLimits {
            tokens: Some(1_000),
            ..CallLimits::LOCAL
        };
        let mut queue = queue(limits);
        for n in 0..400 {
            ask(&mut queue, &format!("{n:0>392}"), Turn::Questions);
            add(&mut queue, &format!("document {n}"), 100);
        }
        let mut tokens = [0, 0];
        for _ in 0..40 {
            let (name, _, count) = next(&mut queue).unwrap();
            tokens[usize::from(name == "documents")] += count;
        }
        let share = f64::from(tokens[1]) / f64::from(tokens[0] + tokens[1]);
        assert!((0.24..0.30).contains(&share), "{share} of {tokens:?}");
    }

    #[test]
    fn one_short_question_at_a_time_leaves_documents_every_ninth_batch() {
        let mut queue = queue(CallLimits::LOCAL);
        for n in 0..900 {
            assert!(add(&mut queue, &format!("document {n}"), 100));
        }
        let mut order = Vec::new();
        for n in 0..18 {
            ask(&mut queue, &format!("question {n}"), Turn::Questions);
            order.push(next(&mut queue).unwrap().0);
        }
        let turns: Vec<usize> = (0..18).filter(|n| order[*n] == "documents").collect();
        assert_eq!(turns, [8, 17], "{order:?}");
    }

    #[test]
    fn a_batch_keeps_both_bounds_and_takes_one_text_however_long() {
        let limits = CallLimits {
            texts: 3,
            tokens: Some(250),
            calls: Some(1),
        };
        let mut queue = queue(limits);
        for (n, tokens) in [9_000, 100, 100, 100, 10, 10, 10, 10]
            .into_iter()
            .enumerate()
        {
            add(&mut queue, &format!("document {n}"), tokens);
        }
        let batches: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        let sizes: Vec<(usize, u32)> = batches.iter().map(|(_, n, t)| (*n, *t)).collect();
        assert_eq!(sizes, [(1, 9_000), (2, 200), (3, 120), (2, 20)]);
    }

    #[test]
    fn lists_of_callers_take_turns_with_documents() {
        let limits = CallLimits {
            texts: 1,
            tokens: Some(250),
            calls: Some(1),
        };
        let mut queue = queue(limits);
        for n in 0..3 {
            add(&mut queue, &format!("document {n}"), 10);
            ask(&mut queue, &format!("list {n}"), Turn::Documents);
        }
        let order: Vec<&str> = std::iter::from_fn(|| next(&mut queue))
            .map(|b| b.0)
            .collect();
        let (d, l) = ("documents", "lists");
        assert_eq!(order, [d, l, d, l, d, l]);
    }

    #[test]
    fn one_call_of_several_is_kept_for_questions() {
        let limits = CallLimits {
            texts: 1,
            tokens: Some(100),
            calls: Some(3),
        };
        let mut queue = queue(limits);
        for n in 0..5 {
            assert!(add(&mut queue, &format!("document {n}"), 10));
        }
        assert_eq!(next(&mut queue).unwrap().0, "documents");
        assert_eq!(next(&mut queue).unwrap().0, "documents");
        assert_eq!(next(&mut queue), None, "two of three calls");
        ask(&mut queue, "question", Turn::Questions);
        assert_eq!(next(&mut queue).unwrap().0, "questions");
        queue.end_shared();
        assert_eq!(next(&mut queue).unwrap().0, "documents");
    }

    #[test]
    fn a_full_queue_turns_texts_away_and_tells_when_there_is_room() {
        let mut queue = queue(CallLimits::LOCAL);
        let large = "x".repeat(EMBED_QUEUE_BYTES_MAX / 4 * 3);
        assert!(add(&mut queue, &large, 10));
        assert!(add(&mut queue, "small", 10));
        assert!(!add(&mut queue, &"y".repeat(EMBED_QUEUE_BYTES_MAX / 4), 10));
        assert!(add(&mut queue, &large, 10), "it is there already");
        let now = Instant::now();
        assert!(!queue.take_gap(now), "no room yet");
        assert_eq!(queue.remove(hash(&large)).unwrap().waiters.len(), 2);
        assert!(queue.take_gap(now));
        assert!(!queue.take_gap(now + Duration::from_secs(9)), "told once");
    }
}
