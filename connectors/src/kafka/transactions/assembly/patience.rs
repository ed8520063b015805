//! How long something is waited for, and what is given up then.

use std::sync::Arc;

use super::current::Current;
use super::queue::{Id, Queue, Stay};
use super::{Assembly, BACKLOG, OUTAGE_FACTOR, Place, Split};
use crate::envelope::table::Delivery;

impl<M> Assembly<M> {
    /// Why the current transaction is not waited for any longer.
    pub(super) fn hopeless(&self, now: u64) -> Option<Split> {
        let current = self.current.as_ref()?;
        // Before others that wait behind one whose END does not come.
        let is_over = self.held > self.bounds.bytes && self.untold().next().is_none();
        let is_too_large = current.bytes > self.bounds.bytes || self.is_too_large(&current.id);
        if is_too_large || is_over {
            return Some(Split::TooLarge);
        }
        let outage = self.bounds.wait * OUTAGE_FACTOR;
        if now >= current.began_at.max(current.touched_at) + outage {
            return Some(Split::Missing);
        }
        let cannot = |member: u64| {
            let is_ready = self.members.get(&member).is_some_and(|one| one.is_ready);
            is_ready && self.lacking_places(current, member, now).next().is_none()
        };
        let mut lacking = current.lacking();
        lacking.all(cannot).then_some(Split::Missing)
    }

    /// The partitions of a source from which events of the current transaction may still come.
    pub(super) fn lacking_places<'a>(
        &'a self,
        current: &'a Current<M>,
        member: u64,
        now: u64,
    ) -> impl Iterator<Item = Place> + 'a {
        let wait = self.bounds.wait;
        let until = current.told_at + wait;
        let proof = self.proof(current, member);
        let is_behind = self.ends.len() > BACKLOG;
        self.of(member)
            .filter(move |(_, queue)| {
                let is_past = match queue.first() {
                    Some(_) if self.is_shown_later(queue) => {
                        proof.is_none_or(|proof| proof.holds(queue, now, wait))
                    }
                    // The END of the first is not read yet: it is later.
                    Some(_) => is_behind && !queue.has(&current.id),
                    None => false,
                };
                !is_past && (!queue.is_dry_since(until) || queue.has(&current.id))
            })
            .map(|(place, _)| *place)
    }

    /// Transactions at the heads of the queues whose END was not told.
    pub(super) fn untold(&self) -> impl Iterator<Item = (&Id, Stay)> {
        let heads = self.queues.values().filter_map(Queue::first);
        heads.filter(|(id, _)| !self.told.contains_key(*id))
    }

    /// The oldest transaction whose END was not told, if no other is before it. One of which pieces went
    /// on is the oldest.
    pub(super) fn next_untold(&self) -> Option<&Id> {
        let untold = self.untold().filter(|_| self.current.is_none());
        let oldest = untold.min_by_key(|(id, stay)| (!self.is_begun(id), stay.first_at));
        oldest.map(|(id, _)| id)
    }

    /// Whether the END of the transaction at the head of a queue cannot come any more: one was told that
    /// follows it. (One that a connector sends again stood before it, too, and was taken from there.)
    fn is_skipped(
        &self,
        place: Place,
        queue: &Queue<M>,
        head: &Id,
        delivery: &dyn Fn(Place, &M) -> Delivery,
    ) -> bool {
        let current = self.current.as_ref();
        let current = current.filter(|current| !current.places.contains(&place));
        let current = current.map(|current| &current.id);
        // A late source may have taken it before it stood with the others.
        let member = self.members.get(&place.member);
        let was_early = |id: &Id| member.is_none_or(|member| member.early.has(id));
        let is_later = |id: &Id| {
            let is_told = match self.is_current(id) {
                true => current.is_some(),
                false => self.told.contains_key(id),
            };
            id != head && is_told && !self.passed.has(id) && !was_early(id)
        };
        let is_any = current.is_some_and(|id| queue.has(id) && is_later(id))
            || queue.has_any(self.told.keys(), is_later);
        let is_first = |message: &M| delivery(place, message) == Delivery::First;
        is_any && queue.has_unseen(is_later, is_first)
    }

    pub(super) fn is_current(&self, id: &Id) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|current| current.id == *id)
    }

    /// Gives up the oldest transaction at the head of a queue whose END does not come, if there is one
    /// now.
    pub(super) fn abandon(&mut self, now: u64, delivery: &dyn Fn(Place, &M) -> Delivery) -> bool {
        let is_over = self.held > self.bounds.bytes;
        let wait = self.bounds.wait;
        let (told_all_at, ended_at) = (self.told_all_at, self.ended_at);
        let is_silent = self.ends.is_empty() && self.current.is_none();
        let is_due = move |last_at: u64, is_paused: bool| {
            let told_all = told_all_at.is_some_and(|at| at >= last_at + wait);
            let outage = last_at.max(ended_at) + wait * OUTAGE_FACTOR;
            told_all && !is_paused || is_silent && now >= outage
        };
        let skipped = self.queues.iter().find_map(|(place, queue)| {
            let (id, _) = queue.first()?;
            let is_untold = !self.told.contains_key(id);
            (is_untold && self.is_skipped(*place, queue, id, delivery)).then(|| Arc::clone(id))
        });
        if let Some(id) = skipped {
            self.let_go(&id, Split::NoEnd, delivery);
            return true;
        }
        let due = self.untold().filter(|(id, stay)| {
            // The last event of it, in whatever partition.
            let mut queues = self.queues.values();
            let last = queues.clone().filter_map(|queue| queue.last_of(id)).max();
            let is_paused = queues.any(|queue| queue.is_paused_in(id));
            is_over || is_due(last.unwrap_or(stay.last_at), is_paused)
        });
        let oldest = due.min_by_key(|(_, stay)| stay.first_at);
        let Some(id) = oldest.map(|(id, _)| Arc::clone(id)) else {
            return self.abandon_begun(&|last_at| is_due(last_at, false));
        };
        let split = match is_over {
            true => Split::TooLarge,
            false => Split::NoEnd,
        };
        self.let_go(&id, split, delivery);
        true
    }

    /// Gives a transaction up. One of which only what was sent again is here has passed: its END was told
    /// before a restart.
    fn let_go(&mut self, id: &Id, split: Split, delivery: &dyn Fn(Place, &M) -> Delivery) {
        let mut queues = self.queues.iter();
        let is_any = queues.any(|(place, queue)| {
            queue.has_unseen_of(id, |message| delivery(*place, message) == Delivery::First)
        });
        if is_any || self.is_begun(id) {
            return self.give_up(id, split);
        }
        self.passed.insert(id);
        self.silent.insert(id);
    }
}
