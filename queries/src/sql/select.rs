//! `SELECT` over one collection, one `search()`, a system collection, or nothing.
//!
//! The SQL parser reads the query; everything that is more than a filter, outputs, an order and a
//! limit over one relation is refused with its place. What is left becomes a [`SelectPlan`]; a
//! [`super::SelectProgram`] turns the relation's rows into the reply's.
//!
//! Conjuncts of a WHERE over one `search()` that name only included columns become the search's own
//! filter, before k; the others filter what the search returns (`docs/api.md`, search in SQL).

use datafusion_expr::Operator;
use datafusion_sql::sqlparser::ast::{
    BinaryOperator, Expr as Ast, FunctionArg, GroupByExpr, LimitClause, OrderByExpr, OrderByKind,
    Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Spanned, TableFactor,
    Value as AstValue, WildcardAdditionalOptions,
};
use engine::error::DataError;
use engine::model::{Key, RowCodec, Schema, SqlType, Value};
use serde_json::Value as Json;

use super::ast::{canonical, conjunction, conjuncts, folded, ident_sql, object_name, start_of};
use super::catalog::{CatalogView, relation_schema};
use super::expr::{Scope, Typed, is_constant};
use super::plan::{From, SearchCall, SelectPlan, SortKey, reply_columns};
use super::program::{ProgramSpec, RowProgram, is_sortable};
use crate::problem::{Position, Problem};

/// What stands behind `FROM`.
#[derive(Debug)]
pub(super) enum Relation {
    Nothing,
    Named {
        name: String,
        at: Position,
    },
    Search {
        args: Vec<FunctionArg>,
        at: Position,
    },
}

/// A query, taken apart.
#[derive(Debug)]
pub(super) struct Parts {
    pub relation: Relation,
    pub order_by: Vec<OrderByExpr>,
    pub limit: Option<Ast>,
    pub offset: Option<Ast>,
    projection: Vec<SelectItem>,
    conjuncts: Vec<Ast>,
    qualifiers: Vec<String>,
}

/// One output column.
#[derive(Debug, Clone)]
pub(super) struct Output {
    /// The alias, or the name of a plain column.
    pub given_name: Option<String>,
    /// What the reply calls it.
    pub name: String,
    /// Canonical text.
    pub text: String,
    pub typed: Typed,
    pub at: Option<Position>,
}

/// A planned filter with outputs.
pub(super) struct PartsPlan {
    pub scope: Scope,
    pub filter: Option<Typed>,
    pub outputs: Vec<Output>,
    conjuncts: Vec<Ast>,
}

impl PartsPlan {
    pub fn filter_text(&self) -> Option<String> {
        conjunction(&self.conjuncts)
    }

    /// The canonical text of the whole query.
    pub fn query_text(&self, from: &str) -> String {
        let outputs: Vec<String> = self
            .outputs
            .iter()
            .map(|output| match ident_sql(&output.name) {
                name if name == output.text => name,
                name => format!("{} AS {name}", output.text),
            })
            .collect();
        let filter = self
            .filter_text()
            .map(|text| format!(" WHERE {text}"))
            .unwrap_or_default();
        format!(
            "SELECT {} FROM {}{filter}",
            outputs.join(", "),
            ident_sql(from)
        )
    }
}

fn refuse(node: Option<&impl Spanned>, detail: &str, hint: &str) -> Problem {
    let problem = Problem::not_supported(format!("{detail} not supported by this version"));
    let problem = if hint.is_empty() {
        problem
    } else {
        problem.hint(hint)
    };
    match node.and_then(start_of) {
        Some(at) => problem.at(at.line, at.column),
        None => problem,
    }
}

impl Parts {
    /// Takes a query apart and refuses what this version cannot do.
    pub fn of(query: Query) -> Result<Parts, Problem> {
        let whole = start_of(&query);
        Parts::take(query).map_err(|problem| match (problem.position, whole) {
            (None, Some(at)) => problem.at(at.line, at.column),
            _ => problem,
        })
    }

