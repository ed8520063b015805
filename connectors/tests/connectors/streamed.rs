//! Transactions that PostgreSQL sends before they commit, against what became of them.
//!
//! A small server makes histories: transactions in turns, savepoints that are released and rolled
//! back, tables whose columns change, and a memory so small that most transactions are sent in parts
//! (as `logical_decoding_work_mem` has it). What it sends is bytes by the protocol's documentation. The
//! reader under test decodes and keeps them; at each commit it must give exactly the rows that the
//! transaction has then, each after the shape of its table that it was written under.

use std::collections::{BTreeMap, BTreeSet};

use connectors::postgres::message::{self, Field, Message};
use connectors::postgres::streamed::{Streamed, Unkept};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

/// Tables; each has as many columns as its shape says.
const TABLES: usize = 3;

/// A row as it was written: its table, the table's number of columns, its first value.
type Written = (u32, u16, String);

/// A change that is not sent yet.
#[derive(Clone)]
struct Change {
    owner: u32,
    row: Written,
}

/// A transaction of the server's.
struct Transaction {
    xid: u32,
    /// Savepoints that are open: each with the ids of what was released into it, its own first.
    levels: Vec<Level>,
    unsent: Vec<Change>,
    /// What was sent of each owner, or is unsent: the truth.
    rows: Vec<Change>,
    is_streamed: bool,
    /// The shapes of tables that were sent in it.
    told: BTreeMap<u32, u16>,
    /// Owners of which something was sent.
    sent: BTreeSet<u32>,
}

#[derive(Default)]
struct Level {
    /// Its own id, once it wrote.
    xid: Option<u32>,
    released: Vec<u32>,
    /// Shapes as they were before it.
    shapes: BTreeMap<u32, u16>,
}

/// See the module.
struct Server {
    rng: ChaCha8Rng,
    next: u32,
    memory: usize,
    shapes: BTreeMap<u32, u16>,
    /// Who holds a table for itself alone: it changed its shape.
    locks: BTreeMap<u32, u32>,
    open: Vec<Transaction>,
    /// The shapes of tables that were sent with what is committed.
    told: BTreeMap<u32, u16>,
    out: Vec<Vec<u8>>,
    /// What each commit must give, in order.
    expected: Vec<Vec<Written>>,
    rows: u64,
    streams: usize,
}

