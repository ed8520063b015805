//! Several threads that read one source: which lanes are whose, and how they end together.
//!
//! Idea: lanes have nothing in common, so that each can be fetched, decoded and staged on a thread of
//! its own. The first reader looks how many lanes there are and asks for others, a consumer each; with
//! one lane it stays alone.
//!
//! ```text
//! reader 0 ─ discover: 4 lanes, 3 readers ─┬─ lanes 0, 3 ─▶ sink
//!                                          ├─▶ reader 1: lane 1 ─▶ sink
//!                                          └─▶ reader 2: lane 2 ─▶ sink
//! ```
//!
//! Invariants: a lane has one reader for as long as the source runs, so its batches are staged in
//! order; when one reader ends, all end, and the first error is the source's.
//!
//! Limits: the number of readers is that of the first look; lanes that appear later are spread over
//! them. A source with a transaction topic, or with one for dead letters, has one reader: what those
//! keep is the source's, not a lane's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use engine::contract::SourceContext;
use engine::error::WorldError;
use xxhash_rust::xxh3::xxh3_64;

use super::client::Next;
use super::outlet::Own;
use super::{KafkaSource, Partition};
use crate::arroyo::server_for_hash;
use crate::envelope::Envelope;

/// The lanes of one reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Which reader.
    pub(super) index: usize,
    /// Of how many.
    pub(super) of: usize,
}

impl Share {
    /// Whether a partition's lane is this reader's.
    pub(super) fn has(&self, partition: &Partition, envelope: Envelope) -> bool {
        // The owner of a topic's hash, the same in every reader; partitions go round from there.
        let first = server_for_hash(xxh3_64(partition.0.as_bytes()), self.of);
        let reader = match envelope {
            Envelope::Debezium => first,
            Envelope::Append | Envelope::Upsert => {
                (first + usize::try_from(partition.1).unwrap_or(0)) % self.of
            }
        };
        reader == self.index
    }
}

/// What the readers of a source share.
#[derive(Default)]
pub(super) struct Together {
    is_over: AtomicBool,
    failed: Mutex<Option<WorldError>>,
}

impl Together {
    /// Whether a reader has ended, so that the others must.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn end(&self, ended: Result<(), WorldError>) {
        if let Err(error) = ended {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(error);
        }
    }
}

/// Ends the others when a reader ends, also by a panic.
struct Ending<'a>(&'a Together);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Reads until the end, on as many threads as there are lanes and `readers`.
pub(super) fn run(source: &KafkaSource, context: &SourceContext) -> Result<(), WorldError> {
    let together = Together::default();
    std::thread::scope(|scope| {
        let others = |first: Share| {
            for index in 1..first.of {
                let (share, together) = (Share { index, ..first }, &together);
                let reader = std::thread::Builder::new().name(format!("{}-{index}", context.name));
                let started = reader.spawn_scoped(scope, move || {
                    let ended = read(source, context, together, Some(share), &|_| {});
                    together.end(ended);
                });
                if let Err(error) = started {
                    let detail = format!("no thread for its reader {index}: {error}");
                    together.end(Err(super::failed(&context.name, detail)));
                    together.is_over.store(true, Ordering::Relaxed);
                }
            }
        };
        together.end(read(source, context, &together, None, &others));
    });
    let failed = together.failed.into_inner();
    match failed.unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn read(
    source: &KafkaSource,
    context: &SourceContext,
    together: &Together,
    share: Option<Share>,
    others: &dyn Fn(Share),
) -> Result<(), WorldError> {
    let _ending = Ending(together);
    let next = Next::default();
    let mut own = Own::new(source, context, Next::clone(&next))?;
    source.read(context, next, &mut own, share, (together, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_has_one_reader() {
        let all = |of| (0..of).map(move |index| Share { index, of });
        for of in 1..5 {
            for topic in ["users", "orders", ""] {
                for number in 0..17 {
                    let partition = (topic.to_owned(), number);
                    for envelope in [Envelope::Append, Envelope::Upsert, Envelope::Debezium] {
                        let readers = all(of).filter(|share| share.has(&partition, envelope));
                        assert_eq!(readers.count(), 1, "{partition:?} of {of}");
                    }
                }
            }
        }
        // Debezium's lane is the topic.
        let whole = |share: &Share| {
            let mut numbers =
                (0..9).map(|number| share.has(&("users".to_owned(), number), Envelope::Debezium));
            let first = numbers.next();
            numbers.all(|has| Some(has) == first)
        };
        assert!(all(4).all(|share| whole(&share)));
    }

    #[test]
    fn partitions_of_a_topic_are_spread_evenly() {
        for index in 0..3 {
            let share = Share { index, of: 3 };
            let its = (0..12).filter(|n| share.has(&("users".to_owned(), *n), Envelope::Upsert));
            assert_eq!(its.count(), 4);
        }
    }
}
