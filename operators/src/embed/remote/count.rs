//! Tokens of a text for a model whose tokenizer is not at hand.
//!
//! A word is cut every [`PIECE_BYTES`] bytes of ASCII letters and every three digits; every other
//! character that is no white space is a token of its own. English prose comes to about the count of
//! a byte-pair vocabulary; hexadecimal text and some scripts have up to twice as many real tokens, so
//! leave room between the longest chunk and the model's maximum, or give a `TOKENIZER`.

use engine::contract::TokenSpans;

/// Letters of one token, at most.
const PIECE_BYTES: usize = 6;
/// Digits of one token, at most.
const DIGITS: usize = 3;

/// Where tokens probably lie. Cost: one pass.
pub(super) fn estimated_spans(text: &str) -> TokenSpans {
    let mut spans = TokenSpans::default();
    let (mut begun, mut room) = (None, 0);
    for (at, c) in text.char_indices() {
        let most = match c {
            'a'..='z' | 'A'..='Z' => PIECE_BYTES,
            '0'..='9' => DIGITS,
            _ => 0,
        };
        let goes_on = most > 0 && begun == Some(most) && room > 0;
        if goes_on {
            room -= 1;
            if let Some(end) = spans.ends.last_mut() {
                *end += 1;
            }
            continue;
        }
        begun = (most > 0).then_some(most);
        room = most.saturating_sub(1);
        if !c.is_whitespace() {
            spans.starts.push(at as u32);
            spans.ends.push((at + c.len_utf8()) as u32);
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<&str> {
        let spans = estimated_spans(text);
        let pairs = spans.starts.iter().zip(&spans.ends);
        pairs
            .map(|(start, end)| &text[*start as usize..*end as usize])
            .collect()
    }

    #[test]
    fn words_digits_and_everything_else() {
        assert_eq!(
            tokens("Embedding models, 20480 v2: naïve 漢字"),
            [
                "Embedd", "ing", "models", ",", "204", "80", "v", "2", ":", "na", "ï", "ve", "漢",
                "字"
            ]
        );
        assert!(tokens(" \n\t").is_empty());
    }
}
