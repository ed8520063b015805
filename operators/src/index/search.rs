//! Answering a question from one shard, at one time, with the global statistics.
//!
//! ```text
//! filter ─▶ scope (which documents, how many chunks)
//! terms  ─▶ BM25 sums of every live chunk ──▶ best max(64, 8k) ┐
//! vector ─▶ few match: scan them; else graphs + scanned head ──▶ best max(64, 8k) ┴▶ candidates
//! ```
//!
//! The planner: a graph walk whose predicate few rows satisfy visits nearly every node (measured:
//! seven times slower than a scan at 1 %), so below a floor or a share of all rows the matching rows
//! are scanned instead, which is also exact.

use super::best::Best;
use super::documents::Documents;
use super::fuse::pointwise_score;
use super::keyword::Sums;
use super::shard::Shard;
use super::slots::{NONE, Slots};
use super::{Candidate, Filter, Fusion, ShardQuestion, Statistics};
use ahash::AHashMap;
use engine::limits::FILTER_BATCH_ROWS;
use engine::model::{Row, Time};

/// Fewer visible, matching rows than this are scanned: about a quarter of a millisecond.
const SCAN_ROWS: u64 = 4_096;
/// … or fewer than one in so many of all rows.
const SCAN_SHARE: u64 = 8;

/// What a question may see.
struct Scope<'a> {
    at: Time,
    slots: &'a Slots,
    /// By document number; `None` admits all.
    admitted: Option<Vec<bool>>,
    /// Live chunks that are admitted.
    chunks: u64,
}

impl Scope<'_> {
    fn admits(&self, document: u32) -> bool {
        self.admitted
            .as_ref()
            .is_none_or(|admitted| admitted[document as usize])
    }

    /// Admitted; the caller knows that the slot is live.
    #[inline]
    fn admits_slot(&self, slot: u32) -> bool {
        self.admits(self.slots.hot(slot).document)
    }

    /// Live, with a vector, admitted.
    #[inline]
    fn shows_vector(&self, slot: u32) -> bool {
        let hot = self.slots.hot(slot);
        self.at < hot.to && self.slots.has_vector(slot, self.at) && self.admits(hot.document)
    }
}

impl Shard {
    /// Candidates of this shard at `since ≤ at ≤ now`, both scores exact for each: the best
    /// max(64, 8k) of each leg; with `is_exact` and a pointwise score the best k + 1 of all chunks,
    /// at most `per_document` of one document. `statistics` are the sum over all shards; the filter
    /// is asked once about each document that is live at `at`.
    ///
    /// Order is without meaning: pass it to [`super::merge`].
    pub fn search(
        &self,
        question: &ShardQuestion,
        filter: Option<Filter<'_>>,
        statistics: &Statistics,
        at: Time,
    ) -> Vec<Candidate> {
        let legs = question.legs();
        if legs.is_empty() || question.k == 0 {
            return Vec::new();
        }
        let scope = self.scope(filter, at);
        let mut sums = self.sums.borrow_mut();
        if legs.keyword && self.config.keyword {
            let weights = self.keyword.weigh(question.weighted_terms(), statistics);
            self.keyword.score(&weights, &self.slots, at, &mut sums);
        }
        sums.scores.resize(self.slots.len(), 0.0);
        let is_pointwise = question.fusion != Fusion::Rrf || !(legs.vector && legs.keyword);
        let chosen = if question.is_exact && is_pointwise {
            self.best_of_all(question, statistics.bound(question), &scope, &sums)
        } else {
            self.best_of_legs(question, &scope, &sums)
        };
        let candidates = chosen
            .into_iter()
            .filter_map(|slot| self.candidate(slot, question, &sums, at))
            .collect();
        sums.clear();
        candidates
    }

