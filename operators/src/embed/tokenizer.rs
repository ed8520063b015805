//! Text to token ids, and to the byte spans that chunkers cut by.
//!
//! The `tokenizers` crate reads the model's own `tokenizer.json`; its padding and truncation are
//! switched off and done here. A text is tokenised in blocks cut at white space, where no rule of
//! a BERT pre-tokenizer reaches across: memory stays bounded on large texts, and ids are cut at the
//! model's maximum without tokenising the rest.
//!
//! Invariants: ids are those of the whole text in one go, `[CLS]` + at most `max − 2` + `[SEP]`;
//! spans are bytes of the original text, starts and ends non-decreasing.
//! Limits: a run of more than 1 MiB without white space is cut anyway, after punctuation or an
//! ideograph where there is one; a word in it could become two unknown tokens instead of one.

use engine::contract::TokenSpans;
use tokenizers::Tokenizer;

/// A block ends at the first white space from here on.
const BLOCK_BYTES: usize = 16 << 10;
/// A block without white space is cut here.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// A model's tokenizer with its special tokens.
pub struct TextTokenizer {
    inner: Tokenizer,
    /// Special tokens before a text.
    prefix: Vec<u32>,
    /// Special tokens after a text.
    suffix: Vec<u32>,
    max_tokens: usize,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`. `max_tokens` counts special tokens. The error says what is wrong
    /// with the file.
    pub fn parse(json: &[u8], max_tokens: usize) -> Result<Self, String> {
        let mut inner = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        let probe = |special| -> Result<Vec<u32>, String> {
            let encoding = inner.encode_fast("a", special).map_err(|e| e.to_string())?;
            Ok(encoding.get_ids().to_vec())
        };
        let (plain, full) = (probe(false)?, probe(true)?);
        let at = full
            .windows(plain.len().max(1))
            .position(|window| window == plain)
            .ok_or("special tokens do not surround the text's own")?;
        let (prefix, suffix) = (full[..at].to_vec(), full[at + plain.len()..].to_vec());
        if prefix.len() + suffix.len() >= max_tokens {
            return Err(format!(
                "a maximum of {max_tokens} tokens leaves no room for text"
            ));
        }
        Ok(TextTokenizer {
            inner,
            prefix,
            suffix,
            max_tokens,
        })
    }

    /// The longest sequence, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How many special tokens surround a text.
    pub fn special_tokens(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// Every id is below.
    pub fn vocabulary(&self) -> usize {
        self.inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1)
    }

    /// The sequence the model sees: cut at the maximum, special tokens around.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let room = self.max_tokens - self.special_tokens();
        let mut ids = self.prefix.clone();
        // Short texts are the rule: look at a little first, at the rest only when it is needed.
        for block in blocks(text) {
            ids.extend_from_slice(self.encode(block, false).get_ids());
            if ids.len() - self.prefix.len() >= room {
                ids.truncate(self.prefix.len() + room);
                break;
            }
        }
        ids.extend_from_slice(&self.suffix);
        ids
    }

    /// Where each token lies in the text, uncut, without special tokens. Cost: linear, about
    /// 4 MB/s a core.
    pub fn spans(&self, text: &str) -> TokenSpans {
        let mut spans = TokenSpans::default();
        let mut base = 0;
        for block in blocks(text) {
            let encoding = self.encode(block, true);
            let mut last = (base, base);
            for &(start, end) in encoding.get_offsets() {
                // Decomposed characters give several tokens with one origin; never step back.
                last = ((base + start).max(last.0), (base + end).max(last.1));
                spans.starts.push(last.0 as u32);
                spans.ends.push(last.1 as u32);
            }
            base += block.len();
        }
        spans
    }

    fn encode(&self, block: &str, offsets: bool) -> tokenizers::Encoding {
        let encoded = if offsets {
            self.inner.encode(block, false)
        } else {
            self.inner.encode_fast(block, false)
        };
        // WordPiece falls back to [UNK] and normalisers are total: only a broken tokenizer.json
        // fails, and that was tried at load.
        encoded.unwrap_or_default()
    }
}

/// Cuts a text into blocks, each ending after white space, the last one at the end.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (block, after) = rest.split_at(block_end(rest));
        rest = after;
        Some(block)
    })
}

/// Where the first block of a text ends; never 0 for a text that is not empty.
fn block_end(text: &str) -> usize {
    if text.len() <= BLOCK_BYTES {
        return text.len();
    }
    let limit = text.floor_char_boundary(BLOCK_BYTES_MAX);
    let from = text.floor_char_boundary(BLOCK_BYTES);
    let after = |found: Option<(usize, char)>| found.map(|(at, c)| from + at + c.len_utf8());
    let window = &text[from..limit];
    if let Some(end) = after(window.char_indices().find(|(_, c)| c.is_whitespace())) {
        return end;
    }
    if limit == text.len() {
        return limit;
    }
    // Brackets stay: `[SEP]` in a text is one token.
    let is_stop = |c: char| matches!(c, '.' | ',' | ';' | ':' | '!' | '?') || is_ideograph(c);
    after(window.char_indices().rfind(|&(_, c)| is_stop(c))).unwrap_or(limit)
}

/// Characters that BERT's normaliser surrounds with spaces.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c), 0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0xF900..=0xFAFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_text_and_end_after_white_space() {
        let text = "wörd and more\n".repeat(20_000);
        let all: Vec<&str> = blocks(&text).collect();
        assert_eq!(all.concat(), text);
        assert!(all.len() > 10);
        assert!(all.iter().all(|block| block.ends_with(char::is_whitespace)));
        assert!(all.iter().all(|block| block.len() <= BLOCK_BYTES + 16));
    }

    #[test]
    fn a_text_without_white_space_is_cut_in_bounded_blocks() {
        for unit in ["x", "é", "漢", "a,"] {
            let text = unit.repeat((3 << 20) / unit.len());
            let all: Vec<&str> = blocks(&text).collect();
            assert_eq!(all.concat(), text);
            assert!(all.iter().all(|block| block.len() <= BLOCK_BYTES_MAX));
        }
    }

    #[test]
    fn an_empty_text_has_no_block() {
        assert_eq!(blocks("").count(), 0);
    }
}
