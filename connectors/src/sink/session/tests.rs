//! Sessions over a collection and brokers in memory: every change is committed once and in order, whatever
//! fails, and however large one time is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::contract::{ChangeFeed, NextPage, SinkRun, SinkRuns};
use engine::model::{Column, Key, ObjectId, Row, RowCodec, Schema, SqlType, Value};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::Value as Json;

use super::*;
use crate::kafka::Security;
use crate::sink::{Envelope, SinkOptions};

const TOPIC: &str = "audit";
const RUN: u64 = 7;

fn codec() -> Arc<RowCodec> {
    let column = |name: &str, sql_type, nullable| Column {
        nullable,
        ..Column::new(name, sql_type)
    };
    Arc::new(
        RowCodec::new(Schema {
            columns: vec![
                column("id", SqlType::Text, false),
                column("n", SqlType::Int8, false),
            ],
            key: vec![0],
        })
        .expect("packable"),
    )
}

fn row(id: &str, n: i64) -> Row {
    codec().pack(&[Value::Text(id.into()), Value::Int(n)])
}

/// A collection that is sealed through `sealed`, and stops its reader when there is nothing more.
struct Collection {
    history: BTreeMap<(Time, String), RowChange>,
    sealed: Time,
    since: Time,
    held: Mutex<Option<Time>>,
    noted: Mutex<Option<Time>>,
    stop: Arc<AtomicBool>,
    /// Keys of one page.
    page: usize,
    asked: AtomicUsize,
}

impl Collection {
    fn new(sealed: Time, page: usize) -> Collection {
        Collection {
            history: BTreeMap::new(),
            sealed,
            since: 0,
            held: Mutex::default(),
            noted: Mutex::default(),
            stop: Arc::default(),
            page,
            asked: AtomicUsize::new(0),
        }
    }

    /// Inserts or updates a row.
    fn set(&mut self, at: Time, id: &str) {
        let before = self
            .history
            .values()
            .rfind(|change| change.at < at && change.key == Key::text(id));
        let change = RowChange {
            key: Key::text(id),
            at,
            before: before.and_then(|change| change.after.clone()),
            after: Some(row(id, i64::try_from(at).expect("small"))),
        };
        self.history.insert((at, id.to_owned()), change);
    }

    /// What a topic has that was written from the beginning.
    fn all(&self) -> Vec<(Time, String)> {
        self.history.keys().cloned().collect()
    }
}

impl ChangeFeed for Collection {
    fn sealed(&self, after: Time, _: Duration) -> Option<Time> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.sealed <= after {
            self.stop.store(true, Ordering::Relaxed);
        }
        Some(self.sealed).filter(|sealed| *sealed > after)
    }

    fn hold(&self, at: Time) -> Result<(), FeedError> {
        if at < self.since {
            return Err(FeedError::HistoryGone {
                at,
                since: self.since,
            });
        }
        let before = self.held.lock().expect("no panic").replace(at);
        assert!(before.is_none_or(|before| before <= at), "{before:?} {at}");
        Ok(())
    }

    fn changes(
        &self,
        after: Option<Time>,
        through: Time,
        page: Option<NextPage>,
        _: usize,
    ) -> Result<ChangePage, FeedError> {
        let held = self
            .held
            .lock()
            .expect("no panic")
            .expect("something is held");
        assert!(
            held <= after.unwrap_or(through),
            "{held} {after:?} {through}"
        );
        let from = page.map(|page| page[0].1.clone());
        let mut keys: BTreeMap<Key, Vec<RowChange>> = BTreeMap::new();
        for change in self.history.values() {
            let is_in = change.at <= through && after.is_none_or(|after| change.at > after);
            if is_in && from.as_ref().is_none_or(|from| change.key >= *from) {
                keys.entry(change.key.clone())
                    .or_default()
                    .push(change.clone());
            }
        }
        let next = keys.keys().nth(self.page).map(|key| vec![(0, key.clone())]);
        let taken = keys.into_values().take(self.page);
        let changes = match after {
            Some(_) => taken.flatten().collect(),
            None => taken
                .filter_map(|mut changes| changes.pop())
                .map(|last| RowChange {
                    at: through,
                    before: None,
                    ..last
                })
                .collect(),
        };
        Ok(ChangePage { changes, next })
    }

    fn note(&self, progress: Time) {
        *self.noted.lock().expect("no panic") = Some(progress);
    }
}

