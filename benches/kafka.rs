//! How fast a topic becomes upserted rows, beside what its client alone can read.
//!
//! Isolated: Kafka to visible rows, nothing embedded. `count`: librdkafka polled to the topic's end,
//! bytes counted. `parse`: the same and `serde_json` makes a tree of every value. `staged`: our source
//! (fetch, JSON, envelope, table, rows) into a sink that only looks at positions. `whole`: the engine
//! in process with its log on disk, from `CREATE SOURCE` to the answer of a question that asks for the
//! topic's last offsets; 1 and 2 workers.
//! Data: seed 42. `small`: 1 M upserts, text key, about 160 bytes of JSON, distinct keys; `debezium`:
//! 200 k events without schemas, 2 kB of text (10 creates, 8 updates, a delete and its tombstone of
//! 20). Each in 1 and in 4 partitions, uncompressed, in the broker's page cache.
//! Unit: messages/s and MB/s (10⁶ bytes of keys and values) of wall time; the same per second of
//! processor time of the measured process, all its threads together (per core); MiB resident at most.
//! `×` is the rate beside `parse`, the floor's 0.4; each step is a process of its own.
//! The broker, and a client's wait for it, use the same cores: with two of them the wall rates of
//! all steps are too low, and per-core figures are the ones to compare with another machine's.
//!
//! `HEADWATER_MESSAGES` (of `small`; `debezium` has a fifth) and `HEADWATER_ROUNDS` (3; the median by
//! wall time is shown) set the sizes. `HEADWATER_PATHWAY_PYTHON=venv/bin/python`, where `pip install
//! pathway` was done, adds Pathway's reader of `small` (`benches/compare/kafka_pathway.py`).

#[path = "support/clustered.rs"]
mod clustered;
#[path = "support/messages.rs"]
mod messages;
// Its own unit tests are not built here, what they import is.
#[allow(unused_imports)]
#[path = "../tests/support/servers/mod.rs"]
mod servers;
#[path = "support/source_alone.rs"]
mod source_alone;
#[path = "support/whole.rs"]
mod whole;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use connectors::kafka::probe::{Work, read_to_end};
use messages::{Shape, Topic};
use queries::api::Backend;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use servers::Run;
use servers::kafka::Kafka;
use whole::Whole;

/// What a child process measures; without it this process is the parent.
const STEP: &str = "HEADWATER_BENCH_STEP";
/// A Python that has Pathway, which then is measured, too.
const PATHWAY: &str = "HEADWATER_PATHWAY_PYTHON";
/// A step that takes longer has lost messages.
const PATIENCE: Duration = Duration::from_secs(900);

fn main() {
    match std::env::var(STEP) {
        Ok(step) => measure(&serde_json::from_str(&step).expect("a task")),
        Err(_) => all(),
    }
}

fn all() {
    let number = |name: &str, or| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(or)
    };
    let small = number("HEADWATER_MESSAGES", 1_000_000);
    let rounds = number("HEADWATER_ROUNDS", 3).max(1);
    let run = Run::new("bench");
    let kafka = Kafka::start(&run);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("seed 42, {rounds} rounds, broker and steps share {cores} cores");
    for (shape, partitions) in [
        (Shape::Small, 1),
        (Shape::Small, 4),
        (Shape::Debezium, 1),
        (Shape::Debezium, 4),
    ] {
        let messages = match shape {
            Shape::Small => small,
            Shape::Debezium => small / 5,
        };
        let topic = messages::write(&kafka, shape, partitions, messages);
        table(&kafka, &topic, rounds);
        kafka.delete_topic(&topic.name);
    }
}

/// Measures all steps on a topic. Rounds alternate the steps, so that a busy machine hurts all alike.
fn table(kafka: &Kafka, topic: &Topic, rounds: u64) {
    let mut steps = vec![
        ("count", 0),
        ("parse", 0),
        ("staged", 0),
        ("whole", 1),
        ("whole", 2),
    ];
    // Its reader of Debezium wants messages that carry their schemas.
    if std::env::var_os(PATHWAY).is_some() && topic.shape == Shape::Small {
        steps.extend([("pathway", 1), ("pathway", 2)]);
    }
    let mut found: Vec<Vec<Figures>> = vec![Vec::new(); steps.len()];
    for _ in 0..rounds {
        for ((step, workers), found) in steps.iter().zip(&mut found) {
            let task = Task {
                step: (*step).to_owned(),
                workers: *workers,
                brokers: kafka.bootstrap.clone(),
                topic: topic.clone(),
            };
            found.push(task.run());
        }
    }
    let middle = |found: &mut Vec<Figures>| {
        found.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        found[found.len() / 2]
    };
    let figures: Vec<Figures> = found.iter_mut().map(middle).collect();
    let mb = figures[0].bytes as f64 / 1e6;
    println!(
        "\n{}: {} messages, {mb:.1} MB, {} live rows",
        topic.name, topic.messages, topic.live
    );
    println!(
        "            wall s  messages/s    MB/s    cpu s  messages/s/core  MB/s/core   MiB      ×"
    );
    let count = topic.messages as f64;
    for ((step, workers), found) in steps.iter().zip(&figures) {
        let (wall, cpu) = (found.seconds, found.cpu.max(0.01));
        let name = match workers {
            0 => (*step).to_owned(),
            n => format!("{step} {n}w"),
        };
        println!(
            "{name:11}{wall:7.2} {:11.0} {:7.1} {:8.2} {:16.0} {:10.1} {:5.0}  {:5.2}",
            count / wall,
            mb / wall,
            found.cpu,
            count / cpu,
            mb / cpu,
            found.peak_mib,
            figures[1].seconds / wall
        );
    }
}

