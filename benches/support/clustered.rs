//! Shared by the benches: the clustered generator of anchor A3, timing and resident memory.
//!
//! Gaussian centres plus unit noise, component i scaled by (1 + i)^-0.35, normalised: neighbours
//! are as hard to find as in real embeddings, where uniform noise would be harder and separate
//! clusters easier.

#![allow(dead_code)]

use std::sync::Arc;
use std::time::Duration;

use operators::index::unit;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Draws vectors; equal seeds, equal vectors.
pub struct Clustered {
    pub rng: ChaCha8Rng,
    centres: Vec<Vec<f32>>,
    scales: Vec<f32>,
}

impl Clustered {
    pub fn new(seed: u64, clusters: usize, dimensions: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let centres = (0..clusters)
            .map(|_| (0..dimensions).map(|_| gaussian(&mut rng)).collect())
            .collect();
        let scales = (0..dimensions)
            .map(|i| (1.0 + i as f32).powf(-0.35))
            .collect();
        Clustered {
            rng,
            centres,
            scales,
        }
    }

    pub fn draw(&mut self) -> Arc<[f32]> {
        let centre = &self.centres[self.rng.random_range(0..self.centres.len())];
        let raw: Vec<f32> = centre
            .iter()
            .zip(&self.scales)
            .map(|(x, scale)| (x + gaussian(&mut self.rng)) * scale)
            .collect();
        unit(&raw).expect("finite").into()
    }
}

fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random_range(1e-7..1.0), rng.random_range(0.0..1.0));
    (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

/// Percentile of a sample, milliseconds.
pub fn percentile_ms(sample: &mut [Duration], share: f64) -> f64 {
    sample.sort();
    let index = ((sample.len() as f64 * share) as usize).min(sample.len() - 1);
    sample[index].as_secs_f64() * 1e3
}

/// Resident bytes of this process (Linux; 0 elsewhere).
pub fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
