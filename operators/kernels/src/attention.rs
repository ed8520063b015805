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

use crate::wide::wide;

use crate::lines::{self, Line};
use crate::math::{bf16_bits, exp2_negative};
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
        let keys = lines::sized(keys, key_panels * key_size);
        let values = lines::sized(values, self.width / PANEL_COLUMNS * value_size);
        let weights = lines::sized(weights, key_panels * PANEL_COLUMNS / per_block * TILE_ROWS);
        if scores.len() < key_panels {
            scores.resize_with(key_panels, Sums::new);
        }
        let scores = &mut scores[..key_panels];
        queries.reset(self.format, rows, self.width);
        queries.store(3 * self.width, head);
        wide(
            #[inline(always)]
            || {
                let rows = head.chunks_exact(3 * self.width).take(rows);
                self.pack_keys(
                    rows.clone().map(|row| &row[self.width..][..self.width]),
                    keys,
                    key_size,
                );
                self.pack_values(rows.map(|row| &row[2 * self.width..]), values, value_size);
            },
        );
        for tile in 0..queries.count() {
            let (first, rows_here, lines) = queries.tile(tile);
            for (panel, sums) in keys.chunks_exact(key_size).zip(scores.iter_mut()) {
                self.kernel.run(rows_here, lines, panel, sums);
            }
            let inverses = self.softmax(rows, rows_here, scores, weights);
            let mut sums = Sums::new();
            for (p, panel) in values.chunks_exact(value_size).enumerate() {
                let from = p * PANEL_COLUMNS;
                let wanted = PANEL_COLUMNS.min(columns.saturating_sub(from));
                self.kernel.run(rows_here, weights, panel, &mut sums);
                let outs = context[first * stride + from.min(columns)..].chunks_mut(stride);
                for ((sums, inverse), out) in sums.0[..rows_here].iter().zip(inverses).zip(outs) {
                    for (out, &sum) in out[..wanted].iter_mut().zip(sums) {
                        *out = f32::from_bits(sum) * inverse;
                    }
                }
            }
        }
    }

    /// Panels of keys: step = element(s) of the depth, column = key.
    #[inline(always)]
    fn pack_keys<'a>(
        &self,
        rows: impl Iterator<Item = &'a [f32]>,
        lines: &mut [Line],
        size: usize,
    ) {
        for (key, row) in rows.enumerate() {
            let panel = &mut lines[key / PANEL_COLUMNS * size..][..size];
            let column = key % PANEL_COLUMNS;
            let words = lines::words(panel)[column..]
                .iter_mut()
                .step_by(PANEL_COLUMNS);
            if self.format == Format::F32 {
                for (word, &x) in words.zip(row) {
                    *word = x.to_bits();
                }
            } else {
                let pairs = row.as_chunks::<2>().0;
                for (word, &[low, high]) in words.zip(pairs) {
                    *word = pair(low, high);
                }
            }
        }
    }

    /// Panels of values: step = key(s), column = element. Keys that are none are zeros.
    #[inline(always)]
    fn pack_values<'a>(
        &self,
        mut rows: impl Iterator<Item = &'a [f32]>,
        lines: &mut [Line],
        size: usize,
    ) {
        const NONE: [f32; PANEL_COLUMNS] = [0.0; PANEL_COLUMNS];
        let steps = size * 16 / PANEL_COLUMNS;
        for step in 0..steps {
            let low = rows.next();
            let high = if self.format == Format::F32 {
                None
            } else {
                rows.next()
            };
            for p in 0..self.width / PANEL_COLUMNS {
                let part = |row: Option<&'a [f32]>| {
                    row.map_or(&NONE, |row| {
                        row[p * PANEL_COLUMNS..].first_chunk().expect("padded")
                    })
                };
                let (low, high) = (part(low), part(high));
                let words = lines::words(&mut lines[p * size + step * 2..][..2]);
                for ((word, &low), &high) in words.iter_mut().zip(low).zip(high) {
                    *word = if self.format == Format::F32 {
                        low.to_bits()
                    } else {
                        pair(low, high)
                    };
                }
            }
        }
    }

    /// 2^(x − max) of each row, rounded into the tile `weights`; one over each row's sum.
    fn softmax(
        &self,
        keys: usize,
        rows: usize,
        scores: &mut [Sums],
        weights: &mut [Line],
    ) -> [f32; TILE_ROWS] {
        let mut inverses = [0.0; TILE_ROWS];
        wide(
            #[inline(always)]
            || {
                let valid = (keys - 1) % PANEL_COLUMNS + 1;
                for (row, inverse) in inverses[..rows].iter_mut().enumerate() {
                    if let Some(last) = scores.last_mut() {
                        last.0[row][valid..].fill(f32::NEG_INFINITY.to_bits());
                    }
                    let mut lanes = [f32::NEG_INFINITY; PANEL_COLUMNS];
                    for sums in scores.iter() {
                        for (lane, &x) in lanes.iter_mut().zip(&sums.0[row]) {
                            let x = f32::from_bits(x);
                            *lane = if x > *lane { x } else { *lane };
                        }
                    }
                    let max = folded(lanes, |a, b| if a > b { a } else { b });
                    let mut lanes = [0.0; PANEL_COLUMNS];
                    let places = weights[row..].iter_mut().step_by(TILE_ROWS);
                    let mut places = places.into_iter();
                    for sums in scores.iter() {
                        let mut powers = [0.0; PANEL_COLUMNS];
                        for ((power, lane), &x) in
                            powers.iter_mut().zip(&mut lanes).zip(&sums.0[row])
                        {
                            *power = exp2_negative(f32::from_bits(x) - max);
                            *lane += *power;
                        }
                        if self.format == Format::F32 {
                            let (halves, _) = powers.as_chunks::<16>();
                            for (half, place) in halves.iter().zip(&mut places) {
                                for (word, &x) in place.0.iter_mut().zip(half) {
                                    *word = x.to_bits();
                                }
                            }
                        } else if let Some(place) = places.next() {
                            let halves = lines::halves(std::slice::from_mut(place));
                            for (half, &power) in halves.iter_mut().zip(&powers) {
                                *half = bf16_bits(power);
                            }
                        }
                    }
                    *inverse = folded(lanes, |a, b| a + b).recip();
                }
            },
        );
        inverses
    }
}

/// Two bf16 in a word.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    u32::from(bf16_bits(low)) | u32::from(bf16_bits(high)) << 16
}

/// Folds lanes by halves, in a fixed order.
#[inline(always)]
fn folded(mut lanes: [f32; PANEL_COLUMNS], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = PANEL_COLUMNS / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}
