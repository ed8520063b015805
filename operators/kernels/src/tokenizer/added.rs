//! Added tokens: `[SEP]` in a text is one token, whatever stands around it.
//!
//! The idea: they are found in the text before it is normalized, those with `normalized` after it.
//! At each byte that one of them begins with, the longest that lies there is taken (leftmost, then
//! longest), and the next is looked for behind it.
//!
//! Invariants: what is given to the caller covers the text in order, except white space that
//! `lstrip` and `rstrip` take away. Limits: as in the `tokenizers` crate, a match that is refused
//! because it is not a `single_word` hides others that overlap it.

use super::vocab::Trie;

/// A text is searched so far ahead of what is read of it.
const WINDOW_BYTES: usize = 16 << 10;

/// An entry of `added_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    /// Its spelling in a text (normalized where it is `normalized`).
    pub content: String,
    pub id: u32,
    /// Only where no letter or digit stands beside it.
    pub single_word: bool,
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space after it belongs to it.
    pub rstrip: bool,
    /// Looked for in normalized text.
    pub normalized: bool,
}

/// A part of a text, by bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Text(usize, usize),
    Token(u32, usize, usize),
}

/// Finds added tokens.
pub(super) struct Matcher {
    tokens: Vec<AddedToken>,
    /// Spellings, with places in `tokens`.
    trie: Trie,
    /// Whether a spelling begins with the byte.
    first: [bool; 256],
    /// The ASCII character that all of them begin with.
    only: Option<char>,
}

impl Matcher {
    pub(super) fn new(tokens: Vec<AddedToken>) -> Matcher {
        let mut first = [false; 256];
        for byte in tokens
            .iter()
            .filter_map(|token| token.content.bytes().next())
        {
            first[usize::from(byte)] = true;
        }
        let mut firsts = (0..=255_u8).filter(|&byte| first[usize::from(byte)]);
        let only = match (firsts.next(), firsts.next()) {
            (Some(one), None) if one.is_ascii() => Some(char::from(one)),
            _ => None,
        };
        let spellings = tokens.iter().map(|token| token.content.as_bytes());
        Matcher {
            trie: Trie::new(spellings.zip(0..)),
            tokens,
            first,
            only,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The first match that begins between two places: the token, its first byte and the byte behind
    /// it.
    fn find(&self, text: &str, from: usize, to: usize) -> Option<(&AddedToken, usize, usize)> {
        let bytes = text.as_bytes();
        let mut at = from;
        loop {
            at += match self.only {
                Some(c) => text[at..to].find(c)?,
                None => bytes[at..to]
                    .iter()
                    .position(|&byte| self.first[usize::from(byte)])?,
            };
            if let Some((length, token)) = self.trie.longest(&bytes[at..]) {
                return Some((&self.tokens[token as usize], at, at + length));
            }
            at += 1;
        }
    }

    /// Calls `each` for the parts of a text until it says no. If text `may_be_cut`, its parts are
    /// given as soon as they are known, each ending before a space.
    pub(super) fn split(&self, text: &str, may_be_cut: bool, mut each: impl FnMut(Part) -> bool) {
        let mut done = 0;
        let mut search = 0;
        while !self.is_empty() && search < text.len() {
            let window = if may_be_cut { WINDOW_BYTES } else { text.len() };
            let ahead = text.floor_char_boundary(search.saturating_add(window));
            let Some((token, mut from, mut to)) = self.find(text, search, ahead) else {
                if ahead < text.len()
                    && let Some(cut) = cut(text, search.max(done), ahead)
                {
                    if !each(Part::Text(done, cut)) {
                        return;
                    }
                    done = cut;
                }
                search = ahead;
                continue;
            };
            search = to;
            if token.single_word && !stands_alone(text, from, to) {
                continue;
            }
            if token.lstrip {
                from = text[..from].trim_end().len().max(done);
            }
            if token.rstrip {
                to += text[to..].len() - text[to..].trim_start().len();
            }
            if done < from && !each(Part::Text(done, from)) {
                return;
            }
            if !each(Part::Token(token.id, from, to)) {
                return;
            }
            done = to;
        }
        if done < text.len() {
            each(Part::Text(done, text.len()));
        }
    }
}

/// A place where a text may be cut: at white space in ASCII, the first of a run of white space.
fn cut(text: &str, from: usize, to: usize) -> Option<usize> {
    let pairs = text.as_bytes().get(from..to)?.windows(2);
    let is_end = |pair: &[u8]| pair[0].is_ascii_graphic() && matches!(pair[1], b' ' | b'\n');
    pairs.rev().position(is_end).map(|back| to - 1 - back)
}

/// Whether no letter, digit, mark or underscore stands beside a range.
fn stands_alone(text: &str, from: usize, to: usize) -> bool {
    let is_word = |c: char| regex_syntax::is_word_character(c);
    !text[..from].chars().next_back().is_some_and(is_word)
        && !text[to..].chars().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(tokens: &[AddedToken], text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        Matcher::new(tokens.to_vec()).split(text, true, |part| {
            parts.push(part);
            true
        });
        parts
    }

    fn token(content: &str, id: u32) -> AddedToken {
        AddedToken {
            content: content.to_owned(),
            id,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
        }
    }

    #[test]
    fn the_longest_at_the_first_place_is_taken() {
        let tokens = [token("[A]", 0), token("[A][B]", 1), token("[B]", 2)];
        assert_eq!(
            parts(&tokens, "x[[A][B][B]y"),
            [
                Part::Text(0, 2),
                Part::Token(1, 2, 8),
                Part::Token(2, 8, 11),
                Part::Text(11, 12)
            ]
        );
        assert_eq!(parts(&tokens, ""), []);
        assert_eq!(parts(&[], "ab"), [Part::Text(0, 2)]);
    }

    #[test]
    fn a_long_text_comes_in_parts_that_end_before_white_space() {
        let text = format!("{}[A]", "some words \t\n ".repeat(5000));
        let parts = parts(&[token("[A]", 1)], &text);
        assert!(parts.len() > 4);
        let mut at = 0;
        for &part in &parts[..parts.len() - 1] {
            let Part::Text(from, to) = part else {
                panic!("{part:?}");
            };
            assert_eq!(from, at);
            at = to;
            assert!(text[from..to].len() <= 2 * WINDOW_BYTES);
            assert!(
                text[..to].ends_with("some")
                    || text[..to].ends_with("words")
                    || to + 3 == text.len()
            );
        }
        assert_eq!(parts.last(), Some(&Part::Token(1, at, at + 3)));
    }

    #[test]
    fn white_space_and_words_beside_a_token() {
        let mut mask = token("é", 7);
        (mask.lstrip, mask.rstrip) = (true, true);
        assert_eq!(
            parts(std::slice::from_ref(&mask), "a \u{2003}é\t b"),
            [Part::Text(0, 1), Part::Token(7, 1, 9), Part::Text(9, 10)]
        );
        let mut word = token("day", 3);
        word.single_word = true;
        assert_eq!(parts(&[word.clone()], "today"), [Part::Text(0, 5)]);
        assert_eq!(
            parts(&[word], "a-day!"),
            [Part::Text(0, 2), Part::Token(3, 2, 5), Part::Text(5, 6)]
        );
    }
}
