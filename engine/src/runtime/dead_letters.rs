//! The running dead-letter collection: [`LetterBook`] behind a lock, with its metrics and its words.
//!
//! Letters of inputs are logged with their batch, and so is what resolves them; letters of rendered
//! rows (a view's division by zero) are not: they belong to a row and come again with it.
//!
//! Ten thousand bad records a second must cost the good ones little: a letter is shared with the log
//! record, not copied; a batch takes the lock once; the log of the program gets the first letter of a
//! cause and then one line a second ([`TELL_MICROS`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::DeadLetter;
use crate::letters::{CauseCounts, Kept, LetterBook, LetterId, Listed};
use crate::model::Key;
use crate::telemetry;

/// Time between two lines about one cause of a source, microseconds.
const TELL_MICROS: u64 = 1_000_000;

/// What was said of a cause, and what counts it: looking a counter up costs more than adding a letter.
struct Told {
    seen: metrics::Counter,
    at: u64,
    /// Letters since then, and the last of them.
    since: u64,
    last: Arc<DeadLetter>,
}

#[derive(Debug, Default)]
struct Letters {
    book: LetterBook,
    /// By source and cause.
    told: HashMap<String, HashMap<String, Told>>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("since", &self.since).finish()
    }
}

/// All dead letters of a pipeline.
#[derive(Debug, Default)]
pub struct DeadLetters {
    letters: Mutex<Letters>,
    /// Whether any letter names its row; looked at before the lock is taken for good rows.
    has_keys: AtomicBool,
}

impl DeadLetters {
    /// Adds letters, at a wall clock of microseconds since the epoch.
    pub fn add(&self, at: u64, letters: impl IntoIterator<Item = Arc<DeadLetter>>) {
        let mut letters = letters.into_iter().peekable();
        if letters.peek().is_none() {
            return;
        }
        let mut inner = self.lock();
        for letter in letters {
            inner.tell(at, &letter);
            for (source, code) in inner.book.add(at, letter) {
                count(telemetry::DEAD_LETTERS_DROPPED.name, &source, &code);
            }
        }
        self.note_keys(&inner);
    }

    /// Counts letters that a later record of their batch has answered.
    pub(super) fn count_answered(&self, at: u64, letters: &[DeadLetter]) {
        if letters.is_empty() {
            return;
        }
        let mut inner = self.lock();
        for letter in letters {
            let (source, code) = (&letter.source, &letter.error.code);
            count(telemetry::DEAD_LETTERS.name, source, code);
            count(telemetry::DEAD_LETTERS_RESOLVED.name, source, code);
            inner.book.count_answered(at, letter);
        }
    }

    /// Good records of these keys came: their letters end. What is to be logged.
    pub(super) fn resolve<'a>(
        &self,
        source: &str,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Vec<LetterId> {
        if !self.has_keys.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut inner = self.lock();
        let ended: Vec<LetterId> = keys
            .flat_map(|key| inner.book.of_key(source, key))
            .collect();
        self.end(&mut inner, &ended);
        ended
    }

    /// A letter was replayed: it ends with those of its key that came before it.
    pub(super) fn resolve_through(&self, id: LetterId) -> Vec<LetterId> {
        let mut inner = self.lock();
        let ended = inner.book.through(id);
        self.end(&mut inner, &ended);
        ended
    }

    /// Ends the letters of a row: what was bad there is good now, or gone.
    pub fn retract(&self, source: &str, key: &Key) {
        self.resolve(source, std::iter::once(key));
    }

    /// Ends one letter: what it speaks of is good now, or gone.
    pub fn retract_letter(&self, id: LetterId) {
        self.end(&mut self.lock(), &[id]);
    }

    /// Applies what the log has of a batch: no metric, no line.
    pub(super) fn replay(&self, at: u64, resolved: &[LetterId], letters: Vec<Arc<DeadLetter>>) {
        if resolved.is_empty() && letters.is_empty() {
            return;
        }
        let mut inner = self.lock();
        for id in resolved {
            inner.book.resolve(*id);
        }
        for letter in letters {
            inner.book.add(at, letter);
        }
        self.note_keys(&inner);
    }

