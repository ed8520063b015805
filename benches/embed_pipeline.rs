//! What a running pipeline makes of an encoder's speed, and what a question pays meanwhile.
//!
//! Isolated: the whole engine in process on a data folder on disk, with the model in the path; no HTTP,
//! one worker. First the encoder alone on one thread over every n-th text, then questions on the idle
//! engine, then all texts pushed as fast as they are taken, with questions in an open loop until the last
//! vector is there. Data: documentation of the crates in the user's cargo registry, cut every 254
//! tokens, one row a chunk (`CHUNK BY none`); each question has words of its own, so that none is
//! remembered. No seed: the order is fixed. Units: tokens a second, milliseconds.
//!
//! ```text
//! HEADWATER_BENCH_CHUNKS=20000 cargo bench --bench embed_pipeline
//! ```
//!
//! The bar: the pipeline embeds at 90 % of the encoder's own rate or more; a question's p99 meanwhile is
//! 3 times its idle one or less. With as many cores as threads: encoder, worker, pushes, questions.

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/readmes.rs"]
mod readmes;
#[path = "support/whole.rs"]
mod whole;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::contract::Embedder;
use operators::embed::PretrainedEmbedder;
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull};
use queries::api::SearchRequest;
use serde_json::json;
use whole::{Whole, line, pace, push, resident_mib, upsert};

/// Chunks unless `HEADWATER_BENCH_CHUNKS` says otherwise.
const CHUNKS: usize = 20_000;
/// Tokens of a chunk, special ones excluded.
const ROOM: usize = 254;
/// Questions a second.
const RATE: f64 = 10.0;
/// Questions on the idle engine.
const IDLE: usize = 200;
/// Lines of one push.
const LINES: usize = 100;

const PIPELINE: &str = "
CREATE SOURCE texts FROM PUSH (id BIGINT PRIMARY KEY, body TEXT);
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE INDEX read ON texts USING HYBRID (body) CHUNK BY none EMBED WITH minilm;
";

fn main() {
    let wanted = std::env::var("HEADWATER_BENCH_CHUNKS").ok();
    let wanted: usize = wanted.and_then(|n| n.parse().ok()).unwrap_or(CHUNKS);
    let folder = pull(DEFAULT_MODEL, &|_| {}).expect("the model is there or can be fetched");
    let files = ModelFiles::read(&folder).expect("the model's files are whole");
    let model = PretrainedEmbedder::new(files).expect("the model is supported");
    let chunks = readmes::documentation(&model, ROOM, wanted);
    let tokens: usize = chunks.iter().map(|(_, count)| count).sum();
    println!("{} chunks, {tokens} tokens, 1 worker", chunks.len());
    let raw = raw_rate(&model, &chunks);
    println!("the encoder alone                            {raw:8.0} tokens/s");

    let whole = Whole::start(1, PIPELINE);
    let mut idle = Vec::new();
    let started = Instant::now();
    for number in 0..IDLE {
        pace(started, number, RATE * 4.0);
        idle.push(ask(&whole, number));
    }
    line("a question, idle", &mut idle);

    let (rate, mut busy) = through(&whole, &chunks, tokens);
    println!(
        "through the pipeline                         {rate:8.0} tokens/s, {:.1} % of the encoder alone",
        100.0 * rate / raw
    );
    line("a question meanwhile", &mut busy);
    let p99 = |sample: &mut [Duration]| clustered::percentile_ms(sample, 0.99);
    println!(
        "p99 meanwhile / idle                         {:8.2}",
        p99(&mut busy) / p99(&mut idle)
    );
    println!("{:.0} MiB resident at the end", resident_mib());
}

/// Tokens a second of one thread, over about ten seconds' worth of evenly spaced texts.
fn raw_rate(model: &PretrainedEmbedder, chunks: &[(String, usize)]) -> f64 {
    let step = (chunks.len() / 400).max(1);
    let (mut tokens, mut busy) = (0, Duration::ZERO);
    for (text, count) in chunks.iter().step_by(step) {
        let started = Instant::now();
        std::hint::black_box(model.embed(&[text]).expect("a text is embedded"));
        busy += started.elapsed();
        tokens += count;
    }
    tokens as f64 / busy.as_secs_f64()
}

/// Pushes everything while questions are asked; tokens a second, and what the questions took.
fn through(whole: &Whole, chunks: &[(String, usize)], tokens: usize) -> (f64, Vec<Duration>) {
    let is_over = AtomicBool::new(false);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut busy = Vec::new();
            for number in 0.. {
                pace(started, number, RATE);
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                busy.push(ask(whole, IDLE + number));
            }
            busy
        });
        for (number, block) in chunks.chunks(LINES).enumerate() {
            let first = number * LINES;
            let lines: Vec<String> = block
                .iter()
                .enumerate()
                .map(|(at, (text, _))| upsert(&json!(first + at), &json!({ "body": text })))
                .collect();
            whole
                .runtime
                .block_on(push(&whole.service, "texts", &lines));
        }
        let count = || {
            let row = &whole.rows("SELECT documents, pending FROM headwater.indexes")[0];
            (row[0].as_u64(), row[1].as_u64())
        };
        while count() != (Some(chunks.len() as u64), Some(0)) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let rate = tokens as f64 / started.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        (rate, asking.join().expect("questions are answered"))
    })
}

/// One question with words of its own.
fn ask(whole: &Whole, number: usize) -> Duration {
    let question = format!("how is option number {number} of the library configured?");
    let started = Instant::now();
    whole.search(SearchRequest {
        index: "read".to_owned(),
        query: Some(question),
        k: Some(10),
        ..SearchRequest::default()
    });
    started.elapsed()
}
