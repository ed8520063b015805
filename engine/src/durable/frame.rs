//! Frames: how one record lies in a file, and how damage is told from a crash.
//!
//! ```text
//!  byte  0        4        8        12     13     14
//!        ┌────────┬────────┬────────┬──────┬──────┬───────────────────┐
//!        │ length │ crc32  │ synced │ kind │ ver. │ payload           │   all numbers little endian
//!        │ u32    │ u32    │ u32    │ u8   │ u8   │ `length` bytes    │
//!        └────────┴────────┴────────┴──────┴──────┴───────────────────┘
//!  length   bytes of the payload, without the header
//!  crc32    CRC-32 (IEEE) over length, synced, kind, version and payload
//!  synced   how many bytes of this file were known to be durable when the frame was written
//!  kind     which record, 1…; 0 is never written, so that zeroed blocks are not frames
//!  version  of the payload's format: 2 (1: before dead letters had keys and counts)
//! ```
//!
//! A file is a row of frames. After a crash its tail may be anything: a part of the last group,
//! holes of zeros where a page was never written, even whole valid frames behind such a hole. That
//! is a *torn tail* and is cut off. The same sight in the middle of the file is *damage* and must
//! stop the start. `synced` tells them apart: when a frame cannot be read at offset `o` and any
//! readable frame behind it says `synced > o`, then `o` was durable once, and its bytes were lost
//! later. A whole frame of another version is damage too: it is never cut off, whoever finds it.
//! Only damage to the very last group, which no later group vouches for, looks like a crash.
//!
//! Limits: a payload is at most [`RECORD_BYTES_MAX`]; a file less than 4 GiB.

use crate::limits::RECORD_BYTES_MAX;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 14;
/// The payload format that this program writes and reads.
pub const FORMAT_VERSION: u8 = 3;

/// One readable frame at the start of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which record.
    pub kind: u8,
    /// See the module's picture.
    pub synced: u64,
    /// The record's bytes.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Why no frame could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// The frame, if it is one, needs this many bytes.
    Short(usize),
    /// The bytes are not a frame; what is wrong.
    Bad(String),
    /// A whole frame of another version of the format.
    Version(u8),
}

/// Appends a frame to `out`.
///
/// # Panics
/// When the payload is larger than [`RECORD_BYTES_MAX`] or the file larger than 4 GiB: bodies and
/// segments are bounded far below.
pub fn encode(out: &mut Vec<u8>, synced: u64, kind: u8, payload: &[u8]) {
    encode_header(out, synced, kind, payload);
    out.extend_from_slice(payload);
}

/// Appends a frame's header to `out`; the payload is to follow it.
///
/// # Panics
/// As [`encode`] does.
pub fn encode_header(out: &mut Vec<u8>, synced: u64, kind: u8, payload: &[u8]) {
    assert!(
        payload.len() <= RECORD_BYTES_MAX,
        "a record of {} bytes",
        payload.len()
    );
    assert_ne!(kind, 0, "kind 0 stands for zeroed bytes");
    let length = (payload.len() as u32).to_le_bytes();
    let synced = u32::try_from(synced).expect("a file of frames is smaller than 4 GiB");
    let mut rest = [0; 6];
    rest[..4].copy_from_slice(&synced.to_le_bytes());
    rest[4] = kind;
    rest[5] = FORMAT_VERSION;
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(&length, &rest, payload).to_le_bytes());
    out.extend_from_slice(&rest);
}

/// Reads the frame at the start of `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, Unreadable> {
    if bytes.len() < HEADER_BYTES {
        return Err(Unreadable::Short(HEADER_BYTES));
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (length, kind, version) = (word(0) as usize, bytes[12], bytes[13]);
    if kind == 0 || length > RECORD_BYTES_MAX {
        return Err(Unreadable::Bad(format!(
            "no frame starts here (kind {kind})"
        )));
    }
    let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + length) else {
        return Err(Unreadable::Short(HEADER_BYTES + length));
    };
    let (found, computed) = (word(4), checksum(&bytes[..4], &bytes[8..14], payload));
    if found != computed {
        return Err(Unreadable::Bad(format!(
            "checksum is {found:08x}, its bytes give {computed:08x}"
        )));
    }
    if version != FORMAT_VERSION {
        return Err(Unreadable::Version(version));
    }
    Ok(Frame {
        kind,
        synced: u64::from(word(8)),
        payload,
    })
}

