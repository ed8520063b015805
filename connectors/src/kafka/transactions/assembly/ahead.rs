//! What was lost when a connector was killed, and lies behind later transactions when it is sent again.
//!
//! ```text
//! partition 0: … 31 │ killed: the truncate of 32, and what follows, was not sent │ 31 32 33 34 …
//! partition 1: … 31 33 34 ───────────────────────── sent before ─────────────────│ 31 truncate of 32, 33 34 …
//! ```
//!
//! The idea: a connector that is killed loses of each partition the last that it had not sent, of one more
//! than of another. An event with a key comes again where it was lost, in its order. One without (a truncate)
//! comes again in any partition, perhaps behind events of later transactions: it is taken from there as a copy
//! and goes before them, and has no effect any more in its turn.
//!
//! So it may come although each partition has shown later transactions. The connector then tells ENDs again:
//! while it does, and until everything is here that was written with them, such an event is waited for.
//!
//! Invariants: only events without a key go ahead. Limits: what a connector writes within [`TOGETHER`] may
//! come in any order of the partitions. Of a transaction that goes on in pieces ([`super::begun`]) a truncate
//! that was lost is passed over, and counted as a part, when all partitions of its table have later pieces.

use super::current::Current;
use super::queue::{Id, Queue, Stay};
use super::{Assembly, BACKLOG, Place};
use crate::envelope::table::Delivery;

/// Within so many milliseconds a connector has written to all partitions what it sends at one time.
const TOGETHER: u64 = 1_000;

impl<M: Clone> Assembly<M> {
    /// Takes events of the current transaction that lie behind others' which are later.
    pub(super) fn reach_ahead(&mut self, delivery: &dyn Fn(Place, &M) -> Delivery) {
        let Some(current) = &mut self.current else {
            return;
        };
        for (place, queue) in &self.queues {
            let (id, member) = (&current.id, place.member);
            if !current.needs.contains_key(&member) || !queue.has_without_key(id) {
                continue;
            }
            let found = current.found.entry(member).or_default();
            for item in queue.without_key(id) {
                let is_first = delivery(*place, &item.message) == Delivery::First;
                if is_first && found.insert(item.order) {
                    current.ahead.push((*place, item.clone()));
                }
            }
        }
    }
}

impl<M> Assembly<M> {
    /// Whether a connector has begun again behind the END of the current transaction, and when it told the last
    /// END again.
    fn told_again(&self, current: &Current<M>) -> Option<u64> {
        let (offset, at) = self.again?;
        (offset > current.end).then_some(at)
    }

    /// Whether an event of the current transaction can come behind later ones.
    pub(super) fn may_come_again(&self, current: &Current<M>, queue: &Queue<M>, now: u64) -> bool {
        self.told_again(current).is_some_and(|at| {
            now < at + self.bounds.wait.max(TOGETHER) && !queue.is_dry_since(at + TOGETHER)
        })
    }

    /// Whether it would be known by now that a connector begins again: all ENDs have come that were written
    /// with the events which say that what is lacking cannot come.
    pub(super) fn knows_ends(&self, current: &Current<M>) -> bool {
        let asked_at = self.heads_at(current) + TOGETHER;
        self.told_again(current).is_some()
            || self.ends.len() > BACKLOG
            || self.told_all_at.is_some_and(|at| at >= asked_at)
    }

    /// Whether the end of the transaction topic is to be looked for now, to know it.
    pub(super) fn wants_ends(&self, current: &Current<M>, now: u64) -> bool {
        let is_told = |id| self.told.contains_key(id);
        let mut heads = self.heads(current);
        heads.any(|(id, _)| is_told(id))
            && !self.knows_ends(current)
            && now >= self.heads_at(current) + TOGETHER
    }

    /// Whether it is to be known now what was written to the partitions of which something is lacking.
    pub(super) fn wants_places(&self, current: &Current<M>, now: u64) -> bool {
        let again = self.told_again(current);
        again.is_some_and(|at| now >= at + TOGETHER)
    }

    /// When the last of them came, or the END.
    fn heads_at(&self, current: &Current<M>) -> u64 {
        let last = self.heads(current).map(|(_, stay)| stay.first_at).max();
        last.unwrap_or(0).max(current.told_at)
    }

    /// Whether everything of a source lies in one partition, in its order.
    pub(super) fn is_alone(&self, member: u64) -> bool {
        let own = self.queues.keys().filter(|place| place.member == member);
        own.count() == 1
    }

    /// What stands first in partitions of which something is lacking, where they are several.
    fn heads<'a>(&'a self, current: &'a Current<M>) -> impl Iterator<Item = (&'a Id, Stay)> {
        let is_lacking = |member: u64| current.lacking().any(|lacking| lacking == member);
        let own = self.queues.iter();
        let own =
            own.filter(move |(place, _)| is_lacking(place.member) && !self.is_alone(place.member));
        own.filter_map(|(_, queue)| queue.first())
    }
}
