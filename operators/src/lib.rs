//! The operators of the dataflow: what is done to changes between a source and an answer.

pub mod cache;
