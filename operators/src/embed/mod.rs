//! From text to vector, off the workers.
//!
//! ```text
//! location ─▶ weights (path, model folder, hub, package index) ─▶ ModelFolder ─▶ PretrainedEmbedder ─▶ shape
//! URL, key, limits ─▶ RemoteEmbedder
//! prepare, late path, questions ─▶ EmbedService ─ memo? ─ single flight ─ batches ─▶ Embedder ─▶ memo ─▶ callbacks
//! ```
//!
//! Reading order: [`model`] (what an encoder is made of), [`static_model`] (the cheap tier), [`gpu`] (the same on devices), [`tokenizer`], [`weights`] with
//! [`hub`], [`package_index`] and [`download`] (where weights come from), [`shape`] (prompts, shorter
//! vectors), [`remote`] (a model behind HTTP), [`service`] (the queue: [`queue`] who is next, [`lane`]
//! what is done with a batch).
//!
//! Invariants: no operator waits for a model (PROTOCOLS §4); a `(model, content hash)` is embedded
//! once however many ask; a vector is never random or zero because weights are missing.

pub mod breaker;
mod cut;
pub mod download;
pub mod gpu;
pub mod hub;
mod lane;
mod layout;
pub mod measure;
pub mod model;
pub mod package_index;
pub mod question_cache;
mod queue;
mod refused;
pub mod remote;
pub mod service;
pub mod shape;
pub mod static_model;
pub mod tokenizer;
pub mod weights;

pub use kernels::Kernel;
pub use measure::{Measured, measure};
pub use model::{Local, LocalModel, ModelFiles, PretrainedEmbedder, load, load_in, local, placed};
pub use remote::{RemoteEmbedder, RemoteOptions};
pub use service::{EmbedConfig, EmbedService, Priority, TextKind, Urgency};
pub use shape::{Prompts, Shape, shaped, truncated};
pub use weights::{Checked, ModelFolder, checked, find_in, list, list_of, pull, pull_in, verify};
