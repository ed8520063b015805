//! Views: `CREATE VIEW v AS SELECT outputs FROM one relation [WHERE …]`.
//!
//! A view is a row program and a key: the key columns of what it reads must come through as plain
//! columns. Its stored query is canonical text, planned again wherever the view is rendered.
//!
//! Limits: `now()` would make rows come and go without a change, which needs temporal filters; this
//! version refuses it. A volatile function is refused for good: a retraction must compute what the
//! addition computed.

use engine::model::Schema;

use super::ast::parse_query_text;
use super::catalog::CatalogView;
use super::cursor::Cursor;
use super::expr::Typed;
use super::program::{ProgramSpec, RowProgram};
use super::query::{Parts, Relation};
use crate::definition::{Definition, ViewDef};
use crate::problem::{Position, Problem};

/// Plans the query behind `AS`.
pub(super) fn view_definition(
    cursor: &mut Cursor<'_>,
    end: Position,
    catalog: &dyn CatalogView,
) -> Result<ViewDef, Problem> {
    if !cursor.is("SELECT") && !cursor.is("WITH") {
        return Err(cursor.unexpected(&["SELECT"]));
    }
    let query = super::ast::parse_query(cursor.rest(), end)?;
    let parts = Parts::of(*query)?;
    let Relation::Named { name, at, .. } = &parts.relation else {
        return Err(
            at_start(cursor, Problem::invalid("a view reads one source or view"))
                .expected("FROM a source or a view"),
        );
    };
    let from = name.clone();
    let input = readable(catalog, &from, *at)?;
    if parts.limit.is_some() || parts.offset.is_some() || !parts.order_by.is_empty() {
        return Err(at_start(
            cursor,
            Problem::not_supported("ORDER BY and LIMIT are not supported in a view"),
        )
        .hint("order and limit in the question that reads the view"));
    }
    let plan = parts.plan(&input, &[])?;
    for typed in plan
        .filter
        .iter()
        .chain(plan.outputs.iter().map(|output| &output.typed))
    {
        is_maintainable(typed).map_err(|problem| at_start(cursor, problem))?;
    }
    for (index, output) in plan.outputs.iter().enumerate() {
        let Some(name) = &output.given_name else {
            return Err(placed(
                output.at,
                Problem::invalid("a column of a view needs a name"),
            )
            .hint(format!("write {} AS name", output.text)));
        };
        if plan.outputs[..index]
            .iter()
            .any(|other| other.given_name.as_ref() == Some(name))
        {
            let problem = Problem::invalid(format!("column \"{name}\" comes out twice"));
            return Err(placed(output.at, problem).hint("give one of them another name with AS"));
        }
    }
    let typed: Vec<(&str, Typed)> = plan
        .outputs
        .iter()
        .map(|output| (&*output.name, output.typed.clone()))
        .collect();
    let (_, schema) = RowProgram::of_typed(&plan.scope, plan.filter.as_ref(), &typed)?;
    if schema.key.is_empty() {
        let key: Vec<&str> = input
            .key
            .iter()
            .map(|at| &*input.columns[*at].name)
            .collect();
        return Err(at_start(
            cursor,
            Problem::invalid("the view would lose the key of its rows"),
        )
        .expected(format!(
            "the key columns of \"{from}\" among the outputs: {}",
            key.join(", ")
        ))
        .hint("name them as plain columns; AS may rename them"));
    }
    Ok(ViewDef {
        query: plan.query_text(&from),
        from,
        schema,
    })
}

/// The columns of a source or view.
fn readable(catalog: &dyn CatalogView, name: &str, at: Position) -> Result<Schema, Problem> {
    match super::statement::known(catalog, name, at, "a source or a view")?.definition {
        Definition::Source(source) => Ok(source.schema),
        Definition::View(view) => Ok(view.schema),
        other => Err(Problem::invalid(format!(
            "\"{name}\" is {} and cannot be read by a view",
            super::statement::with_article(other.kind())
        ))
        .at(at.line, at.column)
        .expected("a source or a view")),
    }
}

fn is_maintainable(typed: &Typed) -> Result<(), Problem> {
    if let Some(name) = &typed.volatile {
        return Err(
            Problem::invalid(format!("{name}() changes from call to call"))
                .expected("functions that depend on the row only")
                .hint("compute it where the row is made"),
        );
    }
    if typed.uses_now {
        return Err(
            Problem::not_supported("now() in a view is not supported by this version")
                .hint("compare with now() in the question, for example WHERE over search()"),
        );
    }
    Ok(())
}

fn at_start(cursor: &Cursor<'_>, problem: Problem) -> Problem {
    placed(Some(cursor.position()), problem)
}

fn placed(at: Option<Position>, problem: Problem) -> Problem {
    match at {
        Some(at) if problem.position.is_none() => problem.at(at.line, at.column),
        _ => problem,
    }
}

/// Compiles a stored view over the columns of what it reads.
///
/// # Errors
/// 422 when the columns no longer have what the view names: a dependency that was replaced.
pub fn view_program(view: &ViewDef, input: &Schema) -> Result<RowProgram, Problem> {
    let parts = Parts::of(*parse_query_text(&view.query)?)?;
    let plan = parts.plan(input, &[])?;
    let spec = ProgramSpec {
        input: input.clone(),
        filter: plan.filter_text(),
        outputs: plan
            .outputs
            .iter()
            .map(|o| (o.name.clone(), o.text.clone()))
            .collect(),
        params: Vec::new(),
    };
    let (program, schema) = RowProgram::compile(&spec)?;
    let same = schema.columns.len() == view.schema.columns.len()
        && schema
            .columns
            .iter()
            .zip(&view.schema.columns)
            .all(|(a, b)| a.sql_type == b.sql_type);
    if !same {
        return Err(Problem::invalid(
            "the view's columns changed with what it reads",
        ));
    }
    Ok(program)
}
