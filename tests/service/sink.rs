//! The law of sinks, in process: random changes, crashes that lose unsynced bytes, a world that goes away
//! and comes back, compaction of the log meanwhile. The world keeps what was committed and the progress
//! together, as a broker's transaction does. Whatever happens, it gets every change of a key at a time
//! once and in order, each beginning where the last one ended, and comes to the collection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{Embedder, FeedError, RowChange, Sink, SinkContext, SinkPhase, Store};
use engine::durable::CompactOptions;
use engine::error::WorldError;
use engine::model::{RowCodec, Time};
use engine::runtime::VirtualClock;
use engine::testing::{HashedEmbedder, MemoryStore};
use operators::embed::EmbedConfig;
use queries::api::{Backend, PushLine, PushRequest};
use queries::service::{Service, Wiring};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::rig::together;

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, grp BIGINT, body TEXT);
CREATE SOURCE fill FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE VIEW even AS SELECT id, grp, body FROM docs WHERE grp % 2 = 0;
CREATE SINK whole FROM docs INTO KAFKA (BROKERS 'nowhere:1', TOPIC 'whole') ENVELOPE UPSERT;
CREATE SINK part FROM even INTO KAFKA (BROKERS 'nowhere:1', TOPIC 'part') ENVELOPE DEBEZIUM;
";

/// What one sink has committed.
#[derive(Default)]
struct Topic {
    changes: Vec<RowChange>,
    progress: Option<Time>,
    codec: Option<Arc<RowCodec>>,
}

/// The world outside.
#[derive(Default)]
struct World {
    topics: BTreeMap<String, Topic>,
    is_away: bool,
    /// Commits of former processes are refused.
    process: u32,
}

type Outside = Arc<Mutex<World>>;

fn lock(outside: &Outside) -> std::sync::MutexGuard<'_, World> {
    outside.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Scripted {
    outside: Outside,
    process: u32,
    random: ChaCha8Rng,
}

impl Scripted {
    /// One session: from the progress outside until something is in the way.
    fn session(&mut self, context: &SinkContext) -> Result<(), FeedError> {
        let feed = &context.feed;
        let mut progress = lock(&self.outside).topics[&context.name].progress;
        if let Some(at) = progress {
            feed.hold(at)?;
        }
        while !context.is_stopping() {
            let Some(sealed) = feed.sealed(progress.unwrap_or(0), Duration::from_millis(20)) else {
                continue;
            };
            if progress.is_none() {
                feed.hold(sealed)?;
            }
            let (mut changes, mut next) = (Vec::new(), None);
            loop {
                let mut page = feed.changes(progress, sealed, next.take())?;
                changes.append(&mut page.changes);
                next = page.next;
                if next.is_none() {
                    break;
                }
            }
            let mut world = lock(&self.outside);
            if world.is_away || world.process != self.process {
                return Ok(());
            }
            let topic = world.topics.get_mut(&context.name).expect("made before");
            topic.changes.extend(changes);
            topic.progress = Some(sealed);
            drop(world);
            // The commit is done, and nobody here knows.
            if self.random.random_bool(0.2) {
                return Ok(());
            }
            feed.note(sealed);
            feed.hold(sealed)?;
            progress = Some(sealed);
            context.status.set(|state| {
                state.phase = SinkPhase::Running;
                state.progress = progress;
            });
        }
        Ok(())
    }
}

impl Sink for Scripted {
    fn run(mut self: Box<Self>, context: SinkContext) -> Result<(), WorldError> {
        while !context.is_stopping() {
            match self.session(&context) {
                Ok(()) | Err(FeedError::Late(_)) => std::thread::sleep(Duration::from_millis(2)),
                Err(FeedError::Closed) => break,
                Err(gone) => {
                    return Err(WorldError::Service {
                        service: "sink".to_owned(),
                        detail: gone.to_string(),
                        is_transient: false,
                    });
                }
            }
        }
        Ok(())
    }
}

