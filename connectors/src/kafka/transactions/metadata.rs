//! The reader of a transaction topic.
//!
//! A thread with a consumer of its own gives ENDs to the group in their order, and says when the group
//! asks whether it has given all that are written.
//!
//! Limits: the topic has one partition; several keep no order among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use engine::error::WorldError;
use engine::model::{Column, Schema, SqlType};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::assembly::End;
use super::hub::Command;
use crate::envelope::{Decoder, Envelope, Marker, Options};
use crate::format::Wait;
use crate::kafka::client::{self, Client, Next};
use crate::kafka::{KafkaOptions, Start, record};

/// Longest wait for a message: so soon a stop is seen.
const IDLE: Duration = Duration::from_millis(50);
/// Longest wait for an answer of the brokers.
const ANSWER: Duration = Duration::from_millis(500);
/// Pause after something that failed.
const PAUSE: Duration = Duration::from_millis(300);
/// ENDs given at once.
const BATCH: usize = 1_000;
/// ENDs that wait in the group: more are read when some have passed.
pub(super) const ENDS_MAX: usize = 65_536;
/// Two looks so far apart that found nothing new have found the end.
const STILL: Duration = Duration::from_secs(1);

/// What the group and its reader of the transaction topic tell each other.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The reader is to end.
    pub(super) stop: AtomicBool,
    /// The group asks whether it has all ENDs.
    pub(super) wants_all: AtomicBool,
    /// ENDs that wait in the group.
    pub(super) waiting: AtomicUsize,
}

/// See the module.
pub(super) struct Metadata {
    options: KafkaOptions,
    topic: String,
    consumer: BaseConsumer<Client>,
    decoder: Decoder,
    commands: Sender<Command>,
    line: Arc<Line>,
    /// Where the group stands; what comes next, once it is known.
    start: Option<i64>,
    next: Option<i64>,
    /// The last look at the end: what came next, the end, when.
    looked: Option<(i64, i64, Instant)>,
}

/// Why reading ended.
enum Ended {
    /// The group is gone.
    Gone,
    /// A person must help.
    Failed(String),
}

impl Metadata {
    /// A reader that goes on at an offset, or begins as `options` say for topics.
    ///
    /// Errors: settings that librdkafka refuses.
    pub(super) fn new(
        options: &KafkaOptions,
        topic: &str,
        decoding: &Options,
        start: Option<i64>,
        commands: Sender<Command>,
        line: Arc<Line>,
    ) -> Result<Metadata, WorldError> {
        // Only control events are read of it: the columns do not matter.
        let schema = Schema {
            columns: vec![Column::new("id", SqlType::Text)],
            key: vec![0],
        };
        Ok(Metadata {
            consumer: client::consumer(options, topic, Next::default())?,
            decoder: Decoder::new(schema, Envelope::Debezium, decoding.clone()),
            options: options.clone(),
            topic: topic.to_owned(),
            commands,
            line,
            start,
            next: None,
            looked: None,
        })
    }

    /// Reads until the group is gone.
    pub(super) fn run(mut self) {
        let ended = loop {
            if self.line.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(ended) = self.round() {
                break ended;
            }
        };
        if let Ended::Failed(reason) = ended {
            let _ = self.commands.send(Command::Failed(reason));
        }
    }

    fn round(&mut self) -> Result<(), Ended> {
        let Some(next) = self.next else {
            return self.begin();
        };
        if self.line.wants_all.swap(false, Ordering::Relaxed) {
            self.look(next)?;
        }
        if self.line.waiting.load(Ordering::Relaxed) > ENDS_MAX {
            std::thread::sleep(IDLE);
            return Ok(());
        }
        let mut ends = Vec::new();
        let mut wait = IDLE;
        while ends.len() < BATCH {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    wait = Duration::ZERO;
                    let offset = message.offset();
                    let decoder = &mut self.decoder;
                    let read = record::with_raw(&message, |raw| decoder.decode(raw));
                    match read {
                        Ok(decoded) => {
                            self.next = Some(offset + 1);
                            ends.extend(decoded.markers.into_iter().filter_map(|m| end(m, offset)));
                        }
                        Err(wait) => {
                            self.again(offset, &wait);
                            break;
                        }
                    }
                }
                Some(Err(error)) => {
                    self.trouble(&error);
                    break;
                }
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        self.line.waiting.fetch_add(ends.len(), Ordering::Relaxed);
        let sent = self.commands.send(Command::Ends(ends));
        sent.map_err(|_| Ended::Gone)
    }

