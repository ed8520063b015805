//! The SQL parser's side of an expression: parsing with our errors, names folded and written in one
//! canonical way, conjuncts taken apart.
//!
//! Canonical text is what plans store and definitions compare: the same expression written with
//! other spacing, letter case or table alias is the same text.

use std::ops::ControlFlow;

use datafusion_sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, ObjectName, ObjectNamePart, Query, Spanned, VisitMut,
    visit_expressions_mut,
};
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion_sql::sqlparser::keywords::RESERVED_FOR_COLUMN_ALIAS;
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::{TokenWithSpan, Tokenizer};

use super::token::{lower_first, position};
use crate::problem::{Position, Problem};

/// Nesting of parentheses, functions and operators; the parser works by recursion.
const NESTING_MAX: usize = 48;
/// Tokens of one expression or query: long chains (`a OR b OR …`) become deep trees.
const TOKENS_MAX: usize = 4_096;

/// Parses a whole query.
pub(super) fn parse_query(tokens: &[TokenWithSpan], end: Position) -> Result<Box<Query>, Problem> {
    parse(tokens, end, |parser| parser.parse_query())
}

/// Parses a whole expression.
pub(super) fn parse_expr(tokens: &[TokenWithSpan], end: Position) -> Result<Expr, Problem> {
    parse(tokens, end, |parser| parser.parse_expr())
}

/// Parses an expression that stands alone, like a request's `where`.
pub(super) fn parse_expr_text(text: &str) -> Result<Expr, Problem> {
    let (tokens, end) = tokenize(text)?;
    parse_expr(&tokens, end)
}

/// Parses a query that stands alone, like a stored view's.
pub(super) fn parse_query_text(text: &str) -> Result<Box<Query>, Problem> {
    let (tokens, end) = tokenize(text)?;
    parse_query(&tokens, end)
}

fn tokenize(text: &str) -> Result<(Vec<TokenWithSpan>, Position), Problem> {
    let mut statements = super::token::split(text);
    if statements.len() > 1 {
        let at = statements[1].position;
        return Err(Problem::syntax("unexpected \";\"")
            .at(at.line, at.column)
            .expected("one expression"));
    }
    match statements.pop() {
        Some(mut statement) => match statement.lexical.take() {
            Some(problem) => Err(problem),
            None => Ok((statement.tokens, statement.end)),
        },
        None => Err(Problem::syntax("the text is empty")
            .at(1, 1)
            .expected("an expression")),
    }
}

fn parse<T>(
    tokens: &[TokenWithSpan],
    end: Position,
    step: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
) -> Result<T, Problem> {
    if tokens.len() > TOKENS_MAX {
        let at = position(tokens[0].span.start);
        return Err(Problem::invalid(format!(
            "this has {} words and signs; the limit is {TOKENS_MAX}",
            tokens.len()
        ))
        .at(at.line, at.column)
        .hint("use IN (…) instead of a long chain of OR, or parameters"));
    }
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect)
        .with_recursion_limit(NESTING_MAX)
        .with_tokens_with_locations(tokens.to_vec());
    let parsed = step(&mut parser).map_err(|error| parser_problem(&error, end))?;
    match tokens.get(parser.index()) {
        None => Ok(parsed),
        Some(next) => {
            let at = position(next.span.start);
            let found = super::cursor::quoted(&next.token.to_string());
            Err(Problem::syntax(format!("unexpected {found}"))
                .at(at.line, at.column)
                .expected("the end of the statement, an operator or the next clause"))
        }
    }
}

/// `Expected: X, found: Y at Line: 1, Column: 8` in our words.
fn parser_problem(error: &ParserError, end: Position) -> Problem {
    let message = match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
        ParserError::RecursionLimitExceeded => {
            return Problem::invalid(format!("nested deeper than {NESTING_MAX} levels"))
                .at(end.line, end.column)
                .hint("write it with fewer parentheses");
        }
    };
    let (message, at) = match message.rsplit_once(" at Line: ") {
        Some((message, place)) => (message, parse_place(place)),
        None => (&**message, None),
    };
    let at = at.filter(|at| at.line > 0).unwrap_or(end);
    let parts = message
        .strip_prefix("Expected: ")
        .and_then(|rest| rest.split_once(", found: "));
    match parts {
        Some((expected, "EOF")) => {
            Problem::syntax("the statement ends too early").expected(expected)
        }
        Some((expected, found)) => {
            Problem::syntax(format!("unexpected {}", super::cursor::quoted(found)))
                .expected(expected)
        }
        None => Problem::syntax(lower_first(message)),
    }
    .at(at.line, at.column)
}

