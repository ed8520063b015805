//! From text to vector, off the workers.
//!
//! ```text
//! location ─▶ weights (path, model folder, hub, package index) ─▶ ModelFolder ─▶ PretrainedEmbedder
//! prepare, late path, questions ─▶ EmbedService ─ memo? ─ single flight ─ batches ─▶ Embedder ─▶ memo ─▶ callbacks
//! ```
//!
//! Reading order: [`model`] (what an encoder is made of), [`tokenizer`], [`weights`] with
//! [`hub`], [`package_index`] and [`download`] (where weights come from), [`service`] (the queue).
//!
//! Invariants: no operator waits for a model (PROTOCOLS §4); a `(model, content hash)` is embedded
//! once however many ask; a vector is never random or zero because weights are missing.

pub mod breaker;
pub mod download;
pub mod hub;
mod lane;
pub mod model;
pub mod package_index;
pub mod question_cache;
pub mod service;
pub mod tokenizer;
pub mod weights;

pub use model::{ModelFiles, PretrainedEmbedder, load, load_in};
pub use service::{EmbedConfig, EmbedService, Priority};
pub use weights::{Checked, ModelFolder, checked, find_in, list, list_of, pull, pull_in, verify};
