//! Sinks: their threads, what they read, how they are.
//!
//! ```text
//!  sink's thread ── sealed, changes ──▶ ask(T) ──▶ workers        a hold at its progress, always
//!        │                                                        ├ from the replay on: a pin
//!        └── progress, state ──▶ headwater.sinks, sinks.state     └ then: a question without an end
//! ```
//!
//! Invariants: from the beginning of a replay until the sink is dropped, what happened after its
//! progress is readable; a sink that fails holds up nothing else. Limits: a sink that cannot write
//! keeps its collection's history since its progress, in memory and in the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use engine::contract::{
    ChangeFeed, ChangePage, FeedError, NextPage, Sink, SinkContext, SinkPhase, SinkStatus,
};
use engine::error::WorldError;
use engine::model::{ObjectId, RowCodec, Time, Value};
use engine::runtime::{AskError, AskGuard, AskTime};
use engine::telemetry;

use super::Inner;
use super::asking::PATIENCE;
use super::connection::Access;
use super::system::{int, text};
use crate::definition::SinkDef;
use crate::render::{Answer, ChangesQuestion, Declared, Question, WorkerProgram};

/// Makes the writer of a sink, by its name, its definition, the rows that it writes and what it reaches
/// its world with.
pub type ConnectSink = dyn Fn(&SinkDef, &str, &Arc<RowCodec>, &Access) -> Result<Box<dyn Sink>, WorldError>
    + Send
    + Sync;

/// Time between two notes of a sink's progress: each is a synced file, and a note that is behind costs
/// a restart some memory and nothing else.
const NOTE: Duration = Duration::from_secs(5);
/// Longest wait for a sink that is dropped: it has something to clear away outside.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// A sink's thread.
pub(super) struct RunningSink {
    stop: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
    status: Arc<SinkStatus>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RunningSink {
    /// Why the sink writes no longer, if it had to give up.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.status.get();
        (state.phase == SinkPhase::Failed).then_some(state.error)?
    }

    fn wait(&mut self, deadline: Instant) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A collection as one sink reads it.
struct Feed {
    inner: Weak<Inner>,
    sink: ObjectId,
    collection: ObjectId,
    name: String,
    held: Mutex<Option<AskGuard<WorkerProgram>>>,
    noted: Mutex<Option<Instant>>,
}

impl Feed {
    fn inner(&self) -> Result<Arc<Inner>, FeedError> {
        let inner = self.inner.upgrade();
        inner
            .filter(|inner| !inner.is_stopping.load(Ordering::Acquire))
            .ok_or(FeedError::Closed)
    }
}

impl ChangeFeed for Feed {
    fn sealed(&self, after: Time, wait: Duration) -> Option<Time> {
        let inner = self.inner().ok()?;
        let over = [self.collection];
        if !inner.engine.wait_sealed(&over, after + 1, wait) {
            return None;
        }
        let published = inner.engine.published();
        let readable = published.collections.get(&self.collection)?;
        Some(readable.upper.saturating_sub(1)).filter(|sealed| *sealed > after)
    }

    fn hold(&self, at: Time) -> Result<(), FeedError> {
        let inner = self.inner()?;
        // After a restart the first tick may be still to come.
        let over = [self.collection];
        if !inner.engine.wait_sealed(&over, at, PATIENCE) {
            let detail = format!("time {at} is not sealed yet");
            return Err(FeedError::Late(detail));
        }
        let (send, receive) = mpsc::channel();
        let guard = inner.engine.ask(
            vec![self.collection],
            AskTime::At(at),
            PATIENCE,
            |_| None,
            Box::new(move |result| {
                let _ = send.send(result);
            }),
        );
        match receive.recv() {
            Ok(Ok(_)) => {}
            Ok(Err(AskError::OutOfRange { since, .. })) => {
                return Err(FeedError::HistoryGone { at, since });
            }
            _ => return Err(FeedError::Closed),
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = held.replace(guard) {
            before.done();
        }
        inner.engine.unpin(self.sink);
        Ok(())
    }

    fn changes(
        &self,
        after: Option<Time>,
        through: Time,
        page: Option<NextPage>,
    ) -> Result<ChangePage, FeedError> {
        let inner = self.inner()?;
        let question = Question::Changes(ChangesQuestion {
            collection: self.collection,
            after,
            page,
        });
        let over = vec![self.collection];
        let asked = inner.ask(over, AskTime::At(through), PATIENCE, question);
        match inner.runtime.block_on(asked) {
            Ok((_, Answer::Changes(page))) => Ok(page),
            Ok(_) => unreachable!("changes are answered by changes"),
            Err(_) if inner.is_stopping.load(Ordering::Acquire) => Err(FeedError::Closed),
            Err(problem) => Err(FeedError::Late(problem.detail)),
        }
    }

    fn note(&self, progress: Time) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_some_and(|at| at.elapsed() < NOTE) {
            return;
        }
        *noted = Some(Instant::now());
        let Some(inner) = self.inner.upgrade() else {
            return;
        };
        if let Err(error) = inner.sink_notes.note(self.sink, progress) {
            let sink = &*self.name;
            tracing::warn!(sink, %error, "the sink's progress is not noted in the data folder");
        }
    }
}

impl Inner {
    /// Makes a sink's writer, to see whether it can be made.
    pub(super) fn check_sink(
        &self,
        definition: &SinkDef,
        name: &str,
        codec: &Arc<RowCodec>,
    ) -> Result<Box<dyn Sink>, WorldError> {
        let access = self.sink_access(definition)?;
        (self.connect_sink)(definition, name, codec, &access)
    }

