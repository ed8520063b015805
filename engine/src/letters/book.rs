//! The collection itself: letters by id, in the order of their arrival, counted by source and cause.
//!
//! Invariants: a cause keeps at most [`DEAD_LETTERS_MAX`] letters and all together at most
//! [`DEAD_LETTERS_BYTES_MAX`] bytes: the oldest of the cause, then of the cause with the most bytes,
//! go first and stay counted. Numbers grow: a letter that comes again moves to the end.
//!
//! Cost: adding and resolving take a hash and a few look-ups in maps of the bounded size.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;
use serde::{Deserialize, Serialize};

use super::{DeadLetter, LetterId};
use crate::limits::{DEAD_LETTERS_BYTES_MAX, DEAD_LETTERS_MAX};
use crate::model::Key;

/// A letter with its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// As it came last.
    pub letter: Arc<DeadLetter>,
    /// When it came first, wall clock in microseconds since the epoch.
    pub first_seen: u64,
    /// When it came last.
    pub last_seen: u64,
    /// How often it came.
    pub count: u64,
}

/// A letter as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its place in the order of arrival: a list goes on after it.
    pub number: u64,
    /// Its name.
    pub id: LetterId,
    /// The letter.
    pub kept: Kept,
}

/// What is known of a source's cause beyond the letters that are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseCounts {
    /// The source (or view).
    pub source: String,
    /// The cause.
    pub code: String,
    /// Bad records, repetitions included.
    pub seen: u64,
    /// Letters kept now.
    pub kept: u64,
    /// Letters forgotten because there were too many.
    pub dropped: u64,
    /// Letters that a good record, or a replay, ended.
    pub resolved: u64,
    /// When the first came, wall clock in microseconds since the epoch.
    pub first_seen: u64,
    /// When the last came.
    pub last_seen: u64,
}

#[derive(Debug)]
struct Place {
    kept: Kept,
    number: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Cause {
    order: BTreeMap<u64, LetterId>,
    bytes: usize,
    /// `source`, `code` and `kept` are filled in when they are told.
    counts: CauseCounts,
}

#[derive(Debug, Default)]
struct Source {
    causes: BTreeMap<String, Cause>,
    keys: AHashMap<Key, Vec<LetterId>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct LetterBook {
    letters: AHashMap<LetterId, Place>,
    sources: BTreeMap<String, Source>,
    bytes: usize,
    last: u64,
}

impl LetterBook {
    /// Adds a letter; the causes (source, code) that lost an older one for it, usually none.
    pub fn add(&mut self, at: u64, letter: Arc<DeadLetter>) -> Vec<(String, String)> {
        let id = letter.id();
        let earlier = self.remove(id);
        let cause = self.cause(&letter.source, &letter.error.code);
        if cause.counts.seen == 0 {
            cause.counts.first_seen = at;
        }
        cause.counts.seen += 1;
        cause.counts.last_seen = at;
        let (first_seen, count) = earlier.map_or((at, 0), |kept| (kept.first_seen, kept.count));
        let kept = Kept {
            letter,
            first_seen,
            last_seen: at,
            count: count + 1,
        };
        self.insert(id, kept)
    }

    /// Takes back a letter that compaction kept. Those of one source come in their order.
    pub fn restore(&mut self, kept: Kept) {
        let id = kept.letter.id();
        self.remove(id);
        self.insert(id, kept);
    }

    /// Takes back what compaction knew of a cause, before anything is added to it.
    pub fn restore_counts(&mut self, counts: &CauseCounts) {
        self.cause(&counts.source, &counts.code).counts = counts.clone();
    }

    /// A record that was bad and answered by a good one before anybody could see it.
    pub fn count_answered(&mut self, at: u64, letter: &DeadLetter) {
        let counts = &mut self.cause(&letter.source, &letter.error.code).counts;
        if counts.seen == 0 {
            counts.first_seen = at;
        }
        counts.seen += 1;
        counts.resolved += 1;
        counts.last_seen = at;
    }

    /// The letters of a key: a good record of it ends them.
    pub fn of_key(&self, source: &str, key: &Key) -> Vec<LetterId> {
        let ids = self.sources.get(source).and_then(|all| all.keys.get(key));
        ids.cloned().unwrap_or_default()
    }

    /// What ends when a letter is replayed: it, and those of its key that came before it. None when
    /// it is gone.
    pub fn through(&self, id: LetterId) -> Vec<LetterId> {
        let Some(place) = self.letters.get(&id) else {
            return Vec::new();
        };
        let (source, number) = (&place.kept.letter.source, place.number);
        let key = place.kept.letter.key.as_ref();
        let of_key = key.and_then(|key| self.sources.get(source)?.keys.get(key));
        let is_past = |id: &&LetterId| self.letters[*id].number <= number;
        match of_key {
            Some(ids) => ids.iter().filter(is_past).copied().collect(),
            None => vec![id],
        }
    }

    /// Ends a letter; nothing if it is gone.
    pub fn resolve(&mut self, id: LetterId) -> Option<Kept> {
        let kept = self.remove(id)?;
        let counts = &mut self
            .cause(&kept.letter.source, &kept.letter.error.code)
            .counts;
        counts.resolved += 1;
        Some(kept)
    }