    fn take(query: Query) -> Result<Parts, Problem> {
        if let Some(with) = &query.with {
            return Err(refuse(Some(with), "WITH is", "declare a view"));
        }
        if query.fetch.is_some() {
            return Err(refuse(None::<&Query>, "FETCH is", "write LIMIT n"));
        }
        if !query.locks.is_empty()
            || query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty()
        {
            return Err(refuse(
                None::<&Query>,
                "a clause behind the query is",
                "leave it out",
            ));
        }
        let order_by = match query.order_by {
            None => Vec::new(),
            Some(order) => match order.kind {
                OrderByKind::Expressions(keys) if order.interpolate.is_none() => keys,
                _ => {
                    return Err(refuse(
                        None::<&Query>,
                        "ORDER BY ALL is",
                        "name the columns",
                    ));
                }
            },
        };
        let (limit, offset) = match query.limit_clause {
            None => (None, None),
            Some(LimitClause::LimitOffset {
                limit,
                offset,
                limit_by,
            }) if limit_by.is_empty() => (limit, offset.map(|offset| offset.value)),
            Some(other) => {
                return Err(refuse(
                    Some(&other),
                    "this LIMIT is",
                    "write LIMIT n OFFSET m",
                ));
            }
        };
        let select = match *query.body {
            SetExpr::Select(select) => *select,
            other => {
                return Err(refuse(
                    Some(&other),
                    "UNION, VALUES or a nested query is",
                    "",
                ));
            }
        };
        reject_clauses(&select)?;
        let (relation, qualifiers) = relation(&select)?;
        let mut parts = Parts {
            relation,
            order_by,
            limit,
            offset,
            projection: select.projection,
            conjuncts: select.selection.map(conjuncts).unwrap_or_default(),
            qualifiers,
        };
        parts.canonical()?;
        Ok(parts)
    }

    fn canonical(&mut self) -> Result<(), Problem> {
        for expr in &mut self.conjuncts {
            canonical(expr, &self.qualifiers)?;
        }
        for item in &mut self.projection {
            canonical(item, &self.qualifiers)?;
        }
        for key in &mut self.order_by {
            canonical(&mut key.expr, &self.qualifiers)?;
        }
        Ok(())
    }

    /// Plans all conjuncts and outputs over the relation's columns.
    pub fn plan(&self, input: &Schema, params: &[Json]) -> Result<PartsPlan, Problem> {
        self.plan_over(Scope::new(input)?, self.conjuncts.clone(), params)
    }

    fn plan_over(
        &self,
        scope: Scope,
        conjuncts: Vec<Ast>,
        params: &[Json],
    ) -> Result<PartsPlan, Problem> {
        let filter = plan_filter(&scope, &conjuncts, params)?;
        let mut outputs = Vec::new();
        for item in &self.projection {
            self.outputs(item, &scope, params, &mut outputs)?;
        }
        Ok(PartsPlan {
            scope,
            filter,
            outputs,
            conjuncts,
        })
    }

    fn outputs(
        &self,
        item: &SelectItem,
        scope: &Scope,
        params: &[Json],
        out: &mut Vec<Output>,
    ) -> Result<(), Problem> {
        let all = |options: &WildcardAdditionalOptions| {
            if *options == WildcardAdditionalOptions::default() || is_bare(options) {
                Ok(())
            } else {
                Err(refuse(
                    Some(item),
                    "* with EXCEPT, REPLACE or the like is",
                    "name the columns",
                ))
            }
        };
        match item {
            SelectItem::UnnamedExpr(expr) => out.push(output(expr, None, scope, params)?),
            SelectItem::ExprWithAlias { expr, alias } => {
                out.push(output(expr, Some(folded(alias)), scope, params)?);
            }
            SelectItem::Wildcard(options) => {
                all(options)?;
                self.wildcard(item, scope, out)?;
            }
            SelectItem::QualifiedWildcard(kind, options) => {
                all(options)?;
                match kind {
                    SelectItemQualifiedWildcardKind::ObjectName(name)
                        if object_name(name).is_some_and(|n| self.qualifiers.contains(&n)) => {}
                    _ => {
                        let problem =
                            Problem::invalid(format!("there is no table for {item} in this query"));
                        return Err(placed(problem, item));
                    }
                }
                self.wildcard(item, scope, out)?;
            }
            SelectItem::ExprWithAliases { .. } => {
                return Err(refuse(Some(item), "several aliases for one output are", ""));
            }
        }
        Ok(())
    }

    fn wildcard(
        &self,
        item: &SelectItem,
        scope: &Scope,
        out: &mut Vec<Output>,
    ) -> Result<(), Problem> {
        if scope.schema.columns.is_empty() {
            let problem = Problem::invalid("* has no columns to stand for").expected("FROM");
            return Err(placed(problem, item));
        }
        for column in &scope.schema.columns {
            let ident = super::ast::parse_expr_text(&ident_sql(&column.name))?;
            let mut made = output(&ident, None, scope, &[])?;
            made.at = start_of(item);
            out.push(made);
        }
        Ok(())
    }
}

fn is_bare(options: &WildcardAdditionalOptions) -> bool {
    options.opt_ilike.is_none()
        && options.opt_exclude.is_none()
        && options.opt_except.is_none()
        && options.opt_replace.is_none()
        && options.opt_rename.is_none()
        && options.opt_alias.is_none()
}

fn placed(problem: Problem, node: &impl Spanned) -> Problem {
    match start_of(node) {
        Some(at) if problem.position.is_none() => problem.at(at.line, at.column),
        _ => problem,
    }
}

