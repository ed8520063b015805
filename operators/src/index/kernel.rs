//! The numeric kernel: how vectors are stored and compared, the same everywhere.
//!
//! A vector is scaled to unit length, rounded to its stored form (bf16 or f32) and kept with the
//! reciprocal of the *rounded* form's norm, so that [`cosine`] is the true cosine between a unit
//! question and what is stored.
//!
//! Invariant: a score depends on the question and on the stored bytes, never on where the vector
//! lies (head, generation), on the number of workers or on the width of the machine's vectors. The
//! sum runs in [`LANES`] fixed lanes that are folded as a tree; multiplication and addition stay
//! separate, so a compiler that vectorises wider does the same operations in the same order.
//!
//! Limits: no `unsafe`, so the compiler may use the target's baseline only. Measured on one Zen 5
//! core with the x86-64 baseline: see `benches/search.rs`.

use half::bf16;
use serde::{Deserialize, Serialize};

/// How vectors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum Quantization {
    /// 16 bits a component: f32 without its lower 16 bits, rounded to nearest even.
    #[default]
    Bf16,
    /// 32 bits a component.
    F32,
}

/// Independent partial sums of one dot product. Fixed: it is part of what a score is.
const LANES: usize = 32;

/// Stored components of many vectors, row-major `[vectors × dimensions]`.
#[derive(Debug, Clone)]
pub(crate) enum Components {
    Bf16(Vec<u16>),
    F32(Vec<f32>),
}

impl Components {
    pub(crate) fn new(quantization: Quantization) -> Self {
        match quantization {
            Quantization::Bf16 => Components::Bf16(Vec::new()),
            Quantization::F32 => Components::F32(Vec::new()),
        }
    }

    pub(crate) fn reserve(&mut self, components: usize) {
        match self {
            Components::Bf16(data) => data.reserve_exact(components),
            Components::F32(data) => data.reserve_exact(components),
        }
    }

    /// Appends a vector in stored form and returns the scale that makes its cosine exact, or
    /// `None` (and appends nothing) when its norm is not finite. A zero vector has scale 0: its
    /// cosine with everything is 0.
    pub(crate) fn push(&mut self, vector: &[f32]) -> Option<f32> {
        let unit = unit_scale(vector)?;
        let norm = match self {
            Components::Bf16(data) => {
                let start = data.len();
                data.extend(vector.iter().map(|x| bf16::from_f32(x * unit).to_bits()));
                data[start..]
                    .iter()
                    .map(|bits| square(widen(*bits)))
                    .sum::<f64>()
            }
            Components::F32(data) => {
                let start = data.len();
                data.extend(vector.iter().map(|x| x * unit));
                data[start..].iter().map(|x| square(*x)).sum::<f64>()
            }
        }
        .sqrt();
        Some(if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 })
    }

    /// Appends row `index` of `other`, which has the same form.
    pub(crate) fn push_row(&mut self, other: &Components, index: usize, dimensions: usize) {
        let range = index * dimensions..(index + 1) * dimensions;
        match (self, other) {
            (Components::Bf16(to), Components::Bf16(from)) => to.extend_from_slice(&from[range]),
            (Components::F32(to), Components::F32(from)) => to.extend_from_slice(&from[range]),
            _ => unreachable!("all segments of one shard have one quantization"),
        }
    }

    /// Σ question · row, in the fixed order.
    #[inline]
    pub(crate) fn dot(&self, question: &[f32], index: usize) -> f32 {
        let range = index * question.len()..(index + 1) * question.len();
        match self {
            Components::Bf16(data) => dot_bf16(question, &data[range]),
            Components::F32(data) => dot_f32(question, &data[range]),
        }
    }

    /// Row `index` as f32, without its scale.
    pub(crate) fn read(&self, index: usize, dimensions: usize, out: &mut Vec<f32>) {
        let range = index * dimensions..(index + 1) * dimensions;
        out.clear();
        match self {
            Components::Bf16(data) => out.extend(data[range].iter().map(|bits| widen(*bits))),
            Components::F32(data) => out.extend_from_slice(&data[range]),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Components::Bf16(data) => data.capacity() * 2,
            Components::F32(data) => data.capacity() * 4,
        }
    }
}

