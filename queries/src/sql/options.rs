//! Option lists, `(NAME value, …)` with an optional `=`: read against the names that a statement
//! knows, then taken out one by one with their types and ranges checked.
//!
//! An unknown name lists the known ones; a name of a later version is refused as such.

use std::ops::RangeInclusive;

use datafusion_sql::sqlparser::tokenizer::Token;

use super::cursor::{Cursor, nearest, one_of, string_literal};
use super::interval::parse_micros;
use crate::problem::{Position, Problem};

/// What options a list may have.
pub(super) struct Known {
    /// Whose options: `CREATE INDEX`.
    pub what: &'static str,
    /// Names, upper case; may have several words.
    pub names: &'static [&'static str],
    /// Names that belong to the language but not to this version.
    pub later: &'static [&'static str],
}

#[derive(Debug, Clone, PartialEq)]
enum Raw {
    Text(String),
    Number(String),
    Word(String),
    /// `SECRET name`
    Secret(String),
}

impl Raw {
    fn shown(&self) -> String {
        match self {
            Raw::Text(text) => format!("'{text}'"),
            Raw::Number(text) | Raw::Word(text) => text.clone(),
            Raw::Secret(name) => format!("SECRET {name}"),
        }
    }
}

/// The options of one list, not yet typed.
#[derive(Debug, Default)]
pub(super) struct Options {
    given: Vec<(&'static str, Raw, Position, Position)>,
}

impl Options {
    /// Reads `( … )` at the cursor.
    pub fn parse(cursor: &mut Cursor<'_>, known: &Known) -> Result<Options, Problem> {
        let mut inner = cursor.group("(NAME value, …)")?;
        let mut options = Options::default();
        loop {
            options.parse_one(&mut inner, known)?;
            if !inner.eat_token(&Token::Comma) {
                break;
            }
        }
        inner.finish(&["\",\"", "\")\""])?;
        Ok(options)
    }

    fn parse_one(&mut self, inner: &mut Cursor<'_>, known: &Known) -> Result<(), Problem> {
        let at = inner.position();
        let name = option_name(inner, known)?;
        if self.given.iter().any(|(other, ..)| *other == name) {
            return Err(Problem::syntax(format!("option {name} is given twice"))
                .at(at.line, at.column)
                .expected("each option at most once"));
        }
        inner.eat_token(&Token::Eq);
        let value_at = inner.position();
        let raw = value(inner, name)?;
        self.given.push((name, raw, at, value_at));
        Ok(())
    }

    /// Where an option's name stands, if it was given.
    pub fn position(&self, name: &str) -> Option<Position> {
        self.given
            .iter()
            .find(|(given, ..)| *given == name)
            .map(|(_, _, at, _)| *at)
    }

    fn raw(&self, name: &str) -> Option<(&Raw, Position)> {
        self.given
            .iter()
            .find(|(given, ..)| *given == name)
            .map(|(_, raw, _, at)| (raw, *at))
    }

    /// A string, if given.
    pub fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        match self.raw(name) {
            None => Ok(None),
            Some((Raw::Text(text), _)) => Ok(Some(text.clone())),
            Some((raw, at)) => Err(wrong(name, raw, at, "a string in single quotes")),
        }
    }

    /// Refuses a text that says nothing; an option that is not given is fine.
    pub fn refuse_empty(&self, name: &str) -> Result<(), Problem> {
        match (self.text(name)?, self.position(name)) {
            (Some(text), Some(at)) if text.trim().is_empty() => {
                let detail = format!("option {name} is empty");
                Err(Problem::invalid(detail).at(at.line, at.column))
            }
            _ => Ok(()),
        }
    }

    /// The name of a secret, and where it stands.
    pub fn secret(&self, name: &str) -> Result<Option<(String, Position)>, Problem> {
        match self.raw(name) {
            None => Ok(None),
            Some((Raw::Secret(secret), at)) => Ok(Some((secret.clone(), at))),
            // What was written may be the secret itself: it is not shown.
            Some((_, at)) => Err(Problem::invalid(format!("option {name} is no secret"))
                .at(at.line, at.column)
                .expected(format!("{name} SECRET name"))
                .hint("CREATE SECRET name AS ENV 'VARIABLE', so that the value is stored nowhere")),
        }
    }

    /// An object's name, bare or as a string, and where it stands.
    pub fn name(&self, name: &str) -> Result<Option<(String, Position)>, Problem> {
        match self.raw(name) {
            None => Ok(None),
            Some((Raw::Word(word), at)) => Ok(Some((word.to_lowercase(), at))),
            Some((Raw::Text(text), at)) => Ok(Some((text.clone(), at))),
            Some((raw, at)) => Err(wrong(name, raw, at, "a name")),
        }
    }

