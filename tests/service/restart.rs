//! Stopping, crashing, and coming back: same rows, same answers at the same times, nothing embedded
//! again, nothing acknowledged lost. The cache may be empty, never stale.

use std::time::Duration;

use queries::api::{AsOf, Hit, PushRequest, SearchRequest};
use serde_json::{Value as Json, json};

use crate::rig::{Reconciled, Rig, eventually, request, shown, together, upsert};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT, lang TEXT);
CREATE VIEW kept AS SELECT id, body, lang FROM docs WHERE lang <> 'xx';
CREATE MODEL hashed FROM 'hashed';
CREATE INDEX found ON kept USING HYBRID (body) CHUNK BY recursive(max_tokens => 16)
    EMBED WITH hashed INCLUDE (lang) WITH (QUANTIZATION = 'f32', RETAIN = '1 day');
CREATE CACHE answers ON found WITH (K = 3, RETRIEVAL = 'exact', TTL = '10 minutes');
";

const QUESTIONS: [&str; 4] = [
    "reset the password",
    "topic3",
    "billing export",
    "word7 word9",
];

fn body(n: usize) -> String {
    let topics = [
        "reset the password",
        "billing export",
        "an outage",
        "a token",
    ];
    format!(
        "document {n} says word{} about {} in topic{}",
        n % 11,
        topics[n % 4],
        n % 5
    )
}

/// What is asked before and after.
#[derive(Debug, PartialEq)]
struct Seen {
    at: u64,
    rows: Vec<Vec<Json>>,
    kept: Vec<Vec<Json>>,
    hits: Vec<Vec<Hit>>,
    pending: u64,
}

fn seen(rig: &Rig, at: Option<u64>) -> Seen {
    let mut pending = 0;
    let mut read_at = at;
    let hits = QUESTIONS.iter().map(|question| {
        let reply = rig.search(SearchRequest {
            index: "found".to_owned(),
            query: Some((*question).to_owned()),
            k: Some(5),
            exact: true,
            as_of: read_at.map(AsOf::Time),
            ..SearchRequest::default()
        });
        let reply = reply.unwrap_or_else(|problem| panic!("at {at:?}: {}", shown(&problem)));
        read_at = Some(reply.as_of);
        pending = reply.pending;
        assert!(!reply.is_degraded, "{:?}", reply.degraded);
        reply.hits
    });
    let hits: Vec<Vec<Hit>> = hits.collect();
    let at = read_at.expect("asked at some time");
    Seen {
        at,
        rows: rig.rows(&format!(
            "SELECT id, body, lang FROM docs ORDER BY id AS OF {at}"
        )),
        kept: rig.rows(&format!("SELECT id FROM kept ORDER BY id AS OF {at}")),
        hits,
        pending,
    }
}

fn keyed(body: &str) -> PushRequest {
    let line = upsert("once", &json!({"body": body, "lang": "en"}));
    PushRequest {
        idempotency_key: Some("order-17".to_owned()),
        ..request("docs", &[line.as_bytes()])
    }
}

/// Rows, edits and deletions, with what is seen at several times on the way.
fn live(rig: &Rig) -> Vec<Seen> {
    let mut times = Vec::new();
    for n in 0..30 {
        let lang = if n % 6 == 0 { "xx" } else { "en" };
        let value = json!({"body": body(n), "lang": lang});
        rig.upsert("docs", &format!("d{}", n % 20), &value);
        if n % 10 == 9 {
            rig.delete("docs", &format!("d{}", n % 7));
            times.push(seen(rig, None));
        }
    }
    times
}

/// Everything that must be as it was.
fn is_as_before(rig: &Rig, times: &[Seen], objects: &[Vec<Json>]) {
    // The first question of all already reads everything that was shown before the end.
    let newest = &times.last().expect("read before").rows;
    assert_eq!(
        rig.rows("SELECT id, body, lang FROM docs ORDER BY id"),
        *newest
    );
    rig.wait_ready();
    assert_eq!(rig.encoder.total(), 0, "no stored vector is computed again");
    assert_eq!(rig.rows("SHOW ALL"), objects);
    let again = rig.reconcile(PIPELINE, false, false);
    assert_eq!(
        again,
        Ok(Reconciled::default()),
        "the same file changes nothing"
    );
    for then in times {
        assert_eq!(seen(rig, Some(then.at)), *then);
    }
    assert_eq!(
        rig.encoder.total(),
        QUESTIONS.len() as u64,
        "the questions only"
    );
    assert!(
        rig.rows("SELECT entry FROM answers").is_empty(),
        "an empty cache is never stale"
    );
    assert!(!rig.is_cached("answers", QUESTIONS[0]));
}

/// New work after a restart: pushes, the cache, retractions.
fn goes_on(rig: &Rig) {
    rig.upsert(
        "docs",
        "zz",
        &json!({"body": "zebra crossing", "lang": "en"}),
    );
    assert_eq!(rig.find("found", "zebra"), ["zz"]);
    let cited = rig.remember("answers", "zebra crossing");
    assert!(cited.contains(&"zz".to_owned()));
    assert!(rig.is_cached("answers", "zebra crossing"));
    rig.delete("docs", "zz");
    assert!(!rig.is_cached("answers", "zebra crossing"), "retracted");
}

