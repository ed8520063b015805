//! Element-wise kernels: 2ˣ, GELU, rounding to bf16, LayerNorm, L2 norm.
//!
//! All are written once over sixteen lanes (`wide`). Sums run in a fixed order, so a result depends on
//! its own row only.
//!
//! Errors, tested against f64: exp2 3e-7 relative, erf 4e-7, both below what one f32 rounding of
//! their argument costs in a network; the short GELU of bf16 and int8 1e-4.

use crate::wide::{Body, LANES, Wide, wide};

/// `2^x` for `x ≤ 0` (softmax with log₂e in the scores); below −126 the result is 2⁻¹²⁶.
///
/// x is an integer plus a rest in [−½, ½]; the rest's power is a polynomial, the integer goes into the
/// exponent.
#[inline(always)]
pub(crate) fn exp2_negative<W: Wide>(w: W, x: W::V) -> W::V {
    // Adding 1.5·2²³ rounds to an integer, which is then in the low bits of the mantissa.
    let round = w.splat(12_582_912.0);
    let x = w.max(x, w.splat(-126.0));
    let shifted = w.add(x, round);
    let rest = w.sub(x, w.sub(shifted, round));
    let power = polynomial(w, rest, &EXP2);
    w.scale_exponent(power, shifted)
}

/// Of 2^x on [−½, ½], the highest first; fitted for this crate, within 7.5e-8 relative.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
const EXP2: [f32; 6] = [
    1.327_647_2e-3,
    9.675_541_3e-3,
    5.550_713_3e-2,
    2.402_212e-1,
    6.931_469_7e-1,
    1.0,
];

/// `2^x` within 7.5e-5 relative, for any x: zero or infinite where f32 ends. For weights that are
/// rounded to bf16 (2e-3) afterwards.
#[inline(always)]
pub(crate) fn exp2_short<W: Wide>(w: W, x: W::V) -> W::V {
    let power = polynomial(w, w.fraction(x), &EXP2_SHORT);
    w.scale_floor(power, x)
}

/// Of 2^x on [0, 1), the highest first; fitted for this crate.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
const EXP2_SHORT: [f32; 4] = [7.802_452e-2, 2.260_671_6e-1, 6.958_335_6e-1, 9.999_252e-1];

/// Horner's rule.
#[inline(always)]
fn polynomial<W: Wide, const N: usize>(w: W, x: W::V, coefficients: &[f32; N]) -> W::V {
    let mut p = w.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        p = w.fma(p, x, w.splat(c));
    }
    p
}

/// The error function, by a rational minimax fit of erf(x)/x in x² on [0, 3.92²], computed for
/// this crate by iteratively reweighted least squares (relative error of the fit 1.9e-8; with f32
/// rounding below 4e-7). Beyond 3.92 erf is 1 within 3e-8.
#[inline(always)]
fn erf<W: Wide>(w: W, x: W::V) -> W::V {
    let x = w.max(w.min(x, w.splat(3.92)), w.splat(-3.92));
    let u = w.mul(x, x);
    let p = polynomial(w, u, &ERF_OVER);
    let q = polynomial(w, u, &ERF_UNDER);
    w.div(w.mul(x, p), q)
}

// Coefficients of fitted polynomials: their nearness to constants is no accident, and no constant.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
const ERF_OVER: [f32; 6] = [
    2.050_073_9e-6,
    2.848_836_7e-4,
    3.765_672_6e-3,
    5.274_89e-2,
    1.904_078e-1,
    1.128_379_1,
];
#[allow(clippy::approx_constant, clippy::excessive_precision)]
const ERF_UNDER: [f32; 6] = [
    3.809_162_4e-5,
    1.162_548_3e-3,
    1.496_933e-2,
    1.141_096_6e-1,
    5.020_772_6e-1,
    1.0,
];

/// Hugging Face's `gelu`: x · ½ · (1 + erf(x / √2)).
#[inline(always)]
pub(crate) fn gelu<W: Wide>(w: W, x: W::V) -> W::V {
    let half = w.mul(x, w.splat(0.5));
    let erf = erf(w, w.mul(x, w.splat(std::f32::consts::FRAC_1_SQRT_2)));
    w.fma(half, erf, half)
}

