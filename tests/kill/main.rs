//! `kill -9` at random moments under load: nothing acknowledged is lost, nothing is doubled, no
//! stored vector is computed again.
//!
//! The real binary, the real model, a real folder. Thirty times: several clients push documents, one
//! request after the other each, and the server is killed while they do; it is started again, and
//! compared with the list of acknowledged pushes, at a time that is at least the last acknowledged push's:
//! its token is good after the restart, too. A push is acknowledged when its reply was received: what the
//! kill cuts off counts as sent. The seed of the moments and keys is printed.
//!
//! Every pushed text is another one. So from one comparison to the next, vectors found at the start and
//! texts embedded since grow by no more than the pushes that were sent; a push that was cut off may have
//! left a vector and no row, or nothing.
//!
//! Beside it, the demo ([`demo`]): it starts the real binary with the real model, too.

mod demo;
#[path = "../support/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};
use server::{Server, log};

const KILLS: usize = 30;
/// Clients that push at the same time.
const CLIENTS: u64 = 4;

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH minilm;
";

/// The server, spoken to, and its folder.
struct Running(Server, PathBuf);

impl Running {
    fn start(folder: &Path) -> Running {
        let server = Server::start(folder, PIPELINE, &["--workers", "1"]);
        Running(server, folder.to_owned())
    }

    fn post(&self, path: &str, body: &str) -> Result<Json, String> {
        post(&agent(), &self.0.url, path, body)
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
            .fold(0.0, |sum, value| sum + value)
    }

    fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(180);
        while self.get("/ready").is_err() {
            assert!(Instant::now() < deadline, "not ready: {}", log(&self.1));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

fn post(agent: &ureq::Agent, url: &str, path: &str, body: &str) -> Result<Json, String> {
    let mut reply = agent
        .post(format!("{url}{path}"))
        .header("content-type", "application/json")
        .send(body)
        .map_err(|error| error.to_string())?;
    let text = reply
        .body_mut()
        .read_to_string()
        .map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// What was sent and what was acknowledged, by all clients.
#[derive(Default)]
struct Ledger {
    /// key → (acknowledged pushes, pushes sent).
    pushes: Mutex<BTreeMap<String, (u64, u64)>>,
    sent: AtomicU64,
    /// Requests without a reply: a kill fell into them.
    cut: AtomicU64,
    /// The number and the token of the last acknowledged write.
    token: Mutex<Option<(u64, Json)>>,
}

impl Ledger {
    fn pushes(&self) -> MutexGuard<'_, BTreeMap<String, (u64, u64)>> {
        self.pushes.lock().expect("no panic while held")
    }

    fn token(&self) -> Option<Json> {
        let token = self.token.lock().expect("no panic while held");
        token.as_ref().map(|(_, token)| token.clone())
    }

    /// Writes have numbers in the order of the log: `w1.<source>.<number>.<lane>`.
    fn acknowledged(&self, key: &str, token: &Json) {
        self.pushes().get_mut(key).expect("noted when sent").0 += 1;
        let number = token.as_str().and_then(|text| text.split('.').nth(2));
        let number = number.and_then(|number| number.parse().ok());
        let number: u64 = number.unwrap_or_else(|| panic!("a token: {token}"));
        let mut last = self.token.lock().expect("no panic while held");
        if last.as_ref().is_none_or(|(before, _)| *before < number) {
            *last = Some((number, token.clone()));
        }
    }

    /// Pushes until the server is gone.
    fn load(&self, url: &str, seed: u64, is_killed: &AtomicBool) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let agent = agent();
        while !is_killed.load(Ordering::Relaxed) {
            let key = format!("k{}", rng.random_range(0..200));
            let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
            self.pushes().entry(key.clone()).or_default().1 += 1;
            let body = format!("document {key} says number {number} of the stream");
            let line = json!([{"op": "upsert", "key": key, "value": {"body": body}}]).to_string();
            match post(&agent, url, "/v1/sources/docs/documents", &line) {
                Ok(reply) => self.acknowledged(&key, &reply["token"]),
                Err(_) => {
                    self.cut.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

/// What was known at the last comparison.
#[derive(Default)]
struct Known {
    /// Stored or computed.
    vectors: f64,
    /// Texts sent.
    sent: u64,
}

#[test]
fn thirty_kills_lose_nothing_and_double_nothing() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let (ledger, mut known) = (Ledger::default(), Known::default());
    for round in 0..KILLS {
        let server = Running::start(folder.path());
        server.wait_ready();
        check(&server, &ledger, &mut known, round);
        let is_killed = AtomicBool::new(false);
        let url = server.0.url.clone();
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let (seed, ledger, url, is_killed) = (rng.random(), &ledger, &*url, &is_killed);
                scope.spawn(move || ledger.load(url, seed, is_killed));
            }
            std::thread::sleep(Duration::from_millis(rng.random_range(20..600)));
            // While the clients wait for their replies.
            drop(server);
            is_killed.store(true, Ordering::Relaxed);
        });
    }
    let server = Running::start(folder.path());
    server.wait_ready();
    check(&server, &ledger, &mut known, KILLS);
    let (sent, cut) = (ledger.sent.into_inner(), ledger.cut.into_inner());
    println!("{KILLS} kills, {sent} pushes, {cut} of them cut off by a kill");
    assert!(cut as usize >= KILLS / 2, "kills fall into requests: {cut}");
    drop(server);
}

/// Every acknowledged push is there, none counts twice, and no stored vector was computed again: neither
/// to come back nor to answer.
fn check(server: &Running, ledger: &Ledger, known: &mut Known, round: usize) {
    let Some(token) = ledger.token() else { return };
    let request = json!({
        "index": "found", "query": "document", "mode": "keyword", "k": 1,
        "at_least": token, "timeout_ms": 60_000,
    });
    let reply = server.post("/v1/search", &request.to_string());
    let reply = reply.expect("the last acknowledged push becomes visible");
    let as_of = reply["as_of"].as_u64().expect("a time");
    let select = json!({"sql": format!("SELECT id FROM docs AS OF {as_of}")}).to_string();
    let reply = server.post("/v1/sql", &select).expect("answered");
    let rows = reply["rows"].as_array().cloned().unwrap_or_default();
    let found: Vec<&str> = rows.iter().filter_map(|row| row[0].as_str()).collect();
    for (key, (acknowledged, _)) in ledger.pushes().iter() {
        let count = found.iter().filter(|id| *id == key).count() as u64;
        assert!(count <= 1, "round {round}: {key} is there {count} times");
        assert!(
            *acknowledged == 0 || count == 1,
            "round {round}: {key} was acknowledged {acknowledged} times and is gone"
        );
    }
    versions(server, ledger, round);
    // Everything that was taken is embedded now.
    server.wait_ready();
    let stored = server.metric("headwater_vectors_opened");
    let embedded = server.metric("headwater_embed_texts_total");
    let sent = ledger.sent.load(Ordering::Relaxed);
    let (vectors, fresh) = (stored + embedded, sent - known.sent);
    assert!(
        vectors <= known.vectors + fresh as f64,
        "round {round}: {stored} vectors were stored and {embedded} texts embedded since; before, {} \
         were known, and {fresh} texts were sent: some were embedded again",
        known.vectors
    );
    *known = Known { vectors, sent };
}

/// A key's version counts the pushes of it that were taken.
fn versions(server: &Running, ledger: &Ledger, round: usize) {
    for (key, (acknowledged, sent)) in ledger.pushes().iter() {
        let Ok(document) = server.get(&format!("/v1/documents/docs/{key}")) else {
            assert_eq!(*acknowledged, 0, "round {round}: {key} is no document");
            continue;
        };
        let document: Json = serde_json::from_str(&document).expect("JSON");
        let version = document["version"].as_u64().expect("a version");
        assert!(
            (*acknowledged..=*sent).contains(&version),
            "round {round}: {key} has version {version}, {acknowledged} of {sent} acknowledged"
        );
    }
}
