//! Multi-head self-attention of one head of one text: softmax(Q·Kᵀ)·V, scores in the first-level
//! cache.
//!
//! ```text
//! head [S, 3·d] f32 = [ Q | K | V ]          log₂e / √d is folded into Q's weights at load
//!   Q ─▶ tiles of ≤ 12 rows     K ─▶ panels of 32 keys, depth d     V ─▶ panels of 32 columns, depth S
//! for each tile of Q:
//!   scores = tile · K panels     [S / 32] × Sums, 12 rows each
//!   2^(x − max) per row          rounded straight into a tile whose depth is the keys
//!   context = tile · V panels, each row divided by its sum
//! ```
//!
//! Both products are the micro-kernel's of [`crate::tile`], in f32 or bf16; the division by a row's
//! sum is applied to the d columns of the context instead of the S columns of the scores. Sums run
//! over the weights before they are rounded.
//!
//! Invariants: no mask, as a text is never padded; columns that fill up the last panel of keys become
//! weights of nearly zero against zeros in V. A row depends on its text only. Limits: d is
//! padded to a multiple of 32 by zero columns, at load.

use crate::wide::{Body, LANES, Wide, wide};

use crate::lines::{self, Line};
use crate::math::{self, bf16_bits};
use crate::rows::Tiles;
use crate::tile::{Format, PANEL_COLUMNS, PANEL_LINES, Sums, TILE_ROWS, TileKernel};

/// Working memory of attention; grows to the longest text seen, then stays.
#[derive(Default)]
pub struct AttentionScratch {
    queries: Tiles,
    keys: Vec<Line>,
    values: Vec<Line>,
    scores: Vec<Sums>,
    weights: Vec<Line>,
}

