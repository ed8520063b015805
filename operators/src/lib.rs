//! The operators of the dataflow: what is done to changes between the input log and an answer.
//!
//! ```text
//! text ─ chunk ─▶ pieces ─ embed ─▶ vectors ─▶ index (shards) ─▶ candidates, fused ─▶ cache
//! ```
//!
//! Reading order: [`chunk`] (where texts are cut), [`embed`] (models and their queue), [`index`] (a
//! worker's retrieval shard), [`cache`] (answers that live as long as they are true). All of them
//! are plain data structures: what wires them to time is `queries::render`.

pub mod cache;
pub mod chunk;
pub mod embed;
pub mod index;