fn reject_clauses(select: &Select) -> Result<(), Problem> {
    if let Some(distinct) = &select.distinct {
        let _ = distinct;
        return Err(refuse(Some(select), "SELECT DISTINCT is", ""));
    }
    let grouped = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(exprs, modifiers) => !exprs.is_empty() || !modifiers.is_empty(),
    };
    if grouped {
        return Err(refuse(
            Some(&select.group_by),
            "GROUP BY is",
            "select the rows and aggregate them in the client",
        ));
    }
    if let Some(having) = &select.having {
        return Err(refuse(Some(having), "HAVING is", ""));
    }
    if let Some(qualify) = &select.qualify {
        return Err(refuse(Some(qualify), "QUALIFY is", ""));
    }
    let others = select.top.is_some()
        || select.into.is_some()
        || select.exclude.is_some()
        || select.prewhere.is_some()
        || select.value_table_mode.is_some()
        || select.select_modifiers.is_some()
        || !select.optimizer_hints.is_empty()
        || !select.lateral_views.is_empty()
        || !select.connect_by.is_empty()
        || !select.cluster_by.is_empty()
        || !select.distribute_by.is_empty()
        || !select.sort_by.is_empty()
        || !select.named_window.is_empty();
    if others {
        return Err(refuse(Some(select), "a clause of this SELECT is", ""));
    }
    Ok(())
}

/// The relation and what may stand before its columns' names.
fn relation(select: &Select) -> Result<(Relation, Vec<String>), Problem> {
    const JOIN_HINT: &str = "ask one relation at a time, or join where the rows are made";
    let [from, more @ ..] = &select.from[..] else {
        return Ok((Relation::Nothing, Vec::new()));
    };
    if let Some(second) = more.first() {
        return Err(refuse(Some(second), "a join is", JOIN_HINT));
    }
    if let Some(join) = from.joins.first() {
        return Err(refuse(Some(&join.relation), "a join is", JOIN_HINT));
    }
    let TableFactor::Table {
        name,
        alias,
        args,
        with_hints,
        version: None,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_hints,
    } = &from.relation
    else {
        return Err(refuse(
            Some(&from.relation),
            "this kind of FROM is",
            "name one relation",
        ));
    };
    if !with_hints.is_empty() || !partitions.is_empty() || !index_hints.is_empty() {
        return Err(refuse(
            Some(&from.relation),
            "this kind of FROM is",
            "name one relation",
        ));
    }
    let at = start_of(name).unwrap_or(Position { line: 1, column: 1 });
    let Some(folded_name) = object_name(name) else {
        return Err(refuse(Some(name), "this kind of name is", ""));
    };
    let qualifiers = match alias {
        Some(alias) if !alias.columns.is_empty() || alias.at.is_some() => {
            return Err(refuse(
                Some(alias),
                "an alias with columns is",
                "use AS in the outputs",
            ));
        }
        Some(alias) => vec![folded(&alias.name)],
        None => {
            let bare = folded_name
                .rsplit('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            vec![folded_name.clone(), bare]
        }
    };
    let relation = match args {
        None => Relation::Named {
            name: folded_name,
            at,
        },
        Some(args) if folded_name == "search" => Relation::Search {
            args: args.args.clone(),
            at,
        },
        Some(_) => {
            return Err(
                Problem::invalid(format!("there is no table function {folded_name}()"))
                    .at(at.line, at.column)
                    .expected("search(index, question, k => 10)"),
            );
        }
    };
    Ok((relation, qualifiers))
}

fn output(
    expr: &Ast,
    alias: Option<String>,
    scope: &Scope,
    params: &[Json],
) -> Result<Output, Problem> {
    let typed = scope.plan(expr, params)?;
    let given_name = alias.or_else(|| match expr {
        Ast::Identifier(ident) => Some(ident.value.clone()),
        _ => None,
    });
    let name = given_name.clone().unwrap_or_else(|| match expr {
        Ast::Function(function) => function.name.to_string(),
        // PostgreSQL's name for what has none.
        _ => "?column?".to_owned(),
    });
    Ok(Output {
        given_name,
        name,
        text: expr.to_string(),
        typed,
        at: start_of(expr),
    })
}

fn plan_filter(
    scope: &Scope,
    conjuncts: &[Ast],
    params: &[Json],
) -> Result<Option<Typed>, Problem> {
    let mut whole: Option<Typed> = None;
    for conjunct in conjuncts {
        let typed = scope.plan_condition(conjunct, params)?;
        whole = Some(match whole {
            None => typed,
            Some(left) => Typed {
                expr: datafusion_expr::binary_expr(left.expr, Operator::And, typed.expr),
                sql_type: SqlType::Boolean,
                columns: left.columns.into_iter().chain(typed.columns).collect(),
                uses_now: left.uses_now || typed.uses_now,
                volatile: left.volatile.or(typed.volatile),
            },
        });
    }
    Ok(whole)
}

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
