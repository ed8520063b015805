//! Texts to test with.

use std::path::PathBuf;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::oracle::Both;

/// Characters at the edges of what rules tell apart.
const ODD: &str = "\0\u{1}\t\n\u{b}\u{c}\r\u{1c}\u{1f}\u{7f}\u{80}\u{85}\u{a0}\u{ad}\u{2b9}\u{300}\u{301}\u{307}\
    \u{327}\u{340}\u{344}\u{345}\u{34f}\u{37e}\u{387}\u{3a3}\u{3c2}\u{130}\u{131}\u{df}\u{1e9e}\u{149}\u{1c4}\u{fb01}\
    \u{5b0}\u{5bc}\u{64b}\u{651}\u{93c}\u{94d}\u{958}\u{9cb}\u{e38}\u{e33}\u{f71}\u{f72}\u{f73}\u{f75}\u{f81}\u{1112}\
    \u{1161}\u{11a8}\u{1680}\u{180e}\u{1ab0}\u{1fef}\u{1ffd}\u{2000}\u{2003}\u{200b}\u{200c}\u{200d}\u{200f}\u{2028}\
    \u{2029}\u{202e}\u{202f}\u{2060}\u{20d0}\u{20e3}\u{2126}\u{212a}\u{212b}\u{2260}\u{2329}\u{2adc}\u{2e18}\u{3000}\
    \u{302a}\u{302e}\u{302f}\u{3099}\u{309a}\u{30ac}\u{3400}\u{4dbf}\u{4e00}\u{9fff}\u{a000}\u{a66f}\u{ac00}\u{d7a3}\
    \u{d7ff}\u{e000}\u{f8ff}\u{f900}\u{fa0e}\u{faff}\u{fb1d}\u{fe0f}\u{fe20}\u{feff}\u{ff01}\u{ff21}\u{ff9e}\u{fff9}\
    \u{fffc}\u{fffd}\u{fffe}\u{ffff}\u{101fd}\u{11131}\u{1133c}\u{16ff0}\u{1d15e}\u{1d165}\u{1d16d}\u{1d400}\u{1f600}\
    \u{1f1e9}\u{20000}\u{2a6df}\u{2a6e0}\u{2a700}\u{2b73f}\u{2b740}\u{2b81f}\u{2b820}\u{2b920}\u{2ceaf}\u{2f800}\
    \u{2fa1f}\u{e0001}\u{e0100}\u{f0000}\u{10ffff}";

/// Spellings of special tokens, whole and broken.
const SPECIAL: [&str; 20] = [
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[UNK]",
    "[PAD]",
    "[cls]",
    "[SEP",
    "SEP]",
    "[",
    "]",
    "[[MASK]",
    "[MASK]]",
    "[ SEP ]",
    "##",
    "<a>",
    "<a> <b>",
    "été",
    "New  York",
    "new york",
    "day",
];

/// Makes texts for one tokenizer.
pub struct Generator {
    words: Vec<String>,
    odd: Vec<char>,
}

fn pick<'a, T>(rng: &mut ChaCha8Rng, list: &'a [T]) -> &'a T {
    &list[rng.random_range(0..list.len())]
}

impl Generator {
    /// Words are those of the tokenizer's vocabulary, in an order that does not change.
    pub fn new(both: &Both) -> Self {
        let mut words: Vec<String> = both
            .theirs
            .get_vocab(true)
            .into_keys()
            .map(|token| token.trim_start_matches("##").to_owned())
            .collect();
        words.sort();
        Generator {
            words,
            odd: ODD.chars().collect(),
        }
    }

    /// One text of one of the kinds.
    pub fn text(&self, rng: &mut ChaCha8Rng) -> String {
        match rng.random_range(0..14) {
            0..3 => self.prose(rng),
            3 | 4 => self.mutated(rng),
            5 => self.blocks(rng),
            6 => self.glued(rng),
            7 => self.special(rng),
            8 => self.long_words(rng),
            9 => self.white(rng),
            10 => self.marks(rng),
            11 => self.of(rng, &self.odd, 12),
            12 => self.ascii(rng),
            _ => {
                let parts = rng.random_range(0..4);
                (0..parts).map(|_| self.text(rng)).collect()
            }
        }
    }

    fn prose(&self, rng: &mut ChaCha8Rng) -> String {
        let mut text = String::new();
        for _ in 0..rng.random_range(0..24) {
            let mut word = pick(rng, &self.words).clone();
            match rng.random_range(0..8) {
                0 => word = word.to_uppercase(),
                1 => word.make_ascii_uppercase(),
                2 if word.is_ascii() && !word.is_empty() => word[..1].make_ascii_uppercase(),
                _ => {}
            }
            text.push_str(&word);
            text.push_str(pick::<&str>(
                rng,
                &[
                    " ", " ", " ", " ", ", ", ". ", "\n", "-", "'s ", "  ", "? ", "",
                ],
            ));
        }
        text
    }

