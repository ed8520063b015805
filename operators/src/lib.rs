//! Operators: what happens between a source's rows and an answer.
//!
//! - [`index`]: a worker's retrieval shard of one index.

pub mod index;
