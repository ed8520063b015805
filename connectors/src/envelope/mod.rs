//! From messages to changes of rows: what a topic's envelope means.
//!
//! The idea: [`Decoder`] looks at one message alone and says everything that it *says*; what only
//! the history can tell (re-deliveries, values that were not sent) is left to [`table::Table`],
//! which sees the changes of one table in the order of their arrival.
//!
//! ```text
//! RawRecord ─ format::Reader ─▶ key, value ─┬ debezium ┐
//!                                           ├ upsert   ├─▶ Decoded { changes, markers, letters }
//!                                           └ append   ┘        └─ table::Table ─▶ rows
//! ```
//!
//! Invariants: pure functions of bytes, and of the schemas that a registry gave for them; a message
//! that cannot be understood makes a letter and no change; nothing is guessed. A `before` image is
//! never read as data, except where the producer promises whole images (Arroyo).

pub mod append;
pub mod debezium;
pub mod order;
pub mod row;
pub mod table;
pub mod types;
pub mod upsert;

use engine::error::DataError;
use engine::model::{Key, Schema};
use serde::{Deserialize, Serialize};

use crate::arroyo::SignalMessage;
use crate::format::{Failure, Format, Payload, Reader, Wait};
pub use order::{LogPosition, Order};
pub use row::{Metadata, PartialRow};
pub use types::{BinaryMode, Cell, DecimalMode, Rules, TimePrecision};

/// What the key and the value of a message mean together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// Debezium's change events, wrapped or unwrapped, and Arroyo's `debezium_json`.
    Debezium,
    /// The value is the row of the key; null deletes.
    Upsert,
    /// Every message is a row of its own.
    Append,
}

/// A message as the transport hands it over.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// The key's bytes.
    pub key: Option<&'a [u8]>,
    /// The value's bytes; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Header names and values, in order; a name may come again.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp: Option<i64>,
}

/// What a source's statement chooses.
#[derive(Debug, Clone)]
pub struct Options {
    /// The format of keys.
    pub key_format: Format,
    /// The format of values.
    pub value_format: Format,
    /// Debezium's `unavailable.value.placeholder`.
    pub placeholder: String,
    /// See [`BinaryMode`].
    pub binary: BinaryMode,
    /// `None`: [`DecimalMode::Precise`] for Debezium, [`DecimalMode::String`] otherwise.
    pub decimal: Option<DecimalMode>,
    /// See [`TimePrecision`].
    pub time: TimePrecision,
    /// Whether Debezium's events are unwrapped by ExtractNewRecordState; `None`: told by their
    /// shape.
    pub is_unwrapped: Option<bool>,
    /// Columns that carry the message's own data, by position in the schema.
    pub metadata: Vec<(usize, Metadata)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            key_format: Format::Json,
            value_format: Format::Json,
            placeholder: types::placeholder::DEFAULT.to_owned(),
            binary: BinaryMode::default(),
            decimal: None,
            time: TimePrecision::default(),
            is_unwrapped: None,
            metadata: Vec::new(),
        }
    }
}

/// What kind of event brought a change; with the key it tells events at one log position apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChangeKind {
    /// A row was inserted, or takes the place of the key's row.
    Create,
    /// A row was changed.
    Update,
    /// A row was deleted.
    Delete,
    /// A snapshot read the row.
    Read,
    /// A message without a value: the key is gone, or its delete was told just before.
    Tombstone,
}

/// The other half of a primary-key change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Move {
    /// A delete: the row lives on under this key.
    To(Key),
    /// A create: the row lived under this key.
    From(Key),
}

/// One change of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChange {
    /// The row's key.
    pub key: Key,
    /// The new row; `None` deletes.
    pub row: Option<PartialRow>,
    /// The event.
    pub kind: ChangeKind,
    /// Where the event stands in the source's own order.
    pub order: Order,
    /// The other half, if this is half of a key change.
    pub moved: Option<Move>,
    /// The source's transaction, where it is named.
    pub transaction: Option<String>,
}

/// What a message says beside changes of rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Marker {
    /// All rows are gone.
    Truncate {
        /// Where in the source's order.
        order: Order,
    },
    /// A heartbeat: the connector is alive, at this time.
    Signal(SignalMessage),
    /// A logical decoding message (`pg_logical_emit_message`): changes nothing.
    Message {
        /// Its prefix.
        prefix: String,
    },
    /// A source transaction begins.
    TransactionBegin {
        /// Its id, without the position that Debezium appends.
        id: String,
    },
    /// A source transaction ended.
    TransactionEnd {
        /// Its id, without the position that Debezium appends.
        id: String,
        /// Events in all tables.
        events: u64,
        /// Events by table (`schema.table`).
        tables: Vec<(String, u64)>,
    },
    /// The first row of a snapshot: a second one means that the first may have died, and that rows
    /// which vanished in between are told by nothing else.
    SnapshotFirst {
        /// The log position of the snapshot, where there is one.
        lsn: Option<u64>,
    },
    /// The last row of a snapshot.
    SnapshotLast {
        /// The log position of the snapshot, where there is one.
        lsn: Option<u64>,
    },
    /// The table's columns are no longer those of the message before (or, at the first message,
    /// not the declared ones).
    SchemaChanged {
        /// Columns of the message that are not declared: not read.
        undeclared: Vec<String>,
        /// Declared columns that the message lacks: NULL.
        missing: Vec<String>,
    },
    /// A statement of the source that changed its schema (MySQL's and SQL Server's history topic).
    SchemaHistory {
        /// The statement, if it was sent.
        ddl: Option<String>,
    },
    /// The table's REPLICA IDENTITY is not its key (`USING INDEX`): deletes do not name their row and
    /// key changes cannot be seen. Deletes are refused from here on.
    IdentityIsNotKey,
}

