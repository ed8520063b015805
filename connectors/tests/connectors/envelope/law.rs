//! The envelope law: generated histories of a table, sent as Debezium sends them, against the table.
//!
//! ```text
//! random transactions ─▶ naive table
//!        └─▶ events ─▶ partitions by key ─▶ interleaved, delivered again from older positions ─▶ rows
//! ```
//!
//! At random pauses (everything sent has been read) and at the end the rows equal the naive table,
//! no row waits, and there is no letter. `HEADWATER_SEED` repeats a failure, `HEADWATER_EVENTS` runs longer.

use std::collections::{BTreeMap, VecDeque};

use connectors::envelope::{Envelope, Options};
use engine::model::{Key, Schema, SqlType, Value};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use super::{Message, Topic, schema, snapshot, streamed};

const UNAVAILABLE: &str = "__debezium_unavailable_value";
const EVENTS: usize = 100_000;

/// A row of the naive table: `n`, `title`, `body`, `raw`; the last two are TOAST.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    n: i64,
    title: Option<String>,
    body: Option<String>,
    raw: Option<Vec<u8>>,
}

/// What the connector would send at one position: it resumes at positions, never between.
type Group = Vec<(Option<Json>, Message)>;

/// How the topic writes events.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wire {
    Plain,
    WithSchema,
    /// ExtractNewRecordState with `rewrite` and positions.
    Unwrapped,
}

struct Source {
    rng: ChaCha8Rng,
    table: BTreeMap<(i64, String), Row>,
    is_composite: bool,
    has_tombstones: bool,
    has_transactions: bool,
    wire: Wire,
    /// Of two transactions at once each has the keys of one parity.
    parity: Option<i64>,
    lsn: u64,
    commit: u64,
    sent: Vec<Group>,
}

impl Source {
    fn new(seed: u64) -> Source {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Source {
            is_composite: rng.random_bool(0.5),
            has_tombstones: rng.random_bool(0.8),
            has_transactions: rng.random_bool(0.5),
            wire: [Wire::Plain, Wire::WithSchema, Wire::Unwrapped][rng.random_range(0..3)],
            parity: None,
            rng,
            table: BTreeMap::new(),
            lsn: 1_000,
            commit: 0,
            sent: Vec::new(),
        }
    }

    fn schema(&self) -> Schema {
        let columns = [
            ("id", SqlType::Int8),
            ("part", SqlType::Text),
            ("n", SqlType::Int8),
            ("title", SqlType::Text),
            ("body", SqlType::Text),
            ("raw", SqlType::Bytea),
        ];
        let key: &[&str] = if self.is_composite {
            &["part", "id"]
        } else {
            &["id"]
        };
        schema(&columns, key)
    }

    fn key_json(&self, (id, part): &(i64, String)) -> Json {
        match self.is_composite {
            true => json!({"part": part, "id": id}),
            false => json!({"id": id}),
        }
    }

    fn random_key(&mut self) -> (i64, String) {
        let part = match self.is_composite {
            true => ["a", "b"][self.rng.random_range(0..2)],
            false => "",
        };
        let id = self.rng.random_range(0..40);
        let id = self.parity.map_or(id, |parity| id / 2 * 2 + parity);
        (id, part.to_owned())
    }

    fn random_row(&mut self) -> Row {
        let rng = &mut self.rng;
        let number = rng.random_range(0..1_000_000);
        Row {
            n: rng.random_range(-5..5),
            title: rng.random_bool(0.8).then(|| format!("title {number}")),
            body: rng
                .random_bool(0.8)
                .then(|| format!("body {number} {}", "x".repeat(20))),
            raw: rng
                .random_bool(0.7)
                .then(|| format!("raw {number}").into_bytes()),
        }
    }

    /// The image of a row; what did not change is not sent.
    fn image(&self, key: &(i64, String), row: &Row, old: Option<&Row>) -> Json {
        use engine::model::Value as V;
        let base64 = |bytes: &[u8]| V::Bytes(bytes.into()).to_json(SqlType::Bytea);
        let is_unsent = |is_same: bool, is_null: bool| old.is_some() && is_same && !is_null;
        let same_body = old.is_some_and(|old| old.body == row.body);
        let same_raw = old.is_some_and(|old| old.raw == row.raw);
        let body = match is_unsent(same_body, row.body.is_none()) {
            true => json!(UNAVAILABLE),
            false => json!(row.body),
        };
        let raw = match (is_unsent(same_raw, row.raw.is_none()), &row.raw) {
            (true, _) => base64(UNAVAILABLE.as_bytes()),
            (false, Some(raw)) => base64(raw),
            (false, None) => Json::Null,
        };
        json!({"id": key.0, "part": key.1, "n": row.n, "title": row.title, "body": body, "raw": raw})
    }

