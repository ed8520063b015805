//! One tokenizer, read by us and by the `tokenizers` crate.

use kernels::tokenizer::{Scratch, WordPiece};
use tokenizers::{Tokenizer, TruncationParams};

/// The same file, read twice.
pub struct Both {
    pub name: String,
    pub ours: WordPiece,
    pub scratch: Scratch,
    pub theirs: Tokenizer,
}

impl Both {
    /// Reads a `tokenizer.json`.
    ///
    /// # Panics
    /// When one of the two cannot read it.
    pub fn new(name: &str, json: &[u8]) -> Self {
        let ours = WordPiece::parse(json);
        Self::of(
            name,
            ours.expect(name),
            Tokenizer::from_bytes(json).expect(name),
        )
    }

    pub fn of(name: &str, ours: WordPiece, mut theirs: Tokenizer) -> Self {
        theirs.with_padding(None);
        theirs.with_truncation(None).expect("none is allowed");
        let special = theirs.encode_fast("", true).expect("encodes").len();
        assert_eq!(ours.special_tokens(), special, "{name}");
        let most = theirs.get_vocab(true).into_values().max();
        assert_eq!(
            ours.vocabulary(),
            most.map_or(0, |id| id as usize + 1),
            "{name}"
        );
        Both {
            name: name.to_owned(),
            ours,
            scratch: Scratch::default(),
            theirs,
        }
    }

    /// What differs for a text, if anything does; the number of tokens otherwise.
    fn difference(&mut self, text: &str) -> Result<usize, String> {
        let theirs = self.theirs.encode_fast(text, true).expect("encodes");
        let mut ids = Vec::new();
        let encoded = self
            .ours
            .encode_into(&mut self.scratch, text, usize::MAX, &mut ids);
        if ids != theirs.get_ids() {
            let theirs = theirs.get_ids();
            return Err(format!("ids {ids:?}\ntheirs {theirs:?}"));
        }
        let count = self.ours.count(&mut self.scratch, text);
        let plain = ids.len() - self.ours.special_tokens();
        if count != plain || encoded.tokens != ids.len() || encoded.is_cut {
            return Err(format!("count {count} of {plain} tokens, {encoded:?}"));
        }
        let theirs = self.theirs.encode(text, false).expect("encodes");
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        self.ours
            .spans(&mut self.scratch, text, &mut starts, &mut ends);
        let ours: Vec<(u32, u32)> = starts.into_iter().zip(ends).collect();
        let mut last = (0, 0);
        let theirs: Vec<(u32, u32)> = theirs
            .get_offsets()
            .iter()
            .map(|&(start, end)| {
                last = (last.0.max(start as u32), last.1.max(end as u32));
                last
            })
            .collect();
        if ours != theirs {
            return Err(format!("spans {ours:?}\ntheirs {theirs:?}"));
        }
        Ok(count)
    }

    /// Ids, spans and count of a text. Returns how many tokens it has.
    ///
    /// # Panics
    /// When they differ, with the shortest text found for which they do.
    pub fn check(&mut self, text: &str) -> usize {
        match self.difference(text) {
            Ok(tokens) => tokens,
            Err(_) => {
                let short = self.shortened(text);
                let difference = self.difference(&short).expect_err("it did differ");
                panic!("{}: {short:?}\n{difference}", self.name);
            }
        }
    }

    /// Takes parts away while it still differs.
    fn shortened(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let mut size = chars.len();
        while size > 0 {
            let mut at = 0;
            while at < chars.len() {
                let to = (at + size).min(chars.len());
                let less: String = chars[..at].iter().chain(&chars[to..]).collect();
                if self.difference(&less).is_err() {
                    chars = less.chars().collect();
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        chars.into_iter().collect()
    }

    /// Ids cut at a maximum: special tokens around the first ones.
    pub fn check_cut(&mut self, text: &str, max: usize) {
        let special = self.ours.special_tokens();
        let plain = self.theirs.encode_fast(text, false).expect("encodes");
        let room = max.saturating_sub(special);
        let kept = plain.len().min(room);
        let around = self.theirs.encode_fast("", true).expect("encodes");
        let (start, end) = around.get_ids().split_at(special.div_ceil(2));
        let expected = [start, &plain.get_ids()[..kept], end].concat();
        // What lies in the list before stays.
        let mut ids = vec![7];
        let encoded = self
            .ours
            .encode_into(&mut self.scratch, text, max, &mut ids);
        assert_eq!(ids[1..], expected, "{}: {text:?} cut at {max}", self.name);
        assert_eq!(encoded.tokens, expected.len());
        assert_eq!(
            encoded.is_cut,
            plain.len() > room,
            "{}: {text:?} at {max}",
            self.name
        );
    }

    /// A pair cut at a maximum.
    pub fn check_pair(&mut self, first: &str, second: &str, max: usize) {
        let params = TruncationParams {
            max_length: max,
            ..TruncationParams::default()
        };
        let whole = self.theirs.encode_fast((first, second), true);
        let whole = whole.expect("encodes").len();
        self.theirs
            .with_truncation(Some(params))
            .expect("room for special tokens");
        let theirs = self.theirs.encode((first, second), true).expect("encodes");
        self.theirs.with_truncation(None).expect("none is allowed");
        let (mut ids, mut kinds) = (vec![7], vec![9]);
        let encoded =
            self.ours
                .encode_pair_into(&mut self.scratch, first, second, max, &mut ids, &mut kinds);
        let what = format!("{}: {first:?}, {second:?} at {max}", self.name);
        assert_eq!(&ids[1..], theirs.get_ids(), "{what}");
        assert_eq!(&kinds[1..], theirs.get_type_ids(), "{what}");
        assert_eq!(encoded.tokens, theirs.len(), "{what}");
        assert_eq!(encoded.is_cut, whole > theirs.len(), "{what}");
    }
}
