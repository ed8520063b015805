//! Reading a statement's tokens: what our own parsers (everything but expressions and queries)
//! stand on. A step either takes what it expects or makes a problem that names the place, what was
//! found, what was expected, and the word that was probably meant.

use datafusion_sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::token::{is_word, position};
use crate::problem::{Position, Problem};

/// A folded name and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Name {
    pub value: String,
    pub at: Position,
}

/// A place in a token list. Cheap to copy: copies are how alternatives are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
    end: Position,
}

impl<'a> Cursor<'a> {
    /// Reads `tokens`; `end` is where errors point when they are used up.
    pub fn new(tokens: &'a [TokenWithSpan], end: Position) -> Self {
        Cursor { tokens, at: 0, end }
    }

    pub fn peek(&self) -> Option<&'a TokenWithSpan> {
        self.tokens.get(self.at)
    }

    pub fn next(&mut self) -> Option<&'a TokenWithSpan> {
        let token = self.peek();
        self.at += usize::from(token.is_some());
        token
    }

    pub fn is_done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// Where the next token stands.
    pub fn position(&self) -> Position {
        self.peek()
            .map_or(self.end, |token| position(token.span.start))
    }

    /// The tokens that are left.
    pub fn rest(&self) -> &'a [TokenWithSpan] {
        &self.tokens[self.at..]
    }

    /// Whether the next token is this keyword.
    pub fn is(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| is_word(token, word))
    }

    /// Takes a keyword if it stands here.
    pub fn eat(&mut self, word: &str) -> bool {
        let found = self.is(word);
        self.at += usize::from(found);
        found
    }

    /// Takes several keywords if all stand here.
    pub fn eat_all(&mut self, words: &[&str]) -> bool {
        let mut ahead = *self;
        let found = words.iter().all(|word| ahead.eat(word));
        if found {
            *self = ahead;
        }
        found
    }

    /// Takes a keyword.
    pub fn expect(&mut self, word: &str) -> Result<(), Problem> {
        if self.eat(word) {
            Ok(())
        } else {
            Err(self.unexpected(&[word]))
        }
    }

    pub fn is_token(&self, token: &Token) -> bool {
        self.peek().is_some_and(|next| next.token == *token)
    }

    pub fn eat_token(&mut self, token: &Token) -> bool {
        let found = self.is_token(token);
        self.at += usize::from(found);
        found
    }

    /// Takes a name: folded to lower case, kept when quoted.
    pub fn name(&mut self, what: &str) -> Result<Name, Problem> {
        let at = self.position();
        match self.peek().map(|token| &token.token) {
            Some(Token::Word(word)) if matches!(word.quote_style, None | Some('"')) => {
                let folded = word.quote_style.is_none();
                let value = if folded {
                    word.value.to_lowercase()
                } else {
                    word.value.clone()
                };
                if value.is_empty() {
                    return Err(self.unexpected(&[what]));
                }
                self.at += 1;
                if self.is_token(&Token::Period) {
                    return Err(Problem::syntax(format!("{what} has no schema before it"))
                        .at(at.line, at.column)
                        .expected(what)
                        .hint("all objects share one namespace: write the bare name"));
                }
                Ok(Name { value, at })
            }
            _ => Err(self.unexpected(&[what])),
        }
    }

    /// Takes a string literal.
    pub fn string(&mut self, what: &str) -> Result<String, Problem> {
        let text = self.peek().and_then(|token| string_literal(&token.token));
        self.at += usize::from(text.is_some());
        text.ok_or_else(|| self.unexpected(&[what]))
    }

    /// Takes `( … )` and gives a cursor over what stands between.
    pub fn group(&mut self, what: &str) -> Result<Cursor<'a>, Problem> {
        if !self.is_token(&Token::LParen) {
            return Err(self.unexpected(&[what]));
        }
        let open = self.at;
        let mut depth = 0usize;
        for (offset, token) in self.tokens[open..].iter().enumerate() {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let close = open + offset;
                self.at = close + 1;
                let end = position(self.tokens[close].span.start);
                return Ok(Cursor::new(&self.tokens[open + 1..close], end));
            }
        }
        let at = self.position();
        Err(
            Problem::syntax("the parenthesis that opens here is not closed")
                .at(at.line, at.column)
                .expected("\")\""),
        )
    }

    /// A comma-separated list of names in parentheses, at least one.
    pub fn names(&mut self, what: &str) -> Result<Vec<Name>, Problem> {
        let mut inner = self.group(&format!("({what}, …)"))?;
        let mut out = vec![inner.name(what)?];
        while inner.eat_token(&Token::Comma) {
            out.push(inner.name(what)?);
        }
        inner.finish(&["\",\"", "\")\""])?;
        Ok(out)
    }

    /// Nothing may follow.
    pub fn finish(&self, expected: &[&str]) -> Result<(), Problem> {
        if self.is_done() {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    /// The problem that the next token is none of these.
    pub fn unexpected(&self, expected: &[&str]) -> Problem {
        let at = self.position();
        let found = self.peek().map(|token| token.token.to_string());
        let detail = match &found {
            Some(found) => format!("unexpected {}", quoted(found)),
            None => "the statement ends too early".to_owned(),
        };
        let problem = Problem::syntax(detail)
            .at(at.line, at.column)
            .expected(one_of(expected));
        match found.and_then(|found| nearest(&found, expected.iter().copied())) {
            Some(near) => problem.hint(format!("did you mean {near}?")),
            None => problem,
        }
    }
}

/// The text of a string literal, in any of PostgreSQL's forms.
pub(super) fn string_literal(token: &Token) -> Option<String> {
    match token {
        Token::SingleQuotedString(text)
        | Token::EscapedStringLiteral(text)
        | Token::UnicodeStringLiteral(text) => Some(text.clone()),
        Token::DollarQuotedString(quoted) => Some(quoted.value.clone()),
        _ => None,
    }
}

/// In double quotes, unless it is quoted already.
pub(super) fn quoted(text: &str) -> String {
    let bare = !text.starts_with(['"', '\'']);
    if bare {
        format!("\"{text}\"")
    } else {
        text.to_owned()
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// The candidate that was probably meant: at most a third of its letters differ.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            (1..=candidate.chars().count().div_ceil(3)).contains(distance)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which the swap of two neighbours counts once (Damerau 1964, restricted).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let change = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        assert_eq!(nearest("FORM", ["FROM", "ON"]), Some("FROM"));
        assert_eq!(
            nearest("anaylzer", ["ANALYZER", "RETAIN"]),
            Some("ANALYZER")
        );
        assert_eq!(nearest("xyz", ["ANALYZER", "K"]), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
