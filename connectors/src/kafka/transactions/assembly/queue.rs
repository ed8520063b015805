//! One partition of a group: its events that wait, in their order.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::begun::Order;
use crate::envelope::table::Delivery;

/// A transaction's id.
pub(super) type Id = Arc<str>;

/// An event that waits.
#[derive(Debug, Clone)]
pub(super) struct Item<M> {
    /// The transaction; `None` of an event that is in none.
    pub(super) id: Option<Id>,
    /// Tells the transaction's events of one table apart: a number of the connector's, else the place.
    pub(super) order: Order,
    /// The number among all events of the transaction.
    pub(super) total: Option<u64>,
    pub(super) offset: i64,
    pub(super) bytes: usize,
    /// See [`Arrival`](super::Arrival).
    pub(super) is_keyed: bool,
    /// See [`Arrival`](super::Arrival).
    pub(super) is_truncate: bool,
    /// How it came, when it was taken behind events of the current transaction, or as one of them.
    pub(super) delivery: Delivery,
    pub(super) message: M,
}

/// What of one transaction waits in a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stay {
    pub(super) count: usize,
    pub(super) truncates: usize,
    pub(super) bytes: usize,
    pub(super) first_at: u64,
    pub(super) last_at: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue<M> {
    items: VecDeque<Item<M>>,
    ids: HashMap<Id, Stay>,
    /// Events below this offset pass by themselves: the source catches up.
    pub(super) free_until: i64,
    /// What follows the last event that arrived.
    next: i64,
    /// Everything that was written until then has arrived.
    dry_at: Option<u64>,
    /// It was read to its end once.
    has_reached: bool,
    /// It is read no longer: what is here is all that comes.
    is_closed: bool,
    /// It is not read for now.
    is_paused: bool,
    /// How often it was read on since something came.
    resumes: u64,
}

impl<M> Queue<M> {
    pub(super) fn new(next: i64, free_until: i64) -> Queue<M> {
        Queue {
            items: VecDeque::new(),
            ids: HashMap::new(),
            free_until,
            next,
            dry_at: None,
            has_reached: false,
            is_closed: false,
            is_paused: false,
            resumes: 0,
        }
    }

    pub(super) fn push(&mut self, item: Item<M>, now: u64) {
        self.next = item.offset + 1;
        self.resumes = 0;
        if let Some(id) = &item.id {
            let stay = self.ids.entry(Arc::clone(id)).or_insert(Stay {
                count: 0,
                truncates: 0,
                bytes: 0,
                first_at: now,
                last_at: now,
            });
            stay.count += 1;
            stay.truncates += usize::from(item.is_truncate);
            stay.bytes += item.bytes;
            stay.last_at = now;
        }
        self.items.push_back(item);
    }

    pub(super) fn head(&self) -> Option<&Item<M>> {
        self.items.front()
    }

    pub(super) fn pop(&mut self) -> Option<Item<M>> {
        let item = self.items.pop_front()?;
        if let Some(id) = &item.id
            && let Some(stay) = self.ids.get_mut(id)
        {
            stay.count -= 1;
            stay.truncates -= usize::from(item.is_truncate);
            stay.bytes -= item.bytes;
            if stay.count == 0 {
                self.ids.remove(id);
            }
        }
        Some(item)
    }

    /// The transaction of the first event, and how long it waits here.
    pub(super) fn first(&self) -> Option<(&Id, Stay)> {
        let id = self.head()?.id.as_ref()?;
        Some((id, *self.ids.get(id)?))
    }

    /// When the last event of a transaction came that waits here.
    pub(super) fn last_of(&self, id: &str) -> Option<u64> {
        self.ids.get(id).map(|stay| stay.last_at)
    }

