//! `pgoutput` messages, protocol versions 1 to 4: what PostgreSQL's log says about published tables.
//!
//! The idea: one message is one value that borrows from the received bytes; what it *means* for a
//! table is [`super::table`]'s, what it means that a transaction is sent before it commits is
//! [`super::streamed`]'s. Source: PostgreSQL's documentation, "Logical Replication Message Formats".
//!
//! Invariants: no input panics or allocates more than a small multiple of its length; a message that
//! is cut off, or of an unknown kind, is an error, never half a message. Limits: values come as text,
//! and messages of prepared transactions, which nobody asks for, are unknown.

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// Where its commit begins in the log.
        commit: u64,
    },
    /// It ends.
    Commit {
        /// The end of its commit in the log.
        end: u64,
    },
    /// What follows belongs to a transaction that is not committed yet.
    StreamStart {
        /// The transaction.
        xid: u32,
        /// Whether nothing of it was sent before.
        is_first: bool,
    },
    /// Something else follows.
    StreamStop,
    /// A transaction of which parts were sent is committed.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// Where its commit begins in the log.
        commit: u64,
        /// The end of its commit.
        end: u64,
    },
    /// A transaction, or a subtransaction, of which parts were sent is rolled back.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// What is rolled back: `xid` itself, or a subtransaction (a savepoint).
        subxid: u32,
    },
    /// A table's columns, before its first change of a session and after each change of them.
    Relation(Relation),
    /// A row was inserted.
    Insert {
        /// The table's object id.
        table: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was changed.
    Update {
        /// The table's object id.
        table: u32,
        /// The old identity, when it changed or the replica identity is full.
        old: Option<Tuple<'a>>,
        /// Whether `old` is the whole row (REPLICA IDENTITY FULL).
        is_whole: bool,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The table's object id.
        table: u32,
        /// The identity columns (others are null), or the whole row.
        old: Tuple<'a>,
    },
    /// All rows of tables were deleted.
    Truncate {
        /// The tables' object ids.
        tables: Vec<u32>,
    },
    /// A type's name, where a change came from first, an application's message: changes nothing.
    Other,
}

/// A table as it was when the changes that follow were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Object id.
    pub id: u32,
    /// Schema; empty for `pg_catalog`.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Whether old tuples are whole rows.
    pub is_full: bool,
    /// The columns in the order of tuples.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Name.
    pub name: String,
    /// Object id of the type.
    pub type_id: u32,
    /// The type's modifier, −1 without.
    pub modifier: i32,
    /// Whether it is a part of the replica identity: old tuples have it.
    pub is_identity: bool,
}

/// The values of a row, in the relation's order.
pub type Tuple<'a> = Vec<Field<'a>>;

/// One value of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// NULL; in an old tuple also a column outside the identity.
    Null,
    /// A stored-away value (TOAST) that did not change: not sent.
    Unchanged,
    /// The type's text.
    Text(&'a str),
}

/// The (sub)transaction that a message belongs to, which stands behind its kind between StreamStart
/// and StreamStop; `None` for kinds that have none there. The error says what is wrong with it.
pub fn owner(bytes: &[u8]) -> Result<Option<u32>, String> {
    let mut input = Input { bytes };
    match input.u8()? {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => Ok(Some(input.u32()?)),
        b'O' => Ok(None),
        other => Err(format!("a message of kind {other} within a stream")),
    }
}

/// Decodes one message. `is_streamed`: it came between StreamStart and StreamStop, and has an
/// [`owner`]. The error says what is wrong with it.
pub fn decode(bytes: &[u8], is_streamed: bool) -> Result<Message<'_>, String> {
    let mut input = Input { bytes };
    let kind = input.u8()?;
    if is_streamed && owner(bytes)?.is_some() {
        input.u32()?;
    }
    let message = match kind {
        b'R' => Message::Relation(relation(&mut input)?),
        b'I' => {
            let table = input.u32()?;
            input.expect(b'N')?;
            let new = tuple(&mut input)?;
            Message::Insert { table, new }
        }
        b'U' => {
            let table = input.u32()?;
            let (mut mark, mut old) = (input.u8()?, None);
            let is_whole = mark == b'O';
            if matches!(mark, b'K' | b'O') {
                old = Some(tuple(&mut input)?);
                mark = input.u8()?;
            }
            if mark != b'N' {
                return Err(format!("an update with a tuple of kind {mark}"));
            }
            let new = tuple(&mut input)?;
            Message::Update {
                table,
                old,
                is_whole,
                new,
            }
        }
        b'D' => {
            let table = input.u32()?;
            let mark = input.u8()?;
            if !matches!(mark, b'K' | b'O') {
                return Err(format!("a delete with a tuple of kind {mark}"));
            }
            let old = tuple(&mut input)?;
            Message::Delete { table, old }
        }
        b'T' => {
            let count = input.u32()?;
            let _options = input.u8()?;
            let tables: Result<Vec<u32>, String> = (0..count).map(|_| input.u32()).collect();
            Message::Truncate { tables: tables? }
        }
        // Names of types and origins, messages of applications: they say nothing about rows.
        b'Y' | b'O' | b'M' => return Ok(Message::Other),
        _ => boundary(kind, &mut input)?,
    };
    match input.bytes.len() {
        0 => Ok(message),
        left => Err(format!("{left} bytes too many in a message of kind {kind}")),
    }
}

