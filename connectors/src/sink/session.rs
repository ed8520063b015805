//! One producer's life: look how far the sink is, then write what changed, transaction by transaction.
//!
//! ```text
//!  written W ─────────── read R ───────── sealed Q
//!     │  nothing changed   │  changes of (R, Q] ─▶ begin · records · progress Q · commit ─▶ W = R = Q
//!     └── the hold         └── a Q without changes moves R only; W follows every IDLE
//! ```
//!
//! Invariants: the hold is at W, which is what the brokers have committed; a transaction covers whole
//! times, and each time after W once; the records of a key are sent in the order of their times, and
//! the producer keeps it. After any error the session ends and the next one asks the brokers where it
//! stands: what was committed is committed, and nothing is written twice.

use std::time::{Duration, Instant};

use engine::contract::{ChangePage, FeedError, RowChange, SinkContext, SinkPhase};
use engine::error::WorldError;
use engine::limits::SINK_TRANSACTION_BYTES_MAX;
use engine::model::Time;
use engine::telemetry;

use super::encode::{Encoder, millis};
use super::progress::Progress;
use super::writer::{Outgoing, Writer};
use super::{KafkaSink, Trouble, topics};

/// One wait for something new.
const WAIT: Duration = Duration::from_millis(250);
/// Time in which changes gather behind a commit, so that busy sinks do not commit thousands of times a
/// second.
const GATHER: Duration = Duration::from_millis(10);
/// A progress without changes is written when it has moved so far, microseconds: what is held less is
/// below the least retention of a collection.
const IDLE: Time = 30_000_000;
/// Time for a last word when the sink is dropped.
const FAREWELL: Duration = Duration::from_secs(5);

/// What outlives a session.
#[derive(Default)]
pub(super) struct Memory {
    /// The greatest time that this process tried to commit.
    attempted: Option<Time>,
    /// Whether the last session committed anything: then pauses begin anew.
    pub(super) had_success: bool,
}

struct Session<'a> {
    sink: &'a KafkaSink,
    context: &'a SinkContext,
    encoder: &'a Encoder,
    progress: Progress,
    writer: Writer,
    memory: &'a mut Memory,
    /// The longest stretch of time that one transaction takes.
    stretch: Time,
}

/// Writes until told to stop.
pub(super) fn run(
    sink: &KafkaSink,
    context: &SinkContext,
    encoder: &Encoder,
    memory: &mut Memory,
) -> Result<(), Trouble> {
    let is_stopping = || context.is_stopping();
    let batch_bytes = topics::ensure(&sink.options)?;
    let mut writer = Writer::begin(&sink.options, context, batch_bytes, &is_stopping)?;
    let progress = Progress::new(&sink.options, context);
    let written = progress.read(&sink.options, &mut writer, &is_stopping)?;
    let mut session = Session {
        sink,
        context,
        encoder,
        progress,
        writer,
        memory,
        stretch: Time::MAX,
    };
    let ended = session.begin(
        written
            .filter(|written| written.object == context.id.0)
            .map(|w| w.at),
    );
    if !matches!(ended, Ok(())) {
        session.writer.abandon();
    }
    match ended {
        Err(Trouble::Stop) | Ok(()) if context.is_dropped() => {
            session.farewell();
            Ok(())
        }
        ended => ended,
    }
}

