//! Topics, readers and a log around a real group, without Kafka and without a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use connectors::envelope::{Decoder, Envelope, Marker, Options, RawRecord};
use connectors::kafka::Record;
use connectors::kafka::transactions::assembly::{Bounds, End, Place};
use connectors::kafka::transactions::group::{Board, Group, Held};
use engine::contract::{LaneSink, Part, Resume, SinkClosed, SourceBatch, SourceContext, Waits};
use engine::model::{ContentHash, Key, ObjectId, Row, RowCodec, Schema, SqlType, Value};
use serde_json::Value as Json;

use super::history::{History, Sent, State, TABLES, topic};
use crate::envelope::schema;

/// What is logged at once.
#[derive(Clone)]
pub struct LogRecord {
    pub parts: Vec<(ObjectId, SourceBatch)>,
    /// It becomes visible with the next.
    pub is_open: bool,
}

/// The input log, with what it amounts to.
#[derive(Default)]
pub struct Log {
    pub records: Vec<LogRecord>,
    rows: BTreeMap<ObjectId, BTreeMap<Key, Row>>,
    positions: BTreeMap<ObjectId, BTreeMap<String, Json>>,
    /// Sources with something that is not visible.
    open: BTreeSet<ObjectId>,
}

impl Log {
    pub fn add(&mut self, record: LogRecord) {
        let sources = record.parts.iter().map(|(source, _)| *source);
        match record.is_open {
            true => self.open.extend(sources),
            false => sources.for_each(|source| {
                self.open.remove(&source);
            }),
        }
        for (source, batch) in &record.parts {
            let rows = self.rows.entry(*source).or_default();
            for (key, row, _) in &batch.changes {
                match row {
                    Some(row) => rows.insert(key.clone(), row.clone()),
                    None => rows.remove(key),
                };
            }
            if let Some(position) = &batch.position {
                let positions = self.positions.entry(*source).or_default();
                positions.insert(batch.lane.clone(), position.clone());
            }
        }
        self.records.push(record);
    }

    /// A crash: what follows these records is lost.
    fn cut(&mut self, kept: usize) {
        let mut records = std::mem::take(&mut self.records);
        records.truncate(kept);
        *self = Log::default();
        records.into_iter().for_each(|record| self.add(record));
    }

    pub fn state(&self) -> State {
        let codec = RowCodec::new(columns()).unwrap();
        let table = |table: usize| {
            let rows = self.rows.get(&ObjectId(table as u32 + 1));
            let rows = rows.into_iter().flat_map(BTreeMap::values);
            let pair = |row: &Row| match codec.unpack(row)[..] {
                [Value::Int(id), Value::Int(n)] => (id, n),
                ref other => panic!("{other:?}"),
            };
            rows.map(pair).collect()
        };
        std::array::from_fn(table)
    }
}

pub fn columns() -> Schema {
    schema(&[("id", SqlType::Int8), ("n", SqlType::Int8)], &["id"])
}

struct Sink {
    source: ObjectId,
    log: Arc<Mutex<Log>>,
}

impl Sink {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }
}

impl LaneSink for Sink {
    fn stage(&self, batch: SourceBatch) -> Result<(), SinkClosed> {
        self.log().add(LogRecord {
            parts: vec![(self.source, batch)],
            is_open: false,
        });
        Ok(())
    }

    fn stage_together(&self, parts: Vec<Part>, is_open: bool) -> Result<(), Vec<Part>> {
        let parts = parts.into_iter().map(|part| (part.source, part.batch));
        let parts = parts.collect();
        let mut log = self.log();
        log.add(LogRecord { parts, is_open });
        assert!(is_open || log.open.is_empty(), "{:?} stay open", log.open);
        Ok(())
    }

    fn reached(&self, _lane: &str, _position: &Json) {}

    fn source(&self) -> ObjectId {
        self.source
    }

    fn sync(&self) -> Result<(), SinkClosed> {
        Ok(())
    }
}

impl Resume for Sink {
    fn position(&self, lane: &str) -> Option<Json> {
        self.log().positions.get(&self.source)?.get(lane).cloned()
    }