/// Where an event stands in a transaction whose metadata the connector sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InTransaction {
    /// The transaction's id, as in [`Marker::TransactionEnd`].
    pub id: String,
    /// Its number among all events of the transaction, from 1.
    pub total_order: Option<u64>,
    /// Its number among the transaction's events of its table, from 1.
    pub table_order: Option<u64>,
}

/// All that one message says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decoded {
    /// The partition that the message came from.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Changes of rows, in order.
    pub changes: Vec<RowChange>,
    /// Everything else.
    pub markers: Vec<Marker>,
    /// What could not be understood.
    pub letters: Vec<DataError>,
    /// The row that the letters are about, where it could be read.
    pub key: Option<Key>,
    /// The transaction, where `provide.transaction.metadata` is on.
    pub transaction: Option<InTransaction>,
}

impl Decoded {
    /// Where its truncates stand.
    pub fn truncates(&self) -> impl Iterator<Item = Order> {
        self.markers.iter().filter_map(|marker| match marker {
            Marker::Truncate { order } => Some(*order),
            _ => None,
        })
    }
}

/// Decodes the messages of one table's topic. One per topic and thread; cheap to make.
#[derive(Debug)]
pub struct Decoder {
    layout: row::Layout,
    envelope: Envelope,
    key_reader: Reader,
    value_reader: Reader,
    debezium: debezium::State,
}

/// A message with its parts decoded.
struct Parts<'a> {
    record: &'a RawRecord<'a>,
    key: Payload<'a>,
    value: Payload<'a>,
}

impl Decoder {
    /// A decoder of messages to the columns of `schema`.
    pub fn new(schema: Schema, envelope: Envelope, options: Options) -> Decoder {
        let is_debezium = envelope == Envelope::Debezium;
        let rules = Rules {
            placeholder: is_debezium
                .then(|| types::placeholder::Placeholder::new(&options.placeholder)),
            binary: options.binary,
            decimal: options.decimal.unwrap_or(match is_debezium {
                true => DecimalMode::Precise,
                false => DecimalMode::String,
            }),
            time: options.time,
            is_json_text: is_debezium,
        };
        Decoder {
            debezium: debezium::State::new(options.is_unwrapped),
            layout: row::Layout::new(schema, options.metadata, rules),
            envelope,
            key_reader: Reader::new(options.key_format),
            value_reader: Reader::new(options.value_format),
        }
    }

    /// Decodes one message. Cost: linear in its bytes.
    ///
    /// Errors: a schema could not be had from its registry. Nothing was taken of the message, and it
    /// is to be decoded again.
    pub fn decode(&mut self, record: &RawRecord<'_>) -> Result<Decoded, Wait> {
        let mut out = Decoded {
            partition: record.partition,
            offset: record.offset,
            ..Decoded::default()
        };
        match self.decode_into(record, &mut out) {
            Ok(()) => {}
            Err(Failure::Data(letter)) => {
                out.key = self.key_of(record, &letter);
                out.letters.push(letter);
            }
            Err(Failure::Wait(wait)) => return Err(wait),
        }
        Ok(out)
    }

    /// The row of a message that is bad, if its key can be read and is not what is doubted.
    fn key_of(&mut self, record: &RawRecord<'_>, error: &DataError) -> Option<Key> {
        const DOUBTS: [&str; 3] = [
            "identity-is-not-key",
            "contradicting-key",
            "key-columns-differ",
        ];
        if DOUBTS.contains(&&*error.code) {
            return None;
        }
        let key = self.key_reader.read(record.key, record.headers, "key");
        let parts = Parts {
            record,
            key: match self.envelope {
                Envelope::Append => key.unwrap_or_else(|_| Payload::null()),
                Envelope::Debezium => debezium::key(&self.layout, key.ok()?),
                Envelope::Upsert => key.ok()?,
            },
            value: match self.envelope {
                Envelope::Debezium => Payload::null(),
                // The message's key decides.
                Envelope::Upsert if record.key.is_some() => Payload::null(),
                _ => self
                    .value_reader
                    .read(record.value, record.headers, "value")
                    .unwrap_or_else(|_| Payload::null()),
            },
        };
        let found = match self.envelope {
            Envelope::Debezium => self.layout.message_key(&parts.key, record).ok()??,
            Envelope::Upsert => upsert::key(&self.layout, &parts).ok()?,
            Envelope::Append => append::key(&self.layout, &parts).ok()?,
        };
        Some(found.key)
    }

    fn decode_into(&mut self, record: &RawRecord<'_>, out: &mut Decoded) -> Result<(), Failure> {
        let is_append = self.envelope == Envelope::Append;
        let key = match is_append && self.layout.schema.key.is_empty() {
            true => Ok(Payload::null()),
            false => self.key_reader.read(record.key, record.headers, "key"),
        };
        let key = match key {
            // The row says its key, or where the message lies does: a key may be anything.
            Err(Failure::Data(_)) if is_append => Payload::null(),
            key => key?,
        };
        let key = match self.envelope {
            Envelope::Debezium => debezium::key(&self.layout, key),
            _ => key,
        };
        let parts = Parts {
            record,
            key,
            value: self
                .value_reader
                .read(record.value, record.headers, "value")?,
        };
        // Nothing waits from here on: what is remembered of a message is remembered once.
        let decoded = match self.envelope {
            Envelope::Debezium => self.debezium.decode(&self.layout, &parts, out),
            Envelope::Upsert => upsert::decode(&self.layout, &parts, out),
            Envelope::Append => append::decode(&self.layout, &parts, out),
        };
        Ok(decoded?)
    }
}
