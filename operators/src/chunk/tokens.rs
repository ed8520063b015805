//! Counting tokens: a text is tokenised once, and every size after that is a subtraction.
//!
//! [`Units`] is the sorted list of places where a token begins. A stretch of more than
//! [`UNIT_BYTES_MAX`] bytes without a token (a giant unknown word, control characters, a page of
//! blanks) counts one unit per [`UNIT_BYTES_MAX`] bytes, so that a bound in units bounds bytes too:
//! no chunk is larger than `max_tokens` × [`UNIT_BYTES_MAX`] bytes.

use std::sync::Arc;

use engine::contract::{Embedder, TokenSpans};

/// Bytes that one unit stands for at most.
pub(crate) const UNIT_BYTES_MAX: usize = 64;

/// Counts the tokens of a text.
pub trait TokenCounter: Send + Sync {
    /// The tokens of a text, special tokens excluded, in text order; linear in the text.
    fn token_spans(&self, text: &str) -> TokenSpans;
    /// How many special tokens are added to every text.
    fn special_tokens(&self) -> usize;
}

/// The tokens of a model, for indexes with a vector leg.
pub struct ModelTokens(pub Arc<dyn Embedder>);

impl TokenCounter for ModelTokens {
    fn token_spans(&self, text: &str) -> TokenSpans {
        self.0.token_spans(text)
    }

    fn special_tokens(&self) -> usize {
        self.0.special_tokens()
    }
}

/// Words, for indexes without a model: maximal runs of letters, numbers and underscore.
pub struct WordTokens;

impl TokenCounter for WordTokens {
    fn token_spans(&self, text: &str) -> TokenSpans {
        let mut spans = TokenSpans::default();
        let mut start = None;
        let ends = text.char_indices().chain([(text.len(), ' ')]);
        for (at, c) in ends {
            match (start, c.is_alphanumeric() || c == '_') {
                (None, true) => start = Some(at as u32),
                (Some(first), false) => {
                    spans.starts.push(first);
                    spans.ends.push(at as u32);
                    start = None;
                }
                _ => {}
            }
        }
        spans
    }

    fn special_tokens(&self) -> usize {
        0
    }
}

/// Where the units of a text begin: sorted byte offsets, each on a character boundary; one offset
/// may stand several times (several tokens of one character).
pub(crate) struct Units {
    starts: Vec<u32>,
}

impl Units {
    /// Tokenises a text. Cost: one tokenisation and one pass.
    pub(crate) fn of(text: &str, tokens: &dyn TokenCounter) -> Units {
        let spans = tokens.token_spans(text);
        let mut starts = Vec::with_capacity(spans.starts.len());
        let mut last = 0usize;
        for start in &spans.starts {
            let start = skip_blanks(text, *start as usize);
            fill(text, &mut starts, last, start);
            // A tokenizer's offsets need not be sorted for characters that it reorders.
            last = last.max(start);
            starts.push(last as u32);
        }
        fill(text, &mut starts, last, text.len());
        Units { starts }
    }

    /// How many units the text has.
    pub(crate) fn len(&self) -> u32 {
        self.starts.len() as u32
    }

    /// How many units begin before a byte offset.
    pub(crate) fn before(&self, at: u32) -> u32 {
        self.starts.partition_point(|start| *start < at) as u32
    }

    /// How many units begin in `[start, end)`.
    pub(crate) fn between(&self, start: u32, end: u32) -> u32 {
        self.before(end) - self.before(start)
    }

    /// The offsets where units begin within `(start, end)`.
    pub(crate) fn inside(&self, start: u32, end: u32) -> &[u32] {
        let from = self.starts.partition_point(|at| *at <= start);
        let to = self.starts.partition_point(|at| *at < end);
        &self.starts[from..to.max(from)]
    }

    /// Where unit `index` begins.
    pub(crate) fn start(&self, index: u32) -> Option<u32> {
        self.starts.get(index as usize).copied()
    }

    /// A place in the middle of a piece that is over its bound; `None` for a single character.
    pub(crate) fn middle(&self, text: &str, start: u32, end: u32) -> Option<u32> {
        let inside = self.inside(start, end);
        if let Some(at) = inside.get(inside.len() / 2) {
            return Some(*at);
        }
        let half = floor_char(text, (start as usize + end as usize) / 2);
        let first = start as usize + text[start as usize..].chars().next()?.len_utf8();
        let at = half.max(first);
        (at < end as usize).then_some(at as u32)
    }

    /// The place `count` units before `at`, moved forward to a word's beginning if one is near.
    pub(crate) fn step_back(&self, text: &str, at: u32, count: u32) -> u32 {
        let index = self.before(at).saturating_sub(count);
        let from = self.start(index).unwrap_or(at).min(at);
        let is_word_start = |unit: u32| {
            let before = &text[..unit as usize];
            before.chars().next_back().is_none_or(char::is_whitespace)
        };
        let word = self
            .inside(from, at)
            .iter()
            .copied()
            .find(|unit| is_word_start(*unit));
        if is_word_start(from) {
            from
        } else {
            word.unwrap_or(from)
        }
    }
}

/// The last character boundary at or before `at`.
pub(crate) fn floor_char(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Some tokenizers count the white space before a word to its token. Looks a bounded way ahead.
fn skip_blanks(text: &str, at: usize) -> usize {
    let at = floor_char(text, at.min(text.len()));
    let near = &text[at..floor_char(text, text.len().min(at + UNIT_BYTES_MAX))];
    at + near.len() - near.trim_start().len()
}

/// Adds units for a long stretch without tokens.
fn fill(text: &str, starts: &mut Vec<u32>, from: usize, to: usize) {
    let mut at = from;
    while to > at + UNIT_BYTES_MAX {
        at = floor_char(text, at + UNIT_BYTES_MAX);
        starts.push(at as u32);
    }
}
