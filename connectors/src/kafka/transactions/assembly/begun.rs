//! A large transaction goes on in pieces, which become visible with its last.
//!
//! ```text
//! what is there of it > Bounds::piece ─▶ goes on, counted ─▶ staged, and open ─┐
//! … more of it ─▶ … ───────────────────────────────────────────────────────────┤
//! its END, and all that this counts ─▶ the rest goes on ─▶ staged, and closed ─┴▶ visible, all of it
//! ```
//!
//! The idea: it lies in the input log, not here. Its END may come long after its first piece; what
//! other transactions have meanwhile is staged behind it and becomes visible with it.
//!
//! Invariants: one at a time; what went on of it is counted by source, over restarts too; it is closed
//! by its end, or by being given up.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::queue::{Id, Item};
use super::{Assembly, Next, Parted, Place, Split};
use crate::envelope::table::Delivery;

/// Tells the events of a source's part of a transaction apart.
pub(super) type Order = (Option<u64>, i32, i64);

/// The transaction of which pieces went on.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: Id,
    /// By source, how many different events went on before the last restart.
    pub(super) base: BTreeMap<u64, u64>,
    /// Those since then, while its END is not told.
    pub(super) found: HashMap<u64, HashSet<Order>>,
    /// By source, how many went on with the last piece and before: what was gathered since is not staged.
    staged: BTreeMap<u64, u64>,
    bytes: usize,
    /// When the last piece went on.
    last_at: u64,
}

impl Begun {
    fn new(id: Id, base: BTreeMap<u64, u64>, now: u64) -> Begun {
        Begun {
            id,
            staged: base.clone(),
            base,
            found: HashMap::new(),
            bytes: 0,
            last_at: now,
        }
    }
}

impl<M> Assembly<M> {
    /// Pieces of a transaction went on before a restart: by source, so many different events.
    pub fn resume(&mut self, id: &str, base: BTreeMap<u64, u64>, now: u64) {
        self.begun = Some(Begun::new(id.into(), base, now));
    }

    /// The transaction of which pieces went on, and not the last; and how many different events of a
    /// source did.
    pub fn begun(&self, member: u64) -> Option<(&str, u64)> {
        let begun = self.begun.as_ref()?;
        Some((&begun.id, begun.staged.get(&member).copied().unwrap_or(0)))
    }

    /// Whether there is such a transaction: what goes on now is open.
    pub fn is_open(&self) -> bool {
        self.begun.is_some()
    }

    /// Whether it came to its end since the last call: what went on since is its last piece.
    pub fn take_closed(&mut self) -> bool {
        std::mem::take(&mut self.is_closed)
    }

