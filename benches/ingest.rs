//! Isolated: precomputed vectors through one shard, graph building included.
//!
//! Data: 60,000 vectors × 384, clustered generator (anchor A3: 2,000 centres), seed printed.
//! Unit: vectors a second, from the first vector until every vector is in a graph (`indexed`), and
//! until every vector is visible (`visible`); milliseconds of a question asked every 500 vectors
//! meanwhile. One worker thread and one builder thread; beside it, in the same run, raw usearch
//! (bf16, cosine, M 16, efConstruction 128) on one adding thread.

#[path = "support/clustered.rs"]
mod clustered;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clustered::{Clustered, percentile_ms};
use engine::model::{ChunkId, ChunkPiece, ContentHash, Key, Row};
use operators::index::*;

const SEED: u64 = 42;
const DIMENSIONS: usize = 384;

fn main() {
    let count = std::env::var("HEADWATER_BENCH_VECTORS")
        .ok()
        .and_then(|n| n.parse().ok());
    let count: usize = count.unwrap_or(60_000);
    println!("seed {SEED}, {count} × {DIMENSIONS}");
    let mut generator = Clustered::new(SEED, 2_000, DIMENSIONS);
    let vectors: Vec<Arc<[f32]>> = (0..count).map(|_| generator.draw()).collect();
    let raw = raw(&vectors);
    println!("raw usearch {raw:.0} vectors/s");
    // As fast as one thread can, then at about half of what one builder can index.
    for pace in [None, Some(raw / 2.0)] {
        through_a_shard(&vectors, &mut generator, pace, raw);
    }
}

fn raw(vectors: &[Arc<[f32]>]) -> f64 {
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
    vectors.len() as f64 / start.elapsed().as_secs_f64()
}

fn document(number: usize) -> (Key, Arc<DocumentState>) {
    let key = Key::text(&number.to_string());
    let content = ContentHash::of(&number.to_le_bytes());
    let piece = ChunkPiece {
        range: (0, 0),
        content,
        occurrence: 0,
        heading: Arc::from([]),
    };
    let id = ChunkId::new("bench", &key, "none", content, 0);
    let state = DocumentState {
        version: number as u64,
        attributes: Row::from_bytes(&[]),
        text: Arc::from(""),
        chunks: Arc::from([ShardChunk { id, piece }]),
    };
    (key, Arc::new(state))
}

fn through_a_shard(vectors: &[Arc<[f32]>], generator: &mut Clustered, pace: Option<f64>, raw: f64) {
    let mut shard = Shard::new(ShardConfig {
        dimensions: Some(DIMENSIONS),
        keyword: false,
        analyzer: Analyzer::default(),
        quantization: Quantization::Bf16,
        head_max: engine::limits::HEAD_VECTORS_MAX,
        builder: BuilderHandle::threads(1).expect("a thread"),
    });
    shard.set_observed(false);
    let start = Instant::now();
    let mut questions = Vec::new();
    let mut upkeep = Vec::new();
    for (number, vector) in vectors.iter().enumerate() {
        if let Some(rate) = pace {
            let due = Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let at = number as u64 + 1;
        let (key, state) = document(number);
        shard.apply_document(at, &key, Some(state), &|_| Some(vector.clone()));
        if number % 64 == 0 {
            let start = Instant::now();
            shard.compact(at);
            shard.maintain();
            upkeep.push(start.elapsed());
        }
        if number % 500 == 0 {
            let question = ShardQuestion {
                vector: Some(generator.draw()),
                k: 10,
                mode: Mode::Vector,
                ..ShardQuestion::default()
            };
            let start = Instant::now();
            let statistics = shard.statistics(&[], at);
            merge(
                vec![shard.search(&question, None, &statistics, at)],
                &question,
                &statistics,
            );
            questions.push(start.elapsed());
        }
    }
    let visible = vectors.len() as f64 / start.elapsed().as_secs_f64();
    let loaded = shard.sizes();
    // The open head stays scanned by design.
    while shard.sizes().head as usize >= engine::limits::HEAD_VECTORS_MAX {
        shard.maintain();
        std::thread::sleep(Duration::from_millis(1));
    }
    let indexed =
        (vectors.len() - shard.sizes().head as usize) as f64 / start.elapsed().as_secs_f64();
    println!(
        "{:10} visible {visible:.0}/s  indexed {indexed:.0}/s = {:.2} × raw  scanned at the end of \
         loading {}  generations {}",
        pace.map_or("flat out".into(), |rate| format!("{rate:.0}/s")),
        indexed / raw,
        loaded.head,
        shard.sizes().generations,
    );
    println!(
        "           questions p50 {:.3} ms  p99 {:.3} ms   maintain p50 {:.4} ms  max {:.3} ms",
        percentile_ms(&mut questions, 0.5),
        percentile_ms(&mut questions, 0.99),
        percentile_ms(&mut upkeep, 0.5),
        percentile_ms(&mut upkeep, 1.0),
    );
}