impl AttentionScratch {
    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        let lines = self.keys.capacity() + self.values.capacity() + self.weights.capacity();
        self.queries.resident_bytes()
            + lines * size_of::<Line>()
            + self.scores.capacity() * size_of::<Sums>()
    }

    /// Fills all memory with bits that are NaN in every format, for tests.
    #[doc(hidden)]
    pub fn poison(&mut self) {
        self.queries.poison();
        for lines in [&mut self.keys, &mut self.values, &mut self.weights] {
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
        queries.reset(self.format, rows, self.width);
        queries.store(3 * self.width, head);
        let weight_lines = key_panels * PANEL_COLUMNS / per_block * TILE_ROWS;
        wide(Attend {
            attention: *self,
            rows,
            head,
            queries,
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
    queries: &'a Tiles,
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
        for tile in 0..self.queries.count() {
            let (first, rows, lines) = self.queries.tile(tile);
            let panels = self.keys.chunks_exact(self.key_size);
            for (panel, sums) in panels.zip(self.scores.iter_mut()) {
                self.attention.kernel.run(rows, lines, panel, sums);
            }
            let mut factors = [0.0; TILE_ROWS];
            self.softmax(w, &mut factors[..rows]);
            self.mix(w, first, &factors[..rows]);
        }
    }
}

impl Attend<'_> {
    /// Panels of keys: step = element(s) of the depth, column = key.
    #[inline(always)]
    fn pack_keys<W: Wide>(&mut self, _: W) {
        let width = self.attention.width;
        let rows = self.head.chunks_exact(3 * width).take(self.rows);
        for (key, row) in rows.enumerate() {
            let row = &row[width..][..width];
            let panel = &mut self.keys[key / PANEL_COLUMNS * self.key_size..][..self.key_size];
            let words = lines::words(panel)[key % PANEL_COLUMNS..].iter_mut();
            let words = words.step_by(PANEL_COLUMNS);
            if self.attention.format == Format::F32 {
                for (word, &x) in words.zip(row) {
                    *word = x.to_bits();
                }
            } else {
                for (word, &[low, high]) in words.zip(row.as_chunks::<2>().0) {
                    *word = u32::from(bf16_bits(low)) | u32::from(bf16_bits(high)) << 16;
                }
            }
        }
    }

    /// Panels of values: step = key(s), column = element. Keys that are none are zeros.
    #[inline(always)]
    fn pack_values<W: Wide>(&mut self, w: W) {
        const NONE: [f32; LANES] = [0.0; LANES];
        let width = self.attention.width;
        let mut rows = self.head.chunks_exact(3 * width).take(self.rows);
        for step in 0..self.value_size * LANES / PANEL_COLUMNS {
            let low = rows.next();
            let high = match self.attention.format {
                Format::F32 => None,
                _ => rows.next(),
            };
            for half in 0..width / LANES {
                let lanes = |row: Option<&[f32]>| {
                    let of = |row: &[f32]| w.load(&row[2 * width..].as_chunks().0[half]);
                    row.map_or(w.load(&NONE), of)
                };
                let (low, high) = (lanes(low), lanes(high));
                let line = &mut self.values[half / 2 * self.value_size + step * 2 + half % 2];
                match self.attention.format {
                    Format::F32 => w.store_line(low, line),
                    _ => w.store_bf16_pairs(low, high, &mut line.0),
                }
            }
        }
    }

    /// 2^(x − max) of each row of the tile, rounded into `weights`; one over each row's sum.
    ///
    /// Three loops over rows instead of one, so that no row waits for its own maximum and sum.
    #[inline(always)]
    fn softmax<W: Wide>(&mut self, w: W, factors: &mut [f32]) {
        let valid = (self.rows - 1) % PANEL_COLUMNS + 1;
        if let Some(last) = self.scores.last_mut() {
            for sums in &mut last.0[..factors.len()] {
                sums[valid..].fill(f32::NEG_INFINITY.to_bits());
            }
        }
        let mut largest = [0.0; TILE_ROWS];
        for (row, largest) in largest[..factors.len()].iter_mut().enumerate() {
            let [mut left, mut right] = [w.splat(f32::NEG_INFINITY); 2];
            for sums in self.scores.iter() {
                let (halves, _) = sums.0[row].as_chunks();
                left = w.max(w.load_bits(&halves[0]), left);
                right = w.max(w.load_bits(&halves[1]), right);
            }
            *largest = w.fold(w.max(left, right), |a, b| if a > b { a } else { b });
        }
        let mut totals = [w.splat(0.0); TILE_ROWS];
        for (row, total) in totals[..factors.len()].iter_mut().enumerate() {
            *total = self.powers(w, row, largest[row]);
        }
        for (factor, &total) in factors.iter_mut().zip(&totals) {
            *factor = 1.0 / w.sum(total);
        }
    }

    /// 2^(x − largest) of one row, rounded into `weights`; their sum, still in lanes.
    #[inline(always)]
    fn powers<W: Wide>(&mut self, w: W, row: usize, largest: f32) -> W::V {
        let largest = w.splat(largest);
        let [mut left, mut right] = [w.splat(0.0); 2];
        for (panel, sums) in self.scores.iter().enumerate() {
            let (halves, _) = sums.0[row].as_chunks();
            let scores = [
                w.sub(w.load_bits(&halves[0]), largest),
                w.sub(w.load_bits(&halves[1]), largest),
            ];
            let [low, high] = if self.attention.format == Format::F32 {
                let low = math::exp2_negative(w, scores[0], &math::EXP2);
                let high = math::exp2_negative(w, scores[1], &math::EXP2);
                w.store_line(low, &mut self.weights[2 * panel * TILE_ROWS + row]);
                w.store_line(high, &mut self.weights[(2 * panel + 1) * TILE_ROWS + row]);
                [low, high]
            } else {
                let low = math::exp2_negative(w, scores[0], &math::EXP2_SHORT);
                let high = math::exp2_negative(w, scores[1], &math::EXP2_SHORT);
                let line = &mut self.weights[panel * TILE_ROWS + row];
                let (halves, _) = lines::halves(std::slice::from_mut(line)).as_chunks_mut();
                w.store_bf16(low, &mut halves[0]);
                w.store_bf16(high, &mut halves[1]);
                [low, high]
            };
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
                let mut values = [0.0; PANEL_COLUMNS];
                let halves = values.as_chunks_mut().0.iter_mut();
                for (to, sums) in halves.zip(sums.as_chunks().0) {
                    w.store(w.mul(w.load_bits(sums), w.splat(factor)), to);
                }
                let out = &mut self.context[(first + row) * self.stride + from..][..wanted];
                out.copy_from_slice(&values[..wanted]);
            }
        }
    }
}
