//! Which events may go on, and which go together.
//!
//! ```text
//! partitions ─▶ queues ─┬ in no transaction, seen before, of one that has passed ─▶ go on
//!                       └ of the transaction that is next ─▶ current ─ all there? ─▶ go on together
//! transaction topic ─▶ ENDs in their order ─────────────────────▲
//! ```
//!
//! The idea: a connector sends transactions one after another, so every partition has them in the
//! order of the transaction topic. The transaction whose END is next takes its events from the heads
//! of the queues; it is whole when of each table that is read as many different events are there as
//! its END tells.
//!
//! An event that is missing is waited for while it can still come. It cannot when of each partition of
//! its table one of these is known: a later transaction's event has arrived; everything that was
//! written until the wait was over has arrived; it is no longer read. Then, and when a bound is
//! reached, what is there goes on as it is, and what follows of the transaction goes on by itself.
//!
//! Invariants: no event passes an earlier one of its partition; whole transactions go on in the order
//! of their ENDs. A pure structure: no clock, no thread. Times are milliseconds.
//!
//! Limits: an END that a connector sends again after its restart with a count of only the rest counts
//! as told.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::queue::{Id, Item, Queue};
use crate::envelope::InTransaction;

/// Transactions that are remembered as passed: what a connector that restarts sends again.
const PASSED_MAX: usize = 65_536;
/// The same of transactions that a source took while it caught up.
const EARLY_MAX: usize = 4_096;
/// While a partition cannot be looked at, the wait is so many times as long.
const OUTAGE_FACTOR: u64 = 12;

/// Names a partition of a source of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The source's number in the group.
    pub member: u64,
    /// Its topic's partition.
    pub partition: i32,
}

/// An END of the transaction topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The transaction.
    pub id: Arc<str>,
    /// Where the record lies.
    pub offset: i64,
    /// Its events by table.
    pub tables: Vec<(String, u64)>,
}

/// Why a transaction became visible in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// The transaction topic told nothing of it in time.
    NoEnd,
    /// Not all of its events can come, or came in time.
    Missing,
    /// It holds more than TRANSACTION_BYTES_MAX.
    TooLarge,
}

/// An event as it arrives.
#[derive(Debug)]
pub struct Arrival<M> {
    /// Its transaction.
    pub transaction: Option<InTransaction>,
    /// Its offset.
    pub offset: i64,
    /// What it holds in memory.
    pub bytes: usize,
    /// The event.
    pub message: M,
}

/// Bounds of waiting.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest wait, milliseconds.
    pub wait: u64,
    /// Most bytes that wait.
    pub bytes: usize,
}

/// The last ids of some.
#[derive(Debug)]
struct Ids {
    known: HashSet<Id>,
    order: VecDeque<Id>,
    max: usize,
}

impl Ids {
    fn new(max: usize) -> Ids {
        Ids {
            known: HashSet::new(),
            order: VecDeque::new(),
            max,
        }
    }

