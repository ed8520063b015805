//! Entries and how questions find them, now and in the retained past.
//!
//! An entry is live at `T` when one of its validity intervals holds T and its time is not up. Dead
//! entries stay until `since` passes their end, so that a question `AS OF` the past sees what was
//! served then.
//!
//! ```text
//! scope bytes ─▶ Scope ─┬─ normalised text ─▶ entries     exact question: similarity 1
//!                       └─ entries in order ─▶ cosine ─▶ second gate (see gate.rs)
//! ```
//!
//! Cost: one dot product an entry of the scope. The best hit: an exact question before a similar
//! one, then the greater similarity, then the newer, then the lesser id: a total order, so the
//! merge of shards equals one shard.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use engine::model::{ChunkId, Key, Time};
use serde::{Deserialize, Serialize};

use super::score::dot;
use super::watch::Seat;
use super::{CacheShard, Death, EntryId, Features, LeaseId, Question};

/// A stored answer with its life.
#[derive(Debug)]
pub(super) struct Entry {
    pub lease: LeaseId,
    pub question: Arc<Question>,
    pub features: Features,
    pub answer: Arc<str>,
    pub citations: Vec<ChunkId>,
    pub stored_at: Time,
    /// First time at which its TTL is up.
    pub due: Time,
    pub last_used: Time,
    /// Half open; the last one may be open-ended.
    pub live: Vec<(Time, Option<Time>)>,
    pub retracted: Option<(Time, Death)>,
    /// The watch's seats, once it is gone.
    pub seats: Vec<Seat>,
}

impl Entry {
    pub(super) fn is_live(&self, at: Time) -> bool {
        at < self.due
            && self
                .live
                .iter()
                .any(|(from, to)| *from <= at && to.is_none_or(|to| at < to))
    }

    /// Ends the open interval, if there is one.
    pub(super) fn end(&mut self, at: Time) {
        if let Some((from, to @ None)) = self.live.last_mut() {
            *to = Some(at);
            if *from == at {
                self.live.pop();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Scope {
    by_text: HashMap<String, Vec<EntryId>>,
    ids: Vec<EntryId>,
}

/// All entries of a shard that some reader may still ask for.
#[derive(Debug, Default)]
pub(super) struct Entries {
    rows: BTreeMap<EntryId, Entry>,
    scopes: HashMap<Vec<u8>, Scope>,
}

impl Entries {
    pub(super) fn get(&self, id: EntryId) -> Option<&Entry> {
        self.rows.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.rows.get_mut(&id)
    }

    pub(super) fn insert(&mut self, id: EntryId, entry: Entry) {
        let scope = self.scopes.entry(entry.question.scope.clone()).or_default();
        scope.ids.push(id);
        scope
            .by_text
            .entry(entry.features.normalised().to_owned())
            .or_default()
            .push(id);
        self.rows.insert(id, entry);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&EntryId, &Entry)> {
        self.rows.iter()
    }

    /// Drops what was retracted at or before `since`, and old intervals and versions.
    pub(super) fn compact(&mut self, since: Time) {
        let gone = |entry: &Entry| entry.retracted.as_ref().is_some_and(|(at, _)| *at <= since);
        let dead: Vec<EntryId> = self
            .rows
            .iter()
            .filter(|(_, entry)| gone(entry))
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            let Some(entry) = self.rows.remove(&id) else {
                continue;
            };
            let Some(scope) = self.scopes.get_mut(&entry.question.scope) else {
                continue;
            };
            scope.ids.retain(|known| *known != id);
            if let Some(ids) = scope.by_text.get_mut(entry.features.normalised()) {
                ids.retain(|known| *known != id);
                if ids.is_empty() {
                    scope.by_text.remove(entry.features.normalised());
                }
            }
            if scope.ids.is_empty() {
                self.scopes.remove(&entry.question.scope);
            }
        }
        for entry in self.rows.values_mut() {
            entry.live.retain(|(_, to)| to.is_none_or(|to| to > since));
            entry.seats.iter_mut().for_each(|seat| seat.compact(since));
        }
    }
}

/// A cached answer that may be served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Which entry.
    pub entry: EntryId,
    /// The question that it was made for.
    pub question: Arc<Question>,
    /// JSON text.
    pub answer: Arc<str>,
    /// What it cites: chunk, document, the document's version at the time of the look-up.
    pub citations: Vec<(ChunkId, Key, u64)>,
    /// Cosine of the questions; 1 for the same question.
    pub similarity: f64,
    /// The same question, up to case, spacing and final punctuation.
    pub is_exact: bool,
    /// When it was stored.
    pub stored_at: Time,
}

/// A similar question that the second gate refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearMiss {
    /// Which entry.
    pub entry: EntryId,
    /// Cosine of the questions.
    pub similarity: f64,
    /// Why, short: "numbers differ: 2FA/3FA".
    pub refused: String,
}

/// What one shard answers; merge the shards' outcomes by [`LookupOutcome::merge`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LookupOutcome {
    /// The best entry that may be served.
    pub hit: Option<Hit>,
    /// The most similar one that may not; only when nothing hits.
    pub near_miss: Option<NearMiss>,
}

impl LookupOutcome {
    /// The better of two shards' outcomes; associative and commutative.
    pub fn merge(self, other: LookupOutcome) -> LookupOutcome {
        let hit = match (self.hit, other.hit) {
            (Some(a), Some(b)) => {
                Some(if rank(&a).total_cmp_rank(&rank(&b)) == Ordering::Greater {
                    b
                } else {
                    a
                })
            }
            (a, b) => a.or(b),
        };
        let near_miss = match (self.near_miss, other.near_miss) {
            (Some(a), Some(b)) => {
                let order = b
                    .similarity
                    .total_cmp(&a.similarity)
                    .then(a.entry.cmp(&b.entry));
                Some(if order == Ordering::Greater { b } else { a })
            }
            (a, b) => a.or(b),
        };
        // A near miss explains a miss; beside a hit it would depend on which shard looked first.
        let near_miss = near_miss.filter(|_| hit.is_none());
        LookupOutcome { hit, near_miss }
    }
}

