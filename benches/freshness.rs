//! How soon a change is found: from the acknowledged (synced) push to the first reply that has it.
//!
//! Isolated: the whole engine in process (decode, log with its sync, tick, dataflow, shard,
//! question) on a data folder on disk; no HTTP, one worker. Vectors are precomputed, except in the
//! last line, which has the model in the path.
//! Data: 10,000 rows × 384 loaded first, clustered generator (anchor A3: 2,000 centres), seed
//! printed; each probe upserts one new row. Found: a search by the probe's own vector (k 1) returns
//! its key; a tight loop asks again until then, so the figure contains one to two questions. The
//! loop takes processor time from the engine it measures. `at_least` passes the push's token
//! instead and asks once. The model line pushes 60 words with one word of its own and asks for that
//! word, and counts a probe only when nothing was `pending`.
//! Unit: milliseconds (p50, p99, max); MiB resident. Open loop: 600 probes at 100/s, 200 at 10/s;
//! `HEADWATER_PROBES=10000` sets the number at 10/s (1,000 s; the default is too few for more than
//! a rough p99: it is the third-largest of 200).

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/whole.rs"]
mod whole;

use std::time::{Duration, Instant};

use clustered::Clustered;
use queries::api::{AtLeast, SearchRequest};
use rand::RngExt;
use serde_json::json;
use whole::{Whole, line, pace, resident_mib, upsert};

const SEED: u64 = 42;
const DIMENSIONS: usize = 384;
const LOADED: usize = 10_000;
/// A probe that is not found by then ends the bench.
const PATIENCE: Duration = Duration::from_secs(20);

const PIPELINE: &str = "
CREATE SOURCE rows FROM PUSH (id BIGINT PRIMARY KEY, embedding VECTOR(384));
CREATE MODEL vecs FROM COLUMN WITH (DIMENSIONS = 384);
CREATE INDEX found ON rows USING VECTOR (embedding) CHUNK BY none EMBED WITH vecs;
";

const MODEL_PIPELINE: &str = "
CREATE SOURCE texts FROM PUSH (id BIGINT PRIMARY KEY, body TEXT);
CREATE MODEL minilm FROM 'sentence-transformers/all-MiniLM-L6-v2';
CREATE INDEX read ON texts USING HYBRID (body) CHUNK BY none EMBED WITH minilm;
";

/// How a probe looks for its row.
#[derive(Clone, Copy, PartialEq)]
enum Look {
    Poll,
    AtLeast,
}

fn main() {
    let at_ten = std::env::var("HEADWATER_PROBES")
        .ok()
        .and_then(|n| n.parse().ok());
    let at_ten: usize = at_ten.unwrap_or(200);
    println!("seed {SEED}, {LOADED} rows × {DIMENSIONS} loaded, 1 worker");
    let mut generator = Clustered::new(SEED, 2_000, DIMENSIONS);
    let whole = Whole::start(1, PIPELINE);
    let mut next = load(&whole, &mut generator);
    println!("{:.0} MiB resident when loaded", resident_mib());
    let mut bare = sync_times();
    line("bare: append 4 KiB and fdatasync", &mut bare);
    for (look, rate, count) in [
        (Look::Poll, 100.0, 600),
        (Look::Poll, 10.0, at_ten),
        (Look::AtLeast, 10.0, 100),
    ] {
        vectors(&whole, &mut generator, &mut next, look, rate, count);
    }
    drop(whole);
    with_model(&mut generator, 100);
    println!("{:.0} MiB resident at the end", resident_mib());
}

fn load(whole: &Whole, generator: &mut Clustered) -> u64 {
    let numbers: Vec<usize> = (0..LOADED).collect();
    for block in numbers.chunks(200) {
        let lines: Vec<String> = block
            .iter()
            .map(|id| row(*id as u64, &generator.draw()))
            .collect();
        whole.push("rows", &lines);
    }
    let vector = generator.draw();
    let lines = [row(LOADED as u64, &vector)];
    let token = whole.push("rows", &lines).token;
    let request = SearchRequest {
        at_least: Some(AtLeast::Token(token)),
        timeout_ms: Some(60_000),
        ..by_vector(&vector)
    };
    whole.search(request).expect("the rows are loaded");
    LOADED as u64 + 1
}

