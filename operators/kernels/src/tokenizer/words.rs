//! Reads a stretch of text word by word: the fast path, and the full one where it must.
//!
//! ```text
//! The naïve 漢字 plan.
//! ─── ▔▔▔▔▔ ▔▔▔▔ ────╴   ─ ASCII ([`super::ascii`])   ▔ any character ([`super::unicode`])
//! ```
//!
//! The full path begins at the first letter of a word and ends before a space or a punctuation mark
//! in ASCII. There the fast path may go on: such a character is no mark, so sorting does not reach
//! across it, and it ends a word under all rules.
//!
//! Invariants: tokens and places are those of the whole stretch normalized at once. Limits: a run of
//! combining marks is held in memory, and a word.

use super::ascii::{Ascii, Class};
use super::cache::{Cache, Key, key};
use super::sink::{Sink, Word};
use super::unicode::{Images, Kind, Place};
use super::vocab::Vocabulary;

/// What reading needs and does not change.
pub(super) struct Tables {
    pub(super) vocabulary: Vocabulary,
    pub(super) images: Images,
    pub(super) ascii: Ascii,
}

/// Working memory that is kept from text to text.
#[derive(Default)]
pub(super) struct Buffers {
    /// The word so far, normalized.
    word: Vec<u8>,
    /// The place of each of its bytes, if somebody asks.
    places: Vec<Place>,
    pieces: Vec<u32>,
    /// Characters before and after the definition's rules.
    raw: Vec<(char, Place)>,
    normal: Vec<(char, Place)>,
}

impl Buffers {
    /// Gives back what an unusual text took.
    pub(super) fn settle(&mut self) {
        const KEPT_MAX: usize = 64 << 10;
        self.word.shrink_to(KEPT_MAX);
        self.places.shrink_to(KEPT_MAX);
        self.pieces.shrink_to(KEPT_MAX);
        self.raw.shrink_to(KEPT_MAX);
        self.normal.shrink_to(KEPT_MAX);
    }
}

/// Reads words into a sink.
pub(super) struct Reader<'a, S> {
    pub(super) tables: &'a Tables,
    pub(super) cache: &'a mut Cache,
    pub(super) buffers: &'a mut Buffers,
    pub(super) sink: &'a mut S,
}