    /// Forgets sources that are not to be kept, counts included; which these were.
    pub fn retain_sources(&mut self, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let names = self.sources.keys();
        let gone: Vec<String> = names.filter(|name| !keep(name)).cloned().collect();
        for name in &gone {
            let Some(source) = self.sources.get(name) else {
                continue;
            };
            let causes = source.causes.values();
            let ids: Vec<LetterId> = causes
                .flat_map(|cause| cause.order.values().copied())
                .collect();
            ids.into_iter().for_each(|id| drop(self.remove(id)));
            self.sources.remove(name);
        }
        gone
    }

    /// One letter.
    pub fn get(&self, id: LetterId) -> Option<Listed> {
        let place = self.letters.get(&id)?;
        Some(Listed {
            number: place.number,
            id,
            kept: place.kept.clone(),
        })
    }

    /// Letters after a number, in the order of their last arrival. Cost: `limit` a cause.
    pub fn list(
        &self,
        source: Option<&str>,
        code: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Vec<Listed> {
        let sources = self.sources.iter();
        let sources = sources.filter(|(name, _)| source.is_none_or(|source| source == *name));
        let causes = sources.flat_map(|(_, source)| &source.causes);
        let causes = causes.filter(|(name, _)| code.is_none_or(|code| code == *name));
        let mut found: Vec<(u64, LetterId)> = causes
            .flat_map(|(_, cause)| cause.order.range(after.saturating_add(1)..).take(limit))
            .map(|(number, id)| (*number, *id))
            .collect();
        found.sort_unstable();
        found.truncate(limit);
        found
            .into_iter()
            .filter_map(|(_, id)| self.get(id))
            .collect()
    }

    /// What is known of each cause.
    pub fn causes(&self) -> Vec<CauseCounts> {
        let causes = self.sources.iter().flat_map(|(source, all)| {
            all.causes.iter().map(move |(code, cause)| CauseCounts {
                source: source.clone(),
                code: code.clone(),
                kept: cause.order.len() as u64,
                ..cause.counts.clone()
            })
        });
        causes.collect()
    }

    /// Letters kept of a source.
    pub fn count(&self, source: &str) -> usize {
        let causes = self
            .sources
            .get(source)
            .map(|source| source.causes.values());
        causes
            .into_iter()
            .flatten()
            .map(|cause| cause.order.len())
            .sum()
    }

    /// Memory of the letters, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether any letter names its row.
    pub fn has_keys(&self) -> bool {
        self.sources.values().any(|source| !source.keys.is_empty())
    }

    fn cause(&mut self, source: &str, code: &str) -> &mut Cause {
        // Looked up before a name is copied: almost always it is there.
        if !self.sources.contains_key(source) {
            self.sources.insert(source.to_owned(), Source::default());
        }
        let causes = &mut self.sources.get_mut(source).expect("just there").causes;
        if !causes.contains_key(code) {
            causes.insert(code.to_owned(), Cause::default());
        }
        causes.get_mut(code).expect("just there")
    }

    fn insert(&mut self, id: LetterId, kept: Kept) -> Vec<(String, String)> {
        self.last += 1;
        let (number, bytes) = (self.last, kept.letter.cost());
        let letter = Arc::clone(&kept.letter);
        let cause = self.cause(&letter.source, &letter.error.code);
        cause.order.insert(number, id);
        cause.bytes += bytes;
        let is_full = cause.order.len() > DEAD_LETTERS_MAX;
        if let Some(key) = &letter.key {
            let source = self.sources.get_mut(&letter.source).expect("just there");
            source.keys.entry(key.clone()).or_default().push(id);
        }
        self.bytes += bytes;
        self.letters.insert(
            id,
            Place {
                kept,
                number,
                bytes,
            },
        );
        let mut dropped = Vec::new();
        if is_full {
            self.drop_oldest(
                (letter.source.clone(), letter.error.code.clone()),
                &mut dropped,
            );
        }
        while self.bytes > DEAD_LETTERS_BYTES_MAX {
            let Some(fattest) = self.fattest() else { break };
            self.drop_oldest(fattest, &mut dropped);
        }
        dropped
    }

    /// The cause whose letters take the most memory.
    fn fattest(&self) -> Option<(String, String)> {
        let causes = self.sources.iter().flat_map(|(source, all)| {
            all.causes
                .iter()
                .filter(|(_, cause)| !cause.order.is_empty())
                .map(move |(code, cause)| (cause.bytes, source, code))
        });
        let (_, source, code) = causes.max()?;
        Some((source.clone(), code.clone()))
    }

    fn drop_oldest(&mut self, of: (String, String), dropped: &mut Vec<(String, String)>) {
        let cause = self.cause(&of.0, &of.1);
        let Some(id) = cause.order.values().next().copied() else {
            return;
        };
        cause.counts.dropped += 1;
        self.remove(id);
        dropped.push(of);
    }

    /// Takes a letter out of everything but the counts.
    fn remove(&mut self, id: LetterId) -> Option<Kept> {
        let Place {
            kept,
            number,
            bytes,
        } = self.letters.remove(&id)?;
        self.bytes -= bytes;
        let letter = &kept.letter;
        let source = self.sources.get_mut(&letter.source)?;
        if let Some(cause) = source.causes.get_mut(&letter.error.code) {
            cause.order.remove(&number);
            cause.bytes -= bytes;
        }
        if let Some(key) = &letter.key
            && let Some(ids) = source.keys.get_mut(key)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                source.keys.remove(key);
            }
        }
        Some(kept)
    }
}
