//! MongoDB's documents: text in extended JSON, as rows.
//!
//! MongoDB's connector sends `after` and the key as JSON *text* in which types that JSON lacks are objects
//! of one member (`{"$oid":"…"}`, `{"$numberLong":"7"}`). Here they become the values that columns read;
//! what has no column type (regular expressions, code, timestamps of the log) stays as it is, for
//! JSONB.
//!
//! Limits: an update needs its whole document (`capture.mode=change_streams_update_full`): one with an
//! `updateDescription` alone cannot be applied without the rules of MongoDB's update operators.

use std::borrow::Cow;

use engine::error::DataError;

use crate::envelope::row::Layout;
use crate::format::{Node, Payload, json};

/// The document of an image.
pub(super) fn of(image: &Node<'_>, what: &str) -> Result<Node<'static>, DataError> {
    match image.as_str() {
        Some(text) => json::parse(text.as_bytes(), what).map(|node| plain(&node)),
        None => Ok(plain(image)),
    }
}

/// The key of a message `{"id":"{\"$oid\":…}"}`, for a source whose key is `_id`.
pub(super) fn key(layout: &Layout, payload: &Payload<'_>) -> Option<Payload<'static>> {
    let mut columns = layout.key_columns();
    let is_own = columns.next().is_some_and(|column| column.name == "_id");
    let Node::Object(members) = &payload.node else {
        return None;
    };
    let [(name, Node::Text(text))] = &members[..] else {
        return None;
    };
    if !is_own || columns.next().is_some() || name != "id" {
        return None;
    }
    let node = json::parse(text.as_bytes(), "key").ok()?;
    Some(Payload {
        schema: None,
        node: plain(&node),
    })
}

/// The error for an update that does not tell its document.
pub(super) fn missing() -> DataError {
    DataError::new(
        "missing-image",
        "an update of MongoDB has no \"after\", only what changed",
    )
    .expected("the whole document")
    .hint("set the connector's capture.mode=change_streams_update_full, then take a snapshot")
}

/// A value without extended JSON's objects.
fn plain(node: &Node<'_>) -> Node<'static> {
    match node {
        Node::Null => Node::Null,
        Node::Bool(value) => Node::Bool(*value),
        Node::Number(text) => Node::Number(Cow::Owned(text.to_string())),
        Node::Int(value) => Node::Int(*value),
        Node::Float(value) => Node::Float(*value),
        Node::Text(text) => Node::Text(Cow::Owned(text.to_string())),
        Node::Bytes(bytes) => Node::Bytes(Cow::Owned(bytes.to_vec())),
        Node::Array(items) => Node::Array(items.iter().map(plain).collect()),
        Node::Branch(_, node) => plain(node),
        Node::Object(members) => {
            let own = match &members[..] {
                [(name, value)] if name.starts_with('$') => special(name, value),
                _ => None,
            };
            own.unwrap_or_else(|| {
                let member = |(name, value): &(Cow<'_, str>, Node<'_>)| {
                    (Cow::Owned(name.to_string()), plain(value))
                };
                Node::Object(members.iter().map(member).collect())
            })
        }
    }
}

/// `None`: it has no value of its own here.
fn special(name: &str, value: &Node<'_>) -> Option<Node<'static>> {
    let text = |text: &str| Some(Node::Text(Cow::Owned(text.to_owned())));
    match name {
        "$oid" | "$symbol" | "$uuid" => text(value.as_str()?),
        "$numberInt" | "$numberLong" | "$numberDouble" | "$numberDecimal" => {
            let digits = value.as_str()?;
            match digits.parse::<f64>() {
                // Names, and what no number of JSON is.
                Ok(number) if number.is_finite() && !digits.starts_with('+') => {
                    Some(Node::Number(Cow::Owned(digits.to_owned())))
                }
                _ => text(digits),
            }
        }
        "$date" => match value {
            Node::Text(time) => text(time),
            Node::Object(_) => match plain(value) {
                millis @ Node::Number(_) => special("$date", &millis),
                _ => None,
            },
            _ => {
                let micros = value.as_i64()?.checked_mul(1_000)?;
                text(&crate::envelope::types::time_text(micros)?)
            }
        },
        "$binary" => {
            let bytes = value.some("base64")?.as_str()?;
            text(bytes)
        }
        _ => None,
    }
}
