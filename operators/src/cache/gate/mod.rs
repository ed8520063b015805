//! The second gate: may two questions with near vectors share an answer?
//!
//! Embeddings see topics, not truth values: measured, look-alikes ("enable" / "disable", 2FA / 3FA,
//! "PDF to Word" / "Word to PDF") lie *nearer* than true paraphrases, so a threshold cannot tell
//! them apart (`docs/`, and 43 % of look-alikes pass 0.95). The gate compares what embeddings blur:
//!
//! ```text
//! question ─▶ tokens ─▶ numbers with units · quotes and names · polarity · roles · content words
//!                       each must agree; the first that does not is the reason
//! ```
//!
//! It errs towards refusal: a refusal costs one generation, a false hit is a wrong answer. Rules
//! and tables are for English; of other languages it checks numbers, quotes, names, and the slot.
//!
//! Limits: no parser. A negation counts wherever it stands, and synonyms are a small table.

mod words;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use rust_stemmers::{Algorithm, Stemmer};

/// What the gate compares of a question. Make it once a question; comparing costs microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    normalised: String,
    /// All words, lower case, aliases resolved.
    words: BTreeSet<String>,
    /// Canonical number (with unit) → as it was written.
    numbers: Vec<(String, String)>,
    /// Lower case → as it was written.
    names: BTreeMap<String, String>,
    quotes: BTreeSet<String>,
    negations: Vec<String>,
    /// Concept → signs in order of appearance, with the words.
    polar: BTreeMap<usize, Vec<(bool, String)>>,
    directed: BTreeMap<usize, Vec<(bool, String)>>,
    /// Preposition → content stems that follow it.
    roles: BTreeMap<&'static str, BTreeSet<String>>,
    /// Stems of content words in order, synonyms resolved, with the words.
    content: Vec<(String, String)>,
}

impl Features {
    /// Reads a question.
    pub fn of(text: &str) -> Features {
        let normalised = normalise(text);
        let tokens = tokenise(text);
        let words: Vec<String> = tokens
            .iter()
            .map(|token| alias(token.lower.strip_suffix("'s").unwrap_or(&token.lower)))
            .collect();
        let numbers = numbers(&words, &tokens);
        let (polar, directed) = (signs(words::POLAR, &words), signs(words::DIRECTED, &words));
        let content = content(&words);
        Features {
            normalised,
            numbers,
            names: names(&tokens),
            quotes: quotes(text),
            negations: negations(&words),
            polar,
            directed,
            roles: roles(&words),
            content,
            words: words.into_iter().collect(),
        }
    }

    /// Lower case, single spaces, no final punctuation: equal for the same question.
    pub fn normalised(&self) -> &str {
        &self.normalised
    }

    /// Whether two similar questions may share an answer; else why not, in short:
    /// "numbers differ: 2FA/3FA". Symmetric but for the order of words in the reason.
    pub fn agrees(&self, other: &Features) -> Result<(), String> {
        if self.normalised == other.normalised {
            return Ok(());
        }
        self.numbers_agree(other)?;
        self.names_agree(other)?;
        self.polarity_agrees(other)?;
        self.roles_agree(other)?;
        self.content_agrees(other)
    }

    fn numbers_agree(&self, other: &Features) -> Result<(), String> {
        let canonical = |numbers: &[(String, String)]| {
            let mut keys: Vec<String> = numbers.iter().map(|(key, _)| key.clone()).collect();
            keys.sort_unstable();
            keys
        };
        // The order matters as well ("from 2 to 3"), but only where both have the same numbers.
        let same_order = self
            .numbers
            .iter()
            .map(|n| &n.0)
            .eq(other.numbers.iter().map(|number| &number.0));
        if canonical(&self.numbers) == canonical(&other.numbers) {
            return if same_order {
                Ok(())
            } else {
                Err("numbers stand in another order".into())
            };
        }
        let only = |a: &Features, b: &Features| {
            let known: Vec<&String> = b.numbers.iter().map(|(key, _)| key).collect();
            let own = a.numbers.iter().filter(|(key, _)| !known.contains(&key));
            own.map(|(_, text)| text.clone()).collect()
        };
        Err(differ("numbers", only(self, other), only(other, self)))
    }

