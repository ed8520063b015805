//! What the kernels must compute: every operation in f64, over a packed batch, as plainly as can be.
//!
//! Tests, the GPU suite and benches compare with it; nothing else may use it. (The whole model's oracle
//! is [`crate::reference`].)

use super::int8::{GROUP, Rotation};
use super::linear::Epilogue;
use crate::reference::erf;

/// `epilogue(x·wᵀ + b)`; the residual, when there is one, is added last.
pub fn linear(
    x: &[f64],
    w: &[f64],
    bias: &[f64],
    residual: Option<&[f64]>,
    epilogue: Epilogue,
) -> Vec<f64> {
    let (outputs, inputs) = (bias.len(), w.len() / bias.len());
    let rows = x.len() / inputs;
    let mut y = Vec::with_capacity(rows * outputs);
    for row in x.chunks(inputs) {
        for (weights, b) in w.chunks(inputs).zip(bias) {
            let sum = row.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() + b;
            y.push(match epilogue {
                Epilogue::Gelu => 0.5 * sum * (1.0 + erf(sum / std::f64::consts::SQRT_2)),
                Epilogue::Tanh => sum.tanh(),
                Epilogue::Bias | Epilogue::Residual => sum,
            });
        }
    }
    for (y, r) in y.iter_mut().zip(residual.unwrap_or_default()) {
        *y += r;
    }
    y
}

/// Attention of texts that begin at `starts` (one more than there are texts) in `qkv [rows, 3·hidden]`.
pub fn attention(starts: &[usize], qkv: &[f64], hidden: usize, heads: usize) -> Vec<f64> {
    let (width, stride) = (hidden / heads, 3 * hidden);
    let mut context = vec![0.0; qkv.len() / 3];
    for text in starts.windows(2) {
        for row in text[0]..text[1] {
            for head in 0..heads {
                let at = |row: usize, part: usize, c: usize| {
                    qkv[row * stride + part * hidden + head * width + c]
                };
                let dot = |other: usize| {
                    (0..width)
                        .map(|c| at(row, 0, c) * at(other, 1, c))
                        .sum::<f64>()
                };
                let scores: Vec<f64> = (text[0]..text[1])
                    .map(|k| dot(k) / (width as f64).sqrt())
                    .collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..width {
                    let mixed: f64 = weights
                        .iter()
                        .zip(text[0]..)
                        .map(|(w, k)| w * at(k, 2, c))
                        .sum();
                    context[row * hidden + head * width + c] = mixed / sum;
                }
            }
        }
    }
    context
}

/// LayerNorm of every row.
pub fn norm(x: &[f64], gain: &[f64], shift: &[f64], epsilon: f64) -> Vec<f64> {
    let n = gain.len() as f64;
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(gain.len()) {
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let parameters = gain.iter().zip(shift);
        out.extend(
            row.iter()
                .zip(parameters)
                .map(|(x, (g, s))| (x - mean) / (variance + epsilon).sqrt() * g + s),
        );
    }
    out
}

/// Unit vectors: the mean of each text's rows or its first, scaled to length 1.
pub fn pool(starts: &[usize], x: &[f64], hidden: usize, is_mean: bool) -> Vec<f64> {
    let mut out = Vec::new();
    for text in starts.windows(2) {
        let rows = if is_mean {
            text[0]..text[1]
        } else {
            text[0]..text[0] + 1
        };
        let mean =
            |c: usize| rows.clone().map(|row| x[row * hidden + c]).sum::<f64>() / rows.len() as f64;
        let vector: Vec<f64> = (0..hidden).map(mean).collect();
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        out.extend(
            vector
                .iter()
                .map(|x| if length > 0.0 { x / length } else { 0.0 }),
        );
    }
    out
}

/// Rows multiplied by the Walsh–Hadamard matrix of a rotation: element (i, j) is −1 to the number of bits that i
/// and j have in common, over √size.
pub fn rotated(x: &[f64], rotation: Rotation) -> Vec<f64> {
    let size = rotation.size();
    let mut out = vec![0.0; x.len()];
    for (from, to) in x.chunks(GROUP).zip(out.chunks_mut(GROUP)) {
        for part in 0..GROUP / size {
            for i in 0..size {
                let sign = |j: usize| 1.0 - 2.0 * f64::from((i & j).count_ones() % 2);
                let sum: f64 = (0..size)
                    .map(|j| sign(j) * from[rotation.column(part, j)])
                    .sum();
                to[rotation.column(part, i)] = sum / (size as f64).sqrt();
            }
        }
    }
    out
}

/// ‖found − expected‖ / ‖expected‖; infinite when anything found is NaN or the expected is all zeros
/// and the found is not.
pub fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "tensors of one shape");
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let size = squares(&mut expected.iter().copied());
    match (off.is_nan(), off == 0.0) {
        (true, _) => f64::INFINITY,
        (_, true) => 0.0,
        _ => off / size,
    }
}
