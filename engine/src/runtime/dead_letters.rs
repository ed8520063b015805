//! The dead-letter collection: bad data with its cause, position and payload. Nothing is lost, the
//! pipeline goes on.
//!
//! Letters of inputs are logged with their batch. Letters of rendered rows (a view's division by
//! zero) are *retractable*: they belong to a document and go when its next version is good.
//! Bounded per source ([`crate::limits::DEAD_LETTERS_MAX`]); the oldest go first, counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use crate::error::DeadLetter;
use crate::limits;
use crate::model::Time;

/// A letter with its place in the collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedLetter {
    /// Grows; pages by it.
    pub id: u64,
    /// When it was admitted.
    pub at: Time,
    /// The letter.
    pub letter: DeadLetter,
}

#[derive(Debug, Default)]
struct Letters {
    next: u64,
    sources: BTreeMap<String, VecDeque<NumberedLetter>>,
}

/// All dead letters of a pipeline.
#[derive(Debug, Default)]
pub struct DeadLetters {
    letters: Mutex<Letters>,
}

impl DeadLetters {
    /// Adds a letter.
    pub fn add(&self, at: Time, letter: DeadLetter) {
        tracing::warn!(source = %letter.source, position = %letter.position, code = %letter.error.code, "dead letter: {}", letter.error);
        metrics::counter!("headwater_dead_letters_total", "source" => letter.source.clone())
            .increment(1);
        let mut letters = self.letters.lock().expect("no panic while held");
        letters.next += 1;
        let id = letters.next;
        let queue = letters.sources.entry(letter.source.clone()).or_default();
        queue.push_back(NumberedLetter { id, at, letter });
        if queue.len() > limits::DEAD_LETTERS_MAX {
            queue.pop_front();
            metrics::counter!("headwater_dead_letters_dropped_total").increment(1);
        }
    }

    /// Removes the letters of a position of a source: what was bad there is good now, or gone.
    pub fn retract(&self, source: &str, position: &str) {
        let mut letters = self.letters.lock().expect("no panic while held");
        if let Some(queue) = letters.sources.get_mut(source) {
            queue.retain(|numbered| numbered.letter.position != position);
        }
    }

    /// Letters after a cursor, oldest first.
    pub fn list(&self, source: Option<&str>, after: u64, limit: usize) -> Vec<NumberedLetter> {
        let letters = self.letters.lock().expect("no panic while held");
        let mut all: Vec<NumberedLetter> = letters
            .sources
            .iter()
            .filter(|(name, _)| source.is_none_or(|source| source == *name))
            .flat_map(|(_, queue)| queue.iter().filter(|letter| letter.id > after).cloned())
            .collect();
        all.sort_by_key(|letter| letter.id);
        all.truncate(limit);
        all
    }

    /// How many there are of a source.
    pub fn count(&self, source: &str) -> usize {
        let letters = self.letters.lock().expect("no panic while held");
        letters.sources.get(source).map_or(0, VecDeque::len)
    }
}
