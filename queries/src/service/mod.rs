//! The engine behind the front door: declares, stages, asks, watches over the cache.
//!
//! ```text
//!  push ──▶ decode ──▶ sink ──▶ log, lanes            search, select ──▶ plan ──▶ ask(T) ──▶ workers ──▶ reply
//!  DDL  ──▶ resolve (models, programs) ──▶ declare     look-up ──▶ ask(T) ──▶ hit | lease ──▶ operation
//! ```
//!
//! Invariants: every read names its T and holds it until it is answered or its caller is gone; an
//! acknowledged push is synced; nothing here waits on a worker's thread. Connectors and model
//! loaders are given in ([`Wiring`]): this crate knows neither Kafka nor weights.

mod asking;
mod backend;
mod cache;
mod collect;
mod connection;
mod declare;
mod documents;
mod embeddings;
mod fill;
mod letters;
mod prepare;
mod progress;
mod push;
mod search;
mod sinks;
mod statements;
mod system;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use engine::contract::{Embedder, Source, Store, VectorMemo};
use engine::durable::{
    CompactOptions, EmbeddingStore, InputLog, LogOptions, SinkNotes, VectorOptions,
};
use engine::error::{DataError, DeadLetter, WorldError};
use engine::letters::Redecoded;
use engine::model::{Key, ObjectId, Row, Schema, Time, VectorRef};
use engine::runtime::{CatalogChange, Clock, CommunicationConfig, Engine, EngineOptions, Pin};
use operators::embed::{EmbedConfig, EmbedService};
use operators::index::BuilderHandle;
use tokio::sync::oneshot;

use self::fill::Fills;
use crate::api::PushLine;
use crate::definition::{Definition, ModelDef, Object, SourceDef};
use crate::render::{Answer, Declared, Pipeline, ProgramReply, VectorBytes, WorkerProgram};
use cache::CacheDesk;
use collect::COLLECT_EVERY;
pub use connection::{Access, Connection, ModelKey};
use declare::RunningSource;
use prepare::PipelinePreparer;
use push::Replies;
pub use sinks::ConnectSink;
use sinks::RunningSink;

/// A push body, decoded against a schema.
#[derive(Debug, Default)]
pub struct DecodedPush {
    /// Changes in order, the last of each key.
    pub changes: Vec<(Key, Option<Row>, Option<u64>)>,
    /// Lines that were good (also those that a later line of their key replaced).
    pub accepted: u64,
    /// The bad ones.
    pub rejected: Vec<Rejected>,
}

/// A bad line of a push.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// Its number.
    pub line: u64,
    /// Why.
    pub error: DataError,
    /// The row that it speaks of, where that could be read.
    pub key: Option<Key>,
    /// Changes of the push that came before it.
    pub after: usize,
}

/// Loads a model by name and definition, with the way to its key.
pub type LoadModel = dyn Fn(&str, &ModelDef, Option<ModelKey>) -> Result<Arc<dyn Embedder>, WorldError>
    + Send
    + Sync;
/// Makes the reader of a source, by its name and what it reaches its world with; `None` for one that is
/// pushed to.
pub type Connect =
    dyn Fn(&SourceDef, &str, &Access) -> Result<Option<Box<dyn Source>>, WorldError> + Send + Sync;
/// The columns of a table (`schema.table`) of a database.
pub type DescribeTable = dyn Fn(&Connection, &str) -> Result<Schema, WorldError> + Send + Sync;
/// Decodes the lines of a push.
pub type DecodePush = dyn Fn(&Schema, &[PushLine]) -> DecodedPush + Send + Sync;

/// Decodes the payload of a dead letter again, as its source decodes now.
pub type Redecode = dyn Fn(&SourceDef, &Access, &DeadLetter) -> Redecoded + Send + Sync;

