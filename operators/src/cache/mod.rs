//! The answer cache as a maintained collection: a pure, deterministic state machine a worker.
//!
//! Idea: a cached answer stands on a *retrieval list*, the set of k chunks that the index returned
//! for its question. The answer is served exactly as long as a recomputation at the reader's own
//! time would return the same set. Nobody recomputes it: every entry freezes the statistics under
//! which it was scored, the score of its k-th member and that of the best outsider, and each
//! change of the index is tested against these numbers (PROTOCOLS §5; the mathematics is in
//! [`score`]).
//!
//! ```text
//!                       ┌──────────────── CacheShard (one a worker; owns leases by hash) ─────────┐
//! index changes at T ──▶│ ring of changes   watches: leases + entries        entries              │
//!  (broadcast)          │ (T0, T1] for  ──▶ member? margin? drift?  ──▶ alive / suspect / dead ──▶│─▶ events
//! Lease, Store, … at T ▶│ late leases       (one scan a changed chunk)       validity intervals   │
//!                       └─────────────────────────────────▲───────────────────────┬───────────────┘
//!                        Recheck (a retrieval re-run) ────┘     lookup(at, …) ◀────┘
//! ```
//!
//! A **watch** is what one question saw. It begins as a lease (nobody wrote an answer yet) and
//! becomes an entry by `Store`. It is *alive*; or *suspect*: a change came so close that only a
//! new retrieval can tell (not served, a recheck is asked for); or *dead*, with a cause.
//!
//! Invariants:
//! - an entry that is live at `T` has the same retrieval set at `T` (two-sided under exact
//!   retrieval, one-sided with an approximate index: PROTOCOLS §5.7);
//! - at each `T`: data changes, then leases, rechecks and stores, then TTL and capacity; events
//!   carry `T` itself;
//! - the same input gives the same events, whatever the number of shards, except that capacity
//!   and the pressure valve are counted a shard.
//!
//! Limits: one scope of statistics for all watches of a shard (per tenant later); under RRF each
//! arrival or departure makes every watch suspect.

pub mod gate;
mod lookup;
mod operations;
mod ring;
pub mod score;
mod shard;
mod watch;
mod watches;

#[cfg(test)]
mod law;

use std::sync::Arc;

use engine::limits;
use engine::model::{ChunkId, Key, Time};
use serde::{Deserialize, Serialize};

pub use gate::Features;
pub use lookup::{EntryView, Hit, LookupOutcome, NearMiss};
pub use score::Scoring;
pub use shard::CacheShard;

/// What became of a chunk in one tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It became visible, or it gained a leg (its late vector came): its state is a new arrival.
    Appeared,
    /// It is no longer visible.
    Vanished {
        /// The document does not exist after this tick (else it has a version without the chunk).
        document_deleted: bool,
    },
    /// It lives on, unchanged, in a new version of its document.
    Reversioned,
}

/// One chunk's state after a tick, as every leg of the index sees it.
///
/// Ticks are consolidated: at most one change a chunk; of several the last wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkChange {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Its document.
    pub key: Key,
    /// The document's version after the tick (for a deleted document: the version that deleted it).
    pub version: u64,
    /// What happened.
    pub kind: ChangeKind,
    /// The normalised vector, as the index scores it; `None` while it is absent from the vector
    /// leg. Needed for `Appeared` only.
    pub vector: Option<Arc<[f32]>>,
    /// (term hash, occurrences), each term once. Needed for `Appeared` only.
    pub terms: Arc<[(u64, u32)]>,
    /// Terms in the chunk, with repetition: BM25's document length.
    pub length: u32,
    /// Whether the caches' filter lets it be seen. `Appeared` with `false` equals `Vanished`.
    pub admitted: bool,
}

/// How a tick moved the global statistics of the keyword leg.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatisticsDelta {
    /// Live chunks, added minus removed.
    pub chunks: i64,
    /// Sum of their lengths in terms.
    pub length: i64,
    /// Chunks that contain a term, by term hash; each term once.
    pub df: Vec<(u64, i64)>,
}

impl StatisticsDelta {
    /// Nothing moved.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0 && self.length == 0 && self.df.iter().all(|(_, delta)| *delta == 0)
    }
}

/// The global statistics at one time, as far as one question needs them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Live chunks, N.
    pub chunks: u64,
    /// Sum of their lengths in terms.
    pub length: u64,
    /// df by the question's distinct terms; a missing term counts 0.
    pub df: Vec<(u64, u64)>,
}

