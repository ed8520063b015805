//! Shared by the benches of the whole engine: a `Service` in this process on a data folder of its
//! own, synced to disk, wired as the server wires it; no HTTP.

#![allow(dead_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::durable::LocalStore;
use engine::runtime::SystemClock;
use queries::api::{Backend, PushLine, PushReply, PushRequest, SearchReply, SearchRequest};
use queries::service::{Service, Wiring};
use serde_json::Value as Json;

/// A running engine; its data folder goes with it.
pub struct Whole {
    pub service: Service,
    pub runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

impl Whole {
    /// An engine with `workers` workers and one builder thread, and `pipeline` declared.
    pub fn start(workers: usize, pipeline: &str) -> Whole {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        // Beside the build, not in a temporary folder: that may be memory, and syncs free.
        let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
        let base = std::env::var("HEADWATER_BENCH_DATA").unwrap_or_else(|_| target.to_owned());
        std::fs::create_dir_all(&base).expect("a folder to write to");
        let folder = tempfile::tempdir_in(base).expect("a folder to write to");
        let telemetry = engine::telemetry::install();
        let wiring = Wiring {
            store: Arc::new(LocalStore::open(folder.path()).expect("an empty folder")),
            workers,
            communication: None,
            clock: Arc::new(SystemClock),
            load_model: Arc::new(|name, model, key| {
                headwater::wiring::load_model(name, model, key, None)
            }),
            connect: headwater::wiring::connector(None, workers),
            connect_sink: Arc::new(headwater::wiring::connect_sink),
            describe: Arc::new(headwater::wiring::describe),
            decode_push: Arc::new(headwater::wiring::decode_push),
            redecode: Arc::new(headwater::wiring::redecode),
            metrics: Arc::new(move || telemetry.render()),
            builder_threads: 1,
            vectors: engine::durable::VectorOptions::default(),
            embed: operators::embed::EmbedConfig::default(),
        };
        let service = Service::start(wiring, runtime.handle().clone()).expect("an empty folder");
        let whole = Whole {
            service,
            runtime,
            folder,
        };
        whole.declare(pipeline);
        whole
    }

    /// Declares statements.
    pub fn declare(&self, pipeline: &str) {
        let reconciled = self
            .runtime
            .block_on(self.service.reconcile(pipeline, false, false));
        if let Err(problems) = reconciled {
            panic!("the pipeline is wrong: {problems:?}");
        }
    }

    /// Pushes lines; returns when they are synced.
    pub fn push(&self, source: &str, lines: &[String]) -> PushReply {
        self.runtime.block_on(push(&self.service, source, lines))
    }

    /// Asks; `None` while the engine refuses.
    pub fn search(&self, request: SearchRequest) -> Option<SearchReply> {
        self.runtime.block_on(self.service.search(request)).ok()
    }

    /// The rows of one `SELECT`.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Json>> {
        let (replies, problem) = self
            .runtime
            .block_on(self.service.sql(sql.to_owned(), Vec::new()));
        assert!(problem.is_none(), "{problem:?}");
        replies.into_iter().flat_map(|reply| reply.rows).collect()
    }
}

/// Pushes lines from any task; all must be taken.
pub async fn push(service: &Service, source: &str, lines: &[String]) -> PushReply {
    let lines = lines.iter().enumerate().map(|(i, line)| PushLine {
        line: i as u64 + 1,
        raw: line.clone().into_bytes(),
    });
    let request = PushRequest {
        source: source.to_owned(),
        lines: lines.collect(),
        ..PushRequest::default()
    };
    let reply = service.push(request).await.expect("a push is taken");
    assert_eq!(reply.rejected_total, 0, "{:?}", reply.rejected);
    reply
}

/// An upsert as a line of NDJSON.
pub fn upsert(key: &Json, value: &Json) -> String {
    serde_json::json!({ "op": "upsert", "key": key, "value": value }).to_string()
}

/// Sleeps until `number / rate` seconds after `start`: an open loop, late probes are not forgiven.
pub fn pace(start: Instant, number: usize, rate: f64) {
    let due = Duration::from_secs_f64(number as f64 / rate);
    std::thread::sleep(due.saturating_sub(start.elapsed()));
}

/// `name p50 … p99 … max … ms` of a sample.
pub fn line(name: &str, sample: &mut [Duration]) {
    if sample.is_empty() {
        return println!("{name:44} no sample");
    }
    let mut at = |share| super::clustered::percentile_ms(sample, share);
    println!(
        "{name:44} p50 {:8.3}  p99 {:8.3}  max {:8.3} ms  n {}",
        at(0.5),
        at(0.99),
        at(1.0),
        sample.len()
    );
}

/// MiB resident.
pub fn resident_mib() -> f64 {
    super::clustered::resident_bytes() as f64 / f64::from(1 << 20)
}

/// A histogram without labels in Prometheus text: `(upper bound in seconds, cumulative count)`.
pub fn histogram(text: &str, name: &str) -> Vec<(f64, u64)> {
    let prefix = format!("{name}_bucket{{le=\"");
    let buckets = text.lines().filter_map(|line| {
        let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse().ok()?
        };
        Some((bound, count.trim().parse().ok()?))
    });
    buckets.collect()
}
