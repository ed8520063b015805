//! A message that outlives librdkafka's buffer.

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers};

use crate::envelope::RawRecord;

/// Bytes of a message beside its key and value, about.
const OVERHEAD: usize = 200;

/// A message with all that a dead letter of it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    topic: String,
    partition: i32,
    offset: i64,
    timestamp: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// Copies a message.
    pub fn of(record: &RawRecord<'_>) -> Record {
        let owned =
            |(name, value): &(&str, Option<&[u8]>)| ((*name).to_owned(), value.map(<[u8]>::to_vec));
        Record {
            topic: record.topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(owned).collect(),
        }
    }

    /// Its partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Its offset.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// What it holds in memory, with what was decoded of it: about twice its bytes.
    pub fn bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, Vec::len);
        let value = self.value.as_ref().map_or(0, Vec::len);
        OVERHEAD + 2 * (key + value)
    }

    /// Gives the message as decoders read it.
    pub fn with_raw<R>(&self, read: impl FnOnce(&RawRecord<'_>) -> R) -> R {
        let headers: Vec<(&str, Option<&[u8]>)> = self
            .headers
            .iter()
            .map(|(name, value)| (&**name, value.as_deref()))
            .collect();
        read(&RawRecord {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
            topic: &self.topic,
            partition: self.partition,
            offset: self.offset,
            timestamp: self.timestamp,
        })
    }
}

/// Gives a message of librdkafka's as decoders read it.
pub(super) fn with_raw<R>(
    message: &BorrowedMessage<'_>,
    read: impl FnOnce(&RawRecord<'_>) -> R,
) -> R {
    let headers: Vec<(&str, Option<&[u8]>)> = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter())
        .map(|header| (header.key, header.value))
        .collect();
    read(&RawRecord {
        key: message.key(),
        value: message.payload(),
        headers: &headers,
        topic: message.topic(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
    })
}
