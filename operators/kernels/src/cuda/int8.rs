//! Launches of `cuda/linear_int8_hopper.cu` and `cuda/narrow_int8_hopper.cu`: products of bytes, and weights as
//! bytes.
//!
//! ```text
//!   x ─ LayerNorm, rotated ─▶ bytes, a scale a row ─┬─ Product::halves, heads ─▶ qkv, halves
//!                                                    └─ Product::gelu ─▶ bytes, a scale a row and 128 columns
//!                                                                                  └─ Product::narrow ─▶ halves
//! ```
//!
//! The idea is [`crate::rows`]': states have a few large columns, so groups of columns are mixed by a
//! Walsh–Hadamard matrix before they are rounded, and the weights of the product that reads them are mixed
//! by the same. What a group is, [`Rotation`] says; `cuda/bytes.cuh` does it to the states.
//!
//! Invariants: a weight's bytes and scale depend on its own row only; the sum of a product is exact (|byte| ≤
//! 127 and at most 133,000 columns fit 31 bits). Limits: Hopper; inputs a multiple of 128.

use super::cluster::Spread;
use super::device::{Arg, Fault, Kind, Launch, Tensor, blocks, int};
use super::linear::{HOPPER_COLUMNS, HOPPER_SHARED_BYTES};

/// Columns that are rotated together, and that have a scale behind GELU.
pub const GROUP: usize = 128;
/// The most that a byte stands for.
const LEVELS: f32 = 127.0;

/// Rows of a tile, columns where a group has a scale, and bytes of K of a step.
const TILE: usize = 128;
/// Room to begin at a multiple of 1,024, a ring of four stages of two 128×128 operands, eight barriers, and …
const RING_BYTES: u32 = 1024 + 4 * 2 * 128 * 128 + 64;
/// … two finished tiles of halves, 128×128 each,
const PINGPONG_BYTES: u32 = RING_BYTES + 2 * 128 * 128 * 2;
/// … or two of 64×128.
const NARROW_BYTES: u32 = RING_BYTES + 2 * 64 * 128 * 2;

/// How states are mixed before they become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// 128 columns in a row: behind a LayerNorm, where a warp has the row.
    Columns,
    /// Of 128 columns the 32 with the same `column / 2 % 4`: behind GELU, where a lane of a tensor core has these.
    Lanes,
}

impl Rotation {
    /// How many are mixed.
    pub fn size(self) -> usize {
        match self {
            Rotation::Columns => GROUP,
            Rotation::Lanes => 32,
        }
    }

    /// Column of a group's number `at` of part `part`, both from 0.
    pub fn column(self, part: usize, at: usize) -> usize {
        match self {
            Rotation::Columns => at,
            Rotation::Lanes => at / 2 * 8 + part * 2 + at % 2,
        }
    }

    /// Multiplies a row by the matrix, whose columns have length 1. The row's length is a multiple of [`GROUP`].
    fn apply(self, row: &mut [f32]) {
        let size = self.size();
        let mut mixed = vec![0.0; size];
        for group in row.chunks_exact_mut(GROUP) {
            for part in 0..GROUP / size {
                for (at, mixed) in mixed.iter_mut().enumerate() {
                    *mixed = group[self.column(part, at)];
                }
                mix(&mut mixed);
                for (at, mixed) in mixed.iter().enumerate() {
                    group[self.column(part, at)] = mixed / (size as f32).sqrt();
                }
            }
        }
    }
}

/// The Walsh–Hadamard matrix, not scaled.
fn mix(values: &mut [f32]) {
    let mut width = 1;
    while width < values.len() {
        for pair in values.chunks_exact_mut(2 * width) {
            let (low, high) = pair.split_at_mut(width);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        width *= 2;
    }
}

/// `weight [outputs, inputs]`, rotated, as bytes, and the scale of each output.
///
/// Cost: a pass over the weights. Panics unless `inputs` is a multiple of [`GROUP`].
pub fn quantize(weight: &[f32], inputs: usize, rotation: Rotation) -> (Vec<i8>, Vec<f32>) {
    assert!(inputs.is_multiple_of(GROUP), "{inputs} inputs");
    let mut rotated = weight.to_vec();
    let (mut bytes, mut scales) = (Vec::with_capacity(weight.len()), Vec::new());
    for row in rotated.chunks_exact_mut(inputs) {
        rotation.apply(row);
        let largest = row.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        let inverse = if largest > 0.0 { LEVELS / largest } else { 0.0 };
        bytes.extend(row.iter().map(|w| (w * inverse).round_ties_even() as i8));
        scales.push(largest / LEVELS);
    }
    (bytes, scales)
}

/// Numbers as bytes on the device: a number is its byte times its scale.
#[derive(Debug, Clone, Copy)]
pub struct Quantized {
    /// `[rows, columns]`.
    pub bytes: Tensor,
    /// f32; of weights `[1, rows]`, of states `[rows, 1]`, behind GELU `[rows, columns / 128]`.
    pub scales: Tensor,
}

/// The operands of a product of bytes, `X·Wᵀ + b`.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// One `int` on the device: how many rows the batch really has.
    pub count: Tensor,
    /// `[capacity, inputs]`.
    pub x: Quantized,
    /// `[outputs, inputs]`.
    pub weight: Quantized,
    /// `[1, outputs]` in f32.
    pub bias: Tensor,
}