    fn message(&mut self, op: &str, before: Json, after: Json, key: &Json, order: u64) -> Message {
        let transaction = match self.has_transactions {
            true => json!({"id": format!("{}:{}", self.commit, self.lsn), "total_order": order,
                "data_collection_order": order}),
            false => Json::Null,
        };
        let mut source = streamed(self.commit, self.lsn);
        if self.commit == 0 {
            source["sequence"] = json!(format!("[null,\"{}\"]", self.lsn));
        }
        let value = json!({"before": before, "after": after, "source": source, "op": op,
            "ts_ms": 1, "transaction": transaction});
        Message::new(key.clone(), value)
    }

    /// A delete with its tombstone.
    fn gone(&mut self, key: &(i64, String), to: Option<&Json>, order: u64, group: &mut Group) {
        let json = self.key_json(key);
        // The default REPLICA IDENTITY: other columns are null or their type's zero.
        let before =
            json!({"id": key.0, "part": key.1, "n": 0, "title": null, "body": "", "raw": null});
        let mut delete = self.message("d", before, Json::Null, &json, order);
        if let Some(to) = to {
            delete = delete.header("__debezium.newkey", to.clone());
        }
        group.push((Some(json.clone()), delete));
        if self.has_tombstones {
            group.push((Some(json.clone()), Message::tombstone(json)));
        }
    }

    /// One transaction, or two at once, of which the one that wrote later commits first; and now and
    /// then an incremental snapshot reads a row.
    fn transaction(&mut self) {
        let start = self.lsn;
        let are_two = self.rng.random_bool(0.2);
        if are_two {
            self.parity = Some(0);
            self.lsn = start + 1_000;
            self.statements();
            let committed = self.lsn + 8;
            self.commit = committed;
            self.parity = Some(1);
            self.lsn = start;
            self.statements();
            self.lsn = committed;
            self.parity = None;
        } else {
            self.statements();
        }
        self.lsn += 8;
        self.commit = self.lsn;
        if self.rng.random_bool(0.05) {
            self.incremental_read();
        }
    }

    fn statements(&mut self) {
        for order in 1..=self.rng.random_range(1..5u64) {
            self.lsn += self.rng.random_range(1..100u64);
            let group = self.statement(order * 2);
            if !group.is_empty() {
                self.sent.push(group);
            }
        }
    }

    fn incremental_read(&mut self) {
        let key = self.random_key();
        if let Some(row) = self.table.get(&key) {
            let mut source = snapshot("incremental", 0);
            source["lsn"] = Json::Null;
            source["txId"] = Json::Null;
            let json = self.key_json(&key);
            let value = json!({"before": null, "after": self.image(&key, row, None), "op": "r",
                "source": source, "ts_ms": 1, "transaction": null});
            self.sent
                .push(vec![(Some(json.clone()), Message::new(json, value))]);
        }
    }

    fn statement(&mut self, order: u64) -> Group {
        let mut group = Vec::new();
        let key = self.random_key();
        let json = self.key_json(&key);
        let old = self.table.get(&key).cloned();
        match (self.rng.random_range(0..100), old) {
            (0, _) if self.parity.is_none() && self.wire != Wire::Unwrapped => {
                self.table.clear();
                let mut truncate = self.message("t", Json::Null, Json::Null, &Json::Null, order);
                truncate.key = None;
                group.push((None, truncate));
            }
            (_, None) => {
                let row = self.random_row();
                let image = self.image(&key, &row, None);
                group.push((
                    Some(json.clone()),
                    self.message("c", Json::Null, image, &json, order),
                ));
                self.table.insert(key, row);
            }
            (0..=15, Some(_)) => {
                self.gone(&key, None, order, &mut group);
                self.table.remove(&key);
            }
            (16..=30, Some(old)) => {
                let to = self.random_key();
                if !self.table.contains_key(&to) {
                    self.move_row(key, to, old, order, &mut group);
                }
            }
            (percent, Some(old)) => {
                let mut row = self.random_row();
                if percent < 80 {
                    row.body.clone_from(&old.body);
                }
                if percent < 90 {
                    row.raw.clone_from(&old.raw);
                }
                let image = self.image(&key, &row, Some(&old));
                group.push((
                    Some(json.clone()),
                    self.message("u", Json::Null, image, &json, order),
                ));
                self.table.insert(key, row);
            }
        }
        group
    }

    fn move_row(
        &mut self,
        from: (i64, String),
        to: (i64, String),
        old: Row,
        order: u64,
        group: &mut Group,
    ) {
        let (old_json, new_json) = (self.key_json(&from), self.key_json(&to));
        let row = Row {
            n: old.n + 1,
            ..old.clone()
        };
        self.gone(&from, Some(&new_json), order, group);
        let image = self.image(&to, &row, Some(&old));
        let create = self.message("c", Json::Null, image, &new_json, order + 1);
        group.push((Some(new_json), create.header("__debezium.oldkey", old_json)));
        self.table.remove(&from);
        self.table.insert(to, row);
    }

