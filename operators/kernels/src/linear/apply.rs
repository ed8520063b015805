//! Weights in panels, and the loops that take tiles through them.
//!
//! The order is panels outside, tiles inside: a panel comes from far away and is used for all tiles
//! while it is near. A tile's sums are finished (scales, bias) and go out (stored, through GELU, or
//! onto what lies there) right after they are made.
//!
//! Invariants: nothing is allocated; what is written depends on the row and the column alone.

use std::ops::Range;

use super::{Epilogue, Erf};
use crate::lines::{self, Line};
use crate::math;
use crate::rows::Tiles;
use crate::tile::{Format, PANEL_COLUMNS, PANEL_LINES, Sums, TileKernel};
use crate::wide::{Body, LANES, Wide, wide};

/// Weights in panels, with the kernel that reads them.
pub(super) struct Panels {
    kernel: TileKernel,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Lines of one panel.
    size: usize,
    lines: Vec<Line>,
    /// Padded with zeros to whole panels.
    pub(super) bias: Vec<f32>,
}

impl Panels {
    /// Lays `weight[outputs, inputs]` out, each element as `bits` says.
    pub(super) fn pack(
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
                let (step, part) = format.place(input);
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

    pub(super) fn resident_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>() + self.bias.len() * size_of::<f32>()
    }

    /// Runs over panels and tiles; `finish` gives values before the epilogue.
    pub(super) fn apply<F: Finish>(
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
pub(super) trait Finish: Copy {
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

    /// The choice stands outside of all loops: each epilogue has its own, with its constants in
    /// registers.
    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        match self.epilogue {
            Epilogue::Store => self.all(
                w,
                #[inline(always)]
                |_, y| y,
            ),
            Epilogue::Gelu(Erf::Exact) => self.all(
                w,
                #[inline(always)]
                |_, y| math::gelu(w, y),
            ),
            Epilogue::Gelu(Erf::Short) => self.all(
                w,
                #[inline(always)]
                |_, y| math::gelu_short(w, y),
            ),
            Epilogue::Add => self.all(
                w,
                #[inline(always)]
                |x, y| w.add(x, y),
            ),
        }
    }
}

impl<F: Finish> Apply<'_, F> {
    /// All panels and tiles; an output becomes `f(what lies there, its value)`.
    #[inline(always)]
    fn all<W: Wide>(self, w: W, f: impl Fn(W::V, W::V) -> W::V) {
        let (panels, tiles) = (self.panels, self.tiles);
        let mut sums = Sums::new();
        for from in self.columns.clone().step_by(PANEL_COLUMNS) {
            let panel = &panels.lines[from / PANEL_COLUMNS * panels.size..][..panels.size];
            for tile in 0..tiles.count() {
                let (first, rows, lines) = tiles.tile(tile);
                let at = first * self.stride + from - self.columns.start;
                panels.kernel.run(rows, lines, panel, &mut sums);
                let finished = Finished {
                    finish: self.finish,
                    from,
                    sums: &sums.0[..rows],
                    affine: tiles.affine(first, rows),
                };
                let width = PANEL_COLUMNS.min(self.columns.end - from);
                finished.update(w, &mut self.output[at..], self.stride, width, &f);
            }
        }
    }
}

/// A tile on its way out.
struct Finished<'a, F> {
    finish: F,
    /// The panel's first column.
    from: usize,
    sums: &'a [[u32; PANEL_COLUMNS]],
    affine: &'a [[f32; 2]],
}

impl<F: Finish> Finished<'_, F> {
    /// Replaces `width` columns of each row, fewer than 32 only at a layer's end.
    ///
    /// The loop over whole panels stands alone: a call beside it, and the columns' constants would live
    /// in memory instead of registers.
    #[inline(always)]
    fn update<W: Wide>(
        self,
        w: W,
        out: &mut [f32],
        stride: usize,
        width: usize,
        f: &impl Fn(W::V, W::V) -> W::V,
    ) {
        let rows = self.sums.iter().zip(self.affine).enumerate();
        if width == PANEL_COLUMNS {
            let of = self.columns(w);
            for (row, (sums, &affine)) in rows {
                let out = out[row * stride..].first_chunk_mut();
                let values = self.values(w, of, sums, affine);
                put(w, out.expect("a row of 32"), values, f);
            }
        } else {
            let of = self.columns(w);
            for (row, (sums, &affine)) in rows {
                let out = &mut out[row * stride..][..width];
                let mut padded = [0.0; PANEL_COLUMNS];
                padded[..width].copy_from_slice(out);
                put(w, &mut padded, self.values(w, of, sums, affine), f);
                out.copy_from_slice(&padded[..width]);
            }
        }
    }

    /// What the panel's columns need.
    #[inline(always)]
    fn columns<W: Wide>(&self, w: W) -> [F::Columns<W::V>; 2] {
        [
            self.finish.columns(w, self.from),
            self.finish.columns(w, self.from + LANES),
        ]
    }

    /// A row's values.
    #[inline(always)]
    fn values<W: Wide>(
        &self,
        w: W,
        [left, right]: [F::Columns<W::V>; 2],
        sums: &[u32; PANEL_COLUMNS],
        affine: [f32; 2],
    ) -> [W::V; 2] {
        let (halves, _) = sums.as_chunks::<LANES>();
        [
            self.finish.values(w, left, affine, &halves[0]),
            self.finish.values(w, right, affine, &halves[1]),
        ]
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