    fn insert(&mut self, id: &Id) {
        if self.known.insert(Arc::clone(id)) {
            self.order.push_back(Arc::clone(id));
            if self.order.len() > self.max
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    fn has(&self, id: &str) -> bool {
        self.known.contains(id)
    }
}

/// A source of the group.
#[derive(Debug)]
struct Member {
    topic: String,
    /// ENDs below this offset are not its own.
    from: i64,
    /// It joined later than others and has not come to where they stand: it is not waited for.
    is_late: bool,
    /// Whether all of its partitions are known.
    is_ready: bool,
    /// Transactions of which it took events before it stood with the others.
    early: Ids,
}

/// The transaction that is next.
#[derive(Debug)]
struct Current<M> {
    id: Id,
    end: i64,
    /// By source, how many different events it has.
    needs: BTreeMap<u64, u64>,
    /// Sources of which it names no event.
    strangers: BTreeSet<u64>,
    found: HashMap<u64, HashSet<(Option<u64>, i32, i64)>>,
    items: BTreeMap<Place, VecDeque<Item<M>>>,
    bytes: usize,
    began_at: u64,
    /// When its END, or the last of its events, came.
    touched_at: u64,
    /// It was taken before: this is a re-delivery.
    is_again: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Assembly<M> {
    bounds: Bounds,
    members: BTreeMap<u64, Member>,
    queues: BTreeMap<Place, Queue<M>>,
    ends: VecDeque<(End, u64)>,
    /// The ids of `ends`.
    told: HashMap<Id, usize>,
    current: Option<Current<M>>,
    passed: Ids,
    /// What follows the last END that has passed.
    through: Option<i64>,
    held: usize,
    is_full: bool,
    /// When the last END came, and when all that were written had come.
    ended_at: u64,
    told_all_at: Option<u64>,
    splits: Vec<(Id, Split)>,
    strangers: BTreeSet<u64>,
}

impl<M> Assembly<M> {
    /// Nothing waits.
    pub fn new(bounds: Bounds) -> Assembly<M> {
        Assembly {
            bounds,
            members: BTreeMap::new(),
            queues: BTreeMap::new(),
            ends: VecDeque::new(),
            told: HashMap::new(),
            current: None,
            passed: Ids::new(PASSED_MAX),
            through: None,
            held: 0,
            is_full: false,
            ended_at: 0,
            told_all_at: None,
            splits: Vec::new(),
            strangers: BTreeSet::new(),
        }
    }

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

    /// An event arrived. One of a partition that is not read is dropped.
    pub fn arrive(&mut self, place: Place, arrival: Arrival<M>, now: u64) {
        let Some(queue) = self.queues.get_mut(&place) else {
            return;
        };
        let transaction = arrival.transaction;
        let total = transaction.as_ref().and_then(|one| one.total_order);
        let order = match transaction.as_ref().and_then(|one| one.table_order) {
            Some(order) => (Some(order), 0, 0),
            None => (None, place.partition, arrival.offset),
        };
        self.held += arrival.bytes;
        let item = Item {
            id: transaction.map(|one| one.id.into()),
            order,
            total,
            offset: arrival.offset,
            bytes: arrival.bytes,
            message: arrival.message,
        };
        queue.push(item, now);
    }

    /// An END arrived.
    pub fn told(&mut self, end: End, now: u64) {
        self.ended_at = now;
        *self.told.entry(Arc::clone(&end.id)).or_default() += 1;
        self.ends.push_back((end, now));
    }

    /// The next events that go on, in this order; `has_seen` tells those that were taken before. To be
    /// called again until there are none.
    pub fn step(&mut self, now: u64, has_seen: &dyn Fn(Place, &M) -> bool) -> Vec<(Place, M)> {
        loop {
            let mut out = self.take_free(has_seen);
            if !out.is_empty() {
                return out;
            }
            if self.current.is_some() || self.next_end(now) {
                self.gather(now, has_seen);
                let split = match self.is_whole() {
                    true => None,
                    false => match self.hopeless(now) {
                        Some(split) => Some(split),
                        None if self.abandon(now) => continue,
                        None => return out,
                    },
                };
                out = self.finish(split);
            } else if !self.abandon(now) {
                return out;
            }
            if !out.is_empty() {
                return out;
            }
        }
    }

    /// Pops what needs no transaction, but for what stands behind events of the current one.
    fn take_free(&mut self, has_seen: &dyn Fn(Place, &M) -> bool) -> Vec<(Place, M)> {
        let mut out = Vec::new();
        for (place, queue) in &mut self.queues {
            let current = self.current.as_ref();
            if current.is_some_and(|current| current.items.contains_key(place)) {
                continue;
            }
            let member = self.members.get_mut(&place.member);
            let Some(member) = member else { continue };
            while let Some(head) = queue.head() {
                if !is_free(*place, queue, head, member, &mut self.passed, has_seen) {
                    break;
                }
                let item = queue.pop().expect("looked at above");
                self.held -= item.bytes;
                out.push((*place, item.message));
            }
        }
        out
    }

    /// Makes the next END current; those of transactions that have passed are passed over.
    fn next_end(&mut self, now: u64) -> bool {
        while let Some((end, told_at)) = self.ends.pop_front() {
            if let Some(count) = self.told.get_mut(&end.id) {
                *count -= 1;
                if *count == 0 {
                    self.told.remove(&end.id);
                }
            }
            if self.passed.has(&end.id) {
                self.through = Some(end.offset + 1);
                continue;
            }
            self.catch_up();
            let (mut needs, mut strangers) = (BTreeMap::new(), BTreeSet::new());
            for (number, member) in &self.members {
                let is_early = end.offset < member.from || member.early.has(&end.id);
                if is_early || member.is_late {
                    continue;
                }
                let tables = end.tables.iter();
                let own = tables.filter(|(table, _)| is_topic_of(&member.topic, table));
                match own.map(|(_, count)| count).sum() {
                    0 => strangers.insert(*number),
                    count => needs.insert(*number, count).is_none(),
                };
            }
            self.current = Some(Current {
                needs,
                strangers,
                id: end.id,
                end: end.offset,
                found: HashMap::new(),
                items: BTreeMap::new(),
                bytes: 0,
                began_at: now,
                touched_at: told_at,
                is_again: false,
            });
            return true;
        }
        false
    }

    /// Late sources that have come to where they began are late no longer.
    fn catch_up(&mut self) {
        for (number, member) in &mut self.members {
            let mut queues = self.queues.iter();
            let is_behind = queues.any(|(place, queue)| {
                place.member == *number && queue.is_catching_up()
            });
            member.is_late &= is_behind || !member.is_ready;
        }
    }

    /// Takes the current transaction's events from the heads of the queues, with what stands between
    /// them.
    fn gather(&mut self, now: u64, has_seen: &dyn Fn(Place, &M) -> bool) {
        let Some(current) = &mut self.current else {
            return;
        };
        for (place, queue) in &mut self.queues {
            let Some(member) = self.members.get_mut(&place.member) else {
                continue;
            };
            while let Some(head) = queue.head() {
                let is_own = head.id.as_ref() == Some(&current.id);
                if is_own {
                    current.is_again |= has_seen(*place, &head.message);
                    let found = current.found.entry(place.member).or_default();
                    found.insert(head.order);
                    current.touched_at = now;
                } else if !current.items.contains_key(place)
                    || !is_free(*place, queue, head, member, &mut self.passed, has_seen)
                {
                    break;
                }
                let item = queue.pop().expect("looked at above");
                current.bytes += item.bytes;
                current.items.entry(*place).or_default().push_back(item);
            }
        }
    }

    fn is_whole(&self) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        current.is_again || current.lacking().next().is_none()
    }

    /// Why the current transaction is not waited for any longer.
    fn hopeless(&self, now: u64) -> Option<Split> {
        let current = self.current.as_ref()?;
        if current.bytes > self.bounds.bytes || self.held > self.bounds.bytes {
            return Some(Split::TooLarge);
        }
        let outage = self.bounds.wait * OUTAGE_FACTOR;
        if now >= current.began_at.max(current.touched_at) + outage {
            return Some(Split::Missing);
        }
        let cannot = |member: u64| {
            let is_ready = self.members.get(&member).is_some_and(|one| one.is_ready);
            is_ready && self.lacking_places(current, member).next().is_none()
        };
        let mut lacking = current.lacking();
        lacking.all(cannot).then_some(Split::Missing)
    }

    /// The partitions of a source from which events of the current transaction may still come.
    fn lacking_places<'a>(
        &'a self,
        current: &'a Current<M>,
        member: u64,
    ) -> impl Iterator<Item = Place> + 'a {
        let own = self.queues.iter();
        let own = own.filter(move |(place, _)| place.member == member);
        let until = current.touched_at + self.bounds.wait;
        own.filter(move |(_, queue)| {
            let is_past = match queue.first() {
                // Something of it lies deeper: behind one that is later, it is a re-delivery; behind
                // one whose END was never told, it waits for that to be given up.
                Some((first, _)) => !queue.has(&current.id) || self.told.contains_key(first),
                None => false,
            };
            !is_past && !(queue.is_dry_since(until) && !queue.has(&current.id))
        })
        .map(|(place, _)| *place)
    }

