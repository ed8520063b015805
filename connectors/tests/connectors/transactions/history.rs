//! A database with tables, and the connector that tells its transactions: topics of changes, and the
//! transaction topic.

use std::collections::{BTreeMap, BTreeSet};

use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

/// Tables that are read; one more is written that nobody reads.
pub const TABLES: usize = 3;

/// Keys of a table are below: half of them are made, the others come of those by a change of the key.
pub const KEYS: i64 = 24;

/// A message of a partition.
#[derive(Debug, Clone)]
pub struct Sent {
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<(String, String)>,
}

/// The rows of all tables that are read.
pub type State = [BTreeMap<i64, i64>; TABLES];

/// What the connector sends for one transaction: table, key (of a row), the event.
#[derive(Debug, Clone)]
struct Told {
    id: u64,
    events: Vec<(usize, Option<i64>, Sent)>,
    counts: BTreeMap<usize, u64>,
    is_whole: bool,
}

/// See the module.
pub struct History {
    pub rng: ChaCha8Rng,
    state: State,
    /// The state after each transaction that is read at all, from none on.
    pub states: Vec<State>,
    /// Keys that each of them writes.
    pub written: BTreeMap<u64, Vec<(usize, i64)>>,
    told: Vec<Told>,
    commit: u64,
    lsn: u64,
    sent: usize,
    /// By table and partition.
    pub partitions: Vec<Vec<Vec<Sent>>>,
    pub ends: Vec<String>,
    /// One END of so many is lost; 0: none.
    pub loses: u32,
    /// Transactions whose END was lost.
    pub lost: Vec<u64>,
    pub is_schemaless: bool,
    /// What a connector writes that is about to be killed, in this order.
    flow: Vec<Written>,
    /// It was killed: the first that was lost, a transaction and its event.
    lost_at: Option<(usize, usize)>,
}

/// A record, and what it is of: a transaction's event, or with its number of events its END.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// `None`: the transaction topic.
    place: Option<(usize, usize)>,
    at: usize,
    event: usize,
}

pub fn topic(table: usize) -> String {
    format!("app.public.t{table}")
}

impl History {
    pub fn new(seed: u64) -> History {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let partitions = (0..=TABLES)
            .map(|_| vec![Vec::new(); rng.random_range(1..=3)])
            .collect();
        History {
            is_schemaless: rng.random_bool(0.7),
            rng,
            state: State::default(),
            states: vec![State::default()],
            written: BTreeMap::new(),
            told: Vec::new(),
            commit: 0,
            lsn: 100,
            sent: 0,
            partitions,
            ends: Vec::new(),
            loses: 0,
            lost: Vec::new(),
            flow: Vec::new(),
            lost_at: None,
        }
    }

    fn event(
        &mut self,
        told: &mut Told,
        table: usize,
        op: &str,
        id: Option<i64>,
        row: Option<i64>,
    ) {
        self.lsn += self.rng.random_range(1..20u64);
        let order = told.counts.entry(table).or_default();
        *order += 1;
        let order = *order;
        let image = row.map(|n| json!({"id": id, "n": n}));
        let before = match op {
            "d" => json!({"id": id, "n": 0}),
            _ => Json::Null,
        };
        let value = json!({
            "before": before, "after": image, "op": op, "ts_ms": 1,
            "source": {"version": "3.3.1.Final", "connector": "postgresql", "name": "app",
                "db": "app", "schema": "public", "table": format!("t{table}"),
                "snapshot": "false", "txId": told.id, "lsn": self.lsn,
                "sequence": format!("[\"{}\",\"{}\"]", self.commit, self.lsn)},
            "transaction": {"id": format!("{}:{}", told.id, self.lsn),
                "total_order": told.events.len() + 1, "data_collection_order": order},
        });
        let sent = Sent {
            key: id.map(|id| json!({"id": id}).to_string()),
            value: Some(value.to_string()),
            headers: Vec::new(),
        };
        told.events.push((table, id, sent));
    }

    fn tombstone(told: &mut Told, table: usize, id: i64) {
        let sent = Sent {
            key: Some(json!({"id": id}).to_string()),
            value: None,
            headers: Vec::new(),
        };
        told.events.push((table, Some(id), sent));
    }