impl Session<'_> {
    /// Goes on behind what is written; with the whole collection when nothing is.
    fn begin(&mut self, written: Option<Time>) -> Result<(), Trouble> {
        let written = match written {
            Some(at) => {
                self.check(at)?;
                self.hold(at)?;
                at
            }
            None if self.context.noted.is_some() => {
                return Err(self.person(format!(
                    "topic \"{}\" no longer has the progress of this sink, which has written before; \
                     drop the sink and create it again with a new TOPIC",
                    self.sink.options.progress_topic
                )));
            }
            None => self.snapshot()?,
        };
        self.status(SinkPhase::Running, written);
        self.follow(written)
    }

    /// Refuses a progress that this data folder cannot have come to.
    fn check(&self, at: Time) -> Result<(), Trouble> {
        let most = self.context.floor.max(self.memory.attempted.unwrap_or(0));
        if at <= most {
            return Ok(());
        }
        Err(self.person(format!(
            "topic \"{}\" has the progress {at} of this sink, and this data folder ends at {most}: it \
             is an older copy, or another server runs on a copy of it; drop the sink and create it \
             again with a new TOPIC",
            self.sink.options.progress_topic
        )))
    }

    /// Writes the whole collection as it is at one time, in one transaction.
    fn snapshot(&mut self) -> Result<Time, Trouble> {
        let at = loop {
            if self.context.is_stopping() {
                return Err(Trouble::Stop);
            }
            if let Some(at) = self.context.feed.sealed(0, WAIT) {
                break at;
            }
        };
        self.hold(at)?;
        let page = self.page(None, at, None)?;
        self.transact(None, at, Vec::new(), page)?;
        Ok(at)
    }

    fn follow(&mut self, mut written: Time) -> Result<(), Trouble> {
        let mut read = written;
        while !self.context.is_stopping() {
            let Some(sealed) = self.context.feed.sealed(read, WAIT) else {
                continue;
            };
            let through = sealed.min(read.saturating_add(self.stretch));
            let Some((through, changes, page)) = self.gather(read, through)? else {
                continue;
            };
            if changes.is_empty() && page.next.is_none() && through - written < IDLE {
                read = through;
                self.status(SinkPhase::Running, read);
                continue;
            }
            self.transact(Some(read), through, changes, page)?;
            self.stretch = self.stretch.saturating_mul(2);
            (read, written) = (through, through);
            self.hold(written)?;
            self.status(SinkPhase::Running, written);
            std::thread::sleep(GATHER);
        }
        Ok(())
    }

    /// The changes of a stretch of time, if they fit into memory; of a shorter one, if they do not. One
    /// time alone is never split: then the rest comes by page.
    fn gather(
        &mut self,
        after: Time,
        mut through: Time,
    ) -> Result<Option<(Time, Vec<RowChange>, ChangePage)>, Trouble> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        let mut page = self.page(Some(after), through, None)?;
        loop {
            if self.context.is_stopping() {
                return Ok(None);
            }
            bytes += page.changes.iter().map(RowChange::bytes).sum::<usize>();
            changes.append(&mut page.changes);
            let Some(next) = page.next.clone() else {
                return Ok(Some((through, changes, page)));
            };
            if bytes <= SINK_TRANSACTION_BYTES_MAX {
                page = self.page(Some(after), through, Some(next))?;
            } else if through - after > 1 {
                through = after + (through - after) / 2;
                self.stretch = through - after;
                (changes, bytes) = (Vec::new(), 0);
                page = self.page(Some(after), through, None)?;
            } else {
                return Ok(Some((through, changes, page)));
            }
        }
    }

    fn page(
        &self,
        after: Option<Time>,
        through: Time,
        next: Option<engine::contract::NextPage>,
    ) -> Result<ChangePage, Trouble> {
        let page = self.context.feed.changes(after, through, next);
        page.map_err(|error| self.fed(error))
    }

    /// One transaction: what was gathered, then page by page what is left, then the progress.
    fn transact(
        &mut self,
        after: Option<Time>,
        through: Time,
        changes: Vec<RowChange>,
        mut page: ChangePage,
    ) -> Result<(), Trouble> {
        let begun = Instant::now();
        let is_stopping = || self.context.is_stopping();
        self.memory.attempted = self.memory.attempted.max(Some(through));
        self.writer.open()?;
        let is_snapshot = after.is_none();
        let mut sent = self.send(&changes, is_snapshot)?;
        loop {
            let more = self.send(&page.changes, is_snapshot)?;
            sent = (sent.0 + more.0, sent.1 + more.1);
            match page.next.take() {
                None => break,
                Some(next) => page = self.page(after, through, Some(next))?,
            }
        }
        self.progress.write(&self.writer, through, &is_stopping)?;
        self.writer.commit(&is_stopping)?;
        self.memory.had_success = true;
        self.context.feed.note(through);
        let label = || ("sink", self.context.name.clone());
        metrics::counter!(telemetry::SINK_RECORDS.name, &[label()]).increment(sent.0);
        metrics::counter!(telemetry::SINK_BYTES.name, &[label()]).increment(sent.1);
        metrics::counter!(telemetry::SINK_TRANSACTIONS.name, &[label()]).increment(1);
        let seconds = begun.elapsed().as_secs_f64();
        metrics::histogram!(telemetry::SINK_COMMIT_SECONDS.name, &[label()]).record(seconds);
        self.context.status.set(|state| {
            state.records += sent.0;
            state.transactions += 1;
        });
        Ok(())
    }

    /// Records and their bytes.
    fn send(&self, changes: &[RowChange], is_snapshot: bool) -> Result<(u64, u64), Trouble> {
        let is_stopping = || self.context.is_stopping();
        let mut sent = (0, 0);
        for change in changes {
            for message in self.encoder.encode(change, is_snapshot) {
                let outgoing = Outgoing {
                    topic: &self.sink.options.topic,
                    partition: None,
                    key: &message.key,
                    value: message.value.as_deref(),
                    timestamp: millis(change.at),
                    time: Some(change.at),
                };
                self.writer.send(&outgoing, &is_stopping)?;
                sent = (sent.0 + 1, sent.1 + message.bytes() as u64);
            }
        }
        Ok(sent)
    }

    /// Keeps the history after what is written.
    fn hold(&self, at: Time) -> Result<(), Trouble> {
        self.context.feed.hold(at).map_err(|error| self.fed(error))
    }

    fn fed(&self, error: FeedError) -> Trouble {
        match error {
            FeedError::Closed => Trouble::Stop,
            FeedError::Late(detail) => Trouble::World(detail),
            FeedError::HistoryGone { .. } => self.person(format!(
                "{error}: what happened in between is not known any more; drop the sink and create it \
                 again with a new TOPIC"
            )),
        }
    }

    fn status(&self, phase: SinkPhase, progress: Time) {
        self.context.status.set(|state| {
            state.phase = phase;
            state.error = None;
            state.progress = Some(progress);
        });
    }

    fn person(&self, detail: String) -> Trouble {
        Trouble::Person(WorldError::Service {
            service: format!("sink \"{}\"", self.context.name),
            detail,
            is_transient: false,
        })
    }

    /// A dropped sink leaves no progress behind.
    fn farewell(&mut self) {
        let until = Instant::now() + FAREWELL;
        let is_late = || Instant::now() > until;
        if let Err(trouble) = self.progress.forget(&mut self.writer, &is_late) {
            let (sink, topic) = (&*self.context.name, &*self.sink.options.progress_topic);
            tracing::warn!(sink, topic, %trouble, "the progress of the dropped sink stays");
        }
    }
}
