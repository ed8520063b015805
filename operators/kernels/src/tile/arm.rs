//! The micro-kernel's instructions on aarch64: NEON, which every such CPU has.
//!
//! 32 registers of 4 columns: 12 rows × 2, four passes over the panel's columns. Written like its
//! scalar twin, which the tests run; compiled here, not measured.

use std::arch::aarch64::*;

use super::{BF16, F32, Format, INT8, Lanes, RawKernel, Sums, TILE_ROWS, multiply};
use crate::lines::Line;

struct Neon;

#[allow(unsafe_code)]
// SAFETY (whole block): NEON is part of aarch64; pointers are good for four words.
impl Lanes for Neon {
    type Vector = uint32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> uint32x4_t {
        unsafe { vdupq_n_u32(0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> uint32x4_t {
        unsafe { vld1q_u32(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> uint32x4_t {
        unsafe { vld1q_dup_u32(from) }
    }

    #[inline(always)]
    unsafe fn store(vector: uint32x4_t, to: *mut u32) {
        unsafe { vst1q_u32(to, vector) }
    }

    #[inline(always)]
    unsafe fn dot_f32(sum: uint32x4_t, x: uint32x4_t, w: uint32x4_t) -> uint32x4_t {
        unsafe {
            let (x, w) = (vreinterpretq_f32_u32(x), vreinterpretq_f32_u32(w));
            vreinterpretq_u32_f32(vfmaq_f32(vreinterpretq_f32_u32(sum), x, w))
        }
    }

    /// A bf16 is the upper half of an f32.
    #[inline(always)]
    unsafe fn dot_bf16(sum: uint32x4_t, x: uint32x4_t, w: uint32x4_t) -> uint32x4_t {
        unsafe {
            let upper = vdupq_n_u32(0xffff_0000);
            let sum = Self::dot_f32(sum, vandq_u32(x, upper), vandq_u32(w, upper));
            Self::dot_f32(sum, vshlq_n_u32::<16>(x), vshlq_n_u32::<16>(w))
        }
    }

    /// Widened to 16 bits: even bytes, then odd ones; pairs of products meet in a lane.
    #[inline(always)]
    unsafe fn dot_int8(sum: uint32x4_t, x: uint32x4_t, w: uint32x4_t) -> uint32x4_t {
        unsafe {
            let x = vreinterpretq_u16_u32(x);
            let w = vreinterpretq_s16_u32(w);
            let x_even = vreinterpretq_s16_u16(vandq_u16(x, vdupq_n_u16(0xff)));
            let x_odd = vreinterpretq_s16_u16(vshrq_n_u16::<8>(x));
            let w_even = vshrq_n_s16::<8>(vshlq_n_s16::<8>(w));
            let w_odd = vshrq_n_s16::<8>(w);
            let dot = |x: int16x8_t, w: int16x8_t| {
                let low = vmull_s16(vget_low_s16(x), vget_low_s16(w));
                vpaddq_s32(low, vmull_high_s16(x, w))
            };
            let both = vaddq_s32(dot(x_even, w_even), dot(x_odd, w_odd));
            vaddq_u32(sum, vreinterpretq_u32_s32(both))
        }
    }
}

pub(super) fn kernel(format: Format) -> RawKernel {
    match format {
        Format::F32 => rows::<F32>,
        Format::Bf16 => rows::<BF16>,
        Format::Int8 => rows::<INT8>,
    }
}

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
    // SAFETY (both): the caller's promise.
    if rows == TILE_ROWS {
        return unsafe { multiply::<Neon, FORMAT, TILE_ROWS>(0, tile, blocks, panel, sums) };
    }
    for row in 0..rows {
        unsafe { multiply::<Neon, FORMAT, 1>(row, tile, blocks, panel, sums) };
    }
}
