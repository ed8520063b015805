//! Numeric kernels: the forward pass of BERT-family encoders, and nothing of Headwater's own.
//!
//! ```text
//! token ids ─▶ Encoder::encode ─▶ unit vector
//!               │ embeddings + LayerNorm
//!               │ layers × { QKV ─ attention ─ O + residual ─ LayerNorm ─ FFN1 ─ GELU ─ FFN2 + residual ─ LayerNorm }
//!               └ pooling, L2 norm
//! ```
//!
//! Reading order: [`reference`](mod@reference) (the pass as the textbook says it, in f64),
//! [`weights`] (what lies in the files), [`linear`] (the seam for faster matrix products),
//! [`panels`] (the one in full precision), [`math`], [`attention`], [`encoder`].
//!
//! Invariants: one text at a time goes through all layers with no padding and no threads inside,
//! so a vector never depends on what else is in a batch (*batch-invariance*, bitwise on one
//! machine). This crate is the only home of `unsafe`; today that is one call, in [`linear`].
//! Limits: absolute positions, post-norm, erf GELU (BERT, MiniLM, BGE, E5, GTE v1); f32.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod attention;
pub mod cuda;
pub mod encoder;
pub mod linear;
pub mod math;
pub mod panels;
pub mod reference;
pub mod weights;

pub use encoder::{Encoder, Pooling, Scratch};
pub use linear::PackedLinear;
pub use panels::F32Linear;
pub use weights::{BertConfig, Weights, WeightsError};
