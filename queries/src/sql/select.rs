//! `SELECT` over one collection, one `search()`, a system collection, or nothing.
//!
//! A query that is taken apart ([`super::query`]) becomes a [`SelectPlan`]; a
//! [`super::SelectProgram`] turns the relation's rows into the reply's.
//!
//! Conjuncts of a WHERE over one `search()` that name only included columns become the search's own
//! filter, before k; the others filter what the search returns (`docs/api.md`, search in SQL).

use datafusion_sql::sqlparser::ast::{BinaryOperator, Expr as Ast, Query, Value as AstValue};
use engine::error::DataError;
use engine::model::{Key, RowCodec, Schema, SqlType, Value};
use serde_json::Value as Json;

use super::ast::conjunction;
use super::catalog::{CatalogView, relation_schema};
use super::expr::{Scope, Typed, is_constant};
use super::plan::{From, SearchCall, SelectPlan, SortKey, reply_columns};
use super::program::{ProgramSpec, RowProgram, is_sortable};
use super::query::{Parts, PartsPlan, Relation, output, placed, refuse};
use crate::problem::Problem;

/// Plans a query; `AS OF` is added by the caller.
pub(super) fn plan_select(
    query: Query,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Result<SelectPlan, Problem> {
    let parts = Parts::of(query)?;
    let (mut from, input, include) = resolve(&parts.relation, catalog, params)?;
    let scope = Scope::new(&input)?;
    let (before, after) = match &mut from {
        From::Search(_) => split_filter(&scope, &parts.conjuncts, &include, params)?,
        _ => (Vec::new(), parts.conjuncts.clone()),
    };
    if let From::Search(call) = &mut from {
        call.filter = conjunction(&before);
        call.params = if before.is_empty() {
            Vec::new()
        } else {
            params.to_vec()
        };
    }
    if let From::Collection { kind, key, .. } = &mut from
        && matches!(&**kind, "source" | "view")
    {
        *key = only_key(&input, &after, params);
    }
    let mut plan = parts.plan_over(scope, after, params)?;
    let visible = plan.outputs.len();
    let order_by = sort_keys(&parts, &mut plan, params)?;
    let limit = fold_count(parts.limit.as_ref(), "LIMIT", params)?;
    let offset = fold_count(parts.offset.as_ref(), "OFFSET", params)?.unwrap_or(0);
    let typed: Vec<(&str, Typed)> = plan
        .outputs
        .iter()
        .map(|output| (&*output.name, output.typed.clone()))
        .collect();
    let (_, schema) = RowProgram::of_typed(&plan.scope, plan.filter.as_ref(), &typed)?;
    Ok(SelectPlan {
        from,
        program: ProgramSpec {
            input,
            filter: plan.filter_text(),
            outputs: plan
                .outputs
                .iter()
                .map(|o| (o.name.clone(), o.text.clone()))
                .collect(),
            params: params.to_vec(),
        },
        order_by,
        limit,
        offset,
        as_of: None,
        columns: reply_columns(&schema, visible),
    })
}

/// The key that every row must have which passes the conjuncts: `key column = constant`, where the
/// comparison is the key's own (texts, whole numbers; a cast may make several keys one value). The
/// filter still decides whether that row passes. Keys of several columns are not looked for: a view
/// may have renamed what they are written with.
fn only_key(input: &Schema, conjuncts: &[Ast], params: &[Json]) -> Option<Key> {
    let [at] = input.key[..] else { return None };
    let column = &input.columns[at];
    conjuncts.iter().find_map(|conjunct| {
        let Ast::BinaryOp {
            left,
            op: BinaryOperator::Eq,
            right,
        } = conjunct
        else {
            return None;
        };
        let is_key =
            |side: &Ast| matches!(side, Ast::Identifier(name) if name.value == column.name);
        let constant = match (is_key(left), is_key(right)) {
            (true, false) => right,
            (false, true) => left,
            _ => return None,
        };
        // What is no constant, or no value at all, is for the filter to say.
        let (value, sql_type) = fold(constant, params).ok()?;
        let is_own = match (&value, column.sql_type) {
            (Value::Text(_), SqlType::Text) => sql_type == SqlType::Text,
            (Value::Int(_), SqlType::Int4 | SqlType::Int8) => true,
            _ => false,
        };
        is_own.then(|| Key::from_json(&value.to_json(column.sql_type)))
    })
}

/// What is read, its columns, and the columns that may filter before k.
fn resolve(
    relation: &Relation,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Result<(From, Schema, Schema), Problem> {
    match relation {
        Relation::Nothing => Ok((From::Values, Schema::default(), Schema::default())),
        Relation::Search { args, at } => {
            let (call, output, include): (SearchCall, Schema, Schema) =
                super::search::plan_call(args, *at, catalog, params)?;
            Ok((From::Search(call), output, include))
        }
        Relation::Named { name, at } => {
            if let Some(system) = name.strip_prefix("headwater.") {
                let Some(schema) = relation_schema(catalog, name) else {
                    return Err(super::statement::unknown_system(system, *at));
                };
                return Ok((
                    From::System {
                        name: system.to_owned(),
                    },
                    schema,
                    Schema::default(),
                ));
            }
            let object = super::statement::known(catalog, name, *at, "a relation")?;
            let kind = object.definition.kind().to_owned();
            let Some(schema) = relation_schema(catalog, name) else {
                return Err(
                    Problem::invalid(format!("\"{name}\" is a {kind}: it has no rows"))
                        .at(at.line, at.column)
                        .expected("a source, a view, an index, a cache or search(…)"),
                );
            };
            Ok((
                From::Collection {
                    name: name.clone(),
                    kind,
                    key: None,
                },
                schema,
                Schema::default(),
            ))
        }
    }
}

/// Conjuncts before k, and those after.
fn split_filter(
    scope: &Scope,
    conjuncts: &[Ast],
    include: &Schema,
    params: &[Json],
) -> Result<(Vec<Ast>, Vec<Ast>), Problem> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for conjunct in conjuncts {
        let typed = scope.plan_condition(conjunct, params)?;
        let included = typed
            .columns
            .iter()
            .all(|column| include.position(column).is_some());
        let side = if included && typed.volatile.is_none() {
            &mut before
        } else {
            &mut after
        };
        side.push(conjunct.clone());
    }
    Ok((before, after))
}

/// `ORDER BY`: positions, names of outputs, or expressions, which become hidden outputs.
fn sort_keys(
    parts: &Parts,
    plan: &mut PartsPlan,
    params: &[Json],
) -> Result<Vec<SortKey>, Problem> {
    let visible = plan.outputs.len();
    let mut keys = Vec::with_capacity(parts.order_by.len());
    for key in &parts.order_by {
        if key.with_fill.is_some() {
            return Err(refuse(Some(&key.expr), "WITH FILL is", ""));
        }
        let named = match &key.expr {
            Ast::Value(value) => match &value.value {
                AstValue::Number(text, _) => {
                    let number = text.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
                    let Some(at) = number.filter(|at| *at < visible) else {
                        let problem = Problem::invalid(format!("there is no output {text}"))
                            .expected(format!("a position from 1 to {visible}"));
                        return Err(placed(problem, &key.expr));
                    };
                    Some(at)
                }
                _ => None,
            },
            Ast::Identifier(ident) => {
                let mut outputs = plan.outputs[..visible].iter();
                outputs.position(|output| output.given_name.as_ref() == Some(&ident.value))
            }
            _ => None,
        };
        let at = match named {
            Some(at) => at,
            None => {
                plan.outputs
                    .push(output(&key.expr, None, &plan.scope, params)?);
                plan.outputs.len() - 1
            }
        };
        let sql_type = plan.outputs[at].typed.sql_type;
        if !is_sortable(sql_type) {
            let problem = Problem::invalid(format!("values of type {sql_type} have no order"));
            return Err(placed(problem, &key.expr));
        }
        let descending = key.options.asc == Some(false);
        let nulls_first = key.options.nulls_first.unwrap_or(descending);
        keys.push(SortKey {
            output: at,
            sql_type,
            descending,
            nulls_first,
        });
    }
    Ok(keys)
}

fn fold_count(expr: Option<&Ast>, what: &str, params: &[Json]) -> Result<Option<u64>, Problem> {
    let Some(expr) = expr else { return Ok(None) };
    match fold(expr, params)? {
        (Value::Int(count), _) if count >= 0 => Ok(u64::try_from(count).ok()),
        (Value::Null, _) => Ok(None),
        (value, sql_type) => {
            let problem = Problem::invalid(format!("{what} cannot be {}", value.to_json(sql_type)))
                .expected("a whole number from 0");
            Err(placed(problem, expr))
        }
    }
}

/// The value of an expression without columns.
pub(super) fn fold(expr: &Ast, params: &[Json]) -> Result<(Value, SqlType), Problem> {
    let scope = Scope::new(&Schema::default())?;
    let typed = scope.plan(expr, params)?;
    if !is_constant(&typed) {
        let problem = Problem::invalid("this must not change from call to call")
            .expected("a literal, a parameter or an expression of them");
        return Err(placed(problem, expr));
    }
    let sql_type = typed.sql_type;
    let (program, schema) = RowProgram::of_typed(&scope, None, &[("value", typed)])?;
    match program.apply_to_nothing(0) {
        Ok(row) => {
            let row = row.expect("no filter holds it back");
            let codec = RowCodec::new(schema).expect("compiled above");
            Ok((codec.unpack(&row).pop().expect("one column"), sql_type))
        }
        Err(error) => Err(placed(row_problem(&error), expr)),
    }
}

/// A row's error as the question's.
pub(super) fn row_problem(error: &DataError) -> Problem {
    let problem = Problem::new(422, &error.code, error.detail.clone());
    match &error.hint {
        Some(hint) => problem.hint(hint.clone()),
        None => problem,
    }
}