struct Rig {
    service: Service,
    store: MemoryStore,
    clock: VirtualClock,
    outside: Outside,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn over(store: MemoryStore, clock: VirtualClock, outside: Outside, workers: usize) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let encoder = Arc::new(HashedEmbedder::new("hashed", 64));
        let process = {
            let mut world = lock(&outside);
            world.process += 1;
            world.process
        };
        let topics = Arc::clone(&outside);
        let wiring = Wiring {
            store: Arc::new(store.clone()) as Arc<dyn Store>,
            workers,
            communication: None,
            clock: Arc::new(clock.clone()),
            load_model: Arc::new(move |_, _| Ok(Arc::clone(&encoder) as Arc<dyn Embedder>)),
            connect: headwater::wiring::connector(None),
            connect_sink: Arc::new(move |_, name, codec, _| {
                let mut world = lock(&topics);
                let topic = world.topics.entry(name.to_owned()).or_default();
                topic.codec = Some(Arc::clone(codec));
                Ok(Box::new(Scripted {
                    outside: Arc::clone(&topics),
                    process,
                    random: ChaCha8Rng::seed_from_u64(u64::from(process)),
                }))
            }),
            describe: Arc::new(headwater::wiring::describe),
            decode_push: Arc::new(headwater::wiring::decode_push),
            redecode: Arc::new(headwater::wiring::redecode),
            metrics: Arc::new(String::new),
            builder_threads: 1,
            embed: EmbedConfig::default(),
        };
        let service = Service::start(wiring, runtime.handle().clone()).expect("a sound store");
        let done = runtime.block_on(service.reconcile(PIPELINE, false, false));
        done.expect("the pipeline is right");
        Rig {
            service,
            store,
            clock,
            outside,
            runtime,
        }
    }

    /// Power is lost: what was not synced may be gone. The former process commits nothing any more.
    fn crash(self, seed: u64, workers: usize) -> Rig {
        lock(&self.outside).process += 1;
        let store = self.store.after_crash(seed);
        self.service.stop();
        Rig::over(
            store,
            self.clock.clone(),
            Arc::clone(&self.outside),
            workers,
        )
    }

    fn push(&self, source: &str, lines: &[Json]) {
        let lines = lines.iter().enumerate().map(|(i, line)| PushLine {
            line: i as u64 + 1,
            raw: line.to_string().into_bytes(),
        });
        let request = PushRequest {
            source: source.to_owned(),
            lines: lines.collect(),
            ..PushRequest::default()
        };
        let reply = self.runtime.block_on(self.service.push(request));
        let reply = reply.expect("a good push");
        assert!(reply.rejected.is_empty(), "{:?}", reply.rejected);
    }

    fn rows(&self, collection: &str) -> BTreeMap<String, Vec<Json>> {
        let text = format!("SELECT id, grp, body FROM {collection}");
        let (mut replies, problem) = self.runtime.block_on(self.service.sql(text, Vec::new()));
        assert_eq!(problem, None);
        let rows = replies.remove(0).rows.into_iter();
        rows.map(|row| (row[0].to_string(), row)).collect()
    }

    /// Enough for the log to begin another segment.
    fn fill(&self, name: &str) {
        for n in 0..9 {
            let body = "x".repeat(8_000_000);
            self.push("fill", &[json!({"id": format!("{name}{n}"), "body": body})]);
        }
    }

    /// Folds the log as far as it may; whether there was anything to fold.
    fn compact(&self) -> Option<Time> {
        let published = self.service.engine().published();
        let since = published.collections.values().map(|one| one.since).min();
        let since = since.expect("collections");
        let log = self.service.engine().log();
        let compacted = log.compact(since, &CompactOptions::default());
        compacted
            .expect("a sound store")
            .map(|compacted| compacted.at)
    }

    /// Waits until the world has come to the collection, and checks how it came there.
    fn check(&self, what: &str) {
        for (sink, collection) in [("whole", "docs"), ("part", "even")] {
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                self.clock.advance(1_000_000);
                let (table, wanted) = (self.replayed(sink, what), self.rows(collection));
                if table == wanted {
                    break;
                }
                if Instant::now() > deadline {
                    let (rows, _) = self
                        .runtime
                        .block_on(self.service.sql("SHOW SINKS".to_owned(), Vec::new()));
                    assert_eq!(table, wanted, "{what}: {sink}\n{:?}", rows[0].rows);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// The table that the world's records make; each must fit to the one before.
    fn replayed(&self, sink: &str, what: &str) -> BTreeMap<String, Vec<Json>> {
        let world = lock(&self.outside);
        let topic = &world.topics[sink];
        let codec = topic.codec.as_ref().expect("a sink was made");
        let (mut rows, mut last) = (BTreeMap::new(), BTreeMap::new());
        for change in &topic.changes {
            let RowChange {
                key,
                at,
                before,
                after,
            } = change;
            let earlier = last.insert(key.clone(), *at);
            assert!(
                earlier.is_none_or(|earlier| earlier < *at),
                "{what}: {sink}: {key} at {at} behind {earlier:?}"
            );
            assert_eq!(
                rows.get(key),
                before.as_ref(),
                "{what}: {sink}: {key} at {at}"
            );
            assert_ne!(
                before, after,
                "{what}: {sink}: {key} at {at} changed nothing"
            );
            match after {
                Some(row) => rows.insert(key.clone(), row.clone()),
                None => rows.remove(key),
            };
        }
        let table = rows.values().map(|row| {
            let values = codec.unpack(row);
            let pairs = values.iter().zip(&codec.schema().columns);
            let row: Vec<Json> = pairs
                .map(|(value, one)| value.to_json(one.sql_type))
                .collect();
            (row[0].to_string(), row)
        });
        table.collect()
    }
}

fn lines(random: &mut ChaCha8Rng) -> Vec<Json> {
    let count = random.random_range(1..6);
    let one = |random: &mut ChaCha8Rng| {
        let id = format!("d{}", random.random_range(0..10));
        match random.random_bool(0.3) {
            true => json!({"op": "delete", "key": id}),
            false => {
                let body = format!("body {}", random.random_range(0..3));
                json!({"id": id, "grp": random.random_range(0..4), "body": body})
            }
        }
    };
    (0..count).map(|_| one(random)).collect()
}

#[test]
fn the_world_gets_every_change_once_over_crashes() {
    let _together = together();
    for (seed, workers) in [
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 1),
        (5, 2),
        (rand::rng().random(), 2),
    ] {
        println!("seed {seed}, {workers} workers");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let clock = VirtualClock::new(1_800_000_000_000_000);
        let mut rig = Rig::over(MemoryStore::new(), clock, Outside::default(), workers);
        for step in 0..120 {
            rig.push("docs", &lines(&mut random));
            match random.random_range(0..12) {
                0 => rig = rig.crash(random.random(), workers),
                1 => lock(&rig.outside).is_away = true,
                2 | 3 => lock(&rig.outside).is_away = false,
                // Beyond every retention: only a sink's hold keeps what it has not written.
                4 => rig.clock.advance(100_000_000),
                5 => std::thread::sleep(Duration::from_millis(10)),
                _ => {}
            }
            if step % 40 == 39 {
                lock(&rig.outside).is_away = false;
                rig.check(&format!("seed {seed}, step {step}"));
            }
        }
        rig.service.stop();
    }
}

#[test]
fn the_log_is_not_folded_beyond_what_a_sink_has_written() {
    let _together = together();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let clock = VirtualClock::new(1_800_000_000_000_000);
    let mut rig = Rig::over(MemoryStore::new(), clock, Outside::default(), 2);
    rig.push("docs", &lines(&mut random));
    rig.check("begin");
    rig.fill("a");
    for _ in 0..20 {
        rig.push("docs", &lines(&mut random));
    }
    rig.check("before it goes away");
    lock(&rig.outside).is_away = true;
    let written = |rig: &Rig| {
        let world = lock(&rig.outside);
        world
            .topics
            .values()
            .filter_map(|topic| topic.progress)
            .min()
    };
    let progress = written(&rig).expect("something is written");
    for _ in 0..20 {
        rig.push("docs", &lines(&mut random));
        rig.clock.advance(10_000_000);
    }
    rig.fill("b");
    for _ in 0..20 {
        rig.push("docs", &lines(&mut random));
        rig.clock.advance(10_000_000);
        std::thread::sleep(Duration::from_millis(5));
    }
    // Twice: what the sink had not seen is kept by its hold, and after a restart by the replay.
    for what in ["away", "away over a restart"] {
        let folded = rig.compact();
        assert!(
            folded.is_none_or(|at| at <= progress),
            "{what}: folded through {folded:?}, written through {progress}"
        );
        assert_eq!(written(&rig), Some(progress));
        rig = rig.crash(11, 2);
        rig.push("docs", &lines(&mut random));
        rig.clock.advance(100_000_000);
        std::thread::sleep(Duration::from_millis(50));
    }
    lock(&rig.outside).is_away = false;
    rig.check("back");
    // Then there is nothing that keeps the log.
    for _ in 0..3 {
        rig.clock.advance(100_000_000);
        rig.push("docs", &lines(&mut random));
        rig.check("after");
    }
    let folded = rig.compact().expect("two segments are through");
    assert!(folded > progress, "{folded} {progress}");
    rig = rig.crash(12, 2);
    rig.push("docs", &lines(&mut random));
    rig.check("from a base");
    rig.service.stop();
}
