//! What was lost when a connector was killed, and lies behind later transactions when it is sent again.
//!
//! ```text
//! partition 0: … 31 │ killed: the truncate of 32, and what follows, was not sent │ 31 32 33 34 …
//! partition 1: … 31 33 34 ───────────────────────── sent before ─────────────────│ 31 truncate of 32, 33 34 …
//! ```
//!
//! The idea: a connector that is killed loses of each partition the last that it had not sent, of one more
//! than of another. An event with a key comes again where it was lost, in its order. A truncate has none, and
//! comes again in any partition, perhaps behind events of later transactions: it is taken from there as a copy
//! and goes before them. In its turn it is known by its place in the source's log, and has no effect.
//!
//! So it may come although each partition has shown later transactions: then, too, everything is waited for
//! that was written by the time when they had come. Not for long, unless a connector has begun again, which
//! tells ENDs again.
//!
//! Invariants: only truncates whose place is known go ahead. Limits: what a connector writes within
//! [`TOGETHER`] may come in any order of the partitions. Of a transaction that goes on in pieces
//! ([`super::begun`]) a truncate that was lost is passed over, and counted as a part, when all partitions of
//! its table have later pieces.

use super::current::Current;
use super::queue::Queue;
use super::{Assembly, Place};
use crate::envelope::table::Delivery;

/// Within so many milliseconds a connector has written to all partitions what it sends at one time.
const TOGETHER: u64 = 1_000;
/// Partitions are looked at so often, milliseconds, while much is lacking.
const LOOK: u64 = 250;

/// What proves that nothing of the current transaction lies behind the later ones of a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proof {
    /// Everything is here that was written until then.
    pub(super) dry: u64,
    /// A connector has begun again, and may be sending it.
    is_again: bool,
}

impl Proof {
    /// Whether it is there for a partition, or nothing speaks against it for long enough.
    pub(super) fn holds<M>(&self, queue: &Queue<M>, now: u64, wait: u64) -> bool {
        let patience = match self.is_again {
            // A partition that cannot be read is waited for as ever. This one is not read for want of room.
            true if !queue.is_paused() => u64::MAX,
            true => wait,
            false => TOGETHER,
        };
        queue.is_dry_since(self.dry) || now >= self.dry.saturating_add(patience)
    }
}

impl<M: Clone> Assembly<M> {
    /// Takes truncates of the current transaction that lie behind others' which are later.
    pub(super) fn reach_ahead(&mut self, delivery: &dyn Fn(Place, &M) -> Delivery) {
        let Some(current) = &mut self.current else {
            return;
        };
        for (place, queue) in &self.queues {
            let (id, member) = (&current.id, place.member);
            if !current.needs.contains_key(&member) || !queue.has_truncate(id) {
                continue;
            }
            let found = current.found.entry(member).or_default();
            for item in queue.truncates(id) {
                let is_first = delivery(*place, &item.message) == Delivery::First;
                if is_first && found.insert(item.order) {
                    current.ahead.push((*place, item.clone()));
                }
            }
        }
    }
}

impl<M> Assembly<M> {
    /// The partitions of a source.
    pub(super) fn of(&self, member: u64) -> impl Iterator<Item = (&Place, &Queue<M>)> + Clone {
        let place = |partition| Place { member, partition };
        self.queues.range(place(i32::MIN)..=place(i32::MAX))
    }

    /// Whether a partition has shown a later transaction than the current one. (What lies deeper of this is sent
    /// again, or has gone ahead.)
    pub(super) fn is_shown_later(&self, queue: &Queue<M>) -> bool {
        let first = queue.first();
        first.is_some_and(|(first, _)| self.told.contains_key(first))
    }

    /// What proves that nothing of the current transaction comes to a source's partitions that have shown later
    /// ones. `None`: that alone, where it has one partition. Cost: linear in its partitions.
    pub(super) fn proof(&self, current: &Current<M>, member: u64) -> Option<Proof> {
        self.of(member).nth(1)?;
        let queues = self.of(member).map(|(_, queue)| queue);
        let later = queues.filter(|queue| self.is_shown_later(queue));
        let last = later.filter_map(|queue| Some(queue.first()?.1.first_at));
        let shown_at = last.max().unwrap_or(0).max(current.told_at);
        let again = self.again;
        let again = again.filter(|(offset, at)| {
            *offset > current.end || at.saturating_add(self.bounds.wait) >= shown_at
        });
        let again_at = again.map_or(0, |(_, at)| at);
        Some(Proof {
            dry: (shown_at.max(again_at) + TOGETHER).next_multiple_of(LOOK),
            is_again: again.is_some(),
        })
    }
}
