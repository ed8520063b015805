//! What is around an assembly: sources and partitions that come and go, and what it wants to know.

use std::collections::{BTreeMap, BTreeSet};

use super::ahead::Proof;
use super::ids::Ids;
use super::queue::Queue;
use super::{Assembly, EARLY_MAX, Member, Parted, Place};

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
            is_new: is_late,
            is_ready: false,
            early: Ids::new(EARLY_MAX),
        };
        self.members.insert(number, member);
    }

    /// The transaction topic is another one: nothing of it has passed, and all of its ENDs are every
    /// source's own.
    pub fn begin_anew(&mut self) {
        self.through = None;
        self.again = None;
        for member in self.members.values_mut() {
            member.from = -1;
        }
        // Those of the old one still count, but lie nowhere.
        let ends = self.ends.iter_mut().map(|(end, _)| &mut end.offset);
        let current = self.current.iter_mut().map(|current| &mut current.end);
        ends.chain(current).for_each(|offset| *offset = -1);
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
        self.forget_begun(member);
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
    /// goes on by itself. `None`: nobody could say, and it ends where it is read to its end first.
    pub fn begin(&mut self, place: Place, next: i64, high: Option<i64>) {
        let member = self.members.get(&place.member);
        let is_late = member.is_some_and(|member| member.is_late);
        let free_until = if is_late { high.unwrap_or(i64::MAX) } else { 0 };
        self.queues.insert(place, Queue::new(next, free_until));
    }

    /// The transaction topic ended at `from` before the ends of a late source's partitions were asked
    /// for: what was told below, the source has in what it finds.
    pub fn begin_from(&mut self, member: u64, from: i64) {
        if let Some(member) = self.members.get_mut(&member)
            && member.is_late
            && !member.is_ready
        {
            member.from = member.from.max(from);
        }
    }

    /// A partition is read no longer: what waits of it goes on as ever, and nothing more is waited for.
    /// False of one that never began.
    pub fn close(&mut self, place: Place) -> bool {
        let queue = self.queues.get_mut(&place);
        queue.map(Queue::close).is_some()
    }

    /// Takes out the partitions that are read no longer and of which nothing waits any more.
    pub fn drained(&mut self) -> Vec<Place> {
        let items = self.current.as_ref().map(|current| &current.items);
        let is_gathered = |place: &Place| items.is_some_and(|items| items.contains_key(place));
        let drained = self.queues.iter().filter(|(_, queue)| queue.is_drained());
        let drained: Vec<Place> = drained
            .map(|(place, _)| *place)
            .filter(|place| !is_gathered(place))
            .collect();
        for place in &drained {
            self.queues.remove(place);
        }
        drained
    }

    /// What waits of a partition is forgotten.
    fn end(&mut self, place: Place) {
        if let Some(queue) = self.queues.remove(&place) {
            self.held -= queue.bytes();
        }
        if let Some(current) = &mut self.current {
            current.ahead.retain(|(ahead, _)| *ahead != place);
            let items = current.items.remove(&place).into_iter().flatten();
            let bytes: usize = items.map(|item| item.bytes).sum();
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
        if let Some(current) = &self.current {
            let is_over = now >= current.told_at + self.bounds.wait;
            for member in current.lacking() {
                let is_late = |proof: Proof| now >= proof.dry;
                if is_over || self.proof(current, member).is_some_and(is_late) {
                    let lacking = self.lacking_places(current, member, now);
                    let is_shown_later = |place: &Place| self.is_shown_later(&self.queues[place]);
                    places.extend(lacking.filter(|place| is_over || is_shown_later(place)));
                }
            }
        }
        let wait = self.bounds.wait;
        let untold = self.untold().map(|(_, stay)| stay.last_at);
        let is_untold = untold.chain(self.begun_since()).any(|at| now >= at + wait);
        (places, is_untold)
    }

    /// All that was written to a partition until then has arrived.
    pub fn dry(&mut self, place: Place, at: u64) {
        if let Some(queue) = self.queues.get_mut(&place) {
            queue.dry(at);
        }
    }

    /// A partition was read to its end.
    pub fn reached(&mut self, place: Place) {
        if let Some(queue) = self.queues.get_mut(&place) {
            queue.reached();
        }
    }

    /// All ENDs that were written until then have arrived.
    pub fn told_all(&mut self, at: u64) {
        self.told_all_at = self.told_all_at.max(Some(at));
    }

    /// Partitions that ran ahead and are not to be fetched for now. While there is room, those of which
    /// something was waited for too long are read on: what the current transaction lacks, and the rest of the
    /// next one, of which nobody knows else whether its END is late or lost.
    pub fn paused(&mut self, now: u64) -> BTreeSet<Place> {
        if self.held > self.bounds.bytes / 2 {
            self.is_full = true;
        } else if self.held < self.bounds.bytes / 4 {
            self.is_full = false;
        }
        let has_room = self.held <= self.bounds.bytes / 4 * 3;
        let needed = match self.is_full && has_room {
            true => self.needed(now),
            false => Vec::new(),
        };
        let mut paused = BTreeSet::new();
        for (place, queue) in &mut self.queues {
            let is_ahead = self.is_full && queue.first().is_some() && !needed.contains(place);
            queue.pause(is_ahead, now);
            if is_ahead {
                paused.insert(*place);
            }
        }
        paused
    }

    /// Partitions of which something was waited for too long.
    fn needed(&self, now: u64) -> Vec<Place> {
        let (mut needed, _) = self.overdue(now);
        if let Some(id) = self.next_untold() {
            let its = self.queues.iter().filter(|(_, queue)| queue.has_only(id));
            let last = its.clone().filter_map(|(_, queue)| queue.last_of(id)).max();
            let is_over = last.is_some_and(|last| now >= last + self.bounds.wait);
            needed.extend(its.filter(|_| is_over).map(|(place, _)| *place));
        }
        needed
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

    /// Takes out the sources that were late and have come to where the others stand.
    pub fn caught_up(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.caught_up)
    }

    /// Takes out, by source, how many events were sent again and dropped before they went on.
    pub fn echoes(&mut self) -> BTreeMap<u64, u64> {
        std::mem::take(&mut self.echoes)
    }

    /// Takes out the transactions that became visible in parts since the last call.
    pub fn splits(&mut self) -> Vec<Parted> {
        std::mem::take(&mut self.splits)
    }
}