impl<S: Sink> Reader<'_, S> {
    /// Reads `text` from a byte on; stops early when the sink is full.
    pub(super) fn read(&mut self, text: &str, from: usize) {
        let tables = self.tables;
        let bytes = text.as_bytes();
        let mut at = from;
        while at < bytes.len() && !self.sink.is_full() {
            match tables.ascii.class(bytes, at) {
                Class::Space => at += 1,
                Class::Punctuation => {
                    let id = tables.ascii.singles[usize::from(bytes[at] & 127)];
                    self.sink.mark(id, at);
                    at += 1;
                }
                Class::Letter => {
                    let (length, key) = tables.ascii.word(bytes, at);
                    let end = at + length;
                    match tables.ascii.class(bytes, end) {
                        Class::Other => at = self.read_any(text, at),
                        class => {
                            self.ascii_word(bytes, at, end, key);
                            // One space after a word is the rule.
                            at = end + usize::from(class == Class::Space);
                        }
                    }
                }
                Class::Other => at = self.read_any(text, at),
            }
        }
    }

    #[inline]
    fn ascii_word(&mut self, bytes: &[u8], from: usize, to: usize, key: Option<Key>) {
        let word = Word::Plain {
            from,
            bytes: to - from,
        };
        if let Some(key) = key
            && let Some(pieces) = self.cache.get(key)
        {
            self.sink.known(pieces, word);
        } else {
            self.new_word(&bytes[from..to], key, word);
        }
    }

    /// A word that is not remembered.
    #[cold]
    #[inline(never)]
    fn new_word(&mut self, bytes: &[u8], key: Option<Key>, word: Word<'_>) {
        let ascii = &self.tables.ascii;
        let buffers = &mut *self.buffers;
        buffers.word.clear();
        let folded = bytes.iter().map(|&byte| ascii.folded(byte));
        buffers.word.extend(folded);
        let vocabulary = &self.tables.vocabulary;
        vocabulary.pieces(&buffers.word, &mut buffers.pieces);
        buffers.word.clear();
        if let Some(key) = key {
            self.cache.put(key, &buffers.pieces);
        }
        self.sink.word(&buffers.pieces, word);
    }

    /// The full path, from a byte on up to ASCII that ends a word. Returns where that is.
    fn read_any(&mut self, text: &str, from: usize) -> usize {
        let tables = self.tables;
        let mut at = from;
        while let Some(c) = text[at..].chars().next() {
            if self.sink.is_full() {
                // Nobody asks for the word that was begun.
                self.buffers.word.clear();
                self.buffers.places.clear();
                return text.len();
            }
            let end = at + c.len_utf8();
            if c.is_ascii() {
                match tables.ascii.class(text.as_bytes(), at) {
                    Class::Space | Class::Punctuation => break,
                    Class::Letter => {
                        let folded = tables.ascii.folded(c as u8);
                        self.letter(char::from(folded), (at as u32, end as u32));
                        at = end;
                        continue;
                    }
                    Class::Other => {}
                }
            }
            let page = tables.images.page(c);
            let image = page.image(c);
            let place = (at as u32, end as u32);
            if let Some(letter) = image.letter() {
                self.letter(letter, place);
                at = end;
            } else if image.is_mark() || image.is_kept_mark() {
                at = self.marks(text, at);
            } else {
                page.each(image, |c, kind| self.take(c, kind, place));
                at = end;
            }
        }
        self.flush();
        at
    }

    /// A run of marks, which are sorted before they are dropped or kept. Returns where it ends.
    fn marks(&mut self, text: &str, from: usize) -> usize {
        let images = &self.tables.images;
        let mut to = from;
        let mut is_kept = false;
        let mut raw = std::mem::take(&mut self.buffers.raw);
        raw.clear();
        for c in text[from..].chars() {
            let image = images.page(c).image(c);
            let belongs = image.is_mark() || image.is_dropped();
            if to > from && !belongs {
                break;
            }
            let end = to + c.len_utf8();
            raw.push((c, (to as u32, end as u32)));
            is_kept |= image.is_kept_mark();
            to = end;
        }
        if is_kept {
            let mut normal = std::mem::take(&mut self.buffers.normal);
            images.rules().normalize(&raw, &mut normal);
            for &(c, place) in &normal {
                self.take(c, Kind::of(c), place);
            }
            self.buffers.normal = normal;
        } else {
            for &(c, place) in &raw {
                let page = images.page(c);
                page.each(page.image(c), |c, kind| self.take(c, kind, place));
            }
        }
        self.buffers.raw = raw;
        to
    }

    /// One normalized character.
    pub(super) fn take(&mut self, c: char, kind: Kind, place: Place) {
        match kind {
            Kind::Letter => self.letter(c, place),
            Kind::Space => self.flush(),
            Kind::Punctuation => {
                self.flush();
                self.letter(c, place);
                self.flush();
            }
        }
    }

    #[inline]
    fn letter(&mut self, c: char, place: Place) {
        let word = &mut self.buffers.word;
        let before = word.len();
        if c.is_ascii() {
            word.push(c as u8);
        } else {
            word.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        if S::PLACES {
            let bytes = word.len() - before;
            self.buffers
                .places
                .extend(std::iter::repeat_n(place, bytes));
        }
    }

    /// The word ends here, if there is one.
    pub(super) fn flush(&mut self) {
        let buffers = &mut *self.buffers;
        if buffers.word.is_empty() {
            return;
        }
        let key = key(&buffers.word);
        let word = Word::Placed(&buffers.places);
        match key.and_then(|key| self.cache.get(key)) {
            Some(pieces) => self.sink.known(pieces, word),
            None => {
                let vocabulary = &self.tables.vocabulary;
                vocabulary.pieces(&buffers.word, &mut buffers.pieces);
                if let Some(key) = key {
                    self.cache.put(key, &buffers.pieces);
                }
                self.sink.word(&buffers.pieces, word);
            }
        }
        buffers.word.clear();
        buffers.places.clear();
    }
}
