//! What the input log holds: everything that ever entered, as typed records.
//!
//! ```text
//!  Stage(lane A, 7) ─┐
//!  Stage(lane B, 3) ─┼─▶ Tick { at: T, lanes: [A 7..=7, B 3..=3], vectors }      "bound to T"
//!  Stage(lane A, 8)  │      (not bound yet: found again after a restart as `Unbound`)
//!  Ddl, Reserve ─────┘
//! ```
//!
//! A transaction that touches several sources is one record, `Together`: a crash leaves all of it or
//! nothing, and one tick binds all of it. One too large for a record is several, `Open` all but the last:
//! no tick binds them before the last is there.
//!
//! Rows are logged when they are *staged*, before anybody knows their time, so that a push can be
//! acknowledged at once (PROTOCOLS §2.2); a `Tick` binds ranges of staged records to one `T`
//! without repeating them. Compaction (see [`super::compact`]) replaces old segments by the
//! `Since`, `Base*` records: the state as of one time, under which nothing can be asked any more.
//!
//! Invariants that writers keep and readers check:
//! - the sequences of one lane count 1, 2, 3 … without a gap, over restarts too;
//! - a `Tick` binds only staged records that stand before it in the log, each exactly once and in
//!   the lane's order; `at` grows from tick to tick;
//! - which of two changes of a key wins is decided by [`is_admitted`] and by nothing else.
//!
//! Payloads are bincode 2 (serde, standard configuration) inside our own frames ([`super::frame`]),
//! which carry the kind, the format version and the checksum.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{DeadLetter, WorldError};
use crate::letters::{CauseCounts, Kept, LetterId};
use crate::limits::TOMBSTONE_SECONDS;
use crate::model::{Change, ObjectId, Time, VectorFact};

/// One batch of one lane, on its way to a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// The source.
    pub source: ObjectId,
    /// The lane within the source: `""` for a source with one order.
    pub lane: String,
    /// Counts the lane's batches from 1.
    pub sequence: u64,
    /// The changes, in the lane's order, shared with the batch on its way.
    pub changes: Arc<Vec<Change>>,
    /// Earlier dead letters that the batch ended.
    pub resolved: Vec<LetterId>,
    /// Bad data of the batch, shared with the collection.
    pub dead_letters: Vec<Arc<DeadLetter>>,
    /// Where the lane stands after the batch: JSON text, opaque to the engine.
    pub position: Option<String>,
    /// The request that brought it, when it carried an idempotency key.
    pub idempotency: Option<Idempotency>,
    /// Wall clock when it was staged, microseconds since the epoch.
    pub at_wall: u64,
}

/// What is remembered of a request with an idempotency key, so that a repetition gets the first
/// reply and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The client's key.
    pub key: String,
    /// Hash of the request's body: the same key with another body is refused.
    pub body_hash: [u8; 32],
    /// The reply, JSON text.
    pub reply: String,
}

/// Staged records `from..=through` of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRange {
    /// The source.
    pub source: ObjectId,
    /// The lane.
    pub lane: String,
    /// First sequence bound.
    pub from: u64,
    /// Last sequence bound.
    pub through: u64,
}

/// Binds staged rows and vector facts to a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// The time.
    pub at: Time,
    /// What it binds, applied in this order.
    pub lanes: Vec<LaneRange>,
    /// Vectors that exist from `at` on. Their bytes were synced before this record is written.
    pub vectors: Vec<VectorFact>,
}

/// A change of the catalog. The log does not look inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ddl {
    /// When it takes effect.
    pub at: Time,
    /// The catalog's own encoding.
    pub payload: Vec<u8>,
}

/// The live rows (and young tombstones) of one source as of [`Replayed::Since`].
///
/// A large source has many such records, in the order in which its rows were bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRows {
    /// The source.
    pub source: ObjectId,
    /// The last admitted change of each key.
    pub rows: Vec<BaseRow>,
}

/// One row of a [`BaseRows`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRow {
    /// The time that the change was bound to, before it became part of the base.
    pub at: Time,
    /// The change; `row: None` is a tombstone that still guards its version.
    pub change: Change,
}

/// Where a lane stood when the base was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// The source.
    pub source: ObjectId,
    /// The lane.
    pub lane: String,
    /// The last sequence bound.
    pub sequence: u64,
    /// The last position bound.
    pub position: Option<String>,
}

/// A remembered reply of a bound request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseReply {
    /// The source.
    pub source: ObjectId,
    /// Key, hash and reply.
    pub idempotency: Idempotency,
    /// Wall clock of the first request, microseconds since the epoch.
    pub at_wall: u64,
}

/// Dead letters that were bound before the base and are kept, in the order of their arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseLetters {
    /// What is known of each cause; all in the first record.
    pub causes: Vec<CauseCounts>,
    /// Letters with their history.
    pub letters: Vec<Kept>,
}

