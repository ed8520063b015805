//! The full-precision linear layer: weights in panels, inputs in tiles, sums in registers.
//!
//! ```text
//!            panel: 2 vectors wide                 one step of the depth:
//!   W  ┌──┬──┬──┬──┐  [inputs, 2·lanes] each         R inputs × 2 vectors ─▶ 2·R sums in registers
//!      │  │  │  │  │
//!      └──┴──┴──┴──┘       X: tiles of R rows, [inputs, R] each
//! ```
//!
//! Both operands are read with unit stride. The depth is cut so that a panel's and a tile's share
//! lie in the first-level cache; the tiles of a text stay in the second. (A row-major weight is read
//! a page a step: the `gemm` crate took 1.2 times as long at 128 tokens.)
//!
//! Invariants: a row of the result depends on its own input row only, bitwise; no thread, and no
//! memory once the calling thread's tiles have grown. Limits: packed for this machine's instruction
//! set, at load; the design is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (2008).

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use crate::linear::PackedLinear;

/// Rows of a tile with 32 vector registers: two vectors a row, so 24 of them hold sums.
const ROWS_MANY: usize = 12;
/// Rows of a tile with 16 registers: AVX2 and less.
const ROWS_FEW: usize = 6;
/// Inputs taken at once: a panel's and a tile's share (24 + 9 KiB) lie in the first-level cache.
const DEPTH: usize = 192;
/// The widest panel of any instruction set, in elements.
const PANEL_MAX: usize = 32;

thread_local! {
    /// The input, packed in tiles: grows to the longest text seen, then stays.
    static TILES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Full precision, by a register-tiled kernel in `pulp`'s portable vectors.
pub struct F32Linear {
    inputs: usize,
    outputs: usize,
    /// Elements of a vector when the weight was packed.
    lanes: usize,
    /// Rows of a tile.
    tile_rows: usize,
    /// `[outputs / (2 · lanes) rounded up, inputs, 2 · lanes]`, zeros in the last panel's rest.
    panels: Vec<f32>,
    /// Where the panels start, so that no vector straddles two cache lines.
    start: usize,
    bias: Vec<f32>,
}

/// Asks for what packing depends on: elements of a vector, rows of a tile.
struct Shape;

impl WithSimd for Shape {
    type Output = (usize, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
        let has_many = S::REGISTER_COUNT >= 32;
        let rows = if has_many { ROWS_MANY } else { ROWS_FEW };
        (S::F32_LANES, rows)
    }
}

impl F32Linear {
    /// Packs a layer from the checkpoint's layout: `weight[outputs, inputs]` row-major.
    ///
    /// Panics when the lengths disagree; [`crate::weights`] has checked shapes before.
    pub fn pack(inputs: usize, outputs: usize, weight: &[f32], bias: Vec<f32>) -> Self {
        assert_eq!(
            weight.len(),
            inputs * outputs,
            "weight is [outputs, inputs]"
        );
        assert_eq!(bias.len(), outputs, "one bias an output");
        let (lanes, tile_rows) = Arch::new().dispatch(Shape);
        let width = 2 * lanes;
        assert!(width <= PANEL_MAX, "a panel fits its scratch");
        let mut panels = vec![0.0_f32; outputs.div_ceil(width) * inputs * width + PANEL_MAX];
        let start = panels.as_ptr().align_offset(64).min(PANEL_MAX);
        for (output, weights) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut panels[start + output / width * inputs * width..];
            for (input, &w) in weights.iter().enumerate() {
                panel[input * width + output % width] = w;
            }
        }
        F32Linear {
            inputs,
            outputs,
            lanes,
            tile_rows,
            panels,
            start,
            bias,
        }
    }
}

impl PackedLinear for F32Linear {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn bias(&self) -> &[f32] {
        &self.bias
    }

    fn accumulate(&self, rows: usize, input: &[f32], output: &mut [f32]) {
        assert!(
            input.len() >= rows * self.inputs,
            "the input holds its rows"
        );
        assert!(
            output.len() >= rows * self.outputs,
            "the output holds the product"
        );
        TILES.with_borrow_mut(|tiles| {
            pack_tiles(self.tile_rows, rows, self.inputs, input, tiles);
            Arch::new().dispatch(Accumulate {
                layer: self,
                rows,
                tiles,
                output,
            });
        });
    }

    fn resident_bytes(&self) -> usize {
        (self.panels.len() + self.bias.len()) * size_of::<f32>()
    }
}

/// Lays rows out as `[tile][input][tile_rows]`, zeros where the last tile has no row.
fn pack_tiles(tile_rows: usize, rows: usize, inputs: usize, input: &[f32], tiles: &mut Vec<f32>) {
    let count = rows.div_ceil(tile_rows);
    let size = inputs * tile_rows;
    if tiles.len() < count * size {
        tiles.resize(count * size, 0.0);
    }
    for (i, tile) in tiles.chunks_exact_mut(size).take(count).enumerate() {
        for r in 0..tile_rows {
            let row = i * tile_rows + r;
            let columns = tile[r..].iter_mut().step_by(tile_rows);
            if row < rows {
                let from = &input[row * inputs..][..inputs];
                columns.zip(from).for_each(|(to, &x)| *to = x);
            } else {
                columns.for_each(|to| *to = 0.0);
            }
        }
    }
}

