//! How fast a topic can be read at all: the client alone, without Headwater.
//!
//! The idea: a consumer that is slow is slow because of the broker and the client, or because of what
//! is done with the messages; [`read_to_end`] gives the first, so that the second can be told. It
//! is what `benches/kafka.rs` measures the source against.
//!
//! Invariants: nothing is committed and no group is joined; what a topic holds when the reading comes
//! to its end is read once. Limits: uncommitted messages are not read; one thread, as the source has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use engine::error::WorldError;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};

/// Longest wait for the brokers to say anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is done with each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Its bytes are counted.
    Count,
    /// Its value is parsed to a tree of `serde_json`.
    Parse,
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Read {
    /// Messages, those without a value included.
    pub messages: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Values that are no JSON; always 0 for [`Work::Count`].
    pub invalid: u64,
    /// From before the client is made to the last message.
    pub elapsed: Duration,
}

/// Reads a topic from its beginning to its end of that moment, as fast as librdkafka gives it.
///
/// Errors: brokers that do not answer within half a minute, a topic that is not there.
pub fn read_to_end(brokers: &str, topic: &str, work: Work) -> Result<Read, WorldError> {
    read(brokers, topic, work).map_err(|error| WorldError::Service {
        service: format!("Kafka at {brokers}"),
        detail: error.to_string(),
        is_transient: true,
    })
}

fn read(brokers: &str, topic: &str, work: Work) -> KafkaResult<Read> {
    let begun = Instant::now();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("client.id", "headwater-probe")
        // Asked for by the client, and never joined.
        .set("group.id", "headwater-probe")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("allow.auto.create.topics", "false")
        .set("enable.partition.eof", "true")
        // Its default of a second is a pause whenever the reader was slower than the fetching.
        .set("fetch.queue.backoff.ms", "20")
        .create()?;
    let mut left = assign(&consumer, topic)?;
    let mut out = Read::default();
    let mut heard = Instant::now();
    while !left.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            None if heard.elapsed() > PATIENCE => {
                let code = RDKafkaErrorCode::OperationTimedOut;
                return Err(KafkaError::MessageConsumption(code));
            }
            None => continue,
            // A log may end with offsets that are no messages: the marks of transactions.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
            }
            Some(Err(error)) => return Err(error),
            Some(Ok(message)) => {
                out.messages += 1;
                out.bytes += (message.key_len() + message.payload_len()) as u64;
                out.invalid += u64::from(!do_work(work, message.payload()));
                // Being told of the end takes another fetch, which waits for half a second.
                let partition = message.partition();
                let end = left.get(&partition);
                if end.is_some_and(|end| message.offset() + 1 >= *end) {
                    left.remove(&partition);
                }
            }
        }
        heard = Instant::now();
    }
    out.elapsed = begun.elapsed();
    Ok(out)
}

/// Assigns all partitions from their beginning; the ends of those that hold something.
fn assign(consumer: &BaseConsumer, topic: &str) -> KafkaResult<BTreeMap<i32, i64>> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let mut list = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for found in metadata.topics() {
        if let Some(error) = found.error() {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        for partition in found.partitions() {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE)?;
            list.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
            if low < high {
                ends.insert(partition.id(), high);
            }
        }
    }
    consumer.assign(&list)?;
    Ok(ends)
}

/// Whether the value is what it is read as.
fn do_work(work: Work, value: Option<&[u8]>) -> bool {
    let Some(value) = value else { return true };
    match work {
        Work::Count => true,
        Work::Parse => {
            let parsed = serde_json::from_slice::<serde_json::Value>(value);
            std::hint::black_box(parsed).is_ok()
        }
    }
}