/// Where transactions, and parts of them, begin and end.
fn boundary<'a>(kind: u8, input: &mut Input<'_>) -> Result<Message<'a>, String> {
    Ok(match kind {
        b'B' => {
            let commit = input.u64()?;
            let (_time, _xid) = (input.u64()?, input.u32()?);
            Message::Begin { commit }
        }
        b'C' => {
            let (_flags, _commit) = (input.u8()?, input.u64()?);
            let (end, _time) = (input.u64()?, input.u64()?);
            Message::Commit { end }
        }
        b'S' => Message::StreamStart {
            xid: input.u32()?,
            is_first: input.u8()? == 1,
        },
        b'E' => Message::StreamStop,
        b'c' => {
            let (xid, _flags) = (input.u32()?, input.u8()?);
            let (commit, end, _time) = (input.u64()?, input.u64()?, input.u64()?);
            Message::StreamCommit { xid, commit, end }
        }
        b'A' => {
            let (xid, subxid) = (input.u32()?, input.u32()?);
            // Place and time, where streams are applied in parallel (version 4).
            if !input.bytes.is_empty() {
                let (_lsn, _time) = (input.u64()?, input.u64()?);
            }
            Message::StreamAbort { xid, subxid }
        }
        other => return Err(format!("a message of unknown kind {other}")),
    })
}

fn relation(input: &mut Input<'_>) -> Result<Relation, String> {
    let id = input.u32()?;
    let schema = input.text()?.to_owned();
    let name = input.text()?.to_owned();
    let is_full = input.u8()? == b'f';
    let count = input.u16()?;
    let column = |_| {
        Ok(RelationColumn {
            is_identity: input.u8()? & 1 != 0,
            name: input.text()?.to_owned(),
            type_id: input.u32()?,
            modifier: input.u32()?.cast_signed(),
        })
    };
    let columns: Result<Vec<RelationColumn>, String> = (0..count).map(column).collect();
    Ok(Relation {
        id,
        schema,
        name,
        is_full,
        columns: columns?,
    })
}

fn tuple<'a>(input: &mut Input<'a>) -> Result<Tuple<'a>, String> {
    let count = input.u16()?;
    let field = |_| {
        Ok(match input.u8()? {
            b'n' => Field::Null,
            b'u' => Field::Unchanged,
            b't' => {
                let length = input.u32()?;
                let text = input.take(length as usize)?;
                Field::Text(std::str::from_utf8(text).map_err(|error| error.to_string())?)
            }
            other => return Err(format!("a value of unknown kind {other}")),
        })
    };
    (0..count).map(field).collect()
}

