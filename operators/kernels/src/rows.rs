//! Activations as the micro-kernel reads them: rows rounded to a format, in tiles.
//!
//! ```text
//! rows [rows, width] f32 ─▶ tile 0: block 0: r0 │64 B│ r1 │64 B│ … 12 places; block 1: …
//!                           tile 1: …
//!                           int8 only: a scale and an offset for each row
//! ```
//!
//! A row's rounding depends on that row only. Int8 rows are rotated first: each group of 128 columns is
//! multiplied by the Walsh–Hadamard matrix, and so are the weights, which leaves every product as it
//! was. A few columns of trained states and weights are thirty times as large as the rest and would
//! take nearly all of 255 levels; rotated, every column is a mix of 128 and none stands out. (Without,
//! the default model's least cosine is 0.993, with 0.999. The idea is that of "QuaRot", Ashkboos et al.
//! 2024; it needs no calibration.) Then the rounding is affine, x ≈ offset + scale · byte, with
//! the row's own range spread over 0..=254: GELU's outputs, which lie nearly all on one side of zero,
//! keep all eight bits. Tiles share the rows evenly (13 rows are 7 + 6, not 12 + 1), so that a short
//! rest does not run at the latency of its multiply-adds.
//!
//! Invariants: whole lines are written, so what lay there before never shows; places without a row
//! are never read.

use crate::wide::{Body, LANES, Wide, wide};

use crate::lines::{self, Line};
use crate::math::Norm;
use crate::tile::{Format, TILE_ROWS};

/// Rounds are half to even: adding 1.5·2²³ leaves the integer in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// Bytes that a row's range is spread over; one less than there are, as the zero point is rounded too.
const LEVELS: f32 = 254.0;

/// Int8 rows that are rotated before the first of them is rounded: none waits for its own range.
const ROWS_AT_ONCE: usize = 4;

/// Packed rows. Grows to the largest batch seen, then stays.
pub struct Tiles {
    lines: Vec<Line>,
    /// Int8: (scale, offset) of each row.
    affine: Vec<[f32; 2]>,
    /// Int8: some rows after their rotation.
    turned: Vec<f32>,
    format: Format,
    width: usize,
    rows: usize,
    tile_rows: usize,
    blocks: usize,
}

/// Rows of a tile (fewer in the last) when `rows` rows are shared evenly among as few as there can be.
pub(crate) fn tile_rows(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TILE_ROWS).max(1)).max(1)
}

impl Default for Tiles {
    fn default() -> Self {
        Tiles {
            lines: Vec::new(),
            affine: Vec::new(),
            turned: Vec::new(),
            format: Format::F32,
            width: 0,
            rows: 0,
            tile_rows: 1,
            blocks: 0,
        }
    }
}

impl Tiles {
    /// Prepares for `rows` rows `width` long. What is in them is left over until they are stored.
    pub fn reset(&mut self, format: Format, rows: usize, width: usize) {
        (self.format, self.width, self.rows) = (format, width, rows);
        self.tile_rows = tile_rows(rows);
        self.blocks = width.div_ceil(format.per_block());
        let lines = self.count() * self.blocks * TILE_ROWS;
        lines::sized(&mut self.lines, lines);
        if self.affine.len() < rows {
            self.affine.resize(rows, [0.0; 2]);
        }
        if format == Format::Int8 && self.turned.len() < ROWS_AT_ONCE * width {
            self.turned.resize(ROWS_AT_ONCE * width, 0.0);
        }
    }

