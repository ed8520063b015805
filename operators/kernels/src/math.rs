//! Element-wise kernels over slices: exp, erf-GELU, LayerNorm, softmax, L2 norm.
//!
//! The idea: plain loops over lanes without branches or calls, compiled once per instruction set
//! by `pulp`'s run-time dispatch (AVX-512, AVX2, NEON, scalar) and vectorised by the compiler.
//! Sums run over `LANES` partial sums in a fixed order, so a result depends on its own row only.
//!
//! Errors, tested against f64: exp 2e-7 relative, erf 4e-7, both below what one f32 rounding of
//! their argument costs in a network.

use pulp::Arch;

/// Partial sums of a reduction: one AVX-512 register of f32.
const LANES: usize = 16;

/// `e^x` for `x ≤ 0` (softmax); below −87 the result is 0 or subnormal noise cut to e⁻⁸⁷.
///
/// Cody–Waite reduction by ln 2 in two parts, then a degree-6 Taylor-like polynomial on
/// [−ln 2 / 2, ln 2 / 2] (Cephes' `expf` coefficients).
#[inline(always)]
fn exp_negative(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to an integer, which is then in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_2e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let value = p.mul_add(r * r, r) + 1.0;
    value * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))
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

/// Hugging Face's `gelu`: x · ½ · (1 + erf(x / √2)), in place.
pub fn gelu(values: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in values {
                let half = *x * 0.5;
                *x = half.mul_add(erf(*x * std::f32::consts::FRAC_1_SQRT_2), half);
            }
        },
    );
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
    Arch::new().dispatch(
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

/// Replaces each row of `scores` (`[_, width]`) by e^(x − max of the row) and writes one over each
/// row's sum to `inverse_sums`: the division is left for the caller, who has fewer columns.
pub fn softmax_numerators(scores: &mut [f32], width: usize, inverse_sums: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (row, inverse) in scores.chunks_exact_mut(width).zip(inverse_sums) {
                let mut lanes = [f32::NEG_INFINITY; LANES];
                let (head, tail) = row.as_chunks::<LANES>();
                for chunk in head {
                    for (lane, &x) in lanes.iter_mut().zip(chunk) {
                        *lane = if x > *lane { x } else { *lane };
                    }
                }
                let max = lanes
                    .iter()
                    .chain(tail)
                    .fold(f32::NEG_INFINITY, |m, &x| m.max(x));
                let mut sums = [0.0_f32; LANES];
                let (head, tail) = row.as_chunks_mut::<LANES>();
                for chunk in head {
                    for (sum, x) in sums.iter_mut().zip(chunk) {
                        *x = exp_negative(*x - max);
                        *sum += *x;
                    }
                }
                let mut sum = sums.iter().sum::<f32>();
                for x in tail {
                    *x = exp_negative(*x - max);
                    sum += *x;
                }
                *inverse = 1.0 / sum;
            }
        },
    );
}

/// Multiplies each row of a strided matrix by its factor.
pub fn scale_rows(values: &mut [f32], width: usize, stride: usize, factors: &[f32]) {
    for (row, &factor) in values.chunks_mut(stride).zip(factors) {
        row[..width].iter_mut().for_each(|x| *x *= factor);
    }
}

/// Writes `row` to each row of `output`.
pub fn fill_rows(output: &mut [f32], row: &[f32]) {
    output
        .chunks_exact_mut(row.len())
        .for_each(|out| out.copy_from_slice(row));
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
    fn exp_is_within_2e7_of_f64() {
        for x in steps(-86.9, 0.0, 200_000) {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_negative(x)) / exact - 1.0).abs();
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp_negative(0.0), 1.0);
        assert!(exp_negative(-1e30) < 2e-38);
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

    #[test]
    fn softmax_rows_of_any_width_sum_to_one() {
        for width in [1, 2, 15, 16, 17, 33, 256] {
            let mut row: Vec<f32> = (0..width).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            let before = row.clone();
            let mut inverse = [0.0];
            softmax_numerators(&mut row, width, &mut inverse);
            let max = before.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = before.iter().map(|&x| f64::from(x - max).exp()).sum();
            for (&x, &b) in row.iter().zip(&before) {
                let exact = f64::from(b - max).exp() / sum;
                assert!((f64::from(x * inverse[0]) - exact).abs() < 1e-6);
            }
        }
    }
}
