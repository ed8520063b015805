//! The consumer: its settings, its log, its lag.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::contract::Waits;
use engine::error::WorldError;
use engine::telemetry;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;

use super::{KafkaOptions, Partition, lane, security};

/// Time between two lines about the same trouble.
const TELL: Duration = Duration::from_secs(5);

/// The next offset of each partition that is read.
pub(super) type Next = Arc<Mutex<HashMap<Partition, i64>>>;

/// Receives what librdkafka tells beside messages.
pub(super) struct Client {
    source: String,
    next: Next,
    waits: Arc<Waits>,
    /// What was told last, and when: brokers that are away are, every second, in many words.
    told: Mutex<HashMap<String, Instant>>,
    /// What was wrong with a connection last, in words that help.
    reason: Mutex<Option<String>>,
}

impl Client {
    /// Whether people are to be told of this kind of trouble now, or were a moment ago.
    pub(super) fn is_news(&self, kind: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = told.get(kind).is_none_or(|at| at.elapsed() >= TELL);
        if is_news {
            told.insert(kind.to_owned(), Instant::now());
        }
        is_news
    }

    /// Notes how many messages of a partition are not read.
    pub(super) fn is_behind(&self, partition: &Partition, messages: u64) {
        let name = lane::name(partition);
        self.waits.is_behind(&name, messages);
        let labels = [("source", self.source.clone()), ("partition", name)];
        metrics::gauge!(telemetry::KAFKA_LAG.name, &labels).set(messages as f64);
    }

    /// An error with what is known of its cause: librdkafka tells that apart, and earlier.
    pub(super) fn words(&self, error: &KafkaError) -> String {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        match reason.take() {
            Some(reason) => format!("{error} ({reason})"),
            None => error.to_string(),
        }
    }
}

impl ClientContext for Client {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        let source = &*self.source;
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(source, fac, message, "librdkafka");
            }
            // Lost connections are errors to librdkafka and weather to us.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning if self.is_news(fac) => {
                tracing::warn!(source, fac, message, "librdkafka");
            }
            _ => tracing::debug!(source, fac, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let (source, code) = (&*self.source, error.rdkafka_error_code());
        // Where a partition ends is news for its reader, and no trouble.
        if code == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        let hint = security::hint(&error);
        let words = hint.map_or_else(|| reason.to_owned(), |hint| format!("{reason}; {hint}"));
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
        if code.is_some_and(|code| !self.is_news(&format!("{code:?}"))) {
            tracing::debug!(source, %error, reason, "Kafka");
            return;
        }
        match hint {
            Some(hint) => tracing::warn!(source, %error, reason, hint, "Kafka"),
            None => tracing::warn!(source, %error, reason, "Kafka"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        for ((topic, partition), next) in &*next {
            let figures = statistics.topics.get(topic);
            let figures = figures.and_then(|topic| topic.partitions.get(partition));
            // Not known before the first answer to a fetch.
            let Some(end) = figures
                .map(|figures| figures.ls_offset)
                .filter(|end| *end >= 0)
            else {
                continue;
            };
            let partition = (topic.clone(), *partition);
            self.is_behind(&partition, (end - next).max(0) as u64);
        }
    }
}

impl ConsumerContext for Client {}

/// A consumer that decides nothing by itself: no group's offsets, no reset, no commit.
pub(super) fn consumer(
    options: &KafkaOptions,
    source: &str,
    next: Next,
    waits: Arc<Waits>,
) -> Result<BaseConsumer<Client>, WorldError> {
    let group = options.group.clone();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.brokers)
        .set("client.id", format!("headwater-{source}"))
        .set(
            "group.id",
            group.unwrap_or_else(|| format!("headwater-{source}")),
        )
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("queued.max.messages.kbytes", "16384")
        // The default is a second, in which a quick reader empties the queue and waits.
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.wait.max.ms", "100")
        .set("reconnect.backoff.max.ms", "2000")
        .set("statistics.interval.ms", "1000")
        // Behind the last message there may be more that is not given out (marks of a producer's
        // transactions): who waits for it must know that nothing more is there.
        .set("enable.partition.eof", "true")
        .set_log_level(RDKafkaLogLevel::Warning);
    options.security.configure(&mut config);
    let client = Client {
        source: source.to_owned(),
        next,
        waits,
        told: Mutex::default(),
        reason: Mutex::default(),
    };
    config
        .create_with_context(client)
        .map_err(|error| failed(options, &error))
}

/// An error that a person must solve.
pub(super) fn failed(options: &KafkaOptions, error: &KafkaError) -> WorldError {
    WorldError::Service {
        service: format!("Kafka at {}", options.brokers),
        detail: error.to_string(),
        is_transient: false,
    }
}

/// Whether an error means that a partition is not where it was, or no more: it is looked for again.
pub(super) fn is_lost(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::OffsetOutOfRange
            | RDKafkaErrorCode::AutoOffsetReset
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopic
    )
}