/// The same within 1e-4, without a division and with few multiplications: max(0, x) − g(|x|), where
/// g(u) = u · Φ(−u) is a parabola on each of sixteen stretches, and nothing behind them.
#[inline(always)]
pub(crate) fn gelu_short<W: Wide>(w: W, x: W::V) -> W::V {
    // Just below the end of the last stretch, or rounding would find a seventeenth.
    let place = w.magnitude(w.mul(x, w.splat(1.0 / STRETCH)), 15.499);
    // Adding 1.5·2²³ rounds to an integer, which is then in the low bits of the mantissa.
    let round = w.splat(12_582_912.0);
    let stretch = w.add(place, round);
    let rest = w.sub(place, w.sub(stretch, round));
    let [curve, slope, value] = GELU_PARABOLAS;
    let line = w.fma(w.lookup(&curve, stretch), rest, w.lookup(&slope, stretch));
    let below = w.fma(line, rest, w.lookup(&value, stretch));
    w.sub(w.max(w.splat(0.0), x), below)
}

/// Length of a stretch of [`GELU_PARABOLAS`]; the first is half as long, as it is about zero.
const STRETCH: f32 = 0.2625;

/// u · Φ(−u) about the middle of each stretch, in units of a stretch: of its square, of itself, of one.
/// Fitted for this crate, within 7.4e-5; behind the last stretch it is below 1e-4.
#[allow(clippy::excessive_precision)]
const GELU_PARABOLAS: [[f32; LANES]; 3] = [
    [
        -2.734_708_4e-2,
        -2.555_997_3e-2,
        -2.060_393_2e-2,
        -1.390_836_9e-2,
        -7.143_719_6e-3,
        -1.663_846_1e-3,
        1.859_777_5e-3,
        3.459_644_7e-3,
        3.631_960_4e-3,
        3.015_401_1e-3,
        2.146_496_4e-3,
        1.353_373_4e-3,
        7.683_944_4e-4,
        3.966_453_7e-4,
        1.872_950_1e-4,
        8.123_83e-5,
    ],
    [
        1.312_131_1e-1,
        7.773_800_9e-2,
        3.117_686_9e-2,
        -3.475_472_1e-3,
        -2.441_622_3e-2,
        -3.294_866_9e-2,
        -3.243_180_7e-2,
        -2.684_207_4e-2,
        -1.957_735_4e-2,
        -1.285_425e-2,
        -7.684_908_3e-3,
        -4.212_012e-3,
        -2.125_696e-3,
        -9.907_538_8e-4,
        -4.273_666_4e-4,
        -1.708_753_3e-4,
    ],
    [
        1.246_388_7e-6,
        1.040_686_8e-1,
        1.573_882_8e-1,
        1.697_019_6e-1,
        1.542_037_7e-1,
        1.242_645_5e-1,
        9.076_701_1e-2,
        6.076_441_7e-2,
        3.751_626_2e-2,
        2.144_251_6e-2,
        1.137_255_2e-2,
        5.606_033_8e-3,
        2.571_225_6e-3,
        1.098_099_9e-3,
        4.369_157_8e-4,
        1.620_245_7e-4,
    ],
];

/// The upper half of an f32, rounded half away from zero: NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    (x.to_bits().wrapping_add(0x8000) >> 16) as u16
}

/// LayerNorm's parameters: (x − mean) / √(variance + ε) · gain + shift.
#[derive(Debug, Clone)]
pub struct Norm {
    gain: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    /// For rows as long as `gain` and `shift` are. Panics when they differ.
    pub fn new((gain, shift): (Vec<f32>, Vec<f32>), epsilon: f32) -> Self {
        assert_eq!(gain.len(), shift.len(), "a gain and a shift a column");
        Norm {
            gain,
            shift,
            epsilon,
        }
    }

    /// Columns of a row.
    pub fn width(&self) -> usize {
        self.gain.len()
    }

    /// Normalises each row of `values[rows, width]` in place.
    pub fn apply(&self, values: &mut [f32]) {
        wide(Normalize { norm: self, values });
    }

    /// Normalises one row in place. Two passes, so no cancellation.
    #[inline(always)]
    pub(crate) fn row<W: Wide>(&self, w: W, row: &mut [f32]) {
        let width = self.gain.len() as f32;
        let (gains, gain_rest) = self.gain.as_chunks::<LANES>();
        let (shifts, shift_rest) = self.shift.as_chunks::<LANES>();
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        let mut sum = sum_by(
            w,
            chunks,
            #[inline(always)]
            |sum, x| w.add(sum, x),
        );
        for &mut x in &mut *rest {
            sum += x;
        }
        let mean = sum / width;
        let mut sum = sum_by(
            w,
            chunks,
            #[inline(always)]
            |sum, x| {
                let x = w.sub(x, w.splat(mean));
                w.fma(x, x, sum)
            },
        );
        for &mut x in &mut *rest {
            sum += (x - mean) * (x - mean);
        }
        let scale = 1.0 / (sum / width + self.epsilon).sqrt();
        for ((chunk, gain), shift) in chunks.iter_mut().zip(gains).zip(shifts) {
            let x = w.mul(w.sub(w.load(chunk), w.splat(mean)), w.splat(scale));
            w.store(w.fma(x, w.load(gain), w.load(shift)), chunk);
        }
        for ((x, &gain), &shift) in rest.iter_mut().zip(gain_rest).zip(shift_rest) {
            *x = ((*x - mean) * scale).mul_add(gain, shift);
        }
    }
}

