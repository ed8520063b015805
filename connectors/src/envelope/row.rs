//! Rows and keys of one declared table from the nodes of a message.
//!
//! ```text
//! key ──── key columns ───┐
//! value ── other columns ─┼─▶ PartialRow: one Cell a column
//! record ─ metadata ──────┘
//! ```
//!
//! Invariants: a key column's value in the row is the key's; a column that the message lacks is NULL
//! or, if it may not be, an error; a field that is not declared is not read.

use std::sync::Arc;

use engine::error::DataError;
use engine::model::{Column, Key, Schema, SqlType, Value, shorten};
use serde_json::{Value as Json, json};

use super::types::{self, Cell, Rules};
use super::{Parts, RawRecord};
use crate::format::{ConnectSchema, Node, Payload};
use crate::key;

/// What a metadata column carries of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    /// The key's bytes (BYTEA), text (TEXT) or JSON (JSONB).
    Key,
    /// The time of the message (TIMESTAMPTZ, TIMESTAMP), or its milliseconds (BIGINT).
    Timestamp,
    /// JSONB: `[{"key":…,"value":…}]` in order; values that are not UTF-8 as base64.
    Headers,
    /// The topic.
    Topic,
    /// The partition.
    Partition,
    /// The offset.
    Offset,
}

/// A row of which some values may not have been sent.
#[derive(Debug, Clone, PartialEq)]
pub struct PartialRow {
    /// One a column, in declared order.
    pub cells: Vec<Cell>,
    /// The key under which values that were not sent can be found: the row's own, or its old one
    /// where this is the second half of a key change.
    pub take_from: Key,
}

impl PartialRow {
    /// All values, if all were sent.
    pub fn complete(&self) -> Option<Vec<Value>> {
        types::complete(self.cells.clone()).ok()
    }
}

/// The declared columns, and where each one's value is found.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) schema: Schema,
    metadata: Vec<Option<Metadata>>,
    pub(super) rules: Rules,
}

/// The values of the key columns, in the order of the schema's key, and the key they make.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowKey {
    pub(super) values: Vec<Value>,
    pub(super) key: Key,
}

impl Layout {
    pub(super) fn new(schema: Schema, chosen: Vec<(usize, Metadata)>, rules: Rules) -> Layout {
        let mut metadata = vec![None; schema.columns.len()];
        for (at, what) in chosen {
            metadata[at] = Some(what);
        }
        Layout {
            schema,
            metadata,
            rules,
        }
    }

    /// Whether a column's value comes from the message itself.
    pub(super) fn is_metadata(&self, at: usize) -> bool {
        self.metadata[at].is_some()
    }

    /// The key columns' names, as a person would declare them.
    pub(super) fn key_names(&self) -> String {
        let names: Vec<&str> = self.key_columns().map(|column| &*column.name).collect();
        names.join(", ")
    }