impl Statistics {
    /// Chunks that contain `term`.
    pub fn df(&self, term: u64) -> u64 {
        self.df
            .iter()
            .find(|(known, _)| *known == term)
            .map_or(0, |(_, df)| *df)
    }
}

/// A lease of a look-up, and the watch that it starts. Unique for the life of the cache.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
pub struct LeaseId(pub u64);

/// A stored answer. Unique for the life of the cache.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
pub struct EntryId(pub u64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "l_{:016x}", self.0)
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "e_{:016x}", self.0)
    }
}

impl EntryId {
    /// Parses the `e_…` form of replies.
    pub fn parse(text: &str) -> Option<Self> {
        parse_id(text, "e_").map(EntryId)
    }
}

impl LeaseId {
    /// Parses the `l_…` form of replies.
    pub fn parse(text: &str) -> Option<Self> {
        parse_id(text, "l_").map(LeaseId)
    }

    /// The shard of `shards` that owns this lease, its entry and all operations on them. Equal in
    /// every process.
    pub fn shard(self, shards: usize) -> usize {
        (xxhash_rust::xxh3::xxh3_64(&self.0.to_le_bytes()) % shards.max(1) as u64) as usize
    }
}

fn parse_id(text: &str, prefix: &str) -> Option<u64> {
    let hex = text.strip_prefix(prefix)?;
    (hex.len() == 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u64::from_str_radix(hex, 16).ok())?
}

/// A question, as the cache compares and re-runs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// As it was asked.
    pub text: String,
    /// Its normalised vector; `None` on a keyword-only index.
    pub vector: Option<Arc<[f32]>>,
    /// Hashes of its analysed terms, *with* repetition.
    pub terms: Vec<u64>,
    /// Tenant, principal's permission fingerprint, index, pipeline version, parameters: equal
    /// bytes, equal scope. Never crossed.
    pub scope: Vec<u8>,
    /// The look-up's parameters as JSON text, for the recheck and for display (part of the scope).
    pub parameters: String,
}

/// One chunk of a retrieval list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Its document.
    pub key: Key,
    /// The document's version at the time of the retrieval.
    pub version: u64,
    /// The index's score (API §3): what ranked it.
    pub score: f64,
    /// Cosine, when it has a vector.
    pub cos: Option<f64>,
    /// Raw BM25.
    pub bm25: f64,
}

/// What one retrieval saw: the list, its margin, and the statistics it was scored with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// The time it is true for.
    pub read_at: Time,
    /// At most k members, best first.
    pub list: Vec<Member>,
    /// The k asked for: a shorter list means that every visible row is in it.
    pub k: usize,
    /// Score of the best visible row outside the list; `None` when there is none.
    pub best_outsider: Option<f64>,
    /// S0: the statistics at `read_at`.
    pub statistics: Statistics,
}

/// An operation on the cache, bound to a tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CacheOp {
    /// A look-up missed: watch what it saw, so that its answer can be stored.
    Lease {
        /// New, unique.
        lease: LeaseId,
        /// The question.
        question: Arc<Question>,
        /// What it saw.
        retrieval: Retrieval,
    },
    /// An answer for a lease. Decided at its own `T`.
    Store {
        /// Under which it was made.
        lease: LeaseId,
        /// New, unique; ignored when the same store was decided before.
        entry: EntryId,
        /// JSON text.
        answer: Arc<str>,
        /// Chunks of the lease's list that it cites; others are dropped.
        citations: Vec<ChunkId>,
    },
    /// An entry was served: it becomes the last that capacity evicts.
    Touch {
        /// Which entry.
        entry: EntryId,
    },
    /// Manual retraction.
    Forget {
        /// Which entry.
        entry: EntryId,
    },
    /// The outcome of a recheck that was asked for.
    Recheck {
        /// The watch, as named by [`EventKind::RecheckRequested`].
        watch: LeaseId,
        /// The question retrieved again at some `read_at`.
        retrieval: Retrieval,
    },
    /// Everything goes: the pipeline, the model or the index changed.
    InvalidateAll,
}

/// Why an entry was retracted or a lease died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A member is gone because its document changed.
    Changed,
    /// A member is gone with its document.
    Deleted,
    /// Another chunk entered the list.
    Entered,
    /// A permission changed (reserved).
    Permission,
    /// The pipeline changed.
    Pipeline,
    /// Its time was up.
    Ttl,
    /// It was the longest unused of too many.
    Capacity,
    /// Somebody deleted it.
    Manual,
    /// Leases only: it was read too long ago for the changes since to be known.
    TooOld,
}

