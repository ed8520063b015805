//! Text to token ids: BERT's WordPiece, with the ids of the `tokenizers` crate.
//!
//! The idea: almost every word of a text is short, is ASCII and was seen before. Such a word is found
//! eight letters at a time and looked up as a number; all others take a full path that knows every
//! character.
//!
//! ```text
//! text ─▶ added tokens ─▶ stretches ─▶ words ────────────▶ pieces ─▶ ids, spans or a number
//!         `[SEP]`, …                   │ ASCII: 8 bytes      ▲
//!         (`added`)                    │ at once (`ascii`)   │ seen before: `cache`
//!                                      └ else: by tables     │ new: longest match in `vocab`
//!                                        (`unicode`) ────────┘
//! ```
//!
//! Reading order: `unicode` (what a text becomes), `vocab`, `words` (the loop), `ascii`,
//! `cache`, `added`, `load` with `slots`, `sink`.
//!
//! Invariants: ids and spans are those of the whole text in one go, as `tokenizers` 0.23 gives them
//! (law test over random texts and every code point); nothing in a text is an error or a panic.
//! Limits: WordPiece with BERT's normalizer and pre-tokenizer; texts below 4 GiB; cut on the right.
//!
//! ```
//! use kernels::tokenizer::{Scratch, WordPiece};
//! let tokenizer = WordPiece::from_vocab("[UNK]\n[CLS]\n[SEP]\nun\n##able\n!", true)?;
//! let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
//! let encoded = tokenizer.encode_into(&mut scratch, "Unable!", 512, &mut ids);
//! assert_eq!(ids, [1, 3, 4, 5, 2]);
//! assert!(!encoded.is_cut);
//! # Ok::<(), kernels::tokenizer::TokenizerError>(())
//! ```

mod added;
mod ascii;
mod cache;
mod load;
mod sink;
mod slots;
mod unicode;
mod vocab;
mod words;

use std::sync::atomic::{AtomicU64, Ordering};

use added::{Matcher, Part};
use ascii::Ascii;
use cache::Cache;
use load::File;
use sink::{Count, Ids, Sink, Spans};
use slots::Slot;
use unicode::{Images, Kind, Place};
use vocab::Vocabulary;
use words::{Buffers, Reader, Tables};

pub use load::TokenizerError;

/// Tells tokenizers apart, so that a scratch never mixes their words.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A WordPiece tokenizer with its special tokens. Shared between threads; each brings a [`Scratch`].
pub struct WordPiece {
    serial: u64,
    tables: Tables,
    /// Added tokens that are looked for in the text as it is.
    raw: Matcher,
    /// Added tokens that are looked for in normalized text.
    normalized: Matcher,
    single: Vec<Slot>,
    pair: Vec<Slot>,
    ids: usize,
    truncation: Option<usize>,
    is_padded: bool,
}

/// Working memory of one thread: the words seen before, and buffers. Empty at first; half a
/// mebibyte once used. Results never depend on what it was used for before.
#[derive(Default)]
pub struct Scratch {
    /// The tokenizer that the words belong to.
    serial: u64,
    cache: Option<Cache>,
    buffers: Buffers,
}

impl Scratch {
    /// Bytes held for words seen before.
    pub fn resident_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, Cache::resident_bytes)
    }
}

/// What came of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Ids that were appended, special ones included.
    pub tokens: usize,
    /// Whether the text had more tokens than there was room for. [`WordPiece::count`] says how many.
    pub is_cut: bool,
}

impl WordPiece {
    /// Reads a `tokenizer.json`. The error names the place in the file, what was found there and
    /// what is expected. Cost: some 30 ms for 30,000 tokens.
    pub fn parse(json: &[u8]) -> Result<Self, TokenizerError> {
        File::json(json).map(Self::new)
    }

    /// A BERT tokenizer from its list of tokens, one a line; `lowercase` for models that do not tell
    /// upper from lower case (they do not see accents either).
    pub fn from_vocab(lines: &str, lowercase: bool) -> Result<Self, TokenizerError> {
        File::vocabulary(lines, lowercase).map(Self::new)
    }

