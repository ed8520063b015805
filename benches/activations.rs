//! How long one activation holds a worker while rows pour in, and what the whole engine ingests.
//!
//! Isolated: `FROM GENERATE` as fast as it is taken, through `Service` (log with syncs, ticks,
//! dataflow, shard, one builder thread), in process, one worker; beside it, in the same run and on
//! the same vectors, raw usearch (bf16, cosine, M 16, efConstruction 128) on one adding thread.
//! Data: 20,000 rows × 384 with texts, the generator's clustered vectors, seed printed.
//! `HEADWATER_BENCH_VECTORS` changes the size.
//! Unit: seconds' buckets of the engine's own histograms, shown as *upper bounds* in milliseconds:
//! `activation` is the index's operator, `step` all active operators of a worker together, which
//! bounds every single one from above. The shard's `maintain` runs between steps and is in neither;
//! what it holds up shows in the questions asked meanwhile (one every 20 ms, from outside).
//! Vectors a second: until the last row is found (`visible`), and until no more than the open head
//! is outside a graph (`indexed`); MiB resident.

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/whole.rs"]
mod whole;

use std::time::{Duration, Instant};

use connectors::generate::Generator;
use queries::api::SearchRequest;
use whole::{Whole, histogram, line, resident_mib};

const SEED: u64 = 42;
const DIMENSIONS: usize = 384;
/// Bar of the 99th percentile, milliseconds.
const BAR_MS: f64 = 10.0;

fn main() {
    let count = std::env::var("HEADWATER_BENCH_VECTORS")
        .ok()
        .and_then(|n| n.parse().ok());
    let count: u64 = count.unwrap_or(20_000);
    println!("seed {SEED}, {count} rows × {DIMENSIONS}, 1 worker, 1 builder thread");
    let generator = Generator::new(SEED, DIMENSIONS);
    let raw = raw(&generator, count);
    println!("raw usearch {raw:.0} vectors/s, one thread");
    let whole = Whole::start(1, "CREATE MODEL vecs FROM COLUMN WITH (DIMENSIONS = 384);");
    let before = resident_mib();
    let started = Instant::now();
    whole.declare(&format!(
        "CREATE MODEL vecs FROM COLUMN WITH (DIMENSIONS = 384);
         CREATE SOURCE rows FROM GENERATE (ROWS {count}, SEED {SEED}, DIMENSIONS {DIMENSIONS});
         CREATE INDEX found ON rows USING VECTOR (embedding) CHUNK BY none EMBED WITH vecs;"
    ));
    let last = generator.vector(count - 1);
    let (mut questions, mut visible) = (Vec::new(), None);
    let indexed = loop {
        std::thread::sleep(Duration::from_millis(20));
        let asked = Instant::now();
        let request = SearchRequest {
            index: "found".to_owned(),
            vector: Some(last.clone()),
            k: Some(1),
            select: Some(Vec::new()),
            ..SearchRequest::default()
        };
        let reply = whole.search(request);
        questions.push(asked.elapsed());
        let hit = reply.and_then(|reply| reply.hits.into_iter().next());
        if visible.is_none() && hit.is_some_and(|hit| hit.document.key == count - 1) {
            visible = Some(started.elapsed());
        }
        if visible.is_some() {
            let head = outside_graphs(&whole);
            if head < engine::limits::HEAD_VECTORS_MAX as u64 {
                break count.saturating_sub(head) as f64 / started.elapsed().as_secs_f64();
            }
        }
        assert!(started.elapsed() < Duration::from_secs(900), "not ingested");
    };
    let visible = count as f64 / visible.expect("left the loop").as_secs_f64();
    println!(
        "whole engine: visible {visible:.0}/s = {:.2} × raw   indexed {indexed:.0}/s = {:.2} × raw",
        visible / raw,
        indexed / raw
    );
    line("questions meanwhile", &mut questions);
    let text = engine::telemetry::install().render();
    for (what, name) in [
        ("activation", "headwater_activation_seconds"),
        ("step", "headwater_worker_step_seconds"),
    ] {
        show(what, &histogram(&text, name));
    }
    println!("{:.0} MiB resident added", resident_mib() - before);
}

fn raw(generator: &Generator, count: u64) -> f64 {
    let options = usearch::IndexOptions {
        dimensions: DIMENSIONS,
        metric: usearch::MetricKind::Cos,
        quantization: usearch::ScalarKind::BF16,
        connectivity: 16,
        expansion_add: 128,
        expansion_search: 64,
        multi: false,
    };
    let vectors: Vec<Vec<f32>> = (0..count).map(|i| generator.vector(i)).collect();
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

/// Vectors that are scanned because no graph has them yet.
fn outside_graphs(whole: &Whole) -> u64 {
    let rows = whole.rows("SELECT head FROM headwater.shards");
    let heads = rows.iter().filter_map(|row| row.first()?.as_u64());
    heads.sum()
}

fn show(what: &str, buckets: &[(f64, u64)]) {
    let total = buckets.last().map_or(0, |(_, count)| *count);
    if total == 0 {
        return println!("{what}: no sample");
    }
    // The smallest bucket that holds the share: the true percentile is at most its bound.
    let bound = |share: f64| {
        let wanted = (total as f64 * share).ceil() as u64;
        let bucket = buckets.iter().find(|(_, count)| *count >= wanted);
        bucket.map_or(f64::INFINITY, |(bound, _)| bound * 1e3)
    };
    let verdict = if bound(0.99) <= BAR_MS {
        "met"
    } else {
        "MISSED"
    };
    println!(
        "{what:12} p50 ≤ {} ms  p99 ≤ {} ms  max ≤ {} ms  n {total}   bar p99 ≤ {BAR_MS} ms: {verdict}",
        bound(0.5),
        bound(0.99),
        bound(1.0)
    );
}
