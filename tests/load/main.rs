//! The program watched from outside: under load, idle, left by its clients, and its spans.
//!
//! Load: 200 concurrent clients over HTTP for a minute while 50 documents a second change.
//! The real binary, the real model, short texts. Each client asks again when it is answered (closed
//! loop, keep-alive), so questions/s is what the machine gives and latency is 200 / that. Ignored by
//! default; the command is
//!
//! ```text
//! cargo test --release --workspace --test load -- --ignored --nocapture
//! ```
//!
//! `HEADWATER_LOAD_SECONDS` shortens it.

mod gone;
mod idle;
#[path = "../support/server.rs"]
mod server;
mod simple;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use server::Server;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const CLIENTS: usize = 200;
const DOCUMENTS: usize = 1_000;
const CHANGES_PER_SECOND: usize = 50;
/// Documents of one request: ten requests a second.
const CHANGES_PER_REQUEST: usize = 5;
const P99_MAX: Duration = Duration::from_millis(500);
const AGE_MAX_MICROS: u64 = 1_000_000;
const RESIDENT_MAX: u64 = 2 << 30;

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE INDEX found ON docs USING HYBRID (body) EMBED WITH minilm;
";

/// Resident bytes, where the system tells.
fn resident_bytes(server: &Server) -> Option<u64> {
    let path = format!("/proc/{}/statm", server.id());
    let text = std::fs::read_to_string(path).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// One kept-alive connection that asks and waits.
struct Client {
    stream: BufReader<TcpStream>,
    address: String,
}

impl Client {
    async fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).await.expect("listening");
        stream.set_nodelay(true).expect("a TCP socket");
        Client {
            stream: BufReader::new(stream),
            address: address.to_owned(),
        }
    }

    /// Sends a request; the status and the body.
    async fn post(&mut self, path: &str, kind: &str, body: &str) -> std::io::Result<(u16, String)> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let request = [head.as_bytes(), body.as_bytes()].concat();
        self.stream.get_mut().write_all(&request).await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no status: {line:?}")))?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

const TOPICS: [&str; 8] = [
    "resetting a password",
    "an outage in the region",
    "exporting an invoice",
    "rotating an access key",
    "a webhook that is retried",
    "quota of the queue",
    "two factor login",
    "deleting an account",
];

fn text(n: usize) -> String {
    format!("note {n} about {} for customer {}", TOPICS[n % 8], n % 97)
}

fn question(n: usize) -> String {
    format!("how does {} work for customer {}?", TOPICS[n % 8], n % 16)
}

fn lines(keys: impl Iterator<Item = usize>, seed: usize) -> String {
    let lines = keys.map(|key| {
        let value = json!({"body": text(key + seed)});
        format!(
            "{}\n",
            json!({"op": "upsert", "key": format!("d{key}"), "value": value})
        )
    });
    lines.collect()
}

fn now_micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(since.as_micros()).expect("before the year 500000")
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    oldest_micros: u64,
    errors: Vec<String>,
}

async fn ask(address: String, number: usize, stop: Arc<AtomicBool>) -> Seen {
    let mut client = Client::connect(&address).await;
    let mut seen = Seen::default();
    let mut n = number;
    while !stop.load(Ordering::Relaxed) {
        let body = json!({"index": "found", "query": question(n), "k": 5}).to_string();
        n += 7;
        let started = Instant::now();
        match client.post("/v1/search", "application/json", &body).await {
            Ok((200, reply)) => {
                seen.latencies.push(started.elapsed());
                let as_of = reply.split_once("\"as_of\":").map(|(_, rest)| rest);
                let digits = as_of.map(|rest| rest.split(|c: char| !c.is_ascii_digit()));
                let as_of: Option<u64> = digits.and_then(|mut d| d.next()?.parse().ok());
                match as_of {
                    Some(at) => {
                        seen.oldest_micros =
                            seen.oldest_micros.max(now_micros().saturating_sub(at));
                    }
                    None => seen.errors.push(format!("no as_of: {reply}")),
                }
                if reply.contains("\"hits\":[]") {
                    seen.errors.push(format!("nothing found: {reply}"));
                }
            }
            Ok((status, reply)) => seen.errors.push(format!("{status}: {reply}")),
            Err(error) => {
                seen.errors.push(error.to_string());
                return seen;
            }
        }
    }
    seen
}

