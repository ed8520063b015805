//! What becomes of tokens: ids, spans or a number.
//!
//! The idea: reading a text is written once and compiled for each use, so that a count stores
//! nothing and ids carry no places.

use super::cache::{PIECES_MAX, Pieces};
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
    /// The pieces of a word that was seen before.
    #[inline]
    fn known(&mut self, pieces: &Pieces, word: Word<'_>) {
        self.word(pieces.ids(), word);
    }
    /// A punctuation mark.
    fn mark(&mut self, id: u32, at: usize);
    /// An added token from byte to byte.
    fn added(&mut self, id: u32, from: usize, to: usize);
    /// Whether it wants no more.
    fn is_full(&self) -> bool;
}

/// Ids, until a word brings their number to a limit.
///
/// The list is longer than what is in it, so that the few pieces of a known word are written at
/// once, however many they are.
pub(super) struct Ids {
    list: Vec<u32>,
    count: usize,
    limit: usize,
    /// Added tokens behind the last word, if only words end the reading.
    behind: usize,
    only_words: bool,
}

impl Ids {
    /// Goes on in a list with the ids of a text; full when it holds `limit` ids, those that were
    /// there included.
    pub(super) fn new(mut list: Vec<u32>, text: &str, limit: usize) -> Self {
        let count = list.len();
        // Prose has a token every four bytes; where there are more of them, the list grows.
        let guess = (text.len() / 4).min(limit.saturating_sub(count)) + PIECES_MAX;
        list.resize(count + guess, 0);
        Ids {
            count,
            list,
            limit,
            behind: 0,
            only_words: false,
        }
    }

    /// Added tokens alone do not end the reading.
    pub(super) fn until_a_word(mut self) -> Self {
        self.only_words = true;
        self
    }

    /// The list, cut where the ids end or at a length.
    pub(super) fn into_list(mut self, max: usize) -> Vec<u32> {
        self.list.truncate(self.count.min(max));
        self.list
    }

    /// Ids so far, those included that were in the list before.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn push(&mut self, id: u32) {
        if self.count >= self.list.len() {
            self.grow(1);
        }
        self.list[self.count] = id;
        self.count += 1;
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, more: usize) {
        let room = (self.list.len() / 2).max(256).max(more);
        self.list.resize(self.count + room, 0);
    }
}

impl Sink for Ids {
    const PLACES: bool = false;

    #[cold]
    #[inline(never)]
    fn word(&mut self, pieces: &[u32], _: Word<'_>) {
        if self.count + pieces.len() > self.list.len() {
            self.grow(pieces.len());
        }
        self.list[self.count..][..pieces.len()].copy_from_slice(pieces);
        self.count += pieces.len();
        self.behind = 0;
    }

    #[inline]
    fn known(&mut self, pieces: &Pieces, word: Word<'_>) {
        let rest = self.list.get_mut(self.count..);
        let Some(place) = rest.and_then(|rest| rest.first_chunk_mut()) else {
            return self.word(pieces.ids(), word);
        };
        *place = pieces.ids;
        self.count += pieces.count as usize;
        self.behind = 0;
    }

    #[inline]
    fn mark(&mut self, id: u32, _: usize) {
        self.push(id);
        self.behind = 0;
    }

    fn added(&mut self, id: u32, _: usize, _: usize) {
        self.push(id);
        self.behind += usize::from(self.only_words);
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.count >= self.limit.saturating_add(self.behind)
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
    fn known(&mut self, pieces: &Pieces, _: Word<'_>) {
        self.0 += pieces.count as usize;
    }

    #[inline]
    fn mark(&mut self, _: u32, _: usize) {
        self.0 += 1;
    }

    fn added(&mut self, _: u32, _: usize, _: usize) {
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
    fn mark(&mut self, _: u32, at: usize) {
        self.push(at as u32, at as u32 + 1);
    }

    fn added(&mut self, _: u32, from: usize, to: usize) {
        self.push(from as u32, to as u32);
    }

    #[inline]
    fn is_full(&self) -> bool {
        false
    }
}