/// The product of packed tiles with packed panels, added onto the output.
struct Accumulate<'a> {
    layer: &'a F32Linear,
    rows: usize,
    tiles: &'a [f32],
    output: &'a mut [f32],
}

impl WithSimd for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        assert_eq!(
            S::F32_LANES,
            self.layer.lanes,
            "packed for this instruction set"
        );
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, ROWS_MANY>(simd);
        } else {
            self.run::<S, ROWS_FEW>(simd);
        }
    }
}

impl Accumulate<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(self, simd: S) {
        let (inputs, outputs) = (self.layer.inputs, self.layer.outputs);
        let width = 2 * S::F32_LANES;
        let size = outputs.div_ceil(width) * inputs * width;
        let panels = &self.layer.panels[self.layer.start..][..size];
        for from in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - from);
            for (p, panel) in panels.chunks_exact(inputs * width).enumerate() {
                let panel = &panel[from * width..][..depth * width];
                let columns = width.min(outputs - p * width);
                let tiles = self.tiles.chunks_exact(inputs * R);
                for (first, tile) in (0..self.rows).step_by(R).zip(tiles) {
                    let tile = &tile[from * R..][..depth * R];
                    let sums = multiply_tile::<S, R>(simd, tile, panel);
                    let rows = R.min(self.rows - first);
                    let out = &mut self.output[first * outputs + p * width..];
                    add_tile(simd, &sums[..rows], out, outputs, columns);
                }
            }
        }
    }
}

/// The sums of one tile: `tile[depth, R]ᵀ · panel[depth, 2 · lanes]`.
#[inline(always)]
fn multiply_tile<S: Simd, const R: usize>(
    simd: S,
    tile: &[f32],
    panel: &[f32],
) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    let vectors = S::as_simd_f32s(panel).0.as_chunks::<2>().0;
    for (inputs, &[left, right]) in tile.as_chunks::<R>().0.iter().zip(vectors) {
        // Written out by a macro: with a loop the compiler keeps the sums in memory.
        macro_rules! rows {
            ($($r:literal)*) => {$(
                if $r < R {
                    let x = simd.splat_f32s(inputs[$r]);
                    sums[$r][0] = simd.mul_add_f32s(x, left, sums[$r][0]);
                    sums[$r][1] = simd.mul_add_f32s(x, right, sums[$r][1]);
                }
            )*};
        }
        rows!(0 1 2 3 4 5 6 7 8 9 10 11);
    }
    sums
}

/// Adds a tile's sums onto the output, `columns` of each row.
#[inline(always)]
fn add_tile<S: Simd>(
    simd: S,
    sums: &[[S::f32s; 2]],
    output: &mut [f32],
    stride: usize,
    columns: usize,
) {
    for (row, sums) in output.chunks_mut(stride).zip(sums) {
        if columns == 2 * S::F32_LANES {
            let (vectors, _) = S::as_mut_simd_f32s(&mut row[..columns]);
            vectors[0] = simd.add_f32s(vectors[0], sums[0]);
            vectors[1] = simd.add_f32s(vectors[1], sums[1]);
        } else {
            let mut flat = [0.0; PANEL_MAX];
            let (vectors, _) = S::as_mut_simd_f32s(&mut flat[..2 * S::F32_LANES]);
            vectors.copy_from_slice(sums);
            let columns = row[..columns].iter_mut();
            columns.zip(&flat).for_each(|(x, y)| *x += y);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::prelude::*;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn accumulate_adds_the_product_onto_the_output() {
        // W is [2 outputs, 3 inputs].
        let layer = F32Linear::pack(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![0.5, -0.5]);
        let mut output = vec![10.0, 20.0, 30.0, 40.0];
        layer.accumulate(2, &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0], &mut output);
        assert_eq!(output, [11.0, 24.0, 35.0, 51.0]);
        assert_eq!(layer.bias(), [0.5, -0.5]);
    }

    #[test]
    #[should_panic(expected = "the output holds the product")]
    fn a_short_output_is_refused() {
        let layer = F32Linear::pack(1, 2, &[1.0, 1.0], vec![0.0, 0.0]);
        layer.accumulate(2, &[1.0, 1.0], &mut [0.0; 3]);
    }

    /// Shapes that end in the middle of a tile, a panel and a depth; each row bitwise as if alone.
    #[test]
    fn any_shape_is_right_and_a_row_is_alone() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (rows, inputs, outputs) in [(1, 1, 1), (5, 7, 3), (13, 200, 33), (25, 385, 70)] {
            let mut draw =
                |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
            let (weight, input) = (draw(inputs * outputs), draw(rows * inputs));
            let layer = F32Linear::pack(inputs, outputs, &weight, vec![0.0; outputs]);
            let mut output = vec![1.0; rows * outputs];
            layer.accumulate(rows, &input, &mut output);
            for (row, out) in input.chunks(inputs).zip(output.chunks(outputs)) {
                for (weights, &found) in weight.chunks(inputs).zip(out) {
                    let products = row
                        .iter()
                        .zip(weights)
                        .map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let exact = 1.0 + products.sum::<f64>();
                    assert!((f64::from(found) - exact).abs() < 1e-4, "{found} {exact}");
                }
                let mut alone = vec![1.0; outputs];
                layer.accumulate(1, row, &mut alone);
                assert_eq!(alone, out, "{rows} × {inputs} × {outputs}");
            }
        }
    }
}
