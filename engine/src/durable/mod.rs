//! What survives: one input log, the vectors that it refers to, and the folder they lie in.
//!
//! ```text
//!                    append ──▶ [queue] ──▶ writer thread ──▶ log-0000000007.hwl ─┐ group commit:
//!  sequencer, sinks                            │ first: EmbeddingStore::flush     │ one sync, many
//!                    ◀── on_durable, listener ─┘                                  │ records
//!                                                                                 ▼
//!  restart:  log.manifest ─▶ base segments ─▶ log segments ─▶ Replay ─▶ Replayed* in order
//!  compact:  sealed segments at or before `since` ─▶ new base segments ─▶ swap in log.manifest
//! ```
//!
//! Invariants:
//! - *acknowledged = synced*: a callback with `Ok` and the durable watermark come after the sync;
//! - a durable `Tick` never refers to a vector whose bytes are not synced;
//! - a crash at any point leaves a prefix of what was appended that contains all of what was
//!   acknowledged, and either the old or the compacted segments, never a mixture;
//! - damaged bytes that were once durable are reported with file and offset, never skipped. The
//!   one thing that cannot be told from a crash is damage to the last group before the end.
//!
//! Limits: the log is one stream of one process; replay reads all of it (checkpoints that
//! shorten it come later and will stand beside the base).

pub mod compact;
pub mod frame;
pub mod local;
pub mod log;
mod manifest;
pub mod record;
pub mod replay;
mod sinks;
mod vector_file;
pub mod vectors;
mod writer;

pub use compact::{CompactOptions, Compacted};
pub use local::LocalStore;
pub use log::{InputLog, LogFailure, LogOptions, LogSequence, OnDurable};
pub use record::{
    BaseLetters, BaseReply, BaseRow, BaseRows, BoundTick, Ddl, Held, Idempotency, LaneRange,
    LaneState, Record, Replayed, Stage, Tick, Unbound, is_admitted, is_forgotten,
};
pub use replay::Replay;
pub use sinks::SinkNotes;
pub use vectors::{Collected, EmbeddingStore, VectorOptions};
