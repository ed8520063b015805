//! The oracle: the same forward pass in f64, written as the textbook says it and not one step
//! faster. Tests compare the kernels with it; nothing else may use it.

use crate::cross::Head;
use crate::encoder::Pooling;
use crate::weights::Weights;

/// A matrix as rows.
type Matrix = Vec<Vec<f64>>;

/// The error function: its Maclaurin series, or the continued fraction of erfc beyond 3
/// (Abramowitz & Stegun 7.1.6 and 7.1.14). Relative error below 1e-13.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        // erf(x) = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!, all terms positive.
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else {
        let mut fraction = 0.0;
        for n in (1..200).rev() {
            fraction = f64::from(n) / 2.0 / (a + fraction);
        }
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction)
    };
    value.copysign(x)
}

/// `x·Wᵀ + b`, with `weight` `[outputs, inputs]` row-major.
fn linear(x: &Matrix, (weight, bias): &(Vec<f32>, Vec<f32>)) -> Matrix {
    let inputs = weight.len() / bias.len();
    let apply = |row: &Vec<f64>| -> Vec<f64> {
        let dot = |w: &[f32]| -> f64 { w.iter().zip(row).map(|(&w, x)| f64::from(w) * x).sum() };
        weight
            .chunks(inputs)
            .zip(bias)
            .map(|(w, &b)| dot(w) + f64::from(b))
            .collect()
    };
    x.iter().map(apply).collect()
}

fn layer_norm(x: &Matrix, (gain, shift): &(Vec<f32>, Vec<f32>), epsilon: f64) -> Matrix {
    let apply = |row: &Vec<f64>| -> Vec<f64> {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let parameters = gain.iter().zip(shift);
        row.iter()
            .zip(parameters)
            .map(|(x, (&g, &s))| {
                (x - mean) / (variance + epsilon).sqrt() * f64::from(g) + f64::from(s)
            })
            .collect()
    };
    x.iter().map(apply).collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::MIN, f64::max);
    let exp: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

fn attention(q: &Matrix, k: &Matrix, v: &Matrix, heads: usize) -> Matrix {
    let hidden = q[0].len();
    let width = hidden / heads;
    let mut context = vec![vec![0.0; hidden]; q.len()];
    for head in 0..heads {
        let columns = head * width..(head + 1) * width;
        for (i, out) in context.iter_mut().enumerate() {
            let scores: Vec<f64> = k
                .iter()
                .map(|key| {
                    let dot: f64 = columns.clone().map(|c| q[i][c] * key[c]).sum();
                    dot / (width as f64).sqrt()
                })
                .collect();
            for (j, weight) in softmax(&scores).into_iter().enumerate() {
                for c in columns.clone() {
                    out[c] += weight * v[j][c];
                }
            }
        }
    }
    context
}

fn add(a: &Matrix, b: &Matrix) -> Matrix {
    a.iter()
        .zip(b)
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect())
        .collect()
}

/// The states of all tokens after the last layer; `segments` has the kind of each token.
fn states(weights: &Weights, ids: &[u32], segments: &[u8]) -> Matrix {
    let config = &weights.config;
    let (h, epsilon) = (config.hidden_size, config.layer_norm_eps);
    let embed = |(position, &id): (usize, &u32)| -> Vec<f64> {
        let sum = |c: usize| {
            f64::from(weights.words[id as usize * h + c])
                + f64::from(weights.positions[position * h + c])
                + f64::from(weights.segments[usize::from(segments[position]) * h + c])
        };
        (0..h).map(sum).collect()
    };
    let embedded: Matrix = ids.iter().enumerate().map(embed).collect();
    let mut x = layer_norm(&embedded, &weights.norm, epsilon);
    for layer in &weights.layers {
        let [query, key, value, out, widen, narrow] = &layer.linears;
        let (q, k, v) = (linear(&x, query), linear(&x, key), linear(&x, value));
        let context = attention(&q, &k, &v, config.num_attention_heads);
        x = layer_norm(&add(&x, &linear(&context, out)), &layer.norms[0], epsilon);
        let mut wide = linear(&x, widen);
        for value in wide.iter_mut().flatten() {
            *value *= 0.5 * (1.0 + erf(*value / std::f64::consts::SQRT_2));
        }
        x = layer_norm(&add(&x, &linear(&wide, narrow)), &layer.norms[1], epsilon);
    }
    x
}

/// The unit vector of a text, given as ids with its special tokens.
pub fn encode(weights: &Weights, pooling: Pooling, ids: &[u32]) -> Vec<f64> {
    let x = states(weights, ids, &vec![0; ids.len()]);
    let h = weights.config.hidden_size;
    let mut vector = match pooling {
        Pooling::Cls => x[0].clone(),
        Pooling::Mean => {
            let n = x.len() as f64;
            (0..h)
                .map(|c| x.iter().map(|row| row[c]).sum::<f64>() / n)
                .collect()
        }
    };
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter_mut().for_each(|x| *x /= norm);
    vector
}

/// The logits of a cross-encoder: tanh(pooler) of the first state, then the classifier.
pub fn classify(weights: &Weights, head: &Head, ids: &[u32], segments: &[u8]) -> Vec<f64> {
    let first = vec![states(weights, ids, segments).remove(0)];
    let mut pooled = linear(&first, &head.pooler);
    for value in pooled.iter_mut().flatten() {
        *value = value.tanh();
    }
    linear(&pooled, &head.classifier).remove(0)
}

/// Cosine of an f32 vector with the oracle's unit vector.
pub fn cosine(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one model");
    let norm = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    a.iter().zip(b).map(|(&x, y)| f64::from(x) * y).sum::<f64>() / norm
}