fn parse_place(place: &str) -> Option<Position> {
    let (line, column) = place.split_once(", Column: ")?;
    Some(Position {
        line: line.trim().parse().ok()?,
        column: column.trim().parse().ok()?,
    })
}

/// Where a node of the tree starts, if it knows.
pub(super) fn start_of(node: &impl Spanned) -> Option<Position> {
    let start = node.span().start;
    (start.line > 0).then(|| position(start))
}

/// Folds names, takes the table's name or alias off columns, in place.
///
/// `qualifiers`: what may stand before a column's name.
pub(super) fn canonical<N: VisitMut>(node: &mut N, qualifiers: &[String]) -> Result<(), Problem> {
    let flow = visit_expressions_mut(node, |expr| {
        match expr {
            Expr::Identifier(ident) => fold(ident),
            Expr::CompoundIdentifier(parts) => {
                let mut names: Vec<String> = parts.iter().map(folded).collect();
                let column = parts.len() - 1;
                let qualifier = names.drain(..column).collect::<Vec<_>>().join(".");
                if !qualifiers.contains(&qualifier) {
                    return ControlFlow::Break(Box::new(unknown_qualifier(expr, &qualifier)));
                }
                let mut ident = parts[column].clone();
                fold(&mut ident);
                *expr = Expr::Identifier(ident);
            }
            Expr::Function(function) => {
                function.name.0.iter_mut().for_each(|part| {
                    if let ObjectNamePart::Identifier(ident) = part {
                        fold(ident);
                    }
                });
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(problem) => Err(*problem),
    }
}

fn unknown_qualifier(expr: &Expr, qualifier: &str) -> Problem {
    let problem = Problem::invalid(format!("there is no table \"{qualifier}\" in this query"))
        .expected("the relation of FROM, or its alias");
    match start_of(expr) {
        Some(at) => problem.at(at.line, at.column),
        None => problem,
    }
}

fn fold(ident: &mut Ident) {
    let value = folded(ident);
    let plain = ident_sql(&value) == value;
    ident.value = value;
    ident.quote_style = (!plain).then_some('"');
}

/// A name's meaning: lower case unless it was quoted.
pub(super) fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// `schema.name`, folded; `None` when a part is not a name.
pub(super) fn object_name(name: &ObjectName) -> Option<String> {
    let parts: Option<Vec<String>> = name
        .0
        .iter()
        .map(|part| part.as_ident().map(folded))
        .collect();
    parts.map(|parts| parts.join("."))
}

/// A name as SQL text: quoted when it must be.
pub(super) fn ident_sql(name: &str) -> String {
    let mut chars = name.chars();
    let plain = chars
        .next()
        .is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && is_plain_word(name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Whether a word that looks like a name is read as a column, not as syntax.
fn is_plain_word(name: &str) -> bool {
    let dialect = PostgreSqlDialect {};
    let Ok(tokens) = Tokenizer::new(&dialect, name).tokenize_with_location() else {
        return false;
    };
    let reserved = match tokens.first().map(|token| &token.token) {
        Some(datafusion_sql::sqlparser::tokenizer::Token::Word(word)) => {
            RESERVED_FOR_COLUMN_ALIAS.contains(&word.keyword)
        }
        _ => true,
    };
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    !reserved && matches!(parser.parse_expr(), Ok(Expr::Identifier(_)))
}

/// Takes `a AND b AND c` apart, left to right.
pub(super) fn conjuncts(expr: Expr) -> Vec<Expr> {
    let mut out = Vec::new();
    let mut open = vec![expr];
    while let Some(expr) = open.pop() {
        match expr {
            Expr::BinaryOp {
                left,
                op: BinaryOperator::And,
                right,
            } => {
                open.push(*right);
                open.push(*left);
            }
            Expr::Nested(inner) if is_and(&inner) => open.push(*inner),
            other => out.push(other),
        }
    }
    out
}

fn is_and(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::BinaryOp {
            op: BinaryOperator::And,
            ..
        }
    )
}

/// Puts conjuncts together again, as text; each that binds weaker than `AND` in parentheses.
pub(super) fn conjunction(exprs: &[Expr]) -> Option<String> {
    let parts: Vec<String> = exprs
        .iter()
        .map(|expr| match expr {
            Expr::BinaryOp {
                op: BinaryOperator::Or | BinaryOperator::Xor,
                ..
            } if exprs.len() > 1 => {
                format!("({expr})")
            }
            _ => expr.to_string(),
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(" AND "))
}