    pub(super) fn is_begun(&self, id: &Id) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.id == *id)
    }

    /// Whether a piece of a transaction may go on: no other has begun.
    fn may_begin(&self, id: &Id) -> bool {
        self.begun.is_none() || self.is_begun(id)
    }

    /// The last piece of a transaction goes on now, or it is given up.
    pub(super) fn end_begun(&mut self, id: &Id) {
        if self.is_begun(id) {
            self.begun = None;
            self.is_closed = true;
        }
    }

    /// A source is gone.
    pub(super) fn forget_begun(&mut self, member: u64) {
        if let Some(begun) = &mut self.begun {
            begun.base.remove(&member);
            begun.found.remove(&member);
            begun.staged.remove(&member);
        }
    }

    /// Whether pieces of a transaction are larger than any may be.
    pub(super) fn is_too_large(&self, id: &Id) -> bool {
        let begun = self.begun.as_ref().filter(|begun| begun.id == *id);
        begun.is_some_and(|begun| begun.bytes > self.bounds.whole)
    }

    fn note_piece(&mut self, id: &Id, bytes: usize, now: u64) -> &mut Begun {
        self.held -= bytes;
        let first = || Begun::new(Arc::clone(id), BTreeMap::new(), now);
        let begun = self.begun.get_or_insert_with(first);
        begun.bytes += bytes;
        begun.last_at = now;
        begun
    }

    /// What is there of the current transaction, if it is large.
    pub(super) fn piece_of_current(&mut self, now: u64) -> Vec<Next<M>> {
        let current = self.current.as_ref();
        let is_large =
            current.is_some_and(|one| one.bytes > self.bounds.piece && self.may_begin(&one.id));
        let Some(current) = self.current.as_mut().filter(|_| is_large) else {
            return Vec::new();
        };
        let (id, bytes) = (Arc::clone(&current.id), std::mem::take(&mut current.bytes));
        let items = std::mem::take(&mut current.items);
        let ahead = std::mem::take(&mut current.ahead);
        let members = current.found.keys();
        let counts: Vec<_> = members.map(|one| (*one, current.count(*one))).collect();
        self.note_piece(&id, bytes, now).staged.extend(counts);
        in_order(&id, items, ahead)
    }

    /// What is there of the next transaction, if it is large and its END was not told.
    pub(super) fn piece_of_untold(
        &mut self,
        now: u64,
        delivery: &dyn Fn(Place, &M) -> Delivery,
    ) -> Vec<Next<M>> {
        if self.held <= self.bounds.piece {
            return Vec::new();
        }
        let Some(id) = self.next_untold().map(Arc::clone) else {
            return Vec::new();
        };
        let is_its = |item: &Item<M>| item.id.as_ref() == Some(&id);
        let heads = self.queues.values();
        let heads = heads.filter(|queue| queue.head().is_some_and(is_its));
        let bytes: usize = heads.map(|queue| queue.bytes_of(&id)).sum();
        if bytes <= self.bounds.piece || !self.may_begin(&id) {
            return Vec::new();
        }
        let (mut items, mut found, mut bytes) = (BTreeMap::new(), Vec::new(), 0);
        let base = self.begun.as_ref().map(|begun| &begun.base);
        for (place, queue) in &mut self.queues {
            let mut own = VecDeque::new();
            while queue.head().is_some_and(is_its)
                && let Some(item) = queue.pop()
            {
                bytes += item.bytes;
                let delivery = delivery(*place, &item.message);
                let has_base = base.is_some_and(|base| base.contains_key(&place.member));
                if is_one_more(&item, delivery, true, has_base) {
                    found.push((place.member, item.order));
                }
                own.push_back(item);
            }
            if !own.is_empty() {
                items.insert(*place, own);
            }
        }
        let begun = self.note_piece(&id, bytes, now);
        for (member, order) in found {
            begun.found.entry(member).or_default().insert(order);
        }
        for (member, found) in &begun.found {
            let base = begun.base.get(member).copied().unwrap_or(0);
            begun.staged.insert(*member, base + found.len() as u64);
        }
        if self.is_too_large(&id) {
            self.give_up(&id, Split::TooLarge);
        }
        in_order(&id, items, Vec::new())
    }

    /// Whether nothing more can come of the transaction of which pieces went on: all ENDs are here that
    /// were written so long after its last event, and its own is not.
    pub(super) fn abandon_begun(&mut self, is_due: &dyn Fn(u64) -> bool) -> bool {
        let Some(last_at) = self.begun_since() else {
            return false;
        };
        let Some(id) = self.begun.as_ref().map(|begun| Arc::clone(&begun.id)) else {
            return false;
        };
        let is_here = self.queues.values().any(|queue| queue.has(&id));
        if is_here || !is_due(last_at) {
            return false;
        }
        self.give_up(&id, Split::NoEnd);
        true
    }

    /// Since when the END of a transaction is waited for of which pieces went on.
    pub(super) fn begun_since(&self) -> Option<u64> {
        let begun = self.begun.as_ref()?;
        let is_told = self.is_current(&begun.id) || self.told.contains_key(&begun.id);
        (!is_told).then_some(begun.last_at)
    }

    /// What follows of a transaction goes on by itself.
    pub(super) fn give_up(&mut self, id: &Id, split: Split) {
        self.passed.insert(id);
        self.splits.push(Parted::new(id, split));
        self.end_begun(id);
    }
}

/// Whether an event is one more of those that its transaction's END counts, apart from those of the same
/// order. `has_base`: some went on before a restart.
pub(super) fn is_one_more<M>(
    item: &Item<M>,
    delivery: Delivery,
    is_begun: bool,
    has_base: bool,
) -> bool {
    match delivery {
        Delivery::First => true,
        // Perhaps before the restart.
        Delivery::Overtaken => !has_base,
        Delivery::Again => !is_begun && item.is_keyed,
    }
}

/// An event, and the number at which it goes.
struct Turn<M> {
    at: Option<u64>,
    next: Next<M>,
}

/// In the transaction's own order, but never one event before an earlier one of its partition. A truncate that
/// was sent again may lie behind later ones: those go before it, and it goes before what is later elsewhere, as
/// it would where it lay at first.
pub(super) fn in_order<M>(
    id: &Id,
    items: BTreeMap<Place, VecDeque<Item<M>>>,
    ahead: Vec<(Place, Item<M>)>,
) -> Vec<Next<M>> {
    let ahead = ahead
        .into_iter()
        .map(|(place, item)| turns(id, place, [item], true));
    let queues = items
        .into_iter()
        .map(|(place, own)| turns(id, place, own, false));
    let mut queues: Vec<_> = ahead.chain(queues).collect();
    let mut out = Vec::new();
    let first_turn = |queue: &VecDeque<Turn<M>>| queue.front().and_then(|turn| turn.at);
    while let Some(first) = (0..queues.len()).min_by_key(|number| first_turn(&queues[*number])) {
        out.extend(queues[first].pop_front().map(|turn| turn.next));
        if queues[first].is_empty() {
            queues.remove(first);
        }
    }
    out
}

/// When the events of a partition go: each at its own number, or at that of a truncate behind it.
fn turns<M>(
    id: &Id,
    place: Place,
    own: impl IntoIterator<Item = Item<M>, IntoIter: DoubleEndedIterator>,
    is_ahead: bool,
) -> VecDeque<Turn<M>> {
    let mut truncate: Option<u64> = None;
    let mut out = VecDeque::new();
    for item in own.into_iter().rev() {
        if item.is_truncate && item.id.as_ref() == Some(id) {
            truncate = truncate.into_iter().chain(item.total).min();
        }
        let at = |total: u64| truncate.map_or(total, |truncate| truncate.min(total));
        out.push_front(Turn {
            at: item.total.map(at),
            next: Next {
                place,
                message: item.message,
                is_ahead,
            },
        });
    }
    out
}
