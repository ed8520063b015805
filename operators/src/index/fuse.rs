//! From the shards' candidates to ranked hits: one fused order over all shards.
//!
//! Every chunk's scores were computed by the shard that owns it with global statistics, so fusion
//! only selects: the best max(64, 8k) of each leg *globally*, their union, one score each, a total
//! order (score descending, then chunk id). The number of shards cannot be seen in the result.
//!
//! Sources: pointwise convex combination (API §3); reciprocal rank fusion, Cormack et al. 2009, k = 60.

use std::cmp::Ordering;

use ahash::AHashMap;
use engine::model::Key;
use serde::{Deserialize, Serialize};

use super::{Candidate, Fusion, ShardQuestion, Statistics};

/// RRF's constant.
const RRF_K: f64 = 60.0;

/// A hit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// The chunk and its raw scores.
    pub candidate: Candidate,
    /// The score that ranks it (API §3).
    pub score: f64,
}

/// The answer to a question, with its margins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Merged {
    /// At most k hits, best first.
    pub hits: Vec<Ranked>,
    /// The best candidate that is not a hit for lack of room or score: ρ0 of the answer cache.
    pub outsider: Option<f64>,
    /// No chunk outside the candidates scores above this; `None` when there is none outside
    /// (exact), or when no bound is known (RRF). Of what the graph returned: a neighbour that it
    /// overlooked is recall, not margin.
    pub ceiling: Option<f64>,
}

/// Scores one candidate pointwise; `None` when it cannot be a hit of this question.
///
/// `bound` is [`Statistics::bound`]. Not for RRF with two legs, whose scores need ranks.
pub fn pointwise_score(
    question: &ShardQuestion,
    bound: f64,
    cosine: Option<f64>,
    bm25: f64,
) -> Option<f64> {
    let legs = question.legs();
    match (legs.vector, legs.keyword) {
        (true, false) => cosine,
        (false, true) => Some(bm25).filter(|score| *score > 0.0),
        (false, false) => None,
        (true, true) => {
            let weight = match question.fusion {
                Fusion::Convex { weight } => weight,
                Fusion::Rrf => return None,
            };
            let near = cosine.map_or(0.0, |cosine| (1.0 + cosine) / 2.0);
            let said = if bound > 0.0 { bm25 / bound } else { 0.0 };
            Some(weight * near + (1.0 - weight) * said)
        }
    }
}

/// Best first; ties by chunk id.
fn order(a: (f64, &Candidate), b: (f64, &Candidate)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| a.1.chunk.cmp(&b.1.chunk))
}

/// Fuses the partial results of all shards. `statistics` are the global ones that the shards
/// scored with. Cost: sorting a few hundred candidates a shard.
pub fn merge(
    partials: Vec<Vec<Candidate>>,
    question: &ShardQuestion,
    statistics: &Statistics,
) -> Merged {
    let candidates: Vec<Candidate> = partials.into_iter().flatten().collect();
    let legs = question.legs();
    let is_hybrid = legs.vector && legs.keyword;
    let bound = statistics.bound(question);
    let pools = Pools::new(&candidates, question);
    let (scores, ceiling) = match question.fusion {
        Fusion::Rrf if is_hybrid => (pools.reciprocal_ranks(candidates.len()), None),
        _ => {
            let scores = candidates.iter().enumerate().map(|(i, candidate)| {
                pointwise_score(question, bound, candidate.cosine, candidate.bm25)
                    .filter(|_| question.is_exact || pools.contains(i))
            });
            (
                scores.collect(),
                pools.ceiling(&candidates, question, bound),
            )
        }
    };
    let mut ranked: Vec<Ranked> = candidates
        .into_iter()
        .zip(scores)
        .filter_map(|(candidate, score)| {
            Some(Ranked {
                candidate,
                score: score?,
            })
        })
        .collect();
    ranked.sort_by(|a, b| order((a.score, &a.candidate), (b.score, &b.candidate)));
    let (hits, outsider) = select(ranked, question);
    Merged {
        hits,
        outsider,
        ceiling,
    }
}

/// Takes the hits off an ordered list.
fn select(ranked: Vec<Ranked>, question: &ShardQuestion) -> (Vec<Ranked>, Option<f64>) {
    let mut taken: AHashMap<Key, usize> = AHashMap::new();
    let mut hits = Vec::with_capacity(question.k.min(ranked.len()));
    for entry in ranked {
        if let Some(most) = question.per_document {
            let of_document = taken.entry(entry.candidate.document.clone()).or_default();
            if *of_document >= most {
                continue;
            }
            *of_document += 1;
        }
        let is_below = question.min_score.is_some_and(|least| entry.score < least);
        if hits.len() == question.k || is_below {
            return (hits, Some(entry.score));
        }
        hits.push(entry);
    }
    (hits, None)
}

/// The best of each leg: indexes into the candidates, best first.
struct Pools {
    size: usize,
    vector: Vec<usize>,
    keyword: Vec<usize>,
    members: Vec<bool>,
}

impl Pools {
    fn new(candidates: &[Candidate], question: &ShardQuestion) -> Pools {
        let size = question.pool();
        let best = |score: &dyn Fn(&Candidate) -> Option<f64>| {
            let mut scored: Vec<(f64, usize)> = candidates
                .iter()
                .enumerate()
                .filter_map(|(i, candidate)| Some((score(candidate)?, i)))
                .collect();
            scored.sort_by(|a, b| order((a.0, &candidates[a.1]), (b.0, &candidates[b.1])));
            scored.truncate(size);
            scored.into_iter().map(|(_, i)| i).collect::<Vec<_>>()
        };
        let vector = best(&|candidate| candidate.cosine);
        let keyword = best(&|candidate| Some(candidate.bm25).filter(|score| *score > 0.0));
        let mut members = vec![false; candidates.len()];
        vector
            .iter()
            .chain(&keyword)
            .for_each(|i| members[*i] = true);
        Pools {
            size,
            vector,
            keyword,
            members,
        }
    }

    fn contains(&self, index: usize) -> bool {
        self.members[index]
    }

    fn reciprocal_ranks(&self, candidates: usize) -> Vec<Option<f64>> {
        let mut scores = vec![None; candidates];
        for pool in [&self.vector, &self.keyword] {
            for (rank, index) in pool.iter().enumerate() {
                *scores[*index].get_or_insert(0.0) += 1.0 / (RRF_K + (rank + 1) as f64);
            }
        }
        scores
    }

    /// A chunk outside both pools is, on each leg, no better than the last of a full pool, and
    /// absent from a leg whose pool is not full (threshold algorithm, Fagin et al. 2001).
    fn ceiling(
        &self,
        candidates: &[Candidate],
        question: &ShardQuestion,
        bound: f64,
    ) -> Option<f64> {
        if question.is_exact {
            return None;
        }
        let last = |pool: &[usize]| {
            (pool.len() == self.size)
                .then(|| pool.last().map(|i| &candidates[*i]))
                .flatten()
        };
        let cosine = last(&self.vector).and_then(|candidate| candidate.cosine);
        let bm25 = last(&self.keyword).map_or(0.0, |candidate| candidate.bm25);
        pointwise_score(question, bound, cosine, bm25)
    }
}