impl Server {
    fn new(seed: u64) -> Server {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Server {
            memory: rng.random_range(1..12),
            rng,
            next: 700,
            shapes: (0..TABLES as u32).map(|table| (table, 1)).collect(),
            locks: BTreeMap::new(),
            open: Vec::new(),
            told: BTreeMap::new(),
            out: Vec::new(),
            expected: Vec::new(),
            rows: 0,
            streams: 0,
        }
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn step(&mut self) {
        if self.open.is_empty() || (self.open.len() < 4 && self.rng.random_bool(0.1)) {
            let xid = self.id();
            self.open.push(Transaction {
                xid,
                levels: vec![Level {
                    xid: Some(xid),
                    ..Level::default()
                }],
                unsent: Vec::new(),
                rows: Vec::new(),
                is_streamed: false,
                told: BTreeMap::new(),
                sent: BTreeSet::new(),
            });
        }
        let at = self.rng.random_range(0..self.open.len());
        match self.rng.random_range(0..100) {
            0..55 => self.insert(at),
            55..60 => self.alter(at),
            60..72 => self.open[at].levels.push(Level::default()),
            72..80 => self.release(at),
            80..90 => self.roll_back_to(at),
            90..97 => self.commit(at),
            _ => self.roll_back(at),
        }
    }

    /// The id under which the innermost savepoint writes.
    fn owner(&mut self, at: usize) -> u32 {
        let fresh = self.id();
        let level = self.open[at]
            .levels
            .last_mut()
            .expect("the transaction's own");
        *level.xid.get_or_insert(fresh)
    }

    fn may_write(&self, at: usize, table: u32) -> bool {
        let holder = self.locks.get(&table);
        holder.is_none_or(|holder| *holder == self.open[at].xid)
    }

    fn insert(&mut self, at: usize) {
        let table = self.rng.random_range(0..TABLES as u32);
        if !self.may_write(at, table) {
            return;
        }
        self.rows += 1;
        let row = (table, self.shapes[&table], format!("row {}", self.rows));
        let owner = self.owner(at);
        let change = Change { owner, row };
        self.open[at].unsent.push(change.clone());
        self.open[at].rows.push(change);
        let unsent = |one: &Transaction| one.unsent.len();
        while self.open.iter().map(unsent).sum::<usize>() > self.memory {
            let largest = (0..self.open.len()).max_by_key(|at| unsent(&self.open[*at]));
            self.stream(largest.expect("there is one"));
        }
    }

    /// A column more: nobody else has written to the table, and nobody may until it is over.
    fn alter(&mut self, at: usize) {
        let table = self.rng.random_range(0..TABLES as u32);
        let wrote = |one: &Transaction| one.rows.iter().any(|change| change.row.0 == table);
        let mut others = self.open.iter().enumerate();
        let is_used = others.any(|(other, one)| other != at && wrote(one));
        if is_used || !self.may_write(at, table) {
            return;
        }
        let before = self.shapes[&table];
        self.locks.insert(table, self.open[at].xid);
        let level = self.open[at]
            .levels
            .last_mut()
            .expect("the transaction's own");
        level.shapes.entry(table).or_insert(before);
        self.shapes.insert(table, before + 1);
        self.forget_shape(table);
    }

    /// The server's cache has another shape: it must be sent again, everywhere.
    fn forget_shape(&mut self, table: u32) {
        self.told.remove(&table);
        for one in &mut self.open {
            one.told.remove(&table);
        }
    }

    fn release(&mut self, at: usize) {
        let levels = &mut self.open[at].levels;
        if levels.len() < 2 {
            return;
        }
        let inner = levels.pop().expect("two");
        let outer = levels.last_mut().expect("one is left");
        outer.released.extend(inner.released);
        outer.released.extend(inner.xid);
        for (table, shape) in inner.shapes {
            outer.shapes.entry(table).or_insert(shape);
        }
    }

    fn roll_back_to(&mut self, at: usize) {
        if self.open[at].levels.len() < 2 {
            return;
        }
        let level = self.open[at].levels.pop().expect("two");
        let gone: Vec<u32> = level.released.into_iter().chain(level.xid).collect();
        for (table, shape) in level.shapes {
            self.shapes.insert(table, shape);
            self.forget_shape(table);
        }
        let one = &mut self.open[at];
        let is_left = |change: &Change| !gone.contains(&change.owner);
        one.unsent.retain(is_left);
        one.rows.retain(is_left);
        for owner in gone.iter().filter(|owner| one.sent.contains(owner)) {
            self.out.push(numbers(b'A', &[one.xid, *owner]));
            // As the server does it: all shapes are sent again.
            one.told.clear();
        }
    }

    /// Sends what is there of a transaction that is not over.
    fn stream(&mut self, at: usize) {
        let one = &mut self.open[at];
        let mut start = numbers(b'S', &[one.xid]);
        start.push(u8::from(!one.is_streamed));
        self.out.push(start);
        self.streams += 1;
        one.is_streamed = true;
        for change in one.unsent.drain(..) {
            let (table, columns, value) = change.row;
            if one.told.insert(table, columns) != Some(columns) {
                let message = owned(&relation(table, columns), change.owner);
                self.out
                    .push(owned(&[b'Y', 0, 0, 0, 9, 0, 0], change.owner));
                self.out.push(message);
            }
            one.sent.insert(change.owner);
            let message = insert(table, columns, &value);
            self.out.push(owned(&message, change.owner));
        }
        self.out.push(b"E".to_vec());
    }

    fn end(&mut self, at: usize) -> Transaction {
        let one = self.open.remove(at);
        self.locks.retain(|_, holder| *holder != one.xid);
        one
    }

    fn commit(&mut self, at: usize) {
        if self.open[at].is_streamed {
            self.stream(at);
        }
        let one = self.end(at);
        let place = self.expected.len() as u64 + 1;
        if one.is_streamed {
            let mut commit = numbers(b'c', &[one.xid]);
            commit.push(0);
            commit.extend([place.to_be_bytes(), place.to_be_bytes(), [0; 8]].concat());
            self.out.push(commit);
            self.told.extend(&one.told);
        } else {
            let begin = [&[b'B'][..], &place.to_be_bytes(), &[0; 12]].concat();
            self.out.push(begin);
            for Change { row, .. } in &one.unsent {
                if self.told.insert(row.0, row.1) != Some(row.1) {
                    self.out.push(relation(row.0, row.1));
                }
                self.out.push(insert(row.0, row.1, &row.2));
            }
            let places = [place.to_be_bytes(), place.to_be_bytes(), [0; 8]].concat();
            self.out.push([&[b'C', 0][..], &places].concat());
        }
        let rows = one.rows.into_iter().map(|change| change.row);
        self.expected.push(rows.collect());
    }

    fn roll_back(&mut self, at: usize) {
        while self.open[at].levels.len() > 1 {
            self.roll_back_to(at);
        }
        for (table, shape) in std::mem::take(&mut self.open[at].levels[0].shapes) {
            self.shapes.insert(table, shape);
            self.forget_shape(table);
        }
        let one = self.end(at);
        if one.is_streamed {
            for owner in one.sent.iter().filter(|owner| **owner != one.xid) {
                self.out.push(numbers(b'A', &[one.xid, *owner]));
            }
            self.out.push(numbers(b'A', &[one.xid, one.xid]));
        }
    }
}

fn numbers(kind: u8, numbers: &[u32]) -> Vec<u8> {
    let bytes = numbers.iter().flat_map(|number| number.to_be_bytes());
    [kind].into_iter().chain(bytes).collect()
}

/// A message as it stands within a stream.
fn owned(message: &[u8], owner: u32) -> Vec<u8> {
    [&message[..1], &owner.to_be_bytes(), &message[1..]].concat()
}

fn relation(table: u32, columns: u16) -> Vec<u8> {
    let mut out = numbers(b'R', &[table]);
    out.extend(b"public\0t\0d");
    out.extend(columns.to_be_bytes());
    for _ in 0..columns {
        out.push(1);
        out.extend(b"c\0");
        out.extend([0, 0, 0, 25, 255, 255, 255, 255]);
    }
    out
}

fn insert(table: u32, columns: u16, value: &str) -> Vec<u8> {
    let mut out = numbers(b'I', &[table]);
    out.push(b'N');
    out.extend(columns.to_be_bytes());
    for _ in 0..columns {
        out.extend(numbers(b't', &[value.len() as u32]));
        out.extend(value.as_bytes());
    }
    out
}

/// What a reader makes of the messages: the rows of each commit.
struct Reader {
    streamed: Streamed,
    shapes: BTreeMap<u32, u16>,
    commits: Vec<Vec<Written>>,
    /// Most that was in files at once.
    files: u64,
}

impl Reader {
    fn take(&mut self, bytes: &[u8]) {
        if self.streamed.is_open() && bytes != b"E" {
            self.streamed.take(bytes).unwrap();
            self.files = self.files.max(self.streamed.bytes().1);
            return;
        }
        match message::decode(bytes, false).unwrap() {
            Message::StreamStart { xid, is_first } => self.streamed.start(xid, is_first).unwrap(),
            Message::StreamStop => self.streamed.stop().unwrap(),
            Message::StreamAbort { xid, subxid } => self.streamed.abort(xid, subxid),
            Message::StreamCommit { xid, commit, .. } => {
                let mut replay = self.streamed.commit(xid).unwrap();
                self.commits.push(Vec::new());
                assert_eq!(
                    self.commits.len() as u64,
                    commit,
                    "in the order of the commits"
                );
                while let Some(bytes) = replay.next().unwrap() {
                    let message = message::decode(bytes, true).unwrap();
                    apply(&mut self.shapes, &mut self.commits, &message);
                }
            }
            Message::Begin { .. } => self.commits.push(Vec::new()),
            message => apply(&mut self.shapes, &mut self.commits, &message),
        }
    }
}

fn apply(shapes: &mut BTreeMap<u32, u16>, commits: &mut [Vec<Written>], message: &Message<'_>) {
    match message {
        Message::Relation(relation) => {
            shapes.insert(relation.id, relation.columns.len() as u16);
        }
        Message::Insert { table, new } => {
            let columns = new.len() as u16;
            assert_eq!(
                shapes.get(table),
                Some(&columns),
                "the shape of table {table}"
            );
            let Field::Text(value) = new[0] else {
                panic!("a text");
            };
            let rows = commits.last_mut().expect("a transaction");
            rows.push((*table, columns, value.to_owned()));
        }
        _ => {}
    }
}

/// Reads a history; how many streams it had, and the most that was in files.
fn law(seed: u64, memory_max: usize) -> (usize, u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::new(seed);
    for _ in 0..server.rng.random_range(1..400) {
        server.step();
    }
    let mut reader = Reader {
        streamed: Streamed::bounded(folder.path(), memory_max, u64::MAX),
        shapes: BTreeMap::new(),
        commits: Vec::new(),
        files: 0,
    };
    for bytes in server.out.drain(..) {
        reader.take(&bytes);
    }
    assert_eq!(
        reader.commits, server.expected,
        "seed {seed}, memory {memory_max}"
    );
    while !server.open.is_empty() {
        server.roll_back(0);
    }
    for bytes in server.out.drain(..) {
        reader.take(&bytes);
    }
    assert_eq!(reader.streamed.bytes(), (0, 0), "nothing is left");
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 0, "files have no names");
    (server.streams, reader.files)
}

