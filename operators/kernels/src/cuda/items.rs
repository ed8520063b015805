//! What attention by heads takes at a time: one long text's queries, or up to four short texts in 64 rows.
//!
//! ```text
//!   lengths, longest first        items: four slots of 16 queries each
//!   300                           │ 300: 0 │ 16 │ 32 │ 48 │   and on, up to `queries` of them; the next item after that
//!   40, 33, 20, 9, 7              │ 40: 0  │ 16 │ 32 │ 9: 0 │   33: 0 │ 16 │ 32 │ 7: 0 │   20: 0 │ 16 │ – │ – │
//! ```
//!
//! Texts of up to 64 ids are packed first-fit, longest first; four sizes that halve or complement one another leave
//! at most one item with room for more. A text's slots are neighbours and begin at its own start.
//!
//! Invariants: every query of every text is in one slot; the order changes no result, because a slot's result depends on
//! its text alone; the list depends on lengths and order only. Limits: 65,535 ids a text.

use super::batch::Bucket;
use super::tiles::ATTENTION_TILE;

/// Queries of a slot.
pub const SLOT: usize = 16;
/// Slots of an item.
const SLOTS: usize = ATTENTION_TILE / SLOT;
/// Ints of an item on the device.
pub const WORDS: usize = 2 * SLOTS;

/// Four slots: 16 queries of a text each, or none. A text of more than 64 has all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Item {
    /// The text's first row.
    starts: [u32; SLOTS],
    /// Its length in bits 0–15, 0 in a free slot; the slot's first query / 16 above.
    places: [u32; SLOTS],
    used: usize,
}

impl Item {
    /// As the kernel reads them.
    pub fn words(&self) -> impl Iterator<Item = u32> + use<> {
        self.starts.into_iter().chain(self.places)
    }

    /// The next `slots` slots are of a text from `first` on.
    fn add(&mut self, start: u32, length: u32, first: u32, slots: usize) {
        for slot in 0..slots {
            self.starts[self.used] = start;
            self.places[self.used] = length | (first / SLOT as u32 + slot as u32) << 16;
            self.used += 1;
        }
    }
}

impl Bucket {
    /// Queries of a long text that are one item: more share what is loaded of its keys, fewer keep more
    /// multiprocessors at work. Changes no result.
    pub fn queries(&self) -> usize {
        (self.tokens / 32).clamp(64, 256)
    }

    /// Items at most. A text of more than 64 ids has ⌈length / queries⌉ ≤ ⌈length / 64⌉ of them, and of those
    /// that are packed all but one have 4 texts, or 3 with 19 ids or more, 2 with 34, 1 with 33: each
    /// item has texts / 4 + ids / 32 ≥ 1.
    pub fn items(&self) -> usize {
        self.texts / SLOTS + self.tokens / 32 + 1
    }
}

/// Lists the items of texts, given as (first row, length), longest first.
pub fn pack(items: &mut Vec<Item>, texts: impl Iterator<Item = (u32, u32)>, queries: u32) {
    items.clear();
    // The first item that may have room, and for how many slots that was found.
    let (mut packed, mut open, mut size) = (None, 0, 0);
    for (start, length) in texts {
        if length as usize > ATTENTION_TILE {
            for first in (0..length).step_by(queries as usize) {
                items.push(Item::default());
                let item = items.last_mut().expect("just pushed");
                item.add(start, length, first, SLOTS);
            }
            continue;
        }
        let slots = (length as usize).div_ceil(SLOT);
        let begin = *packed.get_or_insert(items.len());
        if slots != size {
            (open, size) = (begin, slots);
        }
        while open < items.len() && items[open].used + slots > SLOTS {
            open += 1;
        }
        if open == items.len() {
            items.push(Item::default());
        }
        items[open].add(start, length, 0, slots);
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::BUCKETS;
    use super::*;

    /// The items of texts of these lengths, one behind the other.
    fn packed(lengths: &[u32], queries: u32) -> Vec<Item> {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable_by_key(|length| u32::MAX - length);
        let mut items = vec![Item::default()];
        let texts = sorted.iter().scan(0, |start, &length| {
            *start += length;
            Some((*start - length, length))
        });
        pack(&mut items, texts, queries);
        items
    }

    #[test]
    fn every_query_is_in_one_slot_of_its_own_text() {
        let mixes: [&[u32]; 6] = [
            &[],
            &[1],
            &[40, 33, 20, 9, 7],
            &[64, 65, 63, 300, 17, 16, 15, 1, 1, 1],
            &[512, 48, 48, 33, 32, 31, 17, 1, 2, 3],
            &[65_535, 700],
        ];
        for (lengths, queries) in mixes.into_iter().flat_map(|mix| [(mix, 64), (mix, 256)]) {
            let mut seen = Vec::new();
            for item in packed(lengths, queries) {
                let words: Vec<u32> = item.words().collect();
                for slot in 0..SLOTS {
                    let (start, place) = (words[slot], words[SLOTS + slot]);
                    let (length, first) = (place & 0xffff, place >> 16 << 4);
                    let step = if length > 64 { 64 } else { queries };
                    let rounds = (0..queries).step_by(step as usize);
                    let rows = rounds.flat_map(|round| first + round..first + round + 16);
                    seen.extend(rows.filter(|&row| row < length).map(|row| start + row));
                    // The text's first slot is so many slots before.
                    assert!(length > 64 || first as usize / SLOT <= slot);
                }
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..lengths.iter().sum()), "{lengths:?}");
        }
    }

    #[test]
    fn short_texts_share_items_and_the_worst_mix_fits_its_bucket() {
        assert_eq!(packed(&[16; 4096], 256).len(), 1024);
        assert_eq!(packed(&[33, 16, 33, 9, 20, 30], 256).len(), 3);
        for bucket in BUCKETS {
            let (tokens, texts) = (bucket.tokens as u32, bucket.texts);
            for length in 1..=tokens.min(520) {
                // As many of one length as fit, the rest of one id each or of 17.
                for other in [1, 17] {
                    let count = (tokens / length).min(texts as u32);
                    let left = (tokens - count * length) / other;
                    let rest = (left as usize).min(texts - count as usize);
                    let mut lengths = vec![length; count as usize];
                    lengths.extend(vec![other; rest]);
                    let items = packed(&lengths, bucket.queries() as u32).len();
                    assert!(items <= bucket.items(), "{bucket:?} of {length}: {items}");
                }
            }
        }
    }
}