    /// Gives up the oldest transaction at the head of a queue whose END does not come, if there is one
    /// now.
    fn abandon(&mut self, now: u64) -> bool {
        let is_over = self.held > self.bounds.bytes && self.current.is_none();
        let wait = self.bounds.wait;
        let is_due = |id: &Id, first_at: u64, last_at: u64| {
            let is_known = self.told.contains_key(id);
            let told_all = self.told_all_at.is_some_and(|at| at >= last_at + wait);
            let is_silent = self.ends.is_empty() && self.current.is_none();
            let outage = first_at.max(self.ended_at) + wait * OUTAGE_FACTOR;
            !is_known && (is_over || told_all || is_silent && now >= outage)
        };
        let heads = self.queues.values().filter_map(Queue::first);
        let due = heads.filter(|(id, stay)| {
            // The last event of it, in whatever partition.
            let queues = self.queues.values();
            let last = queues.filter_map(|queue| queue.last_of(id)).max();
            is_due(id, stay.first_at, last.unwrap_or(stay.last_at))
        });
        let oldest = due.min_by_key(|(_, stay)| stay.first_at);
        let Some(id) = oldest.map(|(id, _)| Arc::clone(id)) else {
            return false;
        };
        let split = match is_over {
            true => Split::TooLarge,
            false => Split::NoEnd,
        };
        self.passed.insert(&id);
        self.splits.push((id, split));
        true
    }

