//! One pass, and one question: what is run again and again.

use std::time::Instant;

use kernels::Pooling;
use kernels::cuda::arena::Arena;
use kernels::cuda::batch::{BUCKETS, Batch, Bucket, OnDevice, Text};
use kernels::cuda::device::{Device, Launch};
use kernels::cuda::driver::Driver;
use kernels::cuda::encoder::{Model, Output, Recipe};
use kernels::cuda::engine::{DeviceEngine, Engine, Options};
use kernels::cuda::whole::Short;
use kernels::weights::Weights;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{ROUNDS, SEED, median};

pub fn fill(batch: &mut Batch, rng: &mut ChaCha8Rng, lengths: &[usize]) {
    batch.clear();
    for &length in lengths {
        batch.push(&Text::new(
            (0..length).map(|_| rng.random_range(0..30_000)).collect(),
        ));
    }
}

pub fn driver() -> Driver {
    Driver::open(0).expect("the device opened before")
}

/// One question of 12 tokens alone, as launches, as their graph and in one launch: what the device takes for it (bar:
/// 150 µs), and the engine's whole way (bar: 300 µs).
pub fn question(name: &str, weights: &Weights, recipe: Recipe) {
    for short in [Short::Launches, Short::Whole] {
        let recipe = Recipe { short, ..recipe };
        let (mut device, launches) = one_pass(weights, recipe, BUCKETS[0], &[12]);
        if short == Short::Whole && launches.len() > 1 {
            println!("{name}, {recipe}: the kernel does not take this model");
            continue;
        }
        let events: f64 = timed(&mut device, &launches, 200).iter().sum();
        let [graph, overlapping] =
            [false, true].map(|overlap| replays(&mut device, &launches, 32, overlap) * 1e6);
        println!(
            "{name}, {recipe}: one question of 12 tokens on the device: {} launches by events {:.0} µs, a graph of \
             them {graph:.0} µs, of launches that overlap {overlapping:.0} µs, one after the other",
            launches.len(),
            events * 1e3
        );
        drop(device);
        latency(name, weights, recipe, 12);
    }
}

/// Median seconds of a graph of launches, `times` of them one behind the other.
pub fn replays(device: &mut Driver, launches: &[Launch], times: usize, overlap: bool) -> f64 {
    let stream = device.stream(true).expect("a stream");
    let graph = device.capture(stream, launches, overlap);
    let graph = graph.expect("a graph");
    let mut all = Vec::new();
    for round in 0..ROUNDS + 3 {
        let since = Instant::now();
        (0..times).for_each(|_| device.replay(stream, graph).expect("a replay"));
        device.synchronize(stream).expect("a stream's end");
        if round >= 3 {
            all.push(since.elapsed().as_secs_f64() / times as f64);
        }
    }
    median(all)
}

/// Milliseconds of each launch by events: medians.
pub fn timed(device: &mut Driver, launches: &[Launch], rounds: usize) -> Vec<f64> {
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

/// One question alone: the engine's whole way.
pub fn latency(name: &str, weights: &Weights, recipe: Recipe, tokens: usize) {
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
pub fn one_pass(
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
