//! What becomes of tokens: ids, spans or a number.
//!
//! The idea: reading a text is written once and compiled for each use, so that a count stores
//! nothing and ids carry no places.

use super::unicode::Place;
use super::vocab::Vocabulary;

/// Where a word stands.
pub(super) enum Word<'a> {
    /// Its bytes are the text's own bytes from here on.
    Plain {
        /// The first byte.
        from: usize,
        /// How many.
        bytes: usize,
    },
    /// The place of each of its bytes.
    Placed(&'a [Place]),
}

/// Takes tokens in the order of the text.
pub(super) trait Sink {
    /// Whether it wants to know where tokens stand; if not, [`Word::Placed`] may be empty.
    const PLACES: bool;
    /// The pieces of a word.
    fn word(&mut self, pieces: &[u32], word: Word<'_>);
    /// One token from byte to byte.
    fn token(&mut self, id: u32, from: usize, to: usize);
    /// Whether it wants no more.
    fn is_full(&self) -> bool;
}

/// Ids, until there are more than `until` in the list.
pub(super) struct Ids<'a> {
    pub(super) ids: &'a mut Vec<u32>,
    pub(super) until: usize,
}

impl Sink for Ids<'_> {
    const PLACES: bool = false;

    #[inline]
    fn word(&mut self, pieces: &[u32], _: Word<'_>) {
        match pieces {
            &[one] => self.ids.push(one),
            many => self.ids.extend_from_slice(many),
        }
    }

    #[inline]
    fn token(&mut self, id: u32, _: usize, _: usize) {
        self.ids.push(id);
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.ids.len() > self.until
    }
}

/// How many.
#[derive(Default)]
pub(super) struct Count(pub(super) usize);

impl Sink for Count {
    const PLACES: bool = false;

    #[inline]
    fn word(&mut self, pieces: &[u32], _: Word<'_>) {
        self.0 += pieces.len();
    }

    #[inline]
    fn token(&mut self, _: u32, _: usize, _: usize) {
        self.0 += 1;
    }

    #[inline]
    fn is_full(&self) -> bool {
        false
    }
}

/// Byte ranges of the text.
pub(super) struct Spans<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) starts: &'a mut Vec<u32>,
    pub(super) ends: &'a mut Vec<u32>,
    /// The last one: starts and ends never step back.
    pub(super) last: Place,
}

impl Spans<'_> {
    #[inline]
    fn push(&mut self, from: u32, to: u32) {
        self.last = (from.max(self.last.0), to.max(self.last.1));
        self.starts.push(self.last.0);
        self.ends.push(self.last.1);
    }
}

impl Sink for Spans<'_> {
    const PLACES: bool = true;

    #[inline]
    fn word(&mut self, pieces: &[u32], word: Word<'_>) {
        let bytes = match word {
            Word::Plain { bytes, .. } => bytes,
            Word::Placed(places) => places.len(),
        };
        let vocabulary = self.vocabulary;
        let mut at = 0;
        for length in vocabulary.lengths(pieces, bytes) {
            match word {
                Word::Plain { from, .. } => {
                    self.push((from + at) as u32, (from + at + length) as u32);
                }
                Word::Placed(places) => self.push(places[at].0, places[at + length - 1].1),
            }
            at += length;
        }
    }

    #[inline]
    fn token(&mut self, _: u32, from: usize, to: usize) {
        self.push(from as u32, to as u32);
    }

    #[inline]
    fn is_full(&self) -> bool {
        false
    }
}
