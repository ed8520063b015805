//! Sinks: their threads, what they read, how they are.
//!
//! ```text
//!  sink's thread ── sealed, changes ──▶ ask(T) ──▶ workers        a hold at its progress, always
//!        │                                                        ├ from the replay on: a pin
//!        └── progress, state ──▶ headwater.sinks, sinks.state     └ then: a question without an end
//! ```
//!
//! Invariants: from the beginning of a replay until the sink is dropped, what happened after its
//! progress is readable, also when it has failed: a restart after the cause is gone goes on. A sink that
//! fails holds up nothing else. Limits: a sink that cannot write keeps its collection's history since
//! its progress, in memory and in the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use engine::contract::{
    ChangeFeed, ChangePage, FeedError, NextPage, Sink, SinkContext, SinkPhase, SinkStatus,
};
use engine::error::WorldError;
use engine::limits::SINK_PAGE_BYTES_MAX;
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
pub(super) const DROP_WAIT: Duration = Duration::from_secs(10);
/// One wait for a time to be held: a stop must be seen soon.
const STEP: Duration = Duration::from_millis(250);

/// A sink's thread.
pub(super) struct RunningSink {
    stop: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
    status: Arc<SinkStatus>,
    /// Keeps the history until the drop, whatever becomes of the thread.
    feed: Arc<Feed>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RunningSink {
    /// Why the sink writes no longer, if it had to give up.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.status.get();
        (state.phase == SinkPhase::Failed).then_some(state.error)?
    }

    /// Waits for sinks that were told to stop, for all of them together at most so long. Blocks.
    pub(super) fn wait_all(sinks: Vec<RunningSink>, limit: Duration) {
        let deadline = Instant::now() + limit;
        for thread in sinks.into_iter().filter_map(|mut sink| sink.thread.take()) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A collection as one sink reads it.
struct Feed {
    inner: Weak<Inner>,
    sink: ObjectId,
    collection: ObjectId,
    name: String,
    /// The declaration's time, or the newest one of earlier runs: nothing before it is begun with, because
    /// a replay keeps no history for a sink that is not declared yet.
    begun: Time,
    stop: Arc<AtomicBool>,
    held: Mutex<Option<(Time, AskGuard<WorkerProgram>)>>,
    noted: Mutex<Option<Instant>>,
}

impl Feed {
    fn inner(&self) -> Result<Arc<Inner>, FeedError> {
        let inner = self.inner.upgrade();
        inner
            .filter(|inner| !inner.is_stopping.load(Ordering::Acquire))
            .filter(|_| !self.stop.load(Ordering::Relaxed))
            .ok_or(FeedError::Closed)
    }

    fn held(&self) -> Option<Time> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|(at, _)| *at)
    }
}