    /// A text with some characters put in, taken out, doubled.
    fn mutated(&self, rng: &mut ChaCha8Rng) -> String {
        let mut chars: Vec<char> = self.prose(rng).chars().collect();
        for _ in 0..rng.random_range(1..5) {
            let at = rng.random_range(0..=chars.len());
            match rng.random_range(0..4) {
                0 if at < chars.len() => drop(chars.remove(at)),
                1 if at < chars.len() => chars.insert(at, chars[at]),
                2 => chars.insert(at, any(rng)),
                _ => chars.insert(at, *pick(rng, &self.odd)),
            }
        }
        chars.into_iter().collect()
    }

    /// Characters of a few blocks of 128.
    fn blocks(&self, rng: &mut ChaCha8Rng) -> String {
        let blocks: Vec<u32> = (0..rng.random_range(1..4))
            .map(|_| u32::from(any(rng)) & !127)
            .collect();
        let one = |rng: &mut ChaCha8Rng| match rng.random_range(0..8) {
            0 => ' ',
            1 => 'a',
            _ => char::from_u32(pick(rng, &blocks) + rng.random_range(0..128)).unwrap_or('.'),
        };
        (0..rng.random_range(0..40)).map(|_| one(rng)).collect()
    }

    fn glued(&self, rng: &mut ChaCha8Rng) -> String {
        let one = |rng: &mut ChaCha8Rng| pick(rng, &self.words).clone();
        (0..rng.random_range(1..12)).map(|_| one(rng)).collect()
    }

    fn special(&self, rng: &mut ChaCha8Rng) -> String {
        let one = |rng: &mut ChaCha8Rng| match rng.random_range(0..6) {
            0 => pick(rng, &self.words).clone(),
            1 => pick(rng, &self.odd).to_string(),
            2 => " ".to_owned(),
            _ => (*pick(rng, &SPECIAL)).to_owned(),
        };
        (0..rng.random_range(0..12)).map(|_| one(rng)).collect()
    }

    /// Words about as long as the longest that is read, in bytes or characters; now and then longer.
    fn long_words(&self, rng: &mut ChaCha8Rng) -> String {
        let unit = *pick(
            rng,
            &[
                "a",
                "ab",
                "Q",
                "é",
                "e\u{301}",
                "я",
                "한",
                "a\u{200b}",
                "x1",
                "\u{1d400}",
            ],
        );
        let length = match rng.random_range(0..4) {
            0 => rng.random_range(95..106),
            1 => rng.random_range(45..55),
            2 => rng.random_range(1..20),
            _ => rng.random_range(90..400),
        };
        let tail = *pick(rng, &["", "z", "!", " b", "\u{301}"]);
        format!(
            "{}{tail}{}",
            unit.repeat(length),
            unit.repeat(rng.random_range(0..3))
        )
    }

    fn white(&self, rng: &mut ChaCha8Rng) -> String {
        let white: Vec<char> = " \t\n\u{b}\u{c}\r\u{1c}\u{85}\u{a0}\u{1680}\u{2003}\u{2028}\u{202f}\u{205f}\u{3000}\u{200b}\u{feff}a."
            .chars()
            .collect();
        self.of(rng, &white, 16)
    }

    /// Letters with runs of marks.
    fn marks(&self, rng: &mut ChaCha8Rng) -> String {
        let marks: Vec<char> = "\u{300}\u{301}\u{316}\u{327}\u{344}\u{345}\u{5b0}\u{93c}\u{f71}\u{f73}\u{f75}\u{f81}\u{302e}\u{302f}\
            \u{3099}\u{1d165}\u{1d16d}\u{1133c}\u{11f41}\u{1e8d0}\u{200d}\u{ad}"
            .chars()
            .collect();
        let mut text = String::new();
        for _ in 0..rng.random_range(0..8) {
            text.push(*pick(
                rng,
                &[
                    'a',
                    'e',
                    'É',
                    '漢',
                    ' ',
                    '.',
                    'か',
                    '\u{f40}',
                    '\u{1112}',
                    '\u{1d158}',
                    'Å',
                ],
            ));
            text.push_str(&self.of(rng, &marks, 6));
        }
        text
    }

    fn of(&self, rng: &mut ChaCha8Rng, chars: &[char], most: usize) -> String {
        (0..rng.random_range(0..=most))
            .map(|_| *pick(rng, chars))
            .collect()
    }

    fn ascii(&self, rng: &mut ChaCha8Rng) -> String {
        (0..rng.random_range(0..40))
            .map(|_| char::from(rng.random_range(0..128_u8)))
            .collect()
    }
}

/// Any character; low ones more often.
fn any(rng: &mut ChaCha8Rng) -> char {
    let below = *pick(rng, &[0x250, 0x3000, 0x1_0000, 0x2_0000, 0x11_0000]);
    char::from_u32(rng.random_range(0..below)).unwrap_or('\u{fffd}')
}

/// The text files of the cargo registry's sources with one of some endings, in order.
pub fn files(endings: &'static [&str]) -> impl Iterator<Item = String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").expect("a home folder")).join(".cargo")
        });
    walkdir::WalkDir::new(home.join("registry/src"))
        .sort_by_file_name()
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| {
            let ending = entry.path().extension().and_then(|e| e.to_str());
            entry.file_type().is_file() && ending.is_some_and(|e| endings.contains(&e))
        })
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
}
