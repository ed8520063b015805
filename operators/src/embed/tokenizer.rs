//! Text to token ids, and to the byte spans that chunkers cut by.
//!
//! The model's own `tokenizer.json`, read by [`kernels::tokenizer`]; its padding and truncation do not
//! count, the model's maximum does. Working memory (words seen before, half a mebibyte) is kept for
//! as many threads as ever tokenised at once.
//!
//! Invariants: ids are those of the whole text in one go, `[CLS]` + at most `max − 2` + `[SEP]`;
//! spans are bytes of the original text, starts and ends non-decreasing.
//! Limits: WordPiece tokenizers of the BERT family; texts below 4 GiB.

use std::sync::{Mutex, PoisonError};

use engine::contract::TokenSpans;
use kernels::tokenizer::{Encoded, Scratch, WordPiece};

/// A model's tokenizer with its special tokens.
pub struct TextTokenizer {
    inner: WordPiece,
    max_tokens: usize,
    /// Nothing is put around texts.
    is_bare: bool,
    /// Working memory not in use.
    scratch: Mutex<Vec<Scratch>>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`. `max_tokens` counts special tokens. The error says what is wrong
    /// with the file.
    pub fn parse(json: &[u8], max_tokens: usize) -> Result<Self, String> {
        Self::with_specials(json, max_tokens, false)
    }

    /// The same for a model that wants no special tokens around its texts.
    pub fn parse_bare(json: &[u8], max_tokens: usize) -> Result<Self, String> {
        Self::with_specials(json, max_tokens, true)
    }

    fn with_specials(json: &[u8], max_tokens: usize, is_bare: bool) -> Result<Self, String> {
        let inner = WordPiece::parse(json).map_err(|e| e.to_string())?;
        let tokenizer = TextTokenizer {
            inner,
            max_tokens,
            is_bare,
            scratch: Mutex::new(Vec::new()),
        };
        if tokenizer.special_tokens() >= max_tokens {
            return Err(format!(
                "a maximum of {max_tokens} tokens leaves no room for text"
            ));
        }
        Ok(tokenizer)
    }

    /// The longest sequence, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How many special tokens surround a text.
    pub fn special_tokens(&self) -> usize {
        if self.is_bare {
            return 0;
        }
        self.inner.special_tokens()
    }

    /// The id of what is in no other token.
    pub fn unknown(&self) -> u32 {
        self.inner.unknown()
    }

    /// Every id is below.
    pub fn vocabulary(&self) -> usize {
        self.inner.vocabulary()
    }

    /// Bytes held for the vocabulary and working memory.
    pub fn resident_bytes(&self) -> usize {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch: usize = scratch.iter().map(Scratch::resident_bytes).sum();
        self.inner.resident_bytes() + scratch
    }

    /// The sequence the model sees: cut at the maximum, special tokens around.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.ids_into(text, &mut ids);
        ids
    }

    /// Appends the sequence the model sees, and says whether the text was cut. The rest of a text
    /// that is cut is not read.
    pub fn ids_into(&self, text: &str, ids: &mut Vec<u32>) -> Encoded {
        self.with_scratch(|scratch| match self.is_bare {
            true => self
                .inner
                .encode_bare_into(scratch, text, self.max_tokens, ids),
            false => self.inner.encode_into(scratch, text, self.max_tokens, ids),
        })
    }

    /// Where each token lies in the text, uncut, without special tokens. Cost: linear, about
    /// 200 MB/s a core.
    pub fn spans(&self, text: &str) -> TokenSpans {
        let mut spans = TokenSpans::default();
        self.with_scratch(|scratch| {
            self.inner
                .spans(scratch, text, &mut spans.starts, &mut spans.ends);
        });
        spans
    }

    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let pool = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = pool().pop().unwrap_or_default();
        let out = work(&mut scratch);
        pool().push(scratch);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(unknown: &str) -> String {
        format!(
            r###"{{"version":"1.0","added_tokens":[],
            "normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,
                "strip_accents":null,"lowercase":true}},
            "pre_tokenizer":{{"type":"BertPreTokenizer"}},
            "post_processor":{{"type":"BertProcessing","cls":["[CLS]",1],"sep":["[SEP]",2]}},
            "model":{{"type":"WordPiece","unk_token":"{unknown}","continuing_subword_prefix":"##",
                "max_input_chars_per_word":100,
                "vocab":{{"[UNK]":0,"[CLS]":1,"[SEP]":2,"na":3,"##ive":4,"word":5}}}}}}"###
        )
    }

    #[test]
    fn ids_are_cut_and_spans_are_not() {
        let tokenizer = TextTokenizer::parse(json("[UNK]").as_bytes(), 5).unwrap();
        assert_eq!(tokenizer.ids("naïve"), [1, 3, 4, 2]);
        let mut ids = vec![9];
        assert!(tokenizer.ids_into("Word naïve word", &mut ids).is_cut);
        assert_eq!(ids, [9, 1, 5, 3, 4, 2]);
        let spans = tokenizer.spans("Word naïve, word");
        assert_eq!(spans.starts, [0, 5, 7, 11, 13]);
        assert_eq!(spans.ends, [4, 7, 11, 12, 17]);
        assert_eq!(tokenizer.vocabulary(), 6);
        assert!(tokenizer.resident_bytes() > 1 << 19);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refused = |json: &str, max| TextTokenizer::parse(json.as_bytes(), max).err();
        assert_eq!(
            refused(&json("[UNK]"), 2).unwrap(),
            "a maximum of 2 tokens leaves no room for text"
        );
        assert_eq!(
            refused(&json("[unk]"), 512).unwrap(),
            "the vocabulary has no '[unk]', which model.unk_token needs"
        );
        let other = json("[UNK]").replace("\"WordPiece\"", "\"Unigram\"");
        assert_eq!(
            refused(&other, 512).unwrap(),
            "model.type is 'Unigram', expected 'WordPiece'"
        );
    }
}