/// What the composition root gives in.
pub struct Wiring {
    /// The data folder's files.
    pub store: Arc<dyn Store>,
    /// Workers of this process.
    pub workers: usize,
    /// How workers talk; `None` for one process.
    pub communication: Option<CommunicationConfig>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Loads models.
    pub load_model: Arc<LoadModel>,
    /// Makes readers of sources.
    pub connect: Arc<Connect>,
    /// Makes writers of sinks.
    pub connect_sink: Arc<ConnectSink>,
    /// Asks databases for the columns of tables.
    pub describe: Arc<DescribeTable>,
    /// Decodes pushes.
    pub decode_push: Arc<DecodePush>,
    /// Decodes dead letters again.
    pub redecode: Arc<Redecode>,
    /// Renders Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Threads that build graphs.
    pub builder_threads: usize,
    /// The encoders' queue.
    pub embed: EmbedConfig,
    /// The embedding store.
    pub vectors: VectorOptions,
}

/// The service. Cheap to clone; the last clone that goes stops the engine.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// A question's waiting reply.
type Waiting = Mutex<HashMap<u64, oneshot::Sender<Answer>>>;

pub(super) struct Inner {
    engine: Engine<WorkerProgram>,
    pipeline: Arc<Pipeline>,
    embed: Arc<EmbedService>,
    vectors: Arc<EmbeddingStore>,
    waiting: Arc<Waiting>,
    caches: CacheDesk,
    sources: Mutex<BTreeMap<ObjectId, RunningSource>>,
    sinks: Mutex<BTreeMap<ObjectId, RunningSink>>,
    sink_notes: SinkNotes,
    fills: Fills,
    replies: Replies,
    next_object: Mutex<u32>,
    /// What the recovered catalog dropped again. Workers that are still applying the log may have it in the
    /// pipeline for a moment.
    gone: HashSet<ObjectId>,
    /// Declarations are made one after another.
    declaring: tokio::sync::Mutex<()>,
    connect: Arc<Connect>,
    connect_sink: Arc<ConnectSink>,
    describe: Arc<DescribeTable>,
    decode_push: Arc<DecodePush>,
    redecode: Arc<Redecode>,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
    runtime: tokio::runtime::Handle,
    is_stopping: Arc<AtomicBool>,
    is_ready: AtomicBool,
}

/// Reads vectors from the store.
struct StoredVectors(Arc<EmbeddingStore>);

impl VectorBytes for StoredVectors {
    fn get(&self, at: VectorRef) -> Option<Arc<[f32]>> {
        self.0.get(at)
    }

    fn note(&self, _at: VectorRef, _vector: &Arc<[f32]>) {}
}