/// One record of the input log, as it is stored.
///
/// Writers append the first four, [`Record::Together`], [`Record::Forget`] and [`Record::Open`]; the
/// others are written by compaction only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Rows enter; their time is not known yet.
    Stage(Stage),
    /// Staged rows get their time.
    Tick(Tick),
    /// The catalog changes.
    Ddl(Ddl),
    /// Times up to this one are taken, also after a crash (PROTOCOLS §1.2).
    Reserve(Time),
    /// Opens a base: the state as of this time follows.
    Since(Time),
    /// Rows of the base.
    BaseRows(BaseRows),
    /// Vector facts of the base.
    BaseVectors(Vec<VectorFact>),
    /// Lanes of the base.
    BaseLanes(Vec<LaneState>),
    /// Remembered replies of the base.
    BaseReplies(Vec<BaseReply>),
    /// Dead letters of the base.
    BaseLetters(BaseLetters),
    /// Rows of several sources enter and are bound by the same tick: a transaction.
    Together(Vec<Stage>),
    /// Names that are declared no more: their dead letters so far are gone with them.
    Forget(Vec<String>),
    /// The same as [`Record::Stage`] and [`Record::Together`] of a transaction that goes on: the next
    /// record of each of the lanes is bound by the same tick.
    Open(Vec<Stage>),
}

/// What a replay tells, in the order in which it must be applied.
///
/// ```text
/// [Since, (Ddl | Reserve | Rows | Vectors | Lanes | Replies | Letters)*]   the base, if there is one
/// (Ddl | Reserve | Tick | Forget)*                                        what came after it
/// Unbound*                                                                staged, never bound
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// A base follows: all its rows and vectors exist at this time; earlier times are not readable.
    Since(Time),
    /// A change of the catalog. Those of the base keep their own, earlier `at`.
    Ddl(Ddl),
    /// Times up to this one are taken.
    Reserve(Time),
    /// Rows of the base.
    Rows(BaseRows),
    /// Vectors of the base.
    Vectors(Vec<VectorFact>),
    /// Lanes of the base.
    Lanes(Vec<LaneState>),
    /// Remembered replies of the base.
    Replies(Vec<BaseReply>),
    /// Dead letters of the base.
    Letters(BaseLetters),
    /// The dead letters under these names are gone.
    Forget(Vec<String>),
    /// A tick with the staged records that it binds, in its order.
    Tick(BoundTick),
    /// A staged record that no tick binds: stage it again under the same sequence, without logging
    /// it again; several stages belong together. Comes after everything else, in the order of the
    /// log.
    Unbound(Unbound),
}

/// See [`Replayed::Unbound`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbound {
    /// What the record staged.
    pub stages: Vec<Stage>,
    /// Whether the next record of each of its lanes goes on with it ([`Record::Open`]).
    pub is_open: bool,
}

/// A [`Tick`] whose lane ranges are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundTick {
    /// The time.
    pub at: Time,
    /// The staged records, in the tick's order.
    pub stages: Vec<Stage>,
    /// See [`Tick::vectors`].
    pub vectors: Vec<VectorFact>,
}

/// What is known of a key when its next change comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The version of its last admitted change.
    pub version: u64,
    /// Whether that change was a row; else it was a delete.
    pub is_live: bool,
    /// The time that change was bound to.
    pub at: Time,
}

/// The admission rule: whether a change of `version`, bound to `at`, takes effect after `held`.
///
/// A version must be greater than the last admitted one. A delete guards its version for
/// [`TOMBSTONE_SECONDS`]; then it is forgotten (PROTOCOLS §7.1) and any version may begin again.
/// The same function decides in the dataflow and in compaction: were they to differ, a restart
/// would bring back another row than the one that was served.
pub fn is_admitted(held: Option<Held>, version: u64, at: Time) -> bool {
    match held {
        None => true,
        Some(held) if version > held.version => true,
        Some(held) => !held.is_live && is_forgotten(held.at, at),
    }
}

/// Whether a delete bound to `deleted_at` no longer guards its version at `now` (both engine time).
pub fn is_forgotten(deleted_at: Time, now: Time) -> bool {
    now.saturating_sub(deleted_at) >= TOMBSTONE_SECONDS * 1_000_000
}

impl Stage {
    /// What it takes encoded, hardly ever more.
    fn bytes_about(&self) -> usize {
        const OTHERS: usize = 256;
        let changes = self.changes.iter().map(Change::staged_bytes);
        OTHERS + self.position.as_ref().map_or(0, String::len) + changes.sum::<usize>()
    }
}

impl Record {
    /// The record of what is staged at once: one source's rows, or a transaction over several, which may
    /// go on (`is_open`).
    pub fn staged(mut stages: Vec<Stage>, is_open: bool) -> Record {
        match stages.len() {
            _ if is_open => Record::Open(stages),
            1 => Record::Stage(stages.remove(0)),
            _ => Record::Together(stages),
        }
    }

    /// The number of the record's kind in its frame.
    pub fn kind(&self) -> u8 {
        match self {
            Record::Stage(_) => 1,
            Record::Tick(_) => 2,
            Record::Ddl(_) => 3,
            Record::Reserve(_) => 4,
            Record::Since(_) => 5,
            Record::BaseRows(_) => 6,
            Record::BaseVectors(_) => 7,
            Record::BaseLanes(_) => 8,
            Record::BaseReplies(_) => 9,
            Record::BaseLetters(_) => 10,
            Record::Together(_) => 11,
            Record::Forget(_) => 12,
            Record::Open(_) => 13,
        }
    }

