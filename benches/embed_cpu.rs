//! CPU embedding speed: tokens a second on one core, real text with its real mix of lengths.
//!
//! Isolated: tokenizer + forward pass (`PretrainedEmbedder::embed`, one text a call); no queue, no
//! store. Then one question of 12 tokens alone, text to vector, in each precision. Data: the README files of the crates in the user's cargo registry, sorted by path, cut
//! every 254 tokens; from these, evenly spaced, about `TOKENS` tokens. No seed: the order is fixed.
//! Units: tokens (special ones included) per second of one thread; milliseconds a text; MiB.
//!
//! ```text
//! taskset -c 1 cargo bench --bench embed_cpu            # HEADWATER_BENCH_TOKENS=100000
//! taskset -c 1 benches/compare/embed_ort.sh             # the same texts and question through its peers
//! ```
//!
//! The texts go to `target/embed_cpu_texts.json` for the peer. Compare alternating runs only.

#[path = "support/readmes.rs"]
mod readmes;

use std::path::PathBuf;
use std::time::Instant;

use engine::contract::Embedder;
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull};
use operators::embed::{Kernel, LocalModel, PretrainedEmbedder};

/// Tokens measured unless `HEADWATER_BENCH_TOKENS` says otherwise.
const TOKENS: usize = 100_000;
/// Of 12 tokens, special ones included; its peers are asked the same (`embed_ort.py`).
const QUESTION: &str = "how do i reset the second factor of my account";
/// How often it is asked.
const ASKED: usize = 600;

fn main() {
    let wanted = std::env::var("HEADWATER_BENCH_TOKENS")
        .ok()
        .and_then(|v| v.parse().ok());
    let folder = pull(DEFAULT_MODEL, &|_| {}).expect("the model is there or can be fetched");
    let files = ModelFiles::read(&folder).expect("the model's files are whole");
    let model = PretrainedEmbedder::new(files).expect("the model is supported");
    let texts = texts(&model, wanted.unwrap_or(TOKENS));
    write_texts(&texts);

    let lengths: Vec<usize> = texts
        .iter()
        .map(|text| model.token_ids(text).len())
        .collect();
    let tokens: usize = lengths.iter().sum();
    for text in texts.iter().take(texts.len() / 10 + 1) {
        model.embed(&[text]).expect("a text is embedded");
    }
    let mut times_ms = Vec::with_capacity(texts.len());
    let started = Instant::now();
    for text in &texts {
        let at = Instant::now();
        let vectors = model.embed(&[text]).expect("a text is embedded");
        std::hint::black_box(vectors);
        times_ms.push(at.elapsed().as_secs_f64() * 1e3);
    }
    let seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    texts
        .iter()
        .for_each(|text| drop(std::hint::black_box(model.token_ids(text))));
    let tokenizing = started.elapsed().as_secs_f64();

    times_ms.sort_by(f64::total_cmp);
    let quantile = |q: f64| times_ms[((times_ms.len() - 1) as f64 * q) as usize];
    println!("texts            {}", texts.len());
    println!(
        "tokens           {tokens} (mean {:.0} a text)",
        tokens as f64 / texts.len() as f64
    );
    println!("tokens/s/core    {:.0}", tokens as f64 / seconds);
    println!("of it tokenizing {:.1} %", 100.0 * tokenizing / seconds);
    println!(
        "ms a text        p50 {:.2}  p99 {:.2}",
        quantile(0.5),
        quantile(0.99)
    );
    println!(
        "resident         {:.1} MiB weights and scratch, process {}",
        model.resident_bytes() as f64 / f64::from(1 << 20),
        process_resident()
    );
    drop(model);
    for kernel in Kernel::ALL {
        question(kernel);
    }
}

/// From a question's text to its vector, the tokenizer included, on an otherwise idle core.
fn question(kernel: Kernel) {
    let folder = pull(DEFAULT_MODEL, &|_| {}).expect("the model was there a moment ago");
    let files = ModelFiles::read(&folder).expect("the model's files are whole");
    let model = PretrainedEmbedder::with_kernel(files, kernel).expect("the model is supported");
    assert_eq!(
        model.token_ids(QUESTION).len(),
        12,
        "tokens of the question"
    );
    let mut times_ms: Vec<f64> = (0..ASKED)
        .map(|_| {
            let at = Instant::now();
            let vectors = model.embed_questions(&[QUESTION]);
            std::hint::black_box(vectors.expect("a question is embedded"));
            at.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times_ms.sort_by(f64::total_cmp);
    println!(
        "ms a question    p50 {:.3}  p99 {:.3} (12 tokens, {}, text to vector)",
        times_ms[ASKED / 2],
        times_ms[ASKED * 99 / 100],
        kernel.name()
    );
}

/// Chunks of the registry's README files, evenly spaced, about `tokens` in all.
fn texts(model: &PretrainedEmbedder, tokens: usize) -> Vec<String> {
    let room = model.max_tokens() - model.special_tokens();
    let chunks = readmes::chunks(model, room);
    let all: usize = chunks.iter().map(|(_, count)| count).sum();
    let step = (all / tokens).max(1);
    let chosen = chunks.into_iter().step_by(step);
    chosen.map(|(text, _)| text).collect()
}

fn write_texts(texts: &[String]) {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let path = folder.join("embed_cpu_texts.json");
    let json = serde_json::to_vec(texts).expect("strings serialise");
    std::fs::write(&path, json).expect("the target folder can be written");
    println!("texts written to {}", path.display());
}

/// `VmRSS` of this process, where /proc has it.
fn process_resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.map_or("unknown".to_owned(), |line| line[6..].trim().to_owned())
}