    /// Finds the topic and the place to begin at.
    fn begin(&mut self) -> Result<(), Ended> {
        let begun = self.place();
        match begun {
            Ok(Some(1)) => Ok(()),
            Ok(Some(count)) => Err(Ended::Failed(format!(
                "TRANSACTION TOPIC '{}' has {count} partitions, which keep no order among them; it \
                 must have one: delete it, create it with one partition and restart the connector",
                self.topic
            ))),
            Ok(None) => {
                std::thread::sleep(PAUSE);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(topic = self.topic, %error, "the transaction topic; trying again");
                std::thread::sleep(PAUSE);
                Ok(())
            }
        }
    }

    /// Assigns the topic's partition; the number of its partitions, if it is there.
    fn place(&mut self) -> KafkaResult<Option<usize>> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), ANSWER)?;
        let found = metadata
            .topics()
            .iter()
            .find(|one| one.name() == self.topic);
        let count = found
            .filter(|one| one.error().is_none())
            .map_or(0, |one| one.partitions().len());
        if count != 1 {
            return Ok((count > 0).then_some(count));
        }
        let (low, high) = self.consumer.fetch_watermarks(&self.topic, 0, ANSWER)?;
        let offset = match self.start {
            Some(offset) if offset <= high => offset.max(low),
            Some(offset) => {
                tracing::warn!(
                    topic = self.topic,
                    offset,
                    high,
                    "the transaction topic was made again: it is read from its beginning"
                );
                let _ = self.commands.send(Command::Anew);
                low
            }
            None => match &self.options.start {
                Start::Earliest | Start::Offsets(_) => low,
                Start::Latest => high,
                Start::Timestamp(millis) => self.at_time(*millis)?.unwrap_or(high),
            },
        };
        self.assign(offset)?;
        self.next = Some(offset);
        let _ = self.commands.send(Command::Began(offset));
        Ok(Some(1))
    }

    fn at_time(&self, millis: i64) -> KafkaResult<Option<i64>> {
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(&self.topic, 0, Offset::Offset(millis))?;
        let offsets = self.consumer.offsets_for_times(times, ANSWER)?;
        let found = offsets.find_partition(&self.topic, 0);
        Ok(found.and_then(|found| found.offset().to_raw().filter(|offset| *offset >= 0)))
    }

    fn assign(&self, offset: i64) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(offset))?;
        self.consumer.assign(&list)
    }

    /// A message whose schema could not be had is read again later.
    fn again(&mut self, offset: i64, wait: &Wait) {
        tracing::warn!(topic = self.topic, error = %wait.error, "a transaction waits for its schema");
        std::thread::sleep(wait.after.clamp(IDLE, PAUSE));
        if let Err(error) = self.assign(offset) {
            tracing::warn!(topic = self.topic, %error, "the transaction topic");
            self.start = Some(offset);
            self.next = None;
        }
    }

    fn trouble(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopic,
            ) => {
                tracing::warn!(topic = self.topic, %error, "the transaction topic; looking for it");
                self.start = self.next.take();
                let _ = self.consumer.unassign();
            }
            _ => {
                tracing::warn!(topic = self.topic, %error, "reading the transaction topic; going on");
            }
        }
        std::thread::sleep(PAUSE);
    }

    /// Looks whether everything that is written was read.
    fn look(&mut self, next: i64) -> Result<(), Ended> {
        let Ok((_, high)) = self.consumer.fetch_watermarks(&self.topic, 0, ANSWER) else {
            return Ok(());
        };
        let now = Instant::now();
        let before = self.looked.filter(|(n, h, _)| (*n, *h) == (next, high));
        // Markers of a producer's own transactions are never read: an end that nothing reaches.
        let is_still = before.is_some_and(|(.., at)| now.duration_since(at) >= STILL);
        if before.is_none() {
            self.looked = Some((next, high, now));
        }
        if next >= high || is_still {
            return self
                .commands
                .send(Command::ToldAll)
                .map_err(|_| Ended::Gone);
        }
        Ok(())
    }
}

fn end(marker: Marker, offset: i64) -> Option<End> {
    match marker {
        Marker::TransactionEnd { id, tables, .. } => Some(End {
            id: id.into(),
            offset,
            tables,
        }),
        _ => None,
    }
}
