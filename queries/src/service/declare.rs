//! Declaring and dropping: resolve off the workers, log, render, then start what must run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::contract::{Source, SourceContext, Waits};
use engine::error::WorldError;
use engine::model::{ModelId, ObjectId, Schema, Time};
use engine::runtime::{AskTime, CatalogChange};
use tokio::sync::oneshot;

use super::Inner;
use super::asking::{PATIENCE, ask_problem};
use super::sinks::{DROP_WAIT, RunningSink};
use crate::api::Reply;
use crate::definition::{Definition, Object, SourceDef};
use crate::problem::Problem;
use crate::render::{Declared, ModelKind};
use crate::sql::{CatalogView, Create, DatabaseTable};

/// RETAIN of collections that no index reads, microseconds.
const RETAIN_MICROS: u64 = 60_000_000;

/// A source's thread.
pub(super) struct RunningSource {
    stop: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
    /// Why it ended by itself.
    failure: Arc<Mutex<Option<String>>>,
    /// What it waits for.
    waits: Arc<Waits>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RunningSource {
    /// Why the source reads no longer, if it had to give up.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no panic while held").clone()
    }

    /// What is there that it has not read.
    pub(super) fn behind(&self) -> Option<u64> {
        self.waits.behind()
    }

    /// How it does, and why not better.
    pub(super) fn status(&self) -> (&'static str, Option<String>) {
        if let Some(failure) = self.failure() {
            return ("failed", Some(failure));
        }
        match self.waits.reason() {
            Some(reason) => ("retrying", Some(reason)),
            None => ("running", None),
        }
    }
}

impl CatalogView for Inner {
    fn object(&self, name: &str) -> Option<Object> {
        let declared = self.pipeline.by_name(name)?;
        let object = declared.object();
        (!self.gone.contains(&object.id)).then(|| object.clone())
    }

    fn names(&self) -> Vec<String> {
        let declared = self.declared();
        let objects = declared.iter().map(Declared::object);
        objects.map(|object| object.name.clone()).collect()
    }

    fn describe(&self, sought: &DatabaseTable<'_>) -> Result<Schema, String> {
        self.describe_table(sought)
    }
}

impl Inner {
    /// Declares an object; on return it is durable and answers questions.
    pub(super) async fn create(self: &Arc<Self>, create: &Create) -> Reply<Time> {
        let id = {
            let mut next = self.next_object.lock().expect("no panic while held");
            *next += 1;
            ObjectId(*next - 1)
        };
        let object = Object {
            id,
            name: create.name.clone(),
            statement: create.statement.clone(),
            definition: create.definition.clone(),
        };
        if let Definition::Source(source) = &object.definition {
            // What no reader can be made of is refused before it is logged.
            self.connect(source, &object.name)
                .map_err(|error| Problem::invalid(error.to_string()))?;
        }
        self.check_key(&object.definition)?;
        let inner = Arc::clone(self);
        let resolving = object.clone();
        // Loading a model, or compiling a view, may take long.
        let declared =
            tokio::task::spawn_blocking(move || inner.pipeline.register(&resolving)).await;
        let declared = declared
            .map_err(|error| Problem::internal(error.to_string()))?
            .map_err(|error| world_problem(&object.name, &error))?;
        if let Declared::Sink {
            definition, codec, ..
        } = &declared
            && let Err(error) = self.check_sink(definition, &object.name, codec)
        {
            self.pipeline.unregister(id);
            return Err(Problem::invalid(error.to_string()));
        }
        let retain = self.retains(&object);
        let is_collection = object.definition.is_collection();
        let change = CatalogChange::Install {
            id,
            object: object.clone(),
            is_collection,
            retain,
        };
        let at = match self.declare(change).await {
            Ok(at) => at,
            Err(problem) => {
                self.pipeline.unregister(id);
                if let Declared::Model {
                    model: ModelKind::Encoder(encoder),
                    ..
                } = &declared
                {
                    self.forget_encoder(encoder.id());
                }
                return Err(problem);
            }
        };
        // It is declared, whether or not it is sealed before anybody's patience ends.
        if let Definition::Source(source) = &object.definition {
            self.start_sources(std::iter::once((id, &*object.name, source)));
        }
        if let Declared::Index(index) = &declared {
            self.fill(index);
        }
        self.start_sink(&declared, at);
        if is_collection {
            let sealed = AskTime::NotBefore(at);
            self.reach(vec![id], sealed, PATIENCE)
                .await
                .map_err(ask_problem)?;
        }
        Ok(at)
    }