    fn names_agree(&self, other: &Features) -> Result<(), String> {
        if self.quotes != other.quotes {
            let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| {
                a.difference(b).cloned().collect::<Vec<_>>()
            };
            let (a, b) = (
                only(&self.quotes, &other.quotes),
                only(&other.quotes, &self.quotes),
            );
            return Err(differ("quotes", a, b));
        }
        let only = |a: &Features, b: &Features| -> Vec<String> {
            let own = a.names.iter().filter(|(name, _)| !b.words.contains(*name));
            own.map(|(_, text)| text.clone()).collect()
        };
        let (a, b) = (only(self, other), only(other, self));
        if a.is_empty() && b.is_empty() {
            Ok(())
        } else {
            Err(differ("names", a, b))
        }
    }

    fn polarity_agrees(&self, other: &Features) -> Result<(), String> {
        for (concept, mine) in &self.directed {
            if let Some(theirs) = other.directed.get(concept)
                && signs_of(mine) != signs_of(theirs)
            {
                return Err(differ("direction", said(mine), said(theirs)));
            }
        }
        let turned = |a: &Features, b: &Features| -> Vec<String> {
            a.words
                .iter()
                .filter(|word| is_opposite(word, &b.words))
                .cloned()
                .collect()
        };
        let (mine, theirs) = (turned(self, other), turned(other, self));
        let negations = (
            self.negations.len() + mine.len(),
            other.negations.len() + theirs.len(),
        );
        if negations.0 % 2 == negations.1 % 2 {
            for (concept, mine) in &self.polar {
                if let Some(theirs) = other.polar.get(concept)
                    && signs_of(mine) != signs_of(theirs)
                {
                    return Err(differ("polarity", said(mine), said(theirs)));
                }
            }
        }
        let weight = |features: &Features, turned: &[String]| {
            let negative = features
                .polar
                .values()
                .flatten()
                .filter(|(sign, _)| !sign)
                .count();
            negative + features.negations.len() + turned.len()
        };
        if weight(self, &mine) % 2 == weight(other, &theirs) % 2 {
            return Ok(());
        }
        let reasons = |features: &Features, turned: Vec<String>| {
            let negative = features.polar.values().flatten().filter(|(sign, _)| !sign);
            let mut all: Vec<String> = negative.map(|(_, word)| word.clone()).collect();
            all.extend(features.negations.iter().cloned());
            all.extend(turned);
            all
        };
        Err(differ(
            "polarity",
            reasons(self, mine),
            reasons(other, theirs),
        ))
    }

    fn roles_agree(&self, other: &Features) -> Result<(), String> {
        let has = |features: &Features, stem: &String| {
            features.content.iter().any(|(known, _)| known == stem)
        };
        for (role, mine) in &self.roles {
            let Some(theirs) = other.roles.get(role) else {
                continue;
            };
            let (a, b) = (
                mine.difference(theirs).next(),
                theirs.difference(mine).next(),
            );
            if let (Some(a), Some(b)) = (a, b)
                && has(other, a)
                && has(self, b)
            {
                return Err(format!("roles differ: {role} {a}/{role} {b}"));
            }
        }
        // "dog bites man" / "man bites dog": the same words but for two, not adjacent, exchanged.
        if self.content.len() == other.content.len() {
            let pairs = self.content.iter().zip(&other.content).enumerate();
            let moved: Vec<usize> = pairs
                .filter(|(_, (a, b))| a.0 != b.0)
                .map(|(i, _)| i)
                .collect();
            if let [i, j] = moved[..]
                && j > i + 1
                && self.content[i].0 == other.content[j].0
                && self.content[j].0 == other.content[i].0
            {
                let (a, b) = (&self.content[i].1, &self.content[j].1);
                return Err(format!("roles differ: {a} … {b}/{b} … {a}"));
            }
        }
        Ok(())
    }

    /// One word exchanged in an otherwise equal question is the shape of a look-alike.
    fn content_agrees(&self, other: &Features) -> Result<(), String> {
        let only = |a: &Features, b: &Features| -> Vec<String> {
            let known = |stem: &str| b.content.iter().any(|(other, _)| is_same_word(stem, other));
            let own = a.content.iter().filter(|(stem, _)| !known(stem));
            own.map(|(_, word)| word.clone()).collect()
        };
        let (a, b) = (only(self, other), only(other, self));
        let shared = self.content.len() - a.len();
        if a.len() == 1 && b.len() == 1 && shared >= 1 || shared == 0 && a.len() + b.len() > 0 {
            // A polar word that was exchanged for one of the same sign has been judged already.
            let is_judged = |word: &String| {
                let holds = |pairs: &[(bool, String)]| {
                    pairs
                        .iter()
                        .any(|(_, known)| known.split(' ').any(|part| part == word))
                };
                self.polar
                    .values()
                    .chain(other.polar.values())
                    .any(|pairs| holds(pairs))
            };
            let is_turned = a.iter().any(|word| is_opposite(word, &other.words))
                || b.iter().any(|word| is_opposite(word, &self.words));
            let is_known = a.iter().all(is_judged) && b.iter().all(is_judged);
            if !is_turned && !is_known {
                return Err(differ("words", a, b));
            }
        }
        Ok(())
    }
}