/// One measurement, as it is told to a process of its own.
#[derive(Serialize, Deserialize)]
struct Task {
    step: String,
    workers: usize,
    brokers: String,
    topic: Topic,
}

/// What a step found.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Figures {
    seconds: f64,
    /// Seconds of processor time.
    cpu: f64,
    peak_mib: f64,
    /// Known to the probes alone.
    bytes: u64,
}

impl Task {
    fn run(&self) -> Figures {
        let text = serde_json::to_string(self).expect("plain values");
        let mut command = match &*self.step {
            "pathway" => self.pathway(),
            _ => Command::new(std::env::current_exe().expect("this program")),
        };
        command.env(STEP, &text).stderr(Stdio::inherit());
        let output = command.output().expect("this program runs");
        assert!(output.status.success(), "{text}: {}", output.status);
        let said = String::from_utf8_lossy(&output.stdout);
        let figures = said.lines().last().unwrap_or_default();
        serde_json::from_str(figures).unwrap_or_else(|error| panic!("{error}: \"{said}\""))
    }

    fn pathway(&self) -> Command {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/benches/compare/kafka_pathway.py"
        );
        let mut command = Command::new(std::env::var_os(PATHWAY).expect("looked at before"));
        let shape = format!("{:?}", self.topic.shape);
        command
            .args([script, &self.brokers, &self.topic.name, &shape])
            .arg(self.topic.live.to_string())
            .env("PATHWAY_THREADS", self.workers.to_string());
        command
    }
}

/// In the child.
fn measure(task: &Task) {
    let whole = (task.workers > 0).then(|| Whole::start(task.workers, ""));
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let (mut bytes, mut elapsed) = (0, None);
    match (&*task.step, &whole) {
        ("count", _) => (bytes, elapsed) = probe(task, Work::Count),
        ("parse", _) => (bytes, elapsed) = probe(task, Work::Parse),
        ("staged", _) => source_alone::read(&task.brokers, &task.topic),
        (_, Some(whole)) => visible(task, whole),
        (step, None) => panic!("{step} needs workers"),
    }
    let figures = Figures {
        // Closing the client is no part of reading.
        seconds: elapsed.unwrap_or_else(|| begun.elapsed()).as_secs_f64(),
        cpu: cpu_seconds() - cpu,
        peak_mib: peak_mib(),
        bytes,
    };
    println!("{}", serde_json::to_string(&figures).expect("numbers"));
}

/// Bytes and time.
fn probe(task: &Task, work: Work) -> (u64, Option<Duration>) {
    let read = read_to_end(&task.brokers, &task.topic.name, work).expect("a broker that answers");
    assert_eq!((read.messages, read.invalid), (task.topic.messages, 0));
    (read.bytes, Some(read.elapsed))
}

/// Declares the source and waits for a question that sees its topic's last messages.
fn visible(task: &Task, whole: &Whole) {
    let (brokers, topic) = (&task.brokers, &task.topic.name);
    let (columns, tail, key) = match task.topic.shape {
        Shape::Small => (
            "id TEXT PRIMARY KEY, kind TEXT, n BIGINT, body TEXT",
            "KEY FORMAT TEXT VALUE FORMAT JSON ENVELOPE UPSERT",
            "'m0'",
        ),
        Shape::Debezium => (
            "id BIGINT PRIMARY KEY, tenant TEXT, title TEXT, body TEXT",
            "FORMAT JSON ENVELOPE DEBEZIUM",
            "1",
        ),
    };
    let begun = Instant::now();
    whole.declare(&format!(
        "CREATE SOURCE rows ({columns}) FROM KAFKA (BROKERS '{brokers}', TOPIC '{topic}') {tail};"
    ));
    for (partition, end) in task.topic.ends.iter().enumerate() {
        let last = end - 1;
        let question = format!(
            "SELECT id FROM rows WHERE id = {key} AS OF AT LEAST offset('rows', {partition}, {last})"
        );
        loop {
            let asked = whole.service.sql(question.clone(), Vec::new());
            match whole.runtime.block_on(asked).1 {
                None => break,
                Some(problem) if problem.status == 504 => {}
                Some(problem) => panic!("{problem:?}"),
            }
            assert!(begun.elapsed() < PATIENCE, "messages are missing");
        }
    }
    let sizes = whole.rows("SELECT rows, dead_letters FROM headwater.sources");
    assert_eq!(sizes, [[Json::from(task.topic.live), Json::from(0)]]);
}

/// Seconds of processor time of this process.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have spaces; user and system time, in hundredths.
    let fields = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// The most MiB that were resident.
fn peak_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
