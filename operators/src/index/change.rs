//! What a change did to the legs: the input of the answer cache (PROTOCOLS §5).

use std::sync::Arc;

use engine::model::{ChunkId, Key, Row, Time};
use serde::{Deserialize, Serialize};

use super::{Legs, Term};

/// A chunk as the cache tests it against its entries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkFact {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its document.
    pub document: Key,
    /// The document's version that brought the change.
    pub version: u64,
    /// Distinct terms and how often they occur, ordered by term. Empty without a keyword leg.
    pub terms: Arc<[(Term, u32)]>,
    /// Length in terms.
    pub length: u32,
    /// The vector; `None` while missing. Score it by [`super::cosine_as_stored`].
    pub vector: Option<Arc<[f32]>>,
    /// The document's attributes, for filters.
    pub attributes: Row,
}

/// How the corpus statistics moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct StatisticsDelta {
    /// ΔN.
    pub chunks: i64,
    /// ΔΣ length.
    pub length: i64,
    /// Δdf by term, ordered by term, no zeros.
    pub frequencies: Vec<(Term, i64)>,
}

impl StatisticsDelta {
    /// Whether nothing moved.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0 && self.length == 0 && self.frequencies.is_empty()
    }
}

/// One consequence of one `apply_*`, true from `at` on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LegChange {
    /// The chunk joined these legs. A late vector joins the vector leg only; the fact then carries
    /// the terms as well, as the fused score needs both.
    Appeared {
        /// When.
        at: Time,
        /// Which legs.
        legs: Legs,
        /// The chunk.
        fact: ChunkFact,
    },
    /// The chunk left every leg it was in. The fact carries no terms and no vector; `version` and
    /// `attributes` are those of the document it leaves.
    Vanished {
        /// When.
        at: Time,
        /// Which legs.
        legs: Legs,
        /// The chunk.
        fact: ChunkFact,
    },
    /// The chunk lives on under a new version or new attributes of its document.
    Reversioned {
        /// When.
        at: Time,
        /// The chunk as it is from now on, complete.
        fact: ChunkFact,
        /// The attributes before, to see whether a filter changes its mind.
        previous_attributes: Row,
    },
    /// The statistics moved; at most one, last, in each reply.
    Statistics {
        /// When.
        at: Time,
        /// By how much.
        delta: StatisticsDelta,
    },
}
