//! What a question costs that has nothing to do: the short-lived dataflow, installed on all
//! workers at a sealed time, answered and dropped.
//!
//! Isolated: `Service` in process (plan, ask, install, run, reply), no HTTP, no model; three
//! questions: a `SELECT` of a source with one row, a keyword search of an index with one chunk, and
//! the same `SELECT` of a source whose row was rewritten 1,000 times first. For 1 and 2 workers, and
//! for indexes that retain 1 second, 1 minute and 1 hour. `HEADWATER_REWRITES=36000` rewrites so often
//! where 1 hour is retained: what an hour of ten changes a second to one row leaves.
//! Data: one row, one document of five words; no seed. A second client rewrites a row 50 times a
//! second meanwhile (synced), so that time advances; `still` is without it. One question at a time.
//! Unit: milliseconds a question (p50, p99, max); MiB resident.

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/whole.rs"]
mod whole;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use queries::api::SearchRequest;
use serde_json::json;
use whole::{Whole, line, push, resident_mib, upsert};

const QUESTIONS: usize = 1_000;
const REWRITES: usize = 1_000;

fn main() {
    let rewrites = std::env::var("HEADWATER_REWRITES").ok();
    let rewrites = rewrites.map_or(REWRITES, |n| n.parse().expect("a number"));
    for workers in [1, 2] {
        for retain in ["1 second", "1 minute", "1 hour"] {
            let rewrites = if retain == "1 hour" {
                rewrites
            } else {
                REWRITES
            };
            measure(workers, retain, rewrites);
        }
    }
}

fn measure(workers: usize, retain: &str, rewrites: usize) {
    let pipeline = format!(
        "CREATE SOURCE one FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE SOURCE moving FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
         CREATE INDEX words ON one USING KEYWORD (body) WITH (RETAIN = '{retain}');
         CREATE INDEX moved ON moving USING KEYWORD (body) WITH (RETAIN = '{retain}');"
    );
    let whole = Whole::start(workers, &pipeline);
    let body = json!({ "body": "the river carries clear water" });
    whole.push("one", &[upsert(&json!("a"), &body)]);
    whole.push("moving", &[upsert(&json!("a"), &body)]);
    std::thread::sleep(Duration::from_millis(200));
    println!("{workers} worker(s), RETAIN '{retain}'");
    let select = |source: &str| {
        let rows = whole.rows(&format!("SELECT id FROM {source}"));
        assert_eq!(rows.len(), 1);
    };
    let search = || {
        let request = SearchRequest {
            index: "words".to_owned(),
            query: Some("river".to_owned()),
            ..SearchRequest::default()
        };
        assert_eq!(whole.search(request).map(|reply| reply.hits.len()), Some(1));
    };
    run("  still: SELECT of one row", &mut || select("one"));
    run("  still: keyword search of one chunk", &mut || search());
    let is_done = Arc::new(AtomicBool::new(false));
    for number in 0..rewrites {
        let body = json!({ "body": format!("the river carries {number}") });
        whole.push("moving", &[upsert(&json!("a"), &body)]);
    }
    let writer = {
        let (service, is_done) = (whole.service.clone(), Arc::clone(&is_done));
        whole.runtime.spawn(async move {
            let mut number = 0_u64;
            while !is_done.load(Ordering::Relaxed) {
                let body = json!({ "body": format!("the river carries {number} drops") });
                push(&service, "moving", &[upsert(&json!("a"), &body)]).await;
                number += 1;
                tokio::time::sleep(Duration::from_millis(19)).await;
            }
        })
    };
    run("  ticking: SELECT of one row", &mut || select("one"));
    run("  ticking: keyword search of one chunk", &mut || search());
    run("  ticking: SELECT of a row rewritten", &mut || {
        select("moving")
    });
    is_done.store(true, Ordering::Relaxed);
    whole.runtime.block_on(writer).expect("no panic");
    println!("  {:.0} MiB resident", resident_mib());
}

fn run(name: &str, ask: &mut dyn FnMut()) {
    (0..50).for_each(|_| ask());
    let mut times = Vec::with_capacity(QUESTIONS);
    for _ in 0..QUESTIONS {
        let started = Instant::now();
        ask();
        times.push(started.elapsed());
    }
    line(name, &mut times);
}