/// "kind differ: a/b", with a dash where one side has none.
fn differ(kind: &str, a: Vec<String>, b: Vec<String>) -> String {
    let side = |words: Vec<String>| {
        if words.is_empty() {
            "–".to_owned()
        } else {
            words.join(", ")
        }
    };
    let verb = if kind.ends_with('s') {
        "differ"
    } else {
        "differs"
    };
    let reason = format!("{kind} {verb}: {}/{}", side(a), side(b));
    // A reason is shown in replies and logs: a question of 32,768 characters must not be.
    reason.chars().take(160).collect()
}

fn signs_of(pairs: &[(bool, String)]) -> Vec<bool> {
    let mut signs: Vec<bool> = pairs.iter().map(|(sign, _)| *sign).collect();
    signs.dedup();
    signs
}

fn said(pairs: &[(bool, String)]) -> Vec<String> {
    pairs.iter().map(|(_, word)| word.clone()).collect()
}

fn normalise(text: &str) -> String {
    let spaced = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase();
    spaced.trim_end_matches(['?', '!', '.', ' ']).to_owned()
}

/// A word as it stands in the question.
#[derive(Debug)]
struct Token {
    text: String,
    lower: String,
    /// It opens the question or a sentence of it: its capital says nothing.
    opens: bool,
}

/// Maximal runs of letters and digits, joined by marks that bind (`v2.1`, `e-mail`, `a::b`, `50%`).
fn tokenise(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut opens = true;
    let text = &without_separators(text);
    for raw in text.split(|c: char| c.is_whitespace() || "()[]{}<>\"“”«»`,;?!|=".contains(c))
    {
        let word = raw.trim_matches(|c: char| !c.is_alphanumeric() && !"%$€£+#_".contains(c));
        // "C#" and "C++" keep their marks; a bare mark is no word.
        if word.chars().any(char::is_alphanumeric) {
            let parts: Vec<&str> = if is_code(word) {
                vec![word]
            } else {
                word.split('/').collect()
            };
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                let lower = part.to_lowercase().replace('’', "'");
                tokens.push(Token {
                    text: part.to_owned(),
                    lower,
                    opens,
                });
                opens = false;
            }
        }
        opens |= raw.ends_with(['.', '?', '!', ':']);
    }
    tokens
}

/// "1,000" → "1000": a comma between digits groups them.
fn without_separators(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let is_digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let groups = |at: usize| chars[at] == ',' && at > 0 && is_digit(at - 1) && is_digit(at + 1);
    (0..chars.len())
        .filter(|at| !groups(*at))
        .map(|at| chars[at])
        .collect()
}

fn is_code(word: &str) -> bool {
    word.contains('_') || word.contains("::") || word.contains("()") || word.starts_with('/')
}

fn alias(word: &str) -> String {
    let found = words::ALIASES.iter().find(|(long, _)| *long == word);
    found.map_or(word, |(_, short)| short).to_owned()
}

fn lookup(table: &[(&'static str, &'static str)], word: &str) -> Option<&'static str> {
    table
        .iter()
        .find(|(known, _)| *known == word)
        .map(|(_, canonical)| *canonical)
}

