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
//! stands: what was committed is committed, and nothing is written twice. Cost: a stretch of time that
//! is too much for memory or for the brokers is halved, and doubled again as soon as it is through.

use std::time::{Duration, Instant};

use engine::contract::{ChangePage, FeedError, RowChange, SinkContext, SinkPhase};
use engine::error::WorldError;
use engine::limits::{SINK_PAGE_BYTES_MAX, SINK_TRANSACTION_BYTES_MAX};
use engine::model::Time;
use engine::telemetry;

use super::encode::{Encoder, millis};
use super::progress::{Progress, Written};
use super::writer::{Outgoing, Output, Writer};
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
pub(super) struct Memory {
    /// The greatest time that this process tried to commit.
    attempted: Time,
    /// The longest stretch of time that one transaction takes.
    stretch: Time,
    /// Whether the last session committed anything: then pauses begin anew.
    pub(super) had_success: bool,
    /// Whether the progress of the dropped sink was spoken of, for good or for bad.
    pub(super) said_farewell: bool,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            attempted: 0,
            stretch: Time::MAX,
            had_success: false,
            said_farewell: false,
        }
    }
}

struct Session<'a> {
    topic: &'a str,
    progress_topic: &'a str,
    context: &'a SinkContext,
    encoder: &'a Encoder,
    progress: &'a Progress,
    writer: &'a mut dyn Output,
    memory: &'a mut Memory,
    /// Bytes of changes that are held in memory.
    most: usize,
}

/// Writes until told to stop.
pub(super) fn run(
    sink: &KafkaSink,
    context: &SinkContext,
    encoder: &Encoder,
    memory: &mut Memory,
) -> Result<(), Trouble> {
    let (options, is_stopping) = (&sink.options, || context.is_stopping());
    let (topic, progress_topic) = (&*options.topic, &*options.progress_topic);
    let progress = Progress::new(options, context);
    let (mut writer, written) = loop {
        let batch_bytes = topics::ready(options)?;
        let most = batch_bytes.unwrap_or(topics::BATCH_BYTES);
        let mut writer = Writer::begin(options, context, most, &is_stopping)?;
        // The brokers answer: what was told of them is over.
        context.status.set(|state| {
            state.phase = SinkPhase::Starting;
            state.error = None;
        });
        let slow = writer.teller();
        let written = progress.read(options, &mut writer, &slow, &is_stopping)?;
        let written = written.filter(|written| written.object == context.id.0);
        match (batch_bytes, written) {
            (None, Some(written)) => return Err(topic_is_gone(topic, written.at)),
            (None, None) if context.noted.is_none() => topics::make(options)?,
            _ => break (writer, written),
        }
        if context.is_stopping() {
            return Err(Trouble::Stop);
        }
    };
    let mut session = Session {
        topic,
        progress_topic,
        context,
        encoder,
        progress: &progress,
        writer: &mut writer,
        memory,
        most: SINK_TRANSACTION_BYTES_MAX,
    };
    let ended = session.begin(written);
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

fn topic_is_gone(topic: &str, at: Time) -> Trouble {
    person(format!(
        "topic \"{topic}\" is gone, and this sink had written through {at}; drop the sink and create it again"
    ))
}

fn person(detail: String) -> Trouble {
    Trouble::Person(WorldError::Service {
        service: "Kafka".to_owned(),
        detail,
        is_transient: false,
    })
}

impl Session<'_> {
    /// Goes on behind what is written; with the whole collection when nothing is.
    fn begin(&mut self, written: Option<Written>) -> Result<(), Trouble> {
        let written = match written {
            Some(written) => {
                self.check(written)?;
                self.hold(written.at)?;
                written.at
            }
            None if self.context.noted.is_some() => {
                return Err(person(format!(
                    "topic \"{}\" no longer has the progress of this sink, which has written before; \
                     drop the sink and create it again with a new TOPIC",
                    self.progress_topic
                )));
            }
            None => self.snapshot()?,
        };
        self.status(SinkPhase::Running, written);
        self.follow(written)
    }

    /// Refuses a progress that this data folder cannot have come to.
    fn check(&self, written: Written) -> Result<(), Trouble> {
        let Written { run, at, .. } = written;
        let checked = self.context.runs.check(run, at, self.memory.attempted);
        checked.map_err(|foreign| {
            person(format!(
                "the progress {at} of this sink in topic \"{}\" {foreign}: the data folder is an older \
                 copy, or another server runs on a copy of it; drop the sink and create it again with a \
                 new TOPIC",
                self.progress_topic
            ))
        })
    }

    /// Writes the whole collection as it is at one time, in one transaction.
    fn snapshot(&mut self) -> Result<Time, Trouble> {
        let at = loop {
            if self.context.is_stopping() {
                return Err(Trouble::Stop);
            }
            let Some(at) = self.context.feed.sealed(0, WAIT) else {
                continue;
            };
            // A time that passed out of the history meanwhile is no loss: nothing is written yet.
            match self.context.feed.hold(at) {
                Err(FeedError::HistoryGone { .. }) => {}
                held => {
                    held.map_err(|error| self.fed(error))?;
                    break at;
                }
            }
        };
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
            let through = sealed.min(read.saturating_add(self.memory.stretch));
            let Some((through, changes, page)) = self.gather(read, through)? else {
                continue;
            };
            if changes.is_empty() && page.next.is_none() && through - written < IDLE {
                read = through;
                self.memory.stretch = self.memory.stretch.saturating_mul(2);
                self.status(SinkPhase::Running, read);
                continue;
            }
            if let Err(trouble) = self.transact(Some(read), through, changes, page) {
                // Perhaps a part of it goes through: what stands before a record that is refused, or what
                // the brokers take in time.
                self.memory.stretch = ((through - read) / 2).max(1);
                return Err(trouble);
            }
            self.memory.stretch = self.memory.stretch.saturating_mul(2);
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
            if bytes <= self.most {
                page = self.page(Some(after), through, Some(next))?;
            } else if through - after > 1 {
                through = after + (through - after) / 2;
                self.memory.stretch = through - after;
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
        let page = self
            .context
            .feed
            .changes(after, through, next, SINK_PAGE_BYTES_MAX);
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
        let span = tracing::debug_span!(
            "sink",
            sink = &*self.context.name,
            after,
            through,
            records = tracing::field::Empty,
        );
        let _entered = span.enter();
        let is_stopping = || self.context.is_stopping();
        self.memory.attempted = self.memory.attempted.max(through);
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
        self.progress.write(self.writer, through, &is_stopping)?;
        self.writer.commit(&is_stopping)?;
        self.memory.had_success = true;
        span.record("records", sent.0);
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
                    topic: self.topic,
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
            FeedError::HistoryGone { .. } => person(format!(
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

    /// A dropped sink leaves no progress behind.
    fn farewell(&mut self) {
        let until = Instant::now() + FAREWELL;
        let is_late = || Instant::now() > until;
        self.memory.said_farewell = true;
        if let Err(trouble) = self.progress.forget(self.writer, &is_late) {
            let (sink, topic) = (&*self.context.name, self.progress_topic);
            tracing::warn!(sink, topic, %trouble, "the progress of the dropped sink stays");
        }
    }
}

#[cfg(test)]
mod tests;