    fn new(file: File) -> Self {
        let vocabulary = Vocabulary::new(
            &file.tokens,
            &file.prefix,
            file.unknown,
            file.word_chars_max,
        );
        let images = Images::new(file.rules);
        let ascii = Ascii::new(images.page('\0'), file.rules.lowercase, &vocabulary);
        let added = file.added.iter().map(|token| token.id);
        let special = file.single.iter().chain(&file.pair).flat_map(Slot::ids);
        let above = added
            .chain(special.copied())
            .max()
            .map(|id| id as usize + 1);
        let (normalized, raw) = file.added.into_iter().partition(|token| token.normalized);
        WordPiece {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            ids: vocabulary.ids().max(above.unwrap_or(0)),
            tables: Tables {
                vocabulary,
                images,
                ascii,
            },
            raw: Matcher::new(raw),
            normalized: Matcher::new(normalized),
            single: file.single,
            pair: file.pair,
            truncation: file.truncation,
            is_padded: file.is_padded,
        }
    }

    /// Every id is below.
    pub fn vocabulary(&self) -> usize {
        self.ids
    }

    /// The id of what is in no other token.
    pub fn unknown(&self) -> u32 {
        self.tables.vocabulary.unknown()
    }

    /// How many special tokens are put around a text.
    pub fn special_tokens(&self) -> usize {
        specials(&self.single)
    }

    /// How many special tokens are put around two texts.
    pub fn special_tokens_of_pair(&self) -> usize {
        specials(&self.pair)
    }

    /// The maximum length that the file asks for. It is not applied.
    pub fn truncation(&self) -> Option<usize> {
        self.truncation
    }

