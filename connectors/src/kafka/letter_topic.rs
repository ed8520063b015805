//! `DEAD LETTER TOPIC`: dead letters as messages, for tools that know Kafka Connect's.
//!
//! Each letter is produced with its message's key, value, time and headers, and with the headers that
//! Kafka Connect gives its own (`__connect.errors.*`; source: Apache Kafka 4.1,
//! `connect/runtime/errors/DeadLetterQueueReporter`).
//!
//! ```text
//!  letter ─▶ backlog (bounded) ─▶ librdkafka (idempotent, in order) ─▶ topic
//!               ▲                              └─ delivered ─▶ {"delivered":{"users/0":n}}  (lane "")
//!  collection ──┘ at the start: what stands behind "delivered"
//! ```
//!
//! Invariants: reading never waits for this topic; letters go in their order; each goes at least once,
//! also over a restart, unless the backlog was full, the topic refused it for good, or it was resolved
//! before the restart: the collection has it in any case, and a metric counts it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, SourceBatch, SourceContext};
use engine::error::{DataError, DeadLetter, WorldError};
use engine::limits::DEAD_LETTER_TOPIC_MESSAGES_MAX;
use engine::telemetry;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use serde_json::json;

use super::assignment::STOPPED_LANE;
use super::letter::Message;
use super::{KafkaOptions, client, lane};
use crate::envelope::RawRecord;

/// Bytes that wait for the topic, in the backlog and in librdkafka each.
const BACKLOG_BYTES: usize = 16 << 20;
/// Time between two notes of what was delivered, and between two warnings.
const NOTE: Duration = Duration::from_secs(1);
/// Longest wait for deliveries when the source stops.
const FLUSH: Duration = Duration::from_millis(300);

/// One message on its way.
struct Outgoing {
    message: Message,
    value: Option<Vec<u8>>,
    error: DataError,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        let key = self.message.key.as_ref().map_or(0, Vec::len);
        self.value.as_ref().map_or(0, Vec::len) + key + self.error.detail.len() + 512
    }
}

/// What the producer's thread tells.
#[derive(Default)]
struct Told {
    /// By partition of the source: the offset after the last that was delivered.
    delivered: BTreeMap<String, i64>,
    warned: Option<Instant>,
}

struct Deliveries {
    source: String,
    told: Arc<Mutex<Told>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(source = self.source, ?level, fac, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.warn(&format!("{error}: {reason}"));
    }
}

impl ProducerContext for Deliveries {
    /// Partition and offset of the letter's message.
    type DeliveryOpaque = Box<(String, i64)>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(_) => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                let (partition, offset) = *place;
                let next = told.delivered.entry(partition).or_default();
                *next = (*next).max(offset + 1);
                "delivered"
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue), _)) => return,
            Err((error, _)) => {
                self.warn(&error.to_string());
                "failed"
            }
        };
        count(&self.source, outcome);
    }
}

impl Deliveries {
    fn warn(&self, error: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.warned.is_none_or(|at| at.elapsed() >= NOTE) {
            told.warned = Some(Instant::now());
            let source = &*self.source;
            tracing::warn!(
                source,
                error,
                "DEAD LETTER TOPIC; letters stay in the collection"
            );
        }
    }
}

fn count(source: &str, outcome: &'static str) {
    let labels = [
        ("source", source.to_owned()),
        ("outcome", outcome.to_owned()),
    ];
    metrics::counter!(telemetry::DEAD_LETTER_TOPIC.name, &labels).increment(1);
}

/// See the module.
pub(crate) struct LetterTopic {
    topic: String,
    source: String,
    producer: ThreadedProducer<Deliveries>,
    backlog: VecDeque<Outgoing>,
    backlog_bytes: usize,
    told: Arc<Mutex<Told>>,
    noted: BTreeMap<String, i64>,
    noted_at: Instant,
}