    pub(super) fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.schema.key.iter().map(|at| &self.schema.columns[*at])
    }

    /// The key of a message; `None` where it has none. A bare value is the key of one column; an
    /// object must have exactly the key columns.
    pub(super) fn message_key(
        &self,
        payload: &Payload<'_>,
        record: &RawRecord<'_>,
    ) -> Result<Option<RowKey>, DataError> {
        let is_bare = !matches!(payload.node, Node::Object(_));
        match &payload.node {
            Node::Null => Ok(None),
            Node::Object(members) => {
                let is_declared = |name: &str| self.key_columns().any(|column| column.name == name);
                let agrees = members.iter().all(|(name, _)| is_declared(name))
                    && self
                        .key_columns()
                        .all(|column| payload.node.get(&column.name).is_some());
                if !agrees {
                    let found: Vec<&str> = payload.node.names().collect();
                    return Err(self.key_differs(&found.join(", ")));
                }
                self.key_of(&payload.node, payload.schema.as_deref(), record)
                    .map(Some)
            }
            node if is_bare && self.schema.key.len() == 1 => {
                let column = &self.schema.columns[self.schema.key[0]];
                let value = types::value(node, payload.schema.as_deref(), column, &self.rules)?;
                self.row_key(vec![key::part(value, column)?]).map(Some)
            }
            _ => Err(self.key_differs("one bare value")),
        }
    }

    fn key_differs(&self, found: &str) -> DataError {
        let detail = format!(
            "the message's key has ({}); the source's key is ({})",
            shorten(found),
            self.key_names()
        );
        DataError::new("key-columns-differ", detail)
            .expected(self.key_names())
            .hint("declare the key that the messages carry (message.key.columns), and no other")
    }

    /// The key in the columns of a row.
    pub(super) fn key_of(
        &self,
        row: &Node<'_>,
        schema: Option<&ConnectSchema>,
        record: &RawRecord<'_>,
    ) -> Result<RowKey, DataError> {
        let mut values = Vec::with_capacity(self.schema.key.len());
        for at in &self.schema.key {
            let column = &self.schema.columns[*at];
            let value = match (self.metadata[*at], row.some(&column.name)) {
                (Some(what), _) => metadata(what, column, record)?,
                (None, None) => return Err(self.missing_key(&column.name)),
                (None, Some(node)) => {
                    let field = schema.and_then(|schema| schema.field(&column.name));
                    types::value(node, field, column, &self.rules)?
                }
            };
            values.push(key::part(value, column)?);
        }
        self.row_key(values)
    }

    /// The error for a row without a key column.
    pub(super) fn missing_key(&self, column: &str) -> DataError {
        DataError::new(
            "missing-key",
            format!("neither the key nor the row has \"{column}\""),
        )
        .expected(self.key_names())
        .hint("a table without a key needs one: a primary key, or message.key.columns")
    }

    fn row_key(&self, values: Vec<Value>) -> Result<RowKey, DataError> {
        let key = key::canonical(&self.schema, &values)?;
        Ok(RowKey { values, key })
    }

    /// One cell a column: key columns from the key, metadata from the record, others from `row`.
    pub(super) fn row(
        &self,
        row: &Node<'_>,
        schema: Option<&ConnectSchema>,
        key: &RowKey,
        take_from: Key,
        record: &RawRecord<'_>,
    ) -> Result<PartialRow, DataError> {
        let mut cells = Vec::with_capacity(self.schema.columns.len());
        for at in 0..self.schema.columns.len() {
            cells.push(match self.schema.key.iter().position(|key| *key == at) {
                Some(place) => Cell::Value(key.values[place].clone()),
                None => self.cell(at, row, schema, record)?,
            });
        }
        Ok(PartialRow { cells, take_from })
    }

    fn cell(
        &self,
        at: usize,
        row: &Node<'_>,
        schema: Option<&ConnectSchema>,
        record: &RawRecord<'_>,
    ) -> Result<Cell, DataError> {
        let column = &self.schema.columns[at];
        if let Some(what) = self.metadata[at] {
            return metadata(what, column, record).map(Cell::Value);
        }
        let (node, field) = match row {
            Node::Object(_) => (
                row.get(&column.name).unwrap_or(&Node::Null),
                schema.and_then(|schema| schema.field(&column.name)),
            ),
            whole => (whole, schema),
        };
        types::cell(node, field, column, &self.rules)
    }

    /// Whether a value that is no object can be a row: one column is left for it.
    pub(super) fn takes_bare_values(&self) -> bool {
        let is_data = |at: &usize| !self.is_metadata(*at) && !self.schema.key.contains(at);
        (0..self.schema.columns.len()).filter(is_data).count() == 1
    }

    /// Refuses values that are no rows.
    pub(super) fn check_shape(&self, parts: &Parts<'_>) -> Result<(), DataError> {
        match parts.value.node {
            Node::Object(_) => Ok(()),
            _ if self.takes_bare_values() => Ok(()),
            _ => Err(DataError::new(
                "wrong-type",
                format!("the value is {}", parts.value.node.shortened()),
            )
            .expected("an object with the columns")),
        }
    }
}

fn metadata(what: Metadata, column: &Column, record: &RawRecord<'_>) -> Result<Value, DataError> {
    let json = match what {
        Metadata::Key => match (record.key, column.sql_type) {
            (None, _) => return Ok(Value::Null),
            (Some(bytes), SqlType::Bytea) => return Ok(Value::Bytes(Arc::from(bytes))),
            (Some(bytes), SqlType::Jsonb) => crate::format::json::parse(bytes, "key")?.to_json(),
            (Some(bytes), _) => Json::from(String::from_utf8_lossy(bytes)),
        },
        Metadata::Timestamp => match (record.timestamp, column.sql_type) {
            (None, _) => return Ok(Value::Null),
            (Some(millis), SqlType::Int8) => Json::from(millis),
            (Some(millis), _) => return Ok(Value::Timestamp(millis.saturating_mul(1_000))),
        },
        Metadata::Headers => record.headers.iter().map(header_json).collect(),
        Metadata::Topic => Json::from(record.topic),
        Metadata::Partition => Json::from(record.partition),
        Metadata::Offset => Json::from(record.offset),
    };
    Value::from_json(&json, column).map_err(|error| {
        DataError::new("wrong-type", error.to_string()).expected(error.expected.clone())
    })
}

fn header_json((name, value): &(&str, Option<&[u8]>)) -> Json {
    let value = value.map(|bytes| match std::str::from_utf8(bytes) {
        Ok(text) => Json::from(text),
        Err(_) => Value::Bytes(Arc::from(bytes)).to_json(SqlType::Bytea),
    });
    json!({"key": name, "value": value})
}
