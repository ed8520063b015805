//! The micro-kernel in plain Rust: what machines without a kernel of their own run, and the twin
//! that tests hold the others against (NEON's is only compiled here).

use super::{BF16, F32, Format, INT8, Lanes, RawKernel, Sums, multiply};
use crate::lines::Line;

/// Four lanes, as NEON.
struct Plain;

#[allow(unsafe_code)]
// SAFETY (whole block): plain Rust; pointers are good for four words, as the trait asks.
impl Lanes for Plain {
    type Vector = [u32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> [u32; 4] {
        [0; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> [u32; 4] {
        unsafe { from.cast::<[u32; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> [u32; 4] {
        [unsafe { from.read() }; 4]
    }

    #[inline(always)]
    unsafe fn store(vector: [u32; 4], to: *mut u32) {
        unsafe { to.cast::<[u32; 4]>().write(vector) }
    }

    #[inline(always)]
    unsafe fn dot_f32(sum: [u32; 4], x: [u32; 4], w: [u32; 4]) -> [u32; 4] {
        lane_by_lane(sum, x, w, |sum, x, w| {
            let (x, w) = (f32::from_bits(x), f32::from_bits(w));
            x.mul_add(w, f32::from_bits(sum)).to_bits()
        })
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: [u32; 4], x: [u32; 4], w: [u32; 4]) -> [u32; 4] {
        let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
        let low = |pair: u32| f32::from_bits(pair << 16);
        lane_by_lane(sum, x, w, |sum, x, w| {
            let sum = high(x).mul_add(high(w), f32::from_bits(sum));
            low(x).mul_add(low(w), sum).to_bits()
        })
    }

    #[inline(always)]
    unsafe fn dot_int8(sum: [u32; 4], x: [u32; 4], w: [u32; 4]) -> [u32; 4] {
        lane_by_lane(sum, x, w, |sum, x, w| {
            let products = x.to_le_bytes().into_iter().zip(w.to_le_bytes());
            let dot: i32 = products
                .map(|(x, w)| i32::from(x) * i32::from(w as i8))
                .sum();
            sum.wrapping_add(dot as u32)
        })
    }
}

#[inline(always)]
fn lane_by_lane(
    sum: [u32; 4],
    x: [u32; 4],
    w: [u32; 4],
    dot: impl Fn(u32, u32, u32) -> u32,
) -> [u32; 4] {
    std::array::from_fn(|lane| dot(sum[lane], x[lane], w[lane]))
}

pub(super) fn kernel(format: Format) -> RawKernel {
    match format {
        Format::F32 => rows::<F32>,
        Format::Bf16 => rows::<BF16>,
        Format::Int8 => rows::<INT8>,
    }
}

/// Row by row: on the machines that run this, clarity counts.
///
/// # Safety
/// As [`multiply`].
#[allow(unsafe_code)]
unsafe fn rows<const FORMAT: u8>(
    rows: usize,
    tile: *const Line,
    blocks: usize,
    panel: *const Line,
    sums: &mut Sums,
) {
    for row in 0..rows {
        // SAFETY: the caller's promise, one row at a time.
        unsafe { multiply::<Plain, FORMAT, 1>(row, tile, blocks, panel, sums) };
    }
}
