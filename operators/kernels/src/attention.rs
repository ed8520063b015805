//! Multi-head self-attention of one head of one text: softmax(Q·Kᵀ)·V, scores in the first-level
//! cache.
//!
//! ```text
//! head [S, 3·d] f32 = [ Q | K | V ]          log₂e / √d is folded into Q's weights at load
//!   K ─▶ panels of 32 keys, depth d     V ─▶ panels of 32 columns, depth S
//! for each tile of ≤ 12 queries:
//!   scores = tile · K panels     [S / 32] × Sums, 12 rows each
//!   2^x per row                  rounded straight into a tile whose depth is the keys
//!   context = tile · V panels, each row divided by its sum
//! ```
//!
//! Both products are the micro-kernel's of [`crate::tile`], in f32 or bf16; the division by a row's
//! sum is applied to the d columns of the context instead of the S columns of the scores. Sums run
//! over the weights before they are rounded.
//!
//! bf16 has f32's range, so its weights are 2^x as it is: subtracting a row's largest score first
//! changes no relative error. Only a row whose sum leaves `SUMS` is done again with it, as f32's are
//! always. Two bf16 in a word are sixteen elements (or keys) apart, not neighbours: what is sixteen apart lies
//! in the same lane of two vectors. A product does not ask for the order of its depth.
//!
//! Invariants: no mask, as a text is never padded; columns that fill up the last panel of keys become
//! weights of nearly zero against zeros in V. A row depends on its text only. Limits: d is
//! padded to a multiple of 32 by zero columns, at load.

use std::ops::RangeInclusive;

use crate::wide::{Body, LANES, Wide, wide};

use crate::lines::{self, Line};
use crate::math;
use crate::rows;
use crate::tile::{BLOCK_STEPS, Format, PANEL_COLUMNS, PANEL_LINES, Sums, TILE_ROWS, TileKernel};

/// Sums of a row of 2^x that are taken as they are: far from where f32 ends on both sides.
const SUMS: RangeInclusive<f32> = 1e-20..=1e20;
/// The score of a key that is none: two to this power is nothing.
const NO_KEY: f32 = -1e30;
/// The elements of a key that is none.
const NOTHING: [f32; LANES] = [0.0; LANES];

/// Working memory of attention; grows to the longest text seen, then stays.
#[derive(Default)]
pub struct AttentionScratch {
    queries: Vec<Line>,
    keys: Vec<Line>,
    values: Vec<Line>,
    scores: Vec<Sums>,
    weights: Vec<Line>,
}

impl AttentionScratch {
    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        let lines: usize = [&self.queries, &self.keys, &self.values, &self.weights]
            .map(Vec::capacity)
            .iter()
            .sum();
        lines * size_of::<Line>() + self.scores.capacity() * size_of::<Sums>()
    }

    /// Fills all memory with bits that are NaN in every format, for tests.
    #[doc(hidden)]
    pub fn poison(&mut self) {
        for lines in [
            &mut self.queries,
            &mut self.keys,
            &mut self.values,
            &mut self.weights,
        ] {
            lines.fill(Line([u32::MAX; 16]));
        }
        for sums in &mut self.scores {
            sums.0.as_flattened_mut().fill(u32::MAX);
        }
    }
}

/// Attention in one format, by one kernel.
#[derive(Clone, Copy)]
pub struct Attention {
    format: Format,
    kernel: TileKernel,
    /// Columns of a head, padded to a multiple of 32.
    width: usize,
}

impl Attention {
    /// For heads of `width` columns (a multiple of 32). Panics on int8: scores have no use for it.
    pub fn new(format: Format, kernel: TileKernel, width: usize) -> Self {
        assert!(
            format != Format::Int8 && width.is_multiple_of(PANEL_COLUMNS),
            "attention runs in f32 or bf16, over whole panels"
        );
        Attention {
            format,
            kernel,
            width,
        }
    }