fn row(id: u64, vector: &[f32]) -> String {
    upsert(&json!(id), &json!({ "embedding": vector }))
}

fn by_vector(vector: &[f32]) -> SearchRequest {
    SearchRequest {
        index: "found".to_owned(),
        vector: Some(vector.to_vec()),
        k: Some(1),
        select: Some(Vec::new()),
        ..SearchRequest::default()
    }
}

/// What the disk alone takes: the floor of an acknowledgement.
fn sync_times() -> Vec<Duration> {
    use std::io::Write;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    let mut file = tempfile::tempfile_in(folder).expect("a file");
    let append = |_| {
        let started = Instant::now();
        file.write_all(&[7; 4096]).expect("room");
        file.sync_data().expect("a disk");
        started.elapsed()
    };
    (0..200).map(append).collect()
}

fn vectors(
    whole: &Whole,
    generator: &mut Clustered,
    next: &mut u64,
    look: Look,
    rate: f64,
    count: usize,
) {
    let (mut acks, mut founds, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    let mut questions = 0;
    let start = Instant::now();
    for number in 0..count {
        let vector = generator.draw();
        let (id, lines) = (*next, [row(*next, &vector)]);
        *next += 1;
        pace(start, number, rate);
        let pushed = Instant::now();
        let token = whole.push("rows", &lines).token;
        let acked = Instant::now();
        loop {
            questions += 1;
            let mut request = by_vector(&vector);
            if look == Look::AtLeast {
                request.at_least = Some(AtLeast::Token(token.clone()));
            }
            let reply = whole.search(request).expect("an answer");
            if reply.hits.first().is_some_and(|hit| hit.document.key == id) {
                break;
            }
            assert!(acked.elapsed() < PATIENCE, "row {id} is not found");
        }
        acks.push(acked - pushed);
        founds.push(acked.elapsed());
        totals.push(pushed.elapsed());
    }
    let how = match look {
        Look::Poll => "polling",
        Look::AtLeast => "at_least",
    };
    let name = |what: &str| format!("{rate:.0}/s {how}: {what}");
    line(&name("push → acknowledged"), &mut acks);
    line(&name("acknowledged → found"), &mut founds);
    line(&name("push → found"), &mut totals);
    println!(
        "{:44} {:.1} questions a probe",
        "",
        f64::from(questions) / count as f64
    );
}

fn with_model(generator: &mut Clustered, count: usize) {
    let whole = Whole::start(1, MODEL_PIPELINE);
    let (mut acks, mut founds, mut late) = (Vec::new(), Vec::new(), 0);
    let start = Instant::now();
    for number in 0..count {
        let mut word = || format!("river{}", generator.rng.random_range(0..5_000));
        let text: Vec<String> = (0..60).map(|_| word()).collect();
        let body = format!("{} zq{number}x", text.join(" "));
        let lines = [upsert(&json!(number), &json!({ "body": body }))];
        pace(start, number, 2.0);
        let pushed = Instant::now();
        whole.push("texts", &lines);
        let acked = Instant::now();
        let pending = loop {
            let request = SearchRequest {
                index: "read".to_owned(),
                query: Some(format!("zq{number}x")),
                mode: Some("keyword".to_owned()),
                k: Some(1),
                ..SearchRequest::default()
            };
            let reply = whole.search(request).expect("an answer");
            let key = reply.hits.first().map(|hit| &hit.document.key);
            if key.is_some_and(|key| *key == number) {
                break reply.pending;
            }
            assert!(acked.elapsed() < PATIENCE, "text {number} is not found");
            // Unlike a shard's scan, the model needs the processor that a tight loop would take.
            std::thread::sleep(Duration::from_micros(500));
        };
        late += usize::from(pending > 0);
        if pending == 0 {
            acks.push(acked - pushed);
            founds.push(acked.elapsed());
        }
    }
    line("model, 2/s: push → acknowledged", &mut acks);
    line("model, 2/s: acknowledged → found", &mut founds);
    println!("{:44} {late} probes were bound without their vector", "");
}
