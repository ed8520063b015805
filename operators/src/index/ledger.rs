//! Exact counters at any readable time: now, minus a ring of what happened since.
//!
//! ```text
//! counters(T) = counters(now) − Σ deltas with at > T          since ≤ T ≤ now
//! ```
//!
//! The ring holds one entry a tick, dropped when `since` passes it. Questions are asked near now,
//! so they walk few entries; a question at the far end of retention walks them all.

use std::collections::VecDeque;

use ahash::AHashMap;
use engine::model::Time;

use super::{Statistics, StatisticsDelta, Term};

#[derive(Debug)]
struct Entry {
    at: Time,
    chunks: i64,
    length: i64,
    pending: i64,
    frequencies: AHashMap<Term, i64>,
}

/// N, Σ length, pending documents, and their recent changes. Document frequencies *now* are the
/// keyword index's; only their changes are here.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    chunks: i64,
    length: i64,
    pending: i64,
    ring: VecDeque<Entry>,
}

impl Ledger {
    /// Books what one `apply_*` at `at` did. Times do not decrease.
    pub(crate) fn book(&mut self, at: Time, delta: &StatisticsDelta, pending: i64) {
        if delta.is_empty() && pending == 0 {
            return;
        }
        self.chunks += delta.chunks;
        self.length += delta.length;
        self.pending += pending;
        if self.ring.back().is_none_or(|entry| entry.at != at) {
            let frequencies = AHashMap::new();
            self.ring.push_back(Entry {
                at,
                chunks: 0,
                length: 0,
                pending: 0,
                frequencies,
            });
        }
        let entry = self.ring.back_mut().expect("just pushed");
        entry.chunks += delta.chunks;
        entry.length += delta.length;
        entry.pending += pending;
        for (term, change) in &delta.frequencies {
            *entry.frequencies.entry(*term).or_default() += change;
        }
    }

    fn after(&self, at: Time) -> impl Iterator<Item = &Entry> {
        self.ring
            .iter()
            .rev()
            .take_while(move |entry| entry.at > at)
    }

    /// Statistics of the terms at a time, given their frequencies now.
    pub(crate) fn statistics(
        &self,
        terms: &[Term],
        now: impl Fn(Term) -> u64,
        at: Time,
    ) -> Statistics {
        let (mut chunks, mut length) = (self.chunks, self.length);
        let mut frequencies: Vec<i64> = terms.iter().map(|term| now(*term) as i64).collect();
        for entry in self.after(at) {
            chunks -= entry.chunks;
            length -= entry.length;
            for (frequency, term) in frequencies.iter_mut().zip(terms) {
                *frequency -= entry.frequencies.get(term).copied().unwrap_or(0);
            }
        }
        let count = |n: i64| u64::try_from(n).expect("what is counted was counted in before");
        Statistics {
            chunks: count(chunks),
            length: count(length),
            frequencies: frequencies.into_iter().map(count).collect(),
        }
    }

    /// Live chunks at a time.
    pub(crate) fn chunks(&self, at: Time) -> u64 {
        let after: i64 = self.after(at).map(|entry| entry.chunks).sum();
        u64::try_from(self.chunks - after).expect("what is counted was counted in before")
    }

    /// Pending documents at a time.
    pub(crate) fn pending(&self, at: Time) -> u64 {
        let after: i64 = self.after(at).map(|entry| entry.pending).sum();
        u64::try_from(self.pending - after).expect("what is counted was counted in before")
    }

    /// Nobody asks about a time before `since` any more.
    pub(crate) fn compact(&mut self, since: Time) {
        while self.ring.front().is_some_and(|entry| entry.at <= since) {
            self.ring.pop_front();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.ring
            .iter()
            .map(|entry| 64 + entry.frequencies.capacity() * 17)
            .sum()
    }
}
