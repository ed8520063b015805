//! The input log against a naive model: random records, crashes at every sync, failing disks,
//! damage and compaction.
//!
//! The method is redb's crash test: pass one runs a script and counts the points at which
//! durability changes; pass two runs it again and freezes the store at each of them, tears what
//! was not synced, reopens, and asks: is what was acknowledged there, and is the rest a prefix?

mod figures;
mod script;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::contract::Store;
use engine::durable::{
    Collected, CompactOptions, EmbeddingStore, InputLog, LaneRange, LocalStore, LogOptions, Record,
    Replayed, Stage, Tick, VectorOptions,
};
use engine::error::{DataError, DeadLetter, WorldError};
use engine::letters::LetterBook;
use engine::model::{ContentHash, ModelId, ObjectId, VectorFact, VectorRef};
use engine::testing::{Faults, MemoryStore, store_laws};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use script::{Script, State, expected_events};

const LONG: Duration = Duration::from_secs(120);

fn options(segment_bytes: u64) -> LogOptions {
    LogOptions {
        segment_bytes,
        before_vectors: None,
    }
}

fn replayed(store: &MemoryStore) -> Result<Vec<Replayed>, WorldError> {
    let (_log, replay) = InputLog::open(Arc::new(store.clone()), options(1 << 20))?;
    replay.collect()
}

/// Appends and waits for the answer of the disk.
fn append_and_wait(log: &InputLog, record: &Record) -> Result<(), Arc<WorldError>> {
    let (sender, receiver) = channel();
    let on_durable = Box::new(move |result| sender.send(result).expect("the test waits"));
    log.append(record.clone(), Some(on_durable));
    match receiver.recv_timeout(LONG) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            panic!("no callback came")
        }
    }
}

/// Runs a script; compacts now and then. Returns how many records were acknowledged and how many
/// appended. Stops at the first failure.
fn run_script(store: &MemoryStore, records: &[Record], compact_every: usize) -> (usize, usize) {
    let Ok((log, replay)) = InputLog::open(Arc::new(store.clone()), options(700)) else {
        return (0, 0);
    };
    drop(replay);
    for (i, record) in records.iter().enumerate() {
        if append_and_wait(&log, record).is_err() {
            return (i, i + 1);
        }
        if (i + 1) % compact_every == 0 {
            let since = records[..=i / 2]
                .iter()
                .filter_map(Record::time)
                .max()
                .unwrap_or(0);
            if log.compact(since, &CompactOptions::default()).is_err() {
                return (i + 1, i + 1);
            }
        }
    }
    (records.len(), records.len())
}

/// The replay of a store must be that of the first n records for an n in `range`: the same state,
/// and after the base every single tick as it was, at its own time.
fn check_prefix(store: &MemoryStore, records: &[Record], range: std::ops::RangeInclusive<usize>) {
    let found = replayed(store).expect("a crash is never damage");
    let state = State::of(&found);
    let base = found.iter().find_map(|event| match event {
        Replayed::Since(at) => Some(*at),
        _ => None,
    });
    let after = |events: &[Replayed]| -> Vec<Replayed> {
        let is_after = |event: &&Replayed| matches!(event, Replayed::Tick(t) if Some(t.at) > base);
        events.iter().filter(is_after).cloned().collect()
    };
    let ticks = after(&found);
    let fits = range.clone().any(|n| {
        let expected = expected_events(&records[..n]);
        State::of(&expected) == state && after(&expected) == ticks
    });
    assert!(
        fits,
        "no prefix in {range:?} gives {state:#?} and {ticks:#?}"
    );
}

#[test]
fn stores_keep_their_laws() {
    store_laws(&|| Arc::new(MemoryStore::new()));
    let folders = Mutex::new(Vec::new());
    store_laws(&|| {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        folders.lock().unwrap().push(folder);
        Arc::new(store)
    });
}

