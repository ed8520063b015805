//! `search(index, question, k => 10, …)` behind FROM, and `AS OF`.
//!
//! Arguments are expressions without columns, folded when the statement is planned.

use datafusion_sql::sqlparser::ast::{
    Expr as Ast, FunctionArg, FunctionArgExpr, Value as AstValue,
};
use datafusion_sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use engine::limits::{K_MAX, QUESTION_CHARS_MAX};
use engine::model::{Schema, SqlType, Value};
use serde_json::{Map, Value as Json, json};

use super::ast::{folded, start_of};
use super::catalog::{CatalogView, include_schema, search_schema};
use super::cursor::{Cursor, nearest, one_of};
use super::plan::{AsOfClause, SearchCall};
use super::select::fold;
use super::types::whole;
use crate::definition::{Definition, IndexDef, ModelDef};
use crate::problem::{Position, Problem};

/// Results without `k`.
pub(super) const K_DEFAULT: usize = 10;
const NAMES: [&str; 7] = [
    "question",
    "vector",
    "k",
    "mode",
    "exact",
    "min_score",
    "per_document",
];

/// One argument: its name (positions have names too), its expression, its place.
struct Argument<'a> {
    name: String,
    expr: &'a Ast,
    at: Position,
}

/// Plans the call: itself, its columns, and those that may filter before k.
pub(super) fn plan_call(
    args: &[FunctionArg],
    at: Position,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Result<(SearchCall, Schema, Schema), Problem> {
    let arguments = arguments(args, at)?;
    let (index_name, index_at) = index_name(&arguments, at)?;
    let object = super::statement::known(catalog, &index_name, index_at, "an index")?;
    let Definition::Index(index) = &object.definition else {
        let kind = super::statement::with_article(object.definition.kind());
        return Err(
            Problem::invalid(format!("\"{index_name}\" is {kind}, not an index"))
                .at(index_at.line, index_at.column)
                .expected("the name of an index")
                .hint(format!(
                    "declare one: CREATE INDEX … ON {index_name} USING HYBRID (…)"
                )),
        );
    };
    let mut call = SearchCall {
        index: index_name,
        question: None,
        vector: None,
        k: K_DEFAULT,
        mode: None,
        exact: false,
        min_score: None,
        per_document: None,
        filter: None,
        params: Vec::new(),
    };
    for argument in &arguments[1..] {
        set(&mut call, argument, params)?;
    }
    check(&call, index, catalog, at)?;
    let (Some(output), Some(include)) = (
        search_schema(catalog, index),
        include_schema(catalog, index),
    ) else {
        return Err(Problem::not_found(format!(
            "\"{}\" reads a relation that is gone",
            call.index
        ))
        .at(index_at.line, index_at.column));
    };
    Ok((call, output, include))
}

fn arguments(args: &[FunctionArg], at: Position) -> Result<Vec<Argument<'_>>, Problem> {
    let mut out: Vec<Argument<'_>> = Vec::with_capacity(args.len());
    for arg in args {
        let place = start_of(arg).unwrap_or(at);
        let wrong = |detail: String| Problem::invalid(detail).at(place.line, place.column);
        let (name, value) = match arg {
            FunctionArg::Unnamed(value) => {
                let name = ["index", "question"]
                    .get(out.len())
                    .copied()
                    .unwrap_or_default();
                if name.is_empty() {
                    return Err(
                        wrong("search() takes two arguments without a name".to_owned())
                            .expected("search(index, question, k => 10)")
                            .hint("name the others: k => 5"),
                    );
                }
                (name.to_owned(), value)
            }
            FunctionArg::Named { name, arg, .. } => (folded(name), arg),
            FunctionArg::ExprNamed {
                name: Ast::Identifier(name),
                arg,
                ..
            } => (folded(name), arg),
            FunctionArg::ExprNamed { .. } => {
                return Err(wrong("an argument's name is a plain word".to_owned())
                    .expected("name => value"));
            }
        };
        let FunctionArgExpr::Expr(expr) = value else {
            return Err(wrong("* is not an argument of search()".to_owned())
                .expected("search(index, question, k => 10)"));
        };
        if name != "index" && !NAMES.contains(&&*name) {
            let problem = wrong(format!("search() has no argument {name}"))
                .expected(format!("index, {}", one_of(&NAMES)));
            return Err(match nearest(&name, NAMES) {
                Some(near) => problem.hint(format!("did you mean {near}?")),
                None => problem,
            });
        }
        if out.iter().any(|other| other.name == name) {
            return Err(wrong(format!("{name} is given twice")));
        }
        out.push(Argument {
            name,
            expr,
            at: place,
        });
    }
    Ok(out)
}

