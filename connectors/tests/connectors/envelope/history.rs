//! Generated histories of a random table, told as Debezium tells them.
//!
//! ```text
//! Dice ─▶ columns ─▶ random transactions ─▶ naive table
//!                          └─▶ events ─▶ partitions by key ─▶ interleaved, delivered again
//! ```
//!
//! A table has one to seven columns beside its key, of kinds that Debezium sends in all of its
//! shapes; those that PostgreSQL may store away (TOAST) are not sent when they did not change.
//! [`run`] is the whole law: the [`Dice`] decide, at random or as a fuzzer has them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use connectors::envelope::types::placeholder;
use connectors::envelope::{BinaryMode, Envelope, Options};
use engine::model::{Key, Schema, SqlType, Value};
use serde_json::{Value as Json, json};

use super::topic::{Message, Topic, schema, snapshot, streamed};
use crate::dice::Dice;

/// The name-based UUID of Debezium's default placeholder: what stands for an unsent `uuid[]`.
const PLACEHOLDER_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    /// `numeric(12,2)`, precise.
    Numeric,
    /// `timestamptz` in microseconds.
    Time,
    Text,
    Bytes,
    Json,
    /// `text[]`
    Texts,
    /// `bigint[]`
    Ints,
    /// `uuid[]`
    Uuids,
    /// `bytea[]`
    Blobs,
    /// `hstore`
    Map,
}

const KINDS: [Kind; 12] = [
    Kind::Text,
    Kind::Bytes,
    Kind::Json,
    Kind::Texts,
    Kind::Ints,
    Kind::Blobs,
    Kind::Map,
    Kind::Uuids,
    Kind::Int,
    Kind::Bool,
    Kind::Numeric,
    Kind::Time,
];

impl Kind {
    fn sql_type(self) -> SqlType {
        match self {
            Kind::Bool => SqlType::Boolean,
            Kind::Int => SqlType::Int8,
            Kind::Numeric => SqlType::Numeric(12, 2),
            Kind::Time => SqlType::TimestampTz,
            Kind::Text => SqlType::Text,
            Kind::Bytes => SqlType::Bytea,
            Kind::Json | Kind::Texts | Kind::Ints | Kind::Uuids | Kind::Blobs | Kind::Map => {
                SqlType::Jsonb
            }
        }
    }

    /// Whether PostgreSQL may store it away.
    fn is_toast(self) -> bool {
        !matches!(self, Kind::Bool | Kind::Int | Kind::Numeric | Kind::Time)
    }

    /// What Connect puts where nothing was logged and NULL is not allowed.
    fn zero(self) -> Json {
        match self {
            Kind::Bool => json!(false),
            Kind::Int | Kind::Time => json!(0),
            Kind::Text => json!(""),
            _ => Json::Null,
        }
    }

    /// Connect's schema, as JsonConverter writes it.
    fn connect(self, hex: bool) -> Json {
        let bytes = || json!({"type": if hex { "string" } else { "bytes" }});
        let list = |items: Json| json!({"type": "array", "items": items});
        match self {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Int => json!({"type": "int64"}),
            Kind::Numeric => json!({"type": "bytes", "parameters": {"scale": "2"},
                "name": "org.apache.kafka.connect.data.Decimal"}),
            Kind::Time => json!({"type": "int64", "name": "io.debezium.time.MicroTimestamp"}),
            Kind::Text => json!({"type": "string"}),
            Kind::Bytes => bytes(),
            Kind::Json => json!({"type": "string", "name": "io.debezium.data.Json"}),
            Kind::Texts => list(json!({"type": "string", "optional": true})),
            Kind::Ints => list(json!({"type": "int64", "optional": true})),
            Kind::Uuids => list(json!({"type": "string", "name": "io.debezium.data.Uuid"})),
            Kind::Blobs => list(bytes()),
            Kind::Map => json!({"type": "map", "keys": {"type": "string"},
                "values": {"type": "string", "optional": true}}),
        }
    }
}

/// A value, and how the connector writes it.
#[derive(Debug, Clone, PartialEq)]
struct Datum {
    wire: Json,
    value: Value,
}

impl Datum {
    fn null() -> Datum {
        Datum {
            wire: Json::Null,
            value: Value::Null,
        }
    }
}

