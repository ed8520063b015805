//! Dead letters: bad data with its cause, place and payload, kept until it is good or too old.
//!
//! ```text
//!  source ─▶ DeadLetter ──┐                        ┌─▶ newest DEAD_LETTERS_MAX payloads a cause
//!  good row of its key ───┼─▶ LetterBook ──────────┤
//!  replay of a letter ────┘   (source, cause) ─────┴─▶ counts: seen, dropped, resolved, first, last
//! ```
//!
//! Idea: what is bad again in the same way (same source and cause, same key, or same place where no
//! key could be read) is one letter with a count. Its id is made of just that, so that it is the same
//! after a restart, on disk and in a person's notes.
//!
//! The same pure structure ([`LetterBook`]) is the running collection and what compaction keeps of the
//! log, so that both forget alike. Nothing here decodes: a payload goes back to the source's decoder
//! ([`Redecoded`]).

mod book;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::limits::DEAD_LETTER_PAYLOAD_BYTES_MAX;
use crate::model::{ContentHash, Key, Row};

pub use book::{CauseCounts, Kept, LetterBook, Listed};

/// Bad data with its cause, position and payload; listed and replayable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The source (or view) that it came from.
    pub source: String,
    /// Position in the source: a path, `users/3 offset 812`, `request r_… line 3`.
    pub position: String,
    /// The cause.
    pub error: DataError,
    /// What came, at most [`DEAD_LETTER_PAYLOAD_BYTES_MAX`].
    #[serde(with = "bytes")]
    pub payload: Vec<u8>,
    /// How many bytes came: more than the payload has when it was cut.
    pub bytes: u64,
    /// The row that it speaks of, where that could be read: a later good record of it resolves the
    /// letter.
    pub key: Option<Key>,
    /// What a replay needs beside the payload, in the source's own encoding.
    #[serde(with = "bytes")]
    pub context: Vec<u8>,
    /// Changes of its batch that came before it; not stored.
    #[serde(skip)]
    pub after: usize,
}

impl DeadLetter {
    /// A letter whose payload is cut to its limit. Without key and context.
    pub fn new(
        source: impl Into<String>,
        position: impl Into<String>,
        error: DataError,
        payload: &[u8],
    ) -> DeadLetter {
        let kept = payload.len().min(DEAD_LETTER_PAYLOAD_BYTES_MAX);
        DeadLetter {
            source: source.into(),
            position: position.into(),
            error,
            payload: payload[..kept].to_vec(),
            bytes: payload.len() as u64,
            key: None,
            context: Vec::new(),
            after: 0,
        }
    }

    /// Names the row that it speaks of.
    pub fn key(mut self, key: Option<Key>) -> DeadLetter {
        self.key = key;
        self
    }

    /// Says how many changes of its batch came before it.
    pub fn after(mut self, changes: usize) -> DeadLetter {
        self.after = changes;
        self
    }

    /// Whether the payload is all that came.
    pub fn is_whole(&self) -> bool {
        self.payload.len() as u64 == self.bytes
    }

    /// What tells it from other letters: source and cause with the key, or the position where there
    /// is no key.
    pub fn id(&self) -> LetterId {
        let (kind, name) = match &self.key {
            Some(key) => ("key", key.as_str()),
            None => ("at", &*self.position),
        };
        let text = [&*self.source, &*self.error.code, kind, name].join("\0");
        let hash = ContentHash::of(text.as_bytes()).0;
        let low: [u8; 8] = hash[..8].try_into().expect("eight of sixteen bytes");
        LetterId(u64::from_le_bytes(low) >> 16)
    }

    /// Memory of it, roughly.
    pub(crate) fn cost(&self) -> usize {
        let key = self.key.as_ref().map_or(0, |key| key.as_str().len());
        let error = &self.error;
        let texts = error.detail.len() + self.position.len() + self.source.len() + key;
        self.payload.len() + self.context.len() + texts + 256
    }
}

/// Bytes as one piece: serde would visit a `Vec<u8>` byte by byte, and floods are logged.
mod bytes {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }

        from.deserialize_byte_buf(Bytes)
    }
}

/// Names a letter, also after a restart: `d_` and twelve hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LetterId(u64);

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d_{:012x}", self.0)
    }
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("d_").filter(|digits| digits.len() == 12);
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let number = number.ok_or_else(|| format!("\"{text}\" is no id of a dead letter"))?;
        Ok(LetterId(number))
    }
}

/// What a letter's payload comes to when its source decodes it again.
#[derive(Debug, Clone, PartialEq)]
pub enum Redecoded {
    /// Rows that are good now.
    Good {
        /// The lane that they belong to.
        lane: String,
        /// `(key, row, version)`, as in [`crate::contract::SourceBatch::changes`].
        changes: Vec<(Key, Option<Row>, Option<u64>)>,
    },
    /// It is still bad.
    StillBad(DataError),
    /// It cannot be decoded by itself; why.
    Refused(String),
}

#[cfg(test)]
mod tests;
