//! A slot's matrices: what passes between the kernels of one pass.
//!
//! ```text
//!   x, qkv, context, sum, wide    [tokens, …]        first, pooled, out    [texts, …]
//! ```
//!
//! Invariants: sizes are those that [`super::arena`] added up; nothing is cleared, kernels read only what kernels before
//! them wrote.

use super::arena::{Arena, piece, shapes};
use super::batch::Bucket;
use super::device::Tensor;
use super::encoder::{Precision, Recipe};
use super::int8::Quantized;
use crate::weights::BertConfig;

/// Rows for the largest batch of one slot.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    pub(super) x: Tensor,
    pub(super) qkv: Tensor,
    pub(super) context: Tensor,
    pub(super) sum: Tensor,
    pub(super) wide: Tensor,
    pub(super) first: Tensor,
    pub(super) pooled: Tensor,
    /// `[texts, width]`, f32: what a pass leaves.
    pub out: Tensor,
    /// With [`Precision::Int8`].
    pub(super) bytes: Option<ByteBuffers>,
}

/// x as bytes, and what is between the feed-forward products.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteBuffers {
    pub(super) x: Quantized,
    pub(super) wide: Quantized,
}

impl Buffers {
    /// Carves them, for passes up to a bucket.
    pub(super) fn take(
        config: &BertConfig,
        width: usize,
        recipe: Recipe,
        most: Bucket,
        arena: &mut Arena,
    ) -> Buffers {
        let shapes = shapes(config, width, recipe, most);
        let mut tensors = shapes.into_iter().map(|(rows, columns, kind)| Tensor {
            address: arena.take(rows * columns * kind.bytes()),
            rows,
            columns,
            kind,
        });
        let mut next = || tensors.next().expect("as many shapes");
        let mut buffers = Buffers {
            x: next(),
            qkv: next(),
            context: next(),
            sum: next(),
            wide: next(),
            first: next(),
            pooled: next(),
            out: next(),
            bytes: None,
        };
        if recipe.precision == Precision::Int8 {
            let mut quantized = || Quantized {
                bytes: next(),
                scales: next(),
            };
            buffers.bytes = Some(ByteBuffers {
                x: quantized(),
                wide: quantized(),
            });
        }
        buffers
    }

    /// Device memory for passes up to a bucket.
    pub(super) fn room(config: &BertConfig, width: usize, recipe: Recipe, most: Bucket) -> usize {
        let shapes = shapes(config, width, recipe, most).into_iter();
        let bytes = shapes.map(|(rows, columns, kind)| piece(rows * columns * kind.bytes()));
        bytes.sum()
    }

    /// The same buffers with the rows of a smaller bucket.
    pub(super) fn within(&self, bucket: Bucket) -> Buffers {
        let rows = |tensor: Tensor, rows: usize| Tensor {
            rows: rows.min(tensor.rows),
            ..tensor
        };
        Buffers {
            x: rows(self.x, bucket.tokens),
            qkv: rows(self.qkv, bucket.tokens),
            context: rows(self.context, bucket.tokens),
            sum: rows(self.sum, bucket.tokens),
            wide: rows(self.wide, bucket.tokens),
            first: rows(self.first, bucket.texts),
            pooled: rows(self.pooled, bucket.texts),
            out: rows(self.out, bucket.texts),
            bytes: self.bytes.map(|ByteBuffers { x, wide }| {
                let of = |quantized: Quantized| Quantized {
                    bytes: rows(quantized.bytes, bucket.tokens),
                    scales: rows(quantized.scales, bucket.tokens),
                };
                ByteBuffers {
                    x: of(x),
                    wide: of(wide),
                }
            }),
        }
    }
}
