//! The encoder on a CUDA device: hand-written kernels, and everything around them.
//!
//! ```text
//!  texts ─▶ service ─▶ batch ─▶ engine ─▶ encoder ─▶ layer ─▶ linear, join, feed, int8, attention, … ─▶ device
//!           queue,     packed   slots,    a model's   a launch each, shapes checked    │
//!           retry,     without  graphs    buffers                                      ├ driver: CUDA, by cudarc
//!           CPU        padding            and order                                    └ (tests) an emulated GPU
//! ```
//!
//! Reading order: docs/kernels.md, which explains the kernels with pictures; [`device`] (the seam),
//! [`tiles`] (index maps), [`cluster`] (grids), [`linear`], [`join`], [`feed`], [`int8`], [`feed_int8`], [`attention`], [`norm`],
//! [`pool`], [`whole`] beside `cuda/<op>.cu`, [`oracle`] (what they must compute), [`batch`], [`recipe`] (which of
//! them), [`encoder`], [`engine`], [`service`], [`choose`] and [`driver`].
//!
//! Invariants: nothing here needs a GPU, a driver or a toolkit to build or to start; a text's vector
//! is bitwise the same whatever shares its batch, on one device and stage; `unsafe` lives in
//! [`driver`], [`devices`] and `nvrtc` only. Limits: BERT-family encoders, hidden ≤ 1,024, heads of 32 or 64; halves, and bytes of them, on the
//! device (weights beyond ±65,504 are refused, states beyond it are computed again by the CPU).

pub mod arena;
pub mod attention;
pub mod batch;
mod buffers;
pub mod choose;
pub mod cluster;
pub mod device;
pub mod devices;
pub mod driver;
pub mod encoder;
pub mod engine;
pub mod feed;
pub mod feed_int8;
pub mod image;
pub mod int8;
mod items;
pub mod join;
mod layer;
pub mod linear;
mod load;
pub mod norm;
mod nvrtc;
pub mod oracle;
pub mod pool;
pub mod recipe;
pub mod service;
mod shift;
pub mod sources;
pub mod tiles;
pub mod whole;
mod worker;

pub use batch::{Batch, Text};
pub use device::{Device, Fault, Stage};
pub use service::{Class, Service, Settings, Ticket};