/// A row without its key: one value a column.
type Row = Vec<Datum>;
/// `id`, and `part` where the key has two columns.
type Id = (i64, String);
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

/// What does not change in a table's history.
#[derive(Debug, Clone)]
struct Shape {
    columns: Vec<(String, Kind)>,
    is_composite: bool,
    /// REPLICA IDENTITY FULL: whole images before, and nothing that is not sent.
    is_full: bool,
    has_tombstones: bool,
    has_transactions: bool,
    wire: Wire,
    /// `binary.handling.mode=hex`
    is_hex: bool,
    placeholder: String,
}

impl Shape {
    fn new(dice: &mut Dice) -> Shape {
        let placeholder = match dice.chance(70) {
            true => placeholder::DEFAULT,
            false => ["∅ not sent", "x"][dice.index(2)],
        };
        let count = 1 + dice.index(7);
        let columns = (0..count).map(|at| {
            let kind = match KINDS[dice.index(KINDS.len())] {
                // Of other placeholders the UUID is not known.
                Kind::Uuids if placeholder != placeholder::DEFAULT => Kind::Texts,
                kind => kind,
            };
            (format!("c{at}"), kind)
        });
        Shape {
            columns: columns.collect(),
            is_composite: dice.chance(50),
            is_full: dice.chance(15),
            has_tombstones: dice.chance(80),
            has_transactions: dice.chance(50),
            wire: [Wire::Plain, Wire::WithSchema, Wire::Unwrapped][dice.index(3)],
            is_hex: dice.chance(30),
            placeholder: placeholder.to_owned(),
        }
    }

    fn schema(&self) -> Schema {
        let mut columns = vec![("id", SqlType::Int8), ("part", SqlType::Text)];
        let own = self.columns.iter();
        columns.extend(own.map(|(name, kind)| (&**name, kind.sql_type())));
        match self.is_composite {
            true => schema(&columns, &["part", "id"]),
            false => schema(&columns, &["id"]),
        }
    }

    fn options(&self) -> Options {
        Options {
            placeholder: self.placeholder.clone(),
            binary: match self.is_hex {
                true => BinaryMode::Hex,
                false => BinaryMode::Bytes,
            },
            ..Options::default()
        }
    }

    fn key_json(&self, (id, part): &Id) -> Json {
        match self.is_composite {
            true => json!({"part": part, "id": id}),
            false => json!({"id": id}),
        }
    }

    fn key(&self, (id, part): &Id) -> Key {
        Key::from_json_text(&match self.is_composite {
            true => format!("{{\"part\":{},\"id\":{id}}}", json!(part)),
            false => id.to_string(),
        })
    }

    fn binary(&self, bytes: &[u8]) -> Json {
        match self.is_hex {
            true => Json::from(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()),
            false => Value::Bytes(bytes.into()).to_json(SqlType::Bytea),
        }
    }

    /// What is sent for a value that is not.
    fn unsent(&self, kind: Kind) -> Json {
        let text = &self.placeholder;
        match kind {
            Kind::Bytes => self.binary(text.as_bytes()),
            Kind::Texts => json!([text]),
            Kind::Ints => text.bytes().map(Json::from).collect(),
            Kind::Uuids => json!([PLACEHOLDER_UUID]),
            Kind::Blobs => json!([self.binary(text.as_bytes())]),
            Kind::Map => json!({ text: text }),
            _ => json!(text),
        }
    }

    /// The image of a row; of what did not change since `old` nothing is sent.
    fn image(&self, (id, part): &Id, row: &Row, old: Option<&Row>) -> Json {
        let mut image = json!({"id": id, "part": part});
        for (at, (name, kind)) in self.columns.iter().enumerate() {
            let is_same = old.is_some_and(|old| old[at] == row[at]);
            let is_unsent = is_same && kind.is_toast() && row[at].value != Value::Null;
            image[name] = match is_unsent && !self.is_full {
                true => self.unsent(*kind),
                false => row[at].wire.clone(),
            };
        }
        image
    }

