//! Envelopes: any messages by any options, and whole histories.
//!
//! An input begins with a byte: `H` and the choices of a history (see `envelope::history`), else twelve
//! choices of options, then messages apart by bytes 254, of which each is a key, a value and a header,
//! apart by bytes 255.

use std::sync::{Arc, OnceLock};

use connectors::envelope::table::Table;
use connectors::envelope::{
    BinaryMode, DecimalMode, Decoder, Envelope, Metadata, Options, RawRecord, TimePrecision,
};
use connectors::format::Format;
use connectors::format::avro::{Schema as AvroSchema, Schemas};
use connectors::format::csv::Csv;
use engine::model::{Column, RowCodec, Schema, SqlType};

use super::checks;
use crate::dice::Dice;
use crate::envelope::history::{self, Choices};
use crate::envelope::topic::Rows;

/// Messages of a history: enough for snapshots, moves and parked rows to meet.
const HISTORY_EVENTS: usize = 60;
/// Messages of one input; what is left is a part of the last.
const MESSAGES_MAX: usize = 64;
/// Choices of a history: more could make the connector go back again and again.
const HISTORY_BYTES_MAX: usize = 2_048;
/// Choices of one input.
const OPTIONS: usize = 12;

pub fn run(input: &[u8]) {
    match input.split_first() {
        Some((b'H', rest)) => whole_history(rest),
        Some((_, rest)) => messages(rest),
        None => {}
    }
}

fn whole_history(input: &[u8]) {
    let input = &input[..input.len().min(HISTORY_BYTES_MAX)];
    // Most choices are the source's.
    let (source, rest) = input.split_at(input.len() / 2);
    let (schedule, broker) = rest.split_at(rest.len() / 2);
    let choices = Choices {
        source: Dice::of(source),
        schedule: Dice::of(schedule),
        broker: Dice::of(broker),
    };
    history::run(choices, HISTORY_EVENTS, "fuzz");
}

/// What two decoders and two tables of the same options make of the messages.
fn messages(input: &[u8]) {
    let (chosen, input) = input.split_at(input.len().min(OPTIONS));
    let mut dice = Dice::of(chosen);
    let (envelope, schema, options) = options(&mut dice);
    let codec = RowCodec::new(schema.clone()).expect("types that pack");
    let partitions = 1 + dice.index(3);
    let decoder = || Decoder::new(schema.clone(), envelope, options.clone());
    let mut decoders = [decoder(), decoder()];
    let mut tables = [Table::new(partitions), Table::new(partitions)];
    let mut rows = Rows::default();
    let messages = input.splitn(MESSAGES_MAX, |byte| *byte == 254);
    for (at, message) in messages.enumerate() {
        let mut parts = message.split(|byte| *byte == 255);
        let (key, value) = (parts.next(), parts.next());
        let headers: Vec<(&str, Option<&[u8]>)> = parts
            .zip(["__debezium.newkey", "__debezium.oldkey", "other"])
            .map(|(value, name)| (name, Some(value)))
            .collect();
        let record = RawRecord {
            key: key.filter(|key| !key.is_empty()),
            value: value.filter(|value| !value.is_empty()),
            headers: &headers,
            topic: "app.public.t",
            partition: (at % partitions) as i32,
            offset: at as i64,
            timestamp: Some(1_700_000_000_000),
        };
        let decoded = decoders
            .each_mut()
            .map(|decoder| decoder.decode(&record).expect("nothing to wait for"));
        checks::same(&decoded[0], &decoded[1]);
        decoded[0].letters.iter().for_each(checks::letter);
        for change in &decoded[0].changes {
            checks::change(&schema, change, message.len() + (1 << 10));
        }
        // The second table is always one that comes from its checkpoint.
        let config = bincode::config::standard();
        let bytes = bincode::serde::encode_to_vec(&tables[1], config).expect("plain values");
        tables[1] = bincode::serde::decode_from_slice(&bytes, config)
            .expect("what was written")
            .0;
        let [first, second] = decoded;
        let applied = tables[0].apply(first, &rows);
        checks::same(&applied, &tables[1].apply(second, &rows));
        applied
            .letters
            .iter()
            .for_each(|letter| checks::letter(letter));
        for output in &applied.outputs {
            if let connectors::envelope::table::Output::Upsert { values, .. } = output {
                checks::row(&codec, values, input.len() + (1 << 10));
            }
        }
        rows.take(&applied.outputs);
        assert!(tables[0].parked_rows() <= at + 1);
    }
    let letters = tables[0].unresolved();
    letters.iter().for_each(|letter| checks::letter(letter));
    assert_eq!(letters.len(), tables[0].parked_rows());
}

