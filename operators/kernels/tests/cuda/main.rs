//! Kernels on the emulated GPU, and the host's logic around them: no GPU is needed.
//!
//! Laws: every kernel equals its f64 oracle at sizes around every edge, writes nothing past its rows,
//! reads no poison, and does so in any order of threads, whether asynchronous copies land early or late;
//! matrix loads have no bank conflicts.

mod bed;
mod checks;
mod emulator;
mod feed_int8;
mod hangs;
mod int8;
mod model;
mod weather;
mod whole;
mod whole_emulated;

use emulator::{Emulator, Weather};
use int8::Sums;
use kernels::cuda::batch::Text;
use kernels::cuda::cluster::Cluster;
use kernels::cuda::device::{Device, Stage};
use kernels::cuda::encoder::{Attention, Output, Precision, Recipe, Residual};
use kernels::cuda::engine::{DeviceEngine, Options};
use kernels::cuda::linear::Epilogue;
use kernels::weights::Weights;
use kernels::{Encoder, Kernel, Pooling, Scratch};

const WEATHERS: [Weather; 4] = [
    Weather {
        order: 0,
        is_late: true,
    },
    Weather {
        order: 1,
        is_late: false,
    },
    Weather {
        order: 2,
        is_late: true,
    },
    Weather {
        order: 3,
        is_late: false,
    },
];
const EPILOGUES: [Epilogue; 4] = [
    Epilogue::Bias,
    Epilogue::Gelu,
    Epilogue::Residual,
    Epilogue::Tanh,
];
const ALL: [Stage; 3] = [Stage::Naive, Stage::TensorCore, Stage::Hopper];
const BOTH: [Stage; 2] = [Stage::Naive, Stage::TensorCore];

#[test]
fn products_equal_the_oracle() {
    let sizes = [
        (0, 64, 64),
        (1, 8, 8),
        (2, 32, 128),
        (15, 96, 136),
        (127, 40, 24),
        (128, 64, 128),
        (129, 384, 136),
        (257, 72, 264),
    ];
    for stage in BOTH {
        for (i, size) in sizes.into_iter().enumerate() {
            for (j, epilogue) in EPILOGUES.into_iter().enumerate() {
                let mut device = Emulator::new(WEATHERS[(i + j) % 4]);
                checks::linear(&mut device, stage, epilogue, size);
            }
        }
    }
    assert_eq!(Emulator::conflicts(), 0);
}

#[test]
fn products_by_warpgroups_equal_the_oracle() {
    // (rows, inputs, outputs): none; one tile; a tail of K; three tiles on two blocks, so that one block
    // has both warpgroups at work; more steps than stages; several tiles a warpgroup.
    let sizes = [
        (0, 64, 64),
        (1, 8, 8),
        (65, 72, 136),
        (129, 64, 264),
        (100, 392, 384),
        (257, 128, 384),
        (520, 72, 200), // five tiles below each other: two clusters of four
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        for weather in WEATHERS {
            let epilogue = EPILOGUES[(i + weather.order as usize) % 4];
            checks::linear(&mut Emulator::new(weather), Stage::Hopper, epilogue, size);
        }
    }
}

#[test]
fn products_with_their_norms_equal_the_oracle() {
    // Rows: none; one; a warpgroup's edge; a tile's; three tiles on two blocks, more steps
    // than stages. Inputs: fewer than a step, its tail, more steps than stages.
    for (i, (rows, inputs)) in [
        (0, 64),
        (1, 8),
        (64, 72),
        (65, 128),
        (129, 264),
        (257, 264),
        (8, 392),
        (520, 72),
    ]
    .into_iter()
    .enumerate()
    {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            checks::join(&mut Emulator::new(weather), rows, inputs);
        }
    }
    checks::join_is_invariant(&mut Emulator::new(WEATHERS[2]), 200, 136);
}

#[test]
fn the_feed_forward_half_equals_the_oracle() {
    // Rows: none; one; a tile's edge; three tiles on two blocks. Inner width: a chunk, its tail, several.
    for (i, (rows, wide)) in [
        (0, 128),
        (1, 8),
        (64, 136),
        (65, 392),
        (129, 128),
        (7, 520),
        (330, 128),
    ]
    .into_iter()
    .enumerate()
    {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            checks::feed(&mut Emulator::new(weather), rows, wide);
        }
    }
    checks::feed_is_invariant(&mut Emulator::new(WEATHERS[2]), 100, 136);
}