#[test]
fn after_a_stop_everything_is_as_before() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    let times = live(&rig);
    rig.remember("answers", QUESTIONS[0]);
    assert!(rig.is_cached("answers", QUESTIONS[0]));
    let objects = rig.rows("SHOW ALL");
    let store = rig.store.clone();
    rig.service.stop();
    drop(rig);
    // Twice: a restart of a restart, too.
    for _ in 0..2 {
        let rig = Rig::over(store.clone());
        is_as_before(&rig, &times, &objects);
        rig.service.stop();
    }
    goes_on(&Rig::over(store));
}

#[test]
fn after_a_crash_everything_acknowledged_is_as_before() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    let times = live(&rig);
    rig.remember("answers", QUESTIONS[0]);
    let objects = rig.rows("SHOW ALL");
    for seed in 0..6 {
        println!("seed {seed}");
        let again = Rig::over(rig.store.after_crash(seed));
        is_as_before(&again, &times, &objects);
        goes_on(&again);
    }
}

#[test]
fn rows_that_were_acknowledged_but_not_bound_appear() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    rig.upsert("docs", "old", &json!({"body": "an old text", "lang": "en"}));
    // The encoder holds the lane's head back: the row is in the log, and in no tick.
    rig.encoder.set_delay(Duration::from_secs(4));
    let line = upsert("staged", &json!({"body": "a staged text", "lang": "en"}));
    let delete = json!({"op": "delete", "key": "old"}).to_string();
    rig.push_request(request("docs", &[line.as_bytes()]))
        .expect("acknowledged");
    rig.push_request(request("docs", &[delete.as_bytes()]))
        .expect("acknowledged");
    let crashed = rig.store.after_crash(3);
    assert_eq!(
        rig.rows("SELECT id FROM docs"),
        [[json!("old")]],
        "not bound yet"
    );
    let again = Rig::over(crashed);
    eventually("the staged row", || {
        again.find("found", "staged") == ["staged"]
    });
    again.wait_ready();
    assert_eq!(again.rows("SELECT id FROM docs"), [[json!("staged")]]);
    assert_eq!(again.encoder.count_of("a staged text"), 1);
    assert_eq!(again.encoder.total(), 1, "the old text has its vector");
    goes_on(&again);
}

#[test]
fn an_idempotency_key_survives() {
    let _room = together();
    let rig = Rig::start(PIPELINE);
    let first = rig.push_request(keyed("said once")).expect("taken");
    assert!(!first.replayed);
    let repeated = |rig: &Rig| {
        let reply = rig.push_request(keyed("said once")).expect("remembered");
        assert!(reply.replayed);
        assert_eq!((&reply.token, reply.accepted), (&first.token, 1));
        let other = rig
            .push_request(keyed("said otherwise"))
            .expect_err("another body");
        assert_eq!(
            shown(&other),
            "422 idempotency-key-reused: Idempotency-Key \"order-17\" was used with another \
             body; hint: use a new key for a new request"
        );
    };
    repeated(&rig);
    let crashed = Rig::over(rig.store.after_crash(1));
    repeated(&crashed);
    rig.service.stop();
    let stopped = Rig::over(rig.store.clone());
    repeated(&stopped);
    eventually("the row", || {
        !stopped.rows("SELECT id FROM docs").is_empty()
    });
    let versions = stopped.rows("SELECT version FROM search(found, 'said once')");
    assert_eq!(versions, [[json!(1)]], "taken once");
}

/// A restart between a row and its vector: the row is there at once, the vector is computed once.
#[test]
fn a_row_bound_without_its_vector_gets_it_after_the_crash() {
    let _room = together();
    let pipeline = PIPELINE.replace("RETAIN = '1 day'", "EMBED DEADLINE = '50 milliseconds'");
    let rig = Rig::start(&pipeline);
    rig.encoder.set_delay(Duration::from_secs(4));
    let line = upsert("bare", &json!({"body": "a bare text", "lang": "en"}));
    rig.push_request(request("docs", &[line.as_bytes()]))
        .expect("acknowledged");
    eventually("the row by its words", || {
        rig.find("found", "bare") == ["bare"]
    });
    let again = Rig::over(rig.store.after_crash(5));
    eventually("the row is back", || {
        again.find("found", "bare") == ["bare"]
    });
    eventually("its vector", || {
        let reply = again.search(SearchRequest {
            index: "found".to_owned(),
            query: Some("bare text".to_owned()),
            mode: Some("vector".to_owned()),
            ..SearchRequest::default()
        });
        reply.is_ok_and(|reply| reply.hits.len() == 1 && reply.pending == 0)
    });
    assert_eq!(again.encoder.count_of("a bare text"), 1);
}
