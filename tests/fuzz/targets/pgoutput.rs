//! `pgoutput`: messages of PostgreSQL's log, and the texts in them as values of all types.
//!
//! An input is a message behind four bytes that choose the types of its texts.

use connectors::postgres::message::{self, Field, Message, Relation, Tuple};
use connectors::postgres::value;
use engine::model::{Schema, SqlType};

use super::checks;

/// Types whose texts are read in a way of their own, arrays among them, a user's own, and none.
const TYPES: [u32; 24] = [
    16, 17, 20, 21, 23, 25, 26, 114, 700, 701, 1082, 1114, 1184, 1186, 1700, 2950, 3802, 1000,
    1007, 1009, 1231, 3807, 90_000, 0,
];

pub fn run(input: &[u8]) {
    let Some((types, input)) = input.split_at_checked(4) else {
        return;
    };
    let read = message::decode(input);
    assert_eq!(read, message::decode(input));
    let Ok(read) = read else {
        return;
    };
    let written = encode(&read);
    assert_eq!(message::decode(&written), Ok(read.clone()), "written again");
    match &read {
        Message::Relation(relation) => {
            assert!(relation.columns.len() <= input.len() / 10);
        }
        Message::Truncate { tables } => assert!(tables.len() <= input.len() / 4),
        Message::Insert { new, .. } => tuple(new, types),
        Message::Delete { old, .. } => tuple(old, types),
        Message::Update { old, new, .. } => {
            tuple(old.as_deref().unwrap_or_default(), types);
            tuple(new, types);
        }
        Message::Other => {}
    }
}

fn tuple(tuple: &[Field<'_>], types: &[u8]) {
    let schema = checks::columns(SqlType::Int8);
    let codec = engine::model::RowCodec::new(schema.clone()).expect("types that pack");
    for (at, field) in tuple.iter().enumerate() {
        if let Field::Text(text) = field {
            let chosen = types[at % types.len()];
            let type_id = TYPES[usize::from(chosen) % TYPES.len()];
            texts(&schema, &codec, text, type_id);
        }
    }
}

/// A text as each column takes it.
fn texts(schema: &Schema, codec: &engine::model::RowCodec, text: &str, type_id: u32) {
    let mut values = Vec::new();
    for column in &schema.columns {
        let read = value::value(Some(text), type_id, column);
        checks::same(&read, &value::value(Some(text), type_id, column));
        match read {
            Ok(found) => {
                checks::value(&found, column, text.len());
                values.push(found);
            }
            Err(error) => {
                checks::letter(&error);
                assert_eq!(error.column(), Some(&*column.name), "{error}");
                values.push(match column.nullable {
                    true => engine::model::Value::Null,
                    false => engine::model::Value::Int(0),
                });
            }
        }
    }
    checks::row(codec, &values, text.len());
}

/// A message as PostgreSQL would write it.
fn encode(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match message {
        Message::Relation(relation) => encode_relation(relation, &mut out),
        Message::Insert { table, new } => {
            head(b'I', *table, &mut out);
            encode_tuple(b'N', new, &mut out);
        }
        Message::Update {
            table,
            old,
            is_whole,
            new,
        } => {
            head(b'U', *table, &mut out);
            if let Some(old) = old {
                encode_tuple(if *is_whole { b'O' } else { b'K' }, old, &mut out);
            }
            encode_tuple(b'N', new, &mut out);
        }
        Message::Delete { table, old } => {
            head(b'D', *table, &mut out);
            encode_tuple(b'K', old, &mut out);
        }
        Message::Truncate { tables } => {
            head(b'T', tables.len() as u32, &mut out);
            out.push(0);
            tables
                .iter()
                .for_each(|table| out.extend(table.to_be_bytes()));
        }
        Message::Other => out.push(b'Y'),
    }
    out
}

fn head(kind: u8, number: u32, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend(number.to_be_bytes());
}

fn encode_relation(relation: &Relation, out: &mut Vec<u8>) {
    head(b'R', relation.id, out);
    for name in [&relation.schema, &relation.name] {
        out.extend(name.as_bytes());
        out.push(0);
    }
    out.push(if relation.is_full { b'f' } else { b'd' });
    out.extend((relation.columns.len() as u16).to_be_bytes());
    for column in &relation.columns {
        out.push(u8::from(column.is_identity));
        out.extend(column.name.as_bytes());
        out.push(0);
        out.extend(column.type_id.to_be_bytes());
        out.extend(column.modifier.to_be_bytes());
    }
}

fn encode_tuple(kind: u8, tuple: &Tuple<'_>, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend((tuple.len() as u16).to_be_bytes());
    for field in tuple {
        match field {
            Field::Null => out.push(b'n'),
            Field::Unchanged => out.push(b'u'),
            Field::Text(text) => {
                head(b't', text.len() as u32, out);
                out.extend(text.as_bytes());
            }
        }
    }
}
