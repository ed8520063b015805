//! A world that sinks write to, and a server over it: what was committed and the progress stand together,
//! as a broker's transaction has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{Embedder, FeedError, RowChange, Sink, SinkContext, SinkPhase, Store};
use engine::durable::CompactOptions;
use engine::durable::VectorOptions;
use engine::error::WorldError;
use engine::model::{ObjectId, RowCodec, Time};
use engine::runtime::VirtualClock;
use engine::testing::{HashedEmbedder, MemoryStore};
use operators::embed::EmbedConfig;
use queries::api::{Backend, PushLine, PushRequest};
use queries::service::{Service, Wiring};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::rig::{eventually, upsert};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, grp BIGINT, body TEXT);
CREATE SOURCE fill FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE VIEW even AS SELECT id, grp, body FROM docs WHERE grp % 2 = 0;
CREATE SINK whole FROM docs INTO KAFKA (BROKERS 'nowhere:1', TOPIC 'whole') ENVELOPE UPSERT;
CREATE SINK part FROM even INTO KAFKA (BROKERS 'nowhere:1', TOPIC 'part') ENVELOPE DEBEZIUM;
";

/// What one sink has committed.
#[derive(Default)]
pub(super) struct Topic {
    pub(super) changes: Vec<RowChange>,
    /// Who wrote it, and through which time.
    pub(super) progress: Option<(u64, Time)>,
    /// The declarations that have run.
    pub(super) ids: BTreeSet<ObjectId>,
    /// The most pages of one commit.
    pub(super) pages: usize,
    pub(super) codec: Option<Arc<RowCodec>>,
}

/// The world outside.
#[derive(Default)]
pub(super) struct World {
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) is_away: bool,
    /// Commits of former processes are refused.
    pub(super) process: u32,
    /// What a sink does instead of its work.
    pub(super) defect: Option<Defect>,
    /// The data folder as a dropped sink left it.
    pub(super) left: Option<MemoryStore>,
}

#[derive(Clone, Copy)]
pub(super) enum Defect {
    Ends,
    Panics,
}

pub(super) type Outside = Arc<Mutex<World>>;

pub(super) fn lock(outside: &Outside) -> std::sync::MutexGuard<'_, World> {
    outside.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Scripted {
    outside: Outside,
    process: u32,
    random: ChaCha8Rng,
    store: MemoryStore,
    attempted: Time,
}

