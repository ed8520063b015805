//! What the device does: stage by stage, tokens a second by length and by mix, a kernel at a time, one
//! question alone, copies beside kernels.
//!
//! ```text
//! operators/kernels/cuda/build.sh && cargo bench -p headwater-kernels --bench gpu
//! ```
//!
//! Isolated: kernels and graphs, by device events and by the wall over many replays; no tokenizer.
//! Data: random ids, seed below, three rotating sets; weights generated in MiniLM-L6's and BGE-base's
//! shapes; lengths equal, or those of real documentation (`gpu/lengths.rs`). Unit: real tokens a second
//! (there is no padding); medians of 20. Roofline share: operations of products and of attention over the
//! rate of `HEADWATER_PEAK_TFLOPS` (default 790, the fp16 rate of an 8192³ product measured on one H200);
//! of kernels that move rows only, bytes over `HEADWATER_PEAK_TBS` (default 4.3, a copy there). Made to end
//! within two minutes. Without a device it says so and measures nothing.

#[path = "gpu/lengths.rs"]
mod lengths;

use std::time::Instant;

use kernels::Pooling;
use kernels::cuda::arena::Arena;
use kernels::cuda::batch::{BUCKETS, Batch, Bucket, OnDevice, Text};
use kernels::cuda::device::{Arg, Device, Launch, Stage};
use kernels::cuda::devices;
use kernels::cuda::driver::Driver;
use kernels::cuda::encoder::{Attention, Model, Output, Precision, Recipe, Residual};
use kernels::cuda::engine::{Class, DeviceEngine, Engine, Options, SlotPlan};
use kernels::cuda::whole::Short;
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

