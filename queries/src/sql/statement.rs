//! From a text to planned statements: the entry, the dispatch on the first words, and the short
//! statements (DROP, SHOW, DESCRIBE, EXPLAIN).

use datafusion_sql::sqlparser::tokenizer::Token;
use serde_json::Value as Json;

use super::catalog::{CatalogView, Overlay, SYSTEM, dependents, relation_schema};
use super::cursor::{Cursor, Name, nearest, one_of};
use super::plan::{Describe, DropPlan, ExplainPlan, Planned, SelectPlan, ShowKind};
use super::token::{SpannedStatement, split};
use crate::definition::Object;
use crate::problem::{Position, Problem};

/// Plans every statement of a text; later ones see what earlier ones declare and drop.
///
/// A statement that fails leaves no object behind, so its dependents fail too. An empty text gives
/// an empty list. Problems carry `statement`, the index of theirs.
pub fn plan_text(text: &str, catalog: &dyn CatalogView) -> Vec<Result<Planned, Problem>> {
    plan_text_with(text, catalog, &[])
}

/// As [`plan_text`], with values for `$1`, `$2`, …
pub fn plan_text_with(
    text: &str,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Vec<Result<Planned, Problem>> {
    let mut overlay = Overlay::new(catalog);
    let plan_one = |(number, statement): (usize, SpannedStatement)| {
        let planned = plan_statement(&statement, &overlay, params);
        match &planned {
            Ok(Planned::Create(create))
                // IF NOT EXISTS keeps what is there.
                if (!create.if_not_exists || overlay.object(&create.name).is_none()) => {
                    let definition = create.definition.clone();
                    overlay.create(&create.name, &create.statement, definition);
                }
            Ok(Planned::Drop(drop)) => drop.objects.iter().for_each(|name| overlay.drop(name)),
            _ => {}
        }
        planned.map_err(|mut problem| {
            problem.statement = Some(number);
            problem
        })
    };
    split(text).into_iter().enumerate().map(plan_one).collect()
}

const FIRST_WORDS: [&str; 6] = ["CREATE", "SELECT", "SHOW", "DESCRIBE", "DROP", "EXPLAIN"];

/// Statements of PostgreSQL or of later versions: what to say instead of "unexpected".
const LATER: [(&str, &str, &str); 17] = [
    (
        "SUBSCRIBE",
        "SUBSCRIBE is",
        "POST /v1/search/subscribe will stream a live top-k",
    ),
    ("ALTER", "ALTER is", "use CREATE OR REPLACE"),
    (
        "INSERT",
        "INSERT is",
        "push rows: POST /v1/sources/{source}/documents",
    ),
    (
        "UPDATE",
        "UPDATE is",
        "push the changed row: POST /v1/sources/{source}/documents",
    ),
    ("DELETE", "DELETE is", "push {\"op\":\"delete\",\"key\":…}"),
    (
        "COPY",
        "COPY is",
        "push rows: POST /v1/sources/{source}/documents",
    ),
    ("MERGE", "MERGE is", "a push is an upsert already"),
    (
        "TRUNCATE",
        "TRUNCATE is",
        "drop the source and create it again",
    ),
    ("VALUES", "VALUES is", "write SELECT …"),
    ("TABLE", "TABLE is", "write SELECT * FROM …"),
    (
        "BEGIN",
        "BEGIN is",
        "every statement is its own transaction",
    ),
    (
        "COMMIT",
        "COMMIT is",
        "every statement is its own transaction",
    ),
    (
        "ROLLBACK",
        "ROLLBACK is",
        "every statement is its own transaction",
    ),
    ("SET", "SET is", "pass settings to `headwater run`"),
    (
        "GRANT",
        "GRANT is",
        "permissions will be declared by CREATE POLICY",
    ),
    (
        "REVOKE",
        "REVOKE is",
        "permissions will be declared by CREATE POLICY",
    ),
    ("EVALUATE", "EVALUATE is", ""),
];

fn plan_statement(
    statement: &SpannedStatement,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Result<Planned, Problem> {
    if let Some(problem) = &statement.lexical {
        return Err(problem.clone());
    }
    let cursor = Cursor::new(&statement.tokens, statement.end);
    let planned = dispatch(cursor, statement, catalog, params)?;
    match (&statement.as_of, &planned) {
        (None, _) | (_, Planned::Select(_)) => Ok(planned),
        (Some(_), Planned::Explain(explained)) if matches!(*explained.plan, Planned::Select(_)) => {
            Ok(planned)
        }
        (Some((at, _)), _) => Err(Problem::invalid("AS OF belongs to SELECT")
            .at(at.line, at.column)
            .hint("this statement always acts now")),
    }
}

fn dispatch(
    mut cursor: Cursor<'_>,
    statement: &SpannedStatement,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Result<Planned, Problem> {
    let start = cursor.position();
    if cursor.is("SELECT") || cursor.is("WITH") || cursor.is_token(&Token::LParen) {
        return select(&cursor, statement, catalog, params).map(Planned::Select);
    }
    if cursor.eat("CREATE") {
        let end = statement.end;
        return super::create::plan_create(cursor, start, end, catalog).map(Planned::Create);
    }
    if cursor.eat("DROP") {
        return plan_drop(cursor, catalog);
    }
    if cursor.eat("SHOW") {
        return plan_show(cursor, catalog);
    }
    if cursor.eat("DESCRIBE") || cursor.eat("DESC") {
        return plan_describe(cursor, catalog);
    }
    if cursor.eat("EXPLAIN") {
        for (word, hint) in [
            ("ANALYZE", "write EXPLAIN SELECT …"),
            ("TIMESTAMP", "every reply names its as_of"),
        ] {
            if cursor.is(word) {
                let at = cursor.position();
                let detail = format!("EXPLAIN {word} is not supported by this version");
                return Err(Problem::not_supported(detail)
                    .at(at.line, at.column)
                    .hint(hint));
            }
        }
        if cursor.is("EXPLAIN") {
            return Err(cursor.unexpected(&["SELECT", "CREATE"]));
        }
        let plan = dispatch(cursor, statement, catalog, params)?;
        let text = super::explain::explain(&plan);
        return Ok(Planned::Explain(ExplainPlan {
            text,
            plan: Box::new(plan),
        }));
    }
    for (word, what, hint) in LATER {
        if cursor.is(word) {
            let problem = Problem::not_supported(format!("{what} not supported by this version"))
                .at(start.line, start.column);
            return Err(if hint.is_empty() {
                problem
            } else {
                problem.hint(hint)
            });
        }
    }
    Err(cursor.unexpected(&FIRST_WORDS))
}

fn select(
    cursor: &Cursor<'_>,
    statement: &SpannedStatement,
    catalog: &dyn CatalogView,
    params: &[Json],
) -> Result<SelectPlan, Problem> {
    let end = statement
        .as_of
        .as_ref()
        .map_or(statement.end, |(at, _)| *at);
    let query = super::ast::parse_query(cursor.rest(), end)?;
    let mut plan = super::select::plan_select(*query, catalog, params)?;
    if let Some((at, tokens)) = &statement.as_of {
        plan.as_of = Some(super::search::plan_as_of(
            tokens,
            *at,
            statement.end,
            params,
        )?);
    }
    Ok(plan)
}

/// Kinds of objects, with those of later versions marked.
pub(super) const KINDS: [&str; 8] = [
    "SOURCE",
    "MODEL",
    "VIEW",
    "INDEX",
    "CACHE",
    "SECRET",
    "CONNECTION",
    "SINK",
];
pub(super) const LATER_KINDS: [&str; 2] = ["POLICY", "TENANT"];

/// Takes a kind.
pub(super) fn kind(cursor: &mut Cursor<'_>) -> Result<&'static str, Problem> {
    let at = cursor.position();
    if let Some(kind) = KINDS.iter().find(|kind| cursor.is(kind)) {
        cursor.next();
        return Ok(kind);
    }
    if let Some(kind) = LATER_KINDS.iter().find(|kind| cursor.is(kind)) {
        return Err(
            Problem::not_supported(format!("{kind} is not supported by this version"))
                .at(at.line, at.column),
        );
    }
    if cursor.is("TABLE") || cursor.is("MATERIALIZED") || cursor.is("UNIQUE") {
        let hint = match () {
            () if cursor.is("TABLE") => "rows come from a source: CREATE SOURCE … FROM PUSH (…)",
            () if cursor.is("UNIQUE") => "keys belong to sources: … PRIMARY KEY",
            () => "every view is maintained: CREATE VIEW",
        };
        return Err(cursor.unexpected(&KINDS).hint(hint));
    }
    Err(cursor.unexpected(&KINDS))
}

/// The object of a name, or a 404 with the nearest name.
pub(super) fn known(
    catalog: &dyn CatalogView,
    name: &str,
    at: Position,
    expected: &str,
) -> Result<Object, Problem> {
    if let Some(object) = catalog.object(name) {
        return Ok(object);
    }
    let names = catalog.names();
    let problem = Problem::not_found(format!("there is no \"{name}\""))
        .at(at.line, at.column)
        .expected(expected);
    let hint = if SYSTEM.contains(&name) {
        Some(format!(
            "system collections have a schema: headwater.{name}"
        ))
    } else {
        nearest(name, names.iter().map(|name| &**name)).map(|near| format!("did you mean {near}?"))
    };
    Err(match hint {
        Some(hint) => problem.hint(hint),
        None => problem,
    })
}

pub(super) fn unknown_system(name: &str, at: Position) -> Problem {
    let problem = Problem::not_found(format!("there is no \"headwater.{name}\""))
        .at(at.line, at.column)
        .expected(format!("one of headwater's {}", SYSTEM.join(", ")));
    match nearest(name, SYSTEM) {
        Some(near) => problem.hint(format!("did you mean headwater.{near}?")),
        None => problem,
    }
}

/// `an index`, `a source`.
pub(super) fn with_article(kind: &str) -> String {
    let article = if kind.starts_with('i') { "an" } else { "a" };
    format!("{article} {kind}")
}

fn plan_drop(mut cursor: Cursor<'_>, catalog: &dyn CatalogView) -> Result<Planned, Problem> {
    let kind = kind(&mut cursor)?.to_lowercase();
    let if_exists = cursor.eat_all(&["IF", "EXISTS"]);
    let Name { value: name, at } = cursor.name(&format!("the {kind}'s name"))?;
    let cascade = cursor.eat("CASCADE");
    if !cascade {
        cursor.eat("RESTRICT");
    }
    if cursor.is_token(&Token::Comma) {
        return Err(cursor
            .unexpected(&["the end of the statement"])
            .hint("drop one at a time"));
    }
    cursor.finish(&["CASCADE", "the end of the statement"])?;
    let objects = match catalog.object(&name) {
        None if if_exists => Vec::new(),
        None => return Err(known(catalog, &name, at, &with_article(&kind)).expect_err("missing")),
        Some(object) if object.definition.kind() != kind => {
            let found = object.definition.kind();
            let detail = format!(
                "\"{name}\" is {}, not {}",
                with_article(found),
                with_article(&kind)
            );
            return Err(Problem::invalid(detail)
                .at(at.line, at.column)
                .hint(format!("write DROP {} {name}", found.to_uppercase())));
        }
        Some(_) => {
            let mut objects = dependents(catalog, &name);
            if !objects.is_empty() && !cascade {
                return Err(has_dependents("dropped", &name, &objects, at)
                    .hint("add CASCADE to drop them too"));
            }
            objects.push(name.clone());
            objects
        }
    };
    Ok(Planned::Drop(DropPlan {
        kind,
        name,
        if_exists,
        cascade,
        objects,
    }))
}

/// 409: others read it.
pub(super) fn has_dependents(
    what: &str,
    name: &str,
    dependents: &[String],
    at: Position,
) -> Problem {
    let verb = if dependents.len() == 1 {
        "reads"
    } else {
        "read"
    };
    let list = dependents
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ");
    Problem::new(
        409,
        "has-dependents",
        format!("\"{name}\" cannot be {what}: {list} {verb} it"),
    )
    .at(at.line, at.column)
}

fn plan_show(mut cursor: Cursor<'_>, catalog: &dyn CatalogView) -> Result<Planned, Problem> {
    const WORDS: [&str; 11] = [
        "SOURCES",
        "MODELS",
        "VIEWS",
        "INDEXES",
        "CACHES",
        "SECRETS",
        "CONNECTIONS",
        "SINKS",
        "PROGRESS",
        "ALL",
        "CREATE",
    ];
    if cursor.eat("CREATE") {
        let kind = KINDS
            .iter()
            .find(|kind| cursor.is(kind) && cursor.rest().len() > 1);
        if kind.is_some() {
            cursor.next();
        }
        let Name { value: name, at } = cursor.name("an object's name")?;
        cursor.finish(&["the end of the statement"])?;
        let object = known(catalog, &name, at, "an object's name")?;
        if let Some(kind) = kind
            && !kind.eq_ignore_ascii_case(object.definition.kind())
        {
            let found = with_article(object.definition.kind());
            return Err(Problem::invalid(format!("\"{name}\" is {found}")).at(at.line, at.column));
        }
        let statement = object.statement;
        return Ok(Planned::Show(ShowKind::Create { name, statement }));
    }
    let kinds: [(&[&str], ShowKind); 10] = [
        (&["SOURCES"], ShowKind::Sources),
        (&["MODELS"], ShowKind::Models),
        (&["VIEWS"], ShowKind::Views),
        (&["INDEXES", "INDICES"], ShowKind::Indexes),
        (&["CACHES"], ShowKind::Caches),
        (&["SECRETS"], ShowKind::Secrets),
        (&["CONNECTIONS"], ShowKind::Connections),
        (&["SINKS"], ShowKind::Sinks),
        (&["PROGRESS"], ShowKind::Progress),
        (&["ALL", "OBJECTS"], ShowKind::All),
    ];
    for (words, kind) in kinds {
        if words.iter().any(|word| cursor.eat(word)) {
            cursor.finish(&["the end of the statement"])?;
            return Ok(Planned::Show(kind));
        }
    }
    let at = cursor.position();
    for word in ["POLICIES", "SUBSCRIPTIONS"] {
        if cursor.is(word) {
            let detail = format!("SHOW {word} is not supported by this version");
            return Err(Problem::not_supported(detail).at(at.line, at.column));
        }
    }
    if cursor.is("TABLES") {
        return Err(cursor
            .unexpected(&WORDS)
            .hint("there are sources and views: SHOW ALL"));
    }
    Err(cursor.unexpected(&WORDS))
}

fn plan_describe(mut cursor: Cursor<'_>, catalog: &dyn CatalogView) -> Result<Planned, Problem> {
    if KINDS.iter().any(|kind| cursor.is(kind)) && cursor.rest().len() > 1 {
        cursor.next();
    }
    let mut ahead = cursor;
    let system = ahead.eat("headwater") && ahead.eat_token(&Token::Period);
    let name = if system {
        ahead.name("a system collection")?
    } else {
        cursor.name("a name")?
    };
    let rest = if system { ahead } else { cursor };
    rest.finish(&["the end of the statement"])?;
    let (full, kind, statement) = if system {
        (
            format!("headwater.{}", name.value),
            "system".to_owned(),
            None,
        )
    } else {
        let object = known(catalog, &name.value, name.at, "an object's name")?;
        (
            name.value.clone(),
            object.definition.kind().to_owned(),
            Some(object.statement),
        )
    };
    let schema = relation_schema(catalog, &full);
    if system && schema.is_none() {
        return Err(unknown_system(&name.value, name.at));
    }
    let schema = schema.unwrap_or_default();
    let columns = schema.columns.iter().enumerate().map(|(at, column)| {
        let is_key = schema.key.contains(&at);
        (
            column.name.clone(),
            column.sql_type.to_string(),
            column.nullable,
            is_key,
        )
    });
    Ok(Planned::Describe(Describe {
        name: full,
        kind,
        columns: columns.collect(),
        statement,
    }))
}

/// The problem that a clause of the language is not in this version.
pub(super) fn later(cursor: &Cursor<'_>, what: &str, hint: &str) -> Problem {
    let at = cursor.position();
    Problem::not_supported(format!("{what} is not supported by this version"))
        .at(at.line, at.column)
        .hint(hint)
}

/// `one_of` for lists whose members are names of ours.
pub(super) fn choices(words: &[&str]) -> String {
    one_of(words)
}
