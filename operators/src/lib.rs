//! Operators: what happens between a source's rows and an answer.
//!
//! - [`index`]: a worker's retrieval shard of one index.

pub mod index;
//! The operators of the dataflow: what is done to changes between a source and an answer.

pub mod cache;
//! What the engine does to documents between the input log and an answer: cutting texts, asking
//! models, indexing, retrieving.

pub mod chunk;
