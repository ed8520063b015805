//! How far a sink is, kept in Kafka beside what it wrote.
//!
//! ```text
//!  topic headwater-progress, partition 0, compacted
//!  {"pipeline":"4f…","sink":"audit"}               {"object":7,"at":1763719200000000,"run":"51…","topic":"audit"}
//!  {"pipeline":"4f…","sink":"audit","start":true}  {"nonce":"9c…"}
//! ```
//!
//! The idea: the record of the progress is part of the transaction that brought the sink there, so it
//! is never ahead of it and never behind. To read it back, a sink that begins writes a mark with a
//! number of its own, by a transaction, and reads committed messages up to that mark: everything that
//! it ever committed stands before it, whatever other sinks leave open meanwhile.
//!
//! Invariants: only partition 0 is used, so more partitions change nothing; the progress of a dropped
//! sink of the same name is none. Limits: the topic is read from its beginning at every start of a
//! session, because another server may have written under the name meanwhile; compaction keeps it at a
//! few segments of 8 MiB ([`super::topics`]).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use engine::contract::SinkContext;
use engine::model::Time;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::{Value as Json, json};

use super::writer::{Outgoing, Output};
use super::{SinkOptions, Trouble};

/// The partition of all progress.
const PARTITION: i32 = 0;
/// Longest wait for the mark: other sinks' open transactions end by the brokers' time-out at the latest.
const PATIENCE: Duration = Duration::from_secs(330);
/// After so long people are told.
const SLOW: Duration = Duration::from_secs(3);
/// One wait for messages.
const POLL: Duration = Duration::from_millis(100);

/// The records of one sink.
pub(super) struct Progress {
    topic: String,
    key: String,
    start: String,
    object: u32,
    run: u64,
    target: String,
}

/// What is written of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// Of which declaration.
    pub(super) object: u32,
    /// By which start of a server.
    pub(super) run: u64,
    /// Through which time.
    pub(super) at: Time,
}

impl Progress {
    pub(super) fn new(options: &SinkOptions, context: &SinkContext) -> Progress {
        let text = |text: &str| Json::from(text).to_string();
        let (pipeline, sink) = (text(&context.pipeline), text(&context.name));
        Progress {
            topic: options.progress_topic.clone(),
            key: format!("{{\"pipeline\":{pipeline},\"sink\":{sink}}}"),
            start: format!("{{\"pipeline\":{pipeline},\"sink\":{sink},\"start\":true}}"),
            object: context.id.0,
            run: context.runs.current(),
            target: options.topic.clone(),
        }
    }

    /// Adds the progress to the open transaction.
    pub(super) fn write(
        &self,
        writer: &dyn Output,
        at: Time,
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<(), Trouble> {
        let target = Json::from(&*self.target);
        let value = format!(
            "{{\"object\":{},\"at\":{at},\"run\":\"{:016x}\",\"topic\":{target}}}",
            self.object, self.run
        );
        self.send(writer, &self.key, Some(&value), is_stopping)
    }

    /// Takes the progress away, by a transaction.
    pub(super) fn forget(
        &self,
        writer: &mut dyn Output,
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<(), Trouble> {
        writer.open()?;
        for key in [&self.key, &self.start] {
            self.send(writer, key, None, is_stopping)?;
        }
        writer.commit(is_stopping)
    }

    /// Reads what this name committed last.
    pub(super) fn read(
        &self,
        options: &SinkOptions,
        writer: &mut dyn Output,
        tell: &dyn Fn(&str),
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<Option<Written>, Trouble> {
        let nonce = format!("{:016x}", RandomState::new().build_hasher().finish());
        let mark = json!({ "nonce": nonce }).to_string();
        writer.open()?;
        self.send(writer, &self.start, Some(&mark), is_stopping)?;
        writer.commit(is_stopping)?;
        let consumer = consumer(options).map_err(|error| self.failed(&error))?;
        let mut list = TopicPartitionList::new();
        let assigned = list
            .add_partition_offset(&self.topic, PARTITION, Offset::Beginning)
            .and_then(|()| consumer.assign(&list));
        assigned.map_err(|error| self.failed(&error))?;
        let begun = Instant::now();
        let (mut found, mut is_told) = (None, false);
        loop {
            if is_stopping() {
                return Err(Trouble::Stop);
            }
            if begun.elapsed() > PATIENCE {
                return Err(Trouble::World(format!(
                    "topic \"{}\" could not be read to its end: a transaction is open in it",
                    self.topic
                )));
            }
            if begun.elapsed() > SLOW && !std::mem::replace(&mut is_told, true) {
                tell(&format!(
                    "topic \"{}\" is being read to its end",
                    self.topic
                ));
            }
            let message = match consumer.poll(POLL) {
                None => continue,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(error)) => return Err(self.failed(&error)),
                Some(Ok(message)) => message,
            };
            let (key, value) = (message.key().unwrap_or_default(), message.payload());
            if key == self.start.as_bytes() && value == Some(mark.as_bytes()) {
                return Ok(found);
            }
            if key == self.key.as_bytes() {
                found = value.map(|value| self.parse(value)).transpose()?;
            }
        }
    }

    fn parse(&self, value: &[u8]) -> Result<Written, Trouble> {
        let json: Json = serde_json::from_slice(value).unwrap_or_default();
        let object = json["object"].as_u64().and_then(|n| u32::try_from(n).ok());
        let run = json["run"].as_str();
        let run = run.and_then(|run| u64::from_str_radix(run, 16).ok());
        match (object, json["at"].as_u64(), run) {
            (Some(object), Some(at), Some(run)) => Ok(Written { object, run, at }),
            _ => Err(Trouble::World(format!(
                "topic \"{}\" has under {} what is no progress: {}",
                self.topic,
                self.key,
                engine::model::shorten(&String::from_utf8_lossy(value))
            ))),
        }
    }

    fn send(
        &self,
        writer: &dyn Output,
        key: &str,
        value: Option<&str>,
        is_stopping: &dyn Fn() -> bool,
    ) -> Result<(), Trouble> {
        let outgoing = Outgoing {
            topic: &self.topic,
            partition: Some(PARTITION),
            key: key.as_bytes(),
            value: value.map(str::as_bytes),
            timestamp: now_millis(),
            time: None,
        };
        writer.send(&outgoing, is_stopping)
    }

    fn failed(&self, error: &KafkaError) -> Trouble {
        Trouble::World(format!("reading topic \"{}\": {error}", self.topic))
    }
}

fn now_millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

/// A consumer that joins no group and sees what is committed.
pub(super) fn consumer(options: &SinkOptions) -> KafkaResult<BaseConsumer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.brokers)
        .set("client.id", "headwater-sink-progress")
        // Asked for by the client, and never joined.
        .set("group.id", "headwater-sink-progress")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("fetch.wait.max.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Error);
    options.security.configure(&mut config);
    config.create()
}
