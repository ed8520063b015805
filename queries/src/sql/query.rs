//! A query, taken apart: what it reads, its conditions, outputs, order and limits.
//!
//! The SQL parser reads the query; everything that is more than a filter, outputs, an order and a
//! limit over one relation is refused with its place. Views and `SELECT` plan what is left.
//!
//! Limits: one relation, no joins, no groups.

use datafusion_expr::Operator;
use datafusion_sql::sqlparser::ast::{
    Expr as Ast, FunctionArg, GroupByExpr, LimitClause, OrderByExpr, OrderByKind, Query, Select,
    SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Spanned, TableFactor,
    WildcardAdditionalOptions,
};
use engine::model::{Schema, SqlType};
use serde_json::Value as Json;

use super::ast::{canonical, conjunction, conjuncts, folded, ident_sql, object_name, start_of};
use super::expr::{Scope, Typed};
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
    /// What `WHERE` says, taken apart at its `AND`s.
    pub conjuncts: Vec<Ast>,
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

pub(super) fn refuse(node: Option<&impl Spanned>, detail: &str, hint: &str) -> Problem {
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

    /// The same with other conjuncts than the query's own.
    pub fn plan_over(
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

pub(super) fn placed(problem: Problem, node: &impl Spanned) -> Problem {
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

pub(super) fn output(
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