#[test]
fn the_feed_forward_half_of_bytes_equals_the_oracle() {
    // Rows: none; one; a tile's edge; three tiles a block, four. Inner width: chunks odd and even, one and many.
    let sizes = [
        (0, 128),
        (1, 640),
        (63, 256),
        (64, 128),
        (65, 384),
        (129, 256),
        (257, 384),
        (449, 128),
    ];
    for (i, (rows, wide)) in sizes.into_iter().enumerate() {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            feed_int8::feed(&mut Emulator::new(weather), rows, wide);
        }
    }
    feed_int8::is_invariant(&mut Emulator::new(WEATHERS[2]), 200, 256);
    feed_int8::what_is_not_finite_stays_so(&mut Emulator::new(WEATHERS[1]));
    feed_int8::zeros_stay_zeros(&mut Emulator::new(WEATHERS[0]));
}

#[test]
fn the_feed_forward_half_of_bytes_bears_every_weather() {
    for order in 0..4 {
        for is_late in [false, true] {
            let mut device = Emulator::new(Weather { order, is_late });
            feed_int8::feed(&mut device, 130, 384);
            feed_int8::feed(&mut device, 321, 256);
        }
    }
}

#[test]
fn products_of_bytes_equal_the_oracle() {
    // (rows, inputs, outputs): none; one row and step; a tail of columns; three tiles on two blocks, so that
    // one block has both warpgroups at work; more steps than stages, an odd number and an even one.
    let sizes = [
        (0, 128, 128),
        (1, 128, 8),
        (65, 256, 136),
        (129, 384, 264),
        (100, 640, 128),
        (257, 768, 128),
        (520, 128, 200), // five tiles below each other: two clusters of four
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            for sums in [Sums::Whole, Sums::Grouped] {
                int8::product(&mut Emulator::new(weather), sums, size);
            }
        }
    }
    int8::weights_stand_for_themselves(&mut Emulator::new(WEATHERS[0]));
    int8::what_is_not_finite_stays_so(&mut Emulator::new(WEATHERS[1]));
    for sums in [Sums::Whole, Sums::Grouped] {
        int8::product_is_invariant(&mut Emulator::new(WEATHERS[2]), sums, (200, 256, 136));
    }
}

#[test]
fn bytes_stand_for_gelu_and_for_norms() {
    let sizes = [
        (0, 128, 128),
        (1, 128, 128),
        (129, 384, 256),
        (66, 640, 384),
        (520, 128, 128),
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            int8::gelu(&mut Emulator::new(weather), size);
        }
    }
    for hidden in [128, 384, 768, 1024] {
        for lengths in [&[][..], &[1], &[3, 20, 1]] {
            int8::norms(&mut Emulator::new(WEATHERS[2]), hidden, lengths);
        }
    }
}

#[test]
fn products_do_not_depend_on_neighbours() {
    checks::linear_is_invariant(
        &mut Emulator::new(WEATHERS[2]),
        Stage::Hopper,
        200,
        136,
        136,
    );
    for stage in BOTH {
        checks::linear_is_invariant(&mut Emulator::new(WEATHERS[2]), stage, 200, 96, 136);
    }
}

#[test]
fn attention_equals_the_oracle() {
    let mixes: [&[usize]; 5] = [
        &[],
        &[1],
        &[1, 2, 15, 16, 17],
        &[64, 3, 65, 63, 127],
        &[129, 1, 200],
    ];
    for stage in BOTH {
        for (heads, width) in [(2, 32), (2, 64), (3, 32)] {
            for (i, lengths) in mixes.into_iter().enumerate() {
                let mut device = Emulator::new(WEATHERS[i % 4]);
                checks::attention(&mut device, stage, heads, width, lengths);
            }
        }
    }
    assert_eq!(Emulator::conflicts(), 0);
}

#[test]
fn attention_of_a_long_text_equals_the_oracle() {
    // Five tiles of keys, the last with one: more than are in flight at a time.
    for (stage, weather) in BOTH.into_iter().zip([WEATHERS[1], WEATHERS[2]]) {
        checks::attention(&mut Emulator::new(weather), stage, 2, 64, &[257]);
    }
}

#[test]
fn attention_by_heads_equals_the_oracle() {
    // Every edge of a slot, a tile, a group, a segment; every way to share a tile; more items than blocks.
    let mixes: [&[usize]; 10] = [
        &[],
        &[1],
        &[1, 2, 15, 16, 17, 31, 33],
        &[48, 63, 64, 65],
        &[33, 16, 20, 9, 7, 30, 48, 1],
        &[127, 3, 128, 129],
        &[193, 1, 192],
        &[255, 17],
        &[256, 257],
        &[1; 40],
    ];
    for (i, lengths) in mixes.into_iter().enumerate() {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            let heads = 1 + (i + weather.order as usize) % 3;
            checks::attention_heads(&mut Emulator::new(weather), heads, lengths);
        }
    }
    assert_eq!(Emulator::conflicts(), 0);
}

