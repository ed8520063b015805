//! Linear layers with packed weights: one trait, three formats.
//!
//! ```text
//! for each panel of 32 columns        (its weights are read once, from far away)
//!   for each tile of ≤ 12 rows        (from the second-level cache)
//!     sums = tile · panel             tile.rs: the micro-kernel
//!     y = sums (· scales) + bias      int8: scale of the row × scale of the column
//!     output ← y | GELU(y) | output + y
//! ```
//!
//! Weights: f32 as they are; bf16 rounded; int8 rotated as the rows are, with a scale for each
//! column (its largest weight is 127). Int8 rows are affine (see [`crate::rows`]), so the row's offset times the column's sum of
//! weights is added too.
//!
//! Invariants: an output depends on its own row and column only, bitwise; weights are packed once, at
//! load, in the same layout for every instruction set; no thread inside, nothing allocated.

mod apply;

use std::ops::Range;

use apply::{Finish, Panels};

use crate::math::{self, Norm};
use crate::rows::{Tiles, rotate_weights};
use crate::tile::{Format, PANEL_COLUMNS, TileKernel};
use crate::wide::{LANES, Wide};

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Replaces the output.
    Store,
    /// Replaces the output by GELU of the product.
    Gelu(Erf),
    /// Is added onto the output: the residual connection.
    Add,
}

/// Which error function GELU takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erf {
    /// Within f32's rounding.
    Exact,
    /// Within 1e-4, without a division: less than what rounding GELU's output to bf16 or int8 costs.
    Short,
}

/// A linear layer, `x·Wᵀ + b`, whose weights were laid out for the micro-kernel of one format.
pub trait PackedLinear: Send + Sync {
    /// What the tiles must hold.
    fn format(&self) -> Format;
    /// Columns of the input.
    fn inputs(&self) -> usize;
    /// Columns of the output.
    fn outputs(&self) -> usize;
    /// Bytes held for the weights.
    fn resident_bytes(&self) -> usize;
    /// Multiplies all rows of `tiles` with the columns in `columns` (from a multiple of 32 to one, or
    /// to the end). `output` holds these columns only, `stride` elements from a row to the next.
    ///
    /// Cost: 2 · rows · inputs · columns operations. Panics when a slice is too short.
    fn apply(
        &self,
        tiles: &Tiles,
        columns: Range<usize>,
        epilogue: Epilogue,
        output: &mut [f32],
        stride: usize,
    );

    /// Rounds `rows` rows of the input into tiles.
    fn pack_rows(&self, rows: usize, input: &[f32], tiles: &mut Tiles) {
        tiles.reset(self.format(), rows, self.inputs());
        tiles.store(self.inputs(), input);
    }

    /// Normalises `rows` rows of the input in place and rounds them into tiles.
    fn pack_normalized(&self, rows: usize, norm: &Norm, input: &mut [f32], tiles: &mut Tiles) {
        tiles.reset(self.format(), rows, self.inputs());
        tiles.store_normalized(norm, input);
    }
}

/// Adds the bias.
#[derive(Clone, Copy)]
struct Float<'a> {
    bias: &'a [f32],
}

impl Finish for Float<'_> {
    type Columns<V: Copy> = V;

    #[inline(always)]
    fn columns<W: Wide>(self, w: W, column: usize) -> W::V {
        w.load(lanes_of(self.bias, column))
    }

    #[inline(always)]
    fn values<W: Wide>(self, w: W, bias: W::V, _: [f32; 2], sums: &[u32; LANES]) -> W::V {
        w.add(w.load_bits(sums), bias)
    }
}

/// Scales by row and column, adds the row's offset times the column's weights, and the bias.
#[derive(Clone, Copy)]
struct Scaled<'a> {
    scales: &'a [f32],
    sums: &'a [f32],
    bias: &'a [f32],
}

impl Finish for Scaled<'_> {
    /// Scales, sums of weights, biases.
    type Columns<V: Copy> = [V; 3];

    #[inline(always)]
    fn columns<W: Wide>(self, w: W, column: usize) -> [W::V; 3] {
        [
            w.load(lanes_of(self.scales, column)),
            w.load(lanes_of(self.sums, column)),
            w.load(lanes_of(self.bias, column)),
        ]
    }

    #[inline(always)]
    fn values<W: Wide>(
        self,
        w: W,
        [scales, weights, bias]: [W::V; 3],
        [scale, offset]: [f32; 2],
        sums: &[u32; LANES],
    ) -> W::V {
        let constant = w.fma(w.splat(offset), weights, bias);
        w.fma(
            w.load_integers(sums),
            w.mul(w.splat(scale), scales),
            constant,
        )
    }
}