#[test]
fn a_crash_at_every_sync_keeps_what_was_acknowledged() {
    for seed in 0..3 {
        let records = Script::new(seed).records(36);
        let store = MemoryStore::new();
        assert_eq!(run_script(&store, &records, 9), (36, 36));
        check_prefix(&store, &records, 36..=36);
        let points = store.durability_points();
        assert!(
            points > 45,
            "the script rotates and compacts: {points} points"
        );
        for point in 0..points {
            let store = MemoryStore::new();
            store.set_faults(Faults {
                freeze_at_point: Some(point),
                ..Faults::default()
            });
            let (acknowledged, appended) = run_script(&store, &records, 9);
            // How many records share a sync differs from run to run: the last points may be missed.
            if !store.is_frozen() {
                assert!(point >= points / 2, "seed {seed}: point {point} is reached");
                continue;
            }
            let survivor = store.after_crash(seed * 1000 + point);
            check_prefix(&survivor, &records, acknowledged..=appended);
            // The check opened it: a second crash finds the same.
            check_prefix(
                &survivor.after_crash(point),
                &records,
                acknowledged..=appended,
            );
        }
    }
}

#[test]
fn unsynced_groups_are_torn_anywhere() {
    for seed in 0..60 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let records = Script::new(seed).records(60);
        let store = MemoryStore::new();
        store.set_faults(Faults {
            freeze_at_point: Some(rng.random_range(3..12)),
            ..Faults::default()
        });
        let Ok((log, _)) = InputLog::open(Arc::new(store.clone()), options(2_000)) else {
            continue;
        };
        let acknowledged = Arc::new(Mutex::new(0));
        for record in &records {
            let acknowledged = Arc::clone(&acknowledged);
            let count = move |result: Result<(), _>| {
                *acknowledged.lock().unwrap() += usize::from(result.is_ok());
            };
            log.append(record.clone(), Some(Box::new(count)));
            if rng.random_bool(0.2) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        drop(log);
        let acknowledged = *acknowledged.lock().unwrap();
        check_prefix(
            &store.after_crash(seed),
            &records,
            acknowledged..=records.len(),
        );
    }
}

#[test]
fn a_failing_disk_delays_but_loses_nothing() {
    for seed in 0..10 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let records = Script::new(seed).records(30);
        let store = MemoryStore::new();
        let (log, _) = InputLog::open(Arc::new(store.clone()), options(700)).unwrap();
        let from = store.operations() + rng.random_range(0..40);
        store.set_faults(Faults {
            fail_from_operation: Some(from),
            fail_until_operation: Some(from + rng.random_range(1..8)),
            ..Faults::default()
        });
        let appended: Vec<_> = records
            .iter()
            .map(|record| log.append(record.clone(), None))
            .collect();
        let last = *appended.last().unwrap();
        assert!(log.wait_durable(last, LONG), "seed {seed}");
        drop(log);
        store.set_faults(Faults::default());
        check_prefix(&store, &records, 30..=30);
    }
}

#[test]
fn a_full_disk_refuses_and_later_goes_on() {
    let records = Script::new(5).records(30);
    let store = MemoryStore::new();
    let (log, _) = InputLog::open(Arc::new(store.clone()), options(1 << 20)).unwrap();
    store.set_faults(Faults {
        capacity_bytes: Some(1_500),
        ..Faults::default()
    });
    let refused = records
        .iter()
        .position(|record| append_and_wait(&log, record).is_err());
    let refused = refused.expect("30 records do not fit");
    let failure = log.failure().expect("the failure can be seen");
    assert!(
        failure.error.to_string().contains("log-0000000001.hwl"),
        "{}",
        failure.error
    );
    assert_eq!(log.durable().0, refused as u64);
    // A crash now finds all that was acknowledged, and no half record.
    check_prefix(&store.after_crash(1), &records, refused..=refused + 1);
    store.set_faults(Faults::default());
    for record in &records[refused + 1..] {
        log.append(record.clone(), None);
    }
    let durable = engine::durable::LogSequence(records.len() as u64);
    assert!(log.wait_durable(durable, LONG) && !log.is_failing());
    drop(log);
    check_prefix(&store, &records, 30..=30);
}