/// What readers of committed messages see.
#[derive(Default)]
struct Brokers {
    /// (time, key, value), by transaction.
    committed: Vec<Vec<(Time, String, Json)>>,
    progress: Option<Written>,
    /// A record of this key is not taken.
    refused: Option<&'static str>,
    /// How likely each call fails.
    trouble: f64,
}

struct Memorized<'a> {
    brokers: &'a Mutex<Brokers>,
    open: Mutex<Option<(Vec<(Time, String, Json)>, Option<Written>)>>,
    random: Mutex<ChaCha8Rng>,
}

impl Memorized<'_> {
    fn fails(&self, what: &str) -> Result<(), Trouble> {
        let trouble = self.brokers.lock().expect("no panic").trouble;
        match self.random.lock().expect("no panic").random_bool(trouble) {
            true => Err(Trouble::World(what.to_owned())),
            false => Ok(()),
        }
    }
}

impl Output for Memorized<'_> {
    fn open(&mut self) -> Result<(), Trouble> {
        let before = self
            .open
            .lock()
            .expect("no panic")
            .replace(Default::default());
        assert!(before.is_none(), "one transaction at a time");
        self.fails("open")
    }

    fn send(&self, outgoing: &Outgoing<'_>, _: &dyn Fn() -> bool) -> Result<(), Trouble> {
        // Many records of a transaction must not make it hopeless.
        if self.random.lock().expect("no panic").random_bool(0.02) {
            self.fails("send")?;
        }
        let json = |bytes: &[u8]| -> Json { serde_json::from_slice(bytes).expect("JSON") };
        let value = outgoing.value.map_or(Json::Null, json);
        let mut open = self.open.lock().expect("no panic");
        let open = open.as_mut().expect("a transaction is open");
        match outgoing.time {
            Some(at) => {
                let key = json(outgoing.key)["id"].as_str().expect("a key").to_owned();
                if self.brokers.lock().expect("no panic").refused == Some(&*key) {
                    return Err(Trouble::World(format!("{key} is refused")));
                }
                open.0.push((at, key, value));
            }
            None => {
                let run = value["run"].as_str().expect("a run");
                open.1 = Some(Written {
                    object: 1,
                    run: u64::from_str_radix(run, 16).expect("hexadecimal"),
                    at: value["at"].as_u64().expect("a time"),
                });
            }
        }
        Ok(())
    }

    fn commit(&mut self, _: &dyn Fn() -> bool) -> Result<(), Trouble> {
        self.fails("not committed")?;
        let (records, progress) = self.open.lock().expect("no panic").take().expect("open");
        let mut brokers = self.brokers.lock().expect("no panic");
        brokers.committed.push(records);
        brokers.progress = progress;
        drop(brokers);
        self.fails("committed, and the answer is lost")
    }

    fn abandon(&mut self) {
        self.open.lock().expect("no panic").take();
    }
}

struct Rig {
    collection: Arc<Collection>,
    brokers: Mutex<Brokers>,
    context: SinkContext,
    memory: Memory,
    most: usize,
    random: ChaCha8Rng,
}

impl Rig {
    fn new(collection: Collection) -> Rig {
        let collection = Arc::new(collection);
        let context = SinkContext {
            name: "audit".to_owned(),
            id: ObjectId(1),
            collection: "docs".to_owned(),
            pipeline: "p".to_owned(),
            feed: Arc::clone(&collection) as _,
            noted: None,
            runs: SinkRuns(vec![
                SinkRun {
                    id: 5,
                    end: Some(20),
                },
                SinkRun { id: RUN, end: None },
            ]),
            status: Arc::default(),
            stop: Arc::clone(&collection.stop),
            dropped: Arc::default(),
        };
        Rig {
            collection,
            brokers: Mutex::default(),
            context,
            memory: Memory::default(),
            most: 400,
            random: ChaCha8Rng::seed_from_u64(1),
        }
    }

