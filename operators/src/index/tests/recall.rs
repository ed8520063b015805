//! Law: approximate search loses recall, never visibility, and churn does not make it worse.

use std::sync::Arc;

use ahash::AHashSet;
use engine::model::{ChunkId, ContentHash, Key, Row};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::*;
use super::model::document;

const DIMENSIONS: usize = 64;
const SEED: u64 = 11;

/// vector-anchors A3, small: Gaussian centres and unit noise, dimension i scaled by (1 + i)^-0.35.
struct Generator {
    rng: ChaCha8Rng,
    centres: Vec<Vec<f32>>,
}

fn gaussian(rng: &mut impl Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random_range(1e-7..1.0), rng.random_range(0.0..1.0));
    (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

impl Generator {
    fn new(clusters: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let centre = |_| (0..DIMENSIONS).map(|_| gaussian(&mut rng)).collect();
        let centres = (0..clusters).map(centre).collect();
        Generator { rng, centres }
    }

    fn draw(&mut self) -> Arc<[f32]> {
        let centre = self.rng.random_range(0..self.centres.len());
        let raw: Vec<f32> = (0..DIMENSIONS)
            .map(|i| {
                let noise = gaussian(&mut self.rng);
                (self.centres[centre][i] + noise) * (1.0 + i as f32).powf(-0.35)
            })
            .collect();
        unit(&raw).unwrap().into()
    }
}

fn shard(head_max: usize) -> Shard {
    Shard::new(ShardConfig {
        dimensions: Some(DIMENSIONS),
        keyword: false,
        analyzer: Analyzer::default(),
        quantization: Quantization::Bf16,
        head_max,
        builder: BuilderHandle::inline(),
    })
}

fn put(shard: &mut Shard, at: u64, number: usize, generator: &mut Generator) {
    let key = Key::text(&number.to_string());
    let text = format!("{number} at {at}");
    let state = document(&key, at, (number % 100) as u8, &[text]);
    let vector = generator.draw();
    shard.apply_document(at, &key, Some(state), &|_: ContentHash| {
        Some(vector.clone())
    });
}

fn recall(shard: &Shard, at: u64, generator: &mut Generator, filter: Option<Filter>) -> f64 {
    let mut found = 0;
    for _ in 0..100 {
        let question = ShardQuestion {
            vector: Some(generator.draw()),
            k: 10,
            mode: Mode::Vector,
            ..ShardQuestion::default()
        };
        let ids = |is_exact| {
            let question = ShardQuestion {
                is_exact,
                ..question.clone()
            };
            let statistics = Statistics::default();
            let candidates = shard.search(&question, filter, &statistics, at);
            let merged = merge(vec![candidates], &question, &statistics);
            merged
                .hits
                .iter()
                .map(|hit| hit.candidate.chunk)
                .collect::<AHashSet<ChunkId>>()
        };
        let (exact, walked) = (ids(true), ids(false));
        assert_eq!(exact.len(), 10);
        found += exact.intersection(&walked).count();
    }
    found as f64 / 1_000.0
}

#[test]
fn recall_survives_three_turnovers_and_filters() {
    println!("seed {SEED}");
    let documents = 10_000;
    let mut generator = Generator::new(500);
    let mut shard = shard(2_048);
    shard.set_observed(false);
    let mut at = 1;
    for number in 0..documents {
        put(&mut shard, at, number, &mut generator);
        shard.maintain();
    }
    let fresh = recall(&shard, at, &mut generator, None);
    for step in 0..3 * documents {
        at += 1;
        let number = generator.rng.random_range(0..documents);
        put(&mut shard, at, number, &mut generator);
        shard.compact(at.saturating_sub(1_000));
        shard.maintain();
        if step % 10_000 == 0 {
            println!("{step} {:?}", shard.sizes());
        }
    }
    let churned = recall(&shard, at, &mut generator, None);
    let half = |rows: &[&Row]| {
        rows.iter()
            .map(|row| row.as_bytes()[0] < 50)
            .collect::<Vec<_>>()
    };
    let few = |rows: &[&Row]| {
        rows.iter()
            .map(|row| row.as_bytes()[0] == 7)
            .collect::<Vec<_>>()
    };
    let of_half = recall(&shard, at, &mut generator, Some(&half));
    let of_few = recall(&shard, at, &mut generator, Some(&few));
    let then = recall(&shard, at - 500, &mut generator, None);
    let sizes = shard.sizes();
    println!("fresh {fresh} churned {churned} half {of_half} few {of_few} then {then} {sizes:?}");
    assert!(fresh >= 0.97 && churned >= fresh - 0.01 && of_half >= 0.97 && then >= fresh - 0.01);
    assert_eq!(of_few, 1.0, "few matching rows are scanned");
    assert!(sizes.generations >= 1 && sizes.generations <= 8);
    assert!(
        sizes.vectors < 3 * documents as u64,
        "dead rows are given back"
    );
}
