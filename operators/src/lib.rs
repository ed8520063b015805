//! What the engine does to documents between the input log and an answer: cutting texts, asking
//! models, indexing, retrieving.

pub mod chunk;
