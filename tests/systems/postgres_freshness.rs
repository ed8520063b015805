//! From a COMMIT in PostgreSQL to a question that finds the row: `cargo test --release --workspace
//! --test systems freshness -- --ignored --nocapture`.
//!
//! Isolated: the whole way (log, decoding, staging with its sync, tick, shard, HTTP) without a model: a
//! keyword index. Data: a writer commits 80 rows a second, a prober 20, each with a word of its own; the
//! clock starts when `psql` has the server's word that the row is committed, and the prober asks again
//! and again, so the figure contains one to two questions. Unit: milliseconds (p50, p99, max).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::alone;
use crate::postgres::connection;
use crate::program::Program;
use crate::servers::Run;
use crate::servers::postgres::Postgres;

const PROBES: u32 = 1_000;
const PROBE: Duration = Duration::from_millis(50);
const WRITE: Duration = Duration::from_micros(12_500);

#[test]
#[ignore = "a measurement: 50 s, wants a release build and an idle machine"]
fn freshness_of_the_direct_log() {
    let _alone = alone();
    let run = Run::new("postgres-freshness");
    let postgres = Postgres::start(&run);
    postgres.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)");
    let program = Program::start(&format!(
        "{}CREATE SOURCE docs FROM POSTGRES (CONNECTION pg, TABLE 'docs');
         CREATE INDEX found ON docs USING KEYWORD (body);",
        connection(&run, &postgres, postgres.port, "")
    ));
    postgres.wait_slot_active("headwater_pg");
    let stop = Arc::new(AtomicBool::new(false));
    let mut session = postgres.session().expect("a session");
    let stopping = Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let begun = Instant::now();
        for n in 0.. {
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            let sql = format!(
                "INSERT INTO docs VALUES ({}, 'the river carries {n}')",
                1_000_000 + n
            );
            session.run(&sql).expect("written");
            std::thread::sleep((WRITE * n).saturating_sub(begun.elapsed()));
        }
    });
    let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
    let url = format!("{}/v1/search", program.address());
    let (mut waits, mut questions) = (Vec::new(), 0_u32);
    let begun = Instant::now();
    for n in 0..PROBES {
        std::thread::sleep((PROBE * n).saturating_sub(begun.elapsed()));
        postgres.execute(&format!("INSERT INTO docs VALUES ({n}, 'probe{n}x')"));
        let committed = Instant::now();
        loop {
            questions += 1;
            let question = json!({"index": "found", "query": format!("probe{n}x"), "k": 1});
            let mut reply = agent.post(&url).send_json(&question).expect("an answer");
            let reply: Json = reply.body_mut().read_json().expect("JSON");
            if reply["hits"]
                .as_array()
                .is_some_and(|hits| !hits.is_empty())
            {
                break;
            }
            assert!(committed.elapsed() < Duration::from_secs(20), "probe {n}");
        }
        waits.push(committed.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer wrote");
    waits.sort_unstable();
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "COMMIT → found: p50 {:.2}  p99 {:.2}  max {:.2} ms  n {PROBES}; {:.1} questions a probe; \
         100 commits a second",
        at(0.5),
        at(0.99),
        at(0.999),
        f64::from(questions) / f64::from(PROBES)
    );
}
