//! Activations as the micro-kernel reads them: rows rounded to a format, in tiles.
//!
//! ```text
//! rows [rows, width] f32 ─▶ tile 0: block 0: r0 │64 B│ r1 │64 B│ … 12 places; block 1: …
//!                           tile 1: …
//!                           int8 only: a scale and an offset for each row
//! ```
//!
//! A row's rounding depends on that row only. For int8 it is affine, x ≈ offset + scale · byte, with
//! the row's own range spread over 0..=254: GELU's outputs, which lie nearly all on one side of zero,
//! keep all eight bits. Tiles share the rows evenly (13 rows are 7 + 6, not 12 + 1), so that a short
//! rest does not run at the latency of its multiply-adds.
//!
//! Invariants: whole lines are written, so what lay there before never shows; places without a row
//! are never read.

use crate::wide::{Body, LANES, Wide, wide};

use crate::lines::{self, Line};
use crate::tile::{Format, TILE_ROWS};

/// Rounds are half to even: adding 1.5·2²³ leaves the integer in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// Bytes that a row's range is spread over; one less than there are, as the zero point is rounded too.
const LEVELS: f32 = 254.0;

/// Packed rows. Grows to the largest batch seen, then stays.
pub struct Tiles {
    lines: Vec<Line>,
    /// Int8: (scale, offset) of each row.
    affine: Vec<[f32; 2]>,
    format: Format,
    width: usize,
    rows: usize,
    tile_rows: usize,
    blocks: usize,
}

impl Default for Tiles {
    fn default() -> Self {
        Tiles {
            lines: Vec::new(),
            affine: Vec::new(),
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
        self.tile_rows = rows.div_ceil(rows.div_ceil(TILE_ROWS).max(1)).max(1);
        self.blocks = width.div_ceil(format.per_block());
        let lines = self.count() * self.blocks * TILE_ROWS;
        lines::sized(&mut self.lines, lines);
        if format == Format::Int8 && self.affine.len() < rows {
            self.affine.resize(rows, [0.0; 2]);
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

    /// Int8: (scale, offset) of the rows from `first`.
    pub fn affine(&self, first: usize) -> &[[f32; 2]] {
        &self.affine[first..self.rows]
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

    /// Fills all memory with bits that are NaN in every format, for tests.
    #[doc(hidden)]
    pub fn poison(&mut self) {
        self.lines.fill(Line([u32::MAX; 16]));
        self.affine.fill([f32::NAN; 2]);
    }

    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>() + self.affine.capacity() * size_of::<[f32; 2]>()
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
        let tiles = self.tiles;
        let size = tiles.blocks * TILE_ROWS;
        let rows = self.values.chunks(self.stride).take(tiles.rows);
        for (row, values) in rows.enumerate() {
            let values = &values[..tiles.width];
            let (tile, place) = (row / tiles.tile_rows, row % tiles.tile_rows);
            let lines = &mut tiles.lines[tile * size..][..size];
            match tiles.format {
                Format::F32 => store_row::<W, 16, 1>(w, lines, place, values, Round::F32),
                Format::Bf16 => store_row::<W, 32, 2>(w, lines, place, values, Round::Bf16),
                Format::Int8 => {
                    let (low, high) = range(w, values);
                    let scale = (high - low) / LEVELS;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    // An integer, so that zero is a byte of its own.
                    let zero = (ROUND - low * inverse) - ROUND;
                    tiles.affine[row] = [scale, -zero * scale];
                    let round = Round::Int8(inverse, ROUND + zero);
                    store_row::<W, 64, 4>(w, lines, place, values, round);
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

/// Writes a row's blocks of `N` elements, `PARTS` vectors each, zeros behind the row's end.
#[inline(always)]
fn store_row<W: Wide, const N: usize, const PARTS: usize>(
    w: W,
    lines: &mut [Line],
    place: usize,
    values: &[f32],
    round: Round,
) {
    let (whole, rest) = values.as_chunks::<N>();
    for (block, values) in whole.iter().enumerate() {
        store_block::<W, PARTS>(w, &mut lines[block * TILE_ROWS + place], values, round);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; N];
        padded[..rest.len()].copy_from_slice(rest);
        let line = &mut lines[whole.len() * TILE_ROWS + place];
        store_block::<W, PARTS>(w, line, &padded, round);
    }
}

#[inline(always)]
fn store_block<W: Wide, const PARTS: usize>(w: W, line: &mut Line, values: &[f32], round: Round) {
    let line = std::slice::from_mut(line);
    let (parts, _) = values.as_chunks::<LANES>();
    for part in 0..PARTS {
        let v = w.load(&parts[part]);
        match round {
            Round::F32 => w.store_line(v, &mut line[0]),
            Round::Bf16 => w.store_bf16(v, &mut lines::halves(line).as_chunks_mut().0[part]),
            Round::Int8(factor, shift) => {
                let v = w.fma(v, w.splat(factor), w.splat(shift));
                w.store_low_bytes(v, &mut lines::bytes(line).as_chunks_mut().0[part]);
            }
        }
    }
}

/// The smallest and the largest value, zero among them.
#[inline(always)]
fn range<W: Wide>(w: W, values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = (w.splat(0.0), w.splat(0.0));
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        let v = w.load(chunk);
        (low, high) = (w.min(v, low), w.max(v, high));
    }
    let mut padded = [0.0; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    let v = w.load(&padded);
    (low, high) = (w.min(v, low), w.max(v, high));
    let low = w.fold(low, |a, b| if a < b { a } else { b });
    let high = w.fold(high, |a, b| if a > b { a } else { b });
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_evenly() {
        let mut tiles = Tiles::default();
        let mut shares = |rows: usize| -> Vec<usize> {
            tiles.reset(Format::F32, rows, 16);
            (0..tiles.count()).map(|tile| tiles.tile(tile).1).collect()
        };
        assert_eq!(shares(1), [1]);
        assert_eq!(shares(12), [12]);
        assert_eq!(shares(13), [7, 6]);
        assert_eq!(shares(25), [9, 9, 7]);
        assert_eq!(shares(0), [0; 0]);
    }

    #[test]
    fn a_byte_is_within_half_a_level_and_zero_is_exact() {
        let mut values: Vec<f32> = (0..100)
            .map(|i| ((i * 37) % 101) as f32 * 0.03 - 0.2)
            .collect();
        values[7] = 0.0;
        let mut tiles = Tiles::default();
        tiles.reset(Format::Int8, 1, 100);
        tiles.poison();
        tiles.store(100, &values);
        let [scale, offset] = tiles.affine(0)[0];
        let (_, _, lines) = tiles.tile(0);
        for (i, &x) in values.iter().enumerate() {
            let line = &mut lines[i / 64 * TILE_ROWS].clone();
            let byte = lines::bytes(std::slice::from_mut(line))[i % 64];
            let back = offset + scale * f32::from(byte);
            assert!(
                (back - x).abs() <= scale * 0.5001,
                "{x} came back as {back}"
            );
            assert!(x != 0.0 || back == 0.0);
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let mut tiles = Tiles::default();
        tiles.reset(Format::Int8, 1, 64);
        tiles.store(64, &[0.0; 64]);
        assert_eq!(tiles.affine(0), [[0.0, 0.0]]);
    }
}
