//! `kill -9` at random moments under load: nothing acknowledged is lost, nothing is doubled, no
//! stored vector is computed again.
//!
//! The real binary, the real model, a real folder. Thirty times: push documents one request after
//! another, kill the server somewhere in between, start it again, and compare with the list of
//! acknowledged pushes, at a time that is at least the last acknowledged push's: its token is good
//! after the restart, too. The seed is printed.

#[path = "../support/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};
use server::{Server, log};

const KILLS: usize = 30;

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH minilm;
";

/// The server, spoken to.
struct Running(Server);

impl Running {
    fn start(folder: &Path) -> Running {
        Running(Server::start(folder, PIPELINE, &["--workers", "1"]))
    }

    fn post(&self, path: &str, body: &str) -> Result<Json, String> {
        let mut reply = agent()
            .post(format!("{}{path}", self.0.url))
            .header("content-type", "application/json")
            .send(body)
            .map_err(|error| error.to_string())?;
        let text = reply
            .body_mut()
            .read_to_string()
            .map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    fn get(&self, path: &str) -> Result<String, String> {
        let mut reply = agent()
            .get(format!("{}{path}", self.0.url))
            .call()
            .map_err(|e| e.to_string())?;
        reply
            .body_mut()
            .read_to_string()
            .map_err(|error| error.to_string())
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").expect("served");
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    fn wait_ready(&self, folder: &Path) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.get("/ready").is_err() {
            assert!(Instant::now() < deadline, "not ready: {}", log(folder));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(20)))
        .build()
        .into()
}

#[test]
fn thirty_kills_lose_nothing_and_double_nothing() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    // key → (acknowledged pushes, pushes sent).
    let mut pushes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut sent = 0_u64;
    let mut token = None;
    for round in 0..KILLS {
        let server = Running::start(folder.path());
        server.wait_ready(folder.path());
        let embedded = server.metric("headwater_embed_texts_total");
        let stored = server.metric("headwater_vectors_opened");
        assert!(
            stored + embedded <= sent as f64,
            "round {round}: {stored} stored and {embedded} embedded again of {sent} texts"
        );
        check(&server, &pushes, token.as_ref(), round);
        let until = Instant::now() + Duration::from_millis(rng.random_range(20..600));
        while Instant::now() < until {
            let key = format!("k{}", rng.random_range(0..200));
            let counts = pushes.entry(key.clone()).or_default();
            counts.1 += 1;
            sent += 1;
            let body = format!("document {key} says number {sent} of the stream");
            let line = json!([{"op": "upsert", "key": key, "value": {"body": body}}]).to_string();
            if let Ok(reply) = server.post("/v1/sources/docs/documents", &line) {
                counts.0 += 1;
                token = Some(reply["token"].clone());
            }
        }
        // The kill falls between two requests or into the work that follows them.
        drop(server);
    }
    let server = Running::start(folder.path());
    server.wait_ready(folder.path());
    check(&server, &pushes, token.as_ref(), KILLS);
    println!("{KILLS} kills, {sent} pushes");
    drop(server);
}

/// Every acknowledged push is there, and none counts twice.
fn check(
    server: &Running,
    pushes: &BTreeMap<String, (u64, u64)>,
    token: Option<&Json>,
    round: usize,
) {
    let Some(token) = token else { return };
    let request = json!({
        "index": "found", "query": "document", "mode": "keyword", "k": 1,
        "at_least": token, "timeout_ms": 20_000,
    });
    let reply = server.post("/v1/search", &request.to_string());
    let reply = reply.expect("the last acknowledged push becomes visible");
    let as_of = reply["as_of"].as_u64().expect("a time");
    let select = json!({"sql": format!("SELECT id FROM docs AS OF {as_of}")}).to_string();
    let reply = server.post("/v1/sql", &select).expect("answered");
    let rows = reply["rows"].as_array().cloned().unwrap_or_default();
    let found: Vec<&str> = rows.iter().filter_map(|row| row[0].as_str()).collect();
    for (key, (acknowledged, sent)) in pushes {
        let count = found.iter().filter(|id| *id == key).count() as u64;
        assert!(count <= 1, "round {round}: {key} is there {count} times");
        assert!(
            *acknowledged == 0 || count == 1,
            "round {round}: {key} was acknowledged {acknowledged} times and is gone"
        );
        if count == 1 {
            let document = server
                .get(&format!("/v1/documents/docs/{key}"))
                .expect("answered");
            let document: Json = serde_json::from_str(&document).expect("JSON");
            let version = document["version"].as_u64().expect("a version");
            assert!(
                (*acknowledged..=*sent).contains(&version),
                "round {round}: {key} has version {version}, {acknowledged} of {sent} acknowledged"
            );
        }
    }
}