/// [`Norm::apply`], in wide vectors.
struct Normalize<'a> {
    norm: &'a Norm,
    values: &'a mut [f32],
}

impl Body for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        for row in self.values.chunks_exact_mut(self.norm.width()) {
            self.norm.row(w, row);
        }
    }
}

/// Sums over all lanes in four vectors, as one would wait for each addition.
#[inline(always)]
fn sum_by<W: Wide>(w: W, chunks: &[[f32; LANES]], add: impl Fn(W::V, W::V) -> W::V) -> f32 {
    let (fours, rest) = chunks.as_chunks::<4>();
    let [mut a, mut b, mut c, mut d] = [w.splat(0.0); 4];
    for [i, j, k, l] in fours {
        (a, b) = (add(a, w.load(i)), add(b, w.load(j)));
        (c, d) = (add(c, w.load(k)), add(d, w.load(l)));
    }
    for chunk in rest {
        a = add(a, w.load(chunk));
    }
    w.sum(w.add(w.add(a, b), w.add(c, d)))
}

/// Scales a vector to length 1 (f64 inside). A zero vector stays zero; it cannot come out of a
/// LayerNorm with a trained shift.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        .sqrt();
    if norm > 0.0 {
        vector
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::wide::Plain;

    fn one(f: impl Fn([f32; LANES]) -> [f32; LANES]) -> impl Fn(f32) -> f32 {
        move |x| f([x; LANES])[5]
    }

    /// Even steps over `[low, high]`.
    fn steps(low: f32, high: f32, count: usize) -> impl Iterator<Item = f32> {
        (0..=count).map(move |i| low + (high - low) * i as f32 / count as f32)
    }

    #[test]
    fn exp2_is_within_3e7_of_f64() {
        let exp2_negative = one(|x| exp2_negative(Plain, x));
        for x in steps(-125.9, 0.0, 300_000) {
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2_negative(x)) / exact - 1.0).abs();
            assert!(error < 3e-7, "exp2({x}) is off by {error:e}");
        }
        assert_eq!(exp2_negative(0.0), 1.0);
        assert!(exp2_negative(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn short_exp2_is_within_8e5_of_f64_and_ends_softly() {
        let short = one(|x| exp2_short(Plain, x));
        for x in steps(-125.9, 126.9, 300_000) {
            let error = (f64::from(short(x)) / f64::from(x).exp2() - 1.0).abs();
            assert!(error < 8e-5, "short exp2({x}) is off by {error:e}");
        }
        assert_eq!(short(-1e30), 0.0);
        assert_eq!(short(1e30), f32::INFINITY);
    }

    #[test]
    fn both_gelus_are_near_f64() {
        let gelu = one(|x| gelu(Plain, x));
        let gelu_short = one(|x| gelu_short(Plain, x));
        for x in steps(-9.0, 9.0, 200_000) {
            let wide = f64::from(x);
            let exact = 0.5 * wide * (1.0 + reference::erf(wide / std::f64::consts::SQRT_2));
            assert!((f64::from(gelu(x)) - exact).abs() < 1e-6, "gelu({x})");
            assert!(
                (f64::from(gelu_short(x)) - exact).abs() < 1e-4,
                "short gelu({x})"
            );
        }
        assert!(gelu_short(f32::NAN).is_nan());
        assert!(gelu_short(-100.0).abs() < 1e-3);
    }

    #[test]
    fn bf16_rounds_to_the_nearest_and_keeps_nan() {
        assert_eq!(bf16_bits(1.0), 0x3f80);
        assert_eq!(bf16_bits(f32::from_bits(0x3f80_7fff)), 0x3f80);
        assert_eq!(bf16_bits(f32::from_bits(0x3f80_8000)), 0x3f81);
        assert!(half::bf16::from_bits(bf16_bits(f32::NAN)).is_nan());
        assert!(half::bf16::from_bits(bf16_bits(f32::NEG_INFINITY)).is_infinite());
    }

    #[test]
    fn erf_is_within_4e7_of_f64() {
        let erf = one(|x| erf(Plain, x));
        for x in steps(-6.0, 6.0, 200_000) {
            let exact = reference::erf(f64::from(x));
            let error = (f64::from(erf(x)) - exact).abs();
            assert!(
                error <= 4e-7 * exact.abs() + 1e-30,
                "erf({x}) is off by {error:e}"
            );
        }
    }
}
