//! Topics that are made when they are missing.
//!
//! | topic | made with |
//! |---|---|
//! | the sink's, envelope upsert | `cleanup.policy=compact`: the newest row of every key stays |
//! | the sink's, envelope debezium | the brokers' defaults: how long events stay is the operator's choice |
//! | progress | one partition, `cleanup.policy=compact`, and [`PROGRESS`], so that it stays short |
//!
//! Every transaction leaves a record and a mark in the topic of progress.
//!
//! Invariants: a topic that is there stays as it is; the sink's own is made only for a sink that has
//! written nothing: one that is gone is a person's business.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Runtime;

use super::{Envelope, SinkOptions, Trouble, progress};

/// Longest wait for the brokers.
const PATIENCE: Duration = Duration::from_secs(3);
/// Compaction takes closed segments only, and the marks of transactions after `delete.retention.ms`.
const PROGRESS: [(&str, &str); 4] = [
    ("segment.bytes", "8388608"),
    ("segment.ms", "3600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
    ("delete.retention.ms", "60000"),
];
/// Bytes of one batch where the topic takes more.
pub(super) const BATCH_BYTES: usize = 512 << 10;

/// Makes the topic of progress, where it is missing. How many bytes a batch of records may have; `None`
/// when the sink's own topic is missing.
pub(super) fn ready(options: &SinkOptions) -> Result<Option<usize>, Trouble> {
    // A producer that asks for a topic's metadata may make the topic by that.
    let consumer = progress::consumer(options);
    let consumer = consumer.map_err(|error| Trouble::World(error.to_string()))?;
    let topic = &options.progress_topic;
    if !is_there(&consumer, topic)? {
        let replication = TopicReplication::Fixed(options.replication.unwrap_or(-1));
        let topic = NewTopic::new(topic, 1, replication).set("cleanup.policy", "compact");
        let topic = PROGRESS
            .iter()
            .fold(topic, |topic, (name, value)| topic.set(name, value));
        create(options, topic)?;
    }
    match is_there(&consumer, &options.topic)? {
        true => batch_bytes(options).map(Some),
        false => Ok(None),
    }
}

/// Makes the sink's own topic.
pub(super) fn make(options: &SinkOptions) -> Result<(), Trouble> {
    let replication = TopicReplication::Fixed(options.replication.unwrap_or(-1));
    let partitions = options.partitions.unwrap_or(-1);
    let topic = NewTopic::new(&options.topic, partitions, replication);
    let topic = match options.envelope {
        Envelope::Upsert => topic.set("cleanup.policy", "compact"),
        Envelope::Debezium => topic,
    };
    create(options, topic)
}

fn is_there(consumer: &BaseConsumer, topic: &str) -> Result<bool, Trouble> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE);
    let metadata = metadata.map_err(|error| Trouble::World(error.to_string()))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(found.is_some_and(|found| match found.error() {
        None => !found.partitions().is_empty(),
        Some(error) => RDKafkaErrorCode::from(error) != RDKafkaErrorCode::UnknownTopicOrPartition,
    }))
}

/// A batch is refused as a whole, so it must be no larger than the topic takes. Who may not ask gets what
/// nearly every topic takes.
fn batch_bytes(options: &SinkOptions) -> Result<usize, Trouble> {
    let (admin, asked, runtime) = admin(options)?;
    let topic = ResourceSpecifier::Topic(&options.topic);
    let described = runtime.block_on(admin.describe_configs([&topic], &asked));
    let described = described.map_err(|error| Trouble::World(error.to_string()))?;
    let found = described.into_iter().find_map(|one| {
        let one = one.ok()?;
        one.get("max.message.bytes")?
            .value
            .as_ref()?
            .parse::<usize>()
            .ok()
    });
    // The frame of a batch counts, too.
    let most = found.map_or(BATCH_BYTES, |most| most - most / 8);
    Ok(most.clamp(1, BATCH_BYTES))
}

type Admin = (AdminClient<DefaultClientContext>, AdminOptions, Runtime);

fn admin(options: &SinkOptions) -> Result<Admin, Trouble> {
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
    Ok((admin, asked, runtime))
}

fn create(options: &SinkOptions, wanted: NewTopic<'_>) -> Result<(), Trouble> {
    let (admin, asked, runtime) = admin(options)?;
    let made = runtime.block_on(admin.create_topics([&wanted], &asked));
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