    /// Tiles in use.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.tile_rows)
    }

    /// Rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The first row of a tile, its number of rows, its lines.
    pub fn tile(&self, tile: usize) -> (usize, usize, &[Line]) {
        let first = tile * self.tile_rows;
        let size = self.blocks * TILE_ROWS;
        let lines = &self.lines[tile * size..][..size];
        (first, self.tile_rows.min(self.rows - first), lines)
    }

    /// Int8: (scale, offset) of some rows. For other formats they mean nothing.
    pub fn affine(&self, first: usize, rows: usize) -> &[[f32; 2]] {
        &self.affine[first..first + rows]
    }

    /// Rounds and stores all rows: the first `width` of every `stride` elements of `values`.
    ///
    /// Rows and width are what `reset` was told. Panics when rows are missing.
    pub fn store(&mut self, stride: usize, values: &[f32]) {
        let width = self.width;
        assert!(
            values.len() + stride >= self.rows * stride + width && width <= stride,
            "all rows of the batch"
        );
        wide(Store {
            tiles: self,
            stride,
            values,
        });
    }

    /// Normalises rows `[rows, width]` in place, then stores them: a row is read from afar once.
    pub(crate) fn store_normalized(&mut self, norm: &Norm, values: &mut [f32]) {
        assert!(
            values.len() == self.rows * self.width && norm.width() == self.width,
            "all rows of the batch, as wide as the norm"
        );
        wide(StoreNormalized {
            tiles: self,
            norm,
            values,
        });
    }

    /// Fills all memory with bits that are NaN in every format, for tests.
    #[doc(hidden)]
    pub fn poison(&mut self) {
        self.lines.fill(Line([u32::MAX; 16]));
        self.affine.fill([f32::NAN; 2]);
        self.turned.fill(f32::NAN);
    }

    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
            + self.affine.capacity() * size_of::<[f32; 2]>()
            + self.turned.capacity() * size_of::<f32>()
    }
}

/// [`Tiles::store`], in wide vectors.
struct Store<'a> {
    tiles: &'a mut Tiles,
    stride: usize,
    values: &'a [f32],
}

impl Body for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        for first in (0..self.tiles.rows).step_by(ROWS_AT_ONCE) {
            self.tiles.store_some(w, first, self.stride, self.values);
        }
    }
}

/// [`Tiles::store_normalized`], in wide vectors.
struct StoreNormalized<'a> {
    tiles: &'a mut Tiles,
    norm: &'a Norm,
    values: &'a mut [f32],
}

impl Body for StoreNormalized<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let width = self.tiles.width;
        for first in (0..self.tiles.rows).step_by(ROWS_AT_ONCE) {
            let last = self.tiles.rows.min(first + ROWS_AT_ONCE);
            for row in self.values[first * width..last * width].chunks_exact_mut(width) {
                self.norm.row(w, row);
            }
            self.tiles.store_some(w, first, width, self.values);
        }
    }
}

impl Tiles {
    /// Rounds and stores rows from `first`, as many as are rotated together.
    #[inline(always)]
    fn store_some<W: Wide>(&mut self, w: W, first: usize, stride: usize, values: &[f32]) {
        let width = self.width;
        let of_row = |row: usize| &values[row * stride..][..width];
        let rows = first..self.rows.min(first + ROWS_AT_ONCE);
        if self.format == Format::Int8 {
            let turned = self.turned.chunks_exact_mut(width);
            for (row, turned) in rows.clone().zip(turned) {
                self.affine[row] = rotate_into(w, of_row(row), turned).into();
            }
        }
        let size = self.blocks * TILE_ROWS;
        for row in rows {
            let (tile, place) = (row / self.tile_rows, row % self.tile_rows);
            let lines = &mut self.lines[tile * size..][..size];
            match self.format {
                Format::F32 => store_row::<W, 16>(w, lines, place, of_row(row), Round::F32),
                Format::Bf16 => store_row::<W, 32>(w, lines, place, of_row(row), Round::Bf16),
                Format::Int8 => {
                    let [low, high] = self.affine[row];
                    let scale = (high - low) / LEVELS;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    // An integer, so that zero is a byte of its own; rounded once, as the bytes
                    // are: else the least value of a row could fall below byte 0.
                    let zero = low.mul_add(-inverse, ROUND) - ROUND;
                    self.affine[row] = [scale, -zero * scale];
                    let round = Round::Int8(inverse, ROUND + zero);
                    let turned = &self.turned[(row - first) * width..][..width];
                    store_row::<W, 64>(w, lines, place, turned, round);
                }
            }
        }
    }
}

/// How lanes become a part of a line.
#[derive(Clone, Copy)]
enum Round {
    F32,
    Bf16,
    /// The low byte of x · factor + shift.
    Int8(f32, f32),
}

