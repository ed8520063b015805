//! Who may read what: uppers, holds and sinces of the named collections (PROTOCOLS §3.3–3.4).
//!
//! `sealed(c)` has one writer, the sequencer; `since(c) = min(sealed − RETAIN, holds)` never moves
//! back and never passes an unfinished question.

use std::collections::BTreeMap;

use crate::model::{ObjectId, Time};

/// One collection's readable times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readable {
    /// Earliest time that can be read.
    pub since: Time,
    /// First time that cannot be read yet.
    pub upper: Time,
}

#[derive(Debug, Default)]
struct Collection {
    readable: Readable,
    /// From the workers: complete on all of them, perhaps not durable yet.
    applied: Time,
    retain_micros: u64,
    holds: BTreeMap<Time, usize>,
}

/// All collections.
#[derive(Debug, Default)]
pub(super) struct Board {
    collections: BTreeMap<ObjectId, Collection>,
    floor: Time,
}

impl Board {
    /// Adds a collection that begins at a time.
    pub(super) fn add(&mut self, id: ObjectId, at: Time, retain_micros: u64) {
        let readable = Readable {
            since: at,
            upper: at,
        };
        let entry = Collection {
            readable,
            applied: at,
            retain_micros,
            holds: BTreeMap::new(),
        };
        self.collections.insert(id, entry);
    }

    /// Keeps history for longer or shorter from now on.
    pub(super) fn retain(&mut self, id: ObjectId, micros: u64) {
        if let Some(collection) = self.collections.get_mut(&id) {
            collection.retain_micros = micros;
        }
    }

    /// Nothing before a time can be read: a compacted log begins there.
    pub(super) fn raise_sinces(&mut self, at: Time) {
        for collection in self.collections.values_mut() {
            let readable = &mut collection.readable;
            readable.since = readable.since.max(at);
            readable.upper = readable.upper.max(at);
            collection.applied = collection.applied.max(at);
        }
    }

    /// "Newest" is never before this: a time that may have been published before a restart.
    pub(super) fn set_floor(&mut self, at: Time) {
        self.floor = at;
    }

    /// See [`Board::set_floor`].
    pub(super) fn floor(&self) -> Time {
        self.floor
    }

    /// Removes a collection.
    pub(super) fn remove(&mut self, id: ObjectId) {
        self.collections.remove(&id);
    }

    /// Notes what the workers have applied.
    pub(super) fn applied(&mut self, id: ObjectId, upper: Time) {
        if let Some(collection) = self.collections.get_mut(&id) {
            collection.applied = collection.applied.max(upper);
        }
    }

    /// Publishes everything applied and durable; true when something moved.
    pub(super) fn publish(&mut self, durable: Time) -> bool {
        let mut moved = false;
        for collection in self.collections.values_mut() {
            let upper = collection.applied.min(durable + 1);
            if upper > collection.readable.upper {
                collection.readable.upper = upper;
                moved = true;
            }
        }
        moved
    }

    /// The least applied upper: what is broadcast beyond it is unsealed.
    pub(super) fn applied_min(&self) -> Option<Time> {
        self.collections
            .values()
            .map(|collection| collection.applied)
            .min()
    }

    /// The times at which all of `over` can be read: `since ≤ T < upper`.
    pub(super) fn readable(&self, over: &[ObjectId]) -> Option<Readable> {
        over.iter().try_fold(
            Readable {
                since: 0,
                upper: Time::MAX,
            },
            |all, id| {
                let one = self.collections.get(id)?.readable;
                Some(Readable {
                    since: all.since.max(one.since),
                    upper: all.upper.min(one.upper),
                })
            },
        )
    }

    /// Holds a time for a question.
    pub(super) fn hold(&mut self, over: &[ObjectId], at: Time) {
        for id in over {
            if let Some(collection) = self.collections.get_mut(id) {
                *collection.holds.entry(at).or_default() += 1;
            }
        }
    }

    /// Releases a hold.
    pub(super) fn release(&mut self, over: &[ObjectId], at: Time) {
        for id in over {
            let Some(collection) = self.collections.get_mut(id) else {
                continue;
            };
            if let Some(count) = collection.holds.get_mut(&at) {
                *count -= 1;
                if *count == 0 {
                    collection.holds.remove(&at);
                }
            }
        }
    }

    /// Moves every since as far as it may go; returns those that moved.
    pub(super) fn advance_sinces(&mut self) -> Vec<(ObjectId, Time)> {
        let mut moved = Vec::new();
        for (id, collection) in &mut self.collections {
            let sealed = collection.readable.upper.saturating_sub(1);
            let held = collection
                .holds
                .first_key_value()
                .map_or(Time::MAX, |(at, _)| *at);
            let since = sealed.saturating_sub(collection.retain_micros).min(held);
            if since > collection.readable.since {
                collection.readable.since = since;
                moved.push((*id, since));
            }
        }
        moved
    }

    /// All collections.
    pub(super) fn all(&self) -> BTreeMap<ObjectId, Readable> {
        self.collections
            .iter()
            .map(|(id, collection)| (*id, collection.readable))
            .collect()
    }

    /// Unfinished questions' holds.
    pub(super) fn holds(&self) -> usize {
        self.collections
            .values()
            .flat_map(|collection| collection.holds.values())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_never_passes_a_hold_and_upper_never_passes_durability() {
        let mut board = Board::default();
        let id = ObjectId(1);
        board.add(id, 0, 10);
        board.applied(id, 101);
        assert!(board.publish(50));
        assert_eq!(
            board.readable(&[id]),
            Some(Readable {
                since: 0,
                upper: 51
            })
        );
        board.hold(&[id], 20);
        assert_eq!(board.advance_sinces(), [(id, 20)]);
        assert!(board.publish(100));
        assert_eq!(board.advance_sinces(), []);
        board.release(&[id], 20);
        assert_eq!(board.advance_sinces(), [(id, 90)]);
        assert_eq!(board.readable(&[id, ObjectId(2)]), None);
    }
}