impl Service {
    /// Opens the data folder, replays it, and serves. Blocks until the log is
    /// replayed.
    pub fn start(wiring: Wiring, runtime: tokio::runtime::Handle) -> Result<Service, WorldError> {
        let vectors = EmbeddingStore::open(Arc::clone(&wiring.store), wiring.vectors)?;
        let vectors = Arc::new(vectors);
        metrics::gauge!("headwater_vectors_opened").set(vectors.len() as f64);
        let flush = Arc::clone(&vectors);
        let options = LogOptions {
            before_vectors: Some(Arc::new(move || flush.flush())),
            ..LogOptions::default()
        };
        let (log, replay) = InputLog::open(Arc::clone(&wiring.store), options)?;
        let memo = Arc::clone(&vectors);
        let embed = EmbedService::new(wiring.embed.clone(), memo as Arc<dyn VectorMemo>);
        let builder = BuilderHandle::threads(wiring.builder_threads)
            .map_err(|error| WorldError::io("cannot start", "builder threads".as_ref(), error))?;
        let (reply_sender, reply_receiver) = crossbeam_channel::unbounded();
        let waiting: Arc<Waiting> = Arc::default();
        let answers = Arc::clone(&waiting);
        let replies = move |reply| match reply {
            // Answers go straight to their reader: one hop less on the way of a question.
            ProgramReply::Answer { question, answer } => {
                let reader = answers
                    .lock()
                    .expect("no panic while held")
                    .remove(&question);
                if let Some(reader) = reader {
                    let _ = reader.send(answer);
                }
            }
            other => {
                let _ = reply_sender.send(other);
            }
        };
        let load = Arc::clone(&wiring.load_model);
        let loading = Arc::clone(&embed);
        let pipeline = Arc::new(Pipeline::new(
            Box::new(move |name, model, key| {
                let encoder = load(name, model, key.map(ModelKey::new))?;
                loading.register(Arc::clone(&encoder));
                Ok(encoder)
            }),
            builder,
            Arc::new(StoredVectors(Arc::clone(&vectors))),
            Arc::new(replies),
        ));
        let mut engine_options = EngineOptions::workers(wiring.workers);
        engine_options.clock = Arc::clone(&wiring.clock);
        if let Some(communication) = wiring.communication.clone() {
            engine_options.communication = communication;
        }
        let program_pipeline = Arc::clone(&pipeline);
        let factory =
            move |index, peers| WorkerProgram::new(Arc::clone(&program_pipeline), index, peers);
        let preparer_parts = (
            Arc::clone(&pipeline),
            Arc::clone(&embed),
            Arc::clone(&vectors),
        );
        let mut next_object = 1;
        let registry = Arc::clone(&pipeline);
        let sink_notes = SinkNotes::open(Arc::clone(&wiring.store))?;
        let (engine, mut recovered) = Engine::<WorkerProgram>::start(
            engine_options,
            Arc::new(log),
            replay,
            Arc::new(factory),
            |announcer| {
                let (pipeline, embed, vectors) = preparer_parts;
                Arc::new(PipelinePreparer {
                    pipeline,
                    embed,
                    vectors,
                    announcer,
                })
            },
            &mut |change| {
                if let CatalogChange::Install { id, object, .. } = change {
                    next_object = next_object.max(id.0 + 1);
                    if let Declared::Sink { from, .. } = registry.register(object)? {
                        let at = sink_notes.progress(*id).unwrap_or(0);
                        return Ok(Some(Pin {
                            collection: from,
                            at,
                        }));
                    }
                }
                Ok(None)
            },
        )?;
        let gone = dropped(&recovered.catalog);
        let next_object = next_object.max(sink_notes.next_object());
        sink_notes.begin_run(recovered.last, &sinks_of(&pipeline, &gone), next_object)?;
        engine.resume(&mut recovered);
        let inner = Arc::new(Inner {
            engine,
            pipeline,
            embed,
            vectors,
            waiting,
            caches: CacheDesk::default(),
            sources: Mutex::default(),
            sinks: Mutex::default(),
            sink_notes,
            fills: Fills::default(),
            replies: Replies::recovered(std::mem::take(&mut recovered.replies)),
            next_object: Mutex::new(next_object),
            gone,
            declaring: tokio::sync::Mutex::new(()),
            connect: wiring.connect,
            connect_sink: wiring.connect_sink,
            describe: wiring.describe,
            decode_push: wiring.decode_push,
            redecode: wiring.redecode,
            metrics: wiring.metrics,
            runtime,
            is_stopping: Arc::default(),
            is_ready: AtomicBool::new(false),
        });
        spawn_replies(Arc::downgrade(&inner), reply_receiver);
        spawn_upkeep(Arc::downgrade(&inner));
        let service = Service { inner };
        service.recover(recovered.last);
        Ok(service)
    }

    /// Starts the sources and sinks of a recovered catalog, and asks for vectors that are still missing. What
    /// was dropped may still be there: the workers take it out when they come to it.
    fn recover(&self, last: Time) {
        let objects = self.inner.declared();
        let is_there = |name: &str| objects.iter().any(|one| one.object().name == name);
        self.inner.engine.forget_letters(is_there);
        let sources = objects.iter().filter_map(|declared| {
            let object = declared.object();
            match &object.definition {
                Definition::Source(source) => Some((object.id, &*object.name, source)),
                _ => None,
            }
        });
        self.inner.start_sources(sources);
        for declared in &objects {
            if let Declared::Index(index) = declared {
                self.inner.fill(index);
            }
            self.inner.start_sink(declared, last);
        }
        self.inner
            .is_ready
            .store(true, std::sync::atomic::Ordering::Release);
    }

    /// Stops sources, seals what is bound, ends the workers.
    pub fn stop(&self) {
        self.inner.stop();
    }

    /// The engine, for tests and benches.
    pub fn engine(&self) -> &Engine<WorkerProgram> {
        &self.inner.engine
    }

