//! The transaction whose events are gathered now.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::Place;
use super::begun::Order;
use super::queue::{Id, Item};
use crate::envelope::table::Delivery;

/// The transaction that is next.
#[derive(Debug)]
pub(super) struct Current<M> {
    pub(super) id: Id,
    pub(super) end: i64,
    /// By source, how many different events it has.
    pub(super) needs: BTreeMap<u64, u64>,
    /// Sources of which it names no event.
    pub(super) strangers: BTreeSet<u64>,
    pub(super) found: HashMap<u64, HashSet<Order>>,
    /// By source, how many more went on before the last restart.
    pub(super) base: BTreeMap<u64, u64>,
    /// The partitions of which something was taken.
    pub(super) places: BTreeSet<Place>,
    pub(super) items: BTreeMap<Place, VecDeque<Item<M>>>,
    /// Copies of events that wait behind later transactions.
    pub(super) ahead: Vec<(Place, Item<M>)>,
    pub(super) bytes: usize,
    pub(super) began_at: u64,
    /// When its END came.
    pub(super) told_at: u64,
    /// When its END, or the last of its events, came.
    pub(super) touched_at: u64,
}

impl<M> Current<M> {
    /// Keeps an event behind those that are here of its partition. Of what was sent again and changes
    /// nothing the last stands for all, however much a connector sends again before it goes on: returns the
    /// one that it replaces.
    pub(super) fn hold(&mut self, place: Place, item: Item<M>) -> Option<Item<M>> {
        let items = self.items.entry(place).or_default();
        let is_echo = |item: &Item<M>| item.delivery == Delivery::Again;
        let echo = items.pop_back_if(|last| is_echo(&item) && is_echo(last));
        self.bytes -= echo.as_ref().map_or(0, |echo| echo.bytes);
        items.push_back(item);
        echo
    }

    /// Whether no event of it is here, or only such as were sent again.
    pub(super) fn is_without_effect(&self) -> bool {
        let mut own = self.items.values().flatten();
        self.ahead.is_empty()
            && own
                .all(|item| item.delivery != Delivery::First || item.id.as_ref() != Some(&self.id))
    }

    /// The sources of which events are missing.
    pub(super) fn lacking(&self) -> impl Iterator<Item = u64> {
        let needs = self.needs.iter();
        let lacking = needs.filter(|(member, count)| self.count(**member) < **count);
        lacking.map(|(member, _)| *member)
    }

    /// How many different events of a source have come.
    pub(super) fn count(&self, member: u64) -> u64 {
        let found = self.found.get(&member).map_or(0, HashSet::len) as u64;
        found + self.base.get(&member).copied().unwrap_or(0)
    }
}
