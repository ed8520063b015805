//! `kill -9` at random moments under load: nothing acknowledged is lost, nothing is doubled, no
//! stored vector is computed again.
//!
//! The real binary, the real model, a real folder. Thirty times: push documents one request after
//! another, kill the server somewhere in between, start it again, and compare with the list of
//! acknowledged pushes. The seed is printed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

const KILLS: usize = 30;

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH minilm;
";

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(folder: &Path) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_headwater"))
            .args([
                "run",
                "pipeline.sql",
                "--listen",
                "127.0.0.1:0",
                "--workers",
                "1",
            ])
            .arg("--data")
            .arg(folder.join("data"))
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(folder.join("server.log"))
                    .expect("a log file"),
            )
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let url = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("the server ended: {}", log(folder)));
            let line = line.expect("UTF-8");
            if let Some((_, url)) = line.split_once("listening on ") {
                break url.trim().to_owned();
            }
        };
        // Keep reading, so that the pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, url }
    }

    fn kill(mut self) {
        self.child.kill().expect("running");
        self.child.wait().expect("killed");
    }

    fn post(&self, path: &str, body: &str) -> Result<Json, String> {
        let mut reply = agent()
            .post(format!("{}{path}", self.url))
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
            .get(format!("{}{path}", self.url))
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

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("server.log")).unwrap_or_default()
}

#[test]
fn thirty_kills_lose_nothing_and_double_nothing() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("pipeline.sql"), PIPELINE).expect("writable");
    // key → (acknowledged pushes, pushes sent).
    let mut pushes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut sent = 0_u64;
    for round in 0..KILLS {
        let server = Server::start(folder.path());
        server.wait_ready(folder.path());
        let embedded = server.metric("headwater_embed_texts_total");
        let stored = server.metric("headwater_vectors_opened");
        assert!(
            stored + embedded <= sent as f64,
            "round {round}: {stored} stored and {embedded} embedded again of {sent} texts"
        );
        check(&server, &pushes, round);
        let until = Instant::now() + Duration::from_millis(rng.random_range(20..600));
        while Instant::now() < until {
            let key = format!("k{}", rng.random_range(0..200));
            let counts = pushes.entry(key.clone()).or_default();
            counts.1 += 1;
            sent += 1;
            let body = format!("document {key} says number {sent} of the stream");
            let line = json!([{"op": "upsert", "key": key, "value": {"body": body}}]).to_string();
            if server.post("/v1/sources/docs/documents", &line).is_ok() {
                counts.0 += 1;
            }
        }
        // The kill falls between two requests or into the work that follows them.
        server.kill();
    }
    let server = Server::start(folder.path());
    server.wait_ready(folder.path());
    check(&server, &pushes, KILLS);
    println!("{KILLS} kills, {sent} pushes");
    server.kill();
}

/// Every acknowledged push is there, and none counts twice.
fn check(server: &Server, pushes: &BTreeMap<String, (u64, u64)>, round: usize) {
    let select = json!({"sql": "SELECT id FROM docs"}).to_string();
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
