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
//! its table one of these is known: a later transaction's event has arrived (with several partitions also what
//! was written by then, see [`ahead`]); everything that was written until the wait after the END was over has
//! arrived; it is no longer read. Then, and when a bound is reached, what is there goes on as it is, and what
//! follows of the transaction goes on by itself.
//!
//! An END that is missing is waited for until all that were written so long after the transaction's last
//! event are here, or until one is here of a transaction that stands behind it in a partition.
//!
//! Invariants: no event passes an earlier one of its partition, but copies of truncates ([`ahead`]); whole
//! transactions go on in the order of their ENDs. A pure structure: no clock, no thread. Times are milliseconds.
//!
//! Limits: an END that a connector sends again after its restart with a count of only the rest counts
//! as told. A crash in the moment when a late source has come to where the others stand may split the
//! transactions that were on their way then. A transaction of truncates alone that is sent again after a
//! restart is waited for once. What is sent again takes no room, but deletes with their tombstones do.

mod ahead;
mod begun;
mod current;
mod ids;
mod look;
mod patience;
mod queue;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::envelope::InTransaction;
use crate::envelope::table::Delivery;
use begun::{Begun, in_order, is_one_more};
use current::Current;
use ids::Ids;
use queue::{Id, Item, Queue};

/// Transactions that are remembered as passed: what a connector that restarts sends again.
const PASSED_MAX: usize = 65_536;
/// The same of transactions that a source took while it caught up.
const EARLY_MAX: usize = 4_096;
/// With more ENDs that wait, what a partition has is later than the next transaction.
const BACKLOG: usize = 32_768;
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
    /// More waits with it than TRANSACTION_EVENTS_BYTES_MAX, or it holds more than
    /// TRANSACTION_BYTES_MAX.
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
    /// Whether it lies in its partition by its key: sent again, it lies there again.
    pub is_keyed: bool,
    /// A truncate whose place in the source's log is known: sent again, it may lie anywhere.
    pub is_truncate: bool,
    /// The event.
    pub message: M,
}

/// An event that goes on.
#[derive(Debug)]
pub struct Next<M> {
    /// Where it lies.
    pub place: Place,
    /// It.
    pub message: M,
    /// It goes before earlier ones of its partition, and comes once more in its turn.
    pub is_ahead: bool,
}

/// A transaction that became visible in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parted {
    /// Its id.
    pub id: Arc<str>,
    /// Why.
    pub split: Split,
    /// The sources of which events were missing when its END was there: how many had come, of how many.
    pub lacks: Vec<(u64, u64, u64)>,
}

impl Parted {
    fn new(id: &Id, split: Split) -> Parted {
        Parted {
            id: Arc::clone(id),
            split,
            lacks: Vec::new(),
        }
    }
}

/// Bounds of waiting.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest wait, milliseconds.
    pub wait: u64,
    /// Most bytes that wait.
    pub bytes: usize,
    /// Bytes of one transaction that wait until it goes on in pieces.
    pub piece: usize,
    /// Most bytes of its pieces.
    pub whole: usize,
}

/// A source of the group.
#[derive(Debug)]
struct Member {
    topic: String,
    /// ENDs below this offset are not its own.
    from: i64,
    /// It joined later than others and has not come to where they stand: it is not waited for.
    is_late: bool,
    /// Whether it joined late, even if it is late no longer: what it has seen, others may not have.
    is_new: bool,
    /// Whether all of its partitions are known.
    is_ready: bool,
    /// Transactions of which it took events before it stood with the others.
    early: Ids,
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
    begun: Option<Begun>,
    /// See [`Assembly::take_closed`].
    is_closed: bool,
    /// What follows the last END that has passed.
    through: Option<i64>,
    held: usize,
    is_full: bool,
    /// When the last END came, and when all that were written had come.
    ended_at: u64,
    told_all_at: Option<u64>,
    /// The last END that was told again, or late, by its offset, and when it came.
    again: Option<(i64, u64)>,
    splits: Vec<Parted>,
    /// Given up when nothing of them was there: split if something comes.
    silent: Ids,
    strangers: BTreeSet<u64>,
    /// Sources that were late and are not any more.
    caught_up: Vec<u64>,
    /// By source, events that were sent again and for which a later one stands.
    echoes: BTreeMap<u64, u64>,
}