impl LetterTopic {
    /// The topic of a source that has one, with the letters that it may not have yet.
    ///
    /// Errors: settings that librdkafka refuses.
    pub(super) fn new(
        options: &KafkaOptions,
        context: &SourceContext,
    ) -> Result<Option<LetterTopic>, WorldError> {
        let Some(topic) = options.dead_letter_topic.clone() else {
            return Ok(None);
        };
        let told: Arc<Mutex<Told>> = Arc::default();
        let deliveries = Deliveries {
            source: context.name.clone(),
            told: Arc::clone(&told),
        };
        let messages = DEAD_LETTER_TOPIC_MESSAGES_MAX.to_string();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &options.brokers)
            .set("client.id", format!("headwater-{}-letters", context.name))
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", messages)
            .set(
                "queue.buffering.max.kbytes",
                (BACKLOG_BYTES >> 10).to_string(),
            )
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        options.security.configure(&mut config);
        let producer = config.create_with_context(deliveries);
        let producer = producer.map_err(|error| client::failed(options, &error))?;
        let position = context.resume.position(STOPPED_LANE).unwrap_or_default();
        let noted = serde_json::from_value(position["delivered"].clone()).unwrap_or_default();
        let mut letters = LetterTopic {
            topic,
            source: context.name.clone(),
            producer,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            told,
            noted,
            noted_at: Instant::now(),
        };
        let kept = context.resume.letters();
        kept.iter().for_each(|letter| letters.send_again(letter));
        Ok(Some(letters))
    }

    /// A letter of an earlier run, if it may not have been delivered.
    fn send_again(&mut self, letter: &DeadLetter) {
        let Some(message) = Message::read(letter) else {
            return;
        };
        let partition = lane::name(&(message.topic.clone(), message.partition));
        if self
            .noted
            .get(&partition)
            .is_some_and(|next| message.offset < *next)
        {
            return;
        }
        let value = message.has_value.then(|| letter.payload.clone());
        let error = letter.error.clone();
        self.put(Outgoing {
            message,
            value,
            error,
        });
    }

    /// Sends a letter behind those that wait.
    pub(super) fn send(&mut self, record: &RawRecord<'_>, error: &DataError) {
        self.put(Outgoing {
            message: Message::of(record),
            value: record.value.map(<[u8]>::to_vec),
            error: error.clone(),
        });
    }

    fn put(&mut self, outgoing: Outgoing) {
        let bytes = outgoing.bytes();
        let is_full = self.backlog.len() >= DEAD_LETTER_TOPIC_MESSAGES_MAX
            || self.backlog_bytes + bytes > BACKLOG_BYTES;
        if is_full && !self.backlog.is_empty() {
            count(&self.source, "skipped");
            return;
        }
        self.backlog_bytes += bytes;
        self.backlog.push_back(outgoing);
    }

    /// Gives to librdkafka what it takes, and notes what was delivered. Never waits.
    pub(super) fn pump(&mut self, context: &SourceContext) -> Result<(), SinkClosed> {
        while let Some(outgoing) = self.backlog.front() {
            match self.produce(outgoing) {
                Ok(()) => {}
                // The next round goes on here.
                Err(RDKafkaErrorCode::QueueFull) => break,
                Err(error) => {
                    self.producer.context().warn(&error.to_string());
                    count(&self.source, "failed");
                }
            }
            self.backlog_bytes -= outgoing.bytes();
            self.backlog.pop_front();
        }
        match self.noted_at.elapsed() >= NOTE {
            true => self.note(context),
            false => Ok(()),
        }
    }

    fn produce(&self, outgoing: &Outgoing) -> Result<(), RDKafkaErrorCode> {
        let message = &outgoing.message;
        let partition = lane::name(&(message.topic.clone(), message.partition));
        let place = Box::new((partition, message.offset));
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.topic, place)
            .headers(headers(&self.source, outgoing));
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        if let Some(value) = &outgoing.value {
            record = record.payload(value);
        }
        record.timestamp = message.timestamp;
        self.producer.send(record).map_err(|(error, _)| {
            let code = error.rdkafka_error_code();
            code.unwrap_or(RDKafkaErrorCode::Fail)
        })
    }

    /// Puts into the log what was delivered.
    fn note(&mut self, context: &SourceContext) -> Result<(), SinkClosed> {
        self.noted_at = Instant::now();
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.delivered.clone();
        drop(told);
        let is_new = |(partition, next): (&String, &i64)| self.noted.get(partition) != Some(next);
        if !news.iter().any(is_new) {
            return Ok(());
        }
        self.noted.extend(news);
        context.sink.stage(SourceBatch {
            lane: STOPPED_LANE.to_owned(),
            position: Some(json!({ "delivered": self.noted })),
            ..SourceBatch::default()
        })
    }

    /// The source stops: a short wait for what is on its way.
    pub(super) fn finish(&mut self, context: &SourceContext) {
        // What is not delivered now goes after the restart.
        let _ = self.producer.flush(FLUSH);
        let _ = self.note(context);
    }
}

/// The message's own headers, then Kafka Connect's.
fn headers(source: &str, outgoing: &Outgoing) -> OwnedHeaders {
    let Outgoing { message, error, .. } = outgoing;
    let own = message.headers.iter();
    let own = own.fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: value.as_deref(),
        })
    });
    let is_converting = matches!(
        &*error.code,
        "invalid-json" | "invalid-utf8" | "invalid-schema"
    );
    let stage = match (is_converting, error.detail.starts_with("the key")) {
        (true, true) => "KEY_CONVERTER",
        (true, false) => "VALUE_CONVERTER",
        (false, _) => "TASK_PUT",
    };
    let mut words = error.detail.clone();
    for (what, text) in [("expected", &error.expected), ("hint", &error.hint)] {
        if let Some(text) = text {
            words += &format!("\n{what}: {text}");
        }
    }
    let errors: [(&str, String); 10] = [
        ("topic", message.topic.clone()),
        ("partition", message.partition.to_string()),
        ("offset", message.offset.to_string()),
        ("connector.name", source.to_owned()),
        ("task.id", "0".to_owned()),
        ("stage", stage.to_owned()),
        ("class.name", "headwater".to_owned()),
        ("exception.class.name", error.code.clone()),
        ("exception.message", error.detail.clone()),
        ("exception.stacktrace", words),
    ];
    errors.into_iter().fold(own, |headers, (name, value)| {
        let key = format!("__connect.errors.{name}");
        headers.insert(Header {
            key: &key,
            value: Some(value.as_bytes()),
        })
    })
}
