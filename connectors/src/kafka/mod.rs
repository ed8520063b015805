//! `FROM KAFKA`: every partition of a topic, from the offset that the input log knows.
//!
//! Idea: the input log owns the offsets. A partition (of Debezium's events: a topic) is a lane; each
//! batch carries the offsets that follow it, and a restart reads on from there, so nothing is lost and
//! nothing is read twice. A consumer group never decides anything; positions are committed to one only
//! for monitoring.
//!
//! ```text
//! discover (5 s) ─▶ assign what is new ─▶ poll ─▶ Lane: decode, table, rows ─▶ LaneSink
//!      ▲                    │ position in the log? else START                    │
//!      └── watermarks ◀─────┴─ outside [low, high]: this partition stops, loudly ◀┘ {"marks":{…},…}
//! ```
//!
//! Invariants: a lane's batches are staged in offset order; messages of unfinished and aborted
//! transactions are not read; a message that cannot be understood is a dead letter and nothing
//! else stops; a partition whose log was cut or re-made stops with an error and the others go on;
//! a full sink stops the polling, and librdkafka's queue (16 MiB) stops the fetching.
//!
//! A partition whose next message needs a schema that its registry does not give now waits ([`waiting`]);
//! the others go on.
//!
//! Limits: one consumer and one decoding thread a source; TLS and logins only with a Cargo feature
//! ([`security`]).

mod assignment;
mod client;
mod lane;
mod letter;
mod letter_topic;
pub mod probe;
mod security;
mod waiting;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
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
use lane::Lane;
use letter_topic::LetterTopic;
pub(crate) use security::hint;
pub use security::{HAS_TLS, Login, Mechanism, Security};
use waiting::Waiting;

/// Time between two looks for new partitions.
const DISCOVER: Duration = Duration::from_secs(5);
/// The same while there is nothing to read, or some were not looked at.
const DISCOVER_SOON: Duration = Duration::from_millis(500);
/// Longest wait for the first message of a batch: so soon a stop is seen.
const IDLE: Duration = Duration::from_millis(100);
/// A batch is given to the sink at the latest so long after its first message.
const BATCH_WAIT: Duration = Duration::from_millis(3);
/// Messages of one round over all partitions.
const BATCH_MESSAGES: usize = 4_096;
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
    /// How the brokers are spoken to.
    pub security: Security,
}

/// Reads topics. See the module.
pub struct KafkaSource {
    options: KafkaOptions,
    schema: Schema,
    envelope: Envelope,
    decoding: Options,
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
        })
    }

    fn lane(&self, context: &SourceContext, name: String) -> Result<Lane, WorldError> {
        let decoder = Decoder::new(self.schema.clone(), self.envelope, self.decoding.clone());
        Lane::new(context, name, &self.schema, decoder, self.envelope)
    }
}