#[test]
fn compaction_equals_the_naive_model_and_keeps_young_tombstones_only() {
    const DAY: u64 = 86_400_000_000;
    let mut forgotten = 0;
    for (seed, step) in (0..30).flat_map(|seed| [(seed, 1_000), (seed, DAY / 10)]) {
        let records = Script::with_step(seed, step).records(150);
        let store = MemoryStore::new();
        run_script(&store, &records, 11);
        let (log, replay) = InputLog::open(Arc::new(store.clone()), options(700)).unwrap();
        assert!(
            log.compact(u64::MAX, &CompactOptions::default())
                .unwrap()
                .is_none(),
            "replaying"
        );
        drop(replay);
        let (base, new) = log.compactable_bytes(u64::MAX);
        let done = log.compact(u64::MAX, &CompactOptions::default()).unwrap();
        let done = done.expect("there is something to fold");
        assert_eq!(done.bytes_before, base + new);
        let twice = log.compact(u64::MAX, &CompactOptions::default()).unwrap();
        assert!(
            twice.is_none(),
            "seed {seed}: only a base is left: {twice:?}"
        );
        drop(log);
        let mut wanted = State::of(&expected_events(&records));
        let found = State::of(&replayed(&store).unwrap());
        // A delete that no longer guards anything may be forgotten, nothing else.
        wanted.rows.retain(|key, ((_, at), row)| {
            let is_old = row.is_none() && *at + DAY <= done.at && !found.rows.contains_key(key);
            forgotten += usize::from(is_old);
            !is_old
        });
        assert!(
            found == wanted,
            "seed {seed}, step {step}:\n{found:#?}\nwanted {wanted:#?}"
        );
    }
    assert!(forgotten > 10, "{forgotten} old deletes were forgotten");
}

#[test]
fn compaction_forgets_what_it_is_told_to() {
    let records = Script::new(3).records(120);
    let store = MemoryStore::new();
    run_script(&store, &records, 1000);
    let (log, _) = InputLog::open(Arc::new(store.clone()), options(700)).unwrap();
    let options = CompactOptions {
        now: 0,
        keep_vector: Some(Arc::new(|_, content: ContentHash| {
            content.0[0].is_multiple_of(2)
        })),
        keep_source: Some(Arc::new(|source| source.0 == 1)),
        keep_letters: Some(Arc::new(|name| name == ObjectId(1).to_string())),
    };
    let done = log.compact(u64::MAX, &options).unwrap().unwrap();
    drop(log);
    for event in replayed(&store).unwrap() {
        match event {
            Replayed::Rows(rows) => assert_eq!(rows.source.0, 1),
            Replayed::Vectors(facts) => assert!(facts.iter().all(|f| f.content.0[0] % 2 == 0)),
            Replayed::Lanes(lanes) => assert!(lanes.iter().all(|lane| lane.source.0 == 1)),
            Replayed::Tick(tick) => assert!(tick.at > done.at),
            Replayed::Letters(base) => {
                let one = ObjectId(1).to_string();
                assert!(base.causes.iter().all(|cause| cause.source == one));
                assert!(base.letters.iter().all(|kept| kept.letter.source == one));
            }
            _ => {}
        }
    }
}

/// Compacted again and again under a flood of bad data, the log keeps the newest and the counts.
#[test]
fn dead_letters_on_disk_stay_bounded_and_counted() {
    let store = MemoryStore::new();
    let (log, replay) = InputLog::open(Arc::new(store.clone()), options(64 << 10)).unwrap();
    drop(replay);
    let mut sizes = Vec::new();
    for at in 1..=40_u64 {
        let letters = (0..1_000).map(|n| {
            let place = format!("offset {}", at * 1_000 + n);
            let error = DataError::new("wrong-type", "column \"age\": expected bigint");
            Arc::new(DeadLetter::new("users", place, error, &[7; 200]))
        });
        let stage = Stage {
            source: ObjectId(1),
            lane: String::new(),
            sequence: at,
            changes: Arc::default(),
            resolved: Vec::new(),
            dead_letters: letters.collect(),
            position: None,
            idempotency: None,
            at_wall: at,
        };
        let range = LaneRange {
            source: ObjectId(1),
            lane: String::new(),
            from: at,
            through: at,
        };
        // Each in a segment of its own: what of them is folded does not depend on the writer's pace.
        let staged = log.append(Record::Stage(stage), None);
        assert!(log.wait_durable(staged, LONG));
        let tick = Tick {
            at,
            lanes: vec![range],
            vectors: Vec::new(),
        };
        let last = log.append(Record::Tick(tick), None);
        assert!(log.wait_durable(last, LONG));
        if at % 5 == 0 {
            let done = log.compact(u64::MAX, &CompactOptions::default()).unwrap();
            sizes.push(done.expect("something to fold").bytes_after);
        }
    }
    drop(log);
    let (full, last) = (sizes[2], sizes[7]);
    assert!(last <= full + full / 10, "it does not grow: {sizes:?}");
    let mut book = LetterBook::default();
    for event in replayed(&store).unwrap() {
        match event {
            Replayed::Letters(base) => {
                base.causes
                    .iter()
                    .for_each(|counts| book.restore_counts(counts));
                base.letters.into_iter().for_each(|kept| book.restore(kept));
            }
            Replayed::Tick(tick) => {
                for letter in tick.stages.into_iter().flat_map(|stage| stage.dead_letters) {
                    book.add(99, letter);
                }
            }
            _ => {}
        }
    }
    let counts = book.causes().swap_remove(0);
    let known = (counts.seen, counts.kept, counts.dropped);
    assert_eq!(known, (40_000, 10_000, 30_000), "{counts:?}");
    let newest = book.list(None, None, 0, usize::MAX).pop().unwrap();
    assert_eq!(newest.kept.letter.position, "offset 40999");
}

