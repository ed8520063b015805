//! The reader of a transaction topic.
//!
//! A thread with a consumer of its own gives ENDs to the group in their order, and says when the group
//! asks that it has given all that were written until then: when it has read up to the end of that
//! moment. An end that is no message (a marker of the producer's own transactions) is told by librdkafka.
//!
//! Limits: the topic has one partition; several keep no order among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use engine::error::WorldError;
use engine::model::{Column, Schema, SqlType};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::assembly::End;
use super::hub::{Command, Told};
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

/// What the group and its reader of the transaction topic tell each other.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The reader is to end.
    pub(super) stop: AtomicBool,
    /// The group asks whether it has all ENDs: one more than its time of that, else 0.
    asked: AtomicU64,
    /// ENDs that wait in the group.
    pub(super) waiting: AtomicUsize,
}

impl Line {
    /// The group asks for all ENDs that are written until now, its own time.
    pub(super) fn wants_all(&self, now: u64) {
        self.asked.store(now + 1, Ordering::Relaxed);
    }

    fn take_asked(&self) -> Option<u64> {
        self.asked.swap(0, Ordering::Relaxed).checked_sub(1)
    }
}

/// A question of the group that is not answered yet.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: u64,
    /// Where the topic ended then.
    high: i64,
}

/// See the module.
pub(super) struct Metadata {
    options: KafkaOptions,
    topic: String,
    consumer: BaseConsumer<Client>,
    decoder: Decoder,
    /// Its number, and the group.
    commands: (u64, Sender<Command>),
    line: Arc<Line>,
    /// Where the group stands; what comes next, once it is known.
    start: Option<i64>,
    next: Option<i64>,
    asked: Option<Asked>,
    /// Whether it was said that there is no such topic.
    was_missing: bool,
    /// What people were told that it waits for, and whether that is a schema.
    waits: Option<String>,
    is_schema: bool,
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
        commands: (u64, Sender<Command>),
        line: Arc<Line>,
    ) -> Result<Metadata, WorldError> {
        // Only control events are read of it: the columns do not matter.
        let schema = Schema {
            columns: vec![Column::new("id", SqlType::Text)],
            key: vec![0],
        };
        Ok(Metadata {
            consumer: client::consumer(options, topic, Next::default(), Arc::default())?,
            decoder: Decoder::new(schema, Envelope::Debezium, decoding.clone()),
            options: options.clone(),
            topic: topic.to_owned(),
            commands,
            line,
            start,
            next: None,
            asked: None,
            was_missing: false,
            waits: None,
            is_schema: false,
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
            let _ = self.tell(Told::Failed(reason));
        }
    }

    fn tell(&self, told: Told) -> Result<(), Ended> {
        let (number, group) = &self.commands;
        let sent = group.send(Command::Told(*number, told));
        sent.map_err(|_| Ended::Gone)
    }

    /// Tells what it waits for, when that is news.
    fn say(&mut self, waits: Option<String>) -> Result<(), Ended> {
        if self.waits == waits {
            return Ok(());
        }
        self.waits.clone_from(&waits);
        self.is_schema = false;
        self.tell(Told::Waits(waits))
    }

    fn round(&mut self) -> Result<(), Ended> {
        let Some(next) = self.next else {
            return self.begin();
        };
        // A topic in which nothing is written says nothing either.
        let is_away = self.waits.is_some() && !self.is_schema;
        if is_away
            && self
                .consumer
                .fetch_watermarks(&self.topic, 0, ANSWER)
                .is_ok()
        {
            self.say(None)?;
        }
        if self.asked.is_none()
            && let Some(at) = self.line.take_asked()
        {
            self.look(next, at);
        }
        if self.line.waiting.load(Ordering::Relaxed) > ENDS_MAX {
            std::thread::sleep(IDLE);
            return Ok(());
        }
        let (mut ends, mut is_at_end) = (Vec::new(), false);
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
                            self.say(None)?;
                            self.next = Some(offset + 1);
                            ends.extend(decoded.markers.into_iter().filter_map(|m| end(m, offset)));
                        }
                        Err(wait) => {
                            self.again(offset, &wait)?;
                            break;
                        }
                    }
                }
                // Only one who asked began to read anew, and is told of this end.
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    is_at_end = true;
                    break;
                }
                Some(Err(error)) => {
                    self.trouble(&error)?;
                    break;
                }
            }
        }
        if !ends.is_empty() {
            self.line.waiting.fetch_add(ends.len(), Ordering::Relaxed);
            self.tell(Told::Ends(ends))?;
        }
        let next = self.next;
        let answered = |asked: &mut Asked| is_at_end || next.is_some_and(|next| next >= asked.high);
        match self.asked.take_if(answered) {
            Some(asked) => self.tell(Told::All(asked.at)),
            None => Ok(()),
        }
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
                if !std::mem::replace(&mut self.was_missing, true) {
                    let wait = self.options.transactions.as_ref();
                    let wait = wait.map_or(Duration::ZERO, |transactions| transactions.wait);
                    tracing::warn!(
                        topic = self.topic,
                        ?wait,
                        "the TRANSACTION TOPIC does not exist; changes wait so long and become visible \
                         one by one. Is provide.transaction.metadata=true set?"
                    );
                }
                let missing = format!("TRANSACTION TOPIC '{}' does not exist", self.topic);
                self.say(Some(missing))?;
                std::thread::sleep(PAUSE);
                // No END is written.
                let asked = self.asked.take().map(|asked| asked.at);
                match asked.or_else(|| self.line.take_asked()) {
                    Some(at) => self.tell(Told::All(at)),
                    None => Ok(()),
                }
            }
            Err(error) => {
                tracing::warn!(topic = self.topic, %error, "the transaction topic; trying again");
                self.say(Some(self.reason(&error)))?;
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
        let error = found
            .and_then(|one| one.error())
            .map(RDKafkaErrorCode::from);
        let count = match error {
            None => found.map_or(0, |one| one.partitions().len()),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => 0,
            // No leader, a broker that starts: it is there, and cannot say what it has.
            Some(error) => return Err(KafkaError::MetadataFetch(error)),
        };
        if count != 1 {
            return Ok((count > 0).then_some(count));
        }
        self.was_missing = false;
        let (low, high) = self.consumer.fetch_watermarks(&self.topic, 0, ANSWER)?;
        let offset = match self.start {
            Some(offset) if offset < low => {
                tracing::warn!(
                    topic = self.topic,
                    offset,
                    low,
                    "the transaction topic's retention deleted what was not read: changes of \
                     transactions that ended there wait TRANSACTION WAIT and become visible in parts"
                );
                low
            }
            Some(offset) if offset <= high => offset,
            Some(offset) => {
                tracing::warn!(
                    topic = self.topic,
                    offset,
                    high,
                    "the transaction topic was made again: it is read from its beginning"
                );
                let _ = self.tell(Told::Anew);
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
        let _ = self.tell(Told::Began(offset));
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
    fn again(&mut self, offset: i64, wait: &Wait) -> Result<(), Ended> {
        let topic = &self.topic;
        let waits = format!(
            "TRANSACTION TOPIC '{topic}' waits for a schema: {}",
            wait.error
        );
        self.say(Some(waits))?;
        self.is_schema = true;
        tracing::warn!(topic = self.topic, error = %wait.error, "a transaction waits for its schema");
        std::thread::sleep(wait.after.clamp(IDLE, PAUSE));
        if let Err(error) = self.assign(offset) {
            tracing::warn!(topic = self.topic, %error, "the transaction topic");
            self.start = Some(offset);
            self.next = None;
        }
        Ok(())
    }

    fn trouble(&mut self, error: &KafkaError) -> Result<(), Ended> {
        self.say(Some(self.reason(error)))?;
        match error.rdkafka_error_code() {
            Some(code) if client::is_lost(code) => {
                tracing::warn!(topic = self.topic, %error, "the transaction topic; looking for it");
                self.start = self.next.take();
                let _ = self.consumer.unassign();
            }
            _ => {
                tracing::warn!(topic = self.topic, %error, "reading the transaction topic; going on");
            }
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }

    fn reason(&self, error: &KafkaError) -> String {
        format!("TRANSACTION TOPIC '{}': {error}", self.topic)
    }

    /// Notes a question; it is answered when everything that is written now was read.
    fn look(&mut self, next: i64, at: u64) {
        let Ok((_, high)) = self.consumer.fetch_watermarks(&self.topic, 0, ANSWER) else {
            return;
        };
        // The end may be a marker, which is never read: librdkafka says when it has passed it, once, so
        // it reads from here anew.
        if next < high
            && let Err(error) = self.assign(next)
        {
            tracing::warn!(topic = self.topic, %error, "the transaction topic");
            self.start = self.next.take();
            return;
        }
        self.asked = Some(Asked { at, high });
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
