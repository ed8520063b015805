//! The slot table: one row for each life of a chunk in this shard.
//!
//! A slot is taken when a chunk appears, closed when it vanishes (`to`), and given back when no
//! reader can see it any more *and* no posting names it. Visibility is two comparisons on one
//! cache line: `from ≤ T < to`.
//!
//! Invariants: `from ≤ vector_from`; a released slot has `to = 0`, so it is visible at no time; a
//! slot is reused only after its last posting was squeezed out and its row in a segment unlinked.

use engine::model::{ChunkId, ContentHash, Time};

/// "Not yet": after every time.
pub(crate) const NEVER: Time = Time::MAX;
/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// What every scan touches; 24 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hot {
    pub(crate) from: Time,
    pub(crate) to: Time,
    pub(crate) length: u32,
    pub(crate) document: u32,
}

/// Where a slot's vector lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) part: u32,
    pub(crate) row: u32,
}

pub(crate) const NOWHERE: Place = Place {
    part: NONE,
    row: NONE,
};

/// Columns by slot.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    hot: Vec<Hot>,
    vector_from: Vec<Time>,
    chunks: Vec<ChunkId>,
    contents: Vec<ContentHash>,
    places: Vec<Place>,
    /// The forward index: (term number, occurrences), so that a retraction subtracts exactly.
    terms: Vec<Box<[(u32, u32)]>>,
    /// Postings that still name a released slot.
    named: Vec<u32>,
    free: Vec<u32>,
}

impl Slots {
    /// Takes a slot that is live from `hot.from` on.
    pub(crate) fn take(&mut self, hot: Hot, chunk: ChunkId, content: ContentHash) -> u32 {
        if let Some(slot) = self.free.pop() {
            let i = slot as usize;
            self.hot[i] = hot;
            self.vector_from[i] = NEVER;
            self.chunks[i] = chunk;
            self.contents[i] = content;
            self.places[i] = NOWHERE;
            return slot;
        }
        let slot = u32::try_from(self.hot.len()).expect("fewer than 2³² chunks in one shard");
        self.hot.push(hot);
        self.vector_from.push(NEVER);
        self.chunks.push(chunk);
        self.contents.push(content);
        self.places.push(NOWHERE);
        self.terms.push(Box::default());
        self.named.push(0);
        slot
    }

    /// Makes a closed slot invisible at all times. It is free once its postings are gone.
    pub(crate) fn release(&mut self, slot: u32) -> Box<[(u32, u32)]> {
        let i = slot as usize;
        self.hot[i].to = 0;
        self.places[i] = NOWHERE;
        let terms = std::mem::take(&mut self.terms[i]);
        self.named[i] = terms.len() as u32;
        if terms.is_empty() {
            self.free.push(slot);
        }
        terms
    }

    /// One posting of a released slot was squeezed out.
    pub(crate) fn forget_posting(&mut self, slot: u32) {
        let named = &mut self.named[slot as usize];
        *named -= 1;
        if *named == 0 {
            self.free.push(slot);
        }
    }

    pub(crate) fn is_released(&self, slot: u32) -> bool {
        self.hot[slot as usize].to == 0
    }

    pub(crate) fn close(&mut self, slot: u32, at: Time) {
        self.hot[slot as usize].to = at;
    }

    #[inline]
    pub(crate) fn hot(&self, slot: u32) -> &Hot {
        &self.hot[slot as usize]
    }

    #[inline]
    pub(crate) fn is_live(&self, slot: u32, at: Time) -> bool {
        let hot = self.hot(slot);
        hot.from <= at && at < hot.to
    }

    #[inline]
    pub(crate) fn has_vector(&self, slot: u32, at: Time) -> bool {
        self.vector_from[slot as usize] <= at
    }

    pub(crate) fn set_vector(&mut self, slot: u32, at: Time) {
        self.vector_from[slot as usize] = at;
    }

    pub(crate) fn chunk(&self, slot: u32) -> ChunkId {
        self.chunks[slot as usize]
    }

    pub(crate) fn content(&self, slot: u32) -> ContentHash {
        self.contents[slot as usize]
    }

    pub(crate) fn place(&self, slot: u32) -> Place {
        self.places[slot as usize]
    }

    pub(crate) fn set_place(&mut self, slot: u32, place: Place) {
        self.places[slot as usize] = place;
    }

    pub(crate) fn terms(&self, slot: u32) -> &[(u32, u32)] {
        &self.terms[slot as usize]
    }

    pub(crate) fn set_terms(&mut self, slot: u32, terms: Box<[(u32, u32)]>) {
        self.terms[slot as usize] = terms;
    }

    /// Slots ever taken: the length of a dense accumulator.
    pub(crate) fn len(&self) -> usize {
        self.hot.len()
    }

    /// Every slot that is live at a time.
    pub(crate) fn live(&self, at: Time) -> impl Iterator<Item = u32> + '_ {
        (0..self.hot.len() as u32).filter(move |slot| self.is_live(*slot, at))
    }

    pub(crate) fn bytes(&self) -> usize {
        let columns = size_of::<Hot>() + 8 + 16 + 16 + size_of::<Place>() + 16 + 4;
        let forward: usize = self.terms.iter().map(|terms| terms.len() * 8).sum();
        self.hot.capacity() * columns + forward
    }
}