    /// Whether records of a kind are staged rows, which have no time.
    pub(super) fn is_staged(kind: u8) -> bool {
        matches!(kind, 1 | 11 | 13)
    }

    /// The greatest engine time that the record speaks of; a segment may be compacted to `since`
    /// when all of its records lie at or before it.
    pub fn time(&self) -> Option<Time> {
        match self {
            Record::Tick(tick) => Some(tick.at),
            Record::Ddl(ddl) => Some(ddl.at),
            Record::Since(at) => Some(*at),
            _ => None,
        }
    }

    /// Encodes the payload. Cost: linear in the record.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_in(Vec::new())
    }

    /// The same in a buffer that may have held another payload. Large records are given room for all of
    /// them at first: they are not copied while they grow.
    pub(super) fn encode_in(&self, mut payload: Vec<u8>) -> Vec<u8> {
        fn write<T: Serialize>(value: &T, payload: &mut Vec<u8>) {
            bincode::serde::encode_into_std_write(value, payload, bincode::config::standard())
                .expect("plain data without unsupported types always encodes");
        }
        payload.clear();
        payload.reserve(self.bytes_about());
        let out = &mut payload;
        match self {
            Record::Stage(record) => write(record, out),
            Record::Tick(record) => write(record, out),
            Record::Ddl(record) => write(record, out),
            Record::Reserve(until) => write(until, out),
            Record::Since(at) => write(at, out),
            Record::BaseRows(record) => write(record, out),
            Record::BaseVectors(record) => write(record, out),
            Record::BaseLanes(record) => write(record, out),
            Record::BaseReplies(record) => write(record, out),
            Record::BaseLetters(record) => write(record, out),
            Record::Together(record) => write(record, out),
            Record::Forget(names) => write(names, out),
            Record::Open(record) => write(record, out),
        }
        payload
    }

    /// What the payload of a record of staged rows takes, hardly ever more; 0 of others, which are small
    /// or rare.
    pub(super) fn bytes_about(&self) -> usize {
        match self {
            Record::Stage(stage) => stage.bytes_about(),
            Record::Together(stages) | Record::Open(stages) => {
                stages.iter().map(Stage::bytes_about).sum()
            }
            _ => 0,
        }
    }

    /// Decodes a payload of a kind. The error says what is wrong; the caller knows file and offset.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Record, String> {
        fn from_slice<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, String> {
            match bincode::serde::decode_from_slice(payload, bincode::config::standard()) {
                Ok((value, read)) if read == payload.len() => Ok(value),
                Ok((_, read)) => Err(format!("{} bytes too many", payload.len() - read)),
                Err(error) => Err(error.to_string()),
            }
        }
        let record = match kind {
            1 => from_slice(payload).map(Record::Stage),
            2 => from_slice(payload).map(Record::Tick),
            3 => from_slice(payload).map(Record::Ddl),
            4 => from_slice(payload).map(Record::Reserve),
            5 => from_slice(payload).map(Record::Since),
            6 => from_slice(payload).map(Record::BaseRows),
            7 => from_slice(payload).map(Record::BaseVectors),
            8 => from_slice(payload).map(Record::BaseLanes),
            9 => from_slice(payload).map(Record::BaseReplies),
            10 => from_slice(payload).map(Record::BaseLetters),
            11 => from_slice(payload).map(Record::Together),
            12 => from_slice(payload).map(Record::Forget),
            13 => from_slice(payload).map(Record::Open),
            other => Err(format!("unknown kind {other}")),
        };
        record.map_err(|detail| format!("cannot decode the record (kind {kind}): {detail}"))
    }
}

/// A stored record that does not fit what stands before it.
pub(super) fn corrupt(path: &str, offset: u64, detail: impl Into<String>) -> WorldError {
    WorldError::Corrupt {
        path: path.to_owned(),
        offset,
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_admitted_once_and_a_delete_guards_it_for_a_day() {
        let day = TOMBSTONE_SECONDS * 1_000_000;
        let live = Some(Held {
            version: 5,
            is_live: true,
            at: 10,
        });
        assert!(is_admitted(None, 0, 0));
        assert!(!is_admitted(live, 5, 11) && is_admitted(live, 6, 11));
        assert!(
            !is_admitted(live, 1, 10 + day),
            "a live row never forgets its version"
        );
        let gone = Some(Held {
            version: 5,
            is_live: false,
            at: 10,
        });
        assert!(!is_admitted(gone, 5, 9 + day) && is_admitted(gone, 1, 10 + day));
    }

    #[test]
    fn decoding_names_what_is_wrong() {
        let error = Record::decode(99, &[]).unwrap_err();
        assert!(error.contains("unknown kind 99"), "{error}");
        let mut bytes = Record::Reserve(7).encode();
        bytes.push(0);
        assert!(
            Record::decode(4, &bytes)
                .unwrap_err()
                .contains("1 bytes too many")
        );
    }
}