    /// Whether the file asks for padding. It is not applied.
    pub fn is_padded(&self) -> bool {
        self.is_padded
    }

    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        self.tables.vocabulary.resident_bytes() + self.tables.images.resident_bytes()
    }

    /// Appends the sequence that a model sees: special tokens around at most
    /// `max − special_tokens()` of the text. Reads no more of the text than it needs. Cost: linear,
    /// about 20 ns a token.
    pub fn encode_into(
        &self,
        scratch: &mut Scratch,
        text: &str,
        max: usize,
        ids: &mut Vec<u32>,
    ) -> Encoded {
        let before = ids.len();
        let room = max.saturating_sub(self.special_tokens());
        let mut is_cut = false;
        for slot in &self.single {
            match slot {
                Slot::Special(special, _) => ids.extend_from_slice(special),
                _ => is_cut |= self.append(scratch, text, room, ids),
            }
        }
        Encoded {
            tokens: ids.len() - before,
            is_cut,
        }
    }

    /// Appends at most `max` ids of a text, without special tokens. Cost: as [`WordPiece::encode_into`].
    pub fn encode_bare_into(
        &self,
        scratch: &mut Scratch,
        text: &str,
        max: usize,
        ids: &mut Vec<u32>,
    ) -> Encoded {
        let before = ids.len();
        let is_cut = self.append(scratch, text, max, ids);
        Encoded {
            tokens: ids.len() - before,
            is_cut,
        }
    }

    /// Appends the sequence of two texts (`[CLS] first [SEP] second [SEP]`), and to `kinds` the kind of
    /// segment of each token (0 and 1). What is too long is cut from the longer text first, as the
    /// strategy `longest_first` does. Cost: linear in what fits.
    pub fn encode_pair_into(
        &self,
        scratch: &mut Scratch,
        first: &str,
        second: &str,
        max: usize,
        ids: &mut Vec<u32>,
        kinds: &mut Vec<u32>,
    ) -> Encoded {
        let (before, kinds_before) = (ids.len(), kinds.len());
        let room = max.saturating_sub(self.special_tokens_of_pair());
        // Reading ends with the word that reaches `max`, special tokens or not: so `tokenizers` does
        // it, and which of two long texts gets an odd token depends on where that is.
        let mut read = |text: &str| {
            let mut sink = Ids::new(Vec::new(), text, max).until_a_word();
            self.read(scratch, text, &mut sink);
            sink.into_list(usize::MAX)
        };
        let (a, b) = (read(first), read(second));
        // Without special tokens, where reading ended says nothing of what comes behind.
        let is_open = a.len().max(b.len()) >= max;
        let is_cut = a.len() + b.len() > room
            || (is_open && self.count(scratch, first) + self.count(scratch, second) > room);
        let keep = longest_first(a.len(), b.len(), room);
        for slot in &self.pair {
            let kind = match slot {
                Slot::Special(special, kind) => {
                    ids.extend_from_slice(special);
                    kind
                }
                Slot::First(kind) => {
                    ids.extend_from_slice(&a[..keep.0]);
                    kind
                }
                Slot::Second(kind) => {
                    ids.extend_from_slice(&b[..keep.1]);
                    kind
                }
            };
            kinds.resize(kinds_before + ids.len() - before, *kind);
        }
        Encoded {
            tokens: ids.len() - before,
            is_cut,
        }
    }

    /// How many tokens a text has, uncut, without special tokens.
    pub fn count(&self, scratch: &mut Scratch, text: &str) -> usize {
        let mut sink = Count::default();
        self.read(scratch, text, &mut sink);
        sink.0
    }

    /// Appends where each token lies in the text, uncut, without special tokens: its first byte, and
    /// the byte just past its last one. Neither ever steps back. Cost: linear, some 10 ns a token more
    /// than ids.
    pub fn spans(
        &self,
        scratch: &mut Scratch,
        text: &str,
        starts: &mut Vec<u32>,
        ends: &mut Vec<u32>,
    ) {
        let mut sink = Spans {
            vocabulary: &self.tables.vocabulary,
            starts,
            ends,
            last: (0, 0),
        };
        self.read(scratch, text, &mut sink);
    }

    /// Appends at most `room` ids of a text; whether it has more.
    fn append(&self, scratch: &mut Scratch, text: &str, room: usize, ids: &mut Vec<u32>) -> bool {
        let max = ids.len().saturating_add(room);
        // One more than there is room for tells that it is cut.
        let mut sink = Ids::new(std::mem::take(ids), text, max.saturating_add(1));
        self.read(scratch, text, &mut sink);
        let is_cut = sink.count() > max;
        *ids = sink.into_list(max);
        is_cut
    }

    fn read<S: Sink>(&self, scratch: &mut Scratch, text: &str, sink: &mut S) {
        if scratch.serial != self.serial {
            scratch.cache = None;
            scratch.serial = self.serial;
        }
        let mut reader = Reader {
            tables: &self.tables,
            cache: scratch.cache.get_or_insert_with(Cache::new),
            buffers: &mut scratch.buffers,
            sink,
        };
        self.raw.split(text, self.normalized.is_empty(), |part| {
            match part {
                Part::Token(id, from, to) => reader.sink.added(id, from, to),
                Part::Text(from, to) if self.normalized.is_empty() => {
                    reader.read(&text[..to], from);
                }
                Part::Text(from, to) => self.read_normalized(&mut reader, &text[..to], from),
            }
            !reader.sink.is_full()
        });
        scratch.buffers.settle();
    }

    /// Reads a stretch in which added tokens are looked for after it was normalized, whole.
    #[cold]
    fn read_normalized<S: Sink>(&self, reader: &mut Reader<'_, S>, text: &str, from: usize) {
        let place = |(at, c): (usize, char)| {
            let from = from + at;
            (c, (from as u32, (from + c.len_utf8()) as u32))
        };
        let raw: Vec<(char, Place)> = text[from..].char_indices().map(place).collect();
        let mut normal = Vec::new();
        self.tables.images.rules().normalize(&raw, &mut normal);
        let string: String = normal.iter().map(|&(c, _)| c).collect();
        let places: Vec<Place> = normal
            .iter()
            .flat_map(|&(c, place)| std::iter::repeat_n(place, c.len_utf8()))
            .collect();
        self.normalized.split(&string, false, |part| {
            match part {
                Part::Token(id, from, to) => {
                    let (from, to) = (places[from].0, places[to - 1].1);
                    reader.sink.added(id, from as usize, to as usize);
                }
                Part::Text(from, to) => {
                    for (at, c) in string[from..to].char_indices() {
                        reader.take(c, Kind::of(c), places[from + at]);
                    }
                    reader.flush();
                }
            }
            !reader.sink.is_full()
        });
    }
}

fn specials(slots: &[Slot]) -> usize {
    let count = |slot: &Slot| match slot {
        Slot::Special(ids, _) => ids.len(),
        _ => 0,
    };
    slots.iter().map(count).sum()
}

/// How much of two sequences is kept when `room` is too small: the longer one is cut to what the
/// shorter leaves, but not below half.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let shorter = first.min(second);
    let small = shorter.min(room / 2);
    let large = room - small;
    if first > second {
        (large, small)
    } else {
        (small, large)
    }
}
