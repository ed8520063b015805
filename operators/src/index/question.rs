//! What is asked of a shard and what it gives back: plain, serialisable values that cross workers.
//!
//! ```text
//! Question ──▶ Shard::statistics ─(sum over shards)─▶ Statistics ──▶ Shard::search ──▶ [Candidate] ─▶ merge
//! ```

use std::sync::Arc;

use engine::model::{ChunkId, Key, Row};
use serde::{Deserialize, Serialize};

use super::{DocumentState, Term};

/// Which legs a question wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Mode {
    /// Both, as far as the question and the index have them.
    #[default]
    Hybrid,
    /// Cosine only.
    Vector,
    /// BM25 only.
    Keyword,
}

/// How two legs make one score (API §3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Fusion {
    /// w · (1 + cos)/2 + (1 − w) · bm25 / Σ idf · 2.2: pointwise, in [0, 1].
    Convex {
        /// Weight w of the vector leg, in [0, 1].
        weight: f64,
    },
    /// Σ 1 / (60 + rank in a leg's pool), ranks from 1.
    Rrf,
}

impl Default for Fusion {
    fn default() -> Self {
        Fusion::Convex { weight: 2.0 / 3.0 }
    }
}

/// Which of the two legs something concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Legs {
    /// The vector leg.
    pub vector: bool,
    /// The keyword leg.
    pub keyword: bool,
}

impl Legs {
    /// Neither leg.
    pub fn is_empty(self) -> bool {
        !self.vector && !self.keyword
    }
}

/// One question as every shard sees it. The filter travels beside it, see [`Filter`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct ShardQuestion {
    /// The question's vector, unit length (see [`super::unit`]); `None` leaves the keyword leg.
    pub vector: Option<Arc<[f32]>>,
    /// Distinct terms with how often the question repeats them; `None` leaves the vector leg,
    /// an empty list scores 0 on it.
    pub terms: Option<Arc<[(Term, u32)]>>,
    /// How many hits.
    pub k: usize,
    /// Which legs.
    pub mode: Mode,
    /// How to fuse them.
    pub fusion: Fusion,
    /// Exact scan of the vector leg; under convex fusion every live chunk is a candidate.
    pub is_exact: bool,
    /// At most so many chunks of one document.
    pub per_document: Option<usize>,
    /// Hits below this score are left out.
    pub min_score: Option<f64>,
}

impl ShardQuestion {
    /// The legs that answer: those wanted and provided for.
    pub fn legs(&self) -> Legs {
        Legs {
            vector: self.mode != Mode::Keyword && self.vector.is_some(),
            keyword: self.mode != Mode::Vector && self.terms.is_some(),
        }
    }

    /// Distinct terms, for [`super::Shard::statistics`]; empty without a keyword leg.
    pub fn distinct_terms(&self) -> Vec<Term> {
        self.weighted_terms()
            .iter()
            .map(|(term, _)| *term)
            .collect()
    }

    /// Terms with repetitions; empty without a keyword leg.
    pub(crate) fn weighted_terms(&self) -> &[(Term, u32)] {
        match &self.terms {
            Some(terms) if self.legs().keyword => terms,
            _ => &[],
        }
    }

    /// Candidates of each leg: max(64, 8k).
    pub fn pool(&self) -> usize {
        engine::limits::CANDIDATES_MIN.max(self.k.saturating_mul(engine::limits::CANDIDATES_PER_K))
    }
}

/// Decides which documents a question may see, from their attributes, by batch: one answer a row,
/// in order; a missing answer is a refusal. Policy, WHERE and tenant all go in here.
pub type Filter<'a> = &'a dyn Fn(&[&Row]) -> Vec<bool>;

/// N, Σ length and document frequencies at one time, over live chunks, whatever the filter.
/// Sums over shards by [`Statistics::add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Statistics {
    /// Live chunks, N.
    pub chunks: u64,
    /// Σ of their lengths in terms.
    pub length: u64,
    /// Live chunks that contain a term, parallel to the terms asked for.
    pub frequencies: Vec<u64>,
}

impl Statistics {
    /// Adds another shard's statistics of the same terms.
    pub fn add(&mut self, other: &Statistics) {
        self.chunks += other.chunks;
        self.length += other.length;
        if self.frequencies.len() < other.frequencies.len() {
            self.frequencies.resize(other.frequencies.len(), 0);
        }
        for (sum, more) in self.frequencies.iter_mut().zip(&other.frequencies) {
            *sum += more;
        }
    }

    /// idf of the `index`-th term: ln(1 + (N − df + ½)/(df + ½)).
    pub fn idf(&self, index: usize) -> f64 {
        let frequency = self.frequencies.get(index).copied().unwrap_or(0) as f64;
        (1.0 + (self.chunks as f64 - frequency + 0.5).max(0.0) / (frequency + 0.5)).ln()
    }

    /// Mean length of a chunk in terms; 1 when there is nothing to average.
    pub fn average_length(&self) -> f64 {
        if self.length == 0 {
            1.0
        } else {
            self.length as f64 / self.chunks as f64
        }
    }

    /// Σ over the question's terms of idf · 2.2, the least upper bound of BM25; 0 without terms.
    pub fn bound(&self, question: &ShardQuestion) -> f64 {
        let terms = question.weighted_terms().iter().enumerate();
        terms
            .map(|(i, (_, times))| f64::from(*times) * self.idf(i) * 2.2)
            .sum()
    }
}

/// One chunk that may be among the answers, with both scores where the question has the legs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its document.
    pub document: Key,
    /// Where it stands among the chunks of `state`, from 0.
    pub ordinal: u32,
    /// The document as of the question's time: version, attributes, text, pieces.
    pub state: Arc<DocumentState>,
    /// Cosine; `None` without a vector leg, or while the chunk waits for its vector.
    pub cosine: Option<f64>,
    /// Raw BM25; 0 when no term matches or there is no keyword leg.
    pub bm25: f64,
}
