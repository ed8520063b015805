//! The encoder against the f64 oracle, on generated weights of small shapes.
//!
//! Law 1: cosine ≥ 0.999999 for every length around the edges of registers and tiles.
//! Law 2: a vector is bitwise the same whatever was computed before it with the same scratch.

use kernels::weights::{BertConfig, Weights};
use kernels::{Encoder, Pooling, Scratch, reference};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LENGTHS: [usize; 16] = [
    1, 2, 3, 4, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 256,
];

fn shape(hidden: usize, layers: usize, heads: usize, intermediate: usize) -> BertConfig {
    BertConfig {
        model_type: "bert".to_owned(),
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        intermediate_size: intermediate,
        max_position_embeddings: 256,
        vocab_size: 300,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".to_owned(),
        position_embedding_type: "absolute".to_owned(),
    }
}

fn ids(rng: &mut ChaCha8Rng, length: usize) -> Vec<u32> {
    (0..length).map(|_| rng.random_range(0..300)).collect()
}

#[test]
fn the_encoder_agrees_with_the_oracle() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let shapes = [
        shape(32, 2, 2, 64),
        shape(48, 1, 3, 100),
        shape(24, 2, 4, 36),
    ];
    for (i, config) in shapes.into_iter().enumerate() {
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let weights = Weights::generate(config.clone(), seed + i as u64);
            let encoder = Encoder::new(weights.clone(), pooling);
            let mut scratch = Scratch::default();
            for length in LENGTHS {
                let ids = ids(&mut rng, length);
                let vector = encoder.encode(&ids, &mut scratch);
                let cosine =
                    reference::cosine(&vector, &reference::encode(&weights, pooling, &ids));
                assert!(
                    cosine > 0.999_999,
                    "shape {i}, {pooling:?}, {length} ids: {cosine}"
                );
                let norm: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
                assert!((norm - 1.0).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn the_real_layer_shape_agrees_with_the_oracle() {
    let weights = Weights::generate(shape(384, 1, 12, 1536), 3);
    let encoder = Encoder::new(weights.clone(), Pooling::Mean);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for length in [2, 17, 65] {
        let ids = ids(&mut rng, length);
        let vector = encoder.encode(&ids, &mut Scratch::default());
        let exact = reference::encode(&weights, Pooling::Mean, &ids);
        assert!(reference::cosine(&vector, &exact) > 0.999_999);
    }
}

#[test]
fn a_vector_does_not_depend_on_what_came_before_it() {
    let seed = 4711;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let encoder = Encoder::new(Weights::generate(shape(64, 2, 2, 128), seed), Pooling::Mean);
    let texts: Vec<Vec<u32>> = LENGTHS
        .iter()
        .map(|&length| ids(&mut rng, length))
        .collect();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|ids| encoder.encode(ids, &mut Scratch::default()))
        .collect();
    let mut scratch = Scratch::default();
    for _ in 0..200 {
        let pick = rng.random_range(0..texts.len());
        assert_eq!(encoder.encode(&texts[pick], &mut scratch), alone[pick]);
    }
}
