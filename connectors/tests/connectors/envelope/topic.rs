//! One topic into one table: messages decoded and applied, the rows kept.

use std::collections::BTreeMap;

use connectors::envelope::table::{Applied, Delivery, LiveRows, Output, Table};
use connectors::envelope::{Decoded, Decoder, Envelope, Options, RawRecord};
use engine::model::{Column, Key, RowCodec, Schema, SqlType, Value};
use serde_json::{Value as Json, json};

/// Columns by name and type; those named in `key` are the key and NOT NULL.
pub fn schema(columns: &[(&str, SqlType)], key: &[&str]) -> Schema {
    let column = |(name, sql_type): &(&str, SqlType)| Column {
        nullable: !key.contains(name),
        ..Column::new(name, *sql_type)
    };
    let position = |name: &&str| {
        columns
            .iter()
            .position(|(column, _)| column == name)
            .unwrap()
    };
    Schema {
        columns: columns.iter().map(column).collect(),
        key: key.iter().map(position).collect(),
    }
}

/// `(id bigint PRIMARY KEY, title text, body text)`
pub fn tickets() -> Schema {
    let columns = [
        ("id", SqlType::Int8),
        ("title", SqlType::Text),
        ("body", SqlType::Text),
    ];
    schema(&columns, &["id"])
}

/// The rows of a table, as the layer above keeps them.
#[derive(Debug, Default)]
pub struct Rows(pub BTreeMap<Key, Vec<Value>>);

impl LiveRows for Rows {
    fn row(&self, key: &Key) -> Option<Vec<Value>> {
        self.0.get(key).cloned()
    }
}

impl Rows {
    pub fn take(&mut self, outputs: &[Output]) {
        for output in outputs {
            match output {
                Output::Upsert { key, values } => {
                    self.0.insert(key.clone(), values.clone());
                }
                Output::Delete { key } => {
                    self.0.remove(key);
                }
                Output::Truncate { survivors } => self.0.retain(|key, _| survivors.contains(key)),
                Output::SnapshotStarted { .. } | Output::SnapshotEnded => {}
            }
        }
    }
}

/// One topic into one table.
pub struct Topic {
    pub decoder: Decoder,
    pub table: Table,
    pub rows: Rows,
    schema: Schema,
    offsets: BTreeMap<i32, i64>,
}

impl Topic {
    pub fn new(schema: Schema, envelope: Envelope, options: Options, partitions: usize) -> Topic {
        // Every row that comes out must be one that the engine can pack.
        RowCodec::new(schema.clone()).unwrap();
        Topic {
            decoder: Decoder::new(schema.clone(), envelope, options),
            table: Table::new(partitions),
            rows: Rows::default(),
            schema,
            offsets: BTreeMap::new(),
        }
    }

    pub fn debezium(schema: Schema) -> Topic {
        Topic::new(schema, Envelope::Debezium, Options::default(), 1)
    }

    /// The process ends and starts again: the decoder anew, the table from its checkpoint.
    pub fn restart(&mut self, envelope: Envelope, options: Options) {
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(&self.table, config).unwrap();
        self.table = bincode::serde::decode_from_slice(&bytes, config).unwrap().0;
        self.decoder = Decoder::new(self.schema.clone(), envelope, options);
    }

    /// Decodes a message at the next offset of its partition.
    pub fn decode(&mut self, partition: i32, message: &Message) -> Decoded {
        let offset = self.offsets.entry(partition).or_insert(-1);
        *offset += 1;
        let headers: Vec<(&str, Option<&[u8]>)> = message
            .headers
            .iter()
            .map(|(name, value)| (&**name, Some(value.as_bytes())))
            .collect();
        let decoded = self.decoder.decode(&RawRecord {
            key: message.key.as_deref().map(str::as_bytes),
            value: message.value.as_deref().map(str::as_bytes),
            headers: &headers,
            topic: "app.public.tickets",
            partition,
            offset: *offset,
            timestamp: Some(1_700_000_000_000),
        });
        decoded.expect("nothing to wait for")
    }

    /// Decodes a message, applies it and keeps the rows.
    pub fn send_to(&mut self, partition: i32, message: &Message) -> Applied {
        let decoded = self.decode(partition, message);
        let applied = self.table.apply(decoded, &self.rows);
        let codec = RowCodec::new(self.schema.clone()).unwrap();
        for output in &applied.outputs {
            if let Output::Upsert { values, .. } = output {
                assert_eq!(codec.unpack(&codec.pack(values)).len(), values.len());
            }
        }
        self.rows.take(&applied.outputs);
        applied
    }

    /// Whether a message from this partition comes for the first time.
    pub fn delivery(&mut self, partition: i32, message: &Message) -> Delivery {
        let decoded = self.decode(partition, message);
        self.table.delivery(&decoded)
    }

    /// As [`Topic::send_to`] partition 0; no letters are expected.
    pub fn send(&mut self, message: &Message) -> Applied {
        let applied = self.send_to(0, message);
        assert_eq!(applied.letters, []);
        applied
    }

    /// Sends what must be refused; the letter's text.
    pub fn refuse(&mut self, message: &Message) -> String {
        let applied = self.send_to(0, message);
        assert_eq!(applied.outputs, [], "{message:?}");
        assert_eq!(applied.letters.len(), 1, "{applied:?}");
        let letter = &applied.letters[0];
        format!("{}: {}", letter.code, letter.detail)
    }

    /// The rows as JSON, in the order of their keys.
    pub fn json(&self) -> Json {
        let row = |values: &Vec<Value>| -> Json {
            std::iter::zip(&self.schema.columns, values)
                .map(|(column, value)| value.to_json(column.sql_type))
                .collect()
        };
        self.rows.0.values().map(row).collect()
    }
}

/// One message, as text.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<(String, String)>,
}

impl Message {
    pub fn new(key: Json, value: Json) -> Message {
        Message {
            key: Some(key.to_string()),
            value: Some(value.to_string()),
            headers: Vec::new(),
        }
    }

    pub fn tombstone(key: Json) -> Message {
        Message {
            key: Some(key.to_string()),
            ..Message::default()
        }
    }

    pub fn header(mut self, name: &str, value: Json) -> Message {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A `source` block of the PostgreSQL connector, streaming.
pub fn streamed(commit: u64, lsn: u64) -> Json {
    json!({
        "version": "3.3.1.Final", "connector": "postgresql", "name": "app", "db": "app",
        "schema": "public", "table": "tickets", "snapshot": "false", "txId": 750, "lsn": lsn,
        "sequence": format!("[\"{commit}\",\"{lsn}\"]"), "ts_ms": 1_763_719_200_000_u64, "xmin": null,
    })
}

/// A `source` block of a snapshot's read.
pub fn snapshot(phase: &str, lsn: u64) -> Json {
    let mut source = streamed(0, lsn);
    source["snapshot"] = json!(phase);
    source["sequence"] = json!(format!("[null,\"{lsn}\"]"));
    source
}

/// A Debezium event without schemas; the key is `after`'s or `before`'s `id`.
pub fn event(op: &str, before: Json, after: Json, source: Json) -> Message {
    let row = if after.is_null() { &before } else { &after };
    let key = json!({"id": row["id"]});
    let value = json!({
        "before": before, "after": after, "source": source, "op": op,
        "ts_ms": 1_763_719_200_123_u64, "transaction": null,
    });
    Message::new(key, value)
}