impl<M: Clone> Assembly<M> {
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
            begun: None,
            is_closed: false,
            through: None,
            held: 0,
            is_full: false,
            ended_at: 0,
            told_all_at: None,
            again: None,
            splits: Vec::new(),
            silent: Ids::new(PASSED_MAX),
            strangers: BTreeSet::new(),
            caught_up: Vec::new(),
            echoes: BTreeMap::new(),
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
            is_keyed: arrival.is_keyed,
            is_truncate: arrival.is_truncate,
            delivery: Delivery::First,
            message: arrival.message,
        };
        queue.push(item, now);
    }

    /// An END arrived.
    pub fn told(&mut self, end: End, now: u64) {
        self.ended_at = now;
        let is_again = self.passed.has(&end.id) || self.told.contains_key(&end.id);
        if is_again || self.is_current(&end.id) {
            self.again = Some((end.offset, now));
        }
        *self.told.entry(Arc::clone(&end.id)).or_default() += 1;
        self.ends.push_back((end, now));
    }

    /// The next events that go on, in this order; `delivery` tells those that were taken before. To be
    /// called again until there are none.
    pub fn step(&mut self, now: u64, delivery: &dyn Fn(Place, &M) -> Delivery) -> Vec<Next<M>> {
        loop {
            self.catch_up();
            let mut out = self.take_free(delivery);
            if !out.is_empty() {
                return out;
            }
            if self.current.is_some() || self.next_end(now) {
                self.gather(now, delivery);
                self.reach_ahead(delivery);
                let split = match self.is_whole() {
                    true => None,
                    false => {
                        out = self.piece_of_current(now);
                        if !out.is_empty() {
                            return out;
                        }
                        match self.hopeless(now) {
                            Some(split) => Some(split),
                            None if !self.abandon(now, delivery) || self.is_closed => return out,
                            None => continue,
                        }
                    }
                };
                out = self.finish(split);
            } else if !self.abandon(now, delivery) {
                return self.piece_of_untold(now, delivery);
            }
            // The last piece of a transaction is staged before what begins the next.
            if !out.is_empty() || self.is_closed {
                return out;
            }
        }
    }

    /// Pops what needs no transaction, but for what stands behind events of the current one.
    fn take_free(&mut self, delivery: &dyn Fn(Place, &M) -> Delivery) -> Vec<Next<M>> {
        let mut out = Vec::new();
        for (place, queue) in &mut self.queues {
            let current = self.current.as_ref();
            if current.is_some_and(|current| current.items.contains_key(place)) {
                continue;
            }
            let member = self.members.get_mut(&place.member);
            let Some(member) = member else { continue };
            let begun = self.begun.as_ref().map(|begun| &begun.id);
            while let Some(head) = queue.head() {
                if !is_free(*place, queue, begun, member, &mut self.passed, delivery) {
                    break;
                }
                if let Some(id) = &head.id
                    && self.silent.has(id)
                    && delivery(*place, &head.message) == Delivery::First
                {
                    self.splits.push(Parted::new(id, Split::Missing));
                    self.silent.remove(id);
                }
                let item = queue.pop().expect("looked at above");
                self.held -= item.bytes;
                out.push(Next {
                    place: *place,
                    message: item.message,
                    is_ahead: false,
                });
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
            // Of one of which pieces went on.
            let begun = self.begun.as_mut().filter(|begun| begun.id == end.id);
            let (found, base) = match begun {
                Some(begun) => (std::mem::take(&mut begun.found), begun.base.clone()),
                None => Default::default(),
            };
            self.current = Some(Current {
                needs,
                strangers,
                id: end.id,
                end: end.offset,
                found,
                base,
                places: BTreeSet::new(),
                items: BTreeMap::new(),
                ahead: Vec::new(),
                bytes: 0,
                began_at: now,
                told_at,
                touched_at: told_at,
            });
            return true;
        }
        false
    }

    /// Late sources that have come to where they began are late no longer.
    fn catch_up(&mut self) {
        for (number, member) in &mut self.members {
            let mut queues = self.queues.iter();
            let is_behind =
                queues.any(|(place, queue)| place.member == *number && queue.is_catching_up());
            let is_late = member.is_late && (is_behind || !member.is_ready);
            if std::mem::replace(&mut member.is_late, is_late) && !is_late {
                self.caught_up.push(*number);
            }
        }
    }

    /// Takes the current transaction's events from the heads of the queues, with what stands between
    /// them.
    fn gather(&mut self, now: u64, delivery: &dyn Fn(Place, &M) -> Delivery) {
        let Some(current) = &mut self.current else {
            return;
        };
        let begun = self.begun.as_ref().map(|begun| &begun.id);
        let is_begun = begun == Some(&current.id);
        for (place, queue) in &mut self.queues {
            let Some(member) = self.members.get_mut(&place.member) else {
                continue;
            };
            while let Some(head) = queue.head() {
                let is_own = head.id.as_ref() == Some(&current.id);
                if !is_own && !current.items.contains_key(place) {
                    break;
                }
                let delivery_of = match head.id {
                    Some(_) => delivery(*place, &head.message),
                    None => Delivery::First,
                };
                if is_own {
                    let is_again = delivery_of == Delivery::Again;
                    if is_again && !is_begun && proves_passed(head, member) {
                        // Taken in an earlier run, as in `is_free`.
                        self.passed.insert(&current.id);
                    }
                    current.places.insert(*place);
                    let has_base = current.base.contains_key(&place.member);
                    if is_one_more(head, delivery_of, is_begun, has_base) {
                        let found = current.found.entry(place.member).or_default();
                        found.insert(head.order);
                    }
                    current.touched_at = now;
                } else {
                    let delivery = |_, _: &M| delivery_of;
                    if !is_free(*place, queue, begun, member, &mut self.passed, &delivery) {
                        break;
                    }
                }
                let mut item = queue.pop().expect("looked at above");
                item.delivery = delivery_of;
                current.bytes += item.bytes;
                if let Some(echo) = current.hold(*place, item) {
                    self.held -= echo.bytes;
                    *self.echoes.entry(place.member).or_default() += 1;
                }
            }
        }
    }

    fn is_whole(&self) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        // Of one that has passed, events may have gone on by themselves before its END was told again.
        self.passed.has(&current.id) || current.lacking().next().is_none()
    }

    /// The current transaction goes on.
    fn finish(&mut self, split: Option<Split>) -> Vec<Next<M>> {
        let Some(current) = self.current.take() else {
            return Vec::new();
        };
        self.held -= current.bytes;
        self.through = Some(current.end + 1);
        self.passed.insert(&current.id);
        let is_begun = self.is_begun(&current.id);
        self.end_begun(&current.id);
        match split {
            Some(_) if current.is_without_effect() && !is_begun => self.silent.insert(&current.id),
            Some(split) => {
                let lacks = current
                    .lacking()
                    .map(|member| (member, current.count(member), current.needs[&member]));
                self.splits.push(Parted {
                    lacks: lacks.collect(),
                    ..Parted::new(&current.id, split)
                });
            }
            None => {}
        }
        let members = current.items.keys().map(|place| place.member);
        let strange = members.filter(|member| current.strangers.contains(member));
        self.strangers.extend(strange);
        in_order(&current.id, current.items, current.ahead)
    }
}

/// Whether the event at the head of a queue goes on by itself; none of a transaction that has begun to
/// go on in pieces does.
fn is_free<M>(
    place: Place,
    queue: &Queue<M>,
    begun: Option<&Id>,
    member: &mut Member,
    passed: &mut Ids,
    delivery: &dyn Fn(Place, &M) -> Delivery,
) -> bool {
    let Some(head) = queue.head() else {
        return false;
    };
    let Some(id) = &head.id else {
        return true;
    };
    if begun == Some(id) {
        return false;
    }
    if passed.has(id) {
        return true;
    }
    if head.offset < queue.free_until {
        member.early.insert(id);
        return true;
    }
    if delivery(place, &head.message) != Delivery::Again {
        return false;
    }
    if proves_passed(head, member) {
        // An event of it was taken in an earlier run.
        passed.insert(id);
    } else if member.is_new {
        member.early.insert(id);
    }
    true
}

/// Whether an event that was taken before says that its transaction has passed. A source that joined late
/// may have taken it alone; and of one without a key that comes through another partition than at first,
/// pieces of a later transaction may have taken away the effect.
fn proves_passed<M>(head: &Item<M>, member: &Member) -> bool {
    head.is_keyed && !member.is_new
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
