//! The fast path: words of ASCII letters and digits.
//!
//! The idea: eight bytes are looked at as one number. Where the word ends, and its lower case, come
//! out of a few additions; the number itself, cut at the end, is the word's key in the cache.
//!
//! ```text
//! "The cat " ─▶ letters?  80 80 80 00 80 80 80 00 ─▶ 3 bytes
//!            ─▶ | 20 …    "the cat "              ─▶ cut: "the" = key ─▶ cache ─▶ pieces
//! ```
//!
//! A word that is followed by any other character that may belong to it (not ASCII, or a control
//! character) is read again from its beginning by [`super::words`].
//!
//! Invariants: bytes are looked at, never characters: the loop stands on a character's boundary
//! whenever it leaves this file.

use super::cache::Key;
use super::unicode::{Kind, Page};
use super::vocab::Vocabulary;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x80 * ONES;

/// What a byte is to the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// An ASCII letter or digit.
    Letter,
    /// Ends a word, is none.
    Space,
    /// Ends a word, is one.
    Punctuation,
    /// For the full path.
    Other,
}

/// Tables of the fast path.
pub(super) struct Ascii {
    pub(super) classes: [Class; 256],
    /// The token of each punctuation character.
    pub(super) singles: [u32; 128],
    /// 0x20 in each byte where upper case becomes lower case.
    fold: u64,
}

impl Ascii {
    /// From the images of the first 128 characters.
    pub(super) fn new(page: &Page, lowercase: bool, vocabulary: &Vocabulary) -> Ascii {
        let mut classes = [Class::Other; 256];
        let mut singles = [vocabulary.unknown(); 128];
        let mut pieces = Vec::new();
        for byte in 0..128_u8 {
            let mut image = Vec::new();
            let c = char::from(byte);
            page.each(page.image(c), |c, kind| image.push((c, kind)));
            classes[usize::from(byte)] = match image[..] {
                [(_, Kind::Space)] => Class::Space,
                [(_, Kind::Punctuation)] => {
                    vocabulary.pieces(&[byte], &mut pieces);
                    singles[usize::from(byte)] = pieces[0];
                    Class::Punctuation
                }
                [(_, Kind::Letter)] if byte.is_ascii_alphanumeric() => Class::Letter,
                _ => Class::Other,
            };
        }
        Ascii {
            classes,
            singles,
            fold: if lowercase { 0x20 * ONES } else { 0 },
        }
    }

    /// The class of the byte at a place; a space behind the end.
    #[inline]
    pub(super) fn class(&self, bytes: &[u8], at: usize) -> Class {
        bytes
            .get(at)
            .map_or(Class::Space, |&byte| self.classes[usize::from(byte)])
    }

    /// One letter in its case.
    #[inline]
    pub(super) fn folded(&self, byte: u8) -> u8 {
        if self.fold == 0 {
            byte
        } else {
            byte.to_ascii_lowercase()
        }
    }

    /// The run of letters and digits from `at` on: its length and, if it has at most 16 bytes, its
    /// key.
    #[inline]
    pub(super) fn word(&self, bytes: &[u8], at: usize) -> (usize, Option<Key>) {
        let (low, length) = self.half(bytes, at);
        if length < 8 {
            return (length, Some([low, 0]));
        }
        let (high, length) = self.half(bytes, at + 8);
        if length < 8 {
            return (8 + length, Some([low, high]));
        }
        let mut end = at + 16;
        loop {
            let (_, more) = self.half(bytes, end);
            end += more;
            if more < 8 {
                let key = (end == at + 16).then_some([low, high]);
                return (end - at, key);
            }
        }
    }

    /// The letters and digits at the beginning of eight bytes: in their case, zeros behind, and how
    /// many. Behind the end of the text there are none.
    #[inline]
    fn half(&self, bytes: &[u8], at: usize) -> (u64, usize) {
        let x = eight(bytes, at);
        let low = x & !HIGHS;
        // The high bit of each byte says "at least" and "above"; no sum reaches the next byte.
        let small = low | (0x20 * ONES);
        let letters = (small + (0x80 - 0x61) * ONES) & !(small + (0x7f - 0x7a) * ONES);
        let digits = (low + (0x80 - 0x30) * ONES) & !(low + (0x7f - 0x39) * ONES);
        let others = !((letters | digits) & !x) & HIGHS;
        let folded = x | ((letters & HIGHS) >> 2 & self.fold);
        if others == 0 {
            return (folded, 8);
        }
        // `others` has its lowest bit at bit 7 of the first other byte.
        let before = (others & others.wrapping_neg()) - 1;
        (folded & (before >> 7), others.trailing_zeros() as usize / 8)
    }
}

/// Eight bytes of a text, zeros behind its end.
#[inline]
fn eight(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        Some(&chunk) => u64::from_le_bytes(chunk),
        None => tail(bytes, at),
    }
}

#[cold]
fn tail(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    let bytes = rest.iter().take(8).zip((0..).step_by(8));
    bytes.fold(0, |number, (&byte, shift)| {
        number | u64::from(byte) << shift
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::cache;

    fn ascii(fold: bool) -> Ascii {
        Ascii {
            classes: [Class::Other; 256],
            singles: [0; 128],
            fold: if fold { 0x20 * ONES } else { 0 },
        }
    }

    #[test]
    fn every_byte_in_every_place_is_told() {
        for fold in [false, true] {
            let ascii = ascii(fold);
            for byte in 0..=255_u8 {
                for at in 0..20 {
                    for length in [at + 1, at + 3, 40] {
                        let mut text = vec![b'Q'; length];
                        text[at] = byte;
                        let word = if byte.is_ascii_alphanumeric() {
                            length
                        } else {
                            at
                        };
                        let mut expected = text[..word].to_vec();
                        if fold {
                            expected.make_ascii_lowercase();
                        }
                        let (found, key) = ascii.word(&text, 0);
                        assert_eq!(found, word, "{byte} at {at} of {length}");
                        if word > 0 {
                            assert_eq!(key, cache::key(&expected), "{byte} at {at} of {length}");
                        }
                    }
                }
            }
        }
    }
}
