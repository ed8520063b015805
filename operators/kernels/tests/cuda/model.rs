//! Whole models: the device's vector against the f64 oracle, and its bits against themselves.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use kernels::cuda::batch::{BUCKETS, Batch, Text};
use kernels::cuda::device::{Device, Stage};
use kernels::cuda::encoder::{Head, Output, Precision, Residual};
use kernels::cuda::engine::{Class, DeviceEngine, Engine, Options, SlotPlan};
use kernels::weights::{BertConfig, Weights};
use kernels::{Pooling, reference};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[path = "../support/mod.rs"]
pub mod support;

pub use support::shape;

pub fn texts(rng: &mut ChaCha8Rng, lengths: &[usize]) -> Vec<Text> {
    let ids = |length: usize, rng: &mut ChaCha8Rng| {
        (0..length).map(|_| rng.random_range(0..300)).collect()
    };
    lengths
        .iter()
        .map(|&length| Text::new(ids(length, rng)))
        .collect()
}

pub fn options(stage: Stage, bucket: usize) -> Options {
    Options {
        stage: Some(stage),
        slots: vec![SlotPlan {
            class: Class::Bulk,
            most: BUCKETS[bucket],
        }],
        ..Options::default()
    }
}

/// Runs texts as one batch.
pub fn run(engine: &mut dyn Engine, texts: &[Text]) -> Vec<Vec<f32>> {
    let mut batch = Batch::new();
    texts.iter().for_each(|text| batch.push(text));
    engine.begin(0, &mut batch).unwrap();
    let mut out = Vec::new();
    while !engine.finish(0, &mut out).unwrap() {}
    assert_eq!(out.len(), texts.len() * engine.width());
    out.chunks(engine.width()).map(<[f32]>::to_vec).collect()
}

/// The f64 oracle's vectors. It is what takes time here, and several devices and stages ask for the same.
pub fn expected(weights: &Weights, pooling: Pooling, texts: &[Text], key: &str) -> Vec<Vec<f64>> {
    type Known = Mutex<HashMap<String, Vec<Vec<f64>>>>;
    static KNOWN: LazyLock<Known> = LazyLock::new(Known::default);
    let key = format!("{key} {pooling:?} {:?}", weights.config);
    if let Some(known) = KNOWN.lock().unwrap().get(&key) {
        return known.clone();
    }
    let of_text = |text: &Text| reference::encode(weights, pooling, &text.ids);
    let vectors: Vec<Vec<f64>> = texts.iter().map(of_text).collect();
    KNOWN.lock().unwrap().insert(key, vectors.clone());
    vectors
}

/// Least cosine of a vector with the oracle's.
pub fn cosine_bar(stage: Stage, precision: Precision) -> f64 {
    match (stage, precision) {
        (_, Precision::Int8) => 0.998,
        (Stage::Naive, _) => 0.999_999,
        _ => 0.9999,
    }
}

/// Cosine ≥ 0.9999 in halves, 0.999999 in f32, 0.998 in bytes, with every text of a mixed batch.
pub fn equals_the_oracle(
    device: Box<dyn Device>,
    config: BertConfig,
    options: &Options,
    lengths: &[usize],
) {
    let weights = Weights::generate(config, 7);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let texts = texts(&mut rng, lengths);
    let pooling = if options.residual == Residual::InNorm {
        Pooling::Mean
    } else {
        Pooling::Cls
    };
    let mut engine =
        DeviceEngine::open(device, &weights, &Output::Vector(pooling), options).unwrap();
    let least = cosine_bar(options.stage.unwrap(), options.precision);
    let expected = expected(&weights, pooling, &texts, &format!("{lengths:?}"));
    let vectors = run(&mut engine, &texts);
    for ((text, vector), expected) in texts.iter().zip(vectors).zip(&expected) {
        let cosine = reference::cosine(&vector, expected);
        assert!(
            cosine >= least,
            "{:?}, {} ids: cosine {cosine}",
            options.stage,
            text.ids.len()
        );
        let norm: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((norm - 1.0).abs() < 1e-5);
    }
}

/// Bitwise the same alone, among others in any order, with a graph and without.
pub fn is_invariant(
    make: &dyn Fn() -> Box<dyn Device>,
    config: BertConfig,
    with: &Options,
    lengths: &[usize],
) {
    let weights = Weights::generate(config, 11);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut texts = texts(&mut rng, lengths);
    let output = Output::Vector(Pooling::Mean);
    let without = Options {
        has_graphs: false,
        overlap: false,
        ..with.clone()
    };
    let mut engine = DeviceEngine::open(make(), &weights, &output, with).unwrap();
    let mut plain = DeviceEngine::open(make(), &weights, &output, &without).unwrap();
    let mut alone = Vec::new();
    for text in &texts {
        let vector = run(&mut engine, std::slice::from_ref(text)).remove(0);
        alone.push((text.clone(), vector));
    }
    for round in 0..3 {
        texts.shuffle(&mut rng);
        let many = if round == 1 {
            run(&mut plain, &texts)
        } else {
            run(&mut engine, &texts)
        };
        for (text, vector) in texts.iter().zip(many) {
            let (_, expected) = alone.iter().find(|(known, _)| known == text).unwrap();
            assert_eq!(
                &vector,
                expected,
                "{:?}, {:?}, round {round}, {} ids",
                with.stage,
                with.residual,
                text.ids.len()
            );
        }
    }
}

/// Logits of all stages agree with stage 0's: the head's own oracle is in `checks`.
pub fn heads_agree(make: &dyn Fn() -> Box<dyn Device>, stages: &[Stage]) {
    let weights = Weights::generate(shape(64, 1, 2, 96), 13);
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let mut draw =
        |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-0.3..0.3)).collect() };
    let head = Head {
        pooler: (draw(64 * 64), draw(64)),
        classifier: (draw(3 * 64), draw(3)),
    };
    let mut texts = texts(&mut rng, &[2, 17, 40]);
    texts[1].second = Some(9);
    let output = Output::Logits(head);
    let logits = |stage: Stage| {
        let mut engine = DeviceEngine::open(make(), &weights, &output, &options(stage, 0)).unwrap();
        run(&mut engine, &texts)
    };
    let naive = logits(Stage::Naive);
    for &stage in stages {
        for (naive, fast) in naive.iter().zip(logits(stage)) {
            assert_eq!(naive.len(), 3);
            let off = naive.iter().zip(&fast).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) < 5e-3, "{stage:?}");
        }
    }
}
