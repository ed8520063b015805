//! Text to tokens to statements.
//!
//! A text is cut into statements *before* anything is parsed, at every `;` that is a token of its
//! own: the expression parser stops at its first error, so this is what lets one file report
//! all of its errors. Tokens keep their line and column, and every later error points with them.
//!
//! `AS OF …` is cut off here as the last clause of a statement, since the SQL parser would take it
//! for an alias.
//!
//! Limits: a lexical error (an unterminated string) ends the text, because where the next statement
//! starts can no longer be known; what stands before it is still reported.

use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion_sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use crate::problem::{Position, Problem};

/// One statement of a text.
#[derive(Debug, Clone)]
pub struct SpannedStatement {
    /// Where it starts.
    pub position: Position,
    /// Just behind its last token.
    pub end: Position,
    /// As it was written, without the semicolon.
    pub text: String,
    /// Its tokens without white space, comments and `AS OF …`.
    pub(super) tokens: Vec<TokenWithSpan>,
    /// The tokens behind `AS OF`, with the position of `AS`.
    pub(super) as_of: Option<(Position, Vec<TokenWithSpan>)>,
    /// Why its tokens could not be read.
    pub(super) lexical: Option<Problem>,
}

/// Cuts a text into statements. Empty ones are left out. Linear in the text.
pub fn split(text: &str) -> Vec<SpannedStatement> {
    let mut tokens = Vec::new();
    let result =
        Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location_into_buf(&mut tokens);
    tokens.retain(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF));
    let lines = Lines::new(text);
    let mut out: Vec<SpannedStatement> = tokens
        .split(|t| t.token == Token::SemiColon)
        .filter(|tokens| !tokens.is_empty())
        .map(|tokens| statement(tokens, text, &lines))
        .collect();
    if let Err(error) = result {
        let problem =
            lexical_problem(&error.message).at(error.location.line, error.location.column);
        // The statement in which the text broke off is the last one, unless that ended before.
        let broken = tokens.last().is_some_and(|t| t.token != Token::SemiColon);
        match out.last_mut().filter(|_| broken) {
            Some(last) => last.lexical = Some(problem),
            None => out.push(SpannedStatement {
                position: position(error.location),
                end: position(error.location),
                text: String::new(),
                tokens: Vec::new(),
                as_of: None,
                lexical: Some(problem),
            }),
        }
    }
    out
}

fn statement(tokens: &[TokenWithSpan], text: &str, lines: &Lines) -> SpannedStatement {
    let (first, last) = (&tokens[0], &tokens[tokens.len() - 1]);
    let range = lines.offset(text, first.span.start)..lines.offset(text, last.span.end);
    let (tokens, as_of) = cut_as_of(tokens);
    SpannedStatement {
        position: position(first.span.start),
        end: position(last.span.end),
        text: text.get(range).unwrap_or_default().to_owned(),
        tokens: tokens.to_vec(),
        as_of,
        lexical: None,
    }
}

/// Cuts at the last `AS OF` outside parentheses.
#[allow(clippy::type_complexity)]
fn cut_as_of(
    tokens: &[TokenWithSpan],
) -> (&[TokenWithSpan], Option<(Position, Vec<TokenWithSpan>)>) {
    let mut depth = 0i64;
    let mut found = None;
    for (at, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ if depth == 0
                && is_word(token, "AS")
                && tokens.get(at + 1).is_some_and(|next| is_word(next, "OF")) =>
            {
                found = Some(at);
            }
            _ => {}
        }
    }
    match found {
        Some(at) => {
            let place = position(tokens[at].span.start);
            (&tokens[..at], Some((place, tokens[at + 2..].to_vec())))
        }
        None => (tokens, None),
    }
}

/// Whether a token is this word, unquoted, in any case.
pub(super) fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// A place in the text.
pub(super) fn position(at: Location) -> Position {
    Position {
        line: at.line.max(1),
        column: at.column.max(1),
    }
}

fn lexical_problem(message: &str) -> Problem {
    let problem = Problem::syntax(format!(
        "cannot read the text here: {}",
        lower_first(message)
    ));
    if message.contains("nterminated") {
        problem
            .expected("the closing quote or comment end")
            .hint("close it; inside a string a quote is written twice: 'it''s'")
    } else {
        problem.expected("a word, a number, a string or an operator")
    }
}

/// The first letter in lower case, for messages of libraries inside our own sentences.
pub(super) fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Byte offsets of line starts.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Lines {
        let starts = text
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(at, _)| at + 1);
        Lines(std::iter::once(0).chain(starts).collect())
    }

    fn offset(&self, text: &str, at: Location) -> usize {
        let line = usize::try_from(at.line.max(1) - 1).unwrap_or(usize::MAX);
        let Some(&start) = self.0.get(line) else {
            return text.len();
        };
        let column = usize::try_from(at.column.max(1) - 1).unwrap_or(usize::MAX);
        let rest = &text[start..];
        rest.char_indices()
            .nth(column)
            .map_or(text.len(), |(byte, _)| start + byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_keep_their_places_and_text() {
        let text = "SHOW SOURCES; -- one\n\n  SELECT ';' /* ; */ AS x\nFROM é AS OF 5 ;;";
        let statements = split(text);
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0].text, "SHOW SOURCES");
        assert_eq!(statements[1].position, Position { line: 3, column: 3 });
        assert_eq!(
            statements[1].text,
            "SELECT ';' /* ; */ AS x\nFROM é AS OF 5"
        );
        let (at, clause) = statements[1].as_of.clone().unwrap();
        assert_eq!((at, clause.len()), (Position { line: 4, column: 8 }, 1));
    }

    #[test]
    fn an_unterminated_string_spares_what_stands_before_it() {
        let statements = split("SHOW SOURCES; SELECT 'abc");
        assert_eq!(statements.len(), 2);
        assert!(statements[0].lexical.is_none());
        assert_eq!(
            statements[1]
                .lexical
                .as_ref()
                .unwrap()
                .position
                .unwrap()
                .column,
            22
        );
    }
}
