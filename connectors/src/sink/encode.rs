//! Changes as messages: the key, and the row or Debezium's event.
//!
//! | envelope | insert, update | delete |
//! |---|---|---|
//! | upsert | key, row | key, null |
//! | debezium | key, `{before, after, source, op, ts_ms}` | the same with op `d`; then key, null |
//!
//! Both formats say the same: an object (a record) of the key's columns, one of all columns.
//!
//! Invariants: equal changes are equal bytes, so that a partitioner puts a key where it was before;
//! members stand in the order of the columns. The times of an event are those of the change, not of
//! the writing: a change that is written again after a crash is the same.
//! Source: Debezium 3.3, `documentation/modules/ROOT/pages/connectors/postgresql.adoc`.

use std::sync::Arc;

use engine::contract::RowChange;
use engine::model::{Row, RowCodec, Time, Value};
use serde_json::Value as Json;

use super::Envelope;
use super::avro::{self, Avro};

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The key's columns.
    pub key: Vec<u8>,
    /// `None` deletes.
    pub value: Option<Vec<u8>>,
}

impl Message {
    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Makes messages of the rows of one collection.
pub struct Encoder {
    codec: Arc<RowCodec>,
    envelope: Envelope,
    /// The sink's and the collection's name, for `source`.
    sink: String,
    collection: String,
    avro: Option<Avro>,
}

/// What an event tells beside the rows.
pub(super) struct Event<'a> {
    /// `c`, `u`, `d`, `r`
    pub(super) op: &'static str,
    pub(super) is_snapshot: bool,
    pub(super) at: Time,
    pub(super) sink: &'a str,
    pub(super) collection: &'a str,
}

impl Event<'_> {
    pub(super) fn millis(&self) -> i64 {
        millis(self.at)
    }

    pub(super) fn micros(&self) -> i64 {
        i64::try_from(self.at).unwrap_or(i64::MAX)
    }

    /// The texts of `source` with their names, in order; its two times stand behind `name`.
    pub(super) fn snapshot(&self) -> &'static str {
        match self.is_snapshot {
            true => "true",
            false => "false",
        }
    }
}

/// A time in milliseconds since the epoch.
pub(super) fn millis(at: Time) -> i64 {
    i64::try_from(at / 1_000).unwrap_or(i64::MAX)
}

impl Encoder {
    /// An encoder to JSON.
    pub fn json(codec: Arc<RowCodec>, envelope: Envelope, sink: &str, collection: &str) -> Encoder {
        Encoder {
            codec,
            envelope,
            sink: sink.to_owned(),
            collection: collection.to_owned(),
            avro: None,
        }
    }

    /// The same to Avro, with the schemas' ids in a registry.
    pub fn with_avro(self, avro: Avro) -> Encoder {
        Encoder {
            avro: Some(avro),
            ..self
        }
    }

    /// The messages of a change, in order. `is_snapshot`: the row was there before the sink.
    pub fn encode(&self, change: &RowChange, is_snapshot: bool) -> Vec<Message> {
        let unpack = |row: &Option<Row>| row.as_ref().map(|row| self.codec.unpack(row));
        let (before, after) = (unpack(&change.before), unpack(&change.after));
        let Some(row) = after.as_ref().or(before.as_ref()) else {
            return Vec::new();
        };
        let key = self.key(row);
        let tombstone = |key| Message { key, value: None };
        match self.envelope {
            Envelope::Upsert => vec![Message {
                key,
                value: after.as_ref().map(|row| self.row(row)),
            }],
            Envelope::Debezium => {
                let op = match (&before, &after) {
                    (_, None) => "d",
                    _ if is_snapshot => "r",
                    (None, _) => "c",
                    _ => "u",
                };
                let event = Event {
                    op,
                    is_snapshot,
                    at: change.at,
                    sink: &self.sink,
                    collection: &self.collection,
                };
                let value = Some(self.event(&event, before.as_deref(), after.as_deref()));
                let mut messages = vec![Message {
                    key: key.clone(),
                    value,
                }];
                if after.is_none() {
                    messages.push(tombstone(key));
                }
                messages
            }
        }
    }

    fn key(&self, row: &[Value]) -> Vec<u8> {
        let schema = self.codec.schema();
        match &self.avro {
            Some(avro) => avro.key(schema, row),
            None => self.object(schema.key.iter().copied(), row).into_bytes(),
        }
    }

    fn row(&self, row: &[Value]) -> Vec<u8> {
        let schema = self.codec.schema();
        match &self.avro {
            Some(avro) => avro.row(schema, row),
            None => self.object(0..schema.columns.len(), row).into_bytes(),
        }
    }

    fn event(
        &self,
        event: &Event<'_>,
        before: Option<&[Value]>,
        after: Option<&[Value]>,
    ) -> Vec<u8> {
        if let Some(avro) = &self.avro {
            return avro.event(self.codec.schema(), event, before, after);
        }
        let all = 0..self.codec.schema().columns.len();
        let image = |row: Option<&[Value]>| match row {
            Some(row) => self.object(all.clone(), row),
            None => "null".to_owned(),
        };
        let text = |text: &str| Json::from(text).to_string();
        format!(
            "{{\"before\":{},\"after\":{},\"source\":{{\"version\":{},\"connector\":\"headwater\",\
             \"name\":{},\"ts_ms\":{millis},\"snapshot\":\"{}\",\"db\":\"headwater\",\"table\":{},\
             \"ts_us\":{}}},\"op\":\"{}\",\"ts_ms\":{millis}}}",
            image(before),
            image(after),
            text(avro::VERSION),
            text(event.sink),
            event.snapshot(),
            text(event.collection),
            event.micros(),
            event.op,
            millis = event.millis(),
        )
        .into_bytes()
    }

    /// Columns as the members of an object, in order.
    fn object(&self, columns: impl Iterator<Item = usize>, row: &[Value]) -> String {
        let schema = self.codec.schema();
        let mut out = String::from("{");
        for at in columns {
            let column = &schema.columns[at];
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&Json::from(&*column.name).to_string());
            out.push(':');
            out.push_str(&row[at].to_json(column.sql_type).to_string());
        }
        out.push('}');
        out
    }
}