    /// The image before, of which only the key is logged.
    fn identity(&self, (id, part): &Id, row: &Row) -> Json {
        if self.is_full {
            return self.image(&(*id, part.clone()), row, None);
        }
        let mut image = json!({"id": id, "part": part});
        for (name, kind) in &self.columns {
            image[name] = kind.zero();
        }
        image
    }

    fn datum(&self, kind: Kind, dice: &mut Dice) -> Datum {
        if dice.chance(20) {
            return Datum::null();
        }
        let number = dice.below(65_536);
        let jsonb = |wire: Json| Datum {
            value: Value::Text(wire.to_string().into()),
            wire,
        };
        let items = number as usize % 4;
        match kind {
            Kind::Bool => Datum {
                wire: json!(number % 2 == 1),
                value: Value::Bool(number % 2 == 1),
            },
            Kind::Int => Datum {
                wire: json!(number % 10),
                value: Value::Int(number as i64 % 10),
            },
            Kind::Numeric => {
                let digits = number as i64 - 30_000;
                let bytes = Value::Bytes(digits.to_be_bytes().as_slice().into());
                Datum {
                    wire: bytes.to_json(SqlType::Bytea),
                    value: Value::Numeric(digits.into(), 2),
                }
            }
            Kind::Time => {
                let micros = number as i64 * 1_000_003 - 2_000_000_000;
                Datum {
                    wire: json!(micros),
                    value: Value::Timestamp(micros),
                }
            }
            Kind::Text => {
                let text = format!("text {number} →\n\"{}", "x".repeat(items * 8));
                Datum {
                    wire: json!(text),
                    value: Value::Text(text.into()),
                }
            }
            Kind::Bytes => {
                let bytes = [b"raw ", number.to_le_bytes().as_slice()].concat();
                Datum {
                    wire: self.binary(&bytes),
                    value: Value::Bytes(bytes.into()),
                }
            }
            Kind::Json => {
                let text = json!({"n": number, "list": [items, null, "x"]}).to_string();
                Datum {
                    wire: json!(text),
                    value: Value::Text(text.into()),
                }
            }
            Kind::Texts => {
                let item = |at| match at {
                    2 => Json::Null,
                    at => json!(format!("item {number} {at}")),
                };
                jsonb((0..items).map(item).collect())
            }
            Kind::Ints => jsonb((0..items as u64).map(|at| json!(number + at)).collect()),
            Kind::Uuids => {
                let uuid = |at| format!("550e8400-e29b-41d4-a716-{:012x}", number * 4 + at);
                jsonb((0..items as u64).map(|at| json!(uuid(at))).collect())
            }
            Kind::Blobs => {
                let blob = |at: u64| self.binary(&(number + at).to_le_bytes());
                jsonb((0..items as u64).map(blob).collect())
            }
            Kind::Map => jsonb(json!({"k": number.to_string(), "z": null})),
        }
    }

    /// The schema of a key or a row.
    fn connect(&self, value: &Json, name: &str) -> Json {
        let field = |name: &String| {
            let own = self.columns.iter().find(|(own, _)| own == name);
            let mut field = match own {
                Some((_, kind)) => kind.connect(self.is_hex),
                None if name == "id" => json!({"type": "int64"}),
                None => json!({"type": "string"}),
            };
            field["optional"] = json!(true);
            field["field"] = json!(name);
            field
        };
        let members = value.as_object().expect("a key or a row");
        let fields: Vec<Json> = members.keys().map(field).collect();
        json!({"type": "struct", "optional": true, "name": name, "fields": fields})
    }

    /// The message as the topic has it.
    fn written(&self, message: &Message) -> Message {
        match self.wire {
            Wire::Plain => message.clone(),
            Wire::WithSchema => self.with_schema(message),
            Wire::Unwrapped => unwrapped(message),
        }
    }

    fn with_schema(&self, message: &Message) -> Message {
        let wrap = |text: &String, schema: &dyn Fn(&Json) -> Json| {
            let payload: Json = serde_json::from_str(text).expect("our own");
            json!({"schema": schema(&payload), "payload": payload}).to_string()
        };
        let envelope = |event: &Json| {
            let images = ["before", "after"].map(|name| {
                let image = match event[name].is_object() {
                    true => event[name].clone(),
                    false => json!({}),
                };
                let mut schema = self.connect(&image, "app.public.t.Value");
                schema["field"] = json!(name);
                schema
            });
            json!({"type": "struct", "name": "app.public.t.Envelope", "fields": images})
        };
        let key = |key: &String| wrap(key, &|key| self.connect(key, "app.public.t.Key"));
        Message {
            key: message.key.as_ref().map(key),
            value: message.value.as_ref().map(|value| wrap(value, &envelope)),
            headers: message.headers.clone(),
        }
    }
}

