//! Topics for the Kafka bench, written over the tests' own protocol code, and what they come to.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::servers::kafka::Kafka;

const SEED: u64 = 42;
/// Below the broker's default `message.max.bytes`, which bounds a batch.
const BATCH_BYTES: usize = 800_000;

/// A shape of messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Shape {
    /// Upserts of distinct keys, about 160 bytes of JSON.
    Small,
    /// Debezium's JSON without schemas, rows with 2 kB of text: of 20 messages 10 are creates, 8
    /// updates, one a delete and one its tombstone.
    Debezium,
}

/// A topic that was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Topic {
    pub name: String,
    pub shape: Shape,
    pub messages: u64,
    /// The next offset of each partition.
    pub ends: Vec<u64>,
    /// Keys that have a row at the end.
    pub live: u64,
}

/// Writes a topic; a key stays in one partition.
pub fn write(kafka: &Kafka, shape: Shape, partitions: i32, messages: u64) -> Topic {
    let name = format!("{shape:?}-{partitions}").to_lowercase();
    kafka.create_topic(&name, partitions, &[]);
    let mut maker = Maker::new(shape);
    let mut batches: Vec<Batch> = (0..partitions).map(|_| Batch::default()).collect();
    let mut ends = vec![0; batches.len()];
    for number in 0..messages {
        let (id, key, value) = maker.next(number);
        let partition = id as usize % batches.len();
        batches[partition].add(key, value);
        ends[partition] += 1;
        if batches[partition].bytes > BATCH_BYTES {
            batches[partition].send(kafka, &name, partition);
        }
    }
    for (partition, batch) in batches.iter_mut().enumerate() {
        batch.send(kafka, &name, partition);
    }
    Topic {
        live: maker.live.len() as u64,
        name,
        shape,
        messages,
        ends,
    }
}

#[derive(Default)]
struct Batch {
    pairs: Vec<(String, Option<String>)>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, key: String, value: Option<String>) {
        self.bytes += key.len() + value.as_ref().map_or(0, String::len);
        self.pairs.push((key, value));
    }

    fn send(&mut self, kafka: &Kafka, topic: &str, partition: usize) {
        let pairs = self.pairs.iter();
        let pairs = pairs.map(|(key, value)| (Some(key.as_bytes()), value.as_deref()));
        let pairs: Vec<_> = pairs
            .map(|(key, value)| (key, value.map(str::as_bytes)))
            .collect();
        if !pairs.is_empty() {
            let partition = i32::try_from(partition).expect("few");
            kafka.produce(topic, partition, &pairs);
        }
        *self = Batch::default();
    }
}

/// Makes messages from the seed.
struct Maker {
    shape: Shape,
    rng: ChaCha8Rng,
    live: Vec<u64>,
    created: u64,
    deleted: u64,
}

impl Maker {
    fn new(shape: Shape) -> Maker {
        Maker {
            shape,
            rng: ChaCha8Rng::seed_from_u64(SEED),
            live: Vec::new(),
            created: 0,
            deleted: 0,
        }
    }

    /// Row, key and value of a message.
    fn next(&mut self, number: u64) -> (u64, String, Option<String>) {
        match self.shape {
            Shape::Small => {
                self.live.push(number);
                let value = json!({
                    "id": number,
                    "kind": format!("k{}", number % 10),
                    "n": number * 7,
                    "body": self.text(100),
                });
                (number, format!("m{number}"), Some(value.to_string()))
            }
            Shape::Debezium => {
                let (id, value) = self.change(number);
                (id, format!("{{\"id\":{id}}}"), value)
            }
        }
    }

    fn change(&mut self, number: u64) -> (u64, Option<String>) {
        let at = self.rng.random_range(0..self.live.len().max(1));
        match number % 20 {
            0..10 => {
                self.created += 1;
                self.live.push(self.created);
                (self.created, Some(self.event("c", self.created, number)))
            }
            10..18 => {
                let id = self.live[at];
                (id, Some(self.event("u", id, number)))
            }
            18 => {
                self.deleted = self.live.swap_remove(at);
                (self.deleted, Some(self.event("d", self.deleted, number)))
            }
            _ => (self.deleted, None),
        }
    }

    /// An event as Debezium's PostgreSQL connector writes it under the default replica identity.
    fn event(&mut self, op: &str, id: u64, number: u64) -> String {
        let (commit, lsn) = (number * 100, number * 100 + 8);
        let null = json!(null);
        let (before, after) = match op {
            "d" => {
                let key = json!({"id": id, "tenant": null, "title": null, "body": null});
                (key, null)
            }
            _ => {
                let (tenant, title) = (format!("t{}", id % 7), self.text(30));
                let body = self.text(2_048);
                let row = json!({"id": id, "tenant": tenant, "title": title, "body": body});
                (null, row)
            }
        };
        let at = 1_763_700_000_000 + number;
        json!({
            "before": before,
            "after": after,
            "source": {
                "version": "3.3.1.Final", "connector": "postgresql", "name": "db",
                "ts_ms": at, "snapshot": "false", "db": "app",
                "sequence": format!("[\"{commit}\",\"{lsn}\"]"),
                "ts_us": at * 1_000, "ts_ns": at * 1_000_000,
                "schema": "public", "table": "docs", "txId": 700 + number, "lsn": lsn, "xmin": null,
            },
            "transaction": null,
            "op": op,
            "ts_ms": at, "ts_us": at * 1_000, "ts_ns": at * 1_000_000,
        })
        .to_string()
    }

    /// Words up to a length; every line ends in an escape, as texts of people do.
    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 12);
        while text.len() < bytes {
            let word: u32 = self.rng.random_range(0..50_000);
            text += &format!("word{word}");
            text.push(if word.is_multiple_of(16) { '\n' } else { ' ' });
        }
        text.truncate(bytes);
        text
    }
}
