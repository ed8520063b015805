//! Every kernel and whole models on a real device: bars 1 and 2 of the CUDA kernels.
//!
//! One command, minutes, with the bench: `operators/kernels/tests/gpu/run.sh`. Needs a device of compute
//! capability 8.0, and kernels: `operators/kernels/cuda/build.sh` makes them, or NVRTC does. Where there is
//! no device every test says so and is counted; where `HEADWATER_TEST_DEVICE` is set it fails instead.
//!
//! The same checks run on the emulated GPU (tests/cuda), at fewer sizes. [`sanitized`] has what
//! compute-sanitizer runs, which slows kernels a hundredfold; [`real`] compares real weights.

#[path = "../cuda/bed.rs"]
mod bed;
#[path = "../cuda/checks.rs"]
mod checks;
#[path = "../cuda/feed_int8.rs"]
mod feed_int8;
#[path = "../cuda/int8.rs"]
mod int8;
#[path = "../cuda/model.rs"]
mod model;
mod real;
mod sanitized;
#[path = "../cuda/whole.rs"]
mod whole;

use std::sync::Arc;

use kernels::cuda::batch::{BUCKETS, Text};
use kernels::cuda::device::{Device, Stage};
use kernels::cuda::driver::Driver;
use kernels::cuda::encoder::{Output, Recipe};
use kernels::cuda::engine::{DeviceEngine, Engine, Options};
use kernels::cuda::linear::Epilogue;
use kernels::cuda::service::{Class, Opener, Service, Settings, checker};
use kernels::weights::Weights;
use kernels::{Encoder, Pooling, Scratch};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use int8::Sums;
use model::support::skip;

/// The first device, or a loud reason why this test is skipped.
fn device(test: &str) -> Option<Driver> {
    match Driver::open(0) {
        Ok(driver) => {
            println!("{test}: {}", driver.describe());
            Some(driver)
        }
        Err(why) => {
            let is_required = std::env::var_os("HEADWATER_TEST_DEVICE").is_some();
            assert!(!is_required, "{test}: {why}");
            skip(test, &why.to_string());
            None
        }
    }
}

fn stages(device: &Driver) -> Vec<Stage> {
    let all = [Stage::Naive, Stage::TensorCore, Stage::Hopper];
    all.into_iter()
        .filter(|&stage| stage <= device.best_stage())
        .collect()
}

const LENGTHS: [usize; 16] = [
    1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512,
];

#[test]
fn products_equal_the_oracle() {
    let Some(mut device) = device("products") else {
        return;
    };
    let epilogues = [
        Epilogue::Bias,
        Epilogue::Gelu,
        Epilogue::Residual,
        Epilogue::Tanh,
    ];
    let rows = [
        0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512,
    ];
    for stage in stages(&device) {
        for (i, rows) in rows.into_iter().enumerate() {
            for (inputs, outputs) in [(384, 384), (40, 136)] {
                checks::linear(
                    &mut device,
                    stage,
                    epilogues[i % 4],
                    (rows, inputs, outputs),
                );
            }
        }
        for (inputs, outputs) in [
            (384, 1152),
            (384, 1536),
            (1536, 384),
            (768, 2304),
            (768, 3072),
            (3072, 768),
        ] {
            for epilogue in epilogues {
                checks::linear(&mut device, stage, epilogue, (150, inputs, outputs));
            }
        }
        // More tiles than a persistent grid has blocks, several times over. (The oracle takes the time.)
        checks::linear(&mut device, stage, Epilogue::Bias, (9000, 64, 1152));
    }
}

#[test]
fn products_with_their_norms_equal_the_oracle() {
    let Some(mut device) = device("products with norms") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return skip("products with norms", "the device has no wgmma");
    }
    for rows in LENGTHS.into_iter().chain([0]) {
        for inputs in [384, 40] {
            checks::join(&mut device, rows, inputs);
        }
    }
    checks::join(&mut device, 150, 1536);
    // More tiles than a persistent grid has blocks, several steps each.
    checks::join(&mut device, 20_000, 264);
    for inputs in [384, 1536] {
        checks::join_is_invariant(&mut device, 20_000, inputs);
    }
}

