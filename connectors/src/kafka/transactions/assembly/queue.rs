//! One partition of a group: its events that wait, in their order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A transaction's id.
pub(super) type Id = Arc<str>;

/// Two looks that found nothing new in so many milliseconds have found the end, also when the offsets
/// up to it are not messages (markers of the producer's own transactions).
const STILL_MS: u64 = 1_000;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Item<M> {
    /// The transaction; `None` of an event that is in none.
    pub(super) id: Option<Id>,
    /// Tells the transaction's events of one table apart: a number of the connector's, else the place.
    pub(super) order: (Option<u64>, i32, i64),
    /// The number among all events of the transaction.
    pub(super) total: Option<u64>,
    pub(super) offset: i64,
    pub(super) bytes: usize,
    pub(super) message: M,
}

/// What of one transaction waits in a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stay {
    pub(super) count: usize,
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
    /// When everything that the partition held had arrived, as it was found last.
    dry_at: Option<u64>,
    /// The last look: what came next, the partition's end, when.
    looked: Option<(i64, i64, u64)>,
}

impl<M> Queue<M> {
    pub(super) fn new(next: i64, free_until: i64) -> Queue<M> {
        Queue {
            items: VecDeque::new(),
            ids: HashMap::new(),
            free_until,
            next,
            dry_at: None,
            looked: None,
        }
    }

    pub(super) fn push(&mut self, item: Item<M>, now: u64) {
        self.next = item.offset + 1;
        self.dry_at = None;
        if let Some(id) = &item.id {
            let stay = self.ids.entry(Arc::clone(id)).or_insert(Stay {
                count: 0,
                first_at: now,
                last_at: now,
            });
            stay.count += 1;
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

    /// The bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// The partition's log ended at `high` a moment ago.
    pub(super) fn looked(&mut self, high: i64, now: u64) {
        let is_still = self.looked.is_some_and(|(next, end, at)| {
            (next, end) == (self.next, high) && now >= at + STILL_MS
        });
        if self.next >= high || is_still {
            self.dry_at = Some(now);
        }
        if !is_still && self.looked.map(|(next, end, _)| (next, end)) != Some((self.next, high)) {
            self.looked = Some((self.next, high, now));
        }
    }

    /// Whether it has not come to where it was to begin.
    pub(super) fn is_catching_up(&self) -> bool {
        self.next < self.free_until && self.dry_at.is_none()
    }

    /// Whether everything that was written until then has arrived.
    pub(super) fn is_dry_since(&self, time: u64) -> bool {
        self.dry_at.is_some_and(|at| at >= time)
    }
}