impl ChangeFeed for Feed {
    fn sealed(&self, after: Time, wait: Duration) -> Option<Time> {
        let Ok(inner) = self.inner() else {
            if !self.stop.load(Ordering::Relaxed) {
                // Told in a moment; until then the caller must not spin.
                std::thread::sleep(wait);
            }
            return None;
        };
        let deadline = Instant::now() + wait;
        let mut least = self.begun.max(after + 1);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !inner.engine.wait_sealed(&[self.collection], least, left) {
                return None;
            }
            let published = inner.engine.published();
            let readable = published.collections.get(&self.collection)?;
            let sealed = readable.upper.saturating_sub(1);
            if sealed >= readable.since {
                return Some(sealed).filter(|sealed| *sealed > after);
            }
            // While a view is replayed it has a beginning, and no time of it can be read yet.
            least = readable.since;
        }
    }

    fn hold(&self, at: Time) -> Result<(), FeedError> {
        let begun = Instant::now();
        let inner = loop {
            let inner = self.inner()?;
            // After a restart the first tick may be still to come.
            if inner.engine.wait_sealed(&[self.collection], at, STEP) {
                break inner;
            }
            if begun.elapsed() > PATIENCE {
                return Err(FeedError::Late(format!("time {at} is not sealed yet")));
            }
        };
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
            Ok(Err(AskError::OutOfRange { since, .. })) if at < since => {
                return Err(FeedError::HistoryGone { at, since });
            }
            Ok(Err(AskError::Stopping)) | Err(_) => return Err(FeedError::Closed),
            Ok(Err(error)) => return Err(FeedError::Late(error.to_string())),
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, before)) = held.replace((at, guard)) {
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
        most: usize,
    ) -> Result<ChangePage, FeedError> {
        let inner = self.inner()?;
        let question = Question::Changes(ChangesQuestion {
            collection: self.collection,
            after,
            page,
            most: most.min(SINK_PAGE_BYTES_MAX),
        });
        let over = vec![self.collection];
        let asked = inner.ask(over, AskTime::At(through), PATIENCE, question);
        match inner.runtime.block_on(asked) {
            Ok((_, Answer::Changes(page))) => Ok(page),
            Ok(_) => unreachable!("changes are answered by changes"),
            Err(_) if self.inner().is_err() => Err(FeedError::Closed),
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

    /// Starts a sink's thread. `begun`: the time of its declaration, or the newest one of earlier runs; a
    /// sink that never writes lags behind it.
    pub(super) fn start_sink(self: &Arc<Self>, declared: &Declared, begun: Time) {
        let Declared::Sink {
            object,
            definition,
            from,
            codec,
        } = declared
        else {
            return;
        };
        let (dropped, status) = (Arc::default(), Arc::default());
        let stop: Arc<AtomicBool> = Arc::default();
        let feed = Arc::new(Feed {
            inner: Arc::downgrade(self),
            sink: object.id,
            collection: *from,
            name: object.name.clone(),
            begun,
            stop: Arc::clone(&stop),
            held: Mutex::default(),
            noted: Mutex::default(),
        });
        let context = SinkContext {
            name: object.name.clone(),
            id: object.id,
            collection: definition.from.clone(),
            pipeline: self.sink_notes.pipeline(),
            feed: Arc::clone(&feed) as _,
            noted: self.sink_notes.progress(object.id),
            runs: self.sink_notes.runs(),
            status: Arc::clone(&status),
            stop: Arc::clone(&stop),
            dropped: Arc::clone(&dropped),
        };
        let writer = self.check_sink(definition, &object.name, codec);
        let name = object.name.clone();
        let (told, is_told): (Arc<SinkStatus>, _) = (Arc::clone(&status), Arc::clone(&stop));
        let body = move || {
            // A defect in one sink must be seen and must not take the others with it.
            let run = || writer.and_then(|writer| writer.run(context));
            let error = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) if is_told.load(Ordering::Relaxed) => return,
                Ok(Ok(())) => "it ended by itself: a defect".to_owned(),
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
            feed,
            thread: Some(thread.expect("the operating system gives a thread")),
        };
        let mut sinks = self.sinks.lock().expect("no panic while held");
        sinks.insert(object.id, running);
    }

    /// Tells a sink that is dropped for good to clear away what it keeps outside, and to end.
    pub(super) fn dismiss_sink(&self, id: ObjectId) -> Option<RunningSink> {
        let sink = {
            let mut sinks = self.sinks.lock().expect("no panic while held");
            sinks.remove(&id)?
        };
        sink.dropped.store(true, Ordering::Relaxed);
        sink.stop.store(true, Ordering::Relaxed);
        metrics::gauge!(telemetry::SINK_LAG.name, "sink" => sink.feed.name.clone()).set(0.0);
        Some(sink)
    }

    /// Tells all sinks to end.
    pub(super) fn stop_sinks(&self) -> Vec<RunningSink> {
        let sinks = std::mem::take(&mut *self.sinks.lock().expect("no panic while held"));
        let sinks: Vec<RunningSink> = sinks.into_values().collect();
        for sink in &sinks {
            sink.stop.store(true, Ordering::Relaxed);
        }
        sinks
    }

    /// `headwater.sinks`
    pub(super) fn sink_rows(&self) -> Vec<Vec<Value>> {
        let all = self.declared();
        let sinks = self.sinks.lock().expect("no panic while held");
        let rows = all.iter().filter_map(|declared| {
            let Declared::Sink {
                object, definition, ..
            } = declared
            else {
                return None;
            };
            let sink = sinks.get(&object.id);
            let state = sink.map(|sink| sink.status.get()).unwrap_or_default();
            let lag = sink.and_then(|sink| self.lag(sink));
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

    /// Seconds that a sink's collection is sealed beyond what the sink has written, as far as is known
    /// here: the brokers alone know it for sure.
    fn lag(&self, sink: &RunningSink) -> Option<f64> {
        let feed = &sink.feed;
        let written = sink.status.get().progress;
        let written = written.or_else(|| self.sink_notes.progress(feed.sink));
        let written = written.or_else(|| feed.held()).unwrap_or(feed.begun);
        let published = self.engine.published();
        let readable = published.collections.get(&feed.collection)?;
        let sealed = readable.upper.saturating_sub(1);
        Some(sealed.saturating_sub(written) as f64 / 1e6)
    }

    /// The lag of every sink, also of one that is stuck.
    pub(super) fn refresh_sink_gauges(&self) {
        // Under the lock, so that the lag of a sink that is being dropped does not come back.
        for sink in self.sinks.lock().expect("no panic while held").values() {
            if let Some(lag) = self.lag(sink) {
                let name = sink.feed.name.clone();
                metrics::gauge!(telemetry::SINK_LAG.name, "sink" => name).set(lag);
            }
        }
    }

    /// Forgets what is noted of a sink that is gone.
    pub(super) fn forget_sink(&self, id: ObjectId) {
        let next = *self.next_object.lock().expect("no panic while held");
        if let Err(error) = self.sink_notes.forget(id, next) {
            tracing::warn!(%error, "the note of a dropped sink stays in the data folder");
        }
    }
}
