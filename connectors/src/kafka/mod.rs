//! `FROM KAFKA`: every partition of a topic, from the offset that the input log knows.
//!
//! Idea: the input log owns the offsets. A partition (of Debezium's events: a topic) is a lane; each
//! batch carries the offsets that follow it, and a restart reads on from there, so nothing is lost and
//! nothing is read twice. A consumer group never decides anything; positions are committed to one only
//! for monitoring.
//!
//! ```text
//! discover (5 s) ─▶ assign what is new ─▶ poll ─▶ Lane: decode, table, rows ─▶ Staging ─▶ LaneSink
//!      ▲                    │ position in the log? else START                    │
//!      └── watermarks ◀─────┴─ outside [low, high]: this partition stops, loudly ◀┘ {"marks":{…},…}
//! ```
//!
//! Invariants: a lane's batches are staged in offset order; messages of unfinished and aborted
//! transactions are not read; a message that cannot be understood is a dead letter and nothing
//! else stops; a partition whose log was cut or re-made stops with an error and the others go on;
//! a full sink stops the polling one batch later ([`staging`]), and librdkafka's queue (16 MiB) stops the fetching.
//!
//! A source with a transaction topic gives its messages to a group instead ([`transactions`]).
//!
//! A partition whose next message needs a schema that its registry does not give now waits ([`waiting`]);
//! the others go on.
//!
//! Lanes are spread over as many readers as the source may have ([`readers`]): a thread each, with a
//! consumer and all of the above.
//!
//! Limits: TLS and logins only with a Cargo feature ([`security`]).

mod assignment;
mod client;
mod lane;
mod latest;
mod letter;
mod letter_topic;
mod outlet;
pub mod probe;
mod readers;
mod record;
mod security;
mod staging;
pub mod transactions;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, Source, SourceContext};
use engine::error::WorldError;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::envelope::{Decoder, Envelope, Options};
use assignment::Assignment;
use client::{Client, Next};
use engine::model::Schema;
use outlet::Outlet;
use readers::{Share, Together};
pub use record::Record;
pub(crate) use security::hint;
pub use security::{HAS_TLS, Login, Mechanism, Security};
use transactions::{Groups, Ticket};
use waiting::Waiting;

/// Time between two looks for new partitions.
const DISCOVER: Duration = Duration::from_secs(5);
/// The same while there is nothing to read, or some were not looked at.
const DISCOVER_SOON: Duration = Duration::from_millis(500);
/// Longest wait for the first message of a batch: so soon a stop is seen.
const IDLE: Duration = Duration::from_millis(100);
/// A batch that could be larger waits so long for more messages.
const BATCH_WAIT: Duration = Duration::from_millis(3);
/// Messages of one round over all partitions.
const BATCH_MESSAGES: usize = 8_192;
/// Bytes of one round (soft for one message).
const BATCH_BYTES: usize = 1 << 20;
/// Time between two commits of positions for monitoring.
const COMMIT: Duration = Duration::from_secs(5);

/// A partition of a topic.
pub(crate) type Partition = (String, i32);

/// Where a partition begins that the log does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The oldest message that is kept.
    Earliest,
    /// What is written from now on. (A partition that appears later is read from its beginning.)
    Latest,
    /// The first message of this time or later, milliseconds since the epoch.
    Timestamp(i64),
    /// These offsets by partition; others from the earliest.
    Offsets(BTreeMap<i32, i64>),
}

/// What is read, and from where.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// A topic's name; with `is_pattern` a regular expression for whole names.
    pub topic: String,
    /// Whether topics are found by pattern, new ones included.
    pub is_pattern: bool,
    /// For partitions that the log does not know.
    pub start: Start,
    /// The group to which positions are committed for monitoring tools.
    pub group: Option<String>,
    /// The topic to which dead letters are produced, beside the collection.
    pub dead_letter_topic: Option<String>,
    /// Where the connector tells which change belongs to which transaction; `None`: every change is
    /// visible by itself.
    pub transactions: Option<TransactionTopic>,
    /// How the brokers are spoken to.
    pub security: Security,
    /// Threads that read, at most; a source has no more than lanes.
    pub readers: usize,
}

