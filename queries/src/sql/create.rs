//! `CREATE`: what all have in common, and caches; other objects have files of their own.

use engine::limits::K_MAX;

use super::catalog::{CatalogView, dependents};
use super::cursor::{Cursor, Name};
use super::options::{Known, Options};
use super::plan::Create;
use super::statement::{has_dependents, kind, known, later, with_article};
use crate::definition::{CacheDef, Definition};
use crate::problem::{Position, Problem};

/// One day; what a cache's TTL may at most be is ten years.
const DAY_MICROS: u64 = 86_400_000_000;
/// Live entries of a cache without `CAPACITY`, and the most it takes.
pub(super) const CAPACITY_DEFAULT: u64 = 100_000;
const CAPACITY_MAX: u64 = 10_000_000;
/// Least cosine of a similarity hit without `SIMILARITY`.
pub(super) const SIMILARITY_DEFAULT: f64 = 0.95;
/// Life of an entry without `TTL`.
pub(super) const TTL_DEFAULT_MICROS: u64 = 3_600_000_000;

/// Plans what stands behind `CREATE`; `start` is where that stands.
pub(super) fn plan_create(
    mut cursor: Cursor<'_>,
    start: Position,
    end: Position,
    catalog: &dyn CatalogView,
) -> Result<Create, Problem> {
    let or_replace = cursor.eat_all(&["OR", "REPLACE"]);
    if cursor.is("POLICY") {
        let what = cursor
            .peek()
            .map(|token| token.token.to_string().to_uppercase());
        let what = format!("CREATE {}", what.unwrap_or_default());
        return Err(later(
            &cursor,
            &what,
            "filter in the question: WHERE over INCLUDEd columns",
        ));
    }
    let kind = kind(&mut cursor)?;
    let if_not_exists = cursor.eat_all(&["IF", "NOT", "EXISTS"]);
    let named = cursor.name(&format!("the {}'s name", kind.to_lowercase()))?;
    let Name { value: name, at } = named.clone();
    if or_replace && if_not_exists {
        return Err(
            Problem::syntax("OR REPLACE and IF NOT EXISTS exclude each other")
                .at(start.line, start.column)
                .expected("one of them"),
        );
    }
    let definition = match kind {
        "SOURCE" => Definition::Source(super::source::source(&mut cursor, &named, catalog)?),
        "SECRET" => Definition::Secret(super::connection::secret(&mut cursor)?),
        "CONNECTION" => {
            Definition::Connection(super::connection::connection(&mut cursor, &name, catalog)?)
        }
        "MODEL" => Definition::Model(super::model::model(&mut cursor, catalog)?),
        "VIEW" => {
            cursor.expect("AS")?;
            Definition::View(super::view::view_definition(&mut cursor, end, catalog)?)
        }
        "INDEX" => Definition::Index(super::index::index(&mut cursor, catalog)?),
        "SINK" => Definition::Sink(Box::new(super::sink::sink(&mut cursor, &name, catalog)?)),
        _ => Definition::Cache(cache(&mut cursor, catalog)?),
    };
    if kind != "VIEW" {
        cursor.finish(&["the end of the statement"])?;
    }
    let create = Create {
        statement: super::normal::statement_of(&name, &definition),
        name,
        definition,
        if_not_exists,
        or_replace,
        position: start,
    };
    check_name(&create, at, catalog)?;
    Ok(create)
}

/// Whether the name is free, or may be taken.
fn check_name(create: &Create, at: Position, catalog: &dyn CatalogView) -> Result<(), Problem> {
    let name = &create.name;
    if name == "headwater" {
        return Err(
            Problem::invalid("\"headwater\" is the schema of the system collections")
                .at(at.line, at.column)
                .expected("another name"),
        );
    }
    let Some(existing) = catalog.object(name) else {
        return Ok(());
    };
    let kind = with_article(existing.definition.kind());
    let same_kind = existing.definition.kind() == create.definition.kind();
    if create.if_not_exists && same_kind
        || existing.definition == create.definition && create.or_replace
    {
        return Ok(());
    }
    if create.or_replace && same_kind {
        let dependents = dependents(catalog, name);
        if dependents.is_empty() {
            return Ok(());
        }
        return Err(has_dependents("replaced", name, &dependents, at)
            .hint("drop them first, or give the new one another name"));
    }
    let hint = match same_kind {
        true => "write CREATE OR REPLACE, or IF NOT EXISTS",
        false => "all objects share one namespace: choose another name",
    };
    Err(Problem::new(
        409,
        "already-exists",
        format!("there is {kind} \"{name}\" already"),
    )
    .at(at.line, at.column)
    .hint(hint))
}

fn cache(cursor: &mut Cursor<'_>, catalog: &dyn CatalogView) -> Result<CacheDef, Problem> {
    const KNOWN: Known = Known {
        what: "CREATE CACHE",
        names: &["K", "SIMILARITY", "TTL", "CAPACITY", "RETRIEVAL"],
        later: &["VERIFY"],
    };
    cursor.expect("ON")?;
    let Name { value: index, at } = cursor.name("an index's name")?;
    let options = match cursor.eat("WITH") {
        true => Options::parse(cursor, &KNOWN)?,
        false => Options::default(),
    };
    let object = known(catalog, &index, at, "an index")?;
    let Definition::Index(on) = &object.definition else {
        let found = with_article(object.definition.kind());
        return Err(
            Problem::invalid(format!("\"{index}\" is {found}, not an index"))
                .at(at.line, at.column)
                .expected("the name of an index"),
        );
    };
    let model = on.model.as_deref().and_then(|model| catalog.object(model));
    let reads_text = matches!(
        model.map(|model| model.definition),
        Some(Definition::Model(model)) if model.reads_texts()
    );
    if !reads_text {
        return Err(Problem::invalid(format!(
            "index \"{index}\" has no model that reads questions"
        ))
        .at(at.line, at.column)
        .expected("an index with EMBED WITH a model of texts")
        .hint("a cache compares questions by their vectors"));
    }
    let k = options
        .integer("K", 1..=K_MAX as u64)?
        .unwrap_or(super::search::K_DEFAULT as u64);
    let similarity = options
        .float("SIMILARITY", "a number above 0 and at most 1", |x| {
            x > 0.0 && x <= 1.0
        })?
        .unwrap_or(SIMILARITY_DEFAULT);
    let ttl_micros = options
        .duration(
            "TTL",
            1..=3_650 * DAY_MICROS,
            "above 0 and at most 3650 days",
        )?
        .unwrap_or(TTL_DEFAULT_MICROS);
    let capacity = options
        .integer("CAPACITY", 1..=CAPACITY_MAX)?
        .unwrap_or(CAPACITY_DEFAULT);
    let exact = options.choice("RETRIEVAL", &["index", "exact"])? == Some("exact");
    Ok(CacheDef {
        index,
        k: usize::try_from(k).expect("at most K_MAX"),
        similarity,
        ttl_micros,
        capacity: usize::try_from(capacity).expect("at most CAPACITY_MAX"),
        exact,
    })
}
