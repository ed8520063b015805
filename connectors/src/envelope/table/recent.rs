//! The rows that a truncate must not delete: written after it, but read before it.
//!
//! A truncate has no key, so it may lie in another partition than the rows, which may be ahead. Only
//! rows above the position of the partition that is furthest behind can be in question; they are
//! remembered with their LSNs, at most `ENVELOPE_RECENT_ROWS_MAX`.
//!
//! Where the places of two servers say nothing of each other ([`LogPosition::to_truncate`]), their clocks
//! decide, and somebody is told.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use engine::limits::ENVELOPE_RECENT_ROWS_MAX;
use engine::model::Key;
use serde::{Deserialize, Serialize};

use crate::envelope::order::{LogPosition, Order};

/// Places of rows that run ahead.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Recent {
    positions: HashMap<Key, LogPosition>,
    /// By LSN.
    by_position: BTreeMap<u64, BTreeSet<Key>>,
    /// The highest LSN that had to be forgotten.
    forgotten: Option<u64>,
}

/// The rows that a truncate leaves.
#[derive(Debug, Default)]
pub(super) struct After {
    pub(super) keys: BTreeSet<Key>,
    /// Others may have had to be forgotten.
    pub(super) is_forgetful: bool,
    /// Places of other servers are among them, which the clocks had to order.
    pub(super) is_doubtful: bool,
}

impl Recent {
    /// Notes a change. `behind`: the lowest LSN of all partitions' marks, if all have one.
    pub(super) fn saw(&mut self, key: &Key, order: Order, is_live: bool, behind: Option<u64>) {
        let place = order.place();
        if is_live && place.is_none() {
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
        let Some(place) = place else {
            return;
        };
        if is_live && behind.is_none_or(|behind| place.lsn > behind) {
            self.positions.insert(key.clone(), place);
            let keys = self.by_position.entry(place.lsn).or_default();
            keys.insert(key.clone());
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(place) = self.positions.remove(key)
            && let Some(keys) = self.by_position.get_mut(&place.lsn)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_position.remove(&place.lsn);
            }
        }
    }

    /// The keys written after a truncate or a snapshot. Without a place nothing is known to be after it.
    pub(super) fn after(&self, at: Option<LogPosition>) -> After {
        let Some(at) = at else {
            return After::default();
        };
        let mut after = After {
            is_forgetful: self.forgotten.is_some_and(|forgotten| forgotten > at.lsn),
            ..After::default()
        };
        for (key, place) in &self.positions {
            let order = place.to_truncate(&at);
            after.is_doubtful |= order.is_none();
            if order.unwrap_or_else(|| place.at_ms.cmp(&at.at_ms)) == Ordering::Greater {
                after.keys.insert(key.clone());
            }
        }
        after
    }
}
