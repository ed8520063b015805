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

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Runtime;

use super::{Envelope, SinkOptions, Trouble, progress};

/// Longest wait for the brokers.
const PATIENCE: Duration = Duration::from_secs(3);
/// A segment of the progress topic: compaction takes closed ones only.
const SEGMENT_BYTES: &str = "8388608";
/// Bytes of one batch where the topic takes more.
const BATCH_BYTES: usize = 512 << 10;

/// Makes the sink's topics, where they are missing; how many bytes a batch of records may have.
pub(super) fn ensure(options: &SinkOptions) -> Result<usize, Trouble> {
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
        return batch_bytes(options);
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
    create(options, &wanted.collect::<Vec<_>>())?;
    batch_bytes(options)
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

fn create(options: &SinkOptions, wanted: &[NewTopic<'_>]) -> Result<(), Trouble> {
    let (admin, asked, runtime) = admin(options)?;
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
