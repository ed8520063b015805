//! Operators: what happens between a source's rows and an answer.
//!
//! - [`index`]: a worker's retrieval shard of one index.

pub mod index;
//! The operators of the dataflow: what is done to changes between a source and an answer.

pub mod cache;