    /// One transaction is committed.
    pub fn commit(&mut self) {
        let number = self.told.len() as u64 + 1;
        let mut told = Told {
            id: number,
            events: Vec::new(),
            counts: BTreeMap::new(),
            is_whole: true,
        };
        let mut written = Vec::new();
        for _ in 0..self.rng.random_range(1..8) {
            let table = self.rng.random_range(0..=TABLES);
            let id = self.rng.random_range(0..KEYS / 2);
            let n = self.rng.random_range(0..1_000_000i64);
            if table == TABLES {
                self.event(&mut told, table, "c", Some(id), Some(n));
                continue;
            }
            let is_there = self.state[table].contains_key(&id);
            written.push((table, id));
            match self.rng.random_range(0..100) {
                0..2 => {
                    // Also what an earlier transaction takes out, which may be seen later.
                    written.extend((0..KEYS).map(|id| (table, id)));
                    self.event(&mut told, table, "t", None, None);
                    self.state[table].clear();
                }
                2..22 if is_there => {
                    self.event(&mut told, table, "d", Some(id), None);
                    History::tombstone(&mut told, table, id);
                    self.state[table].remove(&id);
                }
                22..32 if is_there && !self.state[table].contains_key(&(id + KEYS / 2)) => {
                    let to = id + KEYS / 2;
                    written.push((table, to));
                    self.event(&mut told, table, "d", Some(id), None);
                    let header = json!({"id": to}).to_string();
                    let delete = told.events.last_mut().expect("pushed above");
                    let header = ("__debezium.newkey".to_owned(), header);
                    delete.2.headers.push(header);
                    History::tombstone(&mut told, table, id);
                    self.event(&mut told, table, "c", Some(to), Some(n));
                    let header = json!({"id": id}).to_string();
                    let create = told.events.last_mut().expect("pushed above");
                    let header = ("__debezium.oldkey".to_owned(), header);
                    create.2.headers.push(header);
                    self.state[table].remove(&id);
                    self.state[table].insert(to, n);
                }
                _ => {
                    let op = if is_there { "u" } else { "c" };
                    self.event(&mut told, table, op, Some(id), Some(n));
                    self.state[table].insert(id, n);
                }
            }
        }
        self.lsn += 8;
        self.commit = self.lsn;
        if self.loses > 0 && self.rng.random_range(0..self.loses) == 0 {
            told.is_whole = false;
            self.lost.push(number);
        }
        self.told.push(told);
        self.states.push(self.state.clone());
        self.written.insert(number, written);
    }

    fn put(&mut self, table: usize, key: Option<i64>, sent: Sent) -> (usize, usize) {
        let count = self.partitions[table].len();
        let partition = match key {
            Some(key) => key as usize % count,
            None => self.rng.random_range(0..count),
        };
        self.partitions[table][partition].push(sent);
        (table, partition)
    }

    fn metadata(&mut self, record: Json) {
        let text = match self.is_schemaless {
            true => record.to_string(),
            false => json!({
                "schema": {"type": "struct", "fields": [
                    {"type": "string", "optional": false, "field": "status"},
                    {"type": "string", "optional": false, "field": "id"},
                    {"type": "int64", "optional": true, "field": "event_count"},
                    {"type": "array", "optional": true, "field": "data_collections", "items":
                        {"type": "struct", "optional": false, "name": "event.collection", "fields": [
                            {"type": "string", "optional": false, "field": "data_collection"},
                            {"type": "int64", "optional": false, "field": "event_count"}]}},
                    {"type": "int64", "optional": false, "field": "ts_ms"}],
                    "optional": false, "version": 1,
                    "name": "io.debezium.connector.common.TransactionMetadataValue"},
                "payload": record})
            .to_string(),
        };
        self.ends.push(text);
    }

    /// The connector sends the next transaction, from its `skip`th event on; `dies` after so many.
    fn send_one(&mut self, at: usize, skip: usize, dies: Option<usize>) {
        let told = self.told[at].clone();
        let id = told.id;
        if skip == 0 {
            self.note(None, at, 0);
            self.metadata(
                json!({"status": "BEGIN", "id": format!("{id}:1"), "event_count": null,
                "data_collections": null, "ts_ms": 1}),
            );
        }
        let count = told.events.len();
        let until = dies.unwrap_or(count).min(count);
        let events = told.events.into_iter().enumerate();
        for (number, (table, key, sent)) in events {
            if (skip..until.max(skip)).contains(&number) {
                let place = self.put(table, key, sent);
                self.note(Some(place), at, number);
            }
        }
        if dies.is_none() && told.is_whole {
            self.note(None, at, count);
            let tables = told.counts.iter().map(|(table, count)| {
                json!({"data_collection": format!("public.t{table}"), "event_count": count})
            });
            let tables: Vec<Json> = tables.collect();
            let all: u64 = told.counts.values().sum();
            self.metadata(
                json!({"status": "END", "id": format!("{id}:2"), "event_count": all,
                "data_collections": tables, "ts_ms": 1}),
            );
        }
    }

