//! Chunks and the facts about their vectors.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Key;

/// 128 bits of BLAKE3 over a chunk's text. Equal text, equal hash, whatever the document.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct ContentHash(pub [u8; 16]);

impl ContentHash {
    /// Hashes bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 16];
        out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        ContentHash(out)
    }
}

/// Identity of a model: 128 bits over weights, tokenizer, pooling, prompts and precision class,
/// never the device (DESIGN §4). Vectors of different models never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct ModelId(pub [u8; 16]);

/// Identity of a chunk: hash(document key, chunking strategy, content hash, occurrence number).
///
/// It carries no position and no version: an inserted paragraph changes no other chunk's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct ChunkId(pub [u8; 16]);

impl ChunkId {
    /// `strategy` is the canonical text of the chunking clause; `occurrence` counts equal contents
    /// within one document version, from 0, in text order.
    pub fn new(
        source: &str,
        key: &Key,
        strategy: &str,
        content: ContentHash,
        occurrence: u32,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [
            source.as_bytes(),
            key.as_str().as_bytes(),
            strategy.as_bytes(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(&content.0);
        hasher.update(&occurrence.to_le_bytes());
        let mut out = [0; 16];
        out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        ChunkId(out)
    }

    /// Parses the `c_…` form of replies.
    pub fn parse(text: &str) -> Option<Self> {
        parse_hex(text.strip_prefix("c_")?).map(ChunkId)
    }
}

fn parse_hex(hex: &str) -> Option<[u8; 16]> {
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    let mut out = [0; 16];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

macro_rules! hex_display {
    ($type:ty, $prefix:literal) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($prefix)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}
hex_display!(ContentHash, "h_");
hex_display!(ModelId, "m_");
hex_display!(ChunkId, "c_");

/// One piece of a document version, as a chunker cut it: where it stands and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkPiece {
    /// Bytes of the column's text, half open. `text[start..end]` *is* the chunk's text.
    pub range: (u32, u32),
    /// Hash of those bytes (the heading path is not part of it).
    pub content: ContentHash,
    /// Counts equal contents within this version, from 0.
    pub occurrence: u32,
    /// The enclosing headings, outermost first (markdown only).
    pub heading: Arc<[Arc<str>]>,
}

/// Where a vector lies in the embedding store: an index, never a pointer. Stable for the life of
/// the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VectorRef(pub u64);

/// A logged fact: from the tick that carries it on, `(model, content)` has this vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorFact {
    /// Which model.
    pub model: ModelId,
    /// Which text.
    pub content: ContentHash,
    /// Which vector.
    pub at: VectorRef,
}