    /// The pipeline, for tests and benches.
    pub fn pipeline_ref(&self) -> &Arc<Pipeline> {
        &self.inner.pipeline
    }

    /// The encoder's queue, for tests and benches.
    pub fn embed(&self) -> &Arc<EmbedService> {
        &self.inner.embed
    }
}

impl Inner {
    /// What is declared. Of a recovered catalog the workers may not have come yet to what was dropped.
    fn declared(&self) -> Vec<Declared> {
        let mut all = self.pipeline.all();
        all.retain(|declared| !self.gone.contains(&declared.object().id));
        all
    }

    fn stop(&self) {
        self.is_stopping
            .store(true, std::sync::atomic::Ordering::Release);
        let sinks = self.stop_sinks();
        self.stop_sources();
        RunningSink::wait_all(sinks, Duration::from_secs(2));
        self.engine.stop();
        self.embed.stop();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a catalog dropped again.
fn dropped(catalog: &[CatalogChange<Object>]) -> HashSet<ObjectId> {
    let ids = catalog.iter().filter_map(|change| match change {
        CatalogChange::Uninstall { id } => Some(*id),
        CatalogChange::Install { .. } => None,
    });
    ids.collect()
}

/// The sinks that are declared.
fn sinks_of(pipeline: &Pipeline, dropped: &HashSet<ObjectId>) -> Vec<ObjectId> {
    let all = pipeline.all();
    let sinks = all
        .iter()
        .filter(|declared| matches!(declared, Declared::Sink { .. }));
    let ids = sinks.map(|declared| declared.object().id);
    ids.filter(|id| !dropped.contains(id)).collect()
}

/// Carries the workers' replies, other than answers, to where they belong.
fn spawn_replies(inner: Weak<Inner>, replies: crossbeam_channel::Receiver<ProgramReply>) {
    let body = move || {
        for reply in replies {
            let Some(inner) = inner.upgrade() else { return };
            match reply {
                ProgramReply::Answer { .. } => unreachable!("answers take the short way"),
                ProgramReply::Due(at) => inner.engine.due(at),
                ProgramReply::Mark(mark) => drop(mark),
                ProgramReply::CacheEvents { cache, events } => {
                    Inner::cache_events(&inner, cache, events);
                }
                ProgramReply::RowError {
                    relation,
                    key,
                    error,
                    diff,
                } => {
                    inner.row_error(relation, &key, error, diff);
                }
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("replies".to_owned())
        .spawn(body);
    thread.expect("the operating system gives a thread at start");
}

/// Compacts the log when enough of it can go, refreshes gauges.
fn spawn_upkeep(inner: Weak<Inner>) {
    let body = move || {
        let mut rounds = 0_u32;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let Some(inner) = inner.upgrade() else { return };
            rounds += 1;
            inner.refresh_gauges();
            inner.refresh_sink_gauges();
            inner.fill_gaps(rounds);
            let now = inner.engine.clock().now_micros();
            inner.engine.dead_letters().upkeep(now);
            if rounds.is_multiple_of(5) {
                inner.runtime.block_on(inner.refresh_index_gauges());
            }
            if rounds.is_multiple_of(30)
                && let Err(error) = inner.engine.compact_log(&inner.compact_options())
            {
                tracing::error!(%error, "the input log could not be compacted; trying again later");
            }
            if rounds.is_multiple_of(COLLECT_EVERY) {
                inner.runtime.block_on(inner.collect_vectors());
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("upkeep".to_owned())
        .spawn(body);
    thread.expect("the operating system gives a thread at start");
}

impl Inner {
    /// What compaction may forget: rows of dropped sources, what is older than a day.
    fn compact_options(&self) -> CompactOptions {
        let (pipeline, declared) = (Arc::clone(&self.pipeline), Arc::clone(&self.pipeline));
        let vectors = Arc::clone(&self.vectors);
        CompactOptions {
            now: self.engine.clock().now_micros(),
            keep_vector: Some(Arc::new(move |model, content| {
                vectors.is_wanted(model, content)
            })),
            keep_source: Some(Arc::new(move |source| pipeline.get(source).is_some())),
            keep_letters: Some(Arc::new(move |name| declared.by_name(name).is_some())),
        }
    }
}
