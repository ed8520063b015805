//! The narrow waists: what an implementation must promise, with a law suite beside each trait
//! (feature `testing`) that every implementation runs.
//!
//! | trait | implementations |
//! |---|---|
//! | [`Source`] | files, generate, push (connectors); scripted (testing) |
//! | [`Sink`] | kafka (connectors) |
//! | [`Embedder`] | MiniLM on CPU (operators); hashed (testing) |
//! | [`VectorMemo`] | the embedding store (durable) |
//! | [`Store`] | local directory (durable); memory with injected failures (testing) |
//!
//! The fourth waist, the vector index, lives beside its users in `operators::index`.

mod embedder;
mod sink;
mod source;
mod store;

pub use embedder::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans, VectorMemo};
pub use sink::{
    ChangeFeed, ChangePage, FeedError, ForeignProgress, NextPage, RowChange, Sink, SinkContext,
    SinkPhase, SinkRun, SinkRuns, SinkState, SinkStatus,
};
pub use source::{LaneSink, Part, Resume, SinkClosed, Source, SourceBatch, SourceContext, Waits};
pub use store::{AppendFile, Store};