#[test]
fn attention_by_heads_of_long_texts_equals_the_oracle() {
    // Segments behind the first, a tail in each; keys that come through shared memory twice.
    for (length, weather) in [(300, 0), (321, 1), (385, 3), (512, 1), (530, 2), (641, 1)] {
        checks::attention_heads(&mut Emulator::new(WEATHERS[weather]), 1, &[length, 5]);
    }
    // So many texts that the bucket is a large one: items of 128 and of 256 queries.
    for (length, texts, weather) in [(530, 256, 0), (300, 512, 3)] {
        let lengths = [vec![length], vec![1; texts]].concat();
        checks::attention_heads(&mut Emulator::new(WEATHERS[weather]), 1, &lengths);
    }
}

#[test]
fn attention_by_heads_does_not_depend_on_neighbours() {
    // Alone, first, last, among; in every slot.
    let neighbours: [(&[usize], &[usize]); 6] = [
        (&[], &[3]),
        (&[20], &[]),
        (&[16, 33], &[9, 64, 1]),
        (&[48], &[48]),
        (&[17, 5, 7], &[12]),
        (&[1, 1, 1], &[1, 1]),
    ];
    for (i, length) in [1, 15, 16, 17, 33, 48].into_iter().enumerate() {
        let mut device = Emulator::new(WEATHERS[i % 4]);
        checks::attention_heads_is_invariant(&mut device, length, &neighbours);
    }
    // Buckets of 1,024 and of 4,096 rows: 64 queries an item, and 128.
    let many: &[usize] = &[100; 10];
    let more: &[usize] = &[15; 120];
    for (length, weather) in [(130, 0), (70, 3)] {
        let mut device = Emulator::new(WEATHERS[weather]);
        let neighbours = [(&[70, 2][..], &[16][..]), (many, more)];
        checks::attention_heads_is_invariant(&mut device, length, &neighbours);
    }
}

#[test]
fn products_by_heads_equal_the_oracle() {
    // (rows, inputs, outputs): none; one plane; a tail of rows and of planes; several tiles a warpgroup.
    let sizes = [
        (0, 64, 96),
        (1, 8, 32),
        (65, 72, 160),
        (129, 64, 288),
        (520, 72, 256),
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        for weather in [WEATHERS[i % 4], WEATHERS[(i + 1) % 4]] {
            checks::linear_heads(&mut Emulator::new(weather), size);
        }
    }
    for (i, size) in [
        (0, 128, 96),
        (65, 256, 160),
        (129, 128, 288),
        (520, 128, 224),
    ]
    .into_iter()
    .enumerate()
    {
        int8::product_heads(&mut Emulator::new(WEATHERS[i]), size);
    }
}

#[test]
fn embedding_and_norms_equal_the_oracle() {
    for stage in BOTH {
        for hidden in [4, 64, 132, 384, 768, 1024] {
            for lengths in [&[][..], &[1], &[3, 20, 1]] {
                checks::embed_and_norm(&mut Emulator::new(WEATHERS[2]), stage, hidden, lengths);
            }
        }
    }
}

#[test]
fn pooling_and_heads_equal_the_oracle() {
    for stage in BOTH {
        for hidden in [4, 64, 132, 384, 768, 1024] {
            for lengths in [&[][..], &[1], &[3, 20, 1, 64, 7]] {
                checks::pooling(&mut Emulator::new(WEATHERS[3]), stage, hidden, lengths);
            }
        }
    }
}

fn emulated() -> Box<dyn Device> {
    Box::new(Emulator::new(WEATHERS[2]))
}

#[test]
fn models_equal_the_oracle() {
    for (hidden, heads, wide) in [(64, 2, 128), (128, 2, 192), (96, 3, 96)] {
        for stage in ALL {
            for residual in [Residual::InNorm, Residual::InProduct] {
                let options = Options {
                    residual,
                    ..model::options(stage, 1)
                };
                let config = model::shape(hidden, 2, heads, wide);
                model::equals_the_oracle(emulated(), config, &options, &[2, 65, 17, 1]);
            }
        }
    }
}

