//! Headwater: a dataflow stream-processing engine for live retrieval.
//!
//! Reading order: [`app`] (the composition root: where engine, models, connectors and the front door
//! become one program), [`wiring`] (what they are given), [`cli`] (the commands), [`client`] (how
//! commands talk to a running server), [`demo`] (the main job, step by step, over HTTP only).

/// Rows are made by a source's thread and freed by the workers': the C library's allocator pays for
/// that with locks and trimming (docs/benchmarks.md, Kafka to rows).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod app;
pub mod cli;
pub mod client;
pub mod demo;
pub mod wiring;