    /// A snapshot of the table; `reads` rows of it if it dies.
    fn snapshot(&mut self, reads: usize) {
        self.lsn += 10;
        let rows: Vec<_> = self.table.clone().into_iter().collect();
        for (at, (key, row)) in rows.iter().enumerate().take(reads) {
            let phase = match at {
                0 => "first",
                _ if at + 1 == rows.len() => "last",
                _ => "true",
            };
            let json = self.key_json(key);
            let value = json!({"before": null, "after": self.image(key, row, None), "op": "r",
                "source": snapshot(phase, self.lsn), "ts_ms": 1, "transaction": null});
            self.sent
                .push(vec![(Some(json.clone()), Message::new(json, value))]);
        }
    }

    fn expected(&self) -> BTreeMap<Key, Vec<Value>> {
        let text = |text: &Option<String>| {
            text.as_ref()
                .map_or(Value::Null, |text| Value::Text(text.as_str().into()))
        };
        let rows = self.table.iter().map(|(key, row)| {
            let name = match self.is_composite {
                true => format!("{{\"part\":{},\"id\":{}}}", json!(key.1), key.0),
                false => key.0.to_string(),
            };
            let raw = row
                .raw
                .as_ref()
                .map_or(Value::Null, |raw| Value::Bytes(raw.as_slice().into()));
            let values = vec![
                Value::Int(key.0),
                Value::Text(key.1.as_str().into()),
                Value::Int(row.n),
                text(&row.title),
                text(&row.body),
                raw,
            ];
            (Key::from_json_text(&name), values)
        });
        rows.collect()
    }
}

/// The schema of a key or a row, as Connect writes it.
fn connect_schema(value: &Json, name: &str) -> Json {
    let field = |name: &String| {
        let kind = match &**name {
            "id" | "n" => "int64",
            "raw" => "bytes",
            _ => "string",
        };
        json!({"type": kind, "optional": true, "field": name})
    };
    let fields: Vec<Json> = value.as_object().unwrap().keys().map(field).collect();
    json!({"type": "struct", "optional": true, "name": name, "fields": fields})
}

fn with_schema(message: &Message) -> Message {
    let wrap = |text: &String, schema: &dyn Fn(&Json) -> Json| {
        let payload: Json = serde_json::from_str(text).unwrap();
        json!({"schema": schema(&payload), "payload": payload}).to_string()
    };
    let envelope = |event: &Json| {
        let images = ["before", "after"].map(|name| {
            let image = event[name]
                .as_object()
                .map_or(json!({}), |_| event[name].clone());
            let mut schema = connect_schema(&image, "app.public.t.Value");
            schema["field"] = json!(name);
            schema
        });
        json!({"type": "struct", "name": "app.public.t.Envelope", "fields": images})
    };
    Message {
        key: message
            .key
            .as_ref()
            .map(|key| wrap(key, &|key| connect_schema(key, "app.public.t.Key"))),
        value: message.value.as_ref().map(|value| wrap(value, &envelope)),
        headers: message.headers.clone(),
    }
}

fn unwrapped(message: &Message) -> Message {
    let flat = |text: &String| {
        let event: Json = serde_json::from_str(text).unwrap();
        let is_delete = event["op"] == "d";
        let mut row = event[if is_delete { "before" } else { "after" }].clone();
        row["__deleted"] = json!(is_delete.to_string());
        row["__op"] = event["op"].clone();
        row["__lsn"] = event["source"]["lsn"].clone();
        row["__source_sequence"] = event["source"]["sequence"].clone();
        row.to_string()
    };
    Message {
        value: message.value.as_ref().map(flat),
        ..message.clone()
    }
}

/// The topic between connector and decoder.
struct Broker {
    wire: Wire,
    rng: ChaCha8Rng,
    partitions: Vec<VecDeque<Message>>,
    read: usize,
}

impl Broker {
    fn send(&mut self, group: &Group) {
        for (key, message) in group {
            let partition = match key {
                Some(key) => Key::from_json(key).shard_hash() as usize % self.partitions.len(),
                None => self.rng.random_range(0..self.partitions.len()),
            };
            let partition = &mut self.partitions[partition];
            let message = match self.wire {
                Wire::Plain => message.clone(),
                Wire::WithSchema => with_schema(message),
                Wire::Unwrapped => unwrapped(message),
            };
            partition.push_back(message.clone());
            // A producer without idempotence that tried twice. (Not a tombstone: two of them in a
            // row are a delete of their own.)
            if message.value.is_some() && self.rng.random_bool(0.02) {
                partition.push_back(message.clone());
            }
        }
    }

