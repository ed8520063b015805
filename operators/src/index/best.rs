//! The best n of a stream of scores, in amortised constant time each.
//!
//! Keeps up to 2n entries, then selects n by quick-select; a floor lets most scores be refused by
//! one comparison. Order: score descending, then chunk id, so the result does not depend on the
//! order of arrival.

use std::cmp::Ordering;

use super::slots::Slots;

pub(crate) struct Best<'a> {
    wanted: usize,
    floor: f64,
    entries: Vec<(f64, u32)>,
    slots: &'a Slots,
}

impl<'a> Best<'a> {
    pub(crate) fn new(wanted: usize, slots: &'a Slots) -> Self {
        Best {
            wanted,
            floor: f64::NEG_INFINITY,
            entries: Vec::new(),
            slots,
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, score: f64, slot: u32) {
        if score < self.floor {
            return;
        }
        self.entries.push((score, slot));
        if self.entries.len() >= 2 * self.wanted + 64 {
            self.shrink();
        }
    }

    #[cold]
    fn shrink(&mut self) {
        let Some(last) = self
            .wanted
            .checked_sub(1)
            .filter(|last| *last < self.entries.len())
        else {
            self.entries.truncate(self.wanted);
            return;
        };
        let slots = self.slots;
        let (_, nth, _) = self
            .entries
            .select_nth_unstable_by(last, |a, b| compare(slots, a, b));
        self.floor = nth.0;
        self.entries.truncate(self.wanted);
    }

    /// The best, best first.
    pub(crate) fn finish(mut self) -> Vec<(f64, u32)> {
        self.shrink();
        let slots = self.slots;
        self.entries.sort_unstable_by(|a, b| compare(slots, a, b));
        self.entries
    }
}

fn compare(slots: &Slots, a: &(f64, u32), b: &(f64, u32)) -> Ordering {
    b.0.total_cmp(&a.0)
        .then_with(|| slots.chunk(a.1).cmp(&slots.chunk(b.1)))
}