#[test]
fn the_feed_forward_half_equals_the_oracle() {
    let Some(mut device) = device("feed-forward") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return skip("feed-forward", "the device has no wgmma");
    }
    for rows in LENGTHS.into_iter().chain([0]) {
        checks::feed(&mut device, rows, 136);
    }
    checks::feed(&mut device, 150, 1536);
    // More tiles than a persistent grid has blocks, several chunks each.
    checks::feed(&mut device, 10_000, 264);
    checks::feed_is_invariant(&mut device, 10_000, 1536);
}

#[test]
fn the_feed_forward_half_of_bytes_equals_the_oracle() {
    let Some(mut device) = device("feed-forward of bytes") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return skip("feed-forward of bytes", "the device has no wgmma");
    }
    for rows in LENGTHS.into_iter().chain([0]) {
        feed_int8::feed(&mut device, rows, 256);
    }
    for wide in [128, 384, 1536] {
        feed_int8::feed(&mut device, 150, wide);
    }
    // More tiles than a persistent grid has blocks: what is made a tile ahead, and behind.
    feed_int8::feed(&mut device, 20_000, 128);
    feed_int8::is_invariant(&mut device, 30_000, 1536);
    feed_int8::what_is_not_finite_stays_so(&mut device);
    feed_int8::zeros_stay_zeros(&mut device);
}

#[test]
fn products_of_bytes_equal_the_oracle() {
    let Some(mut device) = device("products of bytes") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return skip("products of bytes", "the device has no wgmma");
    }
    for rows in LENGTHS.into_iter().chain([0]) {
        for (inputs, outputs) in [(384, 384), (128, 136)] {
            for sums in [Sums::Whole, Sums::Grouped] {
                int8::product(&mut device, sums, (rows, inputs, outputs));
            }
        }
        int8::gelu(&mut device, (rows, 384, 256));
    }
    for sums in [Sums::Whole, Sums::Grouped] {
        for (inputs, outputs) in [(384, 1152), (1536, 384), (768, 2304), (3072, 768)] {
            int8::product(&mut device, sums, (150, inputs, outputs));
            int8::product_is_invariant(&mut device, sums, (5000, inputs, outputs));
        }
        // More tiles than a persistent grid has blocks, several times over.
        int8::product(&mut device, sums, (9000, 128, 1152));
    }
    int8::gelu(&mut device, (150, 384, 1536));
    int8::gelu(&mut device, (150, 768, 3072));
    int8::gelu(&mut device, (9000, 128, 1152));
    int8::weights_stand_for_themselves(&mut device);
    int8::what_is_not_finite_stays_so(&mut device);
    for hidden in [128, 384, 768, 1024] {
        for lengths in [&[][..], &[1], &LENGTHS] {
            int8::norms(&mut device, hidden, lengths);
        }
    }
}

#[test]
fn products_do_not_depend_on_neighbours() {
    let Some(mut device) = device("products, invariance") else {
        return;
    };
    for stage in stages(&device) {
        for (inputs, outputs) in [(384, 1536), (1536, 384), (768, 768)] {
            checks::linear_is_invariant(&mut device, stage, 5000, inputs, outputs);
        }
    }
}

#[test]
fn attention_equals_the_oracle() {
    let Some(mut device) = device("attention") else {
        return;
    };
    let many = vec![3; 4096];
    for stage in stages(&device)
        .into_iter()
        .filter(|&stage| stage < Stage::Hopper)
    {
        for (heads, width) in [(12, 32), (12, 64), (3, 32)] {
            for lengths in [&[][..], &LENGTHS, &[512, 1, 512]] {
                checks::attention(&mut device, stage, heads, width, lengths);
            }
        }
        checks::attention(&mut device, stage, 2, 32, &many);
    }
}

