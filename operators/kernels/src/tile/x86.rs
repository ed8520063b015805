//! The micro-kernel's instructions on x86-64: AVX-512 and AVX2.
//!
//! AVX-512: 12 rows × 2 registers of 16 columns = 24 sums, 2 for the panel, the rest for broadcasts.
//! Per step 14 loads feed 24 multiply-adds, so the two multipliers, not the two load ports, decide.
//! AVX2 has 16 registers: 6 rows × 2 of 8 columns, two passes over the panel's columns.

use std::arch::x86_64::*;

use super::{BF16, F32, Format, INT8, Lanes, RawKernel, Sums, TILE_ROWS, multiply};
use crate::lines::Line;

pub(super) fn has_avx512(format: Format) -> bool {
    let base = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    base && match format {
        Format::F32 => true,
        Format::Bf16 => is_x86_feature_detected!("avx512bf16"),
        Format::Int8 => is_x86_feature_detected!("avx512vnni"),
    }
}

pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

struct Avx512;

#[allow(unsafe_code)]
// SAFETY (whole block): the instructions are there by the trait's contract; no alignment is needed.
impl Lanes for Avx512 {
    type Vector = __m512i;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m512i {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read()) }
    }

    #[inline(always)]
    unsafe fn store(vector: __m512i, to: *mut u32) {
        unsafe { _mm512_storeu_si512(to.cast(), vector) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn dot_f32(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        unsafe {
            let (x, w) = (_mm512_castsi512_ps(x), _mm512_castsi512_ps(w));
            _mm512_castps_si512(_mm512_fmadd_ps(x, w, _mm512_castsi512_ps(sum)))
        }
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: both are 512 bits without padding.
        let bf16 = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
        unsafe {
            let sum = _mm512_dpbf16_ps(_mm512_castsi512_ps(sum), bf16(x), bf16(w));
            _mm512_castps_si512(sum)
        }
    }

    #[inline(always)]
    unsafe fn dot_int8(sum: __m512i, x: __m512i, w: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, x, w) }
    }
}

struct Avx2;

#[allow(unsafe_code)]
// SAFETY (whole block): the instructions are there by the trait's contract; no alignment is needed.
impl Lanes for Avx2 {
    type Vector = __m256i;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m256i {
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read()) }
    }

    #[inline(always)]
    unsafe fn store(vector: __m256i, to: *mut u32) {
        unsafe { _mm256_storeu_si256(to.cast(), vector) }
    }

    #[inline(always)]
    unsafe fn dot_f32(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        unsafe {
            let (x, w) = (_mm256_castsi256_ps(x), _mm256_castsi256_ps(w));
            _mm256_castps_si256(_mm256_fmadd_ps(x, w, _mm256_castsi256_ps(sum)))
        }
    }

    /// A bf16 is the upper half of an f32.
    #[inline(always)]
    unsafe fn dot_bf16(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let (x_high, w_high) = (_mm256_and_si256(x, upper), _mm256_and_si256(w, upper));
            let (x_low, w_low) = (_mm256_slli_epi32::<16>(x), _mm256_slli_epi32::<16>(w));
            Self::dot_f32(Self::dot_f32(sum, x_high, w_high), x_low, w_low)
        }
    }

    /// In 16 bits: `vpmaddubsw` would saturate. Even bytes, then odd ones.
    #[inline(always)]
    unsafe fn dot_int8(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        unsafe {
            let x_even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
            let w_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
            let (x_odd, w_odd) = (_mm256_srli_epi16::<8>(x), _mm256_srai_epi16::<8>(w));
            let even = _mm256_madd_epi16(x_even, w_even);
            let odd = _mm256_madd_epi16(x_odd, w_odd);
            _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
        }
    }
}

pub(super) fn avx512(format: Format) -> RawKernel {
    match format {
        Format::F32 => avx512_f32,
        Format::Bf16 => avx512_bf16,
        Format::Int8 => avx512_int8,
    }
}

pub(super) fn avx2(format: Format) -> RawKernel {
    match format {
        Format::F32 => avx2_rows::<F32>,
        Format::Bf16 => avx2_rows::<BF16>,
        Format::Int8 => avx2_rows::<INT8>,
    }
}

/// A kernel for each number of rows, each compiled with exactly the instructions it may use.
macro_rules! avx512_kernel {
    ($name:ident, $format:ident, $features:literal) => {
        /// # Safety
        /// As [`multiply`], on a CPU with the features.
        #[allow(unsafe_code)]
        unsafe fn $name(
            rows: usize,
            tile: *const Line,
            blocks: usize,
            panel: *const Line,
            sums: &mut Sums,
        ) {
            #[target_feature(enable = $features)]
            unsafe fn of<const R: usize>(
                tile: *const Line,
                blocks: usize,
                panel: *const Line,
                sums: &mut Sums,
            ) {
                // SAFETY: the caller's promise.
                unsafe { multiply::<Avx512, $format, R>(0, tile, blocks, panel, sums) }
            }
            const _: () = assert!(TILE_ROWS == 12, "one arm for each number of rows");
            // SAFETY (all): the caller's promise.
            match rows {
                1 => unsafe { of::<1>(tile, blocks, panel, sums) },
                2 => unsafe { of::<2>(tile, blocks, panel, sums) },
                3 => unsafe { of::<3>(tile, blocks, panel, sums) },
                4 => unsafe { of::<4>(tile, blocks, panel, sums) },
                5 => unsafe { of::<5>(tile, blocks, panel, sums) },
                6 => unsafe { of::<6>(tile, blocks, panel, sums) },
                7 => unsafe { of::<7>(tile, blocks, panel, sums) },
                8 => unsafe { of::<8>(tile, blocks, panel, sums) },
                9 => unsafe { of::<9>(tile, blocks, panel, sums) },
                10 => unsafe { of::<10>(tile, blocks, panel, sums) },
                11 => unsafe { of::<11>(tile, blocks, panel, sums) },
                _ => unsafe { of::<12>(tile, blocks, panel, sums) },
            }
        }
    };
}

avx512_kernel!(avx512_f32, F32, "avx512f");
avx512_kernel!(avx512_bf16, BF16, "avx512f,avx512bf16");
avx512_kernel!(avx512_int8, INT8, "avx512f,avx512vnni");

/// Rows that AVX2's sixteen registers hold.
const AVX2_ROWS: usize = 6;

/// # Safety
/// As [`multiply`], on a CPU with AVX2 and FMA.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_rows<const FORMAT: u8>(
    rows: usize,
    tile: *const Line,
    blocks: usize,
    panel: *const Line,
    sums: &mut Sums,
) {
    let mut row = 0;
    // SAFETY (both): the caller's promise, some rows at a time.
    while rows - row >= AVX2_ROWS {
        unsafe { multiply::<Avx2, FORMAT, AVX2_ROWS>(row, tile, blocks, panel, sums) };
        row += AVX2_ROWS;
    }
    while row < rows {
        unsafe { multiply::<Avx2, FORMAT, 1>(row, tile, blocks, panel, sums) };
        row += 1;
    }
}