    /// The current transaction goes on.
    fn finish(&mut self, split: Option<Split>) -> Vec<(Place, M)> {
        let Some(mut current) = self.current.take() else {
            return Vec::new();
        };
        self.held -= current.bytes;
        self.through = Some(current.end + 1);
        self.passed.insert(&current.id);
        if let Some(split) = split
            && !current.items.is_empty()
        {
            self.splits.push((Arc::clone(&current.id), split));
        }
        let members = current.items.keys().map(|place| place.member);
        let strange = members.filter(|member| current.strangers.contains(member));
        self.strangers.extend(strange);
        // In the transaction's own order, but never one event before an earlier one of its partition.
        let mut out = Vec::new();
        let total = |items: &VecDeque<Item<M>>| items.front().map(|item| item.total);
        while let Some((place, items)) = current
            .items
            .iter_mut()
            .min_by_key(|(_, items)| total(items).flatten())
        {
            let place = *place;
            if let Some(item) = items.pop_front() {
                out.push((place, item.message));
            }
            if items.is_empty() {
                current.items.remove(&place);
            }
        }
        out
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
                places.extend(self.lacking_places(current, member));
            }
        }
        let wait = self.bounds.wait;
        let mut heads = self.queues.values().filter_map(Queue::first);
        let is_untold = heads.any(|(id, stay)| {
            let is_known = self.told.contains_key(id);
            !is_known && now >= stay.last_at + wait
        });
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

impl<M> Current<M> {
    /// The sources of which events are missing.
    fn lacking(&self) -> impl Iterator<Item = u64> {
        let lacking = self.needs.iter().filter(|(member, count)| {
            let found = self.found.get(member).map_or(0, HashSet::len);
            (found as u64) < **count
        });
        lacking.map(|(member, _)| *member)
    }
}

/// Whether an event at the head of a queue goes on by itself.
fn is_free<M>(
    place: Place,
    queue: &Queue<M>,
    head: &Item<M>,
    member: &mut Member,
    passed: &mut Ids,
    has_seen: &dyn Fn(Place, &M) -> bool,
) -> bool {
    let Some(id) = &head.id else {
        return true;
    };
    if passed.has(id) {
        return true;
    }
    if head.offset < queue.free_until {
        member.early.insert(id);
        return true;
    }
    if has_seen(place, &head.message) {
        // An event of it was taken in an earlier run, and so it has passed.
        passed.insert(id);
        return true;
    }
    false
}

/// Whether a topic has the changes of a table: Debezium names it `prefix.table`, with other
/// characters than letters, digits, `.`, `_` and `-` made `_`.
fn is_topic_of(topic: &str, table: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = table
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    let prefix = topic.strip_suffix(&name);
    prefix.is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}