/// The cosine that a shard would report between a *unit* question and a vector of any length,
/// stored in the given form: bitwise the score of `Candidate::cosine`. `None` when the vector
/// cannot be stored (its norm is not finite) or the lengths differ.
///
/// For callers that hold a vector but not its slot (the answer cache's reverse search). Cost: one
/// rounding and one dot product.
pub fn cosine_as_stored(
    question: &[f32],
    vector: &[f32],
    quantization: Quantization,
) -> Option<f64> {
    if question.len() != vector.len() {
        return None;
    }
    let mut components = Components::new(quantization);
    let scale = components.push(vector)?;
    Some(cosine(components.dot(question, 0), scale))
}

/// A vector scaled to unit length; zero stays zero. `None` when its norm is not finite.
pub fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let scale = unit_scale(vector)?;
    Some(vector.iter().map(|x| x * scale).collect())
}

/// From a dot product and a stored scale to the cosine in [−1, 1].
#[inline]
pub(crate) fn cosine(dot: f32, scale: f32) -> f64 {
    (f64::from(dot) * f64::from(scale)).clamp(-1.0, 1.0)
}

/// The factor to unit length: 1 within rounding of unit (so unit vectors are kept bit for bit),
/// 0 for the zero vector.
fn unit_scale(vector: &[f32]) -> Option<f32> {
    let norm = vector.iter().map(|x| square(*x)).sum::<f64>().sqrt();
    match norm {
        norm if !norm.is_finite() => None,
        0.0 => Some(0.0),
        norm if (norm - 1.0).abs() < 1e-5 => Some(1.0),
        norm => Some((1.0 / norm) as f32).filter(|scale| scale.is_finite()),
    }
}

#[inline]
fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

#[inline]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn dot_bf16(question: &[f32], row: &[u16]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = question.as_chunks::<LANES>();
    let (row_blocks, row_rest) = row.as_chunks::<LANES>();
    for (a, b) in blocks.iter().zip(row_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * widen(b[lane]);
        }
    }
    for (lane, (a, b)) in rest.iter().zip(row_rest).enumerate() {
        sums[lane] += a * widen(*b);
    }
    fold(sums)
}

fn dot_f32(question: &[f32], row: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = question.as_chunks::<LANES>();
    let (row_blocks, row_rest) = row.as_chunks::<LANES>();
    for (a, b) in blocks.iter().zip(row_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in rest.iter().zip(row_rest).enumerate() {
        sums[lane] += a * b;
    }
    fold(sums)
}

/// Sums the lanes as a balanced tree.
#[inline]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_true_for_any_length_and_scale() {
        for dimensions in [1, 3, 31, 32, 33, 384] {
            let raw: Vec<f32> = (0..dimensions)
                .map(|i| ((i * 37 % 11) as f32 - 4.0) * 5.0)
                .collect();
            let question = unit(&raw).unwrap();
            for quantization in [Quantization::Bf16, Quantization::F32] {
                let same = cosine_as_stored(&question, &raw, quantization).unwrap();
                assert!(
                    (same - 1.0).abs() < 1e-4,
                    "{dimensions} {quantization:?} {same}"
                );
                let opposite: Vec<f32> = raw.iter().map(|x| -x).collect();
                let other = cosine_as_stored(&question, &opposite, quantization).unwrap();
                assert!((other + 1.0).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn vectors_without_direction_or_norm_are_told_apart() {
        assert_eq!(
            cosine_as_stored(&[1.0, 0.0], &[0.0, 0.0], Quantization::Bf16),
            Some(0.0)
        );
        assert_eq!(
            cosine_as_stored(&[1.0], &[f32::NAN], Quantization::Bf16),
            None
        );
        assert_eq!(
            cosine_as_stored(&[1.0], &[f32::INFINITY], Quantization::F32),
            None
        );
        assert_eq!(
            cosine_as_stored(&[1.0], &[1.0, 0.0], Quantization::F32),
            None
        );
    }
}
