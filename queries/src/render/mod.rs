//! From declarations to dataflows: what runs on every worker.
//!
//! ```text
//!            rows at T                   facts at T                       operations at T
//!  source ──▶ upsert ══ documents ══╗        │                                  │
//!                        (arranged) ╠══▶ index: chunk · shard (vectors, BM25) ──┼──▶ caches
//!  view  ◀══ program ◀══════════════╝        legs' changes, broadcast ──────────┘      │
//!                                                                       events ◀───────┘
//!  question at T ──▶ [statistics at T] ─broadcast─▶ [own shard] ─▶ gather at worker 0 ─▶ reply
//! ```
//!
//! [`Pipeline`] holds what all workers of a process share: declarations, models, the builder
//! threads. [`WorkerProgram`] is one worker's part of it. Invariants: rendering is a pure function
//! of the declaration; every worker renders everything in the same order; a question's dataflow
//! ends by itself.

mod ask;
mod cache;
mod changes;
mod index;
mod pipeline;
mod program;
mod question;
mod relation;
mod upsert;

pub use pipeline::{
    ChunkMemo, Declared, IndexSpec, IndexedValue, ModelKind, ModelLoader, Pipeline, VectorBytes,
    chunking, vector_content,
};
pub use program::{WorkerProgram, follow};
pub use question::{
    Answer, ChangesQuestion, DocumentAnswer, EntryAnswer, LookupAnswer, LookupQuestion,
    MissingChunk, Operation, ProgramReply, Question, SearchAnswer, SearchQuestion,
};
