//! The keyword leg: an incremental inverted index with exact statistics.
//!
//! ```text
//! term ─▶ number ─▶ postings [(slot, tf)]      append on arrival; dead ones hidden by the slot's
//!            ▲                                 interval and squeezed out lazily
//! slot ──────┴─ forward index [(number, tf)]   so a retraction subtracts exactly
//! ```
//!
//! BM25 as API §3 writes it (Robertson & Zaragoza 2009, k1 = 1.2, b = 0.75), unquantised lengths.
//! One chunk is one "document". Contributions of a chunk are summed in the order of the question's
//! terms, so the score is bitwise the same on every worker.
//!
//! Cost: O(distinct terms) to add or retire a chunk; a question reads each posting of its terms
//! once, about 3 ns each. A list is squeezed when a quarter of it is dead.

use ahash::AHashMap;
use engine::model::Time;

use super::slots::Slots;
use super::{Statistics, Term};

/// Lists below this length are squeezed at the first dead posting.
const SHORT_LIST: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Posting {
    slot: u32,
    occurrences: u32,
}

#[derive(Debug)]
struct List {
    term: Term,
    postings: Vec<Posting>,
    /// Live now: df.
    frequency: u32,
    /// Postings of released slots.
    dead: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct KeywordIndex {
    numbers: AHashMap<Term, u32>,
    lists: Vec<List>,
    free: Vec<u32>,
}

/// A question's terms, weighed for one time: what is the same for every posting.
pub(crate) struct Weights {
    /// (list number, idf · repetitions · 2.2), in the question's order.
    terms: Vec<(u32, f64)>,
    /// 1.2 · 0.75 / average length.
    slope: f64,
}

impl Weights {
    #[inline]
    fn contribution(&self, weight: f64, occurrences: u32, length: u32) -> f64 {
        let occurrences = f64::from(occurrences);
        weight * occurrences / (occurrences + 0.3 + self.slope * f64::from(length))
    }
}

/// Dense sums by slot, reused between questions: all zero outside a question.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) scores: Vec<f64>,
    pub(crate) touched: Vec<u32>,
}

impl Sums {
    /// Back to all zero. Cost: what was touched.
    pub(crate) fn clear(&mut self) {
        for slot in self.touched.drain(..) {
            self.scores[slot as usize] = 0.0;
        }
    }
}

impl KeywordIndex {
    /// Adds a chunk's postings and returns its forward entry, ordered by number.
    pub(crate) fn add(&mut self, slot: u32, terms: &[(Term, u32)]) -> Box<[(u32, u32)]> {
        let mut forward: Vec<(u32, u32)> = terms
            .iter()
            .map(|(term, occurrences)| {
                let number = self.number(*term);
                let list = &mut self.lists[number as usize];
                list.postings.push(Posting {
                    slot,
                    occurrences: *occurrences,
                });
                list.frequency += 1;
                (number, *occurrences)
            })
            .collect();
        forward.sort_unstable();
        forward.into_boxed_slice()
    }

    fn number(&mut self, term: Term) -> u32 {
        if let Some(number) = self.numbers.get(&term) {
            return *number;
        }
        let list = List {
            term,
            postings: Vec::new(),
            frequency: 0,
            dead: 0,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.lists[number as usize] = list;
                number
            }
            None => {
                self.lists.push(list);
                (self.lists.len() - 1) as u32
            }
        };
        self.numbers.insert(term, number);
        number
    }

    /// A chunk vanished: it no longer counts, its postings stay for readers of the past.
    pub(crate) fn retire(&mut self, forward: &[(u32, u32)]) {
        for (number, _) in forward {
            self.lists[*number as usize].frequency -= 1;
        }
    }

    /// Nobody can read the chunk any more: its postings are dead. Returns the postings visited.
    pub(crate) fn release(&mut self, forward: &[(u32, u32)], slots: &mut Slots) -> usize {
        let mut visited = 0;
        for (number, _) in forward {
            let list = &mut self.lists[*number as usize];
            list.dead += 1;
            let length = list.postings.len();
            if length >= SHORT_LIST && (list.dead as usize) * 4 < length {
                continue;
            }
            visited += length;
            list.dead = 0;
            list.postings.retain(|posting| {
                let is_dead = slots.is_released(posting.slot);
                if is_dead {
                    slots.forget_posting(posting.slot);
                }
                !is_dead
            });
            if list.postings.len() * 2 < list.postings.capacity() {
                list.postings.shrink_to_fit();
            }
            if list.postings.is_empty() {
                self.numbers.remove(&list.term);
                self.free.push(*number);
            }
        }
        visited
    }

    /// df now.
    pub(crate) fn frequency(&self, term: Term) -> u64 {
        self.numbers.get(&term).map_or(0, |number| {
            u64::from(self.lists[*number as usize].frequency)
        })
    }

    /// Terms of a forward entry, ordered by term.
    pub(crate) fn terms(&self, forward: &[(u32, u32)]) -> Vec<(Term, u32)> {
        let mut terms: Vec<(Term, u32)> = forward
            .iter()
            .map(|(number, occurrences)| (self.lists[*number as usize].term, *occurrences))
            .collect();
        terms.sort_unstable();
        terms
    }

    /// Prepares a question's terms with global statistics.
    pub(crate) fn weigh(&self, terms: &[(Term, u32)], statistics: &Statistics) -> Weights {
        let weighed = terms.iter().enumerate().filter_map(|(i, (term, times))| {
            let number = self.numbers.get(term)?;
            Some((*number, statistics.idf(i) * f64::from(*times) * 2.2))
        });
        Weights {
            terms: weighed.collect(),
            slope: 0.9 / statistics.average_length(),
        }
    }

    /// Adds up BM25 of every live chunk that has a term.
    pub(crate) fn score(&self, weights: &Weights, slots: &Slots, at: Time, sums: &mut Sums) {
        sums.scores.resize(slots.len(), 0.0);
        for (number, weight) in &weights.terms {
            for posting in &self.lists[*number as usize].postings {
                let hot = slots.hot(posting.slot);
                if hot.from <= at && at < hot.to {
                    let score = &mut sums.scores[posting.slot as usize];
                    if *score == 0.0 {
                        sums.touched.push(posting.slot);
                    }
                    *score += weights.contribution(*weight, posting.occurrences, hot.length);
                }
            }
        }
    }

    /// Distinct terms with a posting, for metrics.
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        let postings: usize = self
            .lists
            .iter()
            .map(|list| list.postings.capacity() * 8)
            .sum();
        postings + self.lists.capacity() * size_of::<List>() + self.numbers.capacity() * 13
    }
}