/// What is left of a message.
struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let cut = self.bytes.split_at_checked(count);
        let (taken, rest) = cut.ok_or_else(|| "the message is cut off".to_owned())?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("as many as were taken"))
    }

    fn u8(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_be_bytes)
    }

    /// Text up to a zero byte.
    fn text(&mut self) -> Result<&'a str, String> {
        let end = self.bytes.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| "a name without an end".to_owned())?;
        let text = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|error| error.to_string())
    }

    fn expect(&mut self, mark: u8) -> Result<(), String> {
        match self.u8()? {
            found if found == mark => Ok(()),
            found => Err(format!("a tuple of kind {found}, expected {mark}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn relation_bytes() -> Vec<u8> {
        let mut bytes = vec![b'R', 0, 0, 0, 7];
        bytes.extend(b"public\0docs\0d");
        bytes.extend([0, 2]);
        bytes.push(1);
        bytes.extend(b"id\0");
        bytes.extend(20_u32.to_be_bytes());
        bytes.extend((-1_i32).to_be_bytes());
        bytes.push(0);
        bytes.extend(b"body\0");
        bytes.extend(25_u32.to_be_bytes());
        bytes.extend((-1_i32).to_be_bytes());
        bytes
    }

    fn update_bytes() -> Vec<u8> {
        let mut bytes = vec![b'U', 0, 0, 0, 7, b'K', 0, 2, b't', 0, 0, 0, 1, b'1', b'n'];
        bytes.extend([b'N', 0, 2, b't', 0, 0, 0, 1, b'2', b'u']);
        bytes
    }

    #[test]
    fn messages_are_read_as_the_documentation_has_them() {
        let bytes = relation_bytes();
        let Message::Relation(relation) = decode(&bytes, false).unwrap() else {
            panic!("a relation");
        };
        assert_eq!((relation.id, &*relation.name), (7, "docs"));
        let columns = relation.columns.iter();
        let columns: Vec<_> = columns
            .map(|c| (&*c.name, c.type_id, c.is_identity))
            .collect();
        assert_eq!(columns, [("id", 20, true), ("body", 25, false)]);
        let bytes = update_bytes();
        assert_eq!(
            decode(&bytes, false).unwrap(),
            Message::Update {
                table: 7,
                old: Some(vec![Field::Text("1"), Field::Null]),
                is_whole: false,
                new: vec![Field::Text("2"), Field::Unchanged],
            }
        );
        let truncate = [b'T', 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 8];
        let tables = vec![7, 8];
        assert_eq!(
            decode(&truncate, false).unwrap(),
            Message::Truncate { tables }
        );
    }

    /// A message as it comes within a stream of transaction 0x01020304.
    fn streamed(bytes: &[u8]) -> Vec<u8> {
        let (kind, rest) = bytes.split_first().unwrap();
        [&[*kind, 1, 2, 3, 4], rest].concat()
    }

    #[test]
    fn boundaries_are_read_as_the_documentation_has_them() {
        let lsn = |place: u8| [0, 0, 0, 1, 0, 0, 0, place];
        let place = |at: u64| (1 << 32) + at;
        let begin = [&[b'B'][..], &lsn(7), &[9; 8], &[0, 0, 0, 5]].concat();
        let commit = [&[b'C', 0][..], &lsn(7), &lsn(8), &[9; 8]].concat();
        let start = [b'S', 0, 0, 0, 5, 1];
        let go_on = [b'S', 0, 0, 0, 5, 0];
        let over = [&[b'c', 0, 0, 0, 5, 0][..], &lsn(7), &lsn(8), &[9; 8]].concat();
        let abort = [b'A', 0, 0, 0, 5, 0, 0, 0, 6];
        let parallel = [&abort[..], &lsn(7), &[9; 8]].concat();
        let (xid, subxid) = (5, 6);
        let cases: [(&[u8], Message<'_>); 8] = [
            (&begin, Message::Begin { commit: place(7) }),
            (&commit, Message::Commit { end: place(8) }),
            (
                &start,
                Message::StreamStart {
                    xid,
                    is_first: true,
                },
            ),
            (
                &go_on,
                Message::StreamStart {
                    xid,
                    is_first: false,
                },
            ),
            (b"E", Message::StreamStop),
            (
                &over,
                Message::StreamCommit {
                    xid,
                    commit: place(7),
                    end: place(8),
                },
            ),
            (&abort, Message::StreamAbort { xid, subxid }),
            (&parallel, Message::StreamAbort { xid, subxid }),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes, false).unwrap(), expected);
            for end in (0..bytes.len()).filter(|end| bytes[..*end] != abort) {
                assert!(
                    decode(&bytes[..end], false).is_err(),
                    "{expected:?} cut at {end}"
                );
            }
            assert!(decode(bytes, true).is_err(), "{expected:?} within a stream");
        }
    }

    #[test]
    fn messages_of_a_stream_have_an_owner_and_read_as_those_without() {
        let delete = [b'D', 0, 0, 0, 7, b'K', 0, 1, b't', 0, 0, 0, 1, b'2'];
        let insert = [b'I', 0, 0, 0, 7, b'N', 0, 1, b'n'];
        let truncate = [b'T', 0, 0, 0, 1, 0, 0, 0, 0, 7];
        let name = [b'Y', 0, 0, 0, 9, 0, b'm', 0];
        let (relation, update) = (relation_bytes(), update_bytes());
        let all: [&[u8]; 6] = [&relation, &update, &delete, &insert, &truncate, &name];
        for bytes in all {
            let streamed = streamed(bytes);
            assert_eq!(owner(&streamed), Ok(Some(0x0102_0304)));
            assert_eq!(decode(&streamed, true), decode(bytes, false));
        }
        // An origin has none.
        let origin = [b'O', 0, 0, 0, 0, 0, 0, 0, 1, b'o', 0];
        assert_eq!(owner(&origin), Ok(None));
        assert_eq!(decode(&origin, true), Ok(Message::Other));
        let error = owner(b"S").unwrap_err();
        assert_eq!(error, "a message of kind 83 within a stream");
    }

    #[test]
    fn cut_and_mutated_messages_are_errors_or_messages_and_never_panic() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for whole in [relation_bytes(), update_bytes()] {
            for end in 0..whole.len() {
                assert!(decode(&whole[..end], false).is_err(), "cut at {end}");
            }
            for _ in 0..50_000 {
                let mut bytes = whole.clone();
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
                let _ = (decode(&bytes, false), decode(&bytes, true), owner(&bytes));
            }
        }
    }
}
