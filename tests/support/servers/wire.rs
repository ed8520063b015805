//! Kafka's protocol, as little of it as tests need.
//!
//! **Idea.** Every request here has an old version without tagged fields that Kafka 4 still serves;
//! those are a page of code, answer at once, and need no Java start and no client library.
//!
//! **Limits.** No TLS, no SASL: tests of those use the real client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Requests by number.
pub mod api {
    pub const PRODUCE: i16 = 0;
    pub const FETCH: i16 = 1;
    pub const LIST_OFFSETS: i16 = 2;
    pub const METADATA: i16 = 3;
    pub const CREATE_TOPICS: i16 = 19;
    pub const DELETE_TOPICS: i16 = 20;
    pub const DELETE_RECORDS: i16 = 21;
    pub const CREATE_PARTITIONS: i16 = 37;
    pub const INCREMENTAL_ALTER_CONFIGS: i16 = 44;
}

/// One open connection.
pub struct Connection {
    stream: TcpStream,
    correlation: i32,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(address: &str) -> Result<Connection, String> {
        let failed = |error: std::io::Error| format!("Kafka at {address}: {error}");
        let stream = TcpStream::connect(address).map_err(failed)?;
        let limit = Some(Duration::from_secs(90));
        stream.set_read_timeout(limit).map_err(failed)?;
        stream.set_write_timeout(limit).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Connection {
            stream,
            correlation: 0,
        })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn call(&mut self, key: i16, version: i16, body: &Out) -> Result<In, String> {
        self.correlation += 1;
        let mut head = Out::default();
        head.i16(key).i16(version).i32(self.correlation);
        head.text("headwater-tests");
        let length = length(head.0.len() + body.0.len());
        let failed = |error: std::io::Error| format!("Kafka, request {key}: {error}");
        let frame = [&length.to_be_bytes()[..], &head.0, &body.0].concat();
        self.stream.write_all(&frame).map_err(failed)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap_or_default()];
        self.stream.read_exact(&mut bytes).map_err(failed)?;
        let mut answer = In { bytes, at: 0 };
        let correlation = answer.i32()?;
        if correlation != self.correlation {
            return Err(format!("Kafka, request {key}: answer {correlation}"));
        }
        Ok(answer)
    }
}

/// A body to send.
#[derive(Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn i8(&mut self, value: i8) -> &mut Out {
        self.raw(&value.to_be_bytes())
    }

    pub fn i16(&mut self, value: i16) -> &mut Out {
        self.raw(&value.to_be_bytes())
    }

    pub fn i32(&mut self, value: i32) -> &mut Out {
        self.raw(&value.to_be_bytes())
    }

    pub fn i64(&mut self, value: i64) -> &mut Out {
        self.raw(&value.to_be_bytes())
    }

    pub fn text(&mut self, value: &str) -> &mut Out {
        let length = i16::try_from(value.len()).expect("a short name");
        self.i16(length).raw(value.as_bytes())
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Out {
        self.i32(length(value.len())).raw(value)
    }

    pub fn raw(&mut self, value: &[u8]) -> &mut Out {
        self.0.extend_from_slice(value);
        self
    }

    /// A number in zigzag form, as records have it.
    pub fn varint(&mut self, value: i64) -> &mut Out {
        let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while rest >= 0x80 {
            self.0.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
        self
    }

    /// Bytes behind their length in zigzag form; -1 is none.
    pub fn varbytes(&mut self, value: Option<&[u8]>) -> &mut Out {
        match value {
            None => self.varint(-1),
            Some(value) => self.varint(i64::from(length(value.len()))).raw(value),
        }
    }
}

/// An answer, read from its start.
pub struct In {
    bytes: Vec<u8>,
    at: usize,
}

impl In {
    /// Reads bytes that came inside another answer.
    pub fn new(bytes: Vec<u8>) -> In {
        In { bytes, at: 0 }
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn raw(&mut self, count: usize) -> Result<&[u8], String> {
        let all = &self.bytes[self.at..];
        let part = all.get(..count);
        let part = part.ok_or_else(|| format!("Kafka: {count} bytes of {} left", all.len()))?;
        self.at += count;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let part = self.raw(N)?;
        Ok(part.try_into().expect("N bytes"))
    }

    pub fn i8(&mut self) -> Result<i8, String> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub fn i16(&mut self) -> Result<i16, String> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub fn i32(&mut self) -> Result<i32, String> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, String> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A text; none is empty.
    pub fn text(&mut self) -> Result<String, String> {
        let length = usize::try_from(self.i16()?).unwrap_or_default();
        Ok(String::from_utf8_lossy(self.raw(length)?).into_owned())
    }

    /// Bytes behind their length; none is empty.
    pub fn bytes(&mut self) -> Result<Vec<u8>, String> {
        let length = usize::try_from(self.i32()?).unwrap_or_default();
        Ok(self.raw(length)?.to_vec())
    }

    /// An array: `read` for each element.
    pub fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut In) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let count = self.i32()?;
        (0..count).map(|_| read(self)).collect()
    }

    pub fn varint(&mut self) -> Result<i64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.raw(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
            }
        }
        Err("Kafka: a number that does not end".to_owned())
    }

    pub fn varbytes(&mut self) -> Result<Option<Vec<u8>>, String> {
        match usize::try_from(self.varint()?) {
            Ok(length) => Ok(Some(self.raw(length)?.to_vec())),
            Err(_) => Ok(None),
        }
    }
}

/// A length as the protocol has it.
pub fn length(count: usize) -> i32 {
    i32::try_from(count).expect("far below 2 GB")
}
