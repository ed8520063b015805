//! Document keys: canonical JSON text, so that they are stable on disk, ordered, hashable and
//! can be shown as they came.

use serde::{Deserialize, Serialize};
use smol_str::{SmolStr, SmolStrBuilder, format_smolstr};

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
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if !text.bytes().all(is_plain) {
            return Key(SmolStr::from(serde_json::Value::from(text).to_string()));
        }
        // As JSON has it, without an allocation for a short one.
        let mut key = SmolStrBuilder::new();
        key.push('"');
        key.push_str(text);
        key.push('"');
        Key(key.finish())
    }

    /// A key from a column of integers.
    pub fn int(value: i64) -> Key {
        Key(format_smolstr!("{value}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_columns_are_canonical_json() {
        let texts = [
            "",
            "T-1",
            "a \"b\"",
            "a\\b",
            "a\nb",
            "\u{7f}",
            "über",
            "a text of more than 23 bytes",
        ];
        for text in texts {
            assert_eq!(
                Key::text(text),
                Key::from_json(&serde_json::Value::from(text))
            );
        }
        for number in [0, -1, 42, i64::MIN, i64::MAX] {
            assert_eq!(
                Key::int(number),
                Key::from_json(&serde_json::Value::from(number))
            );
        }
    }
}