impl Source for KafkaSource {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let next = Next::default();
        let consumer = client::consumer(&self.options, &context.name, Arc::clone(&next))?;
        let mut reader = Reader {
            assignment: Assignment::new(&self.options, self.envelope, &context)?,
            lanes: BTreeMap::new(),
            places: HashMap::new(),
            source: &self,
            context: &context,
            consumer,
            next,
            waiting: Waiting::default(),
            committed: Instant::now(),
            letters: LetterTopic::new(&self.options, &context)?,
        };
        let ended = reader.run();
        if let Some(letters) = &mut reader.letters {
            letters.finish(&context);
        }
        match ended {
            Err(Ended::Failed(error)) => Err(error),
            // Stopping, or the pipeline no longer wants the rows.
            Err(Ended::Closed) | Ok(()) => Ok(()),
        }
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
    /// By the engine's name.
    lanes: BTreeMap<String, Lane>,
    /// Topic, partition: the lane's name.
    places: HashMap<String, HashMap<i32, String>>,
    waiting: Waiting,
    committed: Instant,
    letters: Option<LetterTopic>,
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), Ended> {
        let mut discover_at = Instant::now();
        while !self.context.is_stopping() {
            if Instant::now() >= discover_at {
                let pause = if self.discover()? {
                    DISCOVER
                } else {
                    DISCOVER_SOON
                };
                discover_at = Instant::now() + pause;
            }
            self.go_on()?;
            if self.gather()? || self.lanes.values().any(Lane::wants_ends) {
                self.stage()?;
            }
            self.commit()?;
            if let Some(letters) = &mut self.letters {
                letters.pump(self.context)?;
            }
        }
        Ok(())
    }

    /// Takes what is new; trouble with the brokers is told and tried again. Whether all partitions
    /// were looked at, and some are read.
    fn discover(&mut self) -> Result<bool, Ended> {
        // What was taken counts, whatever becomes of its partition.
        self.stage()?;
        let (places, lanes) = (&self.places, &self.lanes);
        let next = |(topic, partition): &Partition| {
            let name = places.get(topic)?.get(partition)?;
            lanes.get(name)?.next(*partition)
        };
        let found = self
            .assignment
            .discover(&self.consumer, self.context, &next);
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(
                    source = self.context.name,
                    brokers = self.source.options.brokers,
                    %error,
                    "the brokers cannot be asked for partitions; trying again"
                );
                return Ok(false);
            }
        };
        // One that waits is fetched again when its time has come.
        found
            .again
            .retain(|((topic, partition), _)| !self.waiting.has(topic, *partition));
        for stopped in found.stopped {
            let partition = &stopped.partition;
            self.waiting.forget(partition);
            if let Some(places) = self.places.get_mut(&partition.0) {
                places.remove(&partition.1);
            }
            self.fetch_no_longer(std::slice::from_ref(partition));
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            next.remove(partition);
            drop(next);
            let number = partition.1;
            self.lane(&stopped.partition)?.give_up(number);
            stopped.tell(self.context)?;
        }
        for (partition, offset) in &found.begun {
            self.lane(partition)?.begin(partition.1, *offset);
            let name = lane::lane_of(partition, self.source.envelope);
            let places = self.places.entry(partition.0.clone()).or_default();
            places.insert(partition.1, name);
        }
        self.stage()?;
        let again: Vec<Partition> = found.again.iter().map(|(one, _)| one.clone()).collect();
        self.fetch_no_longer(&again);
        self.fetch(found.again.iter().chain(&found.begun))?;
        Ok(found.is_complete && !self.places.is_empty())
    }

    /// The lane of a partition, made if need be.
    fn lane(&mut self, partition: &Partition) -> Result<&mut Lane, Ended> {
        let name = lane::lane_of(partition, self.source.envelope);
        Ok(match self.lanes.entry(name) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(free) => {
                let lane = self.source.lane(self.context, free.key().clone());
                free.insert(lane.map_err(Ended::Failed)?)
            }
        })
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

    /// Fetches partitions again whose wait for a schema is over, from the message that waits.
    fn go_on(&mut self) -> Result<(), Ended> {
        let due = self.waiting.due(Instant::now());
        if due.is_empty() {
            return Ok(());
        }
        let mut again = Vec::new();
        for partition in due {
            let name = lane::lane_of(&partition, self.source.envelope);
            let lane = self.lanes.get(&name);
            if let Some(offset) = lane.and_then(|lane| lane.next(partition.1)) {
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

    /// Gives the lanes' batches to the sink.
    fn stage(&mut self) -> Result<(), Ended> {
        for lane in self.lanes.values_mut() {
            if lane.wants_ends() {
                match assignment::ends(&self.consumer, lane) {
                    Ok(ends) => lane.sweep_at(ends),
                    Err(error) => {
                        tracing::warn!(source = self.context.name, %error, "asking for the ends");
                    }
                }
            }
            lane.stage(self.context)?;
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            for (partition, offset) in lane.reading() {
                next.insert((lane.topic().to_owned(), partition), offset);
            }
        }
        Ok(())
    }

    /// Polls until a batch is full or old enough; whether there is anything to stage.
    fn gather(&mut self) -> Result<bool, Ended> {
        let (mut messages, mut bytes) = (0, 0);
        let mut until: Option<Instant> = None;
        while messages < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let wait = until.map_or(IDLE, |until| {
                until.saturating_duration_since(Instant::now())
            });
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    until.get_or_insert_with(|| Instant::now() + BATCH_WAIT);
                    messages += 1;
                    bytes += message.payload_len() + message.key_len();
                    let (topic, partition) = (message.topic(), message.partition());
                    let places = self.places.get(topic);
                    let name = places.and_then(|places| places.get(&partition));
                    // Messages of a partition that was just stopped may still be queued.
                    if let Some(lane) = name.and_then(|name| self.lanes.get_mut(name))
                        && !self.waiting.has(topic, partition)
                        && let Err(wait) = lane.take(&message, self.letters.as_mut())
                    {
                        let partition = (topic.to_owned(), partition);
                        self.fetch_no_longer(std::slice::from_ref(&partition));
                        self.waiting.add(&self.context.name, partition, &wait);
                        // It may have taken a moment: a stop is looked for now.
                        break;
                    }
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
            Some(
                RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopic,
            ) => {
                // The error does not say which partition: look at all of them.
                self.assignment.doubt();
                self.discover().map(|_| ())
            }
            Some(RDKafkaErrorCode::Fatal) => {
                Err(Ended::Failed(client::failed(&self.source.options, error)))
            }
            _ => {
                tracing::warn!(source = self.context.name, %error, "reading from Kafka; going on");
                self.context.sleep(Duration::from_millis(100));
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
        for lane in self.lanes.values() {
            for (partition, next) in lane.reading() {
                // An offset that does not fit is one that nobody monitors.
                let _ = list.add_partition_offset(lane.topic(), partition, Offset::Offset(next));
            }
        }
        self.context.sink.sync()?;
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            tracing::warn!(source = self.context.name, %error, "positions for monitoring");
        }
        Ok(())
    }
}