    /// Writes `context[rows]`, `columns` of each row, `stride` elements from a row to the next, from
    /// `head[rows, 3 · width]`.
    ///
    /// Cost: 4 · rows² · width operations and rows² powers of two.
    pub fn attend(
        &self,
        rows: usize,
        head: &[f32],
        scratch: &mut AttentionScratch,
        context: &mut [f32],
        columns: usize,
        stride: usize,
    ) {
        let AttentionScratch {
            queries,
            keys,
            values,
            scores,
            weights,
        } = scratch;
        let per_block = self.format.per_block();
        let key_panels = rows.div_ceil(PANEL_COLUMNS);
        let key_size = self.width / per_block * PANEL_LINES;
        let value_size = key_panels * PANEL_COLUMNS / per_block * PANEL_LINES;
        if scores.len() < key_panels {
            scores.resize_with(key_panels, Sums::new);
        }
        let query_lines = self.width / per_block * TILE_ROWS;
        let weight_lines = key_panels * PANEL_COLUMNS / per_block * TILE_ROWS;
        wide(Attend {
            attention: *self,
            rows,
            head,
            queries: lines::sized(queries, query_lines),
            keys: lines::sized(keys, key_panels * key_size),
            key_size,
            values: lines::sized(values, self.width / PANEL_COLUMNS * value_size),
            value_size,
            scores: &mut scores[..key_panels],
            weights: lines::sized(weights, weight_lines),
            context,
            columns,
            stride,
        });
    }
}

/// [`Attention::attend`], in wide vectors.
struct Attend<'a> {
    attention: Attention,
    rows: usize,
    head: &'a [f32],
    /// One tile of them.
    queries: &'a mut [Line],
    keys: &'a mut [Line],
    /// Lines of a panel of keys.
    key_size: usize,
    values: &'a mut [Line],
    /// Lines of a panel of values.
    value_size: usize,
    scores: &'a mut [Sums],
    weights: &'a mut [Line],
    context: &'a mut [f32],
    columns: usize,
    stride: usize,
}

impl Body for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(mut self, w: W) {
        self.pack_keys(w);
        self.pack_values(w);
        let tile_rows = rows::tile_rows(self.rows);
        for first in (0..self.rows).step_by(tile_rows) {
            let rows = tile_rows.min(self.rows - first);
            self.pack_queries(w, first, rows);
            let panels = self.keys.chunks_exact(self.key_size);
            for (panel, sums) in panels.zip(self.scores.iter_mut()) {
                self.attention.kernel.run(rows, self.queries, panel, sums);
            }
            let mut factors = [0.0; TILE_ROWS];
            self.softmax(w, &mut factors[..rows]);
            self.mix(w, first, &factors[..rows]);
        }
    }
}