#[test]
fn a_commit_gives_what_was_not_rolled_back_and_nothing_else() {
    let (mut streams, mut files) = (0, 0);
    for seed in 0..500 {
        for memory_max in [usize::MAX, 200] {
            let (more, spilled) = law(seed, memory_max);
            (streams, files) = (streams + more, files + spilled);
        }
    }
    println!("{streams} streams, {files} bytes in files at most");
    assert!(
        streams > 10_000 && files > 100_000,
        "{streams} streams, {files} bytes"
    );
}

#[test]
fn what_cannot_be_kept_is_told_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let message = owned(&insert(1, 1, "a value"), 7);
    let fill = |folder: &std::path::Path, files_max| {
        let mut streamed = Streamed::bounded(folder, 10, files_max);
        streamed.start(7, true).unwrap();
        streamed.take(&message).unwrap_err().to_string()
    };
    assert_eq!(
        fill(folder.path(), 20),
        "transactions that are not committed take more than STREAMED_FILE_BYTES_MAX (20 bytes)"
    );
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    let told = fill(&taken, u64::MAX);
    let expected = "a transaction that is not committed cannot be written to a file in ";
    assert!(
        told.starts_with(expected) && told.contains("taken: "),
        "{told}"
    );
}

#[test]
fn streams_out_of_order_are_told_in_words() {
    let mut streamed = Streamed::new(&std::env::temp_dir());
    let message = owned(&insert(1, 1, "a value"), 7);
    let told = |error: Unkept| {
        assert!(matches!(error, Unkept::Disorder(_)));
        let told = error.to_string();
        let told = told.strip_prefix("a stream of transactions out of order: ");
        told.expect("the beginning").to_owned()
    };
    assert_eq!(
        told(streamed.start(7, false).unwrap_err()),
        "7 goes on and never began"
    );
    assert_eq!(
        told(streamed.stop().unwrap_err()),
        "a stream ends that did not begin"
    );
    assert_eq!(
        told(streamed.take(&message).unwrap_err()),
        "a change outside a stream"
    );
    assert_eq!(
        told(streamed.commit(7).unwrap_err()),
        "7 is committed and never began"
    );
    streamed.start(7, true).unwrap();
    assert_eq!(
        told(streamed.start(8, true).unwrap_err()),
        "8 begins within the stream of 7"
    );
    let stray = told(streamed.take(b"S").unwrap_err());
    assert_eq!(stray, "a message of kind 83 within a stream");
    // What was never sent may be rolled back.
    streamed.stop().unwrap();
    streamed.abort(9, 9);
    streamed.abort(9, 10);
}
