//! BERT's normalizer for any character: what a character becomes, and where it came from.
//!
//! The idea: [`Rules::normalize`] does to a list of characters what the `tokenizers` crate does to a
//! string, step by step, with that crate's own tables. It is the definition. Almost every
//! character becomes the same whatever stands beside it: its *image* is computed once by that
//! definition and kept in a table of pages, filled where texts need them.
//!
//! ```text
//! é ─▶ page 0x00 ─▶ 'e', of a word          漢 ─▶ page 0x6f ─▶ ' ' 漢 ' '
//! ́  ─▶ page 0x03 ─▶ nothing, a mark         한 ─▶ page 0xd5 ─▶ ᄒ ᅡ ᆫ
//! ```
//!
//! The exception: canonical decomposition sorts a run of combining marks. That shows only where the
//! run has a mark that is kept ([`Image::is_kept_mark`]): then the whole run goes through the
//! definition.
//!
//! Invariants: places are byte ranges of the text, starts and ends non-decreasing.
//! Limits: Unicode versions are those of the tables: older than the standard library's.

use std::sync::OnceLock;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;
use unicode_normalization_alignments::char::canonical_combining_class;

/// A byte range of the text.
pub(super) type Place = (u32, u32);

/// The options of `BertNormalizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// Drop control characters, make all white space the same.
    pub clean_text: bool,
    /// Ideographs are words of their own.
    pub handle_chinese_chars: bool,
    /// Decompose, and drop marks.
    pub strip_accents: bool,
    /// Lower case.
    pub lowercase: bool,
}

impl Rules {
    /// Normalizes characters with their places, as a string of their own.
    pub(super) fn normalize(&self, text: &[(char, Place)], out: &mut Vec<(char, Place)>) {
        out.clear();
        out.extend_from_slice(text);
        if self.clean_text {
            out.retain(|&(c, _)| !is_dropped(c));
            out.iter_mut()
                .filter(|(c, _)| c.is_whitespace())
                .for_each(|(c, _)| *c = ' ');
        }
        if self.handle_chinese_chars && out.iter().any(|&(c, _)| is_ideograph(c)) {
            let apart = |&(c, place): &(char, Place)| {
                let space = is_ideograph(c).then_some((' ', place));
                [space, Some((c, place)), space].into_iter().flatten()
            };
            *out = out.iter().flat_map(apart).collect();
        }
        if self.strip_accents {
            *out = decomposed(out);
            out.retain(|&(c, _)| !c.is_mark_nonspacing());
        }
        if self.lowercase {
            let lower = |&(c, place): &(char, Place)| c.to_lowercase().map(move |c| (c, place));
            *out = out.iter().flat_map(lower).collect();
        }
    }
}

/// Canonical decomposition. A character's place is that of the source character that stands where
/// it came to stand, which after sorting need not be the one it came from: as `tokenizers` has it.
fn decomposed(text: &[(char, Place)]) -> Vec<(char, Place)> {
    let mut next = 0;
    let chars = text.iter().map(|&(c, _)| c);
    let place = |(c, change): (char, isize)| {
        if change <= 0 {
            next += 1;
        }
        // The first character of a text is never an added one: at equal classes order is kept.
        (c, text[usize::max(next, 1) - 1].1)
    };
    chars.nfd().map(place).collect()
}

/// What `clean_text` drops: NUL, the replacement character, Cc, Cf and Co but not tab and line ends.
fn is_dropped(c: char) -> bool {
    c == '\0' || c == '\u{fffd}' || (!matches!(c, '\t' | '\n' | '\r') && c.is_other())
}

fn is_ideograph(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F
            | 0x2B920..=0x2CEAF
            | 0xF900..=0xFAFF
            | 0x2F800..=0x2FA1F
    )
}

/// What a normalized character is to the pre-tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ends a word, is none.
    Space,
    /// Ends a word, is one.
    Punctuation,
    /// Belongs to a word.
    Letter,
}

impl Kind {
    pub(super) fn of(c: char) -> Kind {
        if c.is_whitespace() {
            Kind::Space
        } else if c.is_ascii_punctuation() || c.is_punctuation() {
            Kind::Punctuation
        } else {
            Kind::Letter
        }
    }
}

/// What one character becomes, 4 bytes.
#[derive(Clone, Copy)]
pub(super) struct Image(u32);

impl Image {
    const PAYLOAD: u32 = (1 << 21) - 1;
    const ONE: u32 = 1 << 21;
    const SPACE: u32 = 2 << 21;
    const PUNCTUATION: u32 = 3 << 21;
    const MANY: u32 = 4 << 21;
    const SHAPE: u32 = 7 << 21;
    const MARK: u32 = 1 << 29;
    const KEPT_MARK: u32 = 1 << 30;
    const DROPPED: u32 = 1 << 31;

    /// The one letter that it becomes.
    #[inline]
    pub(super) fn letter(self) -> Option<char> {
        // Nothing that depends on its neighbours, either.
        let is_one = self.0 & !Image::PAYLOAD == Image::ONE;
        is_one
            .then(|| char::from_u32(self.0 & Image::PAYLOAD))
            .flatten()
    }

    /// It is sorted among marks: its decomposition begins with one.
    pub(super) fn is_mark(self) -> bool {
        self.0 & Image::MARK != 0
    }

    /// A mark that is not dropped is in it: how the run is sorted shows.
    pub(super) fn is_kept_mark(self) -> bool {
        self.0 & Image::KEPT_MARK != 0
    }