/// Changes documents at the given rate; how many were taken, and what failed.
async fn change(address: String, stop: Arc<AtomicBool>, taken: Arc<AtomicU64>) -> Vec<String> {
    let mut client = Client::connect(&address).await;
    let mut errors = Vec::new();
    let period = Duration::from_secs(1) * CHANGES_PER_REQUEST as u32 / CHANGES_PER_SECOND as u32;
    let mut clock = tokio::time::interval(period);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        clock.tick().await;
        n += 1;
        let first = (n - 1) * CHANGES_PER_REQUEST;
        let keys = (0..CHANGES_PER_REQUEST).map(|i| (first + i) % DOCUMENTS);
        let body = lines(keys, n * 131);
        let path = "/v1/sources/docs/documents";
        match client.post(path, "application/x-ndjson", &body).await {
            Ok((202, _)) => {
                taken.fetch_add(CHANGES_PER_REQUEST as u64, Ordering::Relaxed);
            }
            Ok((status, reply)) => errors.push(format!("push: {status}: {reply}")),
            Err(error) => errors.push(format!("push: {error}")),
        }
    }
    errors
}

#[test]
#[ignore = "a minute of full load; run by name"]
fn two_hundred_clients_are_answered_while_documents_change() {
    let seconds = std::env::var("HEADWATER_LOAD_SECONDS").ok();
    let seconds: u64 = seconds.map_or(60, |text| text.parse().expect("a number of seconds"));
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path(), PIPELINE, &[]);
    let address = server.url.trim_start_matches("http://").to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let stop = Arc::new(AtomicBool::new(false));
    let taken = Arc::new(AtomicU64::new(0));
    let (mut seen, mut errors, mut resident) = (Vec::new(), Vec::new(), 0);
    let started = runtime.block_on(async {
        let mut first = Client::connect(&address).await;
        let path = "/v1/sources/docs/documents?wait=visible&timeout_ms=60000";
        let body = lines(0..DOCUMENTS, 0);
        let filled = first.post(path, "application/x-ndjson", &body).await;
        let filled = filled.expect("filled");
        assert_eq!(filled.0, 200, "{}", filled.1);
        // The questions' vectors, so that the first second is like the others.
        for n in 0..128 {
            let body = json!({"index": "found", "query": question(n), "k": 5}).to_string();
            let answer = first.post("/v1/search", "application/json", &body).await;
            assert_eq!(answer.expect("answered").0, 200);
        }
        let started = Instant::now();
        let changing = tokio::spawn(change(
            address.clone(),
            Arc::clone(&stop),
            Arc::clone(&taken),
        ));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| tokio::spawn(ask(address.clone(), n, Arc::clone(&stop))))
            .collect();
        while started.elapsed() < Duration::from_secs(seconds) {
            tokio::time::sleep(Duration::from_millis(250)).await;
            resident = resident.max(resident_bytes(&server).unwrap_or(0));
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            seen.push(client.await.expect("no panic"));
        }
        errors.extend(changing.await.expect("no panic"));
        started.elapsed()
    });
    let mut latencies: Vec<Duration> = Vec::new();
    let mut oldest_micros = 0;
    for one in seen {
        latencies.extend(one.latencies);
        errors.extend(one.errors);
        oldest_micros = oldest_micros.max(one.oldest_micros);
    }
    latencies.sort();
    assert!(!latencies.is_empty(), "nothing was answered: {errors:?}");
    let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
    let taken = taken.load(Ordering::Relaxed);
    println!(
        "{CLIENTS} clients, {:.1} s: {} questions, {:.0} questions/s; p50 {:.1?} p99 {:.1?} max {:.1?}",
        started.as_secs_f64(),
        latencies.len(),
        latencies.len() as f64 / started.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!(
        "{:.1} documents/s changed; oldest answer {:.0} ms; resident {} MiB; {} errors",
        taken as f64 / started.as_secs_f64(),
        oldest_micros as f64 / 1e3,
        resident >> 20,
        errors.len()
    );
    assert!(
        errors.is_empty(),
        "{} errors, first {}",
        errors.len(),
        errors[0]
    );
    assert!(at(0.99) < P99_MAX, "p99 {:?}", at(0.99));
    assert!(oldest_micros < AGE_MAX_MICROS, "{oldest_micros} µs old");
    assert!(resident < RESIDENT_MAX, "{resident} bytes");
    let expected = (CHANGES_PER_SECOND as u64 * seconds) * 9 / 10;
    assert!(
        taken >= expected,
        "{taken} documents changed, not {expected}"
    );
}
