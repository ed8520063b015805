//! Bar 1: every kernel against the f64 oracle.
//!
//! Law: cosine ≥ 0.999999 in f32, ≥ 0.9999 in bf16; in int8 ≥ 0.999 on average and ≥ 0.998 each. For
//! all lengths around the edges of tiles, panels and blocks, with memory full of NaN before each text;
//! for trained weights and for generated ones with outlier channels. On every instruction set here.

mod support;

use kernels::tile::Cpu;
use kernels::{Encoder, Kernel, Pooling, Scratch, Weights, reference};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use support::{ids, real_model_and_texts, shape, skip, with_outliers};

const LENGTHS: [usize; 19] = [
    1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511,
];

/// (least, least on average).
fn gate(kernel: Kernel) -> (f64, f64) {
    match kernel {
        Kernel::F32 => (0.999_999, 0.999_999),
        Kernel::Bf16 => (0.9999, 0.9999),
        Kernel::Int8 => (0.998, 0.999),
    }
}

fn check(what: &str, weights: &Weights, pooling: Pooling, texts: &[Vec<u32>], all_cpus: bool) {
    let exact: Vec<Vec<f64>> = texts
        .iter()
        .map(|ids| reference::encode(weights, pooling, ids))
        .collect();
    for kernel in Kernel::ALL {
        let cpus = Cpu::available(kernel.format());
        let few = if all_cpus { cpus.len() } else { 1 };
        for &cpu in &cpus[..few] {
            let encoder = Encoder::on(weights.clone(), pooling, kernel, cpu);
            let mut scratch = Scratch::default();
            let cosines: Vec<f64> = texts
                .iter()
                .zip(&exact)
                .map(|(ids, exact)| {
                    scratch.poison();
                    reference::cosine(&encoder.encode(ids, &mut scratch), exact)
                })
                .collect();
            let least = cosines.iter().copied().fold(f64::MAX, f64::min);
            let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
            let name = kernel.name();
            println!("{what} {name} {cpu:?}: least {least:.7}, mean {mean:.7}");
            let (least_gate, mean_gate) = gate(kernel);
            assert!(
                least >= least_gate && mean >= mean_gate,
                "{what}, {name} on {cpu:?}: least {least}, mean {mean}; by text {cosines:?}"
            );
        }
    }
}

#[test]
fn all_lengths() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut texts: Vec<Vec<u32>> = LENGTHS.iter().map(|&n| ids(&mut rng, n)).collect();
    texts.push(ids(&mut rng, 512));
    for (what, config) in [
        ("heads of 32", shape(64, 2, 2, 128)),
        ("heads of 64", shape(128, 1, 2, 256)),
        ("heads of 10", shape(40, 2, 4, 100)),
    ] {
        let weights = Weights::generate(config, 5);
        check(what, &weights, Pooling::Mean, &texts, false);
        check(what, &weights, Pooling::Cls, &texts[..13], true);
    }
}

#[test]
fn real_layer_shapes() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let texts: Vec<Vec<u32>> = [2, 17, 33].map(|n| ids(&mut rng, n)).to_vec();
    for config in [shape(384, 6, 12, 1536), shape(768, 2, 12, 3072)] {
        let weights = Weights::generate(config, 6);
        check("generated", &weights, Pooling::Mean, &texts, false);
    }
}

#[test]
fn outlier_channels() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let texts: Vec<Vec<u32>> = [2, 9, 17, 33, 40].map(|n| ids(&mut rng, n)).to_vec();
    let weights = with_outliers(Weights::generate(shape(384, 6, 12, 1536), 7));
    check("outliers", &weights, Pooling::Mean, &texts, false);
    check("outliers", &weights, Pooling::Cls, &texts, false);
}

#[test]
fn the_default_models_real_weights() {
    let Some((weights, texts)) = real_model_and_texts() else {
        skip(
            "the default model's real weights",
            "it is not in HEADWATER_MODELS",
        );
        return;
    };
    let mut texts: Vec<Vec<u32>> = texts.into_iter().step_by(14).take(10).collect();
    texts.push(vec![101, 102]);
    let tokens: usize = texts.iter().map(Vec::len).sum();
    println!("{} texts, {tokens} tokens", texts.len());
    check("real", &weights, Pooling::Mean, &texts, false);
}
