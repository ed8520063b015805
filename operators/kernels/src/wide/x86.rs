//! Sixteen lanes on x86-64: one register of AVX-512, or two of AVX2.

use std::arch::x86_64::*;

use super::{Body, LANES, Plain, Wide};

/// One register. Exists only where [`has_avx512`] said so.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Two registers. Exists only where [`has_avx2`] said so.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

#[inline(always)]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[inline(always)]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

impl Avx512 {
    pub(super) fn get() -> Option<Self> {
        has_avx512().then_some(Avx512(()))
    }
}

impl Avx2 {
    pub(super) fn get() -> Option<Self> {
        has_avx2().then_some(Avx2(()))
    }
}

#[inline(always)]
pub(super) fn run<B: Body>(body: B) -> B::Output {
    #[allow(unsafe_code)]
    if let Some(token) = Avx512::get() {
        // SAFETY: the token says that the CPU has the features.
        unsafe { with_avx512(body, token) }
    } else if let Some(token) = Avx2::get() {
        // SAFETY: the token says that the CPU has the features.
        unsafe { with_avx2(body, token) }
    } else {
        body.run(Plain)
    }
}

/// # Safety
/// The CPU has the features.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn with_avx512<B: Body>(body: B, token: Avx512) -> B::Output {
    body.run(token)
}

/// # Safety
/// The CPU has the features.
#[allow(unsafe_code)]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2<B: Body>(body: B, token: Avx2) -> B::Output {
    body.run(token)
}

/// For `vpternlog`: bits of the second where the first has ones, else of the third.
const SELECT: i32 = 0b1100_1010;

#[allow(unsafe_code)]
// SAFETY (whole block): the token says that the CPU has the instructions; loads and stores are
// unaligned and go through references to arrays of exactly their size.
impl Wide for Avx512 {
    type V = __m512;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn magnitude(self, v: __m512, limit: f32) -> __m512 {
        // The smaller magnitude, the sign cleared.
        unsafe { _mm512_range_ps::<0b1010>(v, _mm512_set1_ps(limit)) }
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], at: __m512) -> __m512 {
        unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(at), self.load(table)) }
    }

    #[inline(always)]
    fn hadamard(self, v: __m512) -> __m512 {
        // The neighbour plus or minus oneself: exact, as the factors are ±1.
        let add = |other, v, minus: u16| unsafe {
            let sign = _mm512_mask_blend_ps(minus, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
            _mm512_fmadd_ps(v, sign, other)
        };
        unsafe {
            let v = add(_mm512_permute_ps::<0b10_11_00_01>(v), v, 0xaaaa);
            let v = add(_mm512_permute_ps::<0b01_00_11_10>(v), v, 0xcccc);
            let v = add(_mm512_shuffle_f32x4::<0b10_11_00_01>(v, v), v, 0xf0f0);
            add(_mm512_shuffle_f32x4::<0b01_00_11_10>(v, v), v, 0xff00)
        }
    }

    #[inline(always)]
    fn load_bits(self, from: &[u32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_integers(self, from: &[u32; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn scale_exponent(self, v: __m512, n: __m512) -> __m512 {
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), n))
        }
    }

    #[inline(always)]
    fn low_bytes(self, [a, b, c, d]: [__m512; 4]) -> __m512 {
        unsafe {
            let b = _mm512_slli_epi32::<8>(_mm512_castps_si512(b));
            let c = _mm512_slli_epi32::<16>(_mm512_castps_si512(c));
            let d = _mm512_slli_epi32::<24>(_mm512_castps_si512(d));
            let one = _mm512_set1_epi32(0xff);
            let low = _mm512_ternarylogic_epi32::<SELECT>(one, _mm512_castps_si512(a), b);
            let three = _mm512_set1_epi32(0xff_ffff);
            let high = _mm512_ternarylogic_epi32::<SELECT>(three, c, d);
            let two = _mm512_set1_epi32(0xffff);
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<SELECT>(two, low, high))
        }
    }

    #[inline(always)]
    fn bf16_pairs(self, low: __m512, high: __m512) -> __m512 {
        unsafe {
            let round = _mm512_set1_epi32(0x8000);
            let low = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(low), round));
            let high = _mm512_add_epi32(_mm512_castps_si512(high), round);
            let half = _mm512_set1_epi32(0xffff);
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<SELECT>(half, low, high))
        }
    }

    #[inline(always)]
    fn fraction(self, v: __m512) -> __m512 {
        // No bits after the point are kept in what is taken off, rounded down, no exceptions.
        unsafe { _mm512_reduce_ps::<0b1001>(v) }
    }

    #[inline(always)]
    fn scale_floor(self, v: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    fn transpose(self, vectors: &mut [__m512; LANES]) {
        let v = *vectors;
        let p = transpose_quarters(v[0], v[1], v[2], v[3]);
        let q = transpose_quarters(v[4], v[5], v[6], v[7]);
        let r = transpose_quarters(v[8], v[9], v[10], v[11]);
        let s = transpose_quarters(v[12], v[13], v[14], v[15]);
        for i in 0..4 {
            unsafe {
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(p[i], q[i]);
                let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(p[i], q[i]);
                let even_late = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[i], s[i]);
                let odd_late = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[i], s[i]);
                vectors[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_late);
                vectors[8 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_late);
                vectors[4 + i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_late);
                vectors[12 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_late);
            }
        }
    }
}