/// Numbers with their units in canonical form: "five minutes", "5min" → `5 min`; "two-factor",
/// "2FA" → `2 factor`; versions and identifiers with digits as they are.
fn numbers(words: &[String], tokens: &[Token]) -> Vec<(String, String)> {
    let mut numbers = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let text = &tokens[at].text;
        let next = words.get(at + 1).map(String::as_str);
        let (head, tail) = match word.split_once('-') {
            Some((head, tail)) => (head, Some(tail)),
            None => (word.as_str(), next),
        };
        if let Some(number) = lookup(words::NUMBER_WORDS, head) {
            numbers.push((with_unit(number, tail), text.clone()));
        } else if head == "second" && tail == Some("factor") {
            numbers.push(("2 factor".to_owned(), format!("{text} factor")));
        } else if word.chars().any(|c| c.is_ascii_digit()) {
            let attached = word.trim_end_matches(|c: char| c.is_alphabetic() || c == '%');
            let suffix = &word[attached.len()..];
            let is_plain = is_plain_number(attached);
            numbers.push(match suffix {
                "fa" if is_plain => (format!("{attached} factor"), text.clone()),
                "" if is_plain => (with_unit(attached, next), text.clone()),
                _ if is_plain && (suffix == "%" || lookup(words::UNITS, suffix).is_some()) => {
                    (with_unit(attached, Some(suffix)), text.clone())
                }
                _ if is_plain_number(head) && tail.is_some() && word.contains('-') => {
                    (with_unit(head, tail), text.clone())
                }
                // v2.1 and 2.1 name the same version.
                _ => (
                    word.strip_prefix('v').unwrap_or(word).to_owned(),
                    text.clone(),
                ),
            });
        }
    }
    numbers
}

fn is_plain_number(text: &str) -> bool {
    let text = text.trim_start_matches(['$', '€', '£', '+', '#']);
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || c == '.' || c == ',')
}

fn with_unit(number: &str, next: Option<&str>) -> String {
    let (sign, digits) = match number.chars().next() {
        Some('$') => ("usd", &number[1..]),
        Some('€') => ("eur", &number['€'.len_utf8()..]),
        Some('£') => ("gbp", &number['£'.len_utf8()..]),
        _ => ("", number),
    };
    let digits = digits.replace(',', "");
    let unit = next.and_then(|next| match next {
        "%" => Some("%"),
        "factor" => Some("factor"),
        _ => lookup(words::UNITS, next),
    });
    match (sign, unit) {
        ("", None) => digits,
        ("", Some(unit)) | (unit, _) => format!("{digits} {unit}"),
    }
}

/// Capitalised words inside a sentence, acronyms, and code: what names something.
fn names(tokens: &[Token]) -> BTreeMap<String, String> {
    let capital = |token: &&Token| token.text.chars().next().is_some_and(char::is_uppercase);
    let letters = tokens
        .iter()
        .filter(|token| token.text.chars().any(char::is_alphabetic))
        .count();
    // A title ("How Do I Reset It") capitalises everything: capitals say nothing then.
    let is_title = letters >= 4 && tokens.iter().filter(capital).count() * 10 >= letters * 7;
    let mut names = BTreeMap::new();
    for token in tokens {
        let text = &token.text;
        if text.chars().any(|c| c.is_ascii_digit())
            || words::STOP_WORDS.contains(&token.lower.replace('\'', "").as_str())
            || is_word_of_polarity(&token.lower)
            || lookup(words::UNITS, &token.lower).is_some()
        {
            continue;
        }
        let uppers = text.chars().filter(|c| c.is_uppercase()).count();
        let is_shouted = uppers >= 2 || (uppers == 1 && !capital(&token));
        let is_name = is_code(text)
            || text.contains('.') && !text.ends_with('.')
            || text.ends_with(['#', '+'])
            || is_shouted && !(is_title && uppers == letters)
            || capital(&token) && !token.opens && !is_title;
        if is_name {
            let lower = token.lower.trim_end_matches("'s");
            names.insert(alias(lower), text.clone());
        }
    }
    names
}

fn is_word_of_polarity(word: &str) -> bool {
    is_negation(word)
        || words::POLAR
            .iter()
            .any(|(yes, no)| yes.contains(&word) || no.contains(&word))
}

fn quotes(text: &str) -> BTreeSet<String> {
    let mut quotes = BTreeSet::new();
    for (open, close) in [('"', '"'), ('“', '”'), ('«', '»'), ('`', '`')] {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once(open)
            && let Some((inside, after)) = after.split_once(close)
        {
            quotes.insert(normalise(inside));
            rest = after;
        }
    }
    quotes
}

fn is_negation(word: &str) -> bool {
    words::NEGATIONS.contains(&word) || word.ends_with("n't")
}

fn negations(words: &[String]) -> Vec<String> {
    let mut negations = Vec::new();
    for (at, word) in words.iter().enumerate() {
        // "I don't know how to …", "whether or not", "why not": turns of phrase, not negations.
        let next = words.get(at + 1).map(String::as_str);
        let is_phrase = matches!(next, Some("know" | "sure" | "understand" | "remember"))
            || at >= 1 && words[at - 1] == "or";
        if is_negation(word) && !is_phrase {
            negations.push(word.clone());
        }
    }
    negations
}

