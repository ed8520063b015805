//! Topics that are made when they are missing.
//!
//! | topic | made with |
//! |---|---|
//! | the sink's, envelope upsert | `cleanup.policy=compact`: the newest row of every key stays |
//! | the sink's, envelope debezium | the brokers' defaults: how long events stay is the operator's choice |
//! | progress | one partition, `cleanup.policy=compact`, segments of [`SEGMENT_BYTES`] so that it is compacted soon |
//!
//! Invariant: a topic that is there stays as it is.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{Envelope, SinkOptions, Trouble, progress};

/// Longest wait for the brokers.
const PATIENCE: Duration = Duration::from_secs(10);
/// A segment of the progress topic: compaction takes closed ones only.
const SEGMENT_BYTES: &str = "8388608";

/// Makes the sink's topics, where they are missing.
pub(super) fn ensure(options: &SinkOptions) -> Result<(), Trouble> {
    let failed = |error: &KafkaError| Trouble::World(error.to_string());
    // A producer that asks for a topic's metadata may make the topic by that.
    let consumer = progress::consumer(options).map_err(|error| failed(&error))?;
    let mut missing = Vec::new();
    for topic in [&options.topic, &options.progress_topic] {
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE);
        let metadata = metadata.map_err(|error| failed(&error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let is_there = found.is_some_and(|found| match found.error() {
            None => !found.partitions().is_empty(),
            Some(error) => {
                RDKafkaErrorCode::from(error) != RDKafkaErrorCode::UnknownTopicOrPartition
            }
        });
        if !is_there {
            missing.push(topic);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let replication = options.replication.unwrap_or(-1);
    let wanted = missing.iter().map(|topic| {
        let is_progress = **topic == options.progress_topic;
        let partitions = match is_progress {
            true => 1,
            false => options.partitions.unwrap_or(-1),
        };
        let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
        match (is_progress, options.envelope) {
            (true, _) => topic
                .set("cleanup.policy", "compact")
                .set("segment.bytes", SEGMENT_BYTES),
            (false, Envelope::Upsert) => topic.set("cleanup.policy", "compact"),
            (false, Envelope::Debezium) => topic,
        }
    });
    create(options, &wanted.collect::<Vec<_>>())
}

fn create(options: &SinkOptions, wanted: &[NewTopic<'_>]) -> Result<(), Trouble> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.brokers)
        .set("client.id", "headwater-sink-topics")
        .set_log_level(RDKafkaLogLevel::Error);
    options.security.configure(&mut config);
    let admin: Result<AdminClient<DefaultClientContext>, KafkaError> = config.create();
    let admin = admin.map_err(|error| Trouble::World(error.to_string()))?;
    let asked = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Trouble::World(error.to_string()))?;
    let made = runtime.block_on(admin.create_topics(wanted, &asked));
    for one in made.map_err(|error| Trouble::World(error.to_string()))? {
        match one {
            Ok(topic) => tracing::info!(topic, "a sink's topic was made"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(Trouble::World(format!(
                    "topic \"{topic}\" is not there and cannot be made: {code}; make it, or see \
                     PARTITIONS and REPLICATION"
                )));
            }
        }
    }
    Ok(())
}