/// The order of hits, best first.
struct Rank {
    is_exact: bool,
    similarity: f64,
    stored_at: Time,
    entry: EntryId,
}

fn rank(hit: &Hit) -> Rank {
    Rank {
        is_exact: hit.is_exact,
        similarity: hit.similarity,
        stored_at: hit.stored_at,
        entry: hit.entry,
    }
}

impl Rank {
    fn total_cmp_rank(&self, other: &Rank) -> Ordering {
        (other.is_exact.cmp(&self.is_exact))
            .then(other.similarity.total_cmp(&self.similarity))
            .then(other.stored_at.cmp(&self.stored_at))
            .then(self.entry.cmp(&other.entry))
    }
}

/// One entry as a row of the cache's collection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EntryView {
    /// Which.
    pub entry: EntryId,
    /// Under which lease it was stored.
    pub lease: LeaseId,
    /// Its question, scope included.
    pub question: Arc<Question>,
    /// JSON text.
    pub answer: Arc<str>,
    /// As [`Hit::citations`].
    pub citations: Vec<(ChunkId, Key, u64)>,
    /// When it was stored.
    pub stored_at: Time,
    /// Served at the time of the view (else suspended, expired or retracted).
    pub is_live: bool,
    /// When and why it went, if it went at or before the time of the view.
    pub retracted: Option<(Time, Death)>,
}

impl CacheShard {
    /// The best entry for a question at `at`, within `since ≤ at ≤` the last applied time (outside
    /// it nothing is found). `vector`: the question's, normalised; `None` finds the same question
    /// only. Pure; cost one dot product an entry of the scope.
    pub fn lookup(
        &self,
        at: Time,
        scope: &[u8],
        vector: Option<&[f32]>,
        question: &Features,
    ) -> LookupOutcome {
        let mut outcome = LookupOutcome::default();
        if at < self.since || at > self.applied {
            return outcome;
        }
        let Some(scope) = self.entries.scopes.get(scope) else {
            return outcome;
        };
        for id in scope
            .by_text
            .get(question.normalised())
            .into_iter()
            .flatten()
        {
            if let Some(entry) = self.entries.get(*id)
                && entry.is_live(at)
            {
                let hit = self.hit(at, *id, entry, 1.0, true);
                outcome = outcome.merge(LookupOutcome {
                    hit: Some(hit),
                    near_miss: None,
                });
            }
        }
        let Some(vector) = vector.filter(|_| outcome.hit.is_none()) else {
            return outcome;
        };
        self.similar(at, scope, vector, question)
    }

    fn similar(
        &self,
        at: Time,
        scope: &Scope,
        vector: &[f32],
        question: &Features,
    ) -> LookupOutcome {
        let mut outcome = LookupOutcome::default();
        for id in &scope.ids {
            let Some(entry) = self.entries.get(*id).filter(|entry| entry.is_live(at)) else {
                continue;
            };
            let similarity = match &entry.question.vector {
                Some(known) if known.len() == vector.len() => f64::from(dot(known, vector)),
                _ => continue,
            };
            if similarity < self.config.similarity {
                continue;
            }
            let found = match question.agrees(&entry.features) {
                Ok(()) => LookupOutcome {
                    hit: Some(self.hit(at, *id, entry, similarity, false)),
                    near_miss: None,
                },
                Err(refused) => LookupOutcome {
                    hit: None,
                    near_miss: Some(NearMiss {
                        entry: *id,
                        similarity,
                        refused,
                    }),
                },
            };
            outcome = outcome.merge(found);
        }
        outcome
    }

    fn hit(&self, at: Time, id: EntryId, entry: &Entry, similarity: f64, is_exact: bool) -> Hit {
        Hit {
            entry: id,
            question: entry.question.clone(),
            answer: entry.answer.clone(),
            citations: self.citations(at, entry),
            similarity,
            is_exact,
            stored_at: entry.stored_at,
        }
    }

    fn citations(&self, at: Time, entry: &Entry) -> Vec<(ChunkId, Key, u64)> {
        let seats = self
            .watches
            .get(entry.lease)
            .map_or(&entry.seats, |watch| &watch.seats);
        let cited = |chunk: &ChunkId| {
            let seat = seats.iter().find(|seat| seat.chunk == *chunk)?;
            Some((*chunk, seat.key.clone(), seat.version_at(at)))
        };
        entry.citations.iter().filter_map(cited).collect()
    }

    /// One entry as of `at`; `None` when it was not stored by then or is forgotten.
    pub fn entry(&self, at: Time, id: EntryId) -> Option<EntryView> {
        let entry = self.entries.get(id).filter(|entry| entry.stored_at <= at)?;
        Some(EntryView {
            entry: id,
            lease: entry.lease,
            question: entry.question.clone(),
            answer: entry.answer.clone(),
            citations: self.citations(at, entry),
            stored_at: entry.stored_at,
            is_live: entry.is_live(at),
            retracted: entry.retracted.clone().filter(|(when, _)| *when <= at),
        })
    }

    /// The entries that were stored and not retracted at `at`, by id.
    pub fn entries(&self, at: Time) -> impl Iterator<Item = EntryView> {
        self.entries
            .iter()
            .filter_map(move |(id, _)| self.entry(at, *id))
            .filter(|view| view.retracted.is_none())
    }
}