fn unwrapped(message: &Message) -> Message {
    let flat = |text: &String| {
        let event: Json = serde_json::from_str(text).expect("our own");
        let is_delete = event["op"] == "d";
        let mut row = event[if is_delete { "before" } else { "after" }].clone();
        row["__deleted"] = json!(is_delete.to_string());
        row["__op"] = event["op"].clone();
        row["__lsn"] = event["source"]["lsn"].clone();
        row["__source_sequence"] = event["source"]["sequence"].clone();
        row["__source_ts_ms"] = event["source"]["ts_ms"].clone();
        row.to_string()
    };
    Message {
        value: message.value.as_ref().map(flat),
        ..message.clone()
    }
}

/// The database and its connector.
struct Source {
    shape: Shape,
    dice: Dice,
    table: BTreeMap<Id, Row>,
    /// Of two transactions at once each has the keys of one parity.
    parity: Option<i64>,
    lsn: u64,
    commit: u64,
    sent: Vec<Group>,
}

impl Source {
    fn new(mut dice: Dice) -> Source {
        Source {
            shape: Shape::new(&mut dice),
            dice,
            table: BTreeMap::new(),
            parity: None,
            lsn: 1_000,
            commit: 0,
            sent: Vec::new(),
        }
    }

    fn random_id(&mut self) -> Id {
        let part = match self.shape.is_composite {
            true => ["a", "b"][self.dice.index(2)],
            false => "",
        };
        let id = self.dice.between(0, 40);
        let id = match self.parity.map_or(id, |parity| id / 2 * 2 + parity) {
            // With whole images a key of zeros alone looks like one that was not logged: refused.
            0 if self.shape.is_full => 40,
            id => id,
        };
        (id, part.to_owned())
    }

    fn random_row(&mut self) -> Row {
        let (shape, dice) = (&self.shape, &mut self.dice);
        let columns = shape.columns.iter();
        columns.map(|(_, kind)| shape.datum(*kind, dice)).collect()
    }

    fn message(&mut self, op: &str, before: Json, after: Json, key: &Json, order: u64) -> Message {
        let transaction = match self.shape.has_transactions {
            true => json!({"id": format!("{}:{}", self.commit, self.lsn), "total_order": order,
                "data_collection_order": order}),
            false => Json::Null,
        };
        let mut source = streamed(self.commit, self.lsn);
        if self.commit == 0 {
            source["sequence"] = json!(format!("[null,\"{}\"]", self.lsn));
        }
        // One time for a transaction, by a clock that is set back now and then.
        let set_back = self.commit / 10_000 % 3 * 5_000;
        source["ts_ms"] = json!(1_763_719_200_000 + self.commit - set_back.min(self.commit));
        let value = json!({"before": before, "after": after, "source": source, "op": op,
            "ts_ms": 1, "transaction": transaction});
        Message::new(key.clone(), value)
    }

    /// A delete with its tombstone.
    fn gone(&mut self, id: &Id, row: &Row, to: Option<&Json>, order: u64, group: &mut Group) {
        let json = self.shape.key_json(id);
        let before = self.shape.identity(id, row);
        let mut delete = self.message("d", before, Json::Null, &json, order);
        if let Some(to) = to {
            delete = delete.header("__debezium.newkey", to.clone());
        }
        group.push((Some(json.clone()), delete));
        if self.shape.has_tombstones {
            group.push((Some(json.clone()), Message::tombstone(json)));
        }
    }

    /// One transaction, or two at once, of which the one that wrote later commits first; and now and
    /// then an incremental snapshot reads a row.
    fn transaction(&mut self) {
        let start = self.lsn;
        let are_two = self.dice.chance(20);
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
        if self.dice.chance(5) {
            self.incremental_read();
        }
    }