    /// Whether an event of a transaction waits here.
    pub(super) fn has(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// Reads no further, or goes on: then the wait for the rest of the last transaction begins anew, a few
    /// times if nothing comes.
    pub(super) fn pause(&mut self, is_paused: bool, now: u64) {
        let was_paused = std::mem::replace(&mut self.is_paused, is_paused);
        if !was_paused || is_paused {
            return;
        }
        self.resumes += 1;
        if self.resumes <= super::OUTAGE_FACTOR
            && let Some(id) = self.items.back().and_then(|item| item.id.as_ref())
            && let Some(stay) = self.ids.get_mut(id)
        {
            stay.last_at = now;
        }
    }

    /// Whether more of a transaction may lie where this is not read for now.
    pub(super) fn is_paused_in(&self, id: &str) -> bool {
        let last = self.items.back().and_then(|item| item.id.as_deref());
        self.is_paused && last == Some(id)
    }

    /// Whether events of this transaction and of no other wait here.
    pub(super) fn has_only(&self, id: &str) -> bool {
        self.ids.len() == 1 && self.has(id)
    }

    /// Whether an event of a transaction waits here that was not seen. Cost: linear.
    pub(super) fn has_unseen_of(&self, id: &Id, is_first: impl Fn(&M) -> bool) -> bool {
        let mut own = self
            .items
            .iter()
            .filter(|item| item.id.as_ref() == Some(id));
        self.has(id) && own.any(|item| is_first(&item.message))
    }

    /// The bytes of a transaction that wait here.
    pub(super) fn bytes_of(&self, id: &str) -> usize {
        self.ids.get(id).map_or(0, |stay| stay.bytes)
    }

    /// The bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// Everything that was written until then has arrived.
    pub(super) fn dry(&mut self, at: u64) {
        self.dry_at = self.dry_at.max(Some(at));
        self.reached();
    }

    /// It was read to its end. Where that was not known when it began, what is here was there then.
    pub(super) fn reached(&mut self) {
        self.has_reached = true;
        self.free_until = self.free_until.min(self.next);
    }

    /// Nothing more comes.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.reached();
    }

    /// Whether a truncate of a transaction waits here.
    pub(super) fn has_truncate(&self, id: &str) -> bool {
        self.ids.get(id).is_some_and(|stay| stay.truncates > 0)
    }

    /// The truncates of a transaction that wait here. Cost: linear.
    pub(super) fn truncates<'a>(&'a self, id: &'a Id) -> impl Iterator<Item = &'a Item<M>> + 'a {
        let own = self.items.iter();
        own.filter(move |item| item.is_truncate && item.id.as_ref() == Some(id))
    }

    /// Whether it is not read for now.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether nothing waits, and nothing comes.
    pub(super) fn is_drained(&self) -> bool {
        self.is_closed && self.items.is_empty()
    }

    /// Whether it has not come to where it was to begin.
    pub(super) fn is_catching_up(&self) -> bool {
        self.next < self.free_until && !self.has_reached
    }

    /// Whether everything that was written until then has arrived.
    pub(super) fn is_dry_since(&self, time: u64) -> bool {
        self.is_closed || self.dry_at.is_some_and(|at| at >= time)
    }

    /// Whether one of so many transactions waits here behind the first event. Cost: the fewer of the two.
    pub(super) fn has_any<'a>(
        &self,
        ids: impl ExactSizeIterator<Item = &'a Id>,
        is: impl Fn(&Id) -> bool,
    ) -> bool {
        match ids.len() < self.ids.len() {
            true => {
                let mut ids = ids;
                ids.any(|id| is(id) && self.has(id))
            }
            false => self.ids.keys().any(is),
        }
    }

    /// Whether one of some transactions begins here with an event that was not seen, and lies here by its
    /// key. Cost: linear.
    pub(super) fn has_unseen(
        &self,
        is: impl Fn(&Id) -> bool,
        is_first: impl Fn(&M) -> bool,
    ) -> bool {
        let mut known = HashSet::new();
        let mut firsts = self.items.iter().filter_map(|item| {
            let id = item.id.as_ref().filter(|_| item.is_keyed)?;
            let id = known.insert(id).then_some(id)?;
            is(id).then_some(&item.message)
        });
        firsts.any(is_first)
    }
}