#[test]
fn attention_by_heads_equals_the_oracle() {
    let Some(mut device) = device("attention by heads") else {
        return;
    };
    if device.best_stage() < Stage::Hopper {
        return skip("attention by heads", "the device has no wgmma");
    }
    let lengths = [LENGTHS.as_slice(), &[31, 33, 48, 300, 385, 600]].concat();
    for heads in [12, 3] {
        for lengths in [&[][..], &lengths, &[512, 1, 512], &[1300, 9]] {
            checks::attention_heads(&mut device, heads, lengths);
        }
    }
    // Every way to share a tile; more items than a persistent grid has blocks.
    checks::attention_heads(&mut device, 2, &vec![3; 4096]);
    checks::attention_heads(&mut device, 12, &(1..65).collect::<Vec<_>>());
    checks::attention_heads(&mut device, 2, &[64; 200]);
    let many: (&[usize], &[usize]) = (&[100; 50], &[15; 200]);
    for length in LENGTHS {
        let neighbours = [
            (&[][..], &[3][..]),
            (&[20], &[]),
            (&[16, 33], &[9, 64, 1]),
            (&[48, 300], &[48]),
            many,
        ];
        checks::attention_heads_is_invariant(&mut device, length, &neighbours);
    }
    for rows in LENGTHS.into_iter().chain([0]) {
        checks::linear_heads(&mut device, (rows, 384, 1152));
        int8::product_heads(&mut device, (rows, 384, 1152));
    }
    checks::linear_heads(&mut device, (9000, 64, 1152));
    int8::product_heads(&mut device, (9000, 128, 1152));
}

#[test]
fn norms_pooling_and_heads_equal_the_oracle() {
    let Some(mut device) = device("norms and pooling") else {
        return;
    };
    let many = vec![3; 4096];
    for stage in stages(&device)
        .into_iter()
        .filter(|&stage| stage < Stage::Hopper)
    {
        for hidden in [4, 64, 132, 384, 768, 1024] {
            for lengths in [&[][..], &[1], &LENGTHS] {
                checks::embed_and_norm(&mut device, stage, hidden, lengths);
                checks::pooling(&mut device, stage, hidden, lengths);
            }
        }
        checks::embed_and_norm(&mut device, stage, 64, &many);
        checks::pooling(&mut device, stage, 64, &many);
    }
}

#[test]
fn models_equal_the_oracle() {
    let Some(first) = device("models") else {
        return;
    };
    for stage in stages(&first) {
        for (config, lengths) in [
            (model::shape(384, 2, 12, 1536), &LENGTHS[..13]),
            (model::shape(768, 1, 12, 3072), &[2, 65, 130]),
            (model::shape(64, 2, 2, 128), &LENGTHS),
        ] {
            for recipe in Recipe::all(stage, &config) {
                let options = model::options(stage, 4).with(recipe);
                let device = Box::new(Driver::open(0).unwrap());
                model::equals_the_oracle(device, config.clone(), &options, lengths);
            }
        }
    }
}

#[test]
fn vectors_do_not_depend_on_neighbours() {
    let Some(first) = device("models, invariance") else {
        return;
    };
    let mut lengths: Vec<usize> = LENGTHS.into_iter().chain(1..60).collect();
    lengths.extend([512, 300, 200]);
    let make = || -> Box<dyn Device> { Box::new(Driver::open(0).unwrap()) };
    for stage in stages(&first) {
        for config in [
            model::shape(384, 3, 12, 1536),
            model::shape(768, 2, 12, 3072),
        ] {
            for recipe in Recipe::all(stage, &config) {
                let options = model::options(stage, 5).with(recipe);
                model::is_invariant(&make, config.clone(), &options, &lengths);
            }
        }
    }
}