fn setting(name: &str, default: f64) -> f64 {
    let set = std::env::var(name).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Operations a second that the device can do.
fn peak() -> f64 {
    setting("HEADWATER_PEAK_TFLOPS", 790.0) * 1e12
}

/// Bytes a second that its memory can move.
fn peak_bytes() -> f64 {
    setting("HEADWATER_PEAK_TBS", 4.3) * 1e12
}

/// As many of the real lengths, in their order, as fit.
fn real_mix(tokens: usize, texts: usize) -> Vec<usize> {
    let (mut mix, mut sum) = (Vec::new(), 0);
    for &length in lengths::REAL.iter().cycle() {
        let length = usize::from(length);
        if sum + length > tokens || mix.len() == texts {
            break;
        }
        sum += length;
        mix.push(length);
    }
    mix
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

fn driver() -> Driver {
    Driver::open(0).expect("the device opened before")
}

/// Two bulk slots of 16,384 tokens.
fn bulk_engine(weights: &Weights, recipe: Recipe) -> DeviceEngine {
    let plan = SlotPlan {
        class: Class::Bulk,
        most: BUCKETS[6],
    };
    let options = Options {
        slots: vec![plan; 2],
        ..Options::default()
    };
    let options = options.with(recipe);
    let output = Output::Vector(Pooling::Mean);
    DeviceEngine::open(Box::new(driver()), weights, &output, &options).expect("the model fits")
}

fn throughput_table(name: &str, config: &BertConfig, weights: &Weights, recipe: Recipe) {
    let mut engine = bulk_engine(weights, recipe);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    println!("\n{name}, {recipe}: batches of up to 16,384 tokens, two slots");
    println!(
        "{:>14} {:>10} {:>12} {:>8}",
        "length", "ms", "M tokens/s", "of peak"
    );
    let most = BUCKETS[6];
    // The place for the residual is decided by two rows, attention by the ends too.
    let few: &[usize] = match recipe.residual {
        _ if recipe.attention == Attention::Heads => &[32, 128, 256, 512],
        Residual::InNorm if recipe.precision == Precision::Int8 => &[128, 256, 512],
        Residual::InNorm => &[16, 32, 64, 128, 256, 512],
        Residual::Fused | Residual::FusedFeed => &[128, 256, 512],
        Residual::InProduct => &[256],
    };
    let equal = |&length: &usize| {
        let texts = (most.tokens / length).min(most.texts);
        (length.to_string(), vec![length; texts])
    };
    let mut rows: Vec<(String, Vec<usize>)> = few.iter().map(equal).collect();
    rows.push(("real mix".to_owned(), real_mix(most.tokens, most.texts)));
    let mut rates = Vec::new();
    for (label, lengths) in &rows {
        let seconds = throughput(&mut engine, &mut rng, lengths, 2);
        let tokens: usize = lengths.iter().sum();
        let share = operations(config, lengths) / seconds / peak();
        rates.push(tokens as f64 / seconds);
        println!(
            "{label:>14} {:>10.3} {:>12.2} {:>7.1}%",
            seconds * 1e3,
            tokens as f64 / seconds / 1e6,
            share * 100.0
        );
    }
    let mix = &rows[rows.len() - 1].1;
    let mean = mix.iter().sum::<usize>() / mix.len();
    // Beside the equal length that is nearest to the mix's mean.
    let nearest = few.iter().enumerate().min_by_key(|(_, l)| l.abs_diff(mean));
    if let Some((at, length)) = nearest {
        let share = rates[rates.len() - 1] / rates[at] * 100.0;
        println!("real mix: {mean} tokens a text, {share:.0}% of the rate at equal {length}");
    }
}

/// What a batch costs without copies, with one slot, and with two: how much of copies and packing is
/// hidden behind kernels.
fn overlap(name: &str, weights: &Weights, recipe: Recipe) {
    let most = BUCKETS[6];
    let lengths = vec![256; most.tokens / 256];
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (mut device, launches) = one_pass(weights, recipe, most, &lengths);
    let stream = device.stream(false).expect("a stream");
    let graph = device.capture(stream, &launches).expect("a graph");
    let mut times = Vec::new();
    for round in 0..ROUNDS + 3 {
        let since = Instant::now();
        (0..8).for_each(|_| device.replay(stream, graph).expect("a replay"));
        device.synchronize(stream).expect("a stream's end");
        if round >= 3 {
            times.push(since.elapsed().as_secs_f64() / 8.0);
        }
    }
    drop(device);
    let kernels = median(times);
    let mut engine = bulk_engine(weights, recipe);
    let one = throughput(&mut engine, &mut rng, &lengths, 1);
    let two = throughput(&mut engine, &mut rng, &lengths, 2);
    let hidden = (one - two) / (one - kernels).max(1e-9) * 100.0;
    println!(
        "{name}, {:?}: a batch of 64 × 256: kernels alone {:.3} ms, one slot {:.3} ms, two slots {:.3} ms: \
         {hidden:.0}% of copies and packing hidden",
        recipe.stage,
        kernels * 1e3,
        one * 1e3,
        two * 1e3
    );
}

/// One question alone: the engine's whole way.
fn latency(name: &str, weights: &Weights, recipe: Recipe, tokens: usize) {
    let options = Options::default().with(recipe);
    let output = Output::Vector(Pooling::Mean);
    let device = Box::new(driver());
    let mut engine =
        DeviceEngine::open(device, weights, &output, &options).expect("the model fits");
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (mut batch, mut out, mut times) = (Batch::new(), Vec::new(), Vec::new());
    for _ in 0..500 {
        fill(&mut batch, &mut rng, &[tokens]);
        let since = Instant::now();
        engine.begin(0, &mut batch).expect("a question starts");
        while !engine.finish(0, &mut out).expect("a question ends") {}
        times.push(since.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{name}, {recipe}: one question of {tokens} tokens: p50 {:.0} µs, p99 {:.0} µs",
        times[250], times[495]
    );
}

/// A device with a model and a packed batch on it, and the launches of a pass over them.
fn one_pass(
    weights: &Weights,
    recipe: Recipe,
    bucket: Bucket,
    lengths: &[usize],
) -> (Driver, Vec<Launch>) {
    let mut device = driver();
    let output = Output::Vector(Pooling::Mean);
    let arena = Arena::new(&mut device, weights, &output, recipe, &[bucket]);
    let mut arena = arena.expect("memory");
    let model = Model::load(&mut device, &mut arena, weights, &output, recipe);
    let model = model.expect("the model fits");
    let buffers = model.buffers(&mut arena, bucket);
    let address = arena.block(bucket);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (mut batch, mut block) = (Batch::new(), vec![0; bucket.bytes()]);
    fill(&mut batch, &mut rng, lengths);
    batch.write(bucket, &mut block);
    device.write(address, &block).expect("a copy");
    let launches = model.forward(&OnDevice::new(bucket, address), &buffers);
    (device, launches.expect("shapes agree"))
}

/// One question of 12 tokens alone, as launches, as their graph and in one launch: what the device takes for it (bar:
/// 150 µs), and the engine's whole way (bar: 300 µs).
fn question(name: &str, weights: &Weights, recipe: Recipe) {
    for short in [Short::Launches, Short::Whole] {
        let recipe = Recipe { short, ..recipe };
        let (mut device, launches) = one_pass(weights, recipe, BUCKETS[0], &[12]);
        if short == Short::Whole && launches.len() > 1 {
            println!("{name}, {recipe}: the kernel does not take this model");
            continue;
        }
        let events: f64 = timed(&mut device, &launches, 200).iter().sum();
        let stream = device.stream(true).expect("a stream");
        let graph = device.capture(stream, &launches).expect("a graph");
        let mut times = Vec::new();
        for round in 0..ROUNDS + 3 {
            let since = Instant::now();
            (0..32).for_each(|_| device.replay(stream, graph).expect("a replay"));
            device.synchronize(stream).expect("a stream's end");
            if round >= 3 {
                times.push(since.elapsed().as_secs_f64() / 32.0);
            }
        }
        println!(
            "{name}, {recipe}: one question of 12 tokens on the device: {} launches by events {:.0} µs, a graph of \
             them {:.0} µs, one after the other",
            launches.len(),
            events * 1e3,
            median(times) * 1e6
        );
        drop(device);
        latency(name, weights, recipe, 12);
    }
}

/// Milliseconds of each launch by events: medians.
fn timed(device: &mut Driver, launches: &[Launch], rounds: usize) -> Vec<f64> {
    let stream = device.stream(false).expect("a stream");
    let mut all: Vec<Vec<f32>> = Vec::new();
    for round in 0..rounds + 3 {
        let times = device.time(stream, launches).expect("a pass");
        if round >= 3 {
            all.push(times);
        }
    }
    let of_launch = |i: usize| median(all.iter().map(|times| f64::from(times[i])).collect());
    (0..launches.len()).map(of_launch).collect()
}

/// One pass at a small size on every stage: what each rung of the ladder gains.
fn ladder(name: &str, weights: &Weights, stages: &[Stage]) {
    println!("\n{name}: one pass over 8 texts of 128 tokens, sum of its kernels by events");
    let mut before = None;
    for &stage in stages {
        let recipe = Recipe::of(stage);
        let (mut device, launches) = one_pass(weights, recipe, BUCKETS[2], &[128; 8]);
        let rounds = if stage == Stage::Naive { 5 } else { ROUNDS };
        let ms: f64 = timed(&mut device, &launches, rounds).iter().sum();
        let gain = before.map_or(String::new(), |b: f64| format!(", {:.1} × faster", b / ms));
        println!("{:>14} {ms:>10.3} ms{gain}", format!("{stage:?}"));
        before = Some(ms);
    }
}

/// A kernel's share of the roof that it is under: (what the roof is, seconds at the roof).
fn roof(launch: &Launch, config: &BertConfig, lengths: &[usize]) -> (&'static str, f64) {
    let (rows, hidden) = (
        lengths.iter().sum::<usize>() as f64,
        config.hidden_size as f64,
    );
    let sizes = launch.args().iter().filter_map(|arg| match arg {
        Arg::Int(int) => Some(f64::from(*int)),
        _ => None,
    });
    let sizes: Vec<f64> = sizes.collect();
    let squares: f64 = lengths.iter().map(|&s| (s * s) as f64).sum();
    let moved =
        |rows_of_hidden: f64| ("bytes", 2.0 * rows * hidden * rows_of_hidden / peak_bytes());
    match launch.kernel() {
        // Of bytes the tensor cores make twice as many. The size is the inner width …
        name if name.starts_with("feed_int8") => {
            ("operations", 2.0 * rows * sizes[0] * hidden / peak())
        }
        // … or the sizes are inputs and outputs.
        name if name.contains("int8_hopper") => ("operations", rows * sizes[0] * sizes[1] / peak()),
        name if name.starts_with("linear") => {
            ("operations", 2.0 * rows * sizes[0] * sizes[1] / peak())
        }
        name if name.starts_with("join") => ("operations", 2.0 * rows * sizes[0] * hidden / peak()),
        // The size is the inner width.
        name if name.starts_with("feed") => ("operations", 4.0 * rows * sizes[0] * hidden / peak()),
        name if name.starts_with("attention") => ("operations", 4.0 * hidden * squares / peak()),
        // Three tables read, one row written.
        "embed_f16" => moved(4.0),
        // The same, and a row of bytes: half a row.
        "embed_int8" => moved(4.5),
        "add_norm_int8" => moved(3.5),
        // State and sum read, state written.
        "add_norm_f16" => moved(3.0),
        _ => moved(1.0),
    }
}

/// Every kernel of one pass by events, by name and sizes, with its share of its roof.
fn kernel_table(name: &str, config: &BertConfig, weights: &Weights, recipe: Recipe) {
    let lengths = [256; 32];
    let (mut device, launches) = one_pass(weights, recipe, BUCKETS[5], &lengths);
    let times = timed(&mut device, &launches, ROUNDS);
    struct Row {
        kernel: &'static str,
        grid: String,
        times: usize,
        ms: f64,
        roof: (&'static str, f64),
    }
    let mut rows: Vec<Row> = Vec::new();
    for (launch, ms) in launches.iter().zip(times) {
        let (grid, roof) = (
            format!("{:?}", launch.grid()),
            roof(launch, config, &lengths),
        );
        let is_same =
            |row: &&mut Row| row.kernel == launch.kernel() && row.grid == grid && row.roof == roof;
        match rows.iter_mut().find(is_same) {
            Some(row) => (row.times, row.ms) = (row.times + 1, row.ms + ms),
            None => rows.push(Row {
                kernel: launch.kernel(),
                grid,
                times: 1,
                ms,
                roof,
            }),
        }
    }
    let sum: f64 = rows.iter().map(|row| row.ms).sum();
    println!("\n{name}, {recipe}: one pass over 32 texts of 256 tokens, by events: {sum:.3} ms");
    let share = operations(config, &lengths) / (sum / 1e3) / peak();
    println!(
        "(events add about 2 µs a launch; {:.1}% of peak so measured)",
        share * 100.0
    );
    println!(
        "{:<24} {:<16} {:>6} {:>10} {:>7} {:>8}  of its roof",
        "kernel", "grid", "times", "ms", "share", "roof"
    );
    for row in rows {
        let (what, seconds) = row.roof;
        println!(
            "{:<24} {:<16} {:>6} {:>10.4} {:>6.1}% {:>7.1}%  {what}",
            row.kernel,
            row.grid,
            row.times,
            row.ms,
            row.ms / sum * 100.0,
            seconds * row.times as f64 / (row.ms / 1e3) * 100.0
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
    let all = [Stage::Naive, Stage::TensorCore, Stage::Hopper];
    let stages: Vec<Stage> = all.into_iter().filter(|&stage| stage <= best).collect();
    for (name, config) in [
        ("MiniLM-L6's shape", shape(384, 6)),
        ("BGE-base's shape", shape(768, 12)),
    ] {
        let weights = Weights::generate(config.clone(), SEED);
        ladder(name, &weights, &stages);
        for &stage in &stages[1..] {
            let recipes = Recipe::all(stage, &config);
            for &recipe in &recipes {
                throughput_table(name, &config, &weights, recipe);
            }
            note_state("under load, a moment ago");
            overlap(name, &weights, recipes[0]);
            question(name, &weights, recipes[0]);
            for recipe in recipes {
                kernel_table(name, &config, &weights, recipe);
                latency(name, &weights, recipe, 24);
            }
        }
    }
}