    /// Drops objects, dependents first; on return their sinks have cleared away what they keep outside, or
    /// could not.
    pub(super) async fn drop_objects(self: &Arc<Self>, names: &[String]) -> Reply<()> {
        let mut leaving = Vec::new();
        let dropped = self.drop_each(names, &mut leaving).await;
        if !leaving.is_empty() {
            // They have been told, all of them, and each takes its time.
            let wait = move || RunningSink::wait_all(leaving, DROP_WAIT);
            let waited = tokio::task::spawn_blocking(wait).await;
            waited.map_err(|error| Problem::internal(error.to_string()))?;
        }
        dropped
    }

    async fn drop_each(
        self: &Arc<Self>,
        names: &[String],
        leaving: &mut Vec<RunningSink>,
    ) -> Reply<()> {
        for name in names {
            let Some(declared) = self.pipeline.by_name(name) else {
                continue;
            };
            let id = declared.object().id;
            self.stop_source(id);
            self.caches.forget(id);
            self.forget_refused(id);
            self.declare(CatalogChange::Uninstall { id }).await?;
            // Only a sink that is gone for good may take its progress away outside: a declared one without
            // would not know where it stands.
            leaving.extend(self.dismiss_sink(id));
            self.pipeline.unregister(id);
            if let Declared::Sink { .. } = declared {
                self.forget_sink(id);
            }
            if let Declared::Model {
                model: ModelKind::Encoder(encoder),
                ..
            } = &declared
            {
                self.forget_encoder(encoder.id());
            }
            if !matches!(declared, Declared::Source { .. }) {
                // Its rows are gone, and nothing else would take their letters back. Those of a source
                // that is made again may be good then.
                self.engine.forget_letters(|other| other != name);
            }
        }
        Ok(())
    }

    /// A model is gone, or was never declared: ends its encoder's threads, unless another declared model is
    /// the same encoder, whose way to it (key, limits) counts again then.
    fn forget_encoder(&self, model: ModelId) {
        let other = self
            .pipeline
            .all()
            .into_iter()
            .find_map(|declared| match declared {
                Declared::Model {
                    model: ModelKind::Encoder(encoder),
                    ..
                } if encoder.id() == model => Some(encoder),
                _ => None,
            });
        match other {
            Some(encoder) => self.embed.register(encoder),
            None => self.embed.unregister(model),
        }
    }

    async fn declare(&self, change: CatalogChange<Object>) -> Reply<Time> {
        let (send, receive) = oneshot::channel();
        let declared = Box::new(move |result| {
            let _ = send.send(result);
        });
        self.engine.declare(change, declared);
        match receive.await {
            Ok(Ok(at)) => Ok(at),
            Ok(Err(error)) => Err(Problem::internal(format!("not declared: {error}"))),
            Err(_) => Err(Problem::new(503, "not-ready", "the engine is stopping")),
        }
    }

    /// Retention of an object and, through it, of what it reads.
    fn retains(&self, object: &Object) -> Vec<(ObjectId, u64)> {
        let mut retain = vec![(object.id, RETAIN_MICROS)];
        match &object.definition {
            Definition::Index(index) => {
                retain[0].1 = index.retain_micros;
                let mut name = index.on.clone();
                while let Some(declared) = self.pipeline.by_name(&name) {
                    let read = self.retained_by_readers(&name).max(index.retain_micros);
                    retain.push((declared.object().id, read.max(RETAIN_MICROS)));
                    match &declared.object().definition {
                        Definition::View(view) => name = view.from.clone(),
                        _ => break,
                    }
                }
            }
            Definition::Cache(cache) => {
                if let Some(Declared::Index(index)) = self.pipeline.by_name(&cache.index) {
                    retain[0].1 = index.definition.retain_micros;
                }
            }
            _ => {}
        }
        retain
    }

