//! Figures of the log on this disk: not a test, run by
//! `cargo test -p headwater-engine --test log figures -- --ignored --nocapture`.
//!
//! Isolated: the log alone, `LocalStore` in the system's temporary folder. Data: stages of one
//! 1 KiB row. Units: milliseconds from append to callback, MB/s of replay and of the vectors' scan.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use engine::durable::{
    EmbeddingStore, InputLog, LocalStore, LogOptions, Record, Stage, VectorOptions,
};
use engine::model::{Change, ContentHash, Key, ModelId, ObjectId, Row};

fn stage(sequence: u64) -> Record {
    let row = Some(Row::from_bytes(&[7; 1024]));
    let change = Change {
        key: Key::text(&sequence.to_string()),
        row,
        version: sequence,
    };
    Record::Stage(Stage {
        source: ObjectId(1),
        lane: String::new(),
        sequence,
        changes: std::sync::Arc::new(vec![change]),
        resolved: Vec::new(),
        dead_letters: Vec::new(),
        position: None,
        idempotency: None,
        at_wall: 0,
    })
}

/// Appends `count` records, at most `in_flight` of them unacknowledged; milliseconds, sorted.
fn latencies(log: &InputLog, count: u64, in_flight: usize) -> Vec<f64> {
    let (sender, receiver) = channel::<f64>();
    let mut all = Vec::new();
    for n in 0..count {
        if n as usize >= in_flight {
            all.push(receiver.recv().unwrap());
        }
        let (sender, started) = (sender.clone(), Instant::now());
        let done = move |_| sender.send(started.elapsed().as_secs_f64() * 1e3).unwrap();
        log.append(stage(n + 1), Some(Box::new(done)));
    }
    drop(sender);
    all.extend(receiver.iter());
    all.sort_by(f64::total_cmp);
    all
}

#[test]
#[ignore = "a measurement"]
fn figures() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::open(folder.path()).unwrap());
    let (log, _) = InputLog::open(store.clone(), LogOptions::default()).unwrap();
    for (count, in_flight) in [(500, 1), (5_000, 64), (100_000, 4_096)] {
        let started = Instant::now();
        let all = latencies(&log, count, in_flight);
        let at = |q: f64| all[((all.len() - 1) as f64 * q) as usize];
        println!(
            "{in_flight} in flight: p50 {:.2} ms, p99 {:.2} ms, {:.0} records/s",
            at(0.5),
            at(0.99),
            count as f64 / started.elapsed().as_secs_f64()
        );
    }
    drop(log);
    let started = Instant::now();
    let (_log, replay) = InputLog::open(store.clone(), LogOptions::default()).unwrap();
    let bytes = replay.bytes_total();
    let events = replay.filter(|event| event.is_ok()).count();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "replay: {events} events, {:.0} MB/s",
        bytes as f64 / 1e6 / seconds
    );

    let vectors = EmbeddingStore::open(store.clone(), VectorOptions::default()).unwrap();
    let count = 100_000u64;
    let started = Instant::now();
    for n in 0..count {
        let vector = [n as f32; 384];
        vectors.put(ModelId([1; 16]), ContentHash::of(&n.to_le_bytes()), &vector);
    }
    vectors.flush().unwrap();
    println!(
        "{count} vectors x 384 put and flushed: {:.2} s",
        started.elapsed().as_secs_f64()
    );
    drop(vectors);
    let started = Instant::now();
    let vectors = EmbeddingStore::open(store, VectorOptions::default()).unwrap();
    assert_eq!(vectors.len(), count as usize);
    println!("opened again: {:.2} s", started.elapsed().as_secs_f64());
}