    fn live(&self) -> Vec<(Key, ContentHash)> {
        let log = self.log();
        let rows = log.rows.get(&self.source).into_iter().flatten();
        rows.map(|(key, row)| (key.clone(), ContentHash::of(row.as_bytes())))
            .collect()
    }

    fn row(&self, key: &Key) -> Option<Row> {
        self.log().rows.get(&self.source)?.get(key).cloned()
    }

    fn lanes(&self) -> Vec<String> {
        let log = self.log();
        let lanes = log.positions.get(&self.source).into_iter().flatten();
        lanes.map(|(lane, _)| lane.clone()).collect()
    }
}

/// A source's reader.
struct Reader {
    decoder: Decoder,
    board: Board,
    waits: Arc<Waits>,
    next: BTreeMap<i32, i64>,
}

/// See the module.
pub struct Rig {
    pub log: Arc<Mutex<Log>>,
    pub group: Group,
    pub bounds: Bounds,
    pub now: u64,
    readers: BTreeMap<u64, Reader>,
    metadata: Decoder,
    next_end: usize,
}

fn decode(decoder: &mut Decoder, topic: &str, place: (i32, i64), sent: &Sent) -> Held {
    let headers: Vec<(&str, Option<&[u8]>)> = sent
        .headers
        .iter()
        .map(|(name, value)| (&**name, Some(value.as_bytes())))
        .collect();
    let record = RawRecord {
        key: sent.key.as_deref().map(str::as_bytes),
        value: sent.value.as_deref().map(str::as_bytes),
        headers: &headers,
        topic,
        partition: place.0,
        offset: place.1,
        timestamp: Some(1),
    };
    Held {
        decoded: decoder.decode(&record).expect("nothing to wait for"),
        record: Record::of(&record),
    }
}

fn decoder() -> Decoder {
    Decoder::new(columns(), Envelope::Debezium, Options::default())
}

impl Rig {
    pub fn new(bounds: Bounds) -> Rig {
        Rig {
            log: Arc::default(),
            group: Group::new("app.transaction", bounds),
            bounds,
            now: 0,
            readers: BTreeMap::new(),
            metadata: decoder(),
            next_end: 0,
        }
    }

    /// A source of a table joins and finds its partitions.
    pub fn join(&mut self, table: usize) {
        let sink = Arc::new(Sink {
            source: ObjectId(table as u32 + 1),
            log: Arc::clone(&self.log),
        });
        let context = SourceContext {
            name: format!("t{table}"),
            sink: Arc::clone(&sink) as _,
            resume: sink,
            stop: Arc::new(AtomicBool::new(false)),
            dropped: Arc::default(),
            waits: Arc::default(),
        };
        let number = table as u64;
        let board = Board::default();
        let waits = Arc::clone(&context.waits);
        let joined = self.group.join(
            number,
            context,
            &topic(table),
            &columns(),
            Arc::clone(&board),
        );
        joined.unwrap();
        self.readers.insert(
            number,
            Reader {
                decoder: decoder(),
                board,
                waits,
                next: BTreeMap::new(),
            },
        );
    }

    /// What people are told that a source waits for.
    pub fn waits(&self, table: usize) -> Option<String> {
        self.readers[&(table as u64)].waits.reason()
    }

    pub fn begin(&mut self, table: usize, history: &History) {
        let topic = topic(table);
        let position = {
            let log = self.log.lock().unwrap();
            let positions = log.positions.get(&ObjectId(table as u32 + 1));
            let position = positions.and_then(|positions| positions.get(&topic));
            position.cloned().unwrap_or_default()
        };
        let reader = self.readers.get_mut(&(table as u64)).unwrap();
        for (partition, log) in history.partitions[table].iter().enumerate() {
            let next = position["marks"][format!("{topic}/{partition}")].as_i64();
            let next = next.unwrap_or(0);
            reader.next.insert(partition as i32, next);
            let place = Place {
                member: table as u64,
                partition: partition as i32,
            };
            let ends = history.ends.len() as i64;
            self.group
                .begin(place, next, Some(log.len() as i64), Some(ends));
        }
        self.group.ready(table as u64);
    }

