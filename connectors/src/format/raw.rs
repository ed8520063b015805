//! Raw text: the whole key or value is one string.
//!
//! Invariant: the bytes are UTF-8, or the message is refused; nothing is replaced.

use std::borrow::Cow;

use engine::error::DataError;

use super::Node;

/// Reads UTF-8 text. `what` names the part of the message: `key`, `value`.
pub fn text<'a>(bytes: &'a [u8], what: &str) -> Result<Node<'a>, DataError> {
    utf8(bytes, what).map(|text| Node::Text(Cow::Borrowed(text)))
}

/// UTF-8 or an error with the byte (from 0) where it ends to be.
pub(super) fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, DataError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        DataError::new(
            "invalid-utf8",
            format!("the {what} is not UTF-8 at byte {at}"),
        )
        .expected("UTF-8")
    })
}