/// Writes a row's blocks of `N` elements, zeros behind the row's end.
#[inline(always)]
fn store_row<W: Wide, const N: usize>(
    w: W,
    lines: &mut [Line],
    place: usize,
    values: &[f32],
    round: Round,
) {
    let (whole, rest) = values.as_chunks::<N>();
    for (block, values) in whole.iter().enumerate() {
        store_block(w, &mut lines[block * TILE_ROWS + place], values, round);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; N];
        padded[..rest.len()].copy_from_slice(rest);
        let line = &mut lines[whole.len() * TILE_ROWS + place];
        store_block(w, line, &padded, round);
    }
}

/// One block: word by word the elements that are sixteen apart, as [`Format::place`] says.
#[inline(always)]
fn store_block<W: Wide>(w: W, line: &mut Line, values: &[f32], round: Round) {
    let (parts, _) = values.as_chunks::<LANES>();
    let words = match round {
        Round::F32 => w.load(&parts[0]),
        Round::Bf16 => w.bf16_pairs(w.load(&parts[0]), w.load(&parts[1])),
        Round::Int8(factor, shift) => {
            let (factor, shift) = (w.splat(factor), w.splat(shift));
            w.low_bytes([
                w.fma(w.load(&parts[0]), factor, shift),
                w.fma(w.load(&parts[1]), factor, shift),
                w.fma(w.load(&parts[2]), factor, shift),
                w.fma(w.load(&parts[3]), factor, shift),
            ])
        }
    };
    w.store_line(words, line);
}

/// Elements that are rotated together.
const GROUP: usize = 8 * LANES;
/// What a rotation makes of a column's size, √128; columns that are in no whole group are given it too.
const GROWTH: f32 = 11.313_708;

/// Multiplies each whole group of 128 columns by the Walsh–Hadamard matrix, which is its own inverse
/// but for the factor 128; a rest is made √128 times as large. Gives the smallest and the largest value, zero
/// among them.
#[inline(always)]
fn rotate_into<W: Wide>(w: W, values: &[f32], out: &mut [f32]) -> (f32, f32) {
    let (mut low, mut high) = (w.splat(0.0), w.splat(0.0));
    let (groups, rest) = values.as_chunks::<GROUP>();
    let (out_groups, out_rest) = out.as_chunks_mut::<GROUP>();
    for (group, out) in groups.iter().zip(out_groups) {
        let v: &[[f32; LANES]; 8] = group.as_chunks().0.first_chunk().expect("eight vectors");
        let (a, b) = both(w, w.load(&v[0]), w.load(&v[1]));
        let (c, d) = both(w, w.load(&v[2]), w.load(&v[3]));
        let (e, f) = both(w, w.load(&v[4]), w.load(&v[5]));
        let (g, h) = both(w, w.load(&v[6]), w.load(&v[7]));
        let ((a, c), (b, d)) = (both(w, a, c), both(w, b, d));
        let ((e, g), (f, h)) = (both(w, e, g), both(w, f, h));
        let ((a, e), (b, f)) = (both(w, a, e), both(w, b, f));
        let ((c, g), (d, h)) = (both(w, c, g), both(w, d, h));
        let vectors = [a, b, c, d, e, f, g, h];
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let v = w.hadamard(vectors[i]);
            (low, high) = (w.min(v, low), w.max(v, high));
            w.store(v, out);
        }
    }
    let low = w.fold(low, |a, b| if a < b { a } else { b });
    let high = w.fold(high, |a, b| if a > b { a } else { b });
    let mut range = (low, high);
    for (out, &x) in out_rest.iter_mut().zip(rest) {
        let x = x * GROWTH;
        *out = x;
        range = (
            if x < range.0 { x } else { range.0 },
            if x > range.1 { x } else { range.1 },
        );
    }
    range
}

/// Sum and difference.
#[inline(always)]
fn both<W: Wide>(w: W, a: W::V, b: W::V) -> (W::V, W::V) {
    (w.add(a, b), w.sub(a, b))
}

/// Rotates a row of int8 weights the same way, with the factor 1/128 that rows lack.
pub(crate) fn rotate_weights(values: &mut [f32]) {
    struct Rotate<'a>(&'a mut [f32]);
    impl Body for Rotate<'_> {
        type Output = ();

        #[inline(always)]
        fn run<W: Wide>(self, w: W) {
            let before = self.0.to_vec();
            rotate_into(w, &before, self.0);
        }
    }
    wide(Rotate(&mut *values));
    values.iter_mut().for_each(|w| *w /= GROUP as f32);
}

#[cfg(test)]
mod tests;