/// Debezium's topic of transaction metadata (`provide.transaction.metadata`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionTopic {
    /// Its name.
    pub topic: String,
    /// Longest wait for what belongs to a transaction.
    pub wait: Duration,
}

/// Reads topics. See the module.
pub struct KafkaSource {
    options: KafkaOptions,
    schema: Schema,
    envelope: Envelope,
    decoding: Options,
    /// Its place in a group.
    ticket: Option<Ticket>,
}

impl KafkaSource {
    /// A source of rows of `schema`. Nothing is connected before it runs.
    ///
    /// Errors: a topic pattern that is no regular expression; a topic of dead letters that is read;
    /// TLS or a login that this program was built without, or a file of it that cannot be read.
    pub fn new(
        options: KafkaOptions,
        schema: Schema,
        envelope: Envelope,
        decoding: Options,
    ) -> Result<Self, WorldError> {
        options.security.check()?;
        let topics = assignment::Topics::new(&options)?;
        if let Some(letters) = &options.dead_letter_topic
            && topics.has(letters)
        {
            // Its letters would come back, bad, and be letters again.
            return Err(WorldError::Service {
                service: format!("Kafka at {}", options.brokers),
                detail: format!("DEAD LETTER TOPIC '{letters}' is a topic that the source reads"),
                is_transient: false,
            });
        }
        Ok(KafkaSource {
            options,
            schema,
            envelope,
            decoding,
            ticket: None,
        })
    }

    /// Reads together with the other sources of the same brokers and the same transaction topic, if
    /// one is named. Once this was called, they wait for it until it runs or is dropped.
    pub fn grouped(mut self, groups: &Groups) -> Self {
        self.ticket = groups.ticket(&self.options);
        self
    }

    fn decoder(&self) -> Decoder {
        Decoder::new(self.schema.clone(), self.envelope, self.decoding.clone())
    }

    /// How many readers it may have.
    fn readers(&self) -> usize {
        let is_one =
            self.options.transactions.is_some() || self.options.dead_letter_topic.is_some();
        if is_one {
            1
        } else {
            self.options.readers.max(1)
        }
    }

    /// Reads a share (`None`: not known yet) until the end; `outlet` takes the messages. The function is
    /// called once, when it is known how many readers there are to be.
    fn read(
        &self,
        context: &SourceContext,
        next: Next,
        outlet: &mut dyn Outlet,
        share: Option<Share>,
        (together, others): (&Together, &dyn Fn(Share)),
    ) -> Result<(), WorldError> {
        let (told, waits) = (Arc::clone(&next), Arc::clone(&context.waits));
        let consumer = client::consumer(&self.options, &context.name, told, waits)?;
        let mut reader = Reader {
            assignment: Assignment::new(self, share)?,
            source: self,
            context,
            consumer,
            next,
            outlet,
            together,
            others,
            waiting: Waiting::default(),
            ended: BTreeSet::new(),
            committed: Instant::now(),
        };
        let ended = reader.run();
        reader.outlet.finish();
        match ended {
            Err(Ended::Failed(error)) => Err(error),
            // Stopping, or the pipeline no longer wants the rows.
            Err(Ended::Closed) | Ok(()) => Ok(()),
        }
    }
}

impl Source for KafkaSource {
    fn run(mut self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        match self.ticket.take() {
            None => readers::run(&self, &context),
            Some(ticket) => {
                let next = Next::default();
                let mut feed = ticket.join(&self, &context, Arc::clone(&next))?;
                let alone = Together::default();
                self.read(&context, next, &mut feed, None, (&alone, &|_| {}))
            }
        }
    }
}

/// A source that cannot run, in words.
fn failed(source: &str, detail: String) -> WorldError {
    WorldError::Service {
        service: format!("source \"{source}\""),
        detail,
        is_transient: false,
    }
}

/// Why reading ended.
enum Ended {
    Closed,
    Failed(WorldError),
}

impl From<SinkClosed> for Ended {
    fn from(_: SinkClosed) -> Self {
        Ended::Closed
    }
}