#[test]
fn a_model_in_one_launch_gives_the_bits_of_many() {
    let Some(mut first) = device("one launch") else {
        return;
    };
    if first.best_stage() < Stage::Hopper {
        return skip("one launch", "the device has no wgmma");
    }
    let make = || -> Box<dyn Device> { Box::new(Driver::open(0).unwrap()) };
    // The oracle takes the time.
    for (config, pooling, mixes) in [
        (model::shape(384, 6, 12, 1536), Pooling::Mean, 2),
        (model::shape(384, 1, 6, 1536), Pooling::Mean, 6),
        (model::shape(768, 2, 12, 3072), Pooling::Cls, 4),
        (model::shape(128, 2, 4, 256), Pooling::Mean, 9),
    ] {
        whole::leaves_the_rest_alone(&mut first, config.clone(), &[12, 17]);
        whole::equals_the_launches(&make, config.clone(), pooling, &whole::MIXES[..mixes]);
        whole::is_invariant(&make, config, &[5, 1, 66, 16, 30, 12, 64]);
    }
}

#[test]
fn heads_of_all_stages_agree() {
    let Some(first) = device("heads") else { return };
    let make = || -> Box<dyn Device> { Box::new(Driver::open(0).unwrap()) };
    model::heads_agree(&make, &stages(&first));
}

#[test]
fn the_service_answers_as_the_cpu_does() {
    let Some(first) = device("service") else {
        return;
    };
    drop(first);
    let weights = Arc::new(Weights::generate(model::shape(384, 2, 12, 1536), 3));
    let encoder = Arc::new(Encoder::new((*weights).clone(), Pooling::Mean));
    let open: Opener = {
        let weights = Arc::clone(&weights);
        Box::new(move || {
            let device = Box::new(Driver::open(0)?);
            let output = Output::Vector(Pooling::Mean);
            let engine = DeviceEngine::open(device, &weights, &output, &Options::default())?;
            Ok(Box::new(engine) as Box<dyn Engine>)
        })
    };
    let cpu = Arc::clone(&encoder);
    let fallback = move |texts: &[&Text]| -> Vec<Vec<f32>> {
        let mut scratch = Scratch::default();
        texts
            .iter()
            .map(|text| cpu.encode(&text.ids, &mut scratch))
            .collect()
    };
    let service = Service::start(
        vec![open],
        checker(&weights.config),
        Arc::new(fallback),
        Settings::default(),
    )
    .unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let lengths: Vec<usize> = (0..2000).map(|i| 1 + i * 37 % 200).collect();
    let texts = model::texts(&mut rng, &lengths);
    let bulk = service.submit(Class::Bulk, texts.clone()).unwrap();
    let question = service
        .submit(Class::Question, texts[..1].to_vec())
        .unwrap()
        .wait()
        .unwrap();
    let vectors = bulk.wait().unwrap();
    assert_eq!(question[0], vectors[0], "a question's bits are the bulk's");
    let status = service.status();
    assert_eq!((status.cpu_texts, status.faults), (0, 0), "{status:?}");
    let mut scratch = Scratch::default();
    for (text, vector) in texts.iter().zip(&vectors).step_by(97) {
        let expected = encoder.encode(&text.ids, &mut scratch);
        let cosine: f32 = vector.iter().zip(&expected).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "{cosine}");
    }
}

#[test]
fn memory_that_is_not_there_is_a_fault_and_the_next_context_works() {
    let Some(mut first) = device("faults") else {
        return;
    };
    let fault = first.allocate(1 << 50).unwrap_err();
    assert!(
        matches!(fault, kernels::cuda::Fault::OutOfMemory(_)),
        "{fault}"
    );
    drop(first);
    let device = Box::new(Driver::open(0).unwrap());
    let weights = Weights::generate(model::shape(64, 1, 2, 64), 3);
    let output = Output::Vector(Pooling::Cls);
    let options = model::options(Stage::TensorCore, 0);
    assert_eq!(options.slots[0].most, BUCKETS[0]);
    let mut engine = DeviceEngine::open(device, &weights, &output, &options).unwrap();
    assert_eq!(
        model::run(&mut engine, &[Text::new(vec![1, 2, 3])]).len(),
        1
    );
}