impl Attend<'_> {
    /// A block of the depth of one query (`part` 0) or key (`part` 1): one word a step.
    #[inline(always)]
    fn words<W: Wide>(&self, w: W, row: usize, part: usize, block: usize) -> W::V {
        let width = self.attention.width;
        let of_row = &self.head[(3 * row + part) * width..][..width];
        let (vectors, _) = of_row.as_chunks();
        match self.attention.format {
            Format::F32 => w.load(&vectors[block]),
            _ => w.bf16_pairs(w.load(&vectors[2 * block]), w.load(&vectors[2 * block + 1])),
        }
    }

    /// A tile of queries: a block of a row is a line.
    #[inline(always)]
    fn pack_queries<W: Wide>(&mut self, w: W, first: usize, rows: usize) {
        for block in 0..self.queries.len() / TILE_ROWS {
            for row in 0..rows {
                let words = self.words(w, first + row, 0, block);
                w.store_line(words, &mut self.queries[block * TILE_ROWS + row]);
            }
        }
    }

    /// Panels of keys: step = element(s) of the depth, column = key. Sixteen keys at a time.
    #[inline(always)]
    fn pack_keys<W: Wide>(&mut self, w: W) {
        for first in (0..self.rows).step_by(LANES) {
            let (panel, half) = (first / PANEL_COLUMNS, first % PANEL_COLUMNS / LANES);
            for block in 0..self.key_size / PANEL_LINES {
                let mut words = [w.load(&NOTHING); LANES];
                for (key, words) in (first..self.rows).zip(&mut words) {
                    *words = self.words(w, key, 1, block);
                }
                w.transpose(&mut words);
                let lines = &mut self.keys[panel * self.key_size + block * PANEL_LINES..];
                let (steps, _) = lines[..PANEL_LINES].as_chunks_mut::<2>();
                for (step, words) in steps.iter_mut().zip(words) {
                    w.store_line(words, &mut step[half]);
                }
            }
        }
    }

    /// Panels of values: step = key(s), column = element. Keys that are none are zeros.
    #[inline(always)]
    fn pack_values<W: Wide>(&mut self, w: W) {
        for step in 0..self.value_size * LANES / PANEL_COLUMNS {
            for part in 0..self.attention.width / LANES {
                let words = match self.attention.format {
                    Format::F32 => self.value(w, step, part),
                    _ => {
                        let key = step / BLOCK_STEPS * PANEL_COLUMNS + step % BLOCK_STEPS;
                        let high = self.value(w, key + BLOCK_STEPS, part);
                        w.bf16_pairs(self.value(w, key, part), high)
                    }
                };
                let line = part / 2 * self.value_size + step * 2 + part % 2;
                w.store_line(words, &mut self.values[line]);
            }
        }
    }

    /// Sixteen elements of a key's value, zeros where there is no such key.
    #[inline(always)]
    fn value<W: Wide>(&self, w: W, key: usize, part: usize) -> W::V {
        if key >= self.rows {
            return w.load(&NOTHING);
        }
        let of_key = &self.head[(3 * key + 2) * self.attention.width..];
        w.load(&of_key.as_chunks().0[part])
    }

    /// Two to the power of each score of the tile, rounded into `weights`; one over each row's sum.
    ///
    /// Loops over rows one after the other instead of one, so that no row waits for its own sum.
    #[inline(always)]
    fn softmax<W: Wide>(&mut self, w: W, factors: &mut [f32]) {
        let valid = (self.rows - 1) % PANEL_COLUMNS + 1;
        if let Some(last) = self.scores.last_mut() {
            for sums in &mut last.0[..factors.len()] {
                sums[valid..].fill(NO_KEY.to_bits());
            }
        }
        let mut totals = [w.splat(0.0); TILE_ROWS];
        if self.attention.format == Format::F32 {
            let mut largest = [0.0; TILE_ROWS];
            for (row, largest) in largest[..factors.len()].iter_mut().enumerate() {
                *largest = self.largest(w, row);
            }
            for (row, total) in totals[..factors.len()].iter_mut().enumerate() {
                *total = self.powers(w, row, largest[row]);
            }
        } else {
            for (row, total) in totals[..factors.len()].iter_mut().enumerate() {
                *total = self.short_powers(w, row, 0.0);
            }
        }
        for (row, factor) in factors.iter_mut().enumerate() {
            let mut total = w.sum(totals[row]);
            if self.attention.format != Format::F32 && !SUMS.contains(&total) {
                let largest = self.largest(w, row);
                total = w.sum(self.short_powers(w, row, largest));
            }
            *factor = 1.0 / total;
        }
    }

    /// The largest score of a row of the tile.
    #[inline(always)]
    fn largest<W: Wide>(&self, w: W, row: usize) -> f32 {
        let [mut left, mut right] = [w.splat(NO_KEY); 2];
        for sums in self.scores.iter() {
            let (halves, _) = sums.0[row].as_chunks();
            left = w.max(w.load_bits(&halves[0]), left);
            right = w.max(w.load_bits(&halves[1]), right);
        }
        w.fold(w.max(left, right), |a, b| if a > b { a } else { b })
    }

    /// 2^(x − largest) of one row in f32, into `weights`; their sum, still in lanes.
    #[inline(always)]
    fn powers<W: Wide>(&mut self, w: W, row: usize, largest: f32) -> W::V {
        let largest = w.splat(largest);
        let [mut left, mut right] = [w.splat(0.0); 2];
        for (panel, sums) in self.scores.iter().enumerate() {
            let (halves, _) = sums.0[row].as_chunks();
            let low = math::exp2_negative(w, w.sub(w.load_bits(&halves[0]), largest));
            let high = math::exp2_negative(w, w.sub(w.load_bits(&halves[1]), largest));
            w.store_line(low, &mut self.weights[2 * panel * TILE_ROWS + row]);
            w.store_line(high, &mut self.weights[(2 * panel + 1) * TILE_ROWS + row]);
            (left, right) = (w.add(left, low), w.add(right, high));
        }
        w.add(left, right)
    }

    /// The same in bf16.
    #[inline(always)]
    fn short_powers<W: Wide>(&mut self, w: W, row: usize, largest: f32) -> W::V {
        let largest = w.splat(largest);
        let [mut left, mut right] = [w.splat(0.0); 2];
        for (panel, sums) in self.scores.iter().enumerate() {
            let (halves, _) = sums.0[row].as_chunks();
            let low = math::exp2_short(w, w.sub(w.load_bits(&halves[0]), largest));
            let high = math::exp2_short(w, w.sub(w.load_bits(&halves[1]), largest));
            let line = &mut self.weights[panel * TILE_ROWS + row];
            w.store_line(w.bf16_pairs(low, high), line);
            (left, right) = (w.add(left, low), w.add(right, high));
        }
        w.add(left, right)
    }

    /// The rows of the context: weights · values, each row times its factor.
    #[inline(always)]
    fn mix<W: Wide>(&mut self, w: W, first: usize, factors: &[f32]) {
        let mut sums = Sums::new();
        for (p, panel) in self.values.chunks_exact(self.value_size).enumerate() {
            let from = p * PANEL_COLUMNS;
            let wanted = PANEL_COLUMNS.min(self.columns - from.min(self.columns));
            let kernel = self.attention.kernel;
            kernel.run(factors.len(), self.weights, panel, &mut sums);
            for (row, (sums, &factor)) in sums.0.iter().zip(factors).enumerate() {
                let (halves, _) = sums.as_chunks();
                let factor = w.splat(factor);
                let left = w.mul(w.load_bits(&halves[0]), factor);
                let right = w.mul(w.load_bits(&halves[1]), factor);
                let out = &mut self.context[(first + row) * self.stride + from..];
                write_columns(w, out, wanted, [left, right]);
            }
        }
    }
}

