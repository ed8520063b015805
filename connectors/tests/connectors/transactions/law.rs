//! The law: at every logged record the rows of all tables together are those after some whole
//! transactions, whatever is delivered when, again, or never; at the end they are the database's.
//!
//! Where ENDs are lost, the law holds for all keys that no transaction without an END has written, while
//! nothing is sent again and nothing crashes; the end holds always.

use std::collections::BTreeSet;

use connectors::kafka::transactions::assembly::Bounds;
use rand::prelude::*;

use super::history::{History, KEYS, State, TABLES};
use super::rig::{Log, Rig};

const WAIT: u64 = 5_000;

/// Follows the log, record by record.
struct Checker {
    replica: Log,
    /// The number of transactions that the rows have.
    at: usize,
}

fn without(state: &State, keys: &BTreeSet<(usize, i64)>) -> State {
    let mut state = state.clone();
    for (table, key) in keys {
        state[*table].remove(key);
    }
    state
}

/// What sets the rows apart from those after the transactions that they are nearest to.
fn nearest(history: &History, from: usize, seen: &State, but: &BTreeSet<(usize, i64)>) -> String {
    let unlike = |at: usize| {
        let state = without(&history.states[at], but);
        let keys = (0..TABLES).flat_map(|table| (0..KEYS).map(move |key| (table, key)));
        let pair = |(table, key): (usize, i64)| (seen[table].get(&key), state[table].get(&key));
        let keys = keys.filter(|place| pair(*place).0 != pair(*place).1);
        keys.collect::<Vec<_>>()
    };
    let at = (from..history.states.len()).min_by_key(|at| unlike(*at).len());
    let at = at.expect("there is a state");
    let told = unlike(at).into_iter().map(|(table, key)| {
        let writers = history.written.iter();
        let writers = writers.filter(|(_, keys)| keys.contains(&(table, key)));
        let writers: Vec<u64> = writers.map(|(number, _)| *number).collect();
        let (is, should) = (seen[table].get(&key), history.states[at][table].get(&key));
        format!("t{table} {key}: {is:?}, not {should:?}, written by {writers:?}")
    });
    let told: Vec<String> = told.collect();
    format!(
        "it stood at {from}, is nearest to {at}; {}",
        told.join("; ")
    )
}

impl Checker {
    fn new() -> Checker {
        Checker {
            replica: Log::default(),
            at: 0,
        }
    }

    /// Checks the records that are new.
    fn check(&mut self, log: &Log, history: &History, but: &BTreeSet<(usize, i64)>, context: &str) {
        for record in &log.records[self.replica.records.len()..] {
            self.replica.add(record.clone());
            if record.is_open {
                continue;
            }
            let seen = without(&self.replica.state(), but);
            let later = history.states.iter().enumerate().skip(self.at);
            let mut same = later.filter(|(_, state)| without(state, but) == seen);
            let Some((at, _)) = same.next() else {
                let nearest = nearest(history, self.at, &seen, but);
                let record = self.replica.records.len();
                panic!("{context}: record {record} shows no whole transactions: {nearest}");
            };
            self.at = at;
        }
    }
}

/// A source goes and comes again while transactions are on their way: those of the others stay whole, and
/// when all has come its own do, too.
fn come_and_go(rig: &mut Rig, history: &mut History, checker: &mut Checker, context: &str) {
    let table = history.rng.random_range(0..TABLES);
    rig.leave(table);
    let but = (0..KEYS).map(|key| (table, key)).collect();
    for turn in 0..3 {
        if turn == 1 {
            rig.join(table);
            rig.begin(table, history);
        }
        for _ in 0..history.rng.random_range(0..6) {
            history.commit();
        }
        history.send(false);
        for _ in 0..history.rng.random_range(0..40) {
            step(rig, history);
        }
        checker.check(&rig.log.lock().unwrap(), history, &but, context);
    }
    let last = history.states.last().unwrap().clone();
    for _ in 0..10_000 {
        // Until then the source shows what it finds.
        if rig.has_all(history) && rig.log.lock().unwrap().state() == last {
            break;
        }
        step(rig, history);
    }
    rig.work(history);
    checker.check(&rig.log.lock().unwrap(), history, &but, context);
}