/// Sixteen columns out of a row that is padded to whole panels.
#[inline(always)]
fn lanes_of(row: &[f32], column: usize) -> &[f32; LANES] {
    row[column..].first_chunk().expect("padded to whole panels")
}

macro_rules! float_linear {
    ($(#[$doc:meta])* $name:ident, $format:expr, $bits:expr) => {
        $(#[$doc])*
        pub struct $name(Panels);

        impl $name {
            /// Packs a layer from the checkpoint's layout, `weight[outputs, inputs]` row-major, for
            /// the best instruction set of this machine.
            ///
            /// Panics when the lengths disagree; [`crate::weights`] has checked shapes before.
            pub fn pack(weight: &[f32], bias: Vec<f32>) -> Self {
                Self::pack_for(TileKernel::best($format), weight, bias)
            }

            /// The same for a kernel of one's choice, which must be of this format.
            pub fn pack_for(kernel: TileKernel, weight: &[f32], bias: Vec<f32>) -> Self {
                $name(Panels::pack(kernel, $format, weight, bias, |_, w| $bits(w)))
            }
        }

        impl PackedLinear for $name {
            fn format(&self) -> Format {
                $format
            }

            fn inputs(&self) -> usize {
                self.0.inputs
            }

            fn outputs(&self) -> usize {
                self.0.outputs
            }

            fn resident_bytes(&self) -> usize {
                self.0.resident_bytes()
            }

            fn apply(
                &self,
                tiles: &Tiles,
                columns: Range<usize>,
                epilogue: Epilogue,
                output: &mut [f32],
                stride: usize,
            ) {
                let finish = Float { bias: &self.0.bias };
                self.0.apply(tiles, columns, epilogue, output, stride, finish);
            }
        }
    };
}

float_linear!(
    /// Full precision.
    F32Linear,
    Format::F32,
    f32::to_bits
);
float_linear!(
    /// Weights and rows rounded to bf16, sums in f32.
    Bf16Linear,
    Format::Bf16,
    |w| u32::from(math::bf16_bits(w))
);

/// Weights and rows in eight bits, sums exact.
pub struct Int8Linear {
    panels: Panels,
    /// Of each column; padded with zeros to whole panels.
    scales: Vec<f32>,
    /// Each column's scale times the sum of its bytes, for the rows' offsets.
    sums: Vec<f32>,
}

impl Int8Linear {
    /// Packs a layer from the checkpoint's layout, `weight[outputs, inputs]` row-major, for the best
    /// instruction set of this machine.
    ///
    /// Panics when the lengths disagree; [`crate::weights`] has checked shapes before.
    pub fn pack(weight: &[f32], bias: Vec<f32>) -> Self {
        Self::pack_for(TileKernel::best(Format::Int8), weight, bias)
    }

    /// The same for a kernel of one's choice, which must be of this format.
    pub fn pack_for(kernel: TileKernel, weight: &[f32], bias: Vec<f32>) -> Self {
        let inputs = weight.len() / bias.len();
        let padded = bias.len().next_multiple_of(PANEL_COLUMNS);
        let (mut scales, mut sums) = (vec![0.0; padded], vec![0.0; padded]);
        let quantize = |w: f32, scale: f32| {
            if scale > 0.0 {
                // Rounded by adding 1.5·2²³: no library call.
                (w / scale + 12_582_912.0) - 12_582_912.0
            } else {
                0.0
            }
        };
        let mut rotated = weight.to_vec();
        for (output, row) in rotated.chunks_exact_mut(inputs).enumerate() {
            rotate_weights(row);
            let largest = row.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
            scales[output] = largest / 127.0;
            let sum: f32 = row.iter().map(|&w| quantize(w, scales[output])).sum();
            sums[output] = scales[output] * sum;
        }
        let bits = |output: usize, w| u32::from(quantize(w, scales[output]) as i8 as u8);
        let panels = Panels::pack(kernel, Format::Int8, &rotated, bias, bits);
        Int8Linear {
            panels,
            scales,
            sums,
        }
    }
}

impl PackedLinear for Int8Linear {
    fn format(&self) -> Format {
        Format::Int8
    }

    fn inputs(&self) -> usize {
        self.panels.inputs
    }

    fn outputs(&self) -> usize {
        self.panels.outputs
    }

    fn resident_bytes(&self) -> usize {
        self.panels.resident_bytes() + 2 * self.scales.len() * size_of::<f32>()
    }

    fn apply(
        &self,
        tiles: &Tiles,
        columns: Range<usize>,
        epilogue: Epilogue,
        output: &mut [f32],
        stride: usize,
    ) {
        let finish = Scaled {
            scales: &self.scales,
            sums: &self.sums,
            bias: &self.panels.bias,
        };
        self.panels
            .apply(tiles, columns, epilogue, output, stride, finish);
    }
}

#[cfg(test)]
mod tests;
