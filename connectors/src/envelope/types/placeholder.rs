//! The unavailable-value placeholder in all its shapes.
//!
//! PostgreSQL does not log a TOAST value that an update left alone; Debezium sends a placeholder
//! in its stead (`unavailable.value.placeholder`): the text itself, its bytes, or for arrays and
//! hstore a value made from it. A column's declared type does not matter: whatever shape came, the
//! value is not there.
//!
//! Limits: the placeholder of a `uuid[]` is known for the default text only (it is a name-based
//! UUID), those of PostGIS types are not recognised.

use crate::format::Node;

use super::binary;

/// Debezium's default.
pub const DEFAULT: &str = "__debezium_unavailable_value";
/// The name-based UUID (version 3) of [`DEFAULT`].
const DEFAULT_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// Recognises placeholders.
#[derive(Debug, Clone)]
pub struct Placeholder {
    text: String,
    /// base64, base64-url-safe, hex: what JSON makes of the placeholder's bytes.
    encoded: [String; 3],
}

impl Placeholder {
    /// The shapes of a placeholder text.
    pub fn new(text: &str) -> Placeholder {
        let bytes = text.as_bytes();
        Placeholder {
            text: text.to_owned(),
            encoded: [
                binary::base64(bytes),
                binary::base64_url_safe(bytes),
                binary::hex(bytes),
            ],
        }
    }

    /// Whether a value stands for one that was not sent. `is_binary`: the column holds bytes.
    pub fn is(&self, node: &Node<'_>, is_binary: bool) -> bool {
        match node {
            Node::Text(text) => **text == *self.text || is_binary && self.is_encoded(text),
            Node::Bytes(bytes) => **bytes == *self.text.as_bytes(),
            Node::Array(items) => self.is_list(items),
            Node::Object(members) => match &members[..] {
                [(name, value)] => **name == *self.text && value.as_str() == Some(&*self.text),
                _ => false,
            },
            Node::Branch(_, node) => self.is(node, is_binary),
            Node::Null | Node::Bool(_) | Node::Number(_) | Node::Int(_) | Node::Float(_) => false,
        }
    }

    fn is_encoded(&self, text: &str) -> bool {
        self.encoded.iter().any(|encoded| encoded == text)
    }

    /// `["…"]`, `["…" in base64]`, `[uuid]`, or integers: the placeholder's bytes one by one.
    fn is_list(&self, items: &[Node<'_>]) -> bool {
        match items {
            [Node::Text(text)] => {
                **text == *self.text
                    || self.is_encoded(text)
                    || self.text == DEFAULT && text == DEFAULT_UUID
            }
            [Node::Bytes(bytes)] => **bytes == *self.text.as_bytes(),
            _ => {
                items.len() == self.text.len()
                    && std::iter::zip(items, self.text.bytes())
                        .all(|(item, byte)| item.as_i64() == Some(i64::from(byte)))
            }
        }
    }
}

impl Default for Placeholder {
    fn default() -> Self {
        Placeholder::new(DEFAULT)
    }
}