/// Four rows: the 4 × 4 words of each quarter transposed, so that result `i` holds columns `i`, `4 + i`, …
#[allow(unsafe_code)]
#[inline(always)]
fn transpose_quarters(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    // SAFETY: registers of this type exist only behind the token.
    unsafe {
        let [ab, ab_high] = [_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)];
        let [cd, cd_high] = [_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)];
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let (ab_high, cd_high) = (_mm512_castps_pd(ab_high), _mm512_castps_pd(cd_high));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
        ]
    }
}

/// Both halves of two pairs of registers.
#[inline(always)]
fn both<T: Copy>(a: [T; 2], b: [T; 2], f: impl Fn(T, T) -> T) -> [T; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

#[allow(unsafe_code)]
// SAFETY (whole block): the token says that the CPU has the instructions; loads and stores are
// unaligned and reach 16 words from the start of arrays of 16.
impl Wide for Avx2 {
    type V = [__m256; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let at = from.as_ptr();
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        unsafe {
            _mm256_storeu_ps(at, v[0]);
            _mm256_storeu_ps(at.add(8), v[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        both(a, b, |a, b| unsafe { _mm256_min_ps(a, b) })
    }

    #[inline(always)]
    fn magnitude(self, v: Self::V, limit: f32) -> Self::V {
        let sign = self.splat(-0.0);
        let v = both(v, sign, |v, sign| unsafe { _mm256_andnot_ps(sign, v) });
        self.min(v, self.splat(limit))
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], at: Self::V) -> Self::V {
        let mut places = [0.0; LANES];
        self.store(at, &mut places);
        self.load(&Plain.lookup(table, places))
    }

    #[inline(always)]
    fn hadamard(self, v: Self::V) -> Self::V {
        let signs = |of: [f32; 8]| unsafe { _mm256_loadu_ps(of.as_ptr()) };
        let (p, m) = (1.0, -1.0);
        let inside = |v| unsafe {
            let other = _mm256_permute_ps::<0b10_11_00_01>(v);
            let v = _mm256_fmadd_ps(v, signs([p, m, p, m, p, m, p, m]), other);
            let other = _mm256_permute_ps::<0b01_00_11_10>(v);
            let v = _mm256_fmadd_ps(v, signs([p, p, m, m, p, p, m, m]), other);
            let other = _mm256_permute2f128_ps::<1>(v, v);
            _mm256_fmadd_ps(v, signs([p, p, p, p, m, m, m, m]), other)
        };
        let (low, high) = (inside(v[0]), inside(v[1]));
        unsafe { [_mm256_add_ps(high, low), _mm256_sub_ps(low, high)] }
    }

    #[inline(always)]
    fn load_bits(self, from: &[u32; LANES]) -> Self::V {
        let at = from.as_ptr().cast();
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }

    #[inline(always)]
    fn load_integers(self, from: &[u32; LANES]) -> Self::V {
        let at = from.as_ptr();
        let load = |at: *const u32| unsafe { _mm256_loadu_si256(at.cast()) };
        unsafe {
            [
                _mm256_cvtepi32_ps(load(at)),
                _mm256_cvtepi32_ps(load(at.add(8))),
            ]
        }
    }

    #[inline(always)]
    fn scale_exponent(self, v: Self::V, n: Self::V) -> Self::V {
        both(v, n, |v, n| unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), n))
        })
    }

    #[inline(always)]
    fn low_bytes(self, [a, b, c, d]: [Self::V; 4]) -> Self::V {
        let byte = |v| unsafe {
            let low = _mm256_set1_epi32(0xff);
            _mm256_and_si256(_mm256_castps_si256(v), low)
        };
        let two =
            |low, high| unsafe { _mm256_or_si256(byte(low), _mm256_slli_epi32::<8>(byte(high))) };
        let all = |a, b, c, d| unsafe {
            let all = _mm256_or_si256(two(a, b), _mm256_slli_epi32::<16>(two(c, d)));
            _mm256_castsi256_ps(all)
        };
        [all(a[0], b[0], c[0], d[0]), all(a[1], b[1], c[1], d[1])]
    }

    #[inline(always)]
    fn bf16_pairs(self, low: Self::V, high: Self::V) -> Self::V {
        both(low, high, |low, high| unsafe {
            let round = _mm256_set1_epi32(0x8000);
            let low = _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_castps_si256(low), round));
            let high = _mm256_add_epi32(_mm256_castps_si256(high), round);
            _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(low, high))
        })
    }

    #[inline(always)]
    fn fraction(self, v: Self::V) -> Self::V {
        both(v, v, |v, _| unsafe { _mm256_sub_ps(v, _mm256_floor_ps(v)) })
    }

    #[inline(always)]
    fn scale_floor(self, v: Self::V, n: Self::V) -> Self::V {
        let (mut lanes, mut powers) = ([0.0; LANES], [0.0; LANES]);
        self.store(v, &mut lanes);
        self.store(n, &mut powers);
        self.load(&Plain.scale_floor(lanes, powers))
    }

    #[inline(always)]
    fn transpose(self, vectors: &mut [Self::V; LANES]) {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, &v) in rows.iter_mut().zip(&*vectors) {
            self.store(v, row);
        }
        Plain.transpose(&mut rows);
        for (v, row) in vectors.iter_mut().zip(&rows) {
            *v = self.load(row);
        }
    }
}