impl Product {
    /// The sums in halves, `y [capacity, outputs]`, of states with one scale a row. Cost: 2 · rows · inputs ·
    /// outputs operations.
    pub fn halves(&self, y: Tensor, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        self.check(1)?;
        y.expect("y", self.x.bytes.rows, self.outputs(), Kind::F16)?;
        self.linear(
            [
                "linear_int8_hopper_bias",
                "linear_int8_hopper_bias_by2",
                "linear_int8_hopper_bias_by4",
            ],
            (HOPPER_COLUMNS, HOPPER_SHARED_BYTES),
            y,
            spread.into(),
        )
    }

    /// The same in planes of 32 columns, for [`super::attention::launch_heads`]: `y` is `[outputs / 32 · capacity, 32]`.
    pub fn heads(&self, y: Tensor, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        let capacity = self.x.bytes.rows;
        self.check(1)?;
        y.expect(
            "the planes",
            super::linear::planes(self.outputs())? * capacity,
            super::attention::WIDTH,
            Kind::F16,
        )?;
        let kernels = [
            "linear_int8_hopper_heads",
            "linear_int8_hopper_heads_by2",
            "linear_int8_hopper_heads_by4",
        ];
        let room = (HOPPER_COLUMNS, HOPPER_SHARED_BYTES);
        let mut launch = self.linear(kernels, room, y, spread.into())?;
        launch.args.push(int(capacity)?);
        Ok(launch)
    }

    /// GELU of the sums as bytes, rotated by [`Rotation::Lanes`], of states with one scale a row.
    pub fn gelu(&self, y: Quantized, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        let (rows, outputs) = (self.x.bytes.rows, self.outputs());
        self.check(1)?;
        y.bytes.expect("y", rows, outputs, Kind::Byte)?;
        let groups = outputs / GROUP;
        y.scales
            .expect("the scales of y", rows, groups, Kind::F32)?;
        if !outputs.is_multiple_of(GROUP) {
            return Err(Fault::Shape(format!(
                "{outputs} columns behind GELU, expected a multiple of {GROUP}"
            )));
        }
        let mut launch = self.linear(
            [
                "linear_int8_hopper_gelu",
                "linear_int8_hopper_gelu_by2",
                "linear_int8_hopper_gelu_by4",
            ],
            (TILE, PINGPONG_BYTES),
            y.bytes,
            spread.into(),
        )?;
        launch.args.push(Arg::Address(y.scales.address));
        Ok(launch)
    }

    /// The sums in halves of states with a scale for each 128 columns.
    pub fn narrow(&self, y: Tensor, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        self.check(self.inputs() / GROUP)?;
        y.expect("y", self.x.bytes.rows, self.outputs(), Kind::F16)?;
        self.linear(
            [
                "narrow_int8_hopper",
                "narrow_int8_hopper_by2",
                "narrow_int8_hopper_by4",
            ],
            (TILE, NARROW_BYTES),
            y,
            spread.into(),
        )
    }

    fn inputs(&self) -> usize {
        self.weight.bytes.columns
    }

    fn outputs(&self) -> usize {
        self.weight.bytes.rows
    }