    fn statements(&mut self) {
        for order in 1..=1 + self.dice.below(4) {
            self.lsn += 1 + self.dice.below(99);
            let group = self.statement(order * 2);
            if !group.is_empty() {
                self.sent.push(group);
            }
        }
    }

    fn read(&self, id: &Id, row: &Row, source: Json) -> Group {
        let json = self.shape.key_json(id);
        let value = json!({"before": null, "after": self.shape.image(id, row, None), "op": "r",
            "source": source, "ts_ms": 1, "transaction": null});
        vec![(Some(json.clone()), Message::new(json, value))]
    }

    fn incremental_read(&mut self) {
        let id = self.random_id();
        if let Some(row) = self.table.get(&id) {
            let mut source = snapshot("incremental", 0);
            source["lsn"] = Json::Null;
            source["txId"] = Json::Null;
            self.sent.push(self.read(&id, row, source));
        }
    }

    fn statement(&mut self, order: u64) -> Group {
        let mut group = Vec::new();
        let id = self.random_id();
        let json = self.shape.key_json(&id);
        let old = self.table.get(&id).cloned();
        match (self.dice.below(100), old) {
            (0, _) if self.parity.is_none() && self.shape.wire != Wire::Unwrapped => {
                self.table.clear();
                let mut truncate = self.message("t", Json::Null, Json::Null, &Json::Null, order);
                truncate.key = None;
                group.push((None, truncate));
            }
            (_, None) => {
                let row = self.random_row();
                let image = self.shape.image(&id, &row, None);
                let create = self.message("c", Json::Null, image, &json, order);
                group.push((Some(json), create));
                self.table.insert(id, row);
            }
            (0..=15, Some(old)) => {
                self.gone(&id, &old, None, order, &mut group);
                self.table.remove(&id);
            }
            (16..=30, Some(old)) => {
                let to = self.random_id();
                if !self.table.contains_key(&to) {
                    self.move_row(id, to, old, order, &mut group);
                }
            }
            (percent, Some(old)) => {
                let row = self.changed(&old, percent);
                let before = match self.shape.is_full {
                    true => self.shape.identity(&id, &old),
                    false => Json::Null,
                };
                let image = self.shape.image(&id, &row, Some(&old));
                let update = self.message("u", before, image, &json, order);
                group.push((Some(json), update));
                self.table.insert(id, row);
            }
        }
        group
    }

    /// A row of which a part is new: of large values one in six.
    fn changed(&mut self, old: &Row, percent: u64) -> Row {
        let mut row = self.random_row();
        for (at, (_, kind)) in self.shape.columns.iter().enumerate() {
            let is_kept = kind.is_toast() && !(percent + at as u64).is_multiple_of(6);
            if is_kept {
                row[at] = old[at].clone();
            }
        }
        row
    }

    fn move_row(&mut self, from: Id, to: Id, old: Row, order: u64, group: &mut Group) {
        let (old_json, new_json) = (self.shape.key_json(&from), self.shape.key_json(&to));
        let row = match self.dice.chance(50) {
            true => old.clone(),
            false => self.changed(&old, order),
        };
        self.gone(&from, &old, Some(&new_json), order, group);
        let image = self.shape.image(&to, &row, Some(&old));
        let create = self.message("c", Json::Null, image, &new_json, order + 1);
        group.push((Some(new_json), create.header("__debezium.oldkey", old_json)));
        self.table.remove(&from);
        self.table.insert(to, row);
    }

    /// A snapshot of the table; `reads` rows of it if it dies.
    fn snapshot(&mut self, reads: usize) {
        self.lsn += 10;
        let rows: Vec<_> = self.table.clone().into_iter().collect();
        for (at, (id, row)) in rows.iter().enumerate().take(reads) {
            let phase = match at {
                0 => "first",
                _ if at + 1 == rows.len() => "last",
                _ => "true",
            };
            self.sent
                .push(self.read(id, row, snapshot(phase, self.lsn)));
        }
    }

    fn expected(&self) -> BTreeMap<Key, Vec<Value>> {
        let rows = self.table.iter().map(|(id, row)| {
            let mut values = vec![Value::Int(id.0), Value::Text(id.1.as_str().into())];
            values.extend(row.iter().map(|datum| datum.value.clone()));
            (self.shape.key(id), values)
        });
        rows.collect()
    }

