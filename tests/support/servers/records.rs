//! Kafka's record batches (format 2): written for tests, read for tests.
//!
//! **Limits.** Uncompressed batches only; a compressed one is an error. Records of aborted
//! transactions are given, too: this reads uncommitted.

use super::wire::{In, Out, length};

/// A key and a value to write.
pub type Pair<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The key as text; an absent one is empty.
    pub fn key_text(&self) -> String {
        text(self.key.as_deref())
    }

    /// The value as text; an absent one is empty.
    pub fn value_text(&self) -> String {
        text(self.value.as_deref())
    }

    /// The value as JSON; null when absent.
    ///
    /// # Panics
    /// When it is something else.
    pub fn value_json(&self) -> serde_json::Value {
        let value = self.value.as_deref().unwrap_or(b"null");
        serde_json::from_slice(value).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

/// Writes one batch.
pub fn encode(records: &[Pair], timestamp: i64) -> Vec<u8> {
    let count = length(records.len());
    // What the checksum covers.
    let mut body = Out::default();
    body.i16(0).i32(count - 1).i64(timestamp).i64(timestamp);
    body.i64(-1).i16(-1).i32(-1).i32(count);
    for (offset, (key, value)) in (0..).zip(records) {
        let mut record = Out::default();
        record.i8(0).varint(0).varint(offset);
        record.varbytes(*key).varbytes(*value).varint(0);
        body.varbytes(Some(&record.0));
    }
    let mut batch = Out::default();
    batch.i64(0).i32(length(body.0.len() + 9)).i32(-1).i8(2);
    batch.raw(&crc32c(&body.0).to_be_bytes()).raw(&body.0);
    batch.0
}

/// Records that were written together.
pub struct Batch {
    /// The offset of the last one.
    pub last: i64,
    /// Who wrote it.
    pub producer: i64,
    pub is_transactional: bool,
    /// The mark at the end of a transaction.
    pub is_control: bool,
    pub records: Vec<Record>,
}

/// Reads the records of a fetched partition; a last batch that was cut off is left out.
///
/// # Errors
/// When a batch is compressed or broken.
pub fn decode(partition: i32, bytes: Vec<u8>) -> Result<Vec<Record>, String> {
    let batches = batches(partition, bytes)?.into_iter();
    let batches = batches.filter(|batch| !batch.is_control);
    Ok(batches.flat_map(|batch| batch.records).collect())
}

/// Reads the batches of a fetched partition, the marks of transactions included.
///
/// # Errors
/// When a batch is compressed or broken.
pub fn batches(partition: i32, bytes: Vec<u8>) -> Result<Vec<Batch>, String> {
    let mut input = In::new(bytes);
    let mut out = Vec::new();
    while input.left() > 12 {
        let base = input.i64()?;
        let length = usize::try_from(input.i32()?).unwrap_or_default();
        if input.left() < length {
            break;
        }
        let mut batch = In::new(input.raw(length)?.to_vec());
        batch.raw(9)?;
        let attributes = batch.i16()?;
        if attributes & 7 != 0 {
            return Err(format!(
                "partition {partition}: a compressed batch at {base}"
            ));
        }
        let last = base + i64::from(batch.i32()?);
        let (first, newest) = (batch.i64()?, batch.i64()?);
        let producer = batch.i64()?;
        batch.raw(2 + 4)?;
        let mut records = batch.list(|batch| one(batch, partition, base, first))?;
        if attributes & 8 != 0 {
            // The topic has LogAppendTime: the broker's clock, not the writer's.
            let is_at = |record: &mut Record| record.timestamp = newest;
            records.iter_mut().for_each(is_at);
        }
        out.push(Batch {
            last,
            producer,
            is_transactional: attributes & 0x10 != 0,
            is_control: attributes & 0x20 != 0,
            records,
        });
    }
    Ok(out)
}

fn one(batch: &mut In, partition: i32, base: i64, first: i64) -> Result<Record, String> {
    let length = usize::try_from(batch.varint()?).unwrap_or_default();
    let mut record = In::new(batch.raw(length)?.to_vec());
    record.i8()?;
    let timestamp = first + record.varint()?;
    let offset = base + record.varint()?;
    let (key, value) = (record.varbytes()?, record.varbytes()?);
    let count = record.varint()?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = record.varbytes()?.unwrap_or_default();
        let name = String::from_utf8_lossy(&name).into_owned();
        headers.push((name, record.varbytes()?));
    }
    Ok(Record {
        partition,
        offset,
        timestamp,
        key,
        value,
        headers,
    })
}

/// CRC-32C, bit by bit: batches of tests are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let rest = bytes.iter().fold(u32::MAX, |mut rest, byte| {
        rest ^= u32::from(*byte);
        for _ in 0..8 {
            rest = (rest >> 1) ^ (0x82f6_3b78 & (rest & 1).wrapping_neg());
        }
        rest
    });
    !rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_batch_is_read_as_written() {
        let written = [(Some(&b"k"[..]), Some(&b"v"[..])), (Some(b"k"), None)];
        let read = decode(3, encode(&written, 1_700_000_000_000)).expect("a batch");
        assert_eq!(read.len(), 2);
        assert_eq!((read[1].partition, read[1].offset), (3, 1));
        assert_eq!(read[0].value_text(), "v");
        assert_eq!((read[1].key_text().as_str(), &read[1].value), ("k", &None));
    }
}
