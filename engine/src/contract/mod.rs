//! The narrow waists: what an implementation must promise, with a law suite beside each trait
//! (feature `testing`) that every implementation runs.
//!
//! | trait | implementations |
//! |---|---|
//! | [`Source`] | files, git, generate, Kafka, PostgreSQL (connectors) |
//! | [`Sink`] | kafka (connectors) |
//! | [`Embedder`] | MiniLM on CPU (operators); hashed (testing) |
//! | [`VectorMemo`] | the embedding store (durable) |
//! | [`Store`] | local directory (durable); memory with injected failures (testing) |
//! | [`VectorIndex`] | graphs of usearch (operators); exact (testing) |
//!
//! What a source of Kafka or PostgreSQL must promise is tested against real servers instead
//! (`tests/systems`): a script cannot play them.

mod embedder;
mod sink;
mod source;
mod store;
mod vector_index;

pub use embedder::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans, VectorMemo};
pub use sink::{
    ChangeFeed, ChangePage, FeedError, ForeignProgress, NextPage, RowChange, Sink, SinkContext,
    SinkPhase, SinkRun, SinkRuns, SinkState, SinkStatus,
};
pub use source::{LaneSink, Part, Resume, SinkClosed, Source, SourceBatch, SourceContext, Waits};
pub use store::{AppendFile, Store};
pub use vector_index::VectorIndex;
