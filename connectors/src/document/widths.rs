//! How wide the characters of a PDF font are: where a word ends is told by gaps only.
//!
//! Source: ISO 32000-1, 9.2.4 and 9.7.4.3. Limits: fonts without widths count as half an em wide;
//! codes of composite fonts as two bytes; vertical writing is not known.

use std::collections::HashMap;

use lopdf::{Dictionary, Document, Object};

/// Width of a character that nothing is known of, thousandths of an em.
const UNKNOWN: f64 = 500.0;
/// Widths that are taken from one font: ranges may repeat.
const WIDTHS_MAX: usize = 65_536;

/// Widths by character code, thousandths of an em.
pub(super) struct Widths {
    code_bytes: usize,
    of: HashMap<u16, f64>,
    other: f64,
}

impl Widths {
    /// The widths of a font.
    pub(super) fn of(document: &Document, font: &Dictionary) -> Widths {
        let descendant = list(document, font, b"DescendantFonts").and_then(|fonts| fonts.first());
        let descendant = descendant.and_then(|font| resolved(document, font)?.as_dict().ok());
        match descendant {
            Some(descendant) => composite(document, descendant),
            None => simple(document, font),
        }
    }

    /// How far these codes lead, thousandths of an em; how many they are, and how many are blanks.
    pub(super) fn advance(&self, codes: &[u8]) -> (f64, usize, usize) {
        let (mut width, mut count, mut blanks) = (0.0, 0, 0);
        for code in codes.chunks(self.code_bytes) {
            let number = code
                .iter()
                .fold(0_u16, |number, byte| number << 8 | u16::from(*byte));
            width += self.of.get(&number).copied().unwrap_or(self.other);
            count += 1;
            blanks += usize::from(code == b" ");
        }
        (width, count, blanks)
    }
}

fn simple(document: &Document, font: &Dictionary) -> Widths {
    let first = font
        .get(b"FirstChar")
        .ok()
        .and_then(|first| number(document, first));
    let first = first.unwrap_or(0.0) as u16;
    let widths = list(document, font, b"Widths").unwrap_or_default();
    let widths = widths.iter().take(256).map(|width| number(document, width));
    let of: HashMap<u16, f64> = widths
        .zip(first..=u16::MAX)
        .filter_map(|(width, code)| Some((code, width?)))
        .collect();
    Widths {
        code_bytes: 1,
        of,
        other: UNKNOWN,
    }
}

/// `W` is a list of `first [w1 w2 …]` and `first last w`.
fn composite(document: &Document, font: &Dictionary) -> Widths {
    let (mut of, mut left) = (HashMap::new(), WIDTHS_MAX);
    let list = list(document, font, b"W").unwrap_or_default();
    let mut at = 0;
    while let Some(first) = list.get(at).and_then(|first| number(document, first)) {
        if left == 0 {
            break;
        }
        let first = first as u16;
        let second = list
            .get(at + 1)
            .and_then(|second| resolved(document, second));
        match second {
            Some(Object::Array(widths)) => {
                for (width, code) in widths.iter().zip(first..=u16::MAX).take(left) {
                    left -= 1;
                    of.insert(code, number(document, width).unwrap_or(UNKNOWN));
                }
                at += 2;
            }
            Some(last) => {
                let last = number(document, last).unwrap_or(0.0) as u16;
                let width = list.get(at + 2).and_then(|width| number(document, width));
                for code in (first..=last).take(left) {
                    left -= 1;
                    of.insert(code, width.unwrap_or(UNKNOWN));
                }
                at += 3;
            }
            None => break,
        }
    }
    let other = font
        .get(b"DW")
        .ok()
        .and_then(|width| number(document, width));
    Widths {
        code_bytes: 2,
        of,
        other: other.unwrap_or(1_000.0),
    }
}

/// The object behind a reference.
pub(super) fn resolved<'a>(document: &'a Document, object: &'a Object) -> Option<&'a Object> {
    document.dereference(object).ok().map(|(_, object)| object)
}

fn list<'a>(document: &'a Document, of: &'a Dictionary, key: &[u8]) -> Option<&'a [Object]> {
    let list = resolved(document, of.get(key).ok()?)?.as_array().ok()?;
    Some(list)
}

/// A number, whole or real.
pub(super) fn number(document: &Document, object: &Object) -> Option<f64> {
    let number = resolved(document, object)?.as_float().ok()?;
    number.is_finite().then(|| f64::from(number))
}