    /// One session, from what the brokers know to the end of what is sealed.
    fn session(&mut self) -> Result<(), Trouble> {
        let options = SinkOptions {
            brokers: "nowhere:1".to_owned(),
            topic: TOPIC.to_owned(),
            partitions: None,
            replication: None,
            progress_topic: "progress".to_owned(),
            security: Security::default(),
            registry: None,
            envelope: Envelope::Debezium,
        };
        let progress = Progress::new(&options, &self.context);
        let encoder = Encoder::json(codec(), Envelope::Debezium, "audit", "docs");
        let written = self.brokers.lock().expect("no panic").progress;
        let mut writer = Memorized {
            brokers: &self.brokers,
            open: Mutex::default(),
            random: Mutex::new(ChaCha8Rng::seed_from_u64(self.random.random())),
        };
        let mut session = Session {
            topic: TOPIC,
            progress_topic: "progress",
            context: &self.context,
            encoder: &encoder,
            progress: &progress,
            writer: &mut writer,
            memory: &mut self.memory,
            most: self.most,
        };
        session.begin(written)
    }

    /// What is committed, and that it is committed as it should: once, in order, no time in two parts.
    fn committed(&self) -> Vec<(Time, String)> {
        let brokers = self.brokers.lock().expect("no panic");
        let (mut last, mut before) = (BTreeMap::new(), 0);
        for records in &brokers.committed {
            let times: BTreeSet<Time> = records.iter().map(|(at, ..)| *at).collect();
            if let (Some(first), Some(end)) = (times.first(), times.last()) {
                assert!(*first > before, "time {first} is split over transactions");
                before = *end;
            }
            for (at, key, value) in records {
                let earlier = last.insert(key.clone(), (*at, value["after"].clone()));
                assert!(earlier.as_ref().is_none_or(|(earlier, _)| earlier < at));
                let after = earlier.map_or(Json::Null, |(_, after)| after);
                assert_eq!(value["before"], after, "{key} at {at}");
            }
        }
        let all = brokers.committed.iter().flatten();
        let mut all: Vec<_> = all.map(|(at, key, _)| (*at, key.clone())).collect();
        all.sort();
        all
    }

    fn person(&mut self) -> String {
        match self.session() {
            Err(Trouble::Person(error)) => error.to_string(),
            Err(trouble) => panic!("{trouble}"),
            Ok(()) => panic!("it goes on"),
        }
    }

    fn begin_at(&self, run: u64, at: Time) {
        let written = Written { object: 1, run, at };
        self.brokers.lock().expect("no panic").progress = Some(written);
    }
}

/// Few changes over a long time, and one time with much more than memory has room for.
fn uneven(page: usize) -> Collection {
    let mut collection = Collection::new(20_000_000, page);
    for n in 0..10 {
        collection.set(1_000 + n, &format!("k{n}"));
    }
    for n in 0..100 {
        collection.set(500_000, &format!("k{n:02}"));
    }
    for n in 0..10 {
        collection.set(19_000_000 + 7 * n, &format!("k{n}"));
    }
    collection
}

#[test]
fn a_large_time_is_one_transaction_and_the_time_behind_it_is_not_crawled_through() {
    let mut rig = Rig::new(uneven(8));
    rig.begin_at(RUN, 0);
    assert!(rig.session().is_ok());
    assert_eq!(rig.committed(), rig.collection.all());
    let asked = rig.collection.asked.load(Ordering::Relaxed);
    assert!(asked < 200, "{asked} stretches");
    let brokers = rig.brokers.lock().expect("no panic");
    assert!(brokers.committed.iter().any(|records| records.len() == 100));
    let held = *rig.collection.held.lock().expect("no panic");
    assert_eq!(held, brokers.progress.map(|written| written.at));
}