    /// Takes back what compaction kept.
    pub(super) fn restore(&self, causes: &[CauseCounts], letters: Vec<Kept>) {
        let mut inner = self.lock();
        causes
            .iter()
            .for_each(|counts| inner.book.restore_counts(counts));
        letters
            .into_iter()
            .for_each(|kept| inner.book.restore(kept));
        self.note_keys(&inner);
    }

    /// Forgets the letters of sources that are not to be kept; which these were. The log is not told.
    pub(super) fn forget(&self, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let mut inner = self.lock();
        let gone = inner.book.retain_sources(&keep);
        inner.told.retain(|source, _| keep(source));
        self.note_keys(&inner);
        gone
    }

    /// One letter.
    pub fn get(&self, id: LetterId) -> Option<Listed> {
        self.lock().book.get(id)
    }

    /// Letters after a number, in the order of their last arrival.
    pub fn list(
        &self,
        source: Option<&str>,
        code: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Vec<Listed> {
        self.lock().book.list(source, code, after, limit)
    }

    /// What is known of each cause.
    pub fn causes(&self) -> Vec<CauseCounts> {
        self.lock().book.causes()
    }

    /// How many there are of a source.
    pub fn count(&self, source: &str) -> usize {
        self.lock().book.count(source)
    }

    /// Says what was not said yet, and shows how much is kept; to be called every second or so.
    pub fn upkeep(&self, now: u64) {
        let mut inner = self.lock();
        for told in inner.told.values_mut().flat_map(HashMap::values_mut) {
            told.say_rest(now);
        }
        metrics::gauge!(telemetry::DEAD_LETTERS_BYTES.name).set(inner.book.bytes() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().expect("no panic while held")
    }

    fn end(&self, inner: &mut Letters, ids: &[LetterId]) {
        for kept in ids.iter().filter_map(|id| inner.book.resolve(*id)) {
            let (source, code) = (&kept.letter.source, &kept.letter.error.code);
            count(telemetry::DEAD_LETTERS_RESOLVED.name, source, code);
        }
        if !ids.is_empty() {
            self.note_keys(inner);
        }
    }

    fn note_keys(&self, inner: &Letters) {
        self.has_keys
            .store(inner.book.has_keys(), Ordering::Release);
    }
}

impl Letters {
    /// The first letter of a cause is told at once; others wait for the next line.
    fn tell(&mut self, now: u64, letter: &Arc<DeadLetter>) {
        let causes = match self.told.get_mut(&letter.source) {
            Some(causes) => causes,
            None => self.told.entry(letter.source.clone()).or_default(),
        };
        match causes.get_mut(&letter.error.code) {
            Some(told) => {
                told.seen.increment(1);
                told.since += 1;
                told.last = Arc::clone(letter);
                told.say_rest(now);
            }
            None => {
                warn(letter, 1);
                let labels = labels(&letter.source, &letter.error.code);
                let seen = metrics::counter!(telemetry::DEAD_LETTERS.name, &labels);
                seen.increment(1);
                let told = Told {
                    seen,
                    at: now,
                    since: 0,
                    last: Arc::clone(letter),
                };
                causes.insert(letter.error.code.clone(), told);
            }
        }
    }
}

impl Told {
    fn say_rest(&mut self, now: u64) {
        if self.since > 0 && now.saturating_sub(self.at) >= TELL_MICROS {
            warn(&self.last, self.since);
            self.at = now;
            self.since = 0;
        }
    }
}

fn warn(letter: &DeadLetter, records: u64) {
    tracing::warn!(
        source = %letter.source,
        position = %letter.position,
        code = %letter.error.code,
        records,
        "dead letter: {}",
        letter.error
    );
}

fn count(metric: &'static str, source: &str, code: &str) {
    metrics::counter!(metric, &labels(source, code)).increment(1);
}

fn labels(source: &str, code: &str) -> [(&'static str, String); 2] {
    [("source", source.to_owned()), ("code", code.to_owned())]
}
