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

use std::ops::Range;

use crate::wide::{Body, LANES, Wide, wide};

use crate::lines::{self, Line};
use crate::math;
use crate::rows::{Tiles, rotate_weights};
use crate::tile::{Format, PANEL_COLUMNS, PANEL_LINES, Sums, TileKernel};

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
}

/// Weights in panels, with the kernel that reads them.
struct Panels {
    kernel: TileKernel,
    inputs: usize,
    outputs: usize,
    /// Lines of one panel.
    size: usize,
    lines: Vec<Line>,
    /// Padded with zeros to whole panels.
    bias: Vec<f32>,
}

impl Panels {
    /// Lays `weight[outputs, inputs]` out, each element as `bits` says.
    fn pack(
        kernel: TileKernel,
        format: Format,
        weight: &[f32],
        mut bias: Vec<f32>,
        bits: impl Fn(usize, f32) -> u32,
    ) -> Self {
        let outputs = bias.len();
        assert!(
            outputs > 0 && weight.len().is_multiple_of(outputs) && !weight.is_empty(),
            "weight is [outputs, inputs], one bias an output"
        );
        let inputs = weight.len() / outputs;
        let size = inputs.div_ceil(format.per_block()) * PANEL_LINES;
        let panels = outputs.div_ceil(PANEL_COLUMNS);
        let mut lines = vec![Line::ZERO; panels * size];
        let element_bits = 32 / format.per_step();
        for (output, weights) in weight.chunks_exact(inputs).enumerate() {
            let (panel, column) = (output / PANEL_COLUMNS, output % PANEL_COLUMNS);
            let words = lines::words(&mut lines[panel * size..][..size]);
            for (input, &w) in weights.iter().enumerate() {
                let (step, part) = (input / format.per_step(), input % format.per_step());
                let word = &mut words[step * PANEL_COLUMNS + column];
                *word |= bits(output, w) << (part * element_bits);
            }
        }
        bias.resize(panels * PANEL_COLUMNS, 0.0);
        Panels {
            kernel,
            inputs,
            outputs,
            size,
            lines,
            bias,
        }
    }

    fn resident_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>() + self.bias.len() * size_of::<f32>()
    }

    /// Runs over panels and tiles; `finish` gives values before the epilogue.
    fn apply<F: Finish>(
        &self,
        tiles: &Tiles,
        columns: Range<usize>,
        epilogue: Epilogue,
        output: &mut [f32],
        stride: usize,
        finish: F,
    ) {
        assert!(
            columns.start.is_multiple_of(PANEL_COLUMNS) && columns.end <= self.outputs,
            "columns start with a panel and lie in the layer"
        );
        wide(Apply {
            panels: self,
            tiles,
            columns,
            epilogue,
            output,
            stride,
            finish,
        });
    }
}

/// Turns sums into values: scales and bias.
trait Finish: Copy {
    /// What sixteen columns need, kept in registers for all rows of a tile.
    type Columns<V: Copy>: Copy;
    /// Loads it for the columns from `column`.
    fn columns<W: Wide>(self, w: W, column: usize) -> Self::Columns<W::V>;
    /// The values of a row of the batch.
    fn values<W: Wide>(
        self,
        w: W,
        of: Self::Columns<W::V>,
        affine: [f32; 2],
        sums: &[u32; LANES],
    ) -> W::V;
}

/// [`Panels::apply`], in wide vectors.
struct Apply<'a, F> {
    panels: &'a Panels,
    tiles: &'a Tiles,
    columns: Range<usize>,
    epilogue: Epilogue,
    output: &'a mut [f32],
    stride: usize,
    finish: F,
}

impl<F: Finish> Body for Apply<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let Apply {
            panels,
            tiles,
            columns,
            ..
        } = self;
        let mut sums = Sums::new();
        for from in columns.clone().step_by(PANEL_COLUMNS) {
            let panel = &panels.lines[from / PANEL_COLUMNS * panels.size..][..panels.size];
            for tile in 0..tiles.count() {
                let (first, rows, lines) = tiles.tile(tile);
                panels.kernel.run(rows, lines, panel, &mut sums);
                let finished = Finished {
                    w,
                    finish: self.finish,
                    of: [
                        self.finish.columns(w, from),
                        self.finish.columns(w, from + LANES),
                    ],
                    sums: &sums.0[..rows],
                    affine: tiles.affine(first, rows),
                };
                let at = first * self.stride + from - columns.start;
                let width = PANEL_COLUMNS.min(columns.end - from);
                let out = &mut self.output[at..];
                finished.emit(self.epilogue, out, self.stride, width);
            }
        }
    }
}

/// A tile on its way out.
struct Finished<'a, W: Wide, F: Finish> {
    w: W,
    finish: F,
    of: [F::Columns<W::V>; 2],
    sums: &'a [[u32; PANEL_COLUMNS]],
    affine: &'a [[f32; 2]],
}

impl<W: Wide, F: Finish> Finished<'_, W, F> {
    /// Writes by the epilogue: `width` columns, fewer than 32 only at a layer's end.
    #[inline(always)]
    fn emit(self, epilogue: Epilogue, out: &mut [f32], stride: usize, width: usize) {
        let w = self.w;
        match epilogue {
            Epilogue::Store => self.update(
                out,
                stride,
                width,
                #[inline(always)]
                |_, y| y,
            ),
            Epilogue::Gelu(Erf::Exact) => self.update(
                out,
                stride,
                width,
                #[inline(always)]
                |_, y| math::gelu(w, y),
            ),
            Epilogue::Gelu(Erf::Short) => self.update(
                out,
                stride,
                width,
                #[inline(always)]
                |_, y| math::gelu_short(w, y),
            ),
            Epilogue::Add => self.update(
                out,
                stride,
                width,
                #[inline(always)]
                |x, y| w.add(x, y),
            ),
        }
    }

    /// Replaces each row by `f(what lies there, its values)`.
    #[inline(always)]
    fn update(self, out: &mut [f32], stride: usize, width: usize, f: impl Fn(W::V, W::V) -> W::V) {
        let w = self.w;
        let rows = self.sums.iter().zip(self.affine);
        for ((sums, &affine), out) in rows.zip(out.chunks_mut(stride)) {
            let (halves, _) = sums.as_chunks::<LANES>();
            let left = self.finish.values(w, self.of[0], affine, &halves[0]);
            let right = self.finish.values(w, self.of[1], affine, &halves[1]);
            if let (PANEL_COLUMNS, Some(out)) = (width, out.first_chunk_mut()) {
                put(w, out, [left, right], &f);
            } else {
                let mut padded = [0.0; PANEL_COLUMNS];
                padded[..width].copy_from_slice(&out[..width]);
                put(w, &mut padded, [left, right], &f);
                out[..width].copy_from_slice(&padded[..width]);
            }
        }
    }
}

/// Combines a row's 32 values with what lies in the output.
#[inline(always)]
fn put<W: Wide>(
    w: W,
    out: &mut [f32; PANEL_COLUMNS],
    values: [W::V; 2],
    f: &impl Fn(W::V, W::V) -> W::V,
) {
    let (halves, _) = out.as_chunks_mut::<LANES>();
    w.store(f(w.load(&halves[0]), values[0]), &mut halves[0]);
    w.store(f(w.load(&halves[1]), values[1]), &mut halves[1]);
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
