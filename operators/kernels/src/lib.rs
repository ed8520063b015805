//! Kernels: the tokenizer and the forward pass of BERT-family encoders, and nothing of Headwater's own.
//!
//! ```text
//! token ids ─▶ Encoder::encode ─▶ unit vector
//!               │ embeddings + LayerNorm
//!               │ layers × { QKV ─ attention ─ O + residual ─ LayerNorm ─ FFN1 ─ GELU ─ FFN2 + residual ─ LayerNorm }
//!               └ pooling, L2 norm
//! ```
//!
//! Reading order: [`reference`](mod@reference) (the pass as the textbook says it, in f64),
//! [`weights`] (what lies in the files), [`tile`] (the micro-kernel), [`rows`] and [`linear`] (packed
//! activations and weights around it), [`attention`], [`encoder`]; [`kernel`] chooses between f32,
//! bf16 and int8. [`cross`] puts a reranker's head on the encoder; [`statics`] needs none. [`tokenizer`]
//! (text to token ids) and [`cuda`] (the same pass on a GPU) stand beside them.
//!
//! Invariants: a text goes through all layers with no padding and no threads inside, and a row's bits
//! never depend on other rows, so a vector never depends on what else is in a batch
//! (*batch-invariance*, bitwise on one machine). This crate is the only home of `unsafe`; it lies in
//! [`tile`] and `wide` (instructions), [`lines`] (what a cache line may be seen as), and the parts of
//! [`cuda`] that speak with the driver.
//! Limits: absolute positions, post-norm, erf GELU (BERT, MiniLM, BGE, E5, GTE v1).

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod attention;
pub mod cross;
pub mod cuda;
pub mod encoder;
pub mod kernel;
pub mod linear;
pub mod lines;
pub mod math;
pub mod reference;
pub mod rows;
pub mod statics;
pub mod tile;
pub mod tokenizer;
pub mod weights;
mod wide;

pub use cross::{CrossEncoder, Head};
pub use encoder::{Encoder, Pooling, Scratch};
pub use kernel::{Kernel, UnknownPrecision};
pub use linear::{Bf16Linear, F32Linear, Int8Linear, PackedLinear};
pub use statics::StaticEncoder;
pub use weights::{BertConfig, Weights, WeightsError};
