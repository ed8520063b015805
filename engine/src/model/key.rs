//! Document keys: canonical JSON text, so that they are stable on disk, ordered, hashable and
//! can be shown as they came.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// The key of a document within its source, as canonical JSON: the bare value of a one-column key
/// (`"T-1"`, `42`), an object with the columns in declared order otherwise.
///
/// Up to 23 bytes lie in the key itself: arrangements compare keys all the time, and each comparison
/// by a pointer would wait for memory. Longer ones are shared. A clone is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(SmolStr);

impl Default for Key {
    fn default() -> Self {
        Key(SmolStr::new_static("null"))
    }
}

impl Key {
    /// A key from one JSON value. Object members keep their order.
    pub fn from_json(value: &serde_json::Value) -> Key {
        Key(SmolStr::from(value.to_string()))
    }

    /// A key from JSON text that is canonical already (no white space, members in declared order).
    pub fn from_json_text(text: &str) -> Key {
        Key(SmolStr::new(text))
    }

    /// A key from a text column.
    pub fn text(text: &str) -> Key {
        Key(SmolStr::from(serde_json::Value::from(text).to_string()))
    }

    /// The canonical JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as a JSON value, for replies.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::from_str(&self.0).unwrap_or_else(|_| serde_json::Value::from(&*self.0))
    }

    /// A stable 64-bit hash: chooses the worker that owns the document. Equal in every process.
    pub fn shard_hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.0.as_bytes())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