impl Cause {
    /// The name in events and problems.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Changed => "changed",
            Cause::Deleted => "deleted",
            Cause::Entered => "entered",
            Cause::Permission => "permission",
            Cause::Pipeline => "pipeline",
            Cause::Ttl => "ttl",
            Cause::Capacity => "capacity",
            Cause::Manual => "manual",
            Cause::TooOld => "too_old",
        }
    }
}

/// A document at a version: what caused something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DocumentAt {
    /// Its key.
    pub key: Key,
    /// Its version (of a deleted document: the version that deleted it).
    pub version: u64,
}

/// Something died, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Death {
    /// Why.
    pub cause: Cause,
    /// The documents that caused it, ordered by key; empty for causes without one.
    pub by: Vec<DocumentAt>,
}

/// Why a store was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// What the lease saw is no longer true (409).
    NoLongerTrue(Death),
    /// The lease already carries another answer, in this entry (409).
    AlreadyStored(EntryId),
    /// The lease expired or never was (410).
    Gone,
    /// A citation that is not in the lease's retrieval list (422). The lease stays open.
    NotRetrieved(ChunkId),
}

/// Something happened to the cache at a time. Within one time events are ordered by
/// [`CacheEvent::rank`]; that order is total over all shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheEvent {
    /// When.
    pub at: Time,
    /// To what.
    pub lease: LeaseId,
    /// The entry, once the lease carries one.
    pub entry: Option<EntryId>,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EventKind {
    /// An answer is in the cache. Not served before `Reinstated` when `suspect`.
    Stored {
        /// What the lease saw is in doubt; a recheck was asked for.
        suspect: bool,
        /// The same store had been decided before; nothing happened.
        repeated: bool,
    },
    /// A store was refused; `entry` is `None`.
    Refused(Refusal),
    /// Not served from `at` on, until the recheck decides.
    Suspended,
    /// Served again from `at` on.
    Reinstated,
    /// Gone from `at` on.
    Retracted(Death),
    /// Run this question again, at any sealed time, and send [`CacheOp::Recheck`].
    RecheckRequested(Arc<Question>),
}

impl CacheEvent {
    /// The order of events within one time: data before stores before TTL, then by lease.
    pub fn rank(&self) -> (u8, LeaseId) {
        let phase = match &self.kind {
            EventKind::Reinstated => 0,
            EventKind::Stored { .. } | EventKind::Refused(_) => 2,
            EventKind::Suspended => 3,
            EventKind::RecheckRequested(_) => 4,
            EventKind::Retracted(death) => match death.cause {
                Cause::Ttl | Cause::Capacity => 5,
                _ => 1,
            },
        };
        (phase, self.lease)
    }
}

/// How a cache behaves: `CREATE CACHE`'s options and the bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// How the index ranks.
    pub scoring: Scoring,
    /// Dimensions of question and chunk vectors; 0 without a vector leg.
    pub dimensions: usize,
    /// Least cosine of a similarity hit.
    pub similarity: f64,
    /// Life of an entry, microseconds.
    pub ttl_micros: u64,
    /// Most entries of this *shard* that are not retracted.
    pub capacity: usize,
    /// Numeric slack of one score (ε): the greatest difference between the index's score of a
    /// chunk and ours. 1e-5 when both see the same f32 vectors; about 4e-3 when `ChunkChange`
    /// carries other bits than the index scores (bf16).
    pub epsilon: f64,
    /// Life of a lease, microseconds.
    pub lease_micros: u64,
    /// Changes that the ring keeps for leases read in the past.
    pub ring_changes_max: usize,
    /// Arrived chunks × watches of one tick; beyond, watches are suspended instead (PROTOCOLS §5.8).
    pub tick_work_max: usize,
}

impl CacheConfig {
    /// The declared defaults for an index that ranks by `scoring` over vectors of `dimensions`.
    pub fn new(scoring: Scoring, dimensions: usize) -> Self {
        CacheConfig {
            scoring,
            dimensions,
            similarity: 0.95,
            ttl_micros: 3_600_000_000,
            capacity: 100_000,
            epsilon: 1e-5,
            lease_micros: limits::LEASE_SECONDS * 1_000_000,
            ring_changes_max: limits::CACHE_RING_CHANGES_MAX,
            tick_work_max: limits::CACHE_TICK_WORK_MAX,
        }
    }
}