    fn scope(&self, filter: Option<Filter<'_>>, at: Time) -> Scope<'_> {
        let slots = &self.slots;
        let Some(filter) = filter else {
            return Scope {
                at,
                slots,
                admitted: None,
                chunks: self.ledger.chunks(at),
            };
        };
        let (admitted, chunks) = admit(&self.documents, filter, at);
        Scope {
            at,
            slots,
            admitted: Some(admitted),
            chunks,
        }
    }

    /// Every live chunk, fused pointwise: the exact answer's members and its best outsider.
    fn best_of_all(
        &self,
        question: &ShardQuestion,
        bound: f64,
        scope: &Scope,
        sums: &Sums,
    ) -> Vec<u32> {
        // Without a cap per document k + 1 suffice; with one, any number of chunks may be passed over.
        let wanted = if question.per_document.is_some() {
            usize::MAX / 4
        } else {
            question.k + 1
        };
        let mut best = Best::new(wanted, &self.slots);
        for slot in self
            .slots
            .live(scope.at)
            .filter(|slot| scope.admits_slot(*slot))
        {
            let cosine = self.cosine(slot, question, scope.at);
            let score = pointwise_score(question, bound, cosine, sums.scores[slot as usize]);
            if let Some(score) = score {
                best.push(score, slot);
            }
        }
        let mut taken: AHashMap<u32, usize> = AHashMap::new();
        let ranked = best.finish().into_iter().map(|(_, slot)| slot);
        let fits = |slot: &u32| {
            question.per_document.is_none_or(|most| {
                let of_document = taken.entry(self.slots.hot(*slot).document).or_default();
                *of_document += 1;
                *of_document <= most
            })
        };
        ranked.filter(fits).take(question.k + 1).collect()
    }

    /// The best of each leg, each slot once.
    fn best_of_legs(&self, question: &ShardQuestion, scope: &Scope, sums: &Sums) -> Vec<u32> {
        let pool = question.pool();
        let mut chosen = Vec::with_capacity(2 * pool);
        let mut best = Best::new(pool, &self.slots);
        for slot in sums.touched.iter().filter(|slot| scope.admits_slot(**slot)) {
            best.push(sums.scores[*slot as usize], *slot);
        }
        chosen.extend(best.finish().into_iter().map(|(_, slot)| slot));
        let mut best = Best::new(pool, &self.slots);
        self.vector_leg(question, pool, scope, &mut best);
        chosen.extend(best.finish().into_iter().map(|(_, slot)| slot));
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    fn vector_leg(&self, question: &ShardQuestion, pool: usize, scope: &Scope, best: &mut Best) {
        let Some((leg, vector)) = self.vector_question(question) else {
            return;
        };
        let visible = |slot: u32| scope.shows_vector(slot);
        let is_few = scope.chunks <= SCAN_ROWS.max(self.slots.len() as u64 / SCAN_SHARE);
        if is_few && scope.admitted.is_some() && !question.is_exact {
            self.scan_documents(vector, scope, best);
        } else if is_few || question.is_exact {
            leg.scan(vector, &visible, best);
        } else {
            leg.search(vector, pool, &visible, best);
        }
    }

    /// Scans the chunks of admitted documents only.
    fn scan_documents(&self, vector: &[f32], scope: &Scope, best: &mut Best) {
        let Some(leg) = &self.vectors else { return };
        for (number, version) in self.documents.at(scope.at) {
            if !scope.admits(number) {
                continue;
            }
            for slot in version.slots.iter().filter(|slot| **slot != NONE) {
                if self.slots.has_vector(*slot, scope.at) {
                    best.push(leg.cosine(vector, self.slots.place(*slot)), *slot);
                }
            }
        }
    }

    /// The leg and the question's vector, when both exist and fit.
    fn vector_question<'a>(
        &'a self,
        question: &'a ShardQuestion,
    ) -> Option<(&'a super::vectors::VectorLeg, &'a [f32])> {
        let vector = question
            .vector
            .as_ref()
            .filter(|_| question.legs().vector)?;
        let leg = self.vectors.as_ref()?;
        (Some(vector.len()) == self.config.dimensions).then_some((leg, &**vector))
    }

    fn cosine(&self, slot: u32, question: &ShardQuestion, at: Time) -> Option<f64> {
        let (leg, vector) = self.vector_question(question)?;
        self.slots
            .has_vector(slot, at)
            .then(|| leg.cosine(vector, self.slots.place(slot)))
    }

    fn candidate(
        &self,
        slot: u32,
        question: &ShardQuestion,
        sums: &Sums,
        at: Time,
    ) -> Option<Candidate> {
        let document = self.documents.get(self.slots.hot(slot).document);
        let version = document.version(at)?;
        let ordinal = version.slots.iter().position(|other| *other == slot)?;
        Some(Candidate {
            chunk: self.slots.chunk(slot),
            document: document.key.clone(),
            ordinal: ordinal as u32,
            state: version.state.clone(),
            cosine: self.cosine(slot, question, at),
            bm25: sums.scores[slot as usize],
        })
    }
}

/// Asks the filter about every document at a time: which are admitted, and their chunks.
fn admit(documents: &Documents, filter: Filter<'_>, at: Time) -> (Vec<bool>, u64) {
    let mut admitted = vec![false; documents.numbers()];
    let mut chunks = 0;
    let mut batch: Vec<(u32, &super::documents::Version)> = Vec::with_capacity(FILTER_BATCH_ROWS);
    let mut flush = |batch: &mut Vec<(u32, &super::documents::Version)>| {
        let rows: Vec<&Row> = batch
            .iter()
            .map(|(_, version)| &version.state.attributes)
            .collect();
        for ((number, version), is_admitted) in batch.drain(..).zip(filter(&rows)) {
            admitted[number as usize] = is_admitted;
            if is_admitted {
                chunks += version.slots.iter().filter(|slot| **slot != NONE).count() as u64;
            }
        }
    };
    for entry in documents.at(at) {
        batch.push(entry);
        if batch.len() == FILTER_BATCH_ROWS {
            flush(&mut batch);
        }
    }
    flush(&mut batch);
    (admitted, chunks)
}
