//! The rows that a truncate must not delete: written after it, but read before it.
//!
//! A truncate has no key, so it may lie in another partition than the rows, which may be ahead. Only
//! rows above the position of the partition that is furthest behind can be in question; they are
//! remembered with their LSNs, at most `ENVELOPE_RECENT_ROWS_MAX`.
//!
//! Against a truncate the LSN alone orders a row: TRUNCATE locks the table until its commit, so
//! every other transaction wrote there before it and has committed, or writes after its commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use engine::limits::ENVELOPE_RECENT_ROWS_MAX;
use engine::model::Key;
use serde::{Deserialize, Serialize};

use crate::envelope::order::Order;

/// LSNs of rows that run ahead.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Recent {
    positions: HashMap<Key, u64>,
    by_position: BTreeMap<u64, BTreeSet<Key>>,
    /// The highest LSN that had to be forgotten.
    forgotten: Option<u64>,
}

impl Recent {
    /// Notes a change. `behind`: the lowest LSN of all partitions' marks, if all have one.
    pub(super) fn saw(&mut self, key: &Key, order: Order, is_live: bool, behind: Option<u64>) {
        if is_live && order.lsn().is_none() {
            // A read without a place: the event that wrote the row stands for it.
            return;
        }
        self.forget(key);
        while let Some(first) = self.by_position.first_entry() {
            let is_over = self.positions.len() >= ENVELOPE_RECENT_ROWS_MAX;
            let is_settled = behind.is_some_and(|behind| *first.key() <= behind);
            if !is_over && !is_settled {
                break;
            }
            if !is_settled {
                self.forgotten = self.forgotten.max(Some(*first.key()));
            }
            for key in first.remove() {
                self.positions.remove(&key);
            }
        }
        let Some(position) = order.lsn() else {
            return;
        };
        if is_live && behind.is_none_or(|behind| position > behind) {
            self.positions.insert(key.clone(), position);
            let keys = self.by_position.entry(position).or_default();
            keys.insert(key.clone());
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(position) = self.positions.remove(key)
            && let Some(keys) = self.by_position.get_mut(&position)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_position.remove(&position);
            }
        }
    }

    /// The keys written after a truncate, and whether none of them can have been forgotten. Without a
    /// position nothing is known to be after it.
    pub(super) fn after(&self, at: Option<u64>) -> (BTreeSet<Key>, bool) {
        let Some(at) = at else {
            return (BTreeSet::new(), true);
        };
        let later = self.by_position.range(at + 1..).flat_map(|(_, keys)| keys);
        (
            later.cloned().collect(),
            self.forgotten.is_none_or(|forgotten| forgotten <= at),
        )
    }
}
