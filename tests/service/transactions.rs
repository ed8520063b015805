//! Transactions that are staged in pieces: whatever a reader asks, and whenever the machine loses its power,
//! all of one is there or nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectors::generate;
use engine::contract::{Part, Source, SourceBatch, SourceContext};
use engine::error::WorldError;
use engine::model::{Key, RowCodec, Value};
use engine::testing::MemoryStore;
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use super::rig::{Rig, eventually, together};

/// Both are read by one thread, as tables of one database are.
const PIPELINE: &str = "
CREATE SOURCE a FROM GENERATE (ROWS 1);
CREATE SOURCE b FROM GENERATE (ROWS 1);
";
const NAMES: [&str; 2] = ["a", "b"];
const KEYS: i64 = 12;
/// Crashes of one history; some ten are usual.
const ROUNDS_MAX: usize = 200;

/// What a piece writes: keys of each source (`true`), or takes away.
type Piece = [Vec<(i64, bool)>; 2];

/// The pieces of a transaction; what it writes is its number.
fn transaction(seed: u64, number: u64) -> Vec<Piece> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number));
    let pieces = rng.random_range(1..=4);
    let mut pieces: Vec<Piece> = (0..pieces)
        .map(|_| {
            [0, 1].map(|_| {
                let count = rng.random_range(0..3);
                let change = |_| (rng.random_range(0..KEYS), rng.random_bool(0.8));
                (0..count).map(change).collect()
            })
        })
        .collect();
    // Readers find out from it how far a time is; also a transaction of one source has an end.
    let mark = rng.random_range(0..2);
    pieces[0][mark].push((KEYS, true));
    pieces
}

type State = [BTreeMap<i64, u64>; 2];

/// What is there after each number of transactions.
fn states(seed: u64, count: u64) -> Vec<State> {
    let mut states = vec![State::default()];
    for number in 1..=count {
        let mut state = states.last().expect("the first").clone();
        for piece in transaction(seed, number) {
            for (rows, changes) in state.iter_mut().zip(piece) {
                for (key, is_there) in changes {
                    match is_there {
                        true => drop(rows.insert(key, number)),
                        false => drop(rows.remove(&key)),
                    }
                }
            }
        }
        states.push(state);
    }
    states
}

/// The thread that writes transactions, once both sources are there.
struct Writer {
    seed: u64,
    count: u64,
    joined: Mutex<Vec<SourceContext>>,
    written: AtomicU64,
}

impl Writer {
    fn new(seed: u64, count: u64) -> Arc<Writer> {
        Arc::new(Writer {
            seed,
            count,
            joined: Mutex::default(),
            written: AtomicU64::new(0),
        })
    }

    fn rig(self: &Arc<Self>, store: MemoryStore, workers: usize) -> Rig {
        let writer = Arc::clone(self);
        Rig::with(
            store,
            workers,
            Arc::new(move |_, _, _| {
                Ok(Some(
                    Box::new(Member(Arc::clone(&writer))) as Box<dyn Source>
                ))
            }),
        )
    }

    fn run(&self, mut members: Vec<SourceContext>) {
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let through = |member: &SourceContext| member.resume.position("")?["through"].as_u64();
        let last = members.iter().filter_map(through).max().unwrap_or(0);
        // A run that finds everything written writes nothing itself.
        self.written.store(last, Ordering::Relaxed);
        for number in last + 1..=self.count {
            if self.write(&members, number).is_none() {
                return;
            }
            self.written.store(number, Ordering::Relaxed);
        }
    }

    /// One transaction; `None` when the sources stop.
    fn write(&self, members: &[SourceContext], number: u64) -> Option<()> {
        let codec = codec();
        let row = |key: i64| {
            let values = [Value::Int(key), Value::Null, Value::Int(number as i64)];
            codec.pack(&values)
        };
        let pieces = transaction(self.seed, number);
        let end = pieces.len() - 1;
        let mut is_open = [false; 2];
        for (at, piece) in pieces.iter().enumerate() {
            let mut parts = Vec::new();
            for ((member, changes), is_open) in members.iter().zip(piece).zip(&mut is_open) {
                if changes.is_empty() && !(at == end && *is_open) {
                    continue;
                }
                *is_open = true;
                let changes = changes.iter().map(|(key, is_there)| {
                    let row = is_there.then(|| row(*key));
                    (Key::from_json(&json!(key)), row, None)
                });
                let batch = SourceBatch {
                    changes: changes.collect(),
                    position: (at == end).then(|| json!({ "through": number })),
                    ..SourceBatch::default()
                };
                parts.push(Part {
                    source: member.sink.source(),
                    name: member.name.as_str().into(),
                    batch,
                });
            }
            if parts.is_empty() {
                continue;
            }
            let sink = &members[0].sink;
            sink.stage_together(parts, at < end).ok()?;
            // So that readers and crashes come between pieces.
            members[0].sleep(Duration::from_micros(300)).then_some(())?;
        }
        Some(())
    }
}

