//! The nouns of the engine: what flows, under names that every crate shares.
//!
//! ```text
//! Key ── one document ──▶ DocVersion { version, row } ──▶ ChunkPiece* ──▶ (ModelId, ContentHash) ──▶ vector
//! ```
//!
//! Invariants: a [`Key`] names one document of one source; at any sealed time it has at most one
//! live [`DocVersion`]; a [`ChunkId`] carries neither position nor version, so an inserted
//! paragraph changes no other chunk's id (DESIGN §2).

mod chunk;
mod floats;
mod key;
mod pack;
mod row;
mod schema;
mod value;

pub use chunk::{ChunkId, ChunkPiece, ContentHash, ModelId, VectorFact, VectorRef};
pub use floats::{floats_of_base64, floats_to_base64};
pub use key::Key;
pub use row::{Row, RowCodec, array_value, column_array};
pub use schema::{Column, Schema, SqlType};
pub use value::{Value, ValueError, preview, shorten};

use serde::{Deserialize, Serialize};

/// Engine time: microseconds since the epoch, made strictly increasing by the sequencer.
///
/// A plain `u64` because timely's traits are implemented for it; exact in JSON until 2255.
pub type Time = u64;

/// Identifies a declared object (source, view, model, index, cache) for as long as it lives.
///
/// Never reused: a dropped and re-created object has a new id.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
pub struct ObjectId(pub u32);

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "o{}", self.0)
    }
}

/// One change of one document, as it enters the engine: an upsert, or a delete (`row` is `None`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The document.
    pub key: Key,
    /// The new row, packed by the source's [`RowCodec`]; `None` deletes.
    pub row: Option<Row>,
    /// The source's own order for this key; strictly increasing along admitted changes of a key.
    pub version: u64,
}

impl Change {
    /// What the change counts for while it is staged or unsealed, bytes.
    pub(crate) fn staged_bytes(&self) -> usize {
        /// A version, a sequence, a place in a queue.
        const OVERHEAD: usize = 32;
        let row = self.row.as_ref().map_or(0, |row| row.as_bytes().len());
        self.key.as_str().len() + row + OVERHEAD
    }
}

/// The live value of a document: its row and the version that brought it.
///
/// Ordered by version first, so that the greatest of two simultaneous values is the newest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct DocVersion {
    /// See [`Change::version`].
    pub version: u64,
    /// The packed row.
    pub row: Row,
}