    fn note(&mut self, place: Option<(usize, usize)>, at: usize, event: usize) {
        self.flow.push(Written { place, at, event });
    }

    /// The connector sends what was committed; now and then it dies, and begins again further back when it is
    /// called again. Whether it lives.
    pub fn send(&mut self, restarts: bool) -> bool {
        while self.sent < self.told.len() {
            if restarts && self.lost_at.is_none() && self.rng.random_bool(0.03) {
                self.lost_at = Some(self.die());
                if self.rng.random_bool(0.5) {
                    return false;
                }
            }
            if let Some((lost, event)) = self.lost_at.take() {
                let back = self.rng.random_range(0..20).min(lost);
                self.sent = lost - back;
                // Its offsets may stand inside of a transaction.
                let skip = match back {
                    0 => self.rng.random_range(0..=event),
                    _ if self.rng.random_bool(0.5) => self.rng.random_range(0..4),
                    _ => 0,
                };
                // A tombstone has the offset of its delete, and never comes without.
                let events = &self.told[self.sent].events;
                let is_tombstone = events
                    .get(skip)
                    .is_some_and(|(.., one)| one.value.is_none());
                let skip = if is_tombstone { skip - 1 } else { skip };
                self.send_one(self.sent, skip, None);
                self.sent += 1;
                continue;
            }
            self.send_one(self.sent, 0, None);
            self.sent += 1;
            if self.rng.random_bool(0.1) {
                self.read_one();
            }
        }
        true
    }

    /// The connector sends some more and is killed. What its producer had not written is lost, in each
    /// partition the last of it: one may have what comes long after what another lost. The first that is
    /// lost: a transaction, and its event.
    fn die(&mut self) -> (usize, usize) {
        self.flow.clear();
        let more = self
            .rng
            .random_range(0..8)
            .min(self.told.len() - 1 - self.sent);
        (self.sent..self.sent + more).for_each(|at| self.send_one(at, 0, None));
        let last = self.sent + more;
        let dies = self.rng.random_range(0..6);
        self.send_one(last, 0, Some(dies));
        let mut first = (last, dies.min(self.told[last].events.len()));
        let flow = std::mem::take(&mut self.flow);
        let places: BTreeSet<_> = flow.iter().map(|written| written.place).collect();
        for place in places
            .into_iter()
            .filter(|_| self.rng.random_bool(0.5))
            .collect::<Vec<_>>()
        {
            let own: Vec<&Written> = flow.iter().filter(|one| one.place == place).collect();
            let kept = self.rng.random_range(0..=own.len());
            let Some(lost) = own.get(kept) else { continue };
            first = first.min((lost.at, lost.event));
            let dropped = own.len() - kept;
            match place {
                Some((table, partition)) => {
                    let log = &mut self.partitions[table][partition];
                    log.truncate(log.len() - dropped);
                }
                None => self.ends.truncate(self.ends.len() - dropped),
            }
        }
        first
    }

    /// An incremental snapshot reads a row, which belongs to no transaction. It is sent where the
    /// connector stands.
    fn read_one(&mut self) {
        if self.sent != self.told.len() {
            return;
        }
        let table = self.rng.random_range(0..TABLES);
        let rows: Vec<(i64, i64)> = self.state[table].iter().map(|(k, v)| (*k, *v)).collect();
        let Some((id, n)) = rows.choose(&mut self.rng).copied() else {
            return;
        };
        let value = json!({"before": null, "after": {"id": id, "n": n}, "op": "r", "ts_ms": 1,
            "source": {"version": "3.3.1.Final", "connector": "postgresql", "name": "app",
                "db": "app", "schema": "public", "table": format!("t{table}"),
                "snapshot": "incremental", "txId": null, "lsn": null,
                "sequence": "[null,null]"}, "transaction": null});
        let sent = Sent {
            key: Some(json!({"id": id}).to_string()),
            value: Some(value.to_string()),
            headers: Vec::new(),
        };
        self.put(table, Some(id), sent);
    }
}