fn options(dice: &mut Dice) -> (Envelope, Schema, Options) {
    let envelope = [Envelope::Debezium, Envelope::Upsert, Envelope::Append][dice.index(3)];
    let keys = [
        SqlType::Int8,
        SqlType::Text,
        SqlType::Numeric(10, 2),
        SqlType::Uuid,
        SqlType::Float8,
        SqlType::Bytea,
    ];
    let mut schema = checks::columns(keys[dice.index(keys.len())]);
    if dice.chance(30) {
        // Two columns: k and t.
        let at = schema.position("t").expect("a column");
        schema.columns[at].nullable = false;
        schema.key.push(at);
    }
    let mut metadata = Vec::new();
    if dice.chance(30) {
        let all = [
            (Metadata::Key, SqlType::Bytea),
            (Metadata::Key, SqlType::Jsonb),
            (Metadata::Headers, SqlType::Jsonb),
            (Metadata::Offset, SqlType::Int8),
            (Metadata::Topic, SqlType::Text),
            (Metadata::Timestamp, SqlType::TimestampTz),
        ];
        let (what, sql_type) = all[dice.index(all.len())];
        metadata.push((schema.columns.len(), what));
        schema.columns.push(Column::new("meta", sql_type));
    }
    let names = schema.columns.iter().map(|column| column.name.clone());
    let names = names.collect();
    let mut format = || match dice.index(8) {
        0 => Format::Text,
        1 => Format::Bytes,
        2 => Format::Avro(Schemas::Inline(Arc::clone(events()))),
        3 => Format::Csv(Arc::new(Csv::new(b',', "", Vec::clone(&names)))),
        _ => Format::Json,
    };
    let options = Options {
        key_format: format(),
        value_format: format(),
        binary: [BinaryMode::Bytes, BinaryMode::Base64, BinaryMode::Hex][dice.index(3)],
        decimal: [None, Some(DecimalMode::Precise), Some(DecimalMode::String)][dice.index(3)],
        time: [
            TimePrecision::Micros,
            TimePrecision::Millis,
            TimePrecision::Nanos,
        ][dice.index(3)],
        is_unwrapped: [None, Some(true), Some(false)][dice.index(3)],
        metadata,
        ..Options::default()
    };
    (envelope, schema, options)
}

/// Debezium's events of a small table, in Avro.
fn events() -> &'static Arc<AvroSchema> {
    static EVENTS: OnceLock<Arc<AvroSchema>> = OnceLock::new();
    EVENTS.get_or_init(|| {
        let text = r#"{"type":"record","name":"Envelope","fields":[
            {"name":"before","type":["null",{"type":"record","name":"Value","fields":[
                {"name":"k","type":"long"},
                {"name":"t","type":["null","string"]},
                {"name":"y","type":["null","bytes"]},
                {"name":"n","type":["null",{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}]},
                {"name":"z","type":["null",{"type":"long","connect.name":"io.debezium.time.MicroTimestamp"}]},
                {"name":"j","type":["null",{"type":"array","items":["null","string"]}]}]}]},
            {"name":"after","type":["null","Value"]},
            {"name":"source","type":{"type":"record","name":"Source","fields":[
                {"name":"connector","type":"string"},
                {"name":"snapshot","type":["null","string"]},
                {"name":"sequence","type":["null","string"]},
                {"name":"lsn","type":["null","long"]}]}},
            {"name":"op","type":"string"}]}"#;
        Arc::new(AvroSchema::parse(text, &[]).expect("our own schema"))
    })
}