/// One history; how many records, those of pieces, and pauses there were.
fn one(seed: u64, loses: u32) -> [usize; 3] {
    let mut history = History::new(seed);
    history.loses = loses;
    let restarts = history.rng.random_bool(0.7);
    let bytes = match history.rng.random_bool(0.5) {
        true => 160_000,
        false => 64 << 20,
    };
    let piece = match history.rng.random_bool(0.5) {
        true => history.rng.random_range(500..20_000),
        false => bytes,
    };
    // What is sent again of a transaction without an END is told from nothing new.
    let is_strict = loses == 0 || !restarts;
    let context =
        format!("seed {seed}, {loses} lost, restarts {restarts}, {bytes} bytes, {piece} a piece");
    let mut rig = Rig::new(Bounds {
        wait: WAIT,
        bytes,
        piece,
        whole: usize::MAX,
    });
    rig.start(0..TABLES, &history);
    let mut checker = Checker::new();
    let (mut pauses, mut away_at) = (0, 0);
    let (mut but, mut settled) = (BTreeSet::new(), 0);
    for _ in 0..60 {
        for _ in 0..history.rng.random_range(0..8) {
            history.commit();
        }
        if !history.send(restarts) && rig.now >= away_at + 2 * WAIT {
            // It is away for a while, but not again and again: for so long nothing is waited for.
            rig.now += history.rng.random_range(0..WAIT / 2);
            away_at = rig.now;
        }
        for lost in &history.lost {
            but.extend(history.written[lost].iter().copied());
        }
        for _ in 0..history.rng.random_range(0..40) {
            step(&mut rig, &mut history);
            pauses += rig.paused();
        }
        let context = format!("{context}, {} split", rig.group.splits());
        if is_strict {
            checker.check(&rig.log.lock().unwrap(), &history, &but, &context);
        }
        assert!(loses > 0 || rig.group.splits() == 0, "{context}");
        if loses == 0 && history.rng.random_bool(0.05) {
            come_and_go(&mut rig, &mut history, &mut checker, &context);
            settled = rig.log.lock().unwrap().records.len();
        }
        if (loses == 0 || restarts) && history.rng.random_bool(0.05) {
            let records = rig.log.lock().unwrap().records.len();
            // A source that was late shows whole transactions from here on.
            let lost = (records - settled).min(5);
            let kept = records - history.rng.random_range(0..=lost);
            rig.crash(kept, &history);
            checker = Checker::new();
            for record in &rig.log.lock().unwrap().records[..settled] {
                checker.replica.add(record.clone());
            }
            if is_strict {
                checker.check(&rig.log.lock().unwrap(), &history, &but, &context);
            }
        }
    }
    while !history.send(false) {}
    // Nothing more is written: what waits goes on within a bounded time.
    let mut quiet = 0;
    while quiet < 20 {
        step(&mut rig, &mut history);
        if rig.has_all(&history) {
            quiet += 1;
            rig.now += WAIT / 4;
        }
        let end = rig.log.lock().unwrap().state() == *history.states.last().unwrap();
        if end && loses == 0 && rig.has_all(&history) {
            break;
        }
    }
    if is_strict {
        checker.check(&rig.log.lock().unwrap(), &history, &but, &context);
    }
    let log = rig.log.lock().unwrap();
    // Of a transaction that was given up a truncate may come when it cannot be placed any more.
    let parts = log.records.iter().flat_map(|record| &record.parts);
    let mut letters = parts.flat_map(|(_, batch)| &batch.dead_letters);
    let is_known = !letters.any(|letter| letter.error.code == "truncate-too-late");
    assert!(
        is_known || loses > 0,
        "{context}: a truncate was passed over"
    );
    let last = history.states.last().unwrap();
    assert!(
        !is_known || log.state() == *last,
        "{context}: at the end: {:?}, not {last:?}",
        log.state()
    );
    let pieces = log.records.iter().filter(|record| record.is_open).count();
    [log.records.len(), pieces, pauses]
}

/// Some histories; what [`one`] counts, together. All are tried, then those are named that failed.
fn several(count: u64, loses: u32) -> [usize; 3] {
    let first = std::env::var("HEADWATER_SEED").map_or(20_261_121, |seed| seed.parse().unwrap());
    let count = std::env::var("HEADWATER_HISTORIES").map_or(count, |count| count.parse().unwrap());
    println!("seed {first}, {count} histories");
    let (mut sum, mut failed) = ([0; 3], Vec::new());
    for seed in first..first + count {
        match std::panic::catch_unwind(|| one(seed, loses)) {
            Ok(own) => sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own),
            Err(_) => failed.push(seed),
        }
    }
    assert!(failed.is_empty(), "these seeds failed: {failed:?}");
    sum
}

/// Something arrives somewhere.
fn step(rig: &mut Rig, history: &mut History) {
    rig.now += history.rng.random_range(0..20u64);
    let most = history.rng.random_range(1..12);
    let table = history.rng.random_range(0..=TABLES);
    if table == TABLES {
        rig.deliver_ends(most, history);
    } else {
        let partition = history.rng.random_range(0..history.partitions[table].len());
        rig.deliver(table, partition, most, history);
    }
    if history.rng.random_bool(0.7) {
        rig.work(history);
    }
}

#[test]
fn readers_see_whole_transactions_only() {
    let [records, pieces, pauses] = several(60, 0);
    println!("{records} records, {pieces} of pieces, {pauses} pauses");
    assert!(pauses > 0 && pieces > 0, "both were tried");
}

#[test]
fn lost_metadata_splits_only_its_own_transactions() {
    several(30, 12);
}
