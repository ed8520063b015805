//! Analyzers: from text to terms.
//!
//! `simple` takes maximal runs of letters, marks, numbers and underscore, lower-cased, nothing
//! removed or folded. A language analyzer also drops Snowball's stop words and stems with
//! Snowball's algorithm (API §3).
//!
//! A [`Term`] is the 64-bit XXH3 of the analyzed text: it crosses workers, lies in postings and
//! needs no dictionary of strings. Two terms in a million-term corpus collide with probability
//! 3·10⁻⁸.
//!
//! Limits: no segmentation of scripts without spaces (a run of Han is one term); Snowball has stop
//! lists for twelve languages, the others only stem.

use std::sync::LazyLock;

use ahash::AHashMap;
use rust_stemmers::{Algorithm, Stemmer};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::stop_words;

/// An analyzed word: XXH3 of its UTF-8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Term(pub u64);

impl Term {
    /// The term of a word that is already analyzed.
    pub fn of(word: &str) -> Term {
        Term(xxh3_64(word.as_bytes()))
    }
}

/// Turns text to terms. Copy it freely; it holds no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analyzer {
    language: Option<Algorithm>,
}

impl Default for Analyzer {
    /// `english`.
    fn default() -> Self {
        Analyzer {
            language: Some(Algorithm::English),
        }
    }
}

/// Names as statements write them.
const LANGUAGES: &[(&str, Algorithm)] = &[
    ("arabic", Algorithm::Arabic),
    ("danish", Algorithm::Danish),
    ("dutch", Algorithm::Dutch),
    ("english", Algorithm::English),
    ("finnish", Algorithm::Finnish),
    ("french", Algorithm::French),
    ("german", Algorithm::German),
    ("greek", Algorithm::Greek),
    ("hungarian", Algorithm::Hungarian),
    ("italian", Algorithm::Italian),
    ("norwegian", Algorithm::Norwegian),
    ("portuguese", Algorithm::Portuguese),
    ("romanian", Algorithm::Romanian),
    ("russian", Algorithm::Russian),
    ("spanish", Algorithm::Spanish),
    ("swedish", Algorithm::Swedish),
    ("tamil", Algorithm::Tamil),
    ("turkish", Algorithm::Turkish),
];

impl Analyzer {
    /// Only lower case and word runs.
    pub fn simple() -> Self {
        Analyzer { language: None }
    }

    /// By name, lower case: `simple`, or a Snowball language.
    pub fn parse(name: &str) -> Option<Self> {
        if name == "simple" {
            return Some(Analyzer::simple());
        }
        let (_, language) = LANGUAGES.iter().find(|(known, _)| *known == name)?;
        Some(Analyzer {
            language: Some(*language),
        })
    }

    /// Every name that [`Analyzer::parse`] takes, for error messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        std::iter::once("simple").chain(LANGUAGES.iter().map(|(name, _)| *name))
    }

    /// Calls `sink` with each analyzed word in text order. Cost: linear, one stemming a word.
    pub fn words(&self, text: &str, mut sink: impl FnMut(&str)) {
        let Some(language) = self.language else {
            return runs(text, &mut sink);
        };
        let stemmer = Stemmer::create(language);
        let stop = stop_words::of(language);
        runs(text, &mut |word| {
            if !stop.contains(word) {
                sink(&stemmer.stem(word));
            }
        });
    }

    /// Distinct terms with their number of occurrences, ordered by term, and the length (Σ).
    pub fn count(&self, text: &str) -> (Vec<(Term, u32)>, u32) {
        let mut terms = Vec::new();
        self.words(text, |word| terms.push(Term::of(word)));
        terms.sort_unstable();
        let length = u32::try_from(terms.len()).unwrap_or(u32::MAX);
        let mut counted: Vec<(Term, u32)> = Vec::with_capacity(terms.len());
        for term in terms {
            match counted.last_mut() {
                Some((last, count)) if *last == term => *count += 1,
                _ => counted.push((term, 1)),
            }
        }
        (counted, length)
    }

    /// The terms of a question: distinct, in order of first occurrence, with repetitions.
    pub fn question(&self, text: &str) -> Vec<(Term, u32)> {
        let mut places: AHashMap<Term, usize> = AHashMap::new();
        let mut terms: Vec<(Term, u32)> = Vec::new();
        self.words(text, |word| {
            let term = Term::of(word);
            let place = *places.entry(term).or_insert_with(|| {
                terms.push((term, 0));
                terms.len() - 1
            });
            terms[place].1 += 1;
        });
        terms
    }
}

/// Maximal word runs, lower-cased.
fn runs(text: &str, sink: &mut impl FnMut(&str)) {
    let mut word = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        word.clear();
        if run.is_ascii() {
            word.push_str(run);
            word.make_ascii_lowercase();
        } else {
            word.push_str(&run.to_lowercase());
        }
        sink(&word);
    }
}

/// Letters, marks, numbers (Unicode general categories L, M, N) and underscore.
fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    let ranges = &*WORD_RANGES;
    let after = ranges.partition_point(|(start, _)| *start <= c);
    after > 0 && c <= ranges[after - 1].1
}

/// Inclusive ranges, ascending. The standard library knows `Alphabetic`, which lacks most marks.
static WORD_RANGES: LazyLock<Vec<(char, char)>> = LazyLock::new(|| {
    use regex_syntax::hir::{Class, HirKind};
    let hir = regex_syntax::parse(r"[\p{L}\p{M}\p{N}_]").expect("a constant class parses");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => class
            .ranges()
            .iter()
            .map(|range| (range.start(), range.end()))
            .collect(),
        other => unreachable!("a Unicode class, not {other:?}"),
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Analyzer::parse(name)
            .unwrap()
            .words(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn simple_takes_maximal_runs_and_folds_nothing_but_case() {
        let text = "Don't PANIC_now: x86-64, Größe e\u{301}te\u{301}, 日本語, İ, ½ Ⅷ!";
        assert_eq!(
            words("simple", text),
            [
                "don",
                "t",
                "panic_now",
                "x86",
                "64",
                "größe",
                "e\u{301}te\u{301}",
                "日本語",
                "i\u{307}",
                "½",
                "ⅷ"
            ]
        );
        assert!(words("simple", " \u{2003}—…\n").is_empty());
    }

    #[test]
    fn english_drops_stop_words_and_stems() {
        assert_eq!(
            words("english", "The indexes are being rebuilt quickly"),
            ["index", "rebuilt", "quick"]
        );
        assert!(words("english", "to be or not to be").is_empty());
        assert_eq!(
            words("german", "Die Häuser und der Garten"),
            ["haus", "gart"]
        );
    }

    #[test]
    fn questions_count_repetitions_in_order_of_appearance() {
        let terms = Analyzer::simple().question("b a b");
        assert_eq!(terms, [(Term::of("b"), 2), (Term::of("a"), 1)]);
        let (counted, length) = Analyzer::simple().count("b a b");
        assert_eq!((counted.len(), length), (2, 3));
    }

    #[test]
    fn every_name_parses() {
        assert!(Analyzer::names().all(|name| Analyzer::parse(name).is_some()));
        assert_eq!(Analyzer::parse("klingon"), None);
    }
}
