//! Isolated: one shard's answer to one question, in process, nothing else running.
//!
//! Data: 100,000 vectors × 384, clustered generator (anchor A3: 2,000 centres), seed printed; texts
//! of 60 words from a Zipf-like vocabulary of 30,000 for the keyword leg. Questions: 500 held-out
//! draws. Truth: exact scan of the f32 vectors.
//! Unit: milliseconds a question (p50, p99), recall@10 in [0, 1], resident MiB added.
//! Beside it, in the same run: raw usearch, bf16, cosine, M 16, efConstruction 128, the smallest ef
//! with recall@10 ≥ 0.95. `HEADWATER_BENCH_VECTORS` changes the size.
//! The same again on real text: 12,000 chunks of 62 tokens from the READMEs of the cargo registry,
//! embedded by the default model; questions are 200 further chunks. `HEADWATER_BENCH_CHUNKS`.

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/readmes.rs"]
mod readmes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clustered::{Clustered, percentile_ms, resident_bytes};
use engine::contract::Embedder;
use engine::model::{ChunkId, ChunkPiece, ContentHash, Key, Row};
use operators::embed::PretrainedEmbedder;
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull};
use operators::index::*;
use rand::RngExt;

const SEED: u64 = 42;
const DIMENSIONS: usize = 384;
const QUESTIONS: usize = 500;
const REAL_QUESTIONS: usize = 200;

fn main() {
    let count = std::env::var("HEADWATER_BENCH_VECTORS")
        .ok()
        .and_then(|n| n.parse().ok());
    let count: usize = count.unwrap_or(100_000);
    println!("seed {SEED}, {count} × {DIMENSIONS}, {QUESTIONS} questions");
    println!(
        "usearch uses {}",
        acceleration(DIMENSIONS, Quantization::Bf16)
    );
    let mut generator = Clustered::new(SEED, 2_000, DIMENSIONS);
    let vectors: Vec<Arc<[f32]>> = (0..count).map(|_| generator.draw()).collect();
    let questions: Vec<Arc<[f32]>> = (0..QUESTIONS).map(|_| generator.draw()).collect();
    let truth: Vec<Vec<usize>> = questions.iter().map(|q| nearest(&vectors, q)).collect();
    raw(&vectors, &questions, &truth);
    vector_leg(&vectors, &questions, &truth);
    keyword_leg(count, &mut generator);
    drop(vectors);
    real();
}

/// Real chunks: what neighbours a graph finds among texts that people wrote.
fn real() {
    let wanted = std::env::var("HEADWATER_BENCH_CHUNKS").ok();
    let wanted: usize = wanted.and_then(|n| n.parse().ok()).unwrap_or(12_000);
    let folder = pull(DEFAULT_MODEL, &|_| {}).expect("the model is there or can be fetched");
    let files = ModelFiles::read(&folder).expect("the model's files are whole");
    let model = PretrainedEmbedder::new(files).expect("the model is supported");
    let texts = readmes::chunks(&model, 62);
    let step = (texts.len() / (wanted + REAL_QUESTIONS)).max(1);
    let start = Instant::now();
    let chosen = texts.iter().step_by(step).take(wanted + REAL_QUESTIONS);
    let mut vectors: Vec<Arc<[f32]>> = chosen
        .map(|(text, _)| {
            model
                .embed(&[text])
                .expect("a text is embedded")
                .remove(0)
                .into()
        })
        .collect();
    // Every so many-th is a question, so that questions come from all over.
    let every = (vectors.len() / REAL_QUESTIONS).max(2);
    let mut questions = Vec::new();
    for at in (0..vectors.len()).step_by(every).rev() {
        questions.push(vectors.swap_remove(at));
    }
    println!(
        "real: {} chunks, {} questions, embedded in {:.0} s",
        vectors.len(),
        questions.len(),
        start.elapsed().as_secs_f64()
    );
    let truth: Vec<Vec<usize>> = questions.iter().map(|q| nearest(&vectors, q)).collect();
    raw(&vectors, &questions, &truth);
    vector_leg(&vectors, &questions, &truth);
}

