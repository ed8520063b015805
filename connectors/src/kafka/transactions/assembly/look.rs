//! What is around an assembly: sources and partitions that come and go, and what it wants to know.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ids::Ids;
use super::queue::Queue;
use super::{Assembly, EARLY_MAX, Member, Place, Split};

impl<M> Assembly<M> {
    /// Waits longer from now on, if this is longer.
    pub fn wait_at_least(&mut self, wait: u64) {
        self.bounds.wait = self.bounds.wait.max(wait);
    }

    /// A source of a topic takes part in transactions whose END is at `from` or above; a late one when
    /// it has read what was there when it began.
    pub fn join(&mut self, number: u64, topic: &str, from: i64, is_late: bool) {
        let member = Member {
            topic: topic.to_owned(),
            from,
            is_late,
            is_ready: false,
            early: Ids::new(EARLY_MAX),
        };
        self.members.insert(number, member);
    }

    /// All ENDs are a source's own from now on.
    pub fn begin_anew(&mut self, member: u64) {
        if let Some(member) = self.members.get_mut(&member) {
            member.from = 0;
        }
    }

    /// ENDs are read from this offset on.
    pub fn began(&mut self, offset: i64) {
        self.through.get_or_insert(offset);
    }

    /// Whether a source has not come to where it began later than others.
    pub fn is_late(&self, member: u64) -> bool {
        self.members.get(&member).is_some_and(|one| one.is_late)
    }

    /// A source is gone, with all that waits of it.
    pub fn leave(&mut self, member: u64) {
        self.members.remove(&member);
        if let Some(current) = &mut self.current {
            current.needs.remove(&member);
        }
        let places: Vec<Place> = self.queues.keys().copied().collect();
        for place in places.into_iter().filter(|place| place.member == member) {
            self.end(place);
        }
    }

    /// All partitions of a source are known.
    pub fn ready(&mut self, member: u64) {
        if let Some(member) = self.members.get_mut(&member) {
            member.is_ready = true;
        }
    }

    /// A partition is read from an offset on, and ends at `high` now: what a late source finds below
    /// goes on by itself.
    pub fn begin(&mut self, place: Place, next: i64, high: i64) {
        let member = self.members.get(&place.member);
        let is_late = member.is_some_and(|member| member.is_late);
        let free_until = if is_late { high } else { 0 };
        self.queues.insert(place, Queue::new(next, free_until));
    }

    /// A partition is read no longer: what waits of it is forgotten.
    pub fn end(&mut self, place: Place) {
        if let Some(queue) = self.queues.remove(&place) {
            self.held -= queue.bytes();
        }
        if let Some(current) = &mut self.current
            && let Some(items) = current.items.remove(&place)
        {
            let bytes: usize = items.iter().map(|item| item.bytes).sum();
            current.bytes -= bytes;
            self.held -= bytes;
        }
    }
}

impl<M> Assembly<M> {
    /// What should be looked at, because a wait for it is over: partitions, and whether the
    /// transaction topic.
    pub fn overdue(&self, now: u64) -> (Vec<Place>, bool) {
        let mut places = Vec::new();
        if let Some(current) = &self.current
            && now >= current.touched_at + self.bounds.wait
        {
            for member in current.lacking() {
                places.extend(self.lacking_places(current, member, now));
            }
        }
        let wait = self.bounds.wait;
        let is_untold = self.untold().any(|(_, stay)| now >= stay.last_at + wait);
        (places, is_untold)
    }

    /// A partition's log ended at `high` a moment ago.
    pub fn looked(&mut self, place: Place, high: i64, now: u64) {
        if let Some(queue) = self.queues.get_mut(&place) {
            queue.looked(high, now);
        }
    }

    /// All ENDs that were written a moment ago have arrived.
    pub fn told_all(&mut self, now: u64) {
        self.told_all_at = Some(now);
    }

    /// Partitions that ran ahead and are not to be fetched for now. Never one that the current
    /// transaction still lacks.
    pub fn paused(&mut self) -> BTreeSet<Place> {
        if self.held > self.bounds.bytes / 2 {
            self.is_full = true;
        } else if self.held < self.bounds.bytes / 4 {
            self.is_full = false;
        }
        let all = self.queues.iter().filter(|_| self.is_full);
        let ahead = all.filter(|(_, queue)| queue.first().is_some());
        ahead.map(|(place, _)| *place).collect()
    }

    /// What follows the last END that has passed; `None` before the first.
    pub fn through(&self) -> Option<i64> {
        self.through
    }

    /// ENDs that wait.
    pub fn ends(&self) -> usize {
        self.ends.len()
    }

    /// Bytes that wait.
    pub fn held_bytes(&self) -> usize {
        self.held
    }

    /// Takes out the sources that had events of a transaction whose END names none of their topic.
    pub fn strangers(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.strangers)
    }

    /// Takes out the transactions that became visible in parts since the last call.
    pub fn splits(&mut self) -> Vec<(Arc<str>, Split)> {
        std::mem::take(&mut self.splits)
    }
}
