//! Arroyo's vocabulary under Arroyo's own names (`arroyo-types`, which is published nowhere), so
//! that the crate can take this module's place the day it is.
//!
//! The idea: [`Debezium`] is the *shape* of an event (images and an op, checked against each
//! other), [`UpdatingData`] its *meaning* for a relation; [`crate::envelope`] reads every change
//! through the two. A [`SignalMessage`] is what an event says beside data: a heartbeat is its
//! [`Watermark`]. Hash ranges say which of a source's readers owns a topic ([`crate::kafka`]). A
//! [`CheckpointBarrier`] is a signal that no envelope of ours carries: a consistent cut is a sealed time
//! here, and nothing has to travel with the data for it.
//!
//! ```text
//! {"before","after","op"} ─ Debezium::new (shape) ─▶ into_updating ─▶ Append | Update | Retract
//! ```
//!
//! Differences from Arroyo, on purpose: an update may lack `before` (PostgreSQL's default REPLICA
//! IDENTITY) and is then an [`UpdatingData::Append`] over the live row; a delete may lack it when the
//! message's key names the row. Nothing here panics on data.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::SystemTime;

/// How far event time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watermark {
    /// No event before this time follows.
    EventTime(SystemTime),
    /// The input is alive and has nothing to say.
    Idle,
}

/// A barrier that separates what belongs to a checkpoint from what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointBarrier {
    /// The checkpoint's number.
    pub epoch: u32,
    /// The oldest epoch that must still be kept.
    pub min_epoch: u32,
    /// When it was asked for.
    pub timestamp: SystemTime,
    /// Whether the pipeline ends behind it.
    pub then_stop: bool,
}

/// What travels between operators beside data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignalMessage {
    /// A checkpoint.
    Barrier(CheckpointBarrier),
    /// Progress of event time.
    Watermark(Watermark),
    /// Stop now.
    Stop,
    /// The input has ended.
    EndOfData,
}

/// What an event of a relation with updates means.
#[derive(Debug, Clone, PartialEq)]
pub enum UpdatingData<T> {
    /// The row goes.
    Retract(T),
    /// One row takes the place of another.
    Update {
        /// As it was.
        old: T,
        /// As it is.
        new: T,
    },
    /// A row comes.
    Append(T),
}

/// The op of a Debezium event; a snapshot's `r` reads as a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DebeziumOp {
    /// `c`, `r`
    Create,
    /// `u`
    Update,
    /// `d`
    Delete,
}

impl DebeziumOp {
    /// The letter on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            DebeziumOp::Create => "c",
            DebeziumOp::Update => "u",
            DebeziumOp::Delete => "d",
        }
    }
}

impl std::fmt::Display for DebeziumOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An op that changes no row, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an op that changes a row")]
pub struct NotARowOp;

impl FromStr for DebeziumOp {
    type Err = NotARowOp;

    fn from_str(op: &str) -> Result<Self, NotARowOp> {
        match op {
            "c" | "r" => Ok(DebeziumOp::Create),
            "u" => Ok(DebeziumOp::Update),
            "d" => Ok(DebeziumOp::Delete),
            _ => Err(NotARowOp),
        }
    }
}

/// A Debezium event whose images fit its op: a create or an update has `after`.
#[derive(Debug, Clone, PartialEq)]
pub struct Debezium<T> {
    /// The row before, as far as the source logs it.
    pub before: Option<T>,
    /// The row after.
    pub after: Option<T>,
    /// What happened.
    pub op: DebeziumOp,
}

/// The image that an op needs and the event lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event with \"op\":\"{op}\" has no \"after\"")]
pub struct MissingAfter {
    /// The op.
    pub op: DebeziumOp,
}

impl<T> Debezium<T> {
    /// Checks the shape.
    pub fn new(before: Option<T>, after: Option<T>, op: DebeziumOp) -> Result<Self, MissingAfter> {
        match (op, &after) {
            (DebeziumOp::Create | DebeziumOp::Update, None) => Err(MissingAfter { op }),
            _ => Ok(Debezium { before, after, op }),
        }
    }

    /// What the event means; `None` for a delete without an image, which only its key can name.
    pub fn into_updating(self) -> Option<UpdatingData<T>> {
        match (self.op, self.before, self.after) {
            (DebeziumOp::Delete, before, _) => before.map(UpdatingData::Retract),
            (DebeziumOp::Update, Some(old), Some(new)) => Some(UpdatingData::Update { old, new }),
            (_, _, after) => after.map(UpdatingData::Append),
        }
    }
}

/// Which of `servers` owns a hash.
///
/// # Panics
/// When there are no servers.
pub fn server_for_hash(hash: u64, servers: usize) -> usize {
    assert!(
        servers > 0,
        "a hash has an owner only where there are servers"
    );
    let range = u64::MAX / servers as u64;
    match servers {
        1 => 0,
        _ => ((hash / (range + 1)) as usize).min(servers - 1),
    }
}

/// The hashes that a server owns.
///
/// # Panics
/// When `server` is not one of `servers`.
pub fn range_for_server(server: usize, servers: usize) -> RangeInclusive<u64> {
    assert!(server < servers, "server {server} of {servers}");
    if servers == 1 {
        return 0..=u64::MAX;
    }
    let range = u64::MAX / servers as u64 + 1;
    let start = range * server as u64;
    match server + 1 == servers {
        true => start..=u64::MAX,
        false => start..=start + (range - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hash_has_one_owner() {
        for servers in 1..=9 {
            let mut next = Some(0u64);
            for server in 0..servers {
                let range = range_for_server(server, servers);
                assert_eq!(Some(*range.start()), next);
                for hash in [*range.start(), *range.end()] {
                    assert_eq!(
                        server_for_hash(hash, servers),
                        server,
                        "{hash} of {servers}"
                    );
                }
                next = range.end().checked_add(1);
            }
            assert_eq!(next, None);
        }
    }

    #[test]
    fn shapes_are_checked() {
        let error = Debezium::<u8>::new(Some(1), None, DebeziumOp::Update).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an event with \"op\":\"u\" has no \"after\""
        );
        let update = Debezium::new(Some(1), Some(2), DebeziumOp::Update).unwrap();
        assert_eq!(
            update.into_updating(),
            Some(UpdatingData::Update { old: 1, new: 2 })
        );
        let bare = Debezium::<u8>::new(None, None, DebeziumOp::Delete).unwrap();
        assert_eq!(bare.into_updating(), None);
        assert_eq!("r".parse(), Ok(DebeziumOp::Create));
        assert_eq!("t".parse::<DebeziumOp>(), Err(NotARowOp));
    }
}
