//! What the device does: stage by stage, every recipe beside the others, the fastest by length and by mix and a kernel
//! at a time, one question alone, copies beside kernels.
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

#[path = "gpu/kernel_table.rs"]
mod kernel_table;
#[path = "gpu/lengths.rs"]
mod lengths;
#[path = "gpu/passes.rs"]
mod passes;
#[path = "gpu/throughput.rs"]
mod throughput;

use kernels::cuda::batch::BUCKETS;
use kernels::cuda::device::{Device, Stage};
use kernels::cuda::devices;
use kernels::cuda::driver::Driver;
use kernels::cuda::encoder::Recipe;
use kernels::weights::{BertConfig, Weights};
use passes::{latency, one_pass, question, timed};

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
            let fastest = throughput::race(name, &config, &weights, &recipes);
            note_state("under load, a moment ago");
            for &recipe in &fastest {
                throughput::throughput_table(name, &config, &weights, recipe);
            }
            throughput::overlap(name, &weights, fastest[0]);
            question(name, &weights, recipes[0]);
            // The first is what runs when nothing else is asked for.
            let others = fastest.iter().filter(|&&recipe| recipe != recipes[0]);
            for &recipe in recipes[..1].iter().chain(others) {
                kernel_table::kernel_table(name, &config, &weights, recipe);
                latency(name, &weights, recipe, 24);
            }
        }
    }
}
