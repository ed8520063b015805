//! Plans as text: a tree, one node a line, stable from run to run. `EXPLAIN` and `headwater check`
//! print the same.
//!
//! ```text
//! project chunk, score
//!   filter after k: score > 0.5
//!     search by_text k=5 (question)
//!       filter before k: lang = 'en'
//! ```

use super::normal::text;
use super::plan::{AsOfClause, From, Planned, SearchCall, SelectPlan};
use crate::definition::Definition;

/// The tree of a plan, lines separated by `\n`, without one at the end.
pub fn explain(plan: &Planned) -> String {
    let mut lines = Vec::new();
    match plan {
        Planned::Select(select) => explain_select(select, &mut lines),
        Planned::Create(create) => {
            lines.push(create.statement.clone());
            if let Definition::View(view) = &create.definition {
                let key: Vec<&str> = view
                    .schema
                    .key
                    .iter()
                    .map(|at| &*view.schema.columns[*at].name)
                    .collect();
                lines.push(format!("  key: {}", key.join(", ")));
                let columns = view.schema.columns.iter();
                let columns: Vec<String> = columns
                    .map(|column| format!("{} {}", column.name, column.sql_type))
                    .collect();
                lines.push(format!("  columns: {}", columns.join(", ")));
            }
            let reads = create.definition.depends_on();
            if !reads.is_empty() {
                lines.push(format!("  reads: {}", reads.join(", ")));
            }
        }
        Planned::Explain(explained) => lines.push(explained.text.clone()),
        Planned::Drop(drop) => lines.push(format!("drop {}", drop.objects.join(", "))),
        other => lines.push(other.tag().to_lowercase()),
    }
    lines.join("\n")
}

fn explain_select(plan: &SelectPlan, lines: &mut Vec<String>) {
    let mut depth = 0;
    let mut push = |text: String, lines: &mut Vec<String>| {
        lines.push(format!("{}{text}", "  ".repeat(depth)));
        depth += 1;
    };
    if let Some(as_of) = &plan.as_of {
        push(format!("as of {}", as_of_text(as_of)), lines);
    }
    if plan.limit.is_some() || plan.offset > 0 {
        let limit = plan
            .limit
            .map_or_else(|| "all".to_owned(), |limit| limit.to_string());
        push(format!("limit {limit} offset {}", plan.offset), lines);
    }
    if !plan.order_by.is_empty() {
        let keys = plan.order_by.iter().map(|key| {
            let direction = if key.descending { " desc" } else { "" };
            let nulls = if key.nulls_first { " nulls first" } else { "" };
            format!("{}{direction}{nulls}", plan.program.outputs[key.output].1)
        });
        push(
            format!("sort {}", keys.collect::<Vec<_>>().join(", ")),
            lines,
        );
    }
    let outputs = plan.program.outputs.iter().take(plan.columns.len());
    let outputs = outputs.map(|(name, text)| match name == text {
        true => name.clone(),
        false => format!("{text} as {name}"),
    });
    push(
        format!("project {}", outputs.collect::<Vec<_>>().join(", ")),
        lines,
    );
    if let Some(filter) = &plan.program.filter {
        let after = if matches!(plan.from, From::Search(_)) {
            " after k"
        } else {
            ""
        };
        push(format!("filter{after}: {filter}"), lines);
    }
    match &plan.from {
        From::Values => push("one row".to_owned(), lines),
        From::Collection { name, kind, key } => {
            let key = key.as_ref().map(|key| format!(" key {key}"));
            push(
                format!("read {kind} {name}{}", key.unwrap_or_default()),
                lines,
            );
        }
        From::System { name } => push(format!("read system headwater.{name}"), lines),
        From::Search(call) => {
            push(search_text(call), lines);
            if let Some(filter) = &call.filter {
                push(format!("filter before k: {filter}"), lines);
            }
        }
    }
}

fn as_of_text(as_of: &AsOfClause) -> String {
    match as_of {
        AsOfClause::Time(time) => time.to_string(),
        AsOfClause::Text(time) => text(time),
        AsOfClause::AtLeastToken(token) => format!("at least {}", text(token)),
        AsOfClause::AtLeastPosition(position) => {
            format!("at least {}", serde_json::Value::Object(position.clone()))
        }
    }
}

fn search_text(call: &SearchCall) -> String {
    let mut out = format!("search {} k={}", call.index, call.k);
    if let Some(mode) = &call.mode {
        out += &format!(" mode={mode}");
    }
    if call.exact {
        out += " exact";
    }
    if let Some(score) = call.min_score {
        out += &format!(" min_score={score}");
    }
    if let Some(count) = call.per_document {
        out += &format!(" per_document={count}");
    }
    if let Some(question) = &call.question {
        out += &format!(" question={}", text(question));
    }
    if let Some(vector) = &call.vector {
        out += &format!(" vector[{}]", vector.len());
    }
    out
}