    /// Starts a sink's thread. `floor`: no time above it was published before this run.
    pub(super) fn start_sink(self: &Arc<Self>, declared: &Declared, floor: Time) {
        let Declared::Sink {
            object,
            definition,
            from,
            codec,
        } = declared
        else {
            return;
        };
        let (stop, dropped, status) = (Arc::default(), Arc::default(), Arc::default());
        let context = SinkContext {
            name: object.name.clone(),
            id: object.id,
            collection: definition.from.clone(),
            pipeline: self.sink_notes.pipeline(),
            feed: Arc::new(Feed {
                inner: Arc::downgrade(self),
                sink: object.id,
                collection: *from,
                name: object.name.clone(),
                held: Mutex::default(),
                noted: Mutex::default(),
            }),
            noted: self.sink_notes.progress(object.id),
            floor,
            status: Arc::clone(&status),
            stop: Arc::clone(&stop),
            dropped: Arc::clone(&dropped),
        };
        let writer = self.check_sink(definition, &object.name, codec);
        let name = object.name.clone();
        let told: Arc<SinkStatus> = Arc::clone(&status);
        let body = move || {
            // A defect in one sink must be seen and must not take the others with it.
            let run = || writer.and_then(|writer| writer.run(context));
            let error = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a defect; the log has the panic".to_owned(),
            };
            tracing::error!(sink = name, error, "the sink stopped");
            told.set(|state| {
                state.phase = SinkPhase::Failed;
                state.error = Some(error);
            });
        };
        let thread = std::thread::Builder::new()
            .name(format!("sink-{}", object.name))
            .spawn(body);
        let running = RunningSink {
            stop,
            dropped,
            status,
            thread: Some(thread.expect("the operating system gives a thread")),
        };
        let mut sinks = self.sinks.lock().expect("no panic while held");
        sinks.insert(object.id, running);
    }

    /// Stops a sink that is dropped for good; on return it has cleared away what it keeps outside, or
    /// could not.
    pub(super) fn stop_sink(&self, id: ObjectId) {
        let sink = self.sinks.lock().expect("no panic while held").remove(&id);
        if let Some(mut sink) = sink {
            sink.dropped.store(true, Ordering::Relaxed);
            sink.stop.store(true, Ordering::Relaxed);
            sink.wait(Instant::now() + DROP_WAIT);
        }
    }

    /// Stops all sinks and waits for them, at most two seconds.
    pub(super) fn stop_sinks(&self) {
        let mut sinks = std::mem::take(&mut *self.sinks.lock().expect("no panic while held"));
        for sink in sinks.values() {
            sink.stop.store(true, Ordering::Relaxed);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        sinks.values_mut().for_each(|sink| sink.wait(deadline));
    }

    /// `headwater.sinks`
    pub(super) fn sink_rows(&self) -> Vec<Vec<Value>> {
        let all = self.pipeline.all();
        let sinks = self.sinks.lock().expect("no panic while held");
        let rows = all.iter().filter_map(|declared| {
            let Declared::Sink {
                object,
                definition,
                from,
                ..
            } = declared
            else {
                return None;
            };
            let state = sinks.get(&object.id).map(|sink| sink.status.get());
            let state = state.unwrap_or_default();
            let lag = state
                .progress
                .and_then(|progress| self.lag(*from, progress));
            Some(vec![
                text(&object.name),
                text(&definition.from),
                text("kafka"),
                text(&definition.topic),
                text(state.phase.as_str()),
                state.progress.map_or(Value::Null, int),
                lag.map_or(Value::Null, |seconds| Value::Float(seconds * 1_000.0)),
                int(state.records),
                int(state.transactions),
                state.error.map_or(Value::Null, text),
                text(&object.statement),
            ])
        });
        rows.collect()
    }

    /// Seconds that a collection is sealed beyond a time.
    fn lag(&self, collection: ObjectId, progress: Time) -> Option<f64> {
        let published = self.engine.published();
        let readable = published.collections.get(&collection)?;
        let sealed = readable.upper.saturating_sub(1);
        Some(sealed.saturating_sub(progress) as f64 / 1e6)
    }

    /// The lag of every sink, also of one that is stuck.
    pub(super) fn refresh_sink_gauges(&self) {
        for declared in self.pipeline.all() {
            let Declared::Sink { object, from, .. } = declared else {
                continue;
            };
            let sinks = self.sinks.lock().expect("no panic while held");
            let progress = sinks.get(&object.id).and_then(|sink| {
                let progress = sink.status.get().progress;
                progress.or_else(|| self.sink_notes.progress(object.id))
            });
            drop(sinks);
            if let Some(lag) = progress.and_then(|progress| self.lag(from, progress)) {
                metrics::gauge!(telemetry::SINK_LAG.name, "sink" => object.name.clone()).set(lag);
            }
        }
    }

    /// Forgets what is noted of sinks that are gone.
    pub(super) fn forget_sinks(&self) {
        let is_there = |id| self.pipeline.get(id).is_some();
        if let Err(error) = self.sink_notes.retain(is_there) {
            tracing::warn!(%error, "notes of dropped sinks stay in the data folder");
        }
    }
}