fn codec() -> RowCodec {
    RowCodec::new(generate::schema(None)).expect("types that can be ordered")
}

struct Member(Arc<Writer>);

impl Source for Member {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let mut joined = self.0.joined.lock().expect("no panic while held");
        joined.push(context.clone());
        let both = (joined.len() == NAMES.len()).then(|| joined.clone());
        drop(joined);
        if let Some(both) = both {
            self.0.run(both);
        }
        while context.sleep(Duration::from_millis(20)) {}
        Ok(())
    }
}

/// Both sources at one time, and the number of the last transaction that shows.
fn read(rig: &Rig) -> (u64, State) {
    let mut at = None;
    eventually("both have a time", || {
        let rows = rig.rows("SELECT collection, since, upper FROM headwater.progress");
        let is_own = |row: &&Vec<Json>| NAMES.iter().any(|name| row[0] == *name);
        let times = rows.iter().filter(is_own);
        let times = times.map(|row| Some((row[1].as_u64()?, row[2].as_u64()?)));
        let times: Option<Vec<(u64, u64)>> = times.collect();
        let Some(times) = times.filter(|times| times.len() == NAMES.len()) else {
            return false;
        };
        let since = times.iter().map(|(since, _)| *since).max();
        let last = times.iter().map(|(_, upper)| upper.saturating_sub(1)).min();
        at = last.filter(|last| Some(*last) >= since);
        at.is_some()
    });
    let at = at.expect("just seen");
    let state = NAMES.map(|name| {
        let rows = rig.rows(&format!("SELECT id, grp FROM {name} AS OF {at}"));
        let pair = |row: &Vec<Json>| Some((row[0].as_i64()?, row[1].as_u64()?));
        rows.iter().filter_map(pair).collect()
    });
    let numbers = state.iter().flat_map(BTreeMap::values);
    (numbers.copied().max().unwrap_or(0), state)
}

fn check(seed: u64, workers: usize) {
    const COUNT: u64 = 120;
    let states = states(seed, COUNT);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut store = MemoryStore::new();
    let (mut reads, mut is_first, mut rounds) = (0, true, 0);
    loop {
        let writer = Writer::new(seed, COUNT);
        let rig = writer.rig(store.clone(), workers);
        if std::mem::take(&mut is_first) {
            let declared = rig.reconcile(PIPELINE, false, false);
            declared.expect("the pipeline is right");
        }
        // Longer each time: on a busy machine nothing would be written between two crashes.
        rounds += 1;
        assert!(rounds < ROUNDS_MAX, "seed {seed}: the sources get nowhere");
        for _ in 0..rng.random_range(3..12) + rounds {
            let (number, state) = read(&rig);
            let context = format!("seed {seed}, {workers} workers, transaction {number}");
            assert_eq!(state, states[number as usize], "{context}");
            reads += 1;
        }
        if writer.written.load(Ordering::Relaxed) == COUNT && reads > 20 {
            eventually("everything is visible", || {
                read(&rig).1 == states[COUNT as usize]
            });
            break;
        }
        store = rig.store.after_crash(rng.random());
        rig.service.stop();
    }
    assert!(reads > 20, "{reads} reads");
}

#[test]
fn transactions_in_pieces_are_seen_whole_over_crashes() {
    let _beside = together();
    for workers in [1, 2, 4] {
        for seed in 1..=3 {
            check(seed, workers);
        }
    }
}

/// What is open makes no room, and may not wait for any.
#[test]
fn a_transaction_larger_than_the_room_for_staged_rows_is_seen_whole() {
    const PIECES: i64 = 5;
    let _beside = together();
    let writer = Writer::new(0, 0);
    let rig = writer.rig(MemoryStore::new(), 1);
    let declared = rig.reconcile(PIPELINE, false, false);
    declared.expect("the pipeline is right");
    let joined = || writer.joined.lock().expect("no panic while held").clone();
    let member = || joined().into_iter().find(|member| member.name == "a");
    eventually("the source runs", || member().is_some());
    let member = member().expect("just seen");
    let codec = codec();
    let text = "x".repeat(engine::limits::STAGED_BYTES_MAX / 4);
    let count = || rig.rows("SELECT id FROM a").len() as i64;
    for piece in 0..PIECES {
        let values = [
            Value::Int(piece),
            Value::Text(text.as_str().into()),
            Value::Null,
        ];
        let change = (
            Key::from_json(&json!(piece)),
            Some(codec.pack(&values)),
            None,
        );
        let part = Part {
            source: member.sink.source(),
            name: "a".into(),
            batch: SourceBatch {
                changes: vec![change],
                ..SourceBatch::default()
            },
        };
        assert_eq!(count(), 0, "before piece {piece}");
        let staged = member.sink.stage_together(vec![part], piece + 1 < PIECES);
        staged.expect("the sink is open");
    }
    eventually("the transaction is visible", || match count() {
        0 => false,
        found => {
            assert_eq!(found, PIECES);
            true
        }
    });
}