    /// Fails on shapes that disagree; `scales` are those of a row of x.
    fn check(&self, scales: usize) -> Result<(), Fault> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let (x, weight) = (self.x, self.weight);
        self.count.expect("the count", 1, 1, Kind::Int)?;
        x.bytes.expect("x", 0, inputs, Kind::Byte)?;
        x.scales
            .expect("the scales of x", x.bytes.rows, scales, Kind::F32)?;
        weight
            .bytes
            .expect("the weight", outputs, inputs, Kind::Byte)?;
        weight
            .scales
            .expect("the weight's scales", 1, outputs, Kind::F32)?;
        self.bias.expect("the bias", 1, outputs, Kind::F32)?;
        if !inputs.is_multiple_of(GROUP) || !outputs.is_multiple_of(8) {
            return Err(Fault::Shape(format!(
                "{inputs} inputs and {outputs} outputs, expected multiples of {GROUP} and 8"
            )));
        }
        Ok(())
    }

    /// What all kernels begin with. `share`: rows of a box of the weight.
    fn args(&self, share: usize) -> Vec<Arg> {
        vec![
            Arg::boxes(self.x.bytes, TILE, GROUP),
            Arg::boxes(self.weight.bytes, share, GROUP),
            Arg::Address(self.count.address),
            Arg::Address(self.x.scales.address),
            Arg::Address(self.weight.scales.address),
            Arg::Address(self.bias.address),
        ]
    }

    /// `columns` of a tile; kernels by the cluster's size.
    fn linear(
        &self,
        kernels: [&'static str; 3],
        (columns, shared_bytes): (usize, u32),
        y: Tensor,
        spread: Spread,
    ) -> Result<Launch, Fault> {
        let down = blocks(self.x.bytes.rows, TILE)?;
        let grid = spread.grid(down, blocks(self.outputs(), columns)?);
        let mut args = self.args(grid.share(columns));
        args.extend([
            Arg::Address(y.address),
            int(self.inputs())?,
            int(self.outputs())?,
        ]);
        Ok(Launch {
            kernel: grid.kernel(kernels),
            placement: grid.placement,
            grid: grid.grid,
            threads: 384,
            shared_bytes,
            args,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(address: u64, rows: usize, columns: usize, kind: Kind) -> Tensor {
        Tensor {
            address,
            rows,
            columns,
            kind,
        }
    }

    #[test]
    fn a_rotation_is_its_own_inverse_and_keeps_products() {
        for rotation in [Rotation::Columns, Rotation::Lanes] {
            let a: Vec<f32> = (0..256).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let b: Vec<f32> = (0..256).map(|i| ((i * 53) % 89) as f32 - 44.0).collect();
            let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let (mut ra, mut rb) = (a.clone(), b.clone());
            rotation.apply(&mut ra);
            rotation.apply(&mut rb);
            assert_ne!(ra, a);
            assert!((dot(&a, &b) - dot(&ra, &rb)).abs() < 0.5);
            rotation.apply(&mut ra);
            assert!(a.iter().zip(&ra).all(|(a, b)| (a - b).abs() < 1e-3));
        }
    }

    #[test]
    fn every_column_is_in_one_part() {
        for rotation in [Rotation::Columns, Rotation::Lanes] {
            let parts = GROUP / rotation.size();
            let all = (0..parts)
                .flat_map(|part| (0..rotation.size()).map(move |at| rotation.column(part, at)));
            let mut all: Vec<usize> = all.collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..GROUP));
        }
    }

    #[test]
    fn weights_of_zeros_are_zeros() {
        let (bytes, scales) = quantize(&[0.0; 256], 128, Rotation::Columns);
        assert_eq!((bytes, scales), (vec![0; 256], vec![0.0; 2]));
    }

    #[test]
    fn shapes_that_disagree_are_refused() {
        let quantized = |address: u64, rows: usize, columns: usize, scales: (usize, usize)| {
            let bytes = tensor(address, rows, columns, Kind::Byte);
            let scales = tensor(address + 0x1000, scales.0, scales.1, Kind::F32);
            Quantized { bytes, scales }
        };
        let good = Product {
            count: tensor(4, 1, 1, Kind::Int),
            x: quantized(16, 200, 384, (200, 1)),
            weight: quantized(32, 1536, 384, (1, 1536)),
            bias: tensor(48, 1, 1536, Kind::F32),
        };
        let wide = quantized(64, 200, 1536, (200, 12));
        let halves = tensor(80, 200, 1536, Kind::F16);
        assert_eq!(good.gelu(wide, 132).unwrap().grid(), [24, 1, 1]);
        assert_eq!(good.halves(halves, 7).unwrap().grid(), [7, 1, 1]);
        let narrow = Product {
            x: wide,
            weight: quantized(32, 384, 1536, (1, 384)),
            bias: tensor(48, 1, 384, Kind::F32),
            ..good
        };
        let out = tensor(80, 200, 384, Kind::F16);
        assert_eq!(narrow.narrow(out, 132).unwrap().grid(), [6, 1, 1]);
        // One scale a row where there are twelve, and the other way round.
        assert!(narrow.halves(out, 132).is_err() && good.narrow(halves, 132).is_err());
        let short = quantized(64, 199, 1536, (199, 12));
        assert!(good.gelu(short, 132).is_err());
        let floats = tensor(80, 200, 1536, Kind::F32);
        assert!(good.halves(floats, 132).is_err());
        let odd = Product {
            x: quantized(16, 200, 320, (200, 1)),
            weight: quantized(32, 1536, 320, (1, 1536)),
            ..good
        };
        assert!(odd.halves(halves, 132).is_err());
    }
}