    fn read(&mut self, count: usize, topic: &mut Topic, context: &str) {
        for _ in 0..count {
            let ready: Vec<usize> = (0..self.partitions.len())
                .filter(|at| !self.partitions[*at].is_empty())
                .collect();
            if ready.is_empty() {
                return;
            }
            // Low numbers first, so that high partitions fall far behind.
            let at = ready[self
                .rng
                .random_range(0..ready.len())
                .min(self.rng.random_range(0..ready.len()))];
            let message = self.partitions[at].pop_front().unwrap();
            let applied = topic.send_to(at as i32, &message);
            assert_eq!(applied.letters, [], "{context}: {message:?}");
            self.read += 1;
        }
    }
}

fn one_history(seed: u64, events: usize) -> usize {
    let mut source = Source::new(seed);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let partitions = rng.random_range(1..=6usize);
    let mut topic = Topic::new(
        source.schema(),
        Envelope::Debezium,
        Options::default(),
        partitions,
    );
    let mut broker = Broker {
        wire: source.wire,
        partitions: vec![VecDeque::new(); partitions],
        rng: ChaCha8Rng::seed_from_u64(seed ^ 0xb20c),
        read: 0,
    };
    initial_snapshots(&mut source, &mut rng);
    let stream_start = source.sent.len();
    let context = format!("seed {seed}, {partitions} partitions, {:?}", source.wire);
    let (mut sent, mut newest) = (0, 0);
    loop {
        for _ in 0..rng.random_range(1..30) {
            source.transaction();
        }
        // Now and then the connector starts again from an older position.
        while sent < source.sent.len() {
            // What an incremental snapshot read is read again, not delivered again.
            let is_again = sent < newest;
            if !is_again || !is_incremental(&source.sent[sent]) {
                broker.send(&source.sent[sent]);
            }
            sent += 1;
            newest = newest.max(sent);
            if sent > stream_start && rng.random_bool(0.01) {
                sent -= rng.random_range(0..60).min(sent - stream_start);
            }
        }
        let is_end = broker.read > events;
        if rng.random_bool(0.1) {
            topic.restart(Envelope::Debezium, Options::default());
        }
        if !is_end && rng.random_bool(0.6) {
            broker.read(rng.random_range(0..400), &mut topic, &context);
            continue;
        }
        broker.read(usize::MAX, &mut topic, &context);
        // The ghosts of a snapshot that died.
        let live: Vec<Key> = topic.rows.0.keys().cloned().collect();
        for ghost in topic.table.sweep(&live) {
            topic.rows.0.remove(&ghost);
        }
        let differences = differences(&topic.rows.0, &source.expected());
        assert_eq!(
            differences,
            [] as [String; 0],
            "{context}, after {}",
            broker.read
        );
        assert_eq!(topic.table.parked_rows(), 0, "{context}");
        if is_end {
            return broker.read;
        }
    }
}

/// What is not equal, short enough to be read.
fn differences(
    ours: &BTreeMap<Key, Vec<Value>>,
    theirs: &BTreeMap<Key, Vec<Value>>,
) -> Vec<String> {
    let keys: std::collections::BTreeSet<&Key> = ours.keys().chain(theirs.keys()).collect();
    keys.into_iter()
        .filter(|key| ours.get(key) != theirs.get(key))
        .map(|key| format!("{key}: {:?}, not {:?}", ours.get(key), theirs.get(key)))
        .collect()
}

fn is_incremental(group: &Group) -> bool {
    let value = group[0].1.value.as_ref();
    value.is_some_and(|value| value.contains("\"incremental\""))
}

/// Half of the tables are not empty at first, and half of those snapshots die once.
fn initial_snapshots(source: &mut Source, rng: &mut ChaCha8Rng) {
    if rng.random_bool(0.5) {
        return;
    }
    let fill = |source: &mut Source| {
        for _ in 0..10 {
            source.transaction();
        }
        source.sent.clear();
    };
    fill(source);
    let kept = match rng.random_bool(0.5) && source.table.len() > 2 {
        true => {
            let reads = rng.random_range(1..source.table.len());
            source.snapshot(reads);
            let kept = source.sent.clone();
            fill(source);
            kept
        }
        false => Vec::new(),
    };
    // A run that reads nothing tells nothing: what the first one read would stay.
    while source.table.is_empty() {
        fill(source);
    }
    source.sent = kept;
    source.snapshot(usize::MAX);
    source.commit = 0;
}

#[test]
fn rows_equal_the_source_after_any_history() {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let first = variable("HEADWATER_SEED").unwrap_or(20_261_121);
    let events = variable("HEADWATER_EVENTS").map_or(EVENTS, |events| events as usize);
    println!("seed {first}");
    let (mut read, mut seed) = (0, first);
    while read < events {
        read += one_history(seed, 1_500);
        seed += 1;
    }
    println!("{read} events of {} tables", seed - first);
}
