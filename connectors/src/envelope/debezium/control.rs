//! Events that carry no row: transactions, heartbeats, logical messages, schema history.
//!
//! Told by their schema's name, else by members that no row event has.

use std::time::{Duration, UNIX_EPOCH};

use super::source::transaction_id;
use crate::arroyo::{SignalMessage, Watermark};
use crate::envelope::Marker;
use crate::format::{Node, Payload};

/// The marker of a control event; `None` for everything else.
pub(super) fn read(value: &Payload<'_>) -> Option<Marker> {
    let node = &value.node;
    let name = value
        .schema
        .as_ref()
        .and_then(|schema| schema.name.as_deref());
    let has_row = ["before", "after", "op"]
        .iter()
        .any(|name| node.get(name).is_some());
    if has_row {
        return None;
    }
    match name {
        Some("io.debezium.connector.common.TransactionMetadataValue") => transaction(node),
        Some("io.debezium.connector.common.Heartbeat") => Some(heartbeat(node)),
        Some(name) if name.ends_with(".SchemaChangeValue") => Some(schema_history(node)),
        Some(_) => None,
        None => by_members(node),
    }
}

fn by_members(node: &Node<'_>) -> Option<Marker> {
    let mut names: Vec<&str> = node.names().collect();
    names.sort_unstable();
    match names[..] {
        ["ts_ms"] => Some(heartbeat(node)),
        _ if names.contains(&"ddl") && names.contains(&"databaseName") => {
            Some(schema_history(node))
        }
        _ if names.contains(&"status") && names.contains(&"event_count") => transaction(node),
        _ => None,
    }
}

fn heartbeat(node: &Node<'_>) -> Marker {
    let millis = node.get("ts_ms").and_then(Node::as_u64);
    let at = millis.and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
    let watermark = at.map_or(Watermark::Idle, Watermark::EventTime);
    Marker::Signal(SignalMessage::Watermark(watermark))
}

fn schema_history(node: &Node<'_>) -> Marker {
    Marker::SchemaHistory {
        ddl: node.get("ddl").and_then(Node::as_str).map(str::to_owned),
    }
}

fn transaction(node: &Node<'_>) -> Option<Marker> {
    let id = transaction_id(node.get("id")?.as_str()?);
    match node.get("status")?.as_str()? {
        "BEGIN" => Some(Marker::TransactionBegin { id }),
        "END" => {
            let count = |node: &Node<'_>| node.get("event_count").and_then(Node::as_u64);
            let tables = match node.get("data_collections") {
                Some(Node::Array(tables)) => tables
                    .iter()
                    .filter_map(|table| {
                        let name = table.get("data_collection")?.as_str()?;
                        Some((name.to_owned(), count(table)?))
                    })
                    .collect(),
                _ => Vec::new(),
            };
            let events = count(node).unwrap_or(0);
            Some(Marker::TransactionEnd { id, events, tables })
        }
        _ => None,
    }
}

/// A logical decoding message: `"op":"m"`.
pub(super) fn message(node: &Node<'_>) -> Marker {
    let prefix = node
        .get("message")
        .and_then(|message| message.get("prefix"));
    Marker::Message {
        prefix: prefix.and_then(Node::as_str).unwrap_or_default().to_owned(),
    }
}
