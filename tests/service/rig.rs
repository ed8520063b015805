//! An engine with real connectors, a store in memory, and an encoder that obeys.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use engine::contract::{Embedder, Store};
use engine::durable::VectorOptions;
use engine::runtime::SystemClock;
use engine::testing::{HashedEmbedder, MemoryStore};
use operators::embed::EmbedConfig;
use queries::api::{
    Backend, DeadLetterReply, DeadLetterRequest, LookupReply, LookupRequest, PushLine, PushReply,
    PushRequest, ReplayReply, ReplayRequest, SearchReply, SearchRequest, SqlReply, StoreRequest,
};
use queries::definition::ModelDef;
use queries::problem::Problem;
use queries::service::{Connect, Service, Wiring};
use serde_json::{Value as Json, json};

/// Length of the encoder's vectors.
const DIMENSIONS: usize = 64;

/// Tests that measure time run alone; the others share the machine.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs beside others.
pub fn together() -> RwLockReadGuard<'static, ()> {
    MACHINE
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs alone.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What reconciling did.
#[derive(Debug, Default, PartialEq)]
pub struct Reconciled {
    pub created: Vec<String>,
    pub dropped: Vec<String>,
    pub warnings: Vec<String>,
}

/// A running engine.
pub struct Rig {
    pub service: Service,
    pub store: MemoryStore,
    pub encoder: Arc<HashedEmbedder>,
    pub runtime: tokio::runtime::Runtime,
}

impl Rig {
    /// An engine on an empty store, with a pipeline declared.
    pub fn start(pipeline: &str) -> Rig {
        let rig = Rig::over(MemoryStore::new());
        let done = rig
            .runtime
            .block_on(rig.service.reconcile(pipeline, false, false));
        done.expect("the pipeline is right");
        rig
    }

    /// An engine on what a store holds, with a fresh encoder of the same identity.
    pub fn over(store: MemoryStore) -> Rig {
        Rig::with(store, 1, headwater::wiring::connector(None, 2))
    }

