//! Test doubles and law suites for every crate above the ground floor (feature `testing`).
//!
//! Each contract has a law suite that all its implementations run, and a deterministic double
//! whose delays and failures are scripted.

mod embedding_server;
mod hashed;
mod laws;
mod memory_store;
mod source_laws;
mod store_laws;
mod vector_index_laws;

pub use embedding_server::{Act, EmbeddingServer};
pub use hashed::{HashedEmbedder, MemoryMemo};
pub use laws::embedder_laws;
pub use memory_store::{Faults, MemoryStore};
pub use source_laws::{Recorded, ScriptedSink, SourceRun, source_laws};
pub use store_laws::store_laws;
pub use vector_index_laws::{ExactIndex, vector_index_laws};

pub use crate::runtime::VirtualClock;