    /// A source goes.
    pub fn leave(&mut self, table: usize) {
        self.group.leave(table as u64);
        self.log
            .lock()
            .unwrap()
            .open
            .remove(&ObjectId(table as u32 + 1));
        self.readers.remove(&(table as u64));
    }

    /// All sources join, and the group begins.
    pub fn start(&mut self, tables: std::ops::Range<usize>, history: &History) {
        tables.clone().for_each(|table| self.join(table));
        self.next_end = self.group.start(self.now).unwrap_or(0) as usize;
        self.group.began(self.next_end as i64);
        tables.for_each(|table| self.begin(table, history));
    }

    /// A crash that keeps some of the log, and a new start.
    pub fn crash(&mut self, kept: usize, history: &History) {
        self.log.lock().unwrap().cut(kept);
        self.group = Group::new("app.transaction", self.bounds);
        self.readers.clear();
        self.start(0..TABLES, history);
    }

    /// Some messages of a partition arrive, if it is fetched. How many.
    pub fn deliver(
        &mut self,
        table: usize,
        partition: usize,
        most: usize,
        history: &History,
    ) -> usize {
        let number = table as u64;
        let Some(reader) = self.readers.get_mut(&number) else {
            return 0;
        };
        let partition_ = partition as i32;
        if reader.board.lock().unwrap().paused.contains(&partition_) {
            return 0;
        }
        let next = reader.next[&partition_];
        let log = &history.partitions[table][partition];
        let mut all = Vec::new();
        for (at, sent) in log.iter().enumerate().skip(next as usize).take(most) {
            let place = (partition_, at as i64);
            all.push(decode(&mut reader.decoder, &topic(table), place, sent));
        }
        let count = all.len();
        reader.next.insert(partition_, next + count as i64);
        self.group.take(number, all, self.now);
        count
    }

    /// Some records of the transaction topic arrive. How many.
    pub fn deliver_ends(&mut self, most: usize, history: &History) -> usize {
        let records = history
            .ends
            .iter()
            .enumerate()
            .skip(self.next_end)
            .take(most);
        let mut count = 0;
        for (at, text) in records {
            count += 1;
            let sent = Sent {
                key: None,
                value: Some(text.clone()),
                headers: Vec::new(),
            };
            let held = decode(&mut self.metadata, "app.transaction", (0, at as i64), &sent);
            for marker in held.decoded.markers {
                if let Marker::TransactionEnd { id, tables, .. } = marker {
                    let end = End {
                        id: id.into(),
                        offset: at as i64,
                        tables,
                    };
                    self.group.told(end, self.now);
                }
            }
        }
        self.next_end += count;
        count
    }

    /// The group works, and what it wants to know is looked at.
    pub fn work(&mut self, history: &History) {
        self.group.work(self.now);
        for (number, reader) in &self.readers {
            let wishes = reader.board.lock().unwrap().look_at.clone();
            for partition in wishes {
                let log = &history.partitions[*number as usize][partition as usize];
                let place = Place {
                    member: *number,
                    partition,
                };
                if reader.next[&partition] == log.len() as i64 {
                    self.group.dry(place, self.now);
                }
            }
        }
        if self.group.wants_told_all(self.now) && self.next_end == history.ends.len() {
            self.group.told_all(self.now);
        }
    }

    /// Whether everything that was sent has arrived.
    pub fn has_all(&self, history: &History) -> bool {
        let is_read = |(number, reader): (&u64, &Reader)| {
            let logs = history.partitions[*number as usize].iter().enumerate();
            let mut logs = logs.map(|(at, log)| reader.next[&(at as i32)] == log.len() as i64);
            logs.all(|is_read| is_read)
        };
        self.next_end == history.ends.len() && self.readers.iter().all(is_read)
    }

    pub fn paused(&self) -> usize {
        let boards = self.readers.values();
        boards
            .map(|reader| reader.board.lock().unwrap().paused.len())
            .sum()
    }
}