/// A running source.
struct Reader<'a> {
    source: &'a KafkaSource,
    context: &'a SourceContext,
    consumer: BaseConsumer<Client>,
    next: Next,
    assignment: Assignment,
    outlet: &'a mut dyn Outlet,
    together: &'a Together,
    others: &'a dyn Fn(Share),
    waiting: Waiting,
    /// Partitions, by number, that were read to their end since that was told.
    ended: BTreeSet<i32>,
    committed: Instant,
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), Ended> {
        let mut discover_at = Instant::now();
        while !self.context.is_stopping() && !self.together.is_over() {
            if Instant::now() >= discover_at {
                let pause = if self.discover()? {
                    DISCOVER
                } else {
                    DISCOVER_SOON
                };
                discover_at = Instant::now() + pause;
            }
            self.go_on()?;
            if self.gather()? || self.outlet.has_work() {
                self.outlet.stage(&self.consumer)?;
            }
            if !self.ended.is_empty() {
                let ended = std::mem::take(&mut self.ended);
                self.outlet.pass(&ended, &self.consumer, &self.waiting)?;
            }
            self.commit()?;
            self.outlet.pump()?;
        }
        Ok(())
    }

    /// Takes what is new; trouble with the brokers is told and tried again. Whether all partitions
    /// were looked at, and some are read.
    fn discover(&mut self) -> Result<bool, Ended> {
        // What was taken counts, whatever becomes of its partition.
        self.outlet.stage(&self.consumer)?;
        let outlet = &*self.outlet;
        let next = |partition: &Partition| outlet.next(partition);
        let found = self
            .assignment
            .discover(&self.consumer, self.context, &next);
        let mut found = match found {
            Ok(found) => {
                self.assignment.goes_on(self.context, "brokers");
                found
            }
            Err(error) => {
                let words = self.consumer.context().words(&error);
                self.assignment.waits_for(self.context, "brokers", words);
                tracing::warn!(
                    source = self.context.name,
                    brokers = self.source.options.brokers,
                    %error,
                    "the brokers cannot be asked for partitions; trying again"
                );
                return Ok(false);
            }
        };
        if let Some(share) = found.shared {
            (self.others)(share);
        }
        // One that waits is fetched again when its time has come.
        found.again.retain(|(partition, _)| {
            !self.waiting.has(&partition.0, partition.1) && !self.outlet.is_paused(partition)
        });
        for stopped in found.stopped {
            let partition = &stopped.partition;
            self.waiting.forget(self.context, partition);
            self.fetch_no_longer(std::slice::from_ref(partition));
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            next.remove(partition);
            drop(next);
            // It is not waited for any more.
            self.consumer.context().is_behind(partition, 0);
            self.outlet.give_up(partition)?;
            stopped.tell(self.context)?;
        }
        for (partition, offset) in &found.begun {
            self.outlet.begin(partition, *offset, &self.consumer)?;
        }
        self.outlet.stage(&self.consumer)?;
        let again: Vec<Partition> = found.again.iter().map(|(one, _)| one.clone()).collect();
        self.fetch_no_longer(&again);
        self.fetch(found.again.iter().chain(&found.begun))?;
        if found.is_complete && self.assignment.knows_any() {
            self.outlet.found_all()?;
        }
        Ok(found.is_complete && self.assignment.reads_any())
    }

    fn fetch<'p>(
        &self,
        partitions: impl Iterator<Item = &'p (Partition, i64)>,
    ) -> Result<(), Ended> {
        let failed = |error| Ended::Failed(client::failed(&self.source.options, &error));
        let mut list = TopicPartitionList::new();
        for ((topic, partition), offset) in partitions {
            let offset = Offset::Offset(*offset);
            list.add_partition_offset(topic, *partition, offset)
                .map_err(failed)?;
        }
        match list.count() {
            0 => Ok(()),
            _ => self.consumer.incremental_assign(&list).map_err(failed),
        }
    }

    /// Fetches partitions again whose wait for a schema or for room is over, from the message that
    /// comes next.
    fn go_on(&mut self) -> Result<(), Ended> {
        let (paused, resumed) = self.outlet.turns();
        self.fetch_no_longer(&paused);
        let mut due = self.waiting.due(Instant::now());
        due.retain(|partition| !self.outlet.is_paused(partition));
        let is_free = |one: &Partition| !self.waiting.has(&one.0, one.1) && !due.contains(one);
        let resumed: Vec<Partition> = resumed.into_iter().filter(is_free).collect();
        // One that waits is fetched anew when its time has come.
        let mut anew = self.outlet.to_fetch_anew();
        anew.retain(|one| is_free(one) && !self.outlet.is_paused(one) && !resumed.contains(one));
        self.fetch_no_longer(&anew);
        let mut again = Vec::new();
        for partition in due.into_iter().chain(resumed).chain(anew) {
            if let Some(offset) = self.outlet.next(&partition) {
                again.push((partition, offset));
            }
        }
        self.fetch(again.iter())
    }

    fn fetch_no_longer(&self, partitions: &[Partition]) {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        if list.count() > 0
            && let Err(error) = self.consumer.incremental_unassign(&list)
        {
            // One that never was assigned; what still comes of it has no place and is dropped.
            tracing::debug!(source = self.context.name, %error, "a partition is not fetched");
        }
    }

    /// Polls until a batch is full or old enough; whether there is anything to stage.
    fn gather(&mut self) -> Result<bool, Ended> {
        let (mut messages, mut bytes) = (0, 0);
        let mut until: Option<Instant> = None;
        let mut wait = IDLE;
        while messages < BATCH_MESSAGES && bytes < BATCH_BYTES {
            match self.consumer.poll(wait) {
                None => {
                    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                    match left.filter(|left| !left.is_zero()) {
                        Some(left) => wait = left,
                        None => break,
                    }
                }
                Some(Ok(message)) => {
                    until.get_or_insert_with(|| Instant::now() + BATCH_WAIT);
                    messages += 1;
                    // What is fetched already is taken without a look at the clock: of a backlog large
                    // batches are made, which cost less a message all the way.
                    wait = Duration::ZERO;
                    bytes += message.payload_len() + message.key_len();
                    // Mostly none waits, and asking a message for its topic takes a moment, too.
                    let is_waiting = !self.waiting.is_idle();
                    if is_waiting && self.waiting.has(message.topic(), message.partition()) {
                        continue;
                    }
                    if let Err(wait) = self.outlet.take(&message) {
                        let partition = (message.topic().to_owned(), message.partition());
                        self.fetch_no_longer(std::slice::from_ref(&partition));
                        self.waiting.add(self.context, partition, &wait);
                        // It may have taken a moment: a stop is looked for now.
                        break;
                    }
                    if is_waiting {
                        let partition = (message.topic(), message.partition());
                        self.waiting.taken(self.context, partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.outlet.reached_end(partition)?;
                    self.ended.insert(partition);
                }
                Some(Err(error)) => {
                    self.trouble(&error)?;
                    break;
                }
            }
        }
        Ok(messages > 0)
    }

    /// What librdkafka reports while reading.
    fn trouble(&mut self, error: &KafkaError) -> Result<(), Ended> {
        match error.rdkafka_error_code() {
            Some(code) if client::is_lost(code) => {
                // The error does not say which partition: look at all of them.
                self.assignment.doubt();
                self.discover().map(|_| ())
            }
            Some(RDKafkaErrorCode::Fatal) => {
                Err(Ended::Failed(client::failed(&self.source.options, error)))
            }
            _ => {
                // After an outage hundreds of them wait before the first message.
                if self.consumer.context().is_news("reading") {
                    tracing::warn!(source = self.context.name, %error, "reading from Kafka; going on");
                }
                Ok(())
            }
        }
    }

    /// Shows positions to monitoring tools, after they are durable.
    fn commit(&mut self) -> Result<(), Ended> {
        if self.source.options.group.is_none() || self.committed.elapsed() < COMMIT {
            return Ok(());
        }
        self.committed = Instant::now();
        let mut list = TopicPartitionList::new();
        for ((topic, partition), next) in self.outlet.logged() {
            // An offset that does not fit is one that nobody monitors.
            let _ = list.add_partition_offset(&topic, partition, Offset::Offset(next));
        }
        self.outlet.settle()?;
        self.context.sink.sync()?;
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            tracing::warn!(source = self.context.name, %error, "positions for monitoring");
        }
        Ok(())
    }
}