#[test]
fn a_snapshot_of_many_pages_is_one_transaction() {
    let mut collection = uneven(7);
    collection.since = 5;
    let mut rig = Rig::new(collection);
    assert!(rig.session().is_ok());
    let brokers = rig.brokers.lock().expect("no panic");
    let [records] = &*brokers.committed else {
        panic!("{} transactions", brokers.committed.len());
    };
    let keys: BTreeSet<&str> = records.iter().map(|(_, key, _)| &**key).collect();
    // `k0` is not `k00`.
    assert_eq!((records.len(), keys.len()), (110, 110));
    for (at, _, value) in records {
        assert_eq!((*at, &value["op"]), (20_000_000, &Json::from("r")));
        assert_eq!(value["source"]["snapshot"], "true");
    }
    let at = Some(20_000_000);
    assert_eq!(brokers.progress.map(|written| written.at), at);
    assert_eq!(*rig.collection.noted.lock().expect("no panic"), at);
}

#[test]
fn whatever_fails_every_change_is_committed_once() {
    for seed in 0..60 {
        let mut rig = Rig::new(uneven(1 + seed % 20));
        rig.random = ChaCha8Rng::seed_from_u64(seed as u64);
        rig.begin_at(RUN, 0);
        rig.brokers.lock().expect("no panic").trouble = 0.3;
        let mut sessions = 0;
        loop {
            sessions += 1;
            assert!(sessions < 10_000, "seed {seed}: it does not come to an end");
            match rig.session() {
                Ok(()) => break,
                Err(Trouble::World(_)) => {}
                Err(other) => panic!("seed {seed}: {other}"),
            }
        }
        assert_eq!(rig.committed(), rig.collection.all(), "seed {seed}");
    }
}

#[test]
fn what_stands_before_a_refused_record_goes_out_and_the_rest_when_it_is_taken() {
    let mut rig = Rig::new(uneven(8));
    rig.most = 1_000_000;
    rig.begin_at(RUN, 0);
    rig.brokers.lock().expect("no panic").refused = Some("k77");
    for _ in 0..40 {
        assert!(matches!(rig.session(), Err(Trouble::World(_))));
    }
    let before = |all: Vec<(Time, String)>| -> Vec<_> {
        let all = all.into_iter();
        all.filter(|(at, _)| *at < 500_000).collect()
    };
    assert_eq!(rig.committed(), before(rig.collection.all()));
    rig.brokers.lock().expect("no panic").refused = None;
    assert!(rig.session().is_ok());
    assert_eq!(rig.committed(), rig.collection.all());
}

#[test]
fn a_progress_that_does_not_fit_is_a_persons_business() {
    let rest = ": the data folder is an older copy, or another server runs on a copy of it; drop the sink \
                and create it again with a new TOPIC";
    let told = |run, at, attempted| {
        let mut rig = Rig::new(uneven(8));
        rig.begin_at(run, at);
        rig.memory.attempted = attempted;
        let told = rig.person();
        assert_eq!(rig.committed(), []);
        let told = told.strip_suffix(rest).unwrap_or_else(|| panic!("{told}"));
        told.to_owned()
    };
    let unknown = "was written by a start that this data folder does not know";
    for (run, at, attempted, why) in [
        (9, 10, 100, unknown),
        (
            5,
            21,
            100,
            "is beyond 20, where that start ended in this data folder",
        ),
        (
            RUN,
            101,
            100,
            "is beyond 100, where that start ended in this data folder",
        ),
    ] {
        let expected = format!("the progress {at} of this sink in topic \"progress\" {why}");
        assert!(told(run, at, attempted).ends_with(&expected));
    }
    let mut rig = Rig::new(uneven(8));
    rig.context.noted = Some(10);
    let gone = "topic \"progress\" no longer has the progress of this sink, which has written before; \
                drop the sink and create it again with a new TOPIC";
    assert!(rig.person().ends_with(gone));
    let mut collection = uneven(8);
    collection.since = 15;
    let mut rig = Rig::new(collection);
    rig.begin_at(5, 10);
    let gone = "the collection's history begins at 15, and the sink has written through 10: what happened \
                in between is not known any more; drop the sink and create it again with a new TOPIC";
    assert!(rig.person().ends_with(gone));
    let mut rig = Rig::new(uneven(8));
    rig.begin_at(5, 20);
    assert!(rig.session().is_ok());
    assert_eq!(rig.committed(), rig.collection.all());
}