    /// One of several words, as a string or bare; folded to lower case.
    pub fn choice(
        &self,
        name: &str,
        choices: &[&'static str],
    ) -> Result<Option<&'static str>, Problem> {
        let Some((raw, at)) = self.raw(name) else {
            return Ok(None);
        };
        let (Raw::Text(text) | Raw::Word(text) | Raw::Number(text) | Raw::Secret(text)) = raw;
        let found = choices
            .iter()
            .find(|choice| choice.eq_ignore_ascii_case(text));
        match found {
            Some(choice) => Ok(Some(choice)),
            None => {
                let quoted: Vec<String> = choices.iter().map(|c| format!("'{c}'")).collect();
                let quoted: Vec<&str> = quoted.iter().map(|c| &**c).collect();
                let problem = wrong(name, raw, at, &one_of(&quoted));
                Err(match nearest(text, choices.iter().copied()) {
                    Some(near) => problem.hint(format!("did you mean '{near}'?")),
                    None => problem,
                })
            }
        }
    }

    /// A whole number in a range.
    pub fn integer(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some((raw, at)) = self.raw(name) else {
            return Ok(None);
        };
        let expected = if *range.end() == u64::MAX {
            format!("a whole number from {}", range.start())
        } else {
            format!("a whole number from {} to {}", range.start(), range.end())
        };
        match raw {
            Raw::Number(text) => match text.parse() {
                Ok(number) if range.contains(&number) => Ok(Some(number)),
                _ => Err(wrong(name, raw, at, &expected)),
            },
            _ => Err(wrong(name, raw, at, &expected)),
        }
    }

    /// A number that passes a test; `expected` says which.
    pub fn float(
        &self,
        name: &str,
        expected: &str,
        is_valid: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, Problem> {
        let Some((raw, at)) = self.raw(name) else {
            return Ok(None);
        };
        let number = match raw {
            Raw::Number(text) => text.parse().ok(),
            _ => None,
        };
        match number.filter(|number: &f64| is_valid(*number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, raw, at, expected)),
        }
    }

    /// A duration within bounds, microseconds.
    pub fn duration(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
        bounds: &str,
    ) -> Result<Option<u64>, Problem> {
        let Some((raw, at)) = self.raw(name) else {
            return Ok(None);
        };
        let expected = format!("an interval {bounds}, like '1 hour' or '90 seconds'");
        let Raw::Text(text) = raw else {
            return Err(wrong(name, raw, at, &expected));
        };
        match parse_micros(text) {
            Ok(micros) if range.contains(&micros) => Ok(Some(micros)),
            Ok(_) => Err(wrong(name, raw, at, &expected)),
            Err(why) => Err(wrong(name, raw, at, &expected).hint(why)),
        }
    }
}

fn wrong(name: &str, raw: &Raw, at: Position, expected: &str) -> Problem {
    Problem::invalid(format!("option {name} cannot be {}", raw.shown()))
        .at(at.line, at.column)
        .expected(expected)
}

/// The longest known name that stands here.
fn option_name(inner: &mut Cursor<'_>, known: &Known) -> Result<&'static str, Problem> {
    let all = known.names.iter().chain(known.later).copied();
    let mut matches: Vec<(usize, &'static str, Cursor<'_>)> = all
        .filter_map(|name| {
            let words: Vec<&str> = name.split(' ').collect();
            let mut ahead = *inner;
            ahead.eat_all(&words).then_some((words.len(), name, ahead))
        })
        .collect();
    matches.sort_by_key(|(words, ..)| *words);
    let at = inner.position();
    if let Some((_, name, ahead)) = matches.pop() {
        if known.later.contains(&name) {
            return Err(Problem::not_supported(format!(
                "option {name} of {} is not supported by this version",
                known.what
            ))
            .at(at.line, at.column)
            .hint("leave it out"));
        }
        *inner = ahead;
        return Ok(name);
    }
    let expected = one_of(known.names);
    let Some(Token::Word(word)) = inner.peek().map(|token| &token.token) else {
        return Err(inner
            .unexpected(&["an option's name"])
            .hint(format!("known: {expected}")));
    };
    let found = word.value.to_uppercase();
    let problem = Problem::invalid(format!("{} has no option {found}", known.what))
        .at(at.line, at.column)
        .expected(expected);
    Err(match nearest(&found, known.names.iter().copied()) {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None => problem,
    })
}

fn value(inner: &mut Cursor<'_>, name: &str) -> Result<Raw, Problem> {
    let mut ahead = *inner;
    // '1 hour' may be written as a typed literal.
    let is_interval = ahead.eat("INTERVAL");
    let negative = ahead.eat_token(&Token::Minus);
    let raw = match ahead.next().map(|token| &token.token) {
        Some(Token::Number(number, _)) if !is_interval => {
            let sign = if negative { "-" } else { "" };
            Some(Raw::Number(format!("{sign}{number}")))
        }
        Some(token) if !negative => match (string_literal(token), token) {
            (Some(text), _) => Some(Raw::Text(text)),
            (None, Token::Word(word)) if !is_interval => {
                let is_secret =
                    word.quote_style.is_none() && word.value.eq_ignore_ascii_case("SECRET");
                match ahead.name("a secret's name") {
                    Ok(secret) if is_secret => Some(Raw::Secret(secret.value)),
                    _ => Some(Raw::Word(word.value.clone())),
                }
            }
            _ => None,
        },
        _ => None,
    };
    match raw {
        Some(raw) => {
            *inner = ahead;
            Ok(raw)
        }
        None => Err(inner.unexpected(&[&format!("a value for {name}")])),
    }
}
