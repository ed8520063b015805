//! Element-wise kernels: 2ˣ, GELU, rounding to bf16, LayerNorm, L2 norm.
//!
//! The idea: plain loops over lanes without branches or calls, compiled once per instruction set
//! (`wide`) and vectorised by the compiler.
//! Sums run over `LANES` partial sums in a fixed order, so a result depends on its own row only.
//!
//! Errors, tested against f64: exp2 3e-7 relative, erf 4e-7, both below what one f32 rounding of
//! their argument costs in a network; the short GELU of bf16 and int8 1e-4.

use crate::wide::wide;

/// Partial sums of a reduction: one AVX-512 register of f32.
const LANES: usize = 16;

/// `2^x` for `x ≤ 0` (softmax with log₂e in the scores); below −126 the result is 2⁻¹²⁶.
///
/// x is an integer plus a rest in [−½, ½]; the rest's power is a polynomial of degree 5, fitted for
/// this crate (7.5e-8 relative), the integer goes into the exponent.
#[inline(always)]
#[allow(clippy::approx_constant, clippy::excessive_precision)]
pub(crate) fn exp2_negative(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer, which is then in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -126.0 { x } else { -126.0 };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.327_647_2e-3_f32;
    p = p.mul_add(r, 9.675_541_3e-3);
    p = p.mul_add(r, 5.550_713_3e-2);
    p = p.mul_add(r, 2.402_212e-1);
    p = p.mul_add(r, 6.931_469_7e-1);
    p = p.mul_add(r, 1.0);
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(p.to_bits()))
}

/// The error function, by a rational minimax fit of erf(x)/x in x² on [0, 3.92²], computed for
/// this crate by iteratively reweighted least squares (relative error of the fit 1.9e-8; with f32
/// rounding below 4e-7). Beyond 3.92 erf is 1 within 3e-8.
#[inline(always)]
// Coefficients of a fitted polynomial: their nearness to constants is no accident, and no constant.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-3.92, 3.92);
    let u = x * x;
    let mut p = 2.050_073_9e-6_f32;
    p = p.mul_add(u, 2.848_836_7e-4);
    p = p.mul_add(u, 3.765_672_6e-3);
    p = p.mul_add(u, 5.274_89e-2);
    p = p.mul_add(u, 1.904_078e-1);
    p = p.mul_add(u, 1.128_379_1);
    let mut q = 3.809_162_4e-5_f32;
    q = q.mul_add(u, 1.162_548_3e-3);
    q = q.mul_add(u, 1.496_933e-2);
    q = q.mul_add(u, 1.141_096_6e-1);
    q = q.mul_add(u, 5.020_772_6e-1);
    q = q.mul_add(u, 1.0);
    x * p / q
}

/// Hugging Face's `gelu`: x · ½ · (1 + erf(x / √2)).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let half = x * 0.5;
    half.mul_add(erf(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// The same within 1e-4 and without a division: erf(x / √2) as an odd polynomial on [−4.1, 4.1],
/// fitted for this crate so that GELU's error is least and the value at the ends is 1.
#[inline(always)]
// Coefficients of a fitted polynomial: their nearness to constants is no accident, and no constant.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
pub(crate) fn gelu_short(x: f32) -> f32 {
    let half = x * 0.5;
    let x = clamped(x, 4.1);
    let u = x * x;
    let mut p = -1.785_520_9e-9_f32;
    p = p.mul_add(u, 1.578_547_4e-7);
    p = p.mul_add(u, -6.055_324_1e-6);
    p = p.mul_add(u, 1.335_672_7e-4);
    p = p.mul_add(u, -1.900_175_6e-3);
    p = p.mul_add(u, 1.859_360_2e-2);
    p = p.mul_add(u, -1.310_538_4e-1);
    p = p.mul_add(u, 7.969_316_3e-1);
    half.mul_add(x * p, half)
}

/// `x` in [−bound, bound], by comparisons that are one instruction each. NaN goes to a bound.
#[inline(always)]
fn clamped(x: f32, bound: f32) -> f32 {
    let x = if x < bound { x } else { bound };
    if x > -bound { x } else { -bound }
}

/// The upper half of an f32, rounded half away from zero: NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    (x.to_bits().wrapping_add(0x8000) >> 16) as u16
}

/// Sums `f(x)` in [`LANES`] partial sums, then those from left to right.
#[inline(always)]
fn sum_by(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (head, tail) = values.as_chunks::<LANES>();
    for chunk in head {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().map(|&x| f(x)).sum::<f32>()
}

/// LayerNorm of each row in place: (x − mean) / √(variance + ε) · gain + shift.
///
/// `values` is `[rows, width]` with `width = gain.len()`. Two passes, so no cancellation.
pub fn layer_norm(values: &mut [f32], gain: &[f32], shift: &[f32], epsilon: f32) {
    let width = gain.len();
    let shift = &shift[..width];
    wide(
        #[inline(always)]
        || {
            for row in values.chunks_exact_mut(width) {
                let mean = sum_by(row, |x| x) / width as f32;
                let variance = sum_by(row, |x| (x - mean) * (x - mean)) / width as f32;
                let scale = 1.0 / (variance + epsilon).sqrt();
                for ((x, &g), &s) in row.iter_mut().zip(gain).zip(shift) {
                    *x = ((*x - mean) * scale).mul_add(g, s);
                }
            }
        },
    );
}

/// Adds `row` to each row of `values`.
pub fn add_to_rows(values: &mut [f32], row: &[f32]) {
    for out in values.chunks_exact_mut(row.len()) {
        out.iter_mut().zip(row).for_each(|(x, &b)| *x += b);
    }
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

    /// Even steps over `[low, high]`.
    fn steps(low: f32, high: f32, count: usize) -> impl Iterator<Item = f32> {
        (0..=count).map(move |i| low + (high - low) * i as f32 / count as f32)
    }

    #[test]
    fn exp2_is_within_3e7_of_f64() {
        for x in steps(-125.9, 0.0, 300_000) {
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2_negative(x)) / exact - 1.0).abs();
            assert!(error < 3e-7, "exp2({x}) is off by {error:e}");
        }
        assert_eq!(exp2_negative(0.0), 1.0);
        assert!(exp2_negative(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn both_gelus_are_near_f64() {
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