#[test]
fn damage_is_located_and_never_skipped() {
    let records = Script::new(9).records(60);
    let store = MemoryStore::new();
    run_script(&store, &records, 1000);
    let names = store.list().unwrap();
    for name in names.iter().filter(|name| name.ends_with(".hwl")) {
        let size = store.size(name).unwrap().unwrap();
        let is_open = Some(name) == names.iter().rfind(|name| name.ends_with(".hwl"));
        for offset in (0..size).step_by(37) {
            let damaged = store.after_crash(0);
            damaged.damage(name, |bytes| bytes[offset as usize] ^= 0x40);
            match replayed(&damaged) {
                Err(WorldError::Corrupt {
                    path, offset: at, ..
                }) => {
                    assert_eq!(&path, name);
                    assert!(at <= offset, "{name}: said {at}, is {offset}");
                }
                Err(other) => panic!("{name} at {offset}: {other}"),
                // Damage to the last group looks like a crash: nothing but it may be missing.
                Ok(events) => {
                    assert!(is_open, "{name} at {offset}: not noticed");
                    let shorter = State::of(&expected_events(&records[..records.len() - 1]));
                    assert_eq!(State::of(&events), shorter, "{name} at {offset}");
                }
            }
        }
    }
}

fn vector(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..8).map(|_| rng.random::<f32>()).collect()
}

fn text(n: u64) -> ContentHash {
    ContentHash::of(&n.to_le_bytes())
}

fn model(n: u64) -> ModelId {
    ModelId([(n % 2) as u8 + 1; 16])
}

#[test]
fn a_durable_tick_never_names_a_lost_vector() {
    for point in 0..40 {
        let store = MemoryStore::new();
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        store.set_faults(Faults {
            freeze_at_point: Some(point),
            ..Faults::default()
        });
        let small = VectorOptions {
            segment_bytes: 300,
            memory_bytes: 64,
        };
        let Ok(vectors) = EmbeddingStore::open(Arc::clone(&shared), small) else {
            continue;
        };
        let vectors = Arc::new(vectors);
        let flush = Arc::clone(&vectors);
        let options = LogOptions {
            before_vectors: Some(Arc::new(move || flush.flush())),
            ..options(700)
        };
        let Ok((log, _)) = InputLog::open(shared, options) else {
            continue;
        };
        for n in 1..20 {
            let at = vectors.put(model(n), text(n), &vector(n));
            let fact = VectorFact {
                model: model(n),
                content: text(n),
                at,
            };
            let tick = Tick {
                at: n,
                lanes: Vec::new(),
                vectors: vec![fact],
            };
            if append_and_wait(&log, &Record::Tick(tick)).is_err() {
                break;
            }
        }
        drop(log);
        let survivor = store.after_crash(point);
        let vectors = EmbeddingStore::open(Arc::new(survivor.clone()), small).unwrap();
        for event in replayed(&survivor).unwrap() {
            let Replayed::Tick(tick) = event else {
                panic!("only ticks")
            };
            let fact = tick.vectors[0];
            assert_eq!(
                vectors.read(fact.at).unwrap().as_deref(),
                Some(&vector(tick.at)[..])
            );
            assert_eq!(vectors.find(fact.model, fact.content), Some(fact.at));
        }
    }
}