fn nearest(vectors: &[Arc<[f32]>], question: &[f32]) -> Vec<usize> {
    let dot = |vector: &[f32]| {
        let mut sums = [0.0f32; 16];
        for (a, b) in question
            .as_chunks::<16>()
            .0
            .iter()
            .zip(vector.as_chunks::<16>().0)
        {
            (0..16).for_each(|i| sums[i] += a[i] * b[i]);
        }
        sums.iter().sum::<f32>()
    };
    let mut scored: Vec<(f32, usize)> = vectors
        .iter()
        .enumerate()
        .map(|(i, vector)| (dot(vector), i))
        .collect();
    scored.select_nth_unstable_by(10, |a, b| b.0.total_cmp(&a.0));
    scored.truncate(10);
    scored.into_iter().map(|(_, i)| i).collect()
}

fn report(name: &str, found: &[Vec<usize>], truth: &[Vec<usize>], times: &mut [Duration]) -> f64 {
    let hits: usize = found
        .iter()
        .zip(truth)
        .map(|(found, truth)| found.iter().filter(|i| truth.contains(i)).count())
        .sum();
    let recall = hits as f64 / (truth.len() * 10) as f64;
    let (p50, p99) = (percentile_ms(times, 0.5), percentile_ms(times, 0.99));
    println!("{name:34} recall@10 {recall:.4}  p50 {p50:.3} ms  p99 {p99:.3} ms");
    recall
}

fn raw(vectors: &[Arc<[f32]>], questions: &[Arc<[f32]>], truth: &[Vec<usize>]) {
    let before = resident_bytes();
    let options = usearch::IndexOptions {
        dimensions: DIMENSIONS,
        metric: usearch::MetricKind::Cos,
        quantization: usearch::ScalarKind::BF16,
        connectivity: 16,
        expansion_add: 128,
        expansion_search: 64,
        multi: false,
    };
    let index = usearch::Index::new(&options).expect("options are valid");
    index
        .reserve_capacity_and_threads(vectors.len(), 1)
        .expect("memory");
    let start = Instant::now();
    for (key, vector) in vectors.iter().enumerate() {
        index.add(key as u64, vector).expect("capacity is reserved");
    }
    let rate = vectors.len() as f64 / start.elapsed().as_secs_f64();
    let added = (resident_bytes() - before) as f64 / (1 << 20) as f64;
    println!("raw usearch: built at {rate:.0} vectors/s, {added:.0} MiB resident");
    for expansion in [32, 48, 64, 96, 128, 192, 256] {
        index.change_expansion_search(expansion);
        let mut times = Vec::new();
        let found: Vec<Vec<usize>> = questions
            .iter()
            .map(|question| {
                let start = Instant::now();
                let matches = index.search(question, 10).expect("a search");
                times.push(start.elapsed());
                matches.keys.iter().map(|key| *key as usize).collect()
            })
            .collect();
        if report(
            &format!("raw usearch, ef {expansion}"),
            &found,
            truth,
            &mut times,
        ) >= 0.95
        {
            break;
        }
    }
}

fn config(dimensions: Option<usize>) -> ShardConfig {
    ShardConfig {
        dimensions,
        keyword: dimensions.is_none(),
        analyzer: Analyzer::default(),
        quantization: Quantization::Bf16,
        head_max: engine::limits::HEAD_VECTORS_MAX,
        builder: BuilderHandle::threads(1).expect("a thread"),
    }
}

fn state(number: usize, text: String) -> Arc<DocumentState> {
    let key = Key::text(&number.to_string());
    let content = ContentHash::of(&number.to_le_bytes());
    let range = (0, text.len() as u32);
    let piece = ChunkPiece {
        range,
        content,
        occurrence: 0,
        heading: Arc::from([]),
    };
    let id = ChunkId::new("bench", &key, "none", content, 0);
    Arc::new(DocumentState {
        version: number as u64,
        attributes: Row::from_bytes(&[(number % 100) as u8]),
        text: text.into(),
        chunks: Arc::from([ShardChunk { id, piece }]),
    })
}