    /// Half of the tables are not empty at first, and half of those snapshots die once.
    fn initial_snapshots(&mut self, dice: &mut Dice) {
        if dice.chance(50) {
            return;
        }
        self.fill();
        let kept = match dice.chance(50) && self.table.len() > 2 {
            true => {
                let reads = 1 + dice.index(self.table.len() - 1);
                self.snapshot(reads);
                let kept = self.sent.clone();
                self.fill();
                kept
            }
            false => Vec::new(),
        };
        // A run that reads nothing tells nothing: what the first one read would stay.
        while self.table.is_empty() {
            self.fill();
        }
        self.sent = kept;
        self.snapshot(usize::MAX);
        self.commit = 0;
    }

    fn fill(&mut self) {
        for _ in 0..10 {
            self.transaction();
        }
        self.sent.clear();
    }
}

/// The topic between connector and decoder.
struct Broker {
    shape: Shape,
    dice: Dice,
    partitions: Vec<VecDeque<Message>>,
    read: usize,
}

impl Broker {
    fn send(&mut self, group: &Group) {
        for (key, message) in group {
            let count = self.partitions.len();
            let partition = match key {
                Some(key) => Key::from_json(key).shard_hash() as usize % count,
                None => self.dice.index(count),
            };
            let partition = &mut self.partitions[partition];
            let message = self.shape.written(message);
            partition.push_back(message.clone());
            // A producer without idempotence that tried twice. (Not a tombstone: two of them in a
            // row are a delete of their own.)
            if message.value.is_some() && self.dice.chance(2) {
                partition.push_back(message);
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
                .dice
                .index(ready.len())
                .min(self.dice.index(ready.len()))];
            let message = self.partitions[at].pop_front().expect("it is not empty");
            let applied = topic.send_to(at as i32, &message);
            assert_eq!(applied.letters, [], "{context}: {message:?}");
            self.read += 1;
        }
    }
}

/// Who decides what in one history.
pub struct Choices {
    /// The table, its transactions and its values.
    pub source: Dice,
    /// When messages are read, and when connector and reader start again.
    pub schedule: Dice,
    /// Which partition is read next, and what is sent twice.
    pub broker: Dice,
}

/// Runs one history of at least so many events, and compares at pauses and at the end. The number of
/// messages that were read.
///
/// # Panics
/// When the rows are not the table's, a row waits, or there is a letter.
pub fn run(choices: Choices, events: usize, name: &str) -> usize {
    let mut source = Source::new(choices.source);
    let mut dice = choices.schedule;
    let partitions = 1 + dice.index(6);
    let shape = source.shape.clone();
    let mut topic = Topic::new(
        shape.schema(),
        Envelope::Debezium,
        shape.options(),
        partitions,
    );
    let mut broker = Broker {
        shape: shape.clone(),
        partitions: vec![VecDeque::new(); partitions],
        dice: choices.broker,
        read: 0,
    };
    source.initial_snapshots(&mut dice);
    let stream_start = source.sent.len();
    let context = format!("{name}, {partitions} partitions, {shape:?}");
    let (mut sent, mut newest) = (0, 0);
    loop {
        for _ in 0..1 + dice.below(29) {
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
            if sent > stream_start && dice.chance(1) {
                sent -= dice.index(60).min(sent - stream_start);
            }
        }
        let is_end = broker.read > events;
        if dice.chance(10) {
            topic.restart(Envelope::Debezium, shape.options());
        }
        if !is_end && dice.chance(60) {
            broker.read(dice.index(400), &mut topic, &context);
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
    let keys: BTreeSet<&Key> = ours.keys().chain(theirs.keys()).collect();
    keys.into_iter()
        .filter(|key| ours.get(key) != theirs.get(key))
        .map(|key| format!("{key}: {:?}, not {:?}", ours.get(key), theirs.get(key)))
        .collect()
}

fn is_incremental(group: &Group) -> bool {
    let value = group[0].1.value.as_ref();
    value.is_some_and(|value| value.contains("\"incremental\""))
}