    fn retained_by_readers(&self, relation: &str) -> u64 {
        let all = self.pipeline.all();
        let readers = all.iter().filter_map(|declared| match declared {
            Declared::Index(index) if index.definition.on == relation => {
                Some(index.definition.retain_micros)
            }
            _ => None,
        });
        readers.max().unwrap_or(0)
    }

    /// Starts the threads that read sources. All readers are made before the first one runs: those
    /// that share a connection wait for each other.
    pub(super) fn start_sources<'a>(
        &self,
        sources: impl Iterator<Item = (ObjectId, &'a str, &'a SourceDef)>,
    ) {
        let mut readers = Vec::new();
        for (id, name, source) in sources {
            match self.connect(source, name) {
                Ok(Some(reader)) => readers.push((id, name, reader)),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(source = name, %error, "the source cannot be read");
                    self.sources.lock().expect("no panic while held").insert(
                        id,
                        RunningSource {
                            stop: Arc::default(),
                            dropped: Arc::default(),
                            failure: Arc::new(Mutex::new(Some(error.to_string()))),
                            waits: Arc::default(),
                            thread: None,
                        },
                    );
                }
            }
        }
        for (id, name, reader) in readers {
            self.start_source(id, name, reader);
        }
    }

    fn start_source(&self, id: ObjectId, name: &str, reader: Box<dyn Source>) {
        let stop = Arc::new(AtomicBool::new(false));
        let dropped = Arc::new(AtomicBool::new(false));
        let sink = self.engine.sink(id, name, false).until(Arc::clone(&stop));
        let sink = Arc::new(sink);
        let context = SourceContext {
            name: name.to_owned(),
            sink: Arc::clone(&sink) as _,
            resume: sink,
            stop: Arc::clone(&stop),
            dropped: Arc::clone(&dropped),
            waits: Arc::default(),
        };
        let waits = Arc::clone(&context.waits);
        let ending = context.clone();
        let source_name = name.to_owned();
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let told = Arc::clone(&failure);
        let body = move || {
            let _span = tracing::debug_span!("source", source = &*source_name).entered();
            // A defect in one reader must be seen and must not take the others with it: what it
            // staged is whole, and a restart resumes after it.
            let ended = catch_unwind(AssertUnwindSafe(|| reader.run(context)));
            ending.waits_no_longer();
            let error = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a defect; the log has the panic".to_owned(),
            };
            tracing::error!(source = source_name, error, "the source stopped");
            *told.lock().expect("no panic while held") = Some(error);
        };
        let thread = std::thread::Builder::new()
            .name(format!("source-{name}"))
            .spawn(body);
        let thread = thread.expect("the operating system gives a thread");
        let running = RunningSource {
            stop,
            dropped,
            failure,
            waits,
            thread: Some(thread),
        };
        self.sources
            .lock()
            .expect("no panic while held")
            .insert(id, running);
    }

    /// Stops a source that is dropped for good.
    fn stop_source(&self, id: ObjectId) {
        let source = self
            .sources
            .lock()
            .expect("no panic while held")
            .remove(&id);
        if let Some(mut source) = source {
            source.dropped.store(true, Ordering::Relaxed);
            source.stop.store(true, Ordering::Relaxed);
            if let Some(thread) = source.thread.take() {
                let _ = thread.join();
            }
        }
    }

    /// Stops all sources and waits for them, at most two seconds.
    pub(super) fn stop_sources(&self) {
        let sources = std::mem::take(&mut *self.sources.lock().expect("no panic while held"));
        for source in sources.values() {
            source.stop.store(true, Ordering::Relaxed);
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(2);
        for thread in sources
            .into_values()
            .filter_map(|mut source| source.thread.take())
        {
            while !thread.is_finished() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A world that failed while something was declared.
fn world_problem(name: &str, error: &WorldError) -> Problem {
    let problem = Problem::new(503, "unavailable", format!("\"{name}\": {error}"));
    if error.is_transient() {
        problem.hint("try again")
    } else {
        problem
    }
}
