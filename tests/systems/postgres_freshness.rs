//! From a COMMIT in PostgreSQL to a question that finds the row, by its own log and by Debezium:
//! `cargo test --release --workspace --test systems freshness -- --ignored --nocapture`.
//!
//! Isolated: the whole way (log, decoding, staging with its sync, tick, shard, HTTP) without a model: a
//! keyword index. Data: a writer commits 80 rows a second, a prober 20, each with a word of its own; the
//! clock starts when `psql` has the server's word that the row is committed, and the prober asks again
//! and again, so the figure contains one to two questions. Through Debezium, its share ends when the
//! broker appends the event (the broker's clock, whole milliseconds; Connect polls every 20 ms). Unit:
//! milliseconds (p50, p99, max).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use crate::alone;
use crate::postgres::connection;
use crate::program::Program;
use crate::servers::connect::debezium;
use crate::servers::postgres::Postgres;
use crate::servers::{Run, Stack};

const TABLE: &str = "CREATE TABLE docs (id bigint PRIMARY KEY, body text)";
const PROBES: u32 = 1_000;
const PROBE: Duration = Duration::from_millis(50);
const WRITE: Duration = Duration::from_micros(12_500);

/// One row on its way, milliseconds since the epoch.
struct Probe {
    committed: f64,
    found: f64,
}

#[test]
#[ignore = "a measurement: 50 s, wants a release build and an idle machine"]
fn freshness_of_the_direct_log() {
    let _alone = alone();
    let run = Run::new("postgres-freshness");
    let postgres = Postgres::start(&run);
    postgres.execute(TABLE);
    let program = Program::start(&format!(
        "{}CREATE SOURCE docs FROM POSTGRES (CONNECTION pg, TABLE 'docs');
         CREATE INDEX found ON docs USING KEYWORD (body);",
        connection(&run, &postgres, postgres.port, "")
    ));
    postgres.wait_slot_active("headwater_pg");
    let probes = probes(&postgres, &program);
    show(
        "COMMIT → found",
        probes.iter().map(|one| one.found - one.committed),
    );
}

#[test]
#[ignore = "a measurement: 60 s, wants a release build and an idle machine"]
fn freshness_through_debezium() {
    const TOPIC: &str = "db.public.docs";
    let _alone = alone();
    let run = Run::new("debezium-freshness");
    let stack = Stack::start(&run);
    let appended = [("message.timestamp.type", "LogAppendTime")];
    stack.kafka.create_topic(TOPIC, 1, &appended);
    stack.postgres.execute(TABLE);
    let config = debezium(&stack.postgres, "db", "public.docs");
    stack.connect.create_connector("db", &config);
    stack.connect.wait_running("db");
    let program = Program::start(&format!(
        "CREATE SOURCE docs (id BIGINT PRIMARY KEY, body TEXT)
             FROM KAFKA (BROKERS '{}', TOPIC '{TOPIC}') FORMAT JSON ENVELOPE DEBEZIUM;
         CREATE INDEX found ON docs USING KEYWORD (body);",
        stack.kafka.bootstrap
    ));
    stack
        .postgres
        .execute("INSERT INTO docs VALUES (-1, 'the first')");
    program.wait_rows("SELECT id FROM docs", &[vec![json!(-1)]]);
    let probes = probes(&stack.postgres, &program);
    let records = stack.kafka.records(TOPIC).into_iter();
    let appended: HashMap<i64, f64> = records
        .filter_map(|record| {
            let id = record.value_json()["after"]["id"].as_i64()?;
            Some((id, record.timestamp as f64))
        })
        .collect();
    let at = |n: usize| appended[&(n as i64)];
    let all = || probes.iter().enumerate();
    show(
        "COMMIT → found",
        all().map(|(_, one)| one.found - one.committed),
    );
    show(
        "COMMIT → in the topic",
        all().map(|(n, one)| at(n) - one.committed),
    );
    show(
        "in the topic → found",
        all().map(|(n, one)| one.found - at(n)),
    );
}

/// Milliseconds since the epoch.
fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64() * 1e3
}

/// Rows that are written and asked for, beside a writer.
fn probes(postgres: &Postgres, program: &Program) -> Vec<Probe> {
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
    let (mut probes, mut questions) = (Vec::new(), 0_u32);
    let begun = Instant::now();
    for n in 0..PROBES {
        std::thread::sleep((PROBE * n).saturating_sub(begun.elapsed()));
        postgres.execute(&format!("INSERT INTO docs VALUES ({n}, 'probe{n}x')"));
        let (committed, waiting) = (now(), Instant::now());
        loop {
            questions += 1;
            let question = json!({"index": "found", "query": format!("probe{n}x"), "k": 1});
            let mut reply = agent.post(&url).send_json(&question).expect("an answer");
            let reply: Json = reply.body_mut().read_json().expect("JSON");
            let hits = reply["hits"].as_array();
            if hits.is_some_and(|hits| !hits.is_empty()) {
                break;
            }
            assert!(waiting.elapsed() < Duration::from_secs(120), "probe {n}");
        }
        probes.push(Probe {
            committed,
            found: now(),
        });
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer wrote");
    println!(
        "100 commits a second; {:.1} questions a probe",
        f64::from(questions) / f64::from(PROBES)
    );
    probes
}

fn show(what: &str, waits: impl Iterator<Item = f64>) {
    let mut waits: Vec<f64> = waits.collect();
    waits.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize];
    println!(
        "{what}: p50 {:.2}  p99 {:.2}  max {:.2} ms  n {}",
        at(0.5),
        at(0.99),
        at(0.999),
        waits.len()
    );
}