    /// The same with sources of the test's own.
    pub fn with(store: MemoryStore, workers: usize, connect: Arc<Connect>) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let encoder = Arc::new(HashedEmbedder::new("hashed", DIMENSIONS));
        let (model, counted) = (Arc::clone(&encoder), Arc::clone(&encoder));
        let wiring = Wiring {
            store: Arc::new(store.clone()) as Arc<dyn Store>,
            workers,
            communication: None,
            clock: Arc::new(SystemClock),
            // Models behind servers are real, others obey the test.
            load_model: Arc::new(move |name, def, key| match def {
                ModelDef::Remote(_) => headwater::wiring::load_model(name, def, key, None),
                _ => Ok(Arc::clone(&model) as Arc<dyn Embedder>),
            }),
            connect,
            connect_sink: Arc::new(headwater::wiring::connect_sink),
            describe: Arc::new(headwater::wiring::describe),
            decode_push: Arc::new(headwater::wiring::decode_push),
            redecode: Arc::new(headwater::wiring::redecode),
            metrics: Arc::new(move || format!("headwater_embed_texts_total {}\n", counted.total())),
            builder_threads: 1,
            // Small files, so that tests fill some.
            vectors: VectorOptions {
                segment_bytes: 8_192,
                ..VectorOptions::default()
            },
            embed: EmbedConfig {
                backoff_max: Duration::from_secs(1),
                ..EmbedConfig::default()
            },
        };
        let service = Service::start(wiring, runtime.handle().clone()).expect("a sound store");
        Rig {
            service,
            store,
            encoder,
            runtime,
        }
    }

    /// Pushes lines as they are.
    pub fn push_raw(&self, source: &str, lines: &[&[u8]]) -> Result<PushReply, Problem> {
        self.push_request(PushRequest {
            wait_visible_ms: Some(20_000),
            ..request(source, lines)
        })
    }

    /// Sends a whole request.
    pub fn push_request(&self, request: PushRequest) -> Result<PushReply, Problem> {
        self.runtime.block_on(self.service.push(request))
    }

    /// Upserts one document and waits until every index shows it.
    pub fn upsert(&self, source: &str, key: &str, value: &Json) -> PushReply {
        let line = upsert(key, value);
        let reply = self
            .push_raw(source, &[line.as_bytes()])
            .expect("a good push");
        assert_eq!(reply.visible, Some(true), "{key} became visible: {reply:?}");
        assert!(reply.rejected.is_empty(), "{:?}", reply.rejected);
        reply
    }

    /// Deletes one document and waits until every index shows it.
    pub fn delete(&self, source: &str, key: &str) {
        let line = json!({"op": "delete", "key": key}).to_string();
        let reply = self
            .push_raw(source, &[line.as_bytes()])
            .expect("a good push");
        assert_eq!(reply.visible, Some(true), "the end of {key} became visible");
    }

    /// Statements; the last reply, or the problem.
    pub fn sql(&self, text: &str) -> Result<SqlReply, Problem> {
        let (mut replies, problem) = self
            .runtime
            .block_on(self.service.sql(text.to_owned(), Vec::new()));
        match problem {
            Some(problem) => Err(problem),
            None => Ok(replies.pop().expect("a statement")),
        }
    }

    /// The rows of a query that is right.
    pub fn rows(&self, text: &str) -> Vec<Vec<Json>> {
        self.sql(text)
            .unwrap_or_else(|problem| panic!("{text}: {}", shown(&problem)))
            .rows
    }

    pub fn search(&self, request: SearchRequest) -> Result<SearchReply, Problem> {
        self.runtime.block_on(self.service.search(request))
    }

    /// Keys of the documents that a keyword question finds, best first.
    pub fn find(&self, index: &str, words: &str) -> Vec<String> {
        let reply = self
            .search(SearchRequest {
                index: index.to_owned(),
                query: Some(words.to_owned()),
                mode: Some("keyword".to_owned()),
                ..SearchRequest::default()
            })
            .unwrap_or_else(|problem| panic!("{words}: {}", shown(&problem)));
        let keys = reply.hits.iter().map(|hit| &hit.document.key);
        keys.filter_map(|key| Some(key.as_str()?.to_owned()))
            .collect()
    }

    /// Looks a question up.
    pub fn lookup(&self, cache: &str, question: &str) -> Result<LookupReply, Problem> {
        let request = LookupRequest {
            question: question.to_owned(),
            ..LookupRequest::default()
        };
        self.runtime
            .block_on(self.service.lookup(cache.to_owned(), request))
    }

    /// Whether a question is answered from the cache.
    pub fn is_cached(&self, cache: &str, question: &str) -> bool {
        match self.lookup(cache, question) {
            Ok(LookupReply::Hit { .. }) => true,
            Ok(LookupReply::Miss { .. }) => false,
            Err(problem) => panic!("{question}: {}", shown(&problem)),
        }
    }

    /// Caches an answer; the keys of the documents that it stands on.
    pub fn remember(&self, cache: &str, question: &str) -> Vec<String> {
        let Ok(LookupReply::Miss { lease, hits, .. }) = self.lookup(cache, question) else {
            panic!("{question} is not cached yet")
        };
        let citations = hits.iter().map(|hit| hit.chunk.clone()).collect();
        let store = StoreRequest {
            lease,
            answer: json!(question),
            citations,
        };
        self.runtime
            .block_on(self.service.store(cache.to_owned(), store))
            .unwrap_or_else(|problem| panic!("{question}: {}", shown(&problem)));
        let keys = hits.iter().map(|hit| &hit.document.key);
        keys.filter_map(|key| Some(key.as_str()?.to_owned()))
            .collect()
    }

    /// Dead letters of a source.
    pub fn letters(&self, source: &str) -> Vec<DeadLetterReply> {
        let request = DeadLetterRequest {
            source: Some(source.to_owned()),
            limit: 1_000,
            ..DeadLetterRequest::default()
        };
        let letters = self.service.dead_letters(request);
        self.runtime.block_on(letters).expect("a known source")
    }

    /// Decodes dead letters again.
    pub fn replay(&self, request: ReplayRequest) -> Result<ReplayReply, Problem> {
        self.runtime.block_on(self.service.replay(request))
    }

    /// Decodes all dead letters of a source again.
    pub fn replay_all(&self, source: &str) -> ReplayReply {
        let request = ReplayRequest {
            source: Some(source.to_owned()),
            ..ReplayRequest::default()
        };
        self.replay(request).expect("a known source")
    }

    /// Runs a pipeline file.
    pub fn reconcile(
        &self,
        text: &str,
        replace: bool,
        prune: bool,
    ) -> Result<Reconciled, Vec<Problem>> {
        let done = self
            .runtime
            .block_on(self.service.reconcile(text, replace, prune))?;
        Ok(Reconciled {
            created: done.created,
            dropped: done.dropped,
            warnings: done.warnings,
        })
    }

    /// Why the engine is not ready, if it is not.
    pub fn reasons(&self) -> Vec<String> {
        self.service.readiness().reasons
    }

    /// Waits until everything is served and nothing is on the way.
    pub fn wait_ready(&self) {
        eventually("ready", || self.service.readiness().ready);
    }
}

/// A push without waiting.
pub fn request(source: &str, lines: &[&[u8]]) -> PushRequest {
    let lines = lines.iter().zip(1..).map(|(line, number)| PushLine {
        line: number,
        raw: line.to_vec(),
    });
    PushRequest {
        source: source.to_owned(),
        lines: lines.collect(),
        request_id: "r_1".to_owned(),
        ..PushRequest::default()
    }
}

/// A line of a push.
pub fn upsert(key: &str, value: &Json) -> String {
    json!({"op": "upsert", "key": key, "value": value}).to_string()
}

/// Waits up to two minutes for something to hold.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A problem with all that a person is told.
pub fn shown(problem: &Problem) -> String {
    let mut out = format!("{} {}: {}", problem.status, problem.code, problem.detail);
    for (what, text) in [("expected", &problem.expected), ("hint", &problem.hint)] {
        if let Some(text) = text {
            out += &format!("; {what}: {text}");
        }
    }
    out
}
