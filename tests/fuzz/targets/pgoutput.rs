//! `pgoutput`: messages of PostgreSQL's log, and the texts in them as values of all types.
//!
//! An input is a message behind four bytes that choose the types of its texts, and by the last one
//! whether the message stands within a stream of a transaction that is not committed, or is a whole
//! history of such streams ([`history`]).

use connectors::postgres::message::{self, Field, Message, Relation, Tuple};
use connectors::postgres::streamed::{Replay, Streamed};
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
    if types[3] >= 192 {
        return history(input);
    }
    let is_streamed = types[3] >= 128;
    let read = message::decode(input, is_streamed);
    assert_eq!(read, message::decode(input, is_streamed));
    let Ok(read) = read else {
        return;
    };
    let owner = is_streamed.then(|| message::owner(input).expect("it was read"));
    let written = encode(&read, owner.flatten());
    assert_eq!(
        message::decode(&written, is_streamed),
        Ok(read.clone()),
        "written again"
    );
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
        _ => {}
    }
}

/// What was sent of one transaction, and what of it was rolled back.
#[derive(Default)]
struct Sent<'a> {
    xid: u32,
    messages: Vec<&'a [u8]>,
    aborted: Vec<u32>,
}

/// Streams of transactions against lists: what is committed is what was sent and not rolled back.
///
/// A step is a byte that says which, and what it needs: the length of a message, or two transactions.
fn history(mut input: &[u8]) {
    let mut streamed = Streamed::bounded(&std::env::temp_dir(), usize::MAX, 0);
    let mut lists: Vec<Sent<'_>> = Vec::new();
    let mut open = None;
    while let Some(([step, first, second], rest)) = input.split_first_chunk() {
        let (xid, subxid) = (u32::from(*first), u32::from(*second));
        let at = lists.iter().position(|one| one.xid == xid);
        input = rest;
        match step % 5 {
            0 => {
                let is_first = second % 2 == 0;
                let is_right = open.is_none() && (is_first || at.is_some());
                assert_eq!(streamed.start(xid, is_first).is_ok(), is_right);
                if is_right {
                    open = Some(xid);
                    if is_first {
                        lists.retain(|one| one.xid != xid);
                        lists.push(Sent {
                            xid,
                            ..Sent::default()
                        });
                    }
                }
            }
            1 => assert_eq!(streamed.stop().is_ok(), open.take().is_some()),
            2 if open.is_none() => {
                streamed.abort(xid, subxid);
                match (at, xid == subxid) {
                    (Some(at), true) => drop(lists.remove(at)),
                    (Some(at), false) => lists[at].aborted.push(subxid),
                    (None, _) => {}
                }
            }
            3 if open.is_none() => {
                let replay = streamed.commit(xid);
                assert_eq!(replay.is_ok(), at.is_some());
                if let (Ok(replay), Some(at)) = (replay, at) {
                    replayed(replay, lists.remove(at));
                }
            }
            _ => {
                let length = usize::from(*first).min(input.len());
                let (message, rest) = input.split_at(length);
                input = rest;
                let list = lists.iter_mut().find(|one| Some(one.xid) == open);
                let kept = streamed.take(message);
                let owner = message::owner(message);
                assert_eq!(kept.is_ok(), list.is_some() && owner.is_ok());
                if let (Some(list), Ok(Some(_))) = (list, owner) {
                    list.messages.push(message);
                }
            }
        }
    }
}

fn replayed(mut replay: Replay, sent: Sent<'_>) {
    let is_aborted = |message: &[u8]| {
        let owner = message::owner(message).expect("it was kept");
        owner.is_some_and(|owner| sent.aborted.contains(&owner))
    };
    for message in sent.messages.iter().filter(|one| !is_aborted(one)) {
        let found = replay.next().expect("it is in memory");
        assert_eq!(found, Some(*message));
    }
    assert_eq!(replay.next().expect("it is in memory"), None);
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

/// A message as PostgreSQL would write it; `owner`: as a message of a stream.
fn encode(message: &Message<'_>, owner: Option<u32>) -> Vec<u8> {
    let mut out = Vec::new();
    match message {
        Message::Begin { commit } => {
            out.push(b'B');
            out.extend(commit.to_be_bytes());
            out.extend([0; 12]);
        }
        Message::Commit { end } => {
            out.extend([b'C', 0]);
            out.extend([0; 8]);
            out.extend(end.to_be_bytes());
            out.extend([0; 8]);
        }
        Message::StreamStart { xid, is_first } => {
            head(b'S', *xid, &mut out);
            out.push(u8::from(*is_first));
        }
        Message::StreamStop => out.push(b'E'),
        Message::StreamCommit { xid, commit, end } => {
            head(b'c', *xid, &mut out);
            out.push(0);
            out.extend(commit.to_be_bytes());
            out.extend(end.to_be_bytes());
            out.extend([0; 8]);
        }
        Message::StreamAbort { xid, subxid } => {
            head(b'A', *xid, &mut out);
            out.extend(subxid.to_be_bytes());
        }
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
        // An origin: it has no owner.
        Message::Other => return vec![b'O'],
    }
    if let Some(owner) = owner {
        out.splice(1..1, owner.to_be_bytes());
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