#[test]
fn models_with_attention_by_heads_equal_the_oracle_and_do_not_depend_on_neighbours() {
    let with = |residual, precision, bucket| Options {
        residual,
        precision,
        attention: Attention::Heads,
        ..model::options(Stage::Hopper, bucket)
    };
    let halves = [Residual::InNorm, Residual::InProduct];
    for options in halves.map(|place| with(place, Precision::Half, 1)) {
        let config = model::shape(96, 2, 3, 96);
        model::equals_the_oracle(emulated(), config, &options, &[2, 65, 17, 1, 40]);
    }
    let wide = [
        with(Residual::FusedFeed, Precision::Half, 1),
        with(Residual::InNorm, Precision::Int8, 1),
    ];
    for options in wide {
        let config = model::shape(384, 1, 12, 1536);
        model::equals_the_oracle(emulated(), config, &options, &[3, 17, 66]);
    }
    for precision in [Precision::Half, Precision::Int8] {
        let config = model::shape(128, 2, 4, 384);
        let options = with(Residual::InNorm, precision, 1);
        model::is_invariant(&emulated, config, &options, &[5, 1, 66, 16, 30]);
    }
}

#[test]
fn attention_by_heads_is_refused_where_there_is_no_kernel_of_it() {
    let refused = |stage, config| {
        let options = Options {
            attention: Attention::Heads,
            ..model::options(stage, 0)
        };
        let weights = Weights::generate(config, 7);
        let output = Output::Vector(Pooling::Mean);
        let opened = DeviceEngine::open(emulated(), &weights, &output, &options);
        opened.err().map(|fault| fault.to_string())
    };
    for stage in BOTH {
        let said = refused(stage, model::shape(64, 1, 2, 64)).unwrap();
        assert!(said.contains("attention by heads"), "{said}");
    }
    let said = refused(Stage::Hopper, model::shape(128, 1, 2, 64)).unwrap();
    assert!(said.contains("heads of 64"), "{said}");
    assert_eq!(refused(Stage::Hopper, model::shape(64, 1, 2, 64)), None);
    // What a bench and the suite on a device go through.
    let all = Recipe::all(Stage::Hopper, &model::shape(384, 1, 12, 1536));
    let by_heads = all.iter().filter(|r| r.attention == Attention::Heads);
    assert_eq!((all.len(), by_heads.count()), (18, 6));
    let last = all[all.len() - 1].to_string();
    let is_said = last.contains("int8") && last.ends_with("clusters of 4, attention by heads");
    assert!(is_said, "{last}");
    let all = Recipe::all(Stage::Hopper, &model::shape(768, 1, 12, 3072));
    assert!(all.iter().all(|r| r.attention == Attention::Tiled));
}

#[test]
fn a_model_of_the_default_models_width_equals_the_oracle() {
    use Residual::{Fused, FusedFeed, InNorm};
    let norms = ALL.map(|stage| (stage, InNorm, Cluster::One));
    let fused = [
        (InNorm, Cluster::Two),
        (Fused, Cluster::One),
        (FusedFeed, Cluster::One),
        (FusedFeed, Cluster::Two),
    ];
    let fused = fused.map(|(residual, cluster)| (Stage::Hopper, residual, cluster));
    for (stage, residual, cluster) in norms.into_iter().chain(fused) {
        let options = Options {
            residual,
            cluster,
            ..model::options(stage, 1)
        };
        let config = model::shape(384, 1, 12, 1536);
        model::equals_the_oracle(emulated(), config, &options, &[3, 17, 66]);
    }
}

#[test]
fn models_of_bytes_equal_the_oracle_and_do_not_depend_on_neighbours() {
    let options = |bucket| Options {
        precision: Precision::Int8,
        ..model::options(Stage::Hopper, bucket)
    };
    for config in [model::shape(128, 2, 4, 256), model::shape(384, 1, 12, 1536)] {
        model::equals_the_oracle(emulated(), config, &options(1), &[3, 17, 66]);
    }
    for attention in [Attention::Tiled, Attention::Heads] {
        let options = Options {
            residual: Residual::FusedFeed,
            cluster: Cluster::Two,
            attention,
            ..options(1)
        };
        let config = model::shape(384, 2, 12, 1536);
        model::equals_the_oracle(emulated(), config, &options, &[3, 17, 66]);
        let config = model::shape(384, 2, 12, 256);
        model::is_invariant(&emulated, config, &options, &[5, 1, 66, 16]);
    }
    let config = model::shape(128, 2, 4, 384);
    model::is_invariant(&emulated, config, &options(1), &[5, 1, 66, 16, 30]);
}