    /// It is gone before marks are sorted.
    pub(super) fn is_dropped(self) -> bool {
        self.0 & Image::DROPPED != 0
    }
}

/// Images of 256 characters.
pub(super) struct Page {
    images: [Image; 256],
    many: Vec<Box<[(char, Kind)]>>,
}

impl Page {
    fn new(rules: &Rules, page: u32) -> Page {
        let mut many = Vec::new();
        let mut out = Vec::new();
        let mut image = |c: char| {
            rules.normalize(&[(c, (0, 0))], &mut out);
            let kinds = out.iter().map(|&(c, _)| (c, Kind::of(c)));
            let shape = match out[..] {
                [] => 0,
                [(c, _)] => match Kind::of(c) {
                    Kind::Letter => Image::ONE | u32::from(c),
                    Kind::Space => Image::SPACE | u32::from(c),
                    Kind::Punctuation => Image::PUNCTUATION | u32::from(c),
                },
                _ => {
                    many.push(kinds.collect());
                    Image::MANY | (many.len() - 1) as u32
                }
            };
            Image(shape | flags(rules, c))
        };
        let images = std::array::from_fn(|low| {
            let c = char::from_u32((page << 8) | low as u32);
            c.map_or(Image(0), &mut image)
        });
        Page { images, many }
    }

    #[inline]
    pub(super) fn image(&self, c: char) -> Image {
        self.images[u32::from(c) as usize & 255]
    }

    /// Calls `take` for each character of an image.
    pub(super) fn each(&self, image: Image, mut take: impl FnMut(char, Kind)) {
        let payload = image.0 & Image::PAYLOAD;
        let kind = match image.0 & Image::SHAPE {
            Image::ONE => Kind::Letter,
            Image::SPACE => Kind::Space,
            Image::PUNCTUATION => Kind::Punctuation,
            Image::MANY => {
                let many = &self.many[payload as usize];
                return many.iter().for_each(|&(c, kind)| take(c, kind));
            }
            _ => return,
        };
        if let Some(c) = char::from_u32(payload) {
            take(c, kind);
        }
    }
}

fn flags(rules: &Rules, c: char) -> u32 {
    if rules.clean_text && is_dropped(c) {
        return Image::DROPPED;
    }
    if !rules.strip_accents {
        return 0;
    }
    let parts: Vec<char> = std::iter::once(c).nfd().map(|(c, _)| c).collect();
    let is_mark = |c: &char| canonical_combining_class(*c) != 0;
    let is_kept = |c: &char| is_mark(c) && !c.is_mark_nonspacing();
    let first = if parts.first().is_some_and(is_mark) {
        Image::MARK
    } else {
        0
    };
    let kept = if parts.iter().any(is_kept) {
        Image::KEPT_MARK
    } else {
        0
    };
    first | kept
}

/// Images of all characters under some rules.
pub(super) struct Images {
    rules: Rules,
    pages: Vec<OnceLock<Box<Page>>>,
}

impl Images {
    pub(super) fn new(rules: Rules) -> Images {
        let pages = (0..=u32::from(char::MAX) >> 8).map(|_| OnceLock::new());
        Images {
            rules,
            pages: pages.collect(),
        }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The page of a character, made when it is first needed (about 0.1 ms).
    #[inline]
    pub(super) fn page(&self, c: char) -> &Page {
        let page = u32::from(c) >> 8;
        self.pages[page as usize].get_or_init(|| Box::new(Page::new(&self.rules, page)))
    }

    /// Bytes held.
    pub(super) fn resident_bytes(&self) -> usize {
        let made = self
            .pages
            .iter()
            .filter(|page| page.get().is_some())
            .count();
        self.pages.capacity() * size_of::<OnceLock<Box<Page>>>() + made * size_of::<Page>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: Rules = Rules {
        clean_text: true,
        handle_chinese_chars: true,
        strip_accents: true,
        lowercase: true,
    };

    fn image(c: char) -> String {
        let images = Images::new(BERT);
        let page = images.page(c);
        let mut out = String::new();
        page.each(page.image(c), |c, _| out.push(c));
        out
    }

    #[test]
    fn images_of_characters() {
        assert_eq!(image('É'), "e");
        assert_eq!(image('漢'), " 漢 ");
        assert_eq!(image('한'), "\u{1112}\u{1161}\u{11ab}");
        assert_eq!(image('\u{301}'), "");
        assert_eq!(image('\u{200d}'), "");
        assert_eq!(image('\u{3000}'), " ");
        assert_eq!(image('\u{37e}'), ";");
        assert_eq!(image('İ'), "i");
        assert_eq!(image('K'), "k");
    }

    #[test]
    fn a_kept_mark_takes_the_place_where_it_is_sorted_to() {
        // U+302E is a mark of class 224 that is not dropped; U+0301 has class 230.
        let text = [('a', (0, 1)), ('\u{301}', (1, 3)), ('\u{302e}', (3, 6))];
        let mut out = Vec::new();
        BERT.normalize(&text, &mut out);
        assert_eq!(out, [('a', (0, 1)), ('\u{302e}', (1, 3))]);
        let images = Images::new(BERT);
        assert!(images.page('\u{302e}').image('\u{302e}').is_kept_mark());
        assert!(!images.page('\u{301}').image('\u{301}').is_kept_mark());
    }
}