impl Scripted {
    /// One session: from the progress outside until something is in the way.
    fn session(&mut self, context: &SinkContext) -> Result<(), FeedError> {
        let feed = &context.feed;
        let written = lock(&self.outside).topics[&context.name].progress;
        let mut progress = written.map(|(_, at)| at);
        if let Some(at) = progress {
            feed.hold(at)?;
        }
        while !context.is_stopping() {
            let Some(sealed) = feed.sealed(progress.unwrap_or(0), Duration::from_millis(20)) else {
                continue;
            };
            if progress.is_none() {
                match feed.hold(sealed) {
                    // The clock has jumped in between, and nothing is written yet.
                    Err(FeedError::HistoryGone { .. }) => continue,
                    held => held?,
                }
            }
            let (mut changes, mut next) = (Vec::new(), None);
            let (mut seen, mut pages) = (BTreeSet::new(), 0);
            loop {
                // So little that there are many pages, and one key's changes are more than one holds.
                let most = self.random.random_range(1..200);
                let mut page = feed.changes(progress, sealed, next.take(), most)?;
                pages += 1;
                let keys = page.changes.iter().map(|change| &change.key);
                for key in keys.collect::<BTreeSet<_>>() {
                    assert!(seen.insert(key.clone()), "{key:?} is split over two pages");
                }
                changes.append(&mut page.changes);
                next = page.next;
                if next.is_none() {
                    break;
                }
            }
            self.attempted = sealed;
            let mut world = lock(&self.outside);
            if world.is_away || world.process != self.process {
                return Ok(());
            }
            let topic = world.topics.get_mut(&context.name).expect("made before");
            topic.changes.extend(changes);
            topic.pages = topic.pages.max(pages);
            topic.progress = Some((context.runs.current(), sealed));
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
        let refused = |detail: String| WorldError::Service {
            service: "sink".to_owned(),
            detail,
            is_transient: false,
        };
        while !context.is_stopping() {
            let (written, defect) = {
                let mut world = lock(&self.outside);
                let topic = world.topics.get_mut(&context.name).expect("made before");
                topic.ids.insert(context.id);
                (topic.progress, world.defect)
            };
            match defect {
                None => {}
                Some(Defect::Ends) => return Ok(()),
                Some(Defect::Panics) => panic!("as the test wants it"),
            }
            if let Some((run, at)) = written {
                let checked = context.runs.check(run, at, self.attempted);
                checked.map_err(|foreign| refused(foreign.to_string()))?;
            }
            match self.session(&context) {
                Ok(()) | Err(FeedError::Late(_)) => std::thread::sleep(Duration::from_millis(2)),
                Err(FeedError::Closed) => break,
                Err(gone) => {
                    return Err(refused(gone.to_string()));
                }
            }
        }
        if context.is_dropped() {
            lock(&self.outside).left = Some(self.store.after_crash(1));
        }
        Ok(())
    }
}

pub(super) struct Rig {
    pub(super) service: Service,
    pub(super) store: MemoryStore,
    pub(super) clock: VirtualClock,
    pub(super) outside: Outside,
    pub(super) runtime: tokio::runtime::Runtime,
}

impl Rig {
    pub(super) fn over(
        store: MemoryStore,
        clock: VirtualClock,
        outside: Outside,
        workers: usize,
    ) -> Rig {
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
        let (topics, folder) = (Arc::clone(&outside), store.clone());
        let wiring = Wiring {
            store: Arc::new(store.clone()) as Arc<dyn Store>,
            workers,
            communication: None,
            clock: Arc::new(clock.clone()),
            load_model: Arc::new(move |_, _, _| Ok(Arc::clone(&encoder) as Arc<dyn Embedder>)),
            connect: headwater::wiring::connector(None, workers),
            connect_sink: Arc::new(move |_, name, codec, _| {
                let mut world = lock(&topics);
                let topic = world.topics.entry(name.to_owned()).or_default();
                topic.codec = Some(Arc::clone(codec));
                Ok(Box::new(Scripted {
                    outside: Arc::clone(&topics),
                    process,
                    random: ChaCha8Rng::seed_from_u64(u64::from(process)),
                    store: folder.clone(),
                    attempted: 0,
                }))
            }),
            describe: Arc::new(headwater::wiring::describe),
            decode_push: Arc::new(headwater::wiring::decode_push),
            redecode: Arc::new(headwater::wiring::redecode),
            metrics: Arc::new(String::new),
            builder_threads: 1,
            vectors: VectorOptions::default(),
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
    pub(super) fn crash(self, seed: u64, workers: usize) -> Rig {
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

    /// Rows, and lines that delete.
    pub(super) fn push(&self, source: &str, lines: &[Json]) {
        let line = |row: &Json| match row.get("op") {
            Some(_) => row.to_string(),
            None => upsert(row["id"].as_str().expect("a key"), row),
        };
        let lines = lines.iter().enumerate().map(|(i, row)| PushLine {
            line: i as u64 + 1,
            raw: line(row).into_bytes(),
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

    pub(super) fn rows(&self, collection: &str) -> BTreeMap<String, Vec<Json>> {
        let text = format!("SELECT id, grp, body FROM {collection}");
        let (mut replies, problem) = self.runtime.block_on(self.service.sql(text, Vec::new()));
        assert_eq!(problem, None);
        let rows = replies.remove(0).rows.into_iter();
        rows.map(|row| (row[0].to_string(), row)).collect()
    }

    /// Name, status, error and whether the lag is known, of each sink.
    pub(super) fn sinks(&self) -> Vec<(String, String, Option<String>, bool)> {
        let text = "SELECT name, status, error, lag_ms FROM headwater.sinks ORDER BY name";
        let (mut replies, problem) = self
            .runtime
            .block_on(self.service.sql(text.to_owned(), Vec::new()));
        assert_eq!(problem, None);
        let text = |json: &Json| json.as_str().map(str::to_owned);
        let rows = replies.remove(0).rows.into_iter();
        let row = |row: Vec<Json>| {
            let (name, status) = (text(&row[0]), text(&row[1]));
            let name = (name.expect("a name"), status.expect("a status"));
            (name.0, name.1, text(&row[2]), row[3].is_number())
        };
        rows.map(row).collect()
    }

    /// Waits until both sinks have failed, for this reason.
    pub(super) fn wait_failed(&self, why: &str) {
        eventually(why, || {
            let has_failed = |(_, status, error, has_lag): &(_, String, Option<String>, bool)| {
                let error = error.as_deref().unwrap_or_default();
                status == "failed" && error.contains(why) && *has_lag
            };
            self.sinks().iter().all(has_failed)
        });
    }

    /// Enough for the log to begin another segment.
    pub(super) fn fill(&self, name: &str) {
        for n in 0..9 {
            let body = "x".repeat(8_000_000);
            self.push("fill", &[json!({"id": format!("{name}{n}"), "body": body})]);
        }
    }

    /// Folds the log as far as it may; whether there was anything to fold.
    pub(super) fn compact(&self) -> Option<Time> {
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
    pub(super) fn check(&self, what: &str) {
        for (sink, collection) in [("whole", "docs"), ("part", "even")] {
            let deadline = Instant::now() + Duration::from_secs(180);
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
    pub(super) fn replayed(&self, sink: &str, what: &str) -> BTreeMap<String, Vec<Json>> {
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