/// Writes the first `width` of 32 columns.
#[inline(always)]
fn write_columns<W: Wide>(w: W, out: &mut [f32], width: usize, values: [W::V; 2]) {
    let mut padded = [0.0; PANEL_COLUMNS];
    let is_whole = width == PANEL_COLUMNS;
    let to = if is_whole {
        out.first_chunk_mut()
    } else {
        None
    };
    let (halves, _) = to.unwrap_or(&mut padded).as_chunks_mut();
    w.store(values[0], &mut halves[0]);
    w.store(values[1], &mut halves[1]);
    if !is_whole {
        out[..width].copy_from_slice(&padded[..width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two to such scores is no f32: the row is done again with its largest score taken off.
    #[test]
    fn scores_beyond_f32_still_choose() {
        for format in [Format::F32, Format::Bf16] {
            for sign in [1.0, -1.0] {
                let (rows, width) = (40, 32);
                let mut head = vec![0.0; rows * 3 * width];
                for (key, row) in head.chunks_exact_mut(3 * width).enumerate() {
                    row[0] = sign * 60.0;
                    row[width] = if key == 7 { 10.0 } else { 10.0 - sign };
                    row[2 * width..].fill(key as f32);
                }
                let attention = Attention::new(format, TileKernel::best(format), width);
                let mut context = vec![0.0; rows * width];
                let mut scratch = AttentionScratch::default();
                attention.attend(rows, &head, &mut scratch, &mut context, width, width);
                assert!(context.iter().all(|x| (x - 7.0).abs() < 1e-3), "{format:?}");
            }
        }
    }
}
