//! A file of vectors: a header and fixed-size slots of one model.
//!
//! ```text
//!  header, 64 bytes                                    slot, 32 + 4·dims bytes
//!   0  magic    "hwvector"                              0  id       u64   the VectorRef, never reused
//!   8  version  u32, 1                                  8  content  16    hash of the text
//!  12  dims     u32                                    24  synced   u32   slots durable before this one
//!  16  model    16                                     28  crc32    u32   over all other bytes
//!  32  next_id  u64   no id below it is in later files 32  vector   dims × f32
//!  40  sealed   u8    1: written as a whole
//!  41  zeros                                           all numbers little endian
//!  60  crc32    u32   over bytes 0..60
//! ```
//!
//! As in the log, `synced` tells a torn end from damage (see [`super::frame`]): an unreadable slot
//! that a later one calls durable was lost by the disk.

use std::sync::Arc;

use super::record::corrupt;
use crate::contract::Store;
use crate::error::WorldError;
use crate::model::{ContentHash, ModelId};

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 64;
const SLOT_HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"hwvector";
const VERSION: u32 = 1;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub model: ModelId,
    pub dimensions: u32,
    pub next_id: u64,
    pub is_sealed: bool,
}

/// One slot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub id: u64,
    pub content: ContentHash,
    pub synced: u32,
    pub vector: Arc<[f32]>,
}

/// The file of a number.
pub(super) fn file_name(number: u64) -> String {
    format!("vectors-{number:010}.hwv")
}

/// The number of a file, if it is one of ours.
pub(super) fn file_number(name: &str) -> Option<u64> {
    name.strip_prefix("vectors-")?
        .strip_suffix(".hwv")?
        .parse()
        .ok()
}

/// Bytes of one slot.
pub(super) fn slot_bytes(dimensions: u32) -> usize {
    SLOT_HEADER_BYTES + 4 * dimensions as usize
}

/// Where a slot starts.
pub(super) fn slot_offset(dimensions: u32, slot: u32) -> u64 {
    HEADER_BYTES as u64 + u64::from(slot) * slot_bytes(dimensions) as u64
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the length is N")
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.dimensions.to_le_bytes());
        out.extend_from_slice(&self.model.0);
        out.extend_from_slice(&self.next_id.to_le_bytes());
        out.push(u8::from(self.is_sealed));
        out.resize(HEADER_BYTES - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of a file. Files begin to exist with their header, so a bad one is damage.
    pub fn load(store: &dyn Store, name: &str) -> Result<Header, WorldError> {
        let bytes = store.read_at(name, 0, HEADER_BYTES)?;
        if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
            return Err(corrupt(name, 0, "not a file of vectors"));
        }
        if u32::from_le_bytes(array(&bytes, 60)) != crc32fast::hash(&bytes[..60]) {
            return Err(corrupt(name, 0, "the header does not pass its checksum"));
        }
        let version = u32::from_le_bytes(array(&bytes, 8));
        if version != VERSION {
            let detail = format!("format version {version}, but this program reads {VERSION}");
            return Err(corrupt(name, 8, detail));
        }
        Ok(Header {
            dimensions: u32::from_le_bytes(array(&bytes, 12)),
            model: ModelId(array(&bytes, 16)),
            next_id: u64::from_le_bytes(array(&bytes, 32)),
            is_sealed: bytes[40] == 1,
        })
    }
}

impl Slot {
    /// Appends the slot's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.content.0);
        out.extend_from_slice(&self.synced.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend(self.vector.iter().flat_map(|x| x.to_le_bytes()));
        let crc = slot_checksum(&out[start..]);
        out[start + 28..start + 32].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a slot of exactly its size; `None` when its checksum is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Slot> {
        if bytes.len() < SLOT_HEADER_BYTES
            || u32::from_le_bytes(array(bytes, 28)) != slot_checksum(bytes)
        {
            return None;
        }
        let floats = bytes[SLOT_HEADER_BYTES..].chunks_exact(4);
        Some(Slot {
            id: u64::from_le_bytes(array(bytes, 0)),
            content: ContentHash(array(bytes, 8)),
            synced: u32::from_le_bytes(array(bytes, 24)),
            vector: floats.map(|x| f32::from_le_bytes(array(x, 0))).collect(),
        })
    }

    /// Reads one slot of a file.
    pub fn load(
        store: &dyn Store,
        name: &str,
        dimensions: u32,
        slot: u32,
    ) -> Result<Slot, WorldError> {
        let offset = slot_offset(dimensions, slot);
        let bytes = store.read_at(name, offset, slot_bytes(dimensions))?;
        Slot::decode(&bytes)
            .filter(|_| bytes.len() == slot_bytes(dimensions))
            .ok_or_else(|| corrupt(name, offset, "the vector does not pass its checksum"))
    }
}

fn slot_checksum(slot: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot[..28]);
    hasher.update(&slot[SLOT_HEADER_BYTES..]);
    // A slot of zeros must not pass: the crc of zeros is not zero, but say so.
    hasher.update(b"slot");
    hasher.finalize()
}

/// Reads all slots of a file in order and returns how many there are. Behind them may be a torn
/// end, when the file is not sealed. Cost: one sequential read.
pub(super) fn scan(
    store: &dyn Store,
    name: &str,
    header: &Header,
    mut each: impl FnMut(u32, Slot),
) -> Result<u32, WorldError> {
    const READ_BYTES: usize = 4 << 20;
    let size = slot_bytes(header.dimensions);
    let per_read = (READ_BYTES / size).max(1);
    let mut torn_at: Option<u32> = None;
    let mut slot = 0u32;
    loop {
        let bytes = store.read_at(name, slot_offset(header.dimensions, slot), per_read * size)?;
        for bytes in bytes.chunks(size) {
            let decoded = if bytes.len() == size {
                Slot::decode(bytes)
            } else {
                None
            };
            match (decoded, torn_at) {
                (Some(decoded), None) => each(slot, decoded),
                (Some(decoded), Some(torn)) if decoded.synced <= torn => {}
                (None, _) if !header.is_sealed => torn_at = torn_at.or(Some(slot)),
                (_, torn) => {
                    let offset = slot_offset(header.dimensions, torn.unwrap_or(slot));
                    return Err(corrupt(
                        name,
                        offset,
                        "the vector does not pass its checksum",
                    ));
                }
            }
            slot += 1;
        }
        if bytes.len() < per_read * size {
            return Ok(torn_at.unwrap_or(slot));
        }
    }
}
