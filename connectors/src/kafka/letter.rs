//! What a dead letter keeps of its message, and the message decoded again.
//!
//! The payload is the message's value (of a tombstone: its key); key, headers, place and time travel
//! beside it, in the letter's context. A message of which a part was cut is not decoded again.

use engine::error::DeadLetter;
use engine::letters::Redecoded;
use engine::limits::DEAD_LETTER_PAYLOAD_BYTES_MAX;
use engine::model::RowCodec;
use serde::{Deserialize, Serialize};

use super::{KafkaSource, assignment, lane};
use crate::envelope::{Decoder, Envelope, RawRecord};

/// A message without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) timestamp: Option<i64>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) has_value: bool,
    pub(super) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Whether key and headers are all there.
    is_whole: bool,
}

impl Message {
    pub(super) fn of(record: &RawRecord<'_>) -> Message {
        let headers = record.headers.iter();
        let bytes = headers.map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
        let bytes = bytes.sum::<usize>() + record.key.map_or(0, <[u8]>::len);
        let is_whole = bytes <= DEAD_LETTER_PAYLOAD_BYTES_MAX;
        let owned =
            |(name, value): &(&str, Option<&[u8]>)| ((*name).to_owned(), value.map(<[u8]>::to_vec));
        Message {
            topic: record.topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.filter(|_| is_whole).map(<[u8]>::to_vec),
            has_value: record.value.is_some(),
            headers: match is_whole {
                true => record.headers.iter().map(owned).collect(),
                false => Vec::new(),
            },
            is_whole,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let encoded = bincode::serde::encode_to_vec(self, bincode::config::standard());
        encoded.expect("plain values")
    }

    /// The message of a letter; `None` of one that is about no message.
    pub(super) fn read(letter: &DeadLetter) -> Option<Message> {
        let decoded =
            bincode::serde::decode_from_slice(&letter.context, bincode::config::standard());
        decoded.ok().map(|(message, _)| message)
    }
}

impl KafkaSource {
    /// Decodes the message of a dead letter as this source decodes now.
    pub fn redecode(&self, letter: &DeadLetter) -> Redecoded {
        let refused = |reason: &str| Redecoded::Refused(reason.to_owned());
        let Some(message) = Message::read(letter) else {
            return refused("it is about a partition, not about a message");
        };
        if self.envelope == Envelope::Debezium {
            return refused(
                "a Debezium event changes the table in the source's order and may rely on the rows \
                 before it: write the row again in its database, or take an incremental snapshot",
            );
        }
        let topics = assignment::Topics::new(&self.options);
        if !topics.is_ok_and(|topics| topics.has(&message.topic)) {
            return Redecoded::Refused(format!("the source does not read topic {}", message.topic));
        }
        if !message.is_whole {
            return refused("its key and headers are too large to be kept");
        }
        if !letter.is_whole() {
            return Redecoded::Refused(format!(
                "only {} of its {} bytes are kept",
                letter.payload.len(),
                letter.bytes
            ));
        }
        self.decode_again(&message, letter)
    }

    fn decode_again(&self, message: &Message, letter: &DeadLetter) -> Redecoded {
        let headers: Vec<(&str, Option<&[u8]>)> = message
            .headers
            .iter()
            .map(|(name, value)| (&**name, value.as_deref()))
            .collect();
        let record = RawRecord {
            key: message.key.as_deref(),
            value: message.has_value.then_some(&*letter.payload),
            headers: &headers,
            topic: &message.topic,
            partition: message.partition,
            offset: message.offset,
            timestamp: message.timestamp,
        };
        let mut decoder = Decoder::new(self.schema.clone(), self.envelope, self.decoding.clone());
        let decoded = match decoder.decode(&record) {
            Ok(decoded) => decoded,
            Err(wait) => return Redecoded::Refused(format!("{}; try again later", wait.error)),
        };
        if let Some(error) = decoded.letters.into_iter().next() {
            return Redecoded::StillBad(error);
        }
        let codec = RowCodec::new(self.schema.clone()).expect("checked when the source was made");
        let mut changes = Vec::new();
        for change in decoded.changes {
            let row = match change.row {
                None => None,
                Some(row) => match row.complete() {
                    Some(values) => Some(codec.pack(&values)),
                    None => {
                        return Redecoded::Refused("not all of its values were sent".to_owned());
                    }
                },
            };
            changes.push((change.key, row, None));
        }
        let partition = (message.topic.clone(), message.partition);
        Redecoded::Good {
            lane: lane::lane_of(&partition, self.envelope),
            changes,
        }
    }
}
