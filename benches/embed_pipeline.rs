//! What a running pipeline makes of an encoder's speed, and what a question pays meanwhile.
//!
//! Isolated: the whole engine in process on a data folder on disk, with the model in the path; no HTTP.
//! First the encoder alone (the CPU: on one thread over every n-th text; a device: with all its queues busy,
//! tokenizer included), then questions on the idle engine, then all texts pushed as fast as they are taken,
//! with questions in an open loop until the last vector is there. Data: documentation of the crates in the
//! user's cargo registry, or the Markdown and text files right in a folder, cut every 250 tokens, one row a
//! chunk (`CHUNK BY none`); where there are too few, again with a number in front, so that no vector is known.
//! Each question has words of its own, so that none is remembered. No seed: the order is fixed. Units: tokens a
//! second, milliseconds.
//!
//! ```text
//! HEADWATER_BENCH_CHUNKS=20000 cargo bench --bench embed_pipeline
//! HEADWATER_BENCH_CHUNKS=1000000 HEADWATER_BENCH_DEVICE=cuda:0 HEADWATER_BENCH_WORKERS=4 \
//!     HEADWATER_BENCH_TEXTS=docs cargo bench --bench embed_pipeline
//! ```
//!
//! `HEADWATER_BENCH_PRECISION` (`full`) and `HEADWATER_BENCH_MODEL` (the default model; a folder) are what the
//! statement says. The bars: the pipeline embeds at 90 % of the encoder's own rate or more (a device: 85 %); a
//! question's p99 meanwhile is 3 times its idle one or less. With as many cores as threads: encoder, workers,
//! pushes, questions.

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/readmes.rs"]
mod readmes;
#[path = "support/whole.rs"]
mod whole;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::contract::Embedder;
use operators::embed::measure::measure;
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull};
use operators::embed::{Kernel, PretrainedEmbedder};
use queries::api::SearchRequest;
use readmes::Counted;
use serde_json::json;
use whole::{Whole, line, pace, push, resident_mib, upsert};

/// Chunks unless `HEADWATER_BENCH_CHUNKS` says otherwise.
const CHUNKS: usize = 20_000;
/// Tokens of a chunk, special ones excluded; a number in front has room in the model's window.
const ROOM: usize = 250;
/// Questions a second.
const RATE: f64 = 10.0;
/// Questions on the idle engine.
const IDLE: usize = 200;
/// Lines of one push, to an encoder of hundreds of texts a second and to one of tens of thousands.
const LINES: [usize; 2] = [100, 1_000];
/// How long a device alone is measured.
const ALONE: Duration = Duration::from_secs(10);

/// What is measured.
struct Plan {
    chunks: usize,
    workers: usize,
    model: String,
    device: String,
    precision: String,
    texts: Option<String>,
}

impl Plan {
    fn from_environment() -> Plan {
        let set = |name: &str| std::env::var(format!("HEADWATER_BENCH_{name}")).ok();
        let text = |name: &str, default: &str| set(name).unwrap_or_else(|| default.to_owned());
        let number = |name: &str, default: usize| match set(name) {
            Some(text) => text.parse().expect("a number"),
            None => default,
        };
        Plan {
            chunks: number("CHUNKS", CHUNKS),
            workers: number("WORKERS", 1),
            model: text("MODEL", DEFAULT_MODEL),
            device: text("DEVICE", "cpu"),
            precision: text("PRECISION", "full"),
            texts: set("TEXTS"),
        }
    }

    fn pipeline(&self) -> String {
        let Plan {
            model,
            device,
            precision,
            ..
        } = self;
        format!(
            "CREATE SOURCE texts FROM PUSH (id BIGINT PRIMARY KEY, body TEXT);
             CREATE MODEL encoder FROM '{model}' WITH (DEVICE '{device}', PRECISION '{precision}');
             CREATE INDEX read ON texts USING HYBRID (body) CHUNK BY none EMBED WITH encoder;"
        )
    }

    fn is_on_cpu(&self) -> bool {
        self.device == "cpu"
    }

    /// As many distinct texts as are wanted.
    fn texts(&self, model: &PretrainedEmbedder) -> Vec<Counted> {
        let mut chunks = match &self.texts {
            Some(folder) => readmes::of_folder(model, ROOM, Path::new(folder)),
            None => readmes::documentation(model, ROOM, self.chunks),
        };
        assert!(!chunks.is_empty(), "there are texts");
        let real = chunks.len();
        for at in real..self.chunks {
            let (text, count) = &chunks[at % real];
            let number = format!("{} ", at / real);
            let more = model.token_spans(&number).starts.len();
            chunks.push((number + text, count + more));
        }
        chunks.truncate(self.chunks);
        let count = chunks.len();
        println!(
            "{count} chunks, {} of them distinct, the rest again with a number in front",
            real.min(count)
        );
        chunks
    }
}

fn main() {
    let plan = Plan::from_environment();
    let folder = pull(&plan.model, &|_| {}).expect("the model is there or can be fetched");
    let files = ModelFiles::read(&folder).expect("the model's files are whole");
    let kernel = Kernel::for_precision(&plan.precision).expect("a precision");
    let model = PretrainedEmbedder::with_kernel(files, kernel).expect("the model is supported");
    let chunks = plan.texts(&model);
    let tokens: usize = chunks.iter().map(|(_, count)| count).sum();
    println!("{tokens} tokens, {} workers", plan.workers);
    let raw = match plan.is_on_cpu() {
        true => raw_rate(&model, &chunks),
        false => {
            let texts: Vec<String> = chunks
                .iter()
                .map(|(text, _)| text.clone())
                .take(20_000)
                .collect();
            let measured = measure(&folder, &plan.precision, &plan.device, &texts, ALONE);
            let measured = measured.expect("the device takes the model");
            println!("on {}", measured.place);
            measured.tokens_per_second
        }
    };
    println!("the encoder alone                            {raw:8.0} tokens/s");

    let whole = Whole::start(plan.workers, &plan.pipeline());
    let mut idle = Vec::new();
    let started = Instant::now();
    for number in 0..IDLE {
        pace(started, number, RATE * 4.0);
        idle.push(ask(&whole, number));
    }
    line("a question, idle", &mut idle);

    let lines = LINES[usize::from(!plan.is_on_cpu())];
    let (rate, mut busy) = through(&whole, &chunks, tokens, lines);
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
fn raw_rate(model: &PretrainedEmbedder, chunks: &[Counted]) -> f64 {
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
fn through(
    whole: &Whole,
    chunks: &[Counted],
    tokens: usize,
    lines_of_push: usize,
) -> (f64, Vec<Duration>) {
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
        for (number, block) in chunks.chunks(lines_of_push).enumerate() {
            let first = number * lines_of_push;
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
