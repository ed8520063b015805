//! What the device does: tokens a second by length and by mix, a kernel at a time, one question alone,
//! copies beside kernels.
//!
//! ```text
//! operators/kernels/cuda/build.sh && cargo run --release -p headwater-kernels --example bench_gpu
//! ```
//!
//! Isolated: kernels and graphs, by device events and by the wall over many replays; no tokenizer.
//! Data: random ids, seed below, three rotating sets; weights generated in MiniLM-L6's and BGE-base's
//! shapes. Unit: real tokens a second (there is no padding); medians of 20. Roofline share: operations
//! of the products and of attention over the rate of `HEADWATER_PEAK_TFLOPS` (default 790, the fp16
//! rate of an 8192³ product measured on one H200). Fits in three minutes.

use std::time::Instant;

use kernels::Pooling;
use kernels::cuda::batch::{BUCKETS, Batch, Bucket, OnDevice, Text};
use kernels::cuda::device::{Device, Launch, Stage};
use kernels::cuda::devices;
use kernels::cuda::driver::Driver;
use kernels::cuda::encoder::{Model, Output, Recipe, Residual};
use kernels::cuda::engine::{Class, DeviceEngine, Engine, Options, SlotPlan};
use kernels::weights::{BertConfig, Weights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 20_261_121;
const ROUNDS: usize = 20;

fn shape(hidden: usize, layers: usize) -> BertConfig {
    BertConfig {
        model_type: "bert".to_owned(),
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: 12,
        intermediate_size: 4 * hidden,
        max_position_embeddings: 512,
        vocab_size: 30_522,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".to_owned(),
        position_embedding_type: "absolute".to_owned(),
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Operations of a batch: products, and attention's two.
fn operations(config: &BertConfig, lengths: &[usize]) -> f64 {
    let (h, layers) = (config.hidden_size as f64, config.num_hidden_layers as f64);
    let tokens: f64 = lengths.iter().map(|&s| s as f64).sum();
    let squares: f64 = lengths.iter().map(|&s| (s * s) as f64).sum();
    layers * (24.0 * h * h * tokens + 4.0 * h * squares)
}

fn peak() -> f64 {
    let set = std::env::var("HEADWATER_PEAK_TFLOPS").ok();
    set.and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(790.0)
        * 1e12
}

/// Lengths of about real chunks: many short, a tail up to 256.
fn real_mix(rng: &mut ChaCha8Rng, tokens: usize, texts: usize) -> Vec<usize> {
    let (mut lengths, mut sum) = (Vec::new(), 0);
    loop {
        let u: f64 = rng.random_range(0.0..1.0);
        let length = (24.0 + 232.0 * u * u) as usize;
        if sum + length > tokens || lengths.len() == texts {
            return lengths;
        }
        sum += length;
        lengths.push(length);
    }
}

fn fill(batch: &mut Batch, rng: &mut ChaCha8Rng, lengths: &[usize]) {
    batch.clear();
    for &length in lengths {
        batch.push(&Text::new(
            (0..length).map(|_| rng.random_range(0..30_000)).collect(),
        ));
    }
}

/// Median seconds of a batch from pinned memory to pinned memory, with so many slots always busy.
fn throughput(
    engine: &mut DeviceEngine,
    rng: &mut ChaCha8Rng,
    lengths: &[usize],
    slots: usize,
) -> f64 {
    let mut batches: Vec<Batch> = (0..3).map(|_| Batch::new()).collect();
    batches
        .iter_mut()
        .for_each(|batch| fill(batch, rng, lengths));
    let mut out = Vec::new();
    let mut times = Vec::new();
    for round in 0..ROUNDS + 3 {
        let since = Instant::now();
        let (mut begun, mut done, mut busy) = (0, 0, [false; 2]);
        while done < 8 {
            for (slot, busy) in busy.iter_mut().enumerate().take(slots) {
                if !*busy && begun < 8 {
                    engine
                        .begin(slot, &mut batches[begun % 3])
                        .expect("a batch starts");
                    (begun, *busy) = (begun + 1, true);
                } else if *busy && engine.finish(slot, &mut out).expect("a batch ends") {
                    (done, *busy) = (done + 1, false);
                }
            }
        }
        if round >= 3 {
            times.push(since.elapsed().as_secs_f64() / 8.0);
        }
    }
    assert!(out.iter().all(|x| x.is_finite()), "vectors are finite");
    median(times)
}

fn throughput_table(name: &str, config: &BertConfig, weights: &Weights, recipe: Recipe) {
    let plan = SlotPlan {
        class: Class::Bulk,
        most: BUCKETS[6],
    };
    let options = Options {
        stage: Some(recipe.stage),
        residual: recipe.residual,
        slots: vec![plan; 2],
        has_graphs: true,
    };
    let output = Output::Vector(Pooling::Mean);
    let device = Box::new(Driver::open(0).expect("the device opened before"));
    let mut engine =
        DeviceEngine::open(device, weights, &output, &options).expect("the model fits");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    println!(
        "\n{name}, {:?}, residual {:?}: batches of up to 16,384 tokens",
        recipe.stage, recipe.residual
    );
    println!(
        "{:>14} {:>10} {:>12} {:>8}",
        "length", "ms", "M tokens/s", "of peak"
    );
    let most = BUCKETS[6];
    let equal = |length: usize| vec![length; (most.tokens / length).min(most.texts)];
    let mut rows: Vec<(String, Vec<usize>, usize)> = [16, 32, 64, 128, 256, 512]
        .map(|length| (length.to_string(), equal(length), 2))
        .into();
    let mix = real_mix(&mut rng, most.tokens, most.texts);
    rows.push(("mix".to_owned(), mix, 2));
    // What two slots gain over one: copies and packing beside kernels.
    rows.push(("256, one slot".to_owned(), equal(256), 1));
    for (label, lengths, slots) in rows {
        let seconds = throughput(&mut engine, &mut rng, &lengths, slots);
        let tokens: usize = lengths.iter().sum();
        let share = operations(config, &lengths) / seconds / peak();
        println!(
            "{label:>14} {:>10.3} {:>12.2} {:>7.1}%",
            seconds * 1e3,
            tokens as f64 / seconds / 1e6,
            share * 100.0
        );
    }
}

/// One question of 24 tokens alone: the engine's whole way.
fn latency(name: &str, weights: &Weights, stage: Stage) {
    let options = Options {
        stage: Some(stage),
        ..Options::default()
    };
    let output = Output::Vector(Pooling::Mean);
    let device = Box::new(Driver::open(0).expect("the device opened before"));
    let mut engine =
        DeviceEngine::open(device, weights, &output, &options).expect("the model fits");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (mut batch, mut out, mut times) = (Batch::new(), Vec::new(), Vec::new());
    for _ in 0..500 {
        fill(&mut batch, &mut rng, &[24]);
        let since = Instant::now();
        engine.begin(0, &mut batch).expect("a question starts");
        while !engine.finish(0, &mut out).expect("a question ends") {}
        times.push(since.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{name}, {stage:?}: one question of 24 tokens: p50 {:.0} µs, p99 {:.0} µs",
        times[250], times[495]
    );
}

/// Every kernel of one pass by events: medians of 20, by name.
fn kernel_table(name: &str, config: &BertConfig, weights: &Weights, recipe: Recipe) {
    let mut device = Driver::open(0).expect("the device opened before");
    let bucket: Bucket = BUCKETS[5];
    let output = Output::Vector(Pooling::Mean);
    let model = Model::load(&mut device, weights, &output, recipe).expect("the model fits");
    let buffers = model.buffers(&mut device, bucket).expect("memory");
    let address = device.allocate(bucket.bytes()).expect("memory");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (mut batch, mut block) = (Batch::new(), vec![0; bucket.bytes()]);
    fill(&mut batch, &mut rng, &[256; 32]);
    batch.write(bucket, &mut block);
    device.write(address, &block).expect("a copy");
    let launches: Vec<Launch> = model
        .forward(&OnDevice::new(bucket, address), &buffers)
        .expect("shapes agree");
    let stream = device.stream(false).expect("a stream");
    let mut rounds: Vec<Vec<f32>> = Vec::new();
    for round in 0..ROUNDS + 3 {
        let times = device.time(stream, &launches).expect("a pass");
        if round >= 3 {
            rounds.push(times);
        }
    }
    let of_launch = |i: usize| median(rounds.iter().map(|times| f64::from(times[i])).collect());
    let mut rows: Vec<(&str, String, usize, f64)> = Vec::new();
    for (i, launch) in launches.iter().enumerate() {
        let grid = format!("{:?}", launch.grid());
        let ms = of_launch(i);
        match rows
            .iter_mut()
            .find(|row| row.0 == launch.kernel() && row.1 == grid)
        {
            Some(row) => (row.2, row.3) = (row.2 + 1, row.3 + ms),
            None => rows.push((launch.kernel(), grid, 1, ms)),
        }
    }
    let sum: f64 = rows.iter().map(|row| row.3).sum();
    println!(
        "\n{name}, {:?}: one pass over 32 texts of 256 tokens, by events: {sum:.3} ms",
        recipe.stage
    );
    let share = operations(config, &[256; 32]) / (sum / 1e3) / peak();
    println!(
        "(events add about 2 µs a launch; {:.1}% of peak so measured)",
        share * 100.0
    );
    println!(
        "{:<24} {:<16} {:>6} {:>10} {:>7}",
        "kernel", "grid", "times", "ms", "share"
    );
    for (kernel, grid, times, ms) in rows {
        println!(
            "{kernel:<24} {grid:<16} {times:>6} {ms:>10.4} {:>6.1}%",
            ms / sum * 100.0
        );
    }
}

/// Clocks, power and temperature, read off the card when its tool is there.
fn note_state(when: &str) {
    let query = "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu";
    let output = std::process::Command::new("nvidia-smi")
        .args([query, "--format=csv,noheader"])
        .output();
    let state = output.map_or("nvidia-smi is not here".to_owned(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    });
    println!("{when}: {state}");
}

fn main() {
    for line in devices::report() {
        println!("{line}");
    }
    note_state("before");
    let best = match Driver::open(0) {
        Ok(device) => device.best_stage(),
        Err(why) => {
            println!("nothing was measured: {why}");
            return;
        }
    };
    let stages = [Stage::Naive, Stage::TensorCore, Stage::Hopper];
    for (name, config) in [
        ("MiniLM-L6's shape", shape(384, 6)),
        ("BGE-base's shape", shape(768, 12)),
    ] {
        let weights = Weights::generate(config.clone(), SEED);
        for stage in stages
            .into_iter()
            .filter(|&stage| stage <= best && stage > Stage::Naive)
        {
            for residual in [Residual::InNorm, Residual::InProduct] {
                throughput_table(name, &config, &weights, Recipe { stage, residual });
            }
            kernel_table(
                name,
                &config,
                &weights,
                Recipe {
                    stage,
                    residual: Residual::InNorm,
                },
            );
            note_state("under load, a moment ago");
            latency(name, &weights, stage);
        }
    }
}