fn vector_leg(vectors: &[Arc<[f32]>], questions: &[Arc<[f32]>], truth: &[Vec<usize>]) {
    let before = resident_bytes();
    let mut shard = Shard::new(config(Some(DIMENSIONS)));
    shard.set_observed(false);
    for (number, vector) in vectors.iter().enumerate() {
        let key = Key::text(&number.to_string());
        let state = state(number, String::new());
        shard.apply_document(number as u64 + 1, &key, Some(state), &|_| {
            Some(vector.clone())
        });
        if number % 256 == 0 {
            shard.maintain();
        }
    }
    let at = vectors.len() as u64;
    shard.compact(at);
    let run = |name: &str, shard: &Shard, filter: Option<Filter>, truth: &[Vec<usize>]| {
        let mut times = Vec::new();
        let found: Vec<Vec<usize>> = questions
            .iter()
            .map(|vector| {
                let start = Instant::now();
                let question = ShardQuestion {
                    vector: Some(vector.clone()),
                    k: 10,
                    mode: Mode::Vector,
                    ..ShardQuestion::default()
                };
                let statistics = shard.statistics(&[], at);
                let merged = merge(
                    vec![shard.search(&question, filter, &statistics, at)],
                    &question,
                    &statistics,
                );
                times.push(start.elapsed());
                merged
                    .hits
                    .iter()
                    .map(|hit| hit.candidate.state.version as usize)
                    .collect()
            })
            .collect();
        report(name, &found, truth, &mut times);
    };
    println!("shard, just loaded: {:?}", shard.sizes());
    run("shard, while building", &shard, None, truth);
    let (mut quiet, start) = (Instant::now(), Instant::now());
    while quiet.elapsed() < Duration::from_secs(3) && start.elapsed() < Duration::from_secs(300) {
        let done = shard.maintain();
        let sizes = shard.sizes();
        // Frozen rows without a graph are being built.
        let is_building = sizes.head as usize >= engine::limits::HEAD_VECTORS_MAX;
        if done != Maintenance::default() || is_building || sizes.generations > 1 {
            quiet = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let added = (resident_bytes() - before) as f64 / (1 << 20) as f64;
    println!(
        "shard: {added:.0} MiB resident, tables and keys included; {:?}",
        shard.sizes()
    );
    run("shard", &shard, None, truth);
    let filtered = |groups: u8| -> Vec<Vec<usize>> {
        questions
            .iter()
            .map(|question| {
                let kept: Vec<usize> = (0..vectors.len())
                    .filter(|i| (i % 100) < usize::from(groups))
                    .collect();
                let of: Vec<Arc<[f32]>> = kept.iter().map(|i| vectors[*i].clone()).collect();
                nearest(&of, question)
                    .into_iter()
                    .map(|i| kept[i])
                    .collect()
            })
            .collect()
    };
    for groups in [50u8, 1] {
        let filter =
            move |rows: &[&Row]| rows.iter().map(|row| row.as_bytes()[0] < groups).collect();
        run(
            &format!("shard, {groups} % match"),
            &shard,
            Some(&filter),
            &filtered(groups),
        );
    }
}

fn keyword_leg(count: usize, generator: &mut Clustered) {
    let mut shard = Shard::new(config(None));
    shard.set_observed(false);
    let mut word = |skew: i32| {
        let share: f64 = generator.rng.random_range(0.0..1.0);
        format!("w{}", (share.powi(skew) * 30_000.0) as u32)
    };
    let start = Instant::now();
    for number in 0..count {
        let text = (0..60).map(|_| word(4)).collect::<Vec<_>>().join(" ");
        let key = Key::text(&number.to_string());
        shard.apply_document(number as u64 + 1, &key, Some(state(number, text)), &|_| {
            None
        });
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!(
        "keyword leg: {rate:.0} chunks/s of 60 words, {:?}",
        shard.sizes()
    );
    let at = count as u64;
    let mut times = Vec::new();
    let mut postings = 0;
    for _ in 0..QUESTIONS {
        let text = (0..6).map(|_| word(4)).collect::<Vec<_>>().join(" ");
        let terms = shard.config().analyzer.question(&text);
        let start = Instant::now();
        let question = ShardQuestion {
            terms: Some(terms.into()),
            k: 10,
            ..ShardQuestion::default()
        };
        let statistics = shard.statistics(&question.distinct_terms(), at);
        let merged = merge(
            vec![shard.search(&question, None, &statistics, at)],
            &question,
            &statistics,
        );
        times.push(start.elapsed());
        assert!(merged.hits.len() == 10 || count < 100_000);
        postings += statistics.frequencies.iter().sum::<u64>();
    }
    let (p50, p99) = (
        percentile_ms(&mut times, 0.5),
        percentile_ms(&mut times, 0.99),
    );
    let mean = postings / QUESTIONS as u64;
    println!("keyword, 6 terms, {mean} postings a question: p50 {p50:.3} ms  p99 {p99:.3} ms");
}
