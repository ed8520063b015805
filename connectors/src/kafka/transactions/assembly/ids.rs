//! The ids of the last transactions of some kind: bounded, the oldest is forgotten first.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::queue::Id;

/// The last ids of some.
#[derive(Debug)]
pub(super) struct Ids {
    known: HashSet<Id>,
    order: VecDeque<Id>,
    max: usize,
}

impl Ids {
    pub(super) fn new(max: usize) -> Ids {
        Ids {
            known: HashSet::new(),
            order: VecDeque::new(),
            max,
        }
    }

    pub(super) fn insert(&mut self, id: &Id) {
        if self.known.insert(Arc::clone(id)) {
            self.order.push_back(Arc::clone(id));
            if self.order.len() > self.max
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    /// Forgets one before its time. Cost: linear.
    pub(super) fn remove(&mut self, id: &str) {
        if self.known.remove(id) {
            self.order.retain(|known| **known != *id);
        }
    }
}
