//! Isolated: what bad records cost the good ones, from the push to the synced log and the sealed tick.
//!
//! Data: upserts of 200-byte texts in requests of 500 lines, flat out, from one client; lines of the
//! same size whose number is a word, 10,000 a second (`HEADWATER_BENCH_BAD`), either in the same
//! requests, behind the good ones (a poisoned topic with one reader), or from a client of their own. No
//! index: the less a good record costs, the more a bad one shows. Seedless; one worker.
//!
//! Unit: good rows a second, the median of 7 rounds of one second each; the three ways take turns, so
//! that a busy machine hurts them alike. The floor is 0.8 of the rate without bad records.

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/whole.rs"]
mod whole;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use queries::api::{Backend, PushLine, PushRequest};
use queries::service::Service;
use serde_json::json;
use whole::{Whole, upsert};

const LINES: usize = 500;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);

fn main() {
    let rate = std::env::var("HEADWATER_BENCH_BAD").ok();
    let rate: f64 = rate.and_then(|rate| rate.parse().ok()).unwrap_or(10_000.0);
    let whole = Whole::start(
        1,
        "CREATE SOURCE docs FROM PUSH (id BIGINT PRIMARY KEY, n BIGINT, body TEXT);",
    );
    let mut bench = Bench {
        whole: &whole,
        next: 0,
        bad: Arc::default(),
        rate,
    };
    bench.round(Way::Alone); // warm
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (way, rates) in [Way::Alone, Way::Same, Way::Beside]
            .into_iter()
            .zip(&mut rates)
        {
            rates.push(bench.round(way));
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let [alone, same, beside] = rates.each_mut().map(median);
    let bad = bench.bad.load(Ordering::Relaxed) as f64 / (2 * ROUNDS) as f64 / ROUND.as_secs_f64();
    println!("good rows a second, alone                    {alone:.0}");
    println!(
        "  with {bad:.0} bad a second in its requests {same:.0} = {:.2} ×",
        same / alone
    );
    println!(
        "  with as many from a client of their own    {beside:.0} = {:.2} ×",
        beside / alone
    );
    for row in whole.rows("SELECT code, seen, kept, dropped FROM headwater.dead_letter_causes") {
        println!("  dead letters {row:?}");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Alone,
    Same,
    Beside,
}

struct Bench<'a> {
    whole: &'a Whole,
    next: u64,
    bad: Arc<AtomicU64>,
    rate: f64,
}

impl Bench<'_> {
    /// Good rows a second.
    fn round(&mut self, way: Way) -> f64 {
        let stop = Arc::new(AtomicBool::new(false));
        let poisoner = (way == Way::Beside).then(|| self.poison(Arc::clone(&stop)));
        let (start, mut good, mut sent) = (Instant::now(), 0, 0);
        while start.elapsed() < ROUND {
            let text = "a text of some length ".repeat(8);
            let mut lines: Vec<String> = (0..LINES as u64)
                .map(|n| upsert(&json!(self.next + n), &json!({"n": n, "body": text})))
                .collect();
            self.next += LINES as u64;
            if way == Way::Same {
                let due = (start.elapsed().as_secs_f64() * self.rate) as u64;
                lines.extend((sent..due).map(bad_line));
                self.bad.fetch_add(due - sent, Ordering::Relaxed);
                sent = due;
            }
            good += self
                .whole
                .runtime
                .block_on(push(&self.whole.service, lines));
        }
        // What is acknowledged may wait for its tick: the next round must not pay for it.
        let last = format!("SELECT id FROM docs WHERE id = {}", self.next - 1);
        while self.whole.rows(&last).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let rate = good as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        if let Some(poisoner) = poisoner {
            poisoner.join().expect("no panic");
        }
        rate
    }

    /// A client that sends nothing good.
    fn poison(&self, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
        let (service, handle) = (
            self.whole.service.clone(),
            self.whole.runtime.handle().clone(),
        );
        let (bad, rate) = (Arc::clone(&self.bad), self.rate);
        std::thread::spawn(move || {
            let (start, mut sent) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * rate) as u64;
                handle.block_on(push(&service, (sent..due).map(bad_line).collect()));
                bad.fetch_add(due - sent, Ordering::Relaxed);
                sent = due;
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    }
}

/// A line whose number is a word, of a key of its own.
fn bad_line(number: u64) -> String {
    let text = "a text of some length ".repeat(8);
    upsert(
        &json!(number + (1 << 40)),
        &json!({"n": "many", "body": text}),
    )
}

/// Pushes lines; how many were taken.
async fn push(service: &Service, lines: Vec<String>) -> u64 {
    let lines = lines.into_iter().zip(1..).map(|(line, number)| PushLine {
        line: number,
        raw: line.into_bytes(),
    });
    let request = PushRequest {
        source: "docs".to_owned(),
        lines: lines.collect(),
        request_id: "r_bench".to_owned(),
        ..PushRequest::default()
    };
    match service.push(request).await {
        Ok(reply) => reply.accepted,
        // Back-pressure: what is staged has to be bound first.
        Err(problem) if problem.status == 429 => {
            tokio::time::sleep(Duration::from_millis(2)).await;
            0
        }
        Err(problem) => panic!("{}", problem.detail),
    }
}