/// What ends a file of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// The last frame ends where the file ends.
    Clean,
    /// A crash left something unreadable from this offset on; cut it off.
    Torn(u64),
    /// Bytes that were durable cannot be read: where, and what is wrong.
    Damaged(u64, String),
}

/// Judges what follows the last readable frame. `tail` are all bytes of the file from `offset`.
///
/// Cost: linear in the tail, which is one group after a crash and at most a segment.
pub fn judge_tail(tail: &[u8], offset: u64) -> Tail {
    let wrong = match decode(tail) {
        _ if tail.is_empty() => return Tail::Clean,
        Ok(_) => panic!("judge_tail is called where no frame can be read"),
        Err(Unreadable::Bad(detail)) => detail,
        Err(Unreadable::Version(version)) => {
            let detail = format!(
                "format version {version}, but this program reads {FORMAT_VERSION}: use the program \
                 that wrote it, or begin with an empty data folder"
            );
            return Tail::Damaged(offset, detail);
        }
        Err(Unreadable::Short(needed)) => {
            format!(
                "a frame of {needed} bytes, but the file ends after {}",
                tail.len()
            )
        }
    };
    let vouched =
        (1..tail.len()).any(|skip| decode(&tail[skip..]).is_ok_and(|frame| frame.synced > offset));
    if vouched {
        Tail::Damaged(offset, wrong)
    } else {
        Tail::Torn(offset)
    }
}

fn checksum(length: &[u8], rest: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(rest);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_another_version_is_never_cut_off() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 0, 3, b"of another time");
        bytes[13] = 1;
        let crc = checksum(&bytes[..4], &bytes[8..14], &bytes[14..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(Unreadable::Version(1)));
        let Tail::Damaged(0, detail) = judge_tail(&bytes, 0) else {
            panic!("it is damage");
        };
        assert!(detail.starts_with("format version 1, but"), "{detail}");
    }

    fn file_of(groups: &[&[&[u8]]]) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut starts) = (Vec::new(), Vec::new());
        for group in groups {
            let synced = out.len() as u64;
            for payload in *group {
                starts.push(out.len());
                encode(&mut out, synced, 3, payload);
            }
        }
        (out, starts)
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (bytes, _) = file_of(&[&[b"live retrieval"]]);
        assert_eq!(decode(&bytes).unwrap().payload, b"live retrieval");
        for cut in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..cut]), Err(Unreadable::Short(_))));
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn damage_below_a_later_group_is_told_from_a_torn_group() {
        let (bytes, starts) = file_of(&[&[b"a", b"b"], &[b"c", b"d", b"e"], &[b"f"]]);
        for (i, start) in starts.iter().enumerate() {
            let mut bad = bytes.clone();
            bad[*start..*start + HEADER_BYTES].fill(0);
            let at = *start as u64;
            match judge_tail(&bad[*start..], at) {
                // Groups one and two are vouched for by the next group.
                Tail::Damaged(offset, _) => assert!(i < 5 && offset == at, "frame {i}"),
                Tail::Torn(offset) => assert!(i == 5 && offset == at, "frame {i}"),
                Tail::Clean => panic!("frame {i}"),
            }
        }
        // A hole in the last group, with a whole frame behind it, is a torn group all the same.
        let (mut bytes, starts) = file_of(&[&[b"a"], &[b"c", b"d", b"e"]]);
        bytes[starts[2]..starts[3]].fill(0);
        assert_eq!(
            judge_tail(&bytes[starts[2]..], starts[2] as u64),
            Tail::Torn(starts[2] as u64)
        );
    }
}