fn index_name(arguments: &[Argument<'_>], at: Position) -> Result<(String, Position), Problem> {
    let wrong = |at: Position| {
        Problem::invalid("the first argument of search() is an index")
            .at(at.line, at.column)
            .expected("search(index, question, k => 10)")
    };
    match arguments.first() {
        Some(first) if first.name == "index" => match first.expr {
            Ast::Identifier(ident) => Ok((folded(ident), first.at)),
            _ => Err(wrong(first.at).hint("write the index's name without quotes")),
        },
        Some(first) => Err(wrong(first.at)),
        None => Err(wrong(at)),
    }
}

fn set(call: &mut SearchCall, argument: &Argument<'_>, params: &[Json]) -> Result<(), Problem> {
    let name = &*argument.name;
    if matches!(name, "question" | "vector")
        && let Some(vector) = parameter_vector(argument.expr, params)
    {
        call.vector = Some(floats(&vector).ok_or_else(|| not_a_vector(argument.at))?);
        return Ok(());
    }
    let (value, sql_type) = fold(argument.expr, params)?;
    let wrong = |expected: &str| {
        Problem::invalid(format!("{name} cannot be {}", value.to_json(sql_type)))
            .at(argument.at.line, argument.at.column)
            .expected(expected)
    };
    match (name, &value) {
        ("question", Value::Text(text)) => {
            let chars = text.chars().count();
            if chars > QUESTION_CHARS_MAX {
                return Err(Problem::new(
                    413,
                    "question-too-long",
                    format!(
                        "the question has {chars} characters; the limit QUESTION_CHARS_MAX is {QUESTION_CHARS_MAX}"
                    ),
                )
                .at(argument.at.line, argument.at.column));
            }
            call.question = Some(text.to_string());
        }
        ("question", _) => return Err(wrong("a text, or a parameter with a vector")),
        ("vector", Value::Text(text)) => {
            let parsed = serde_json::from_str::<Vec<Json>>(text).ok();
            let vector = parsed.and_then(|items| floats(&items));
            call.vector = Some(vector.ok_or_else(|| not_a_vector(argument.at))?);
        }
        ("vector", _) => return Err(not_a_vector(argument.at)),
        ("k" | "per_document", Value::Int(count)) => {
            let count = usize::try_from(*count)
                .ok()
                .filter(|n| (1..=K_MAX).contains(n));
            let count = count.ok_or_else(|| wrong(&format!("a whole number from 1 to {K_MAX}")))?;
            if name == "k" {
                call.k = count
            } else {
                call.per_document = Some(count)
            }
        }
        ("k" | "per_document", _) => {
            return Err(wrong(&format!("a whole number from 1 to {K_MAX}")));
        }
        ("mode", Value::Text(mode)) if ["hybrid", "vector", "keyword"].contains(&&**mode) => {
            call.mode = Some(mode.to_string());
        }
        ("mode", _) => return Err(wrong("'hybrid', 'vector' or 'keyword'")),
        ("exact", Value::Bool(exact)) => call.exact = *exact,
        ("exact", _) => return Err(wrong("true or false")),
        ("min_score", Value::Float(score)) if score.is_finite() => call.min_score = Some(*score),
        #[allow(clippy::cast_precision_loss)]
        ("min_score", Value::Int(score)) => call.min_score = Some(*score as f64),
        ("min_score", _) => return Err(wrong("a number")),
        _ => return Err(wrong("an argument of search()")),
    }
    Ok(())
}

/// The array behind a `$n`, if that is what it is.
fn parameter_vector(expr: &Ast, params: &[Json]) -> Option<Vec<Json>> {
    let Ast::Value(value) = expr else { return None };
    let AstValue::Placeholder(id) = &value.value else {
        return None;
    };
    let at = id
        .strip_prefix('$')?
        .parse::<usize>()
        .ok()?
        .checked_sub(1)?;
    params.get(at)?.as_array().cloned()
}

#[allow(clippy::cast_possible_truncation)]
fn floats(items: &[Json]) -> Option<Vec<f32>> {
    let floats: Option<Vec<f32>> = items
        .iter()
        .map(|x| x.as_f64().map(|x| x as f32).filter(|x| x.is_finite()))
        .collect();
    floats.filter(|floats| !floats.is_empty())
}

fn not_a_vector(at: Position) -> Problem {
    Problem::invalid("this is not a vector")
        .at(at.line, at.column)
        .expected("an array of finite numbers as a parameter, or a text like '[0.1, 0.2]'")
}

/// What the index cannot answer is an error, not a degraded answer.
fn check(
    call: &SearchCall,
    index: &IndexDef,
    catalog: &dyn CatalogView,
    at: Position,
) -> Result<(), Problem> {
    let wrong = |detail: String| Err(Problem::invalid(detail).at(at.line, at.column));
    let name = &call.index;
    if call.question.is_none() && call.vector.is_none() {
        return wrong("search() needs a question".to_owned())
            .map_err(|problem| problem.expected("search(index, question, k => 10)"));
    }
    let (vector, keyword) = match call.mode.as_deref() {
        None => (index.vector, index.keyword),
        Some(mode) => (mode != "keyword", mode != "vector"),
    };
    for (wanted, has, leg) in [
        (vector, index.vector, "vector"),
        (keyword, index.keyword, "keyword"),
    ] {
        if wanted && !has {
            return wrong(format!("index \"{name}\" has no {leg} leg"));
        }
    }
    let model = index
        .model
        .as_deref()
        .and_then(|model| catalog.object(model));
    let dimensions = match model.map(|model| model.definition) {
        Some(Definition::Model(ModelDef::Column { dimensions })) => Some(dimensions),
        _ => None,
    };
    if dimensions.is_some() && vector && call.vector.is_none() {
        return wrong(format!(
            "index \"{name}\" has bare vectors: it cannot read a question"
        ))
        .map_err(|problem| problem.hint("give the question's vector: vector => $1"));
    }
    if call.question.is_none() && !vector {
        return wrong(format!("index \"{name}\" has no vector leg"))
            .map_err(|problem| problem.hint("give the question as a text"));
    }
    if let (Some(dimensions), Some(vector)) = (dimensions, &call.vector)
        && vector.len() != dimensions as usize
    {
        return wrong(format!(
            "the vector has {} dimensions, those of \"{name}\" have {dimensions}",
            vector.len()
        ));
    }
    Ok(())
}

/// Plans what stands behind `AS OF`.
pub(super) fn plan_as_of(
    tokens: &[TokenWithSpan],
    at: Position,
    end: Position,
    params: &[Json],
) -> Result<AsOfClause, Problem> {
    const TIME: &str = "engine time in microseconds, an RFC 3339 time, or AT LEAST …";
    let mut cursor = Cursor::new(tokens, end);
    if cursor.is_done() {
        return Err(Problem::syntax("AS OF needs a time")
            .at(end.line, end.column)
            .expected(TIME));
    }
    if cursor.eat_all(&["AT", "LEAST"]) {
        return plan_at_least(&mut cursor, end, params);
    }
    let expr = parse_last(cursor.rest(), end)?;
    let wrong = |detail: String| {
        Problem::invalid(detail)
            .at(at.line, at.column)
            .expected(TIME)
    };
    match fold(&expr, params)? {
        (Value::Int(time), _) if time >= 0 => Ok(AsOfClause::Time(time.unsigned_abs())),
        (Value::Timestamp(time), SqlType::TimestampTz) if time >= 0 => {
            Ok(AsOfClause::Time(time.unsigned_abs()))
        }
        (Value::Text(text), _) => match text.parse::<jiff::Timestamp>() {
            Ok(_) => Ok(AsOfClause::Text(text.to_string())),
            Err(_) => Err(wrong(format!("\"{text}\" is not a time"))
                .hint("write it with its zone: '2026-11-21T10:00:00Z'")),
        },
        (value, sql_type) => Err(wrong(format!(
            "AS OF cannot be {}",
            value.to_json(sql_type)
        ))),
    }
}

/// `AS OF` is the last clause: say so when something follows.
fn parse_last(tokens: &[TokenWithSpan], end: Position) -> Result<Ast, Problem> {
    const CLAUSES: [&str; 6] = ["WHERE", "ORDER", "LIMIT", "OFFSET", "FROM", "GROUP"];
    let clause = tokens.iter().find(|token| {
        CLAUSES
            .iter()
            .any(|word| super::token::is_word(token, word))
    });
    if let Some(clause) = clause {
        let at = super::token::position(clause.span.start);
        return Err(
            Problem::syntax(format!("{} stands behind AS OF", clause.token))
                .at(at.line, at.column)
                .expected("AS OF as the last clause of the statement"),
        );
    }
    super::ast::parse_expr(tokens, end)
}

fn plan_at_least(
    cursor: &mut Cursor<'_>,
    end: Position,
    params: &[Json],
) -> Result<AsOfClause, Problem> {
    const EXPECTED: &str =
        "a token, offset('source', partition, offset) or lsn('source', '0/16B3748')";
    let at = cursor.position();
    let mut ahead = *cursor;
    let (is_offset, is_lsn) = (ahead.eat("OFFSET"), ahead.eat("LSN"));
    if (is_offset || is_lsn) && ahead.is_token(&Token::LParen) {
        let mut inner = ahead.group("(")?;
        let source = inner.string("a source's name in single quotes")?;
        comma(&mut inner)?;
        let mut position = Map::new();
        position.insert("source".to_owned(), Json::from(source));
        if is_lsn {
            position.insert(
                "lsn".to_owned(),
                Json::from(inner.string("an LSN like '0/16B3748'")?),
            );
        } else {
            let partition = whole(&mut inner, "a partition's number")?;
            comma(&mut inner)?;
            let offset = whole(&mut inner, "an offset")?;
            position.insert(
                "offsets".to_owned(),
                json!({ partition.to_string(): offset }),
            );
        }
        inner.finish(&["\")\""])?;
        ahead.finish(&["the end of the statement"])?;
        return Ok(AsOfClause::AtLeastPosition(position));
    }
    if cursor.is_done() {
        return Err(cursor.unexpected(&[EXPECTED]));
    }
    let expr = parse_last(cursor.rest(), end)?;
    match fold(&expr, params)? {
        (Value::Text(token), _) => Ok(AsOfClause::AtLeastToken(token.to_string())),
        _ => Err(Problem::invalid("this is not a position")
            .at(at.line, at.column)
            .expected(EXPECTED)),
    }
}

fn comma(cursor: &mut Cursor<'_>) -> Result<(), Problem> {
    if cursor.eat_token(&Token::Comma) {
        Ok(())
    } else {
        Err(cursor.unexpected(&["\",\""]))
    }
}