#[test]
fn collected_files_shrink_and_references_stay() {
    let script = |store: &MemoryStore| -> Result<(), WorldError> {
        let small = VectorOptions {
            segment_bytes: 600,
            memory_bytes: 200,
        };
        let vectors = EmbeddingStore::open(Arc::new(store.clone()), small)?;
        for n in 0..60 {
            assert_eq!(vectors.put(model(n), text(n), &vector(n)), VectorRef(n + 1));
            assert_eq!(
                vectors.put(model(n), text(n), &vector(n + 1)),
                VectorRef(n + 1)
            );
            if n % 4 == 3 {
                vectors.flush()?;
            }
        }
        let mut collected = Collected::default();
        for round in 0..3 {
            for n in (0..60).filter(|n| n % 5 == 0 || *n == 7) {
                vectors.mark(model(n), &[text(n), text(1_000)]);
            }
            collected = vectors.collect(&|_| {})?;
            assert!(round == 2 || collected.vectors == 0, "put not long ago");
        }
        assert!(vectors.is_wanted(model(7), text(7)));
        assert!(!vectors.is_wanted(model(8), text(8)));
        assert!(
            collected.vectors > 20 && collected.bytes > 1_000,
            "{collected:?}"
        );
        for n in 0..60 {
            let found = vectors.read(VectorRef(n + 1))?;
            assert!(
                found.is_some() || (n % 5 != 0 && n != 7),
                "vector {n} is needed"
            );
            assert!(
                found.is_none_or(|found| found[..] == vector(n)[..]),
                "vector {n}"
            );
        }
        let new = vectors.put(model(1), text(1), &vector(1));
        assert!(
            new == VectorRef(2) || new > VectorRef(60),
            "a reference is never given twice"
        );
        vectors.flush()
    };
    let store = MemoryStore::new();
    script(&store).unwrap();
    for point in 0..=store.durability_points() {
        let frozen = MemoryStore::new();
        frozen.set_faults(Faults {
            freeze_at_point: Some(point),
            ..Faults::default()
        });
        let finished = script(&frozen).is_ok();
        let survivor = frozen.after_crash(point);
        let reopened = EmbeddingStore::open(Arc::new(survivor), VectorOptions::default()).unwrap();
        for n in 0..60 {
            let found = reopened.read(VectorRef(n + 1)).unwrap();
            assert!(
                found.is_some() || !finished || n % 5 != 0,
                "point {point}, vector {n}"
            );
            assert!(
                found.is_none_or(|found| found[..] == vector(n)[..]),
                "point {point}: {n}"
            );
        }
    }
}

#[test]
fn a_damaged_vector_is_located() {
    let store = MemoryStore::new();
    let options = VectorOptions {
        segment_bytes: 1 << 20,
        memory_bytes: 0,
    };
    let vectors = EmbeddingStore::open(Arc::new(store.clone()), options).unwrap();
    for n in 0..3 {
        vectors.put(ModelId([1; 16]), text(n), &vector(n));
        vectors.flush().unwrap();
    }
    drop(vectors);
    store.damage("vectors-0000000001.hwv", |bytes| bytes[64 + 64 + 40] ^= 1);
    let error = EmbeddingStore::open(Arc::new(store), options)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .starts_with("vectors-0000000001.hwv at byte 128:"),
        "{error}"
    );
}

#[test]
fn a_tick_that_binds_what_is_not_there_is_damage() {
    let store = MemoryStore::new();
    let (log, _) = InputLog::open(Arc::new(store.clone()), options(700)).unwrap();
    let records = Script::new(1).records(40);
    let tick = records
        .iter()
        .find(|r| matches!(r, Record::Tick(tick) if !tick.lanes.is_empty()));
    append_and_wait(&log, tick.unwrap()).unwrap();
    drop(log);
    let error = replayed(&store).unwrap_err().to_string();
    assert!(
        error.contains("log-0000000001.hwl at byte 0: a tick binds batch 1"),
        "{error}"
    );
}