/// The bar of int8, on what people run: all layers of the default model, real text.
#[test]
fn the_default_models_weights_as_bytes_equal_the_oracle() {
    let Some((weights, texts)) = model::support::real_model_and_texts() else {
        let why = "the default model is not in HEADWATER_MODELS";
        return model::support::skip("real weights as bytes", why);
    };
    // Pages begin with short paragraphs; the emulated machine is slow.
    let short = texts.into_iter().filter(|ids| (8..40).contains(&ids.len()));
    let mut texts: Vec<Text> = short.step_by(5).take(4).map(Text::new).collect();
    // A device is trusted by arbitrary ids like these (operators/src/embed/gpu.rs).
    let probe = |length: u32| (0..length).map(|at| (at * 7_919 + 101) % 30_522).collect();
    texts.extend([2, 3, 17].map(probe).map(Text::new));
    for (residual, attention) in [
        (Residual::InNorm, Attention::Tiled),
        (Residual::InNorm, Attention::Heads),
        (Residual::FusedFeed, Attention::Tiled),
    ] {
        bytes_of_real_weights(&weights, &texts, residual, attention);
    }
}

fn bytes_of_real_weights(
    weights: &Weights,
    texts: &[Text],
    residual: Residual,
    attention: Attention,
) {
    let options = Options {
        precision: Precision::Int8,
        residual,
        attention,
        ..model::options(Stage::Hopper, 1)
    };
    let output = Output::Vector(Pooling::Mean);
    let mut engine = DeviceEngine::open(emulated(), weights, &output, &options).unwrap();
    let vectors = model::run(&mut engine, texts);
    let expected = model::expected(weights, Pooling::Mean, texts, "real as bytes");
    let cosines = vectors.iter().zip(&expected);
    let cosines: Vec<f64> = cosines
        .map(|(v, e)| kernels::reference::cosine(v, e))
        .collect();
    println!("real weights as bytes, {residual:?}, {attention:?}: cosines {cosines:.6?}");
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let least = cosines.iter().copied().fold(1.0, f64::min);
    assert!(mean >= 0.999 && least >= 0.998, "{cosines:?}");
    // The CPU rounds in another way, and is what stands behind a device.
    let cpu = Encoder::with_kernel(weights.clone(), Pooling::Mean, Kernel::Int8);
    for (text, vector) in texts.iter().zip(&vectors) {
        let of_cpu = cpu.encode(&text.ids, &mut Scratch::default());
        let of_cpu: Vec<f64> = of_cpu.into_iter().map(f64::from).collect();
        let cosine = kernels::reference::cosine(vector, &of_cpu);
        println!(
            "{} ids: cosine {cosine:.6} with the CPU's int8",
            text.ids.len()
        );
        assert!(cosine >= 0.998, "{cosine}");
    }
}

#[test]
fn bytes_are_refused_where_there_are_no_kernels_of_them() {
    let refused = |stage, residual, config| {
        let options = Options {
            precision: Precision::Int8,
            residual,
            ..model::options(stage, 0)
        };
        let weights = Weights::generate(config, 7);
        let output = Output::Vector(Pooling::Mean);
        let opened = DeviceEngine::open(emulated(), &weights, &output, &options);
        opened.err().map(|fault| fault.to_string())
    };
    let (good, bad) = (
        || model::shape(128, 1, 4, 128),
        model::shape(128, 1, 4, 192),
    );
    let said = refused(Stage::TensorCore, Residual::InNorm, good()).unwrap();
    assert!(said.contains("compute capability 9.0"), "{said}");
    let said = refused(Stage::Hopper, Residual::InProduct, good()).unwrap();
    assert!(said.contains("InProduct"), "{said}");
    let feed = Residual::FusedFeed;
    let said = refused(Stage::Hopper, feed, good()).unwrap();
    assert!(said.contains("128 columns, expected"), "{said}");
    let odd = model::shape(384, 1, 12, 136);
    let said = refused(Stage::Hopper, feed, odd).unwrap();
    assert!(said.contains("136 between"), "{said}");
    let said = refused(Stage::Hopper, Residual::InNorm, bad).unwrap();
    assert!(said.contains("192 between"), "{said}");
    assert_eq!(refused(Stage::Hopper, Residual::InNorm, good()), None);
}

#[test]
fn vectors_do_not_depend_on_neighbours() {
    for stage in ALL {
        let config = model::shape(64, 2, 2, 96);
        model::is_invariant(
            &emulated,
            config,
            &model::options(stage, 1),
            &[5, 1, 66, 16, 30],
        );
    }
}

#[test]
fn heads_of_all_stages_agree() {
    model::heads_agree(&emulated, &ALL);
}
