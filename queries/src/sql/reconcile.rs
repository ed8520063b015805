//! Running a pipeline file again (API §1): an equal definition is a no-op, a new one is created, a
//! changed one is an error that shows the difference unless it may be replaced, an absent one is
//! kept with a warning unless it may be pruned.
//!
//! Order of the actions: drops (dependents first), then creations in the order of the file, which
//! has dependencies first because each statement was planned against those before it. An object
//! whose dependency is replaced is itself dropped and created again, since its rows change.

use serde::{Deserialize, Serialize};

use super::catalog::{CatalogView, dependents};
use super::plan::Create;
use crate::definition::Object;
use crate::problem::Problem;

/// One step of a reconciliation, to be taken in order.
#[allow(clippy::large_enum_variant)] // a handful at a time
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Nothing to do: the definition is equal.
    Keep {
        /// The object.
        name: String,
    },
    /// The file does not have it; it stays, with this warning.
    KeepAbsent {
        /// The object.
        name: String,
        /// For people.
        warning: String,
    },
    /// Drop it: it is pruned, or comes back changed.
    Drop {
        /// The object.
        name: String,
    },
    /// Create it.
    Create(Create),
}

/// Compares what exists with what a file declares.
///
/// `existing` may come in any order; `planned` is in the file's order, planned against an empty
/// catalog. When a name is declared twice (`OR REPLACE`), the last counts.
///
/// # Errors
/// All changed definitions that may not be replaced, each 409 `definition-changed` with both
/// statements; absent objects that may not be pruned away because a kept object reads them.
pub fn reconcile(
    existing: &[Object],
    planned: &[Create],
    replace: bool,
    prune: bool,
) -> Result<Vec<Action>, Vec<Problem>> {
    let mut wanted: Vec<&Create> = Vec::new();
    for create in planned {
        wanted.retain(|other| other.name != create.name);
        wanted.push(create);
    }
    let catalog: Vec<Object> = existing.to_vec();
    let is_wanted = |name: &str| wanted.iter().any(|create| create.name == name);
    let mut problems = Vec::new();
    let mut changed: Vec<String> = Vec::new();
    for create in &wanted {
        let Some(old) = catalog.object(&create.name) else {
            continue;
        };
        if old.definition != create.definition {
            if replace || create.or_replace {
                changed.push(create.name.clone());
            } else {
                problems.push(difference(&old, create));
            }
        }
    }
    // What reads a changed object is made again with it.
    let mut dropped = Vec::new();
    for name in &changed {
        add(&mut dropped, dependents(&catalog, name));
        add(&mut dropped, vec![name.clone()]);
    }
    for name in dropped.iter().filter(|name| !is_wanted(name) && !prune) {
        problems.push(
            Problem::new(
                409,
                "has-dependents",
                format!("\"{name}\" reads a changed object and is not in the file"),
            )
            .hint("add its statement to the file, or run with --prune"),
        );
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut kept = Vec::new();
    for object in &catalog {
        let name = &object.name;
        if is_wanted(name) || dropped.contains(name) {
            continue;
        }
        if prune {
            add(&mut dropped, dependents(&catalog, name));
            add(&mut dropped, vec![name.clone()]);
        } else {
            let kind = object.definition.kind();
            kept.push(Action::KeepAbsent {
                name: name.clone(),
                warning: format!(
                    "{kind} \"{name}\" is not in the file and is kept; --prune drops it"
                ),
            });
        }
    }
    let mut actions = kept;
    actions.extend(in_drop_order(&catalog, dropped.clone()).map(|name| Action::Drop { name }));
    for create in wanted {
        let stays = catalog.object(&create.name).is_some() && !dropped.contains(&create.name);
        actions.push(match stays {
            true => Action::Keep {
                name: create.name.clone(),
            },
            false => Action::Create(create.clone()),
        });
    }
    Ok(actions)
}

fn add(to: &mut Vec<String>, names: Vec<String>) {
    for name in names {
        if !to.contains(&name) {
            to.push(name);
        }
    }
}

/// Each before what it reads.
fn in_drop_order(catalog: &Vec<Object>, mut names: Vec<String>) -> impl Iterator<Item = String> {
    names.sort_unstable();
    let mut out = Vec::with_capacity(names.len());
    for name in &names {
        let mut chain = dependents(catalog, name);
        chain.retain(|other| names.contains(other));
        chain.push(name.clone());
        add(&mut out, chain);
    }
    out.into_iter()
}

/// Both statements, cut where they first differ.
fn difference(old: &Object, new: &Create) -> Problem {
    let kind = old.definition.kind();
    let (before, after) = (&old.statement, &new.statement);
    let common = before
        .bytes()
        .zip(after.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    // Whole words: from the space before the first difference.
    let cut = before[..floor(before, common)]
        .rfind([' ', '('])
        .map_or(0, |at| at + 1);
    let show = |text: &str| match cut {
        0 => text.to_owned(),
        _ => format!("… {}", &text[floor(text, cut)..]),
    };
    Problem::new(
        409,
        "definition-changed",
        format!("{kind} \"{}\" is not what the file says", new.name),
    )
    .at(new.position.line, new.position.column)
    .expected(format!("stored: {}", show(before)))
    .hint(format!(
        "in the file: {}; --replace makes it again",
        show(after)
    ))
    .with("stored", before.clone())
    .with("declared", after.clone())
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}
