//! One worker's retrieval shard of one index: vectors, keywords and documents, readable at any time
//! within retention.
//!
//! ```text
//!                      ┌─ documents ── versions (attributes, text, slots in text order)
//! apply_document ──▶ slots (one life of one chunk: from ≤ T < to)
//! apply_vector         ├─ vector leg ── head (scanned) → generations (graphs, built elsewhere)
//!                      ├─ keyword leg ── postings + forward index, exact statistics
//!                      └─ ledger ── N, Σ length, df, pending documents at T
//! question ──▶ statistics(T) ─ sum over shards ─▶ search(T) ──▶ merge ──▶ hits, margins
//! ```
//!
//! Laws, held by the tests against a naive model, at every `since ≤ T ≤ now` and whatever the
//! maintenance did: exact searches return what a recomputation from all changes ≤ T returns;
//! statistics and pending documents are exact; results do not depend on the number of shards.
//! Approximate searches may lack recall, never visibility.
//!
//! Pure data structures: no dataflow, no clock (except to pace maintenance), no I/O.

mod analyzer;
mod best;
mod builder;
mod change;
mod documents;
mod fuse;
mod kernel;
mod keyword;
mod ledger;
mod question;
mod search;
mod shard;
mod slots;
mod stop_words;
mod usearch;
mod vectors;

#[cfg(test)]
mod tests;

pub use analyzer::{Analyzer, Term};
pub use builder::{BuildJob, BuilderHandle};
pub use change::{ChunkFact, LegChange, StatisticsDelta};
pub use fuse::{Merged, Ranked, merge, pointwise_score};
pub use kernel::{Quantization, cosine_as_stored, unit};
pub use question::{Candidate, Filter, Fusion, Legs, Mode, ShardQuestion, Statistics};
pub use shard::{
    ChunkView, DocumentState, DocumentView, Maintenance, Shard, ShardChunk, ShardConfig, ShardSizes,
};
pub use usearch::acceleration;