/// Signs of the concepts that a question names, in order. Two-word phrases before single words.
fn signs(
    table: &[(&'static [&'static str], &'static [&'static str])],
    words: &[String],
) -> BTreeMap<usize, Vec<(bool, String)>> {
    let find = |phrase: &str| {
        table.iter().enumerate().find_map(|(concept, (yes, no))| {
            if yes.contains(&phrase) {
                Some((concept, true))
            } else {
                no.contains(&phrase).then_some((concept, false))
            }
        })
    };
    let mut found: BTreeMap<usize, Vec<(bool, String)>> = BTreeMap::new();
    let mut at = 0;
    while at < words.len() {
        // "turn it off", "log me out": a particle may stand one word later.
        let (one, two, three) = (&words[at], words.get(at + 1), words.get(at + 2));
        let pair = two.map(|two| format!("{one} {two}"));
        let apart = three.map(|three| format!("{one} {three}"));
        let phrase = [(pair, 2), (apart, 3)]
            .into_iter()
            .find_map(|(phrase, length)| {
                let phrase = phrase?;
                Some((find(&phrase)?, phrase, length))
            });
        if let Some(((concept, sign), phrase, length)) = phrase {
            found.entry(concept).or_default().push((sign, phrase));
            at += length;
            continue;
        }
        // A bare "on" is a preposition; a bare "off" is not.
        if one != "on"
            && let Some((concept, sign)) = find(one)
        {
            found.entry(concept).or_default().push((sign, one.clone()));
        }
        at += 1;
    }
    found
}

/// Whether `word` is another question's word turned around by a prefix.
fn is_opposite(word: &str, others: &BTreeSet<String>) -> bool {
    if is_word_of_polarity(word) || others.contains(word) {
        return false;
    }
    words::OPPOSITE_PREFIXES.iter().any(|prefix| {
        let rest = word
            .strip_prefix(prefix)
            .map(|rest| rest.trim_start_matches('-'));
        rest.is_some_and(|rest| rest.len() >= 3 && others.contains(rest))
    })
}

fn stem(word: &str) -> String {
    let word = word.trim_end_matches("'s");
    let stemmer = Stemmer::create(Algorithm::English);
    let canonical = |word: &str| {
        words::SYNONYMS
            .iter()
            .find(|group| group.contains(&word))
            .map(|group| group[0].to_owned())
    };
    let stemmed = stemmer.stem(word).into_owned();
    let by_stem = || {
        let same = |group: &&&[&str]| group.iter().any(|known| stemmer.stem(known) == stemmed);
        words::SYNONYMS
            .iter()
            .find(same)
            .map(|group| group[0].to_owned())
    };
    canonical(word).or_else(by_stem).unwrap_or(stemmed)
}

fn is_content(word: &str) -> bool {
    let bare = word.replace('\'', "");
    !words::STOP_WORDS.contains(&bare.as_str()) && !is_negation(word)
}

/// Content words in order, numbers left to their own rule.
fn content(words: &[String]) -> Vec<(String, String)> {
    let is_number = |word: &str| {
        word.chars().any(|c| c.is_ascii_digit())
            || lookup(words::NUMBER_WORDS, word.split('-').next().unwrap_or(word)).is_some()
    };
    (words.iter())
        .filter(|word| is_content(word) && !is_number(word))
        .map(|word| (stem(word), word.clone()))
        .collect()
}

fn roles(words: &[String]) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut roles: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for (at, word) in words.iter().enumerate() {
        let Some(role) = words::ROLES.iter().find(|role| *role == word) else {
            continue;
        };
        if let Some(object) = words[at + 1..].iter().take(3).find(|word| is_content(word)) {
            roles.entry(role).or_default().insert(stem(object));
        }
    }
    roles
}

/// Equal stems, or long words that differ by one typing error.
fn is_same_word(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().min(b.len()) < 6 || a.len().abs_diff(b.len()) > 1 || a[0] != b[0] {
        return false;
    }
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a_rest, b_rest) = (&a[start..], &b[start..]);
    let end = a_rest
        .iter()
        .rev()
        .zip(b_rest.iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    a_rest.len().max(b_rest.len()) - end.min(a_rest.len().min(b_rest.len())) <= 1
}
