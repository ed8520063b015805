//! `CREATE`: sources, models and caches; views and indexes have files of their own.

use datafusion_sql::sqlparser::tokenizer::Token;
use engine::limits::{DIMENSIONS_MAX, K_MAX};
use engine::model::{Column, Schema, SqlType};

use super::catalog::{CatalogView, dependents};
use super::cursor::{Cursor, Name};
use super::options::{Known, Options};
use super::plan::Create;
use super::statement::{has_dependents, kind, known, later, with_article};
use super::types::column_type;
use crate::definition::{CacheDef, Connector, Definition, ModelDef, SourceDef};
use crate::problem::{Position, Problem};

/// One day; what a cache's TTL may at most be is ten years.
const DAY_MICROS: u64 = 86_400_000_000;
/// What `PATTERN` is without the option.
pub(super) const PATTERN_DEFAULT: &str = "**/*";
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
    if cursor.is("POLICY") || cursor.is("SINK") || cursor.is("SECRET") || cursor.is("CONNECTION") {
        let what = cursor
            .peek()
            .map(|token| token.token.to_string().to_uppercase());
        let what = format!("CREATE {}", what.unwrap_or_default());
        return Err(later(&cursor, &what, later_hint(&what)));
    }
    let kind = kind(&mut cursor)?;
    let if_not_exists = cursor.eat_all(&["IF", "NOT", "EXISTS"]);
    let Name { value: name, at } = cursor.name(&format!("the {}'s name", kind.to_lowercase()))?;
    if or_replace && if_not_exists {
        return Err(
            Problem::syntax("OR REPLACE and IF NOT EXISTS exclude each other")
                .at(start.line, start.column)
                .expected("one of them"),
        );
    }
    let definition = match kind {
        "SOURCE" => Definition::Source(source(&mut cursor, at)?),
        "MODEL" => Definition::Model(model(&mut cursor)?),
        "VIEW" => {
            cursor.expect("AS")?;
            Definition::View(super::view::view_definition(&mut cursor, end, catalog)?)
        }
        "INDEX" => Definition::Index(super::index::index(&mut cursor, catalog)?),
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

fn later_hint(what: &str) -> &'static str {
    match what {
        "CREATE SECRET" => "connectors of this version need no secrets",
        "CREATE CONNECTION" => "sources of this version are FILES, PUSH and GENERATE",
        "CREATE POLICY" => "filter in the question: WHERE over INCLUDEd columns",
        _ => "read changes by asking; POST /v1/search/subscribe will stream them",
    }
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

fn source(cursor: &mut Cursor<'_>, at: Position) -> Result<SourceDef, Problem> {
    const CONNECTORS: [&str; 3] = ["PUSH", "FILES", "GENERATE"];
    let before = if cursor.is_token(&Token::LParen) {
        Some((cursor.position(), columns(cursor, at)?))
    } else {
        None
    };
    cursor.expect("FROM")?;
    let declared_twice = |at: Position| {
        Problem::syntax("the columns are declared twice")
            .at(at.line, at.column)
            .expected("columns before FROM or behind PUSH")
    };
    let no_columns = |what: &str, list: &str| match &before {
        Some((at, _)) => Err(Problem::invalid(format!("{what} has columns of its own"))
            .at(at.line, at.column)
            .expected(format!("no column list; the columns are {list}"))),
        None => Ok(()),
    };
    let source = if cursor.eat("PUSH") {
        let behind = cursor.position();
        let schema = match (&before, cursor.is_token(&Token::LParen)) {
            (Some(_), true) => return Err(declared_twice(behind)),
            (Some((_, schema)), false) => schema.clone(),
            (None, _) => columns(cursor, at)?,
        };
        SourceDef {
            schema,
            connector: Connector::Push,
        }
    } else if cursor.eat("FILES") {
        no_columns("FILES", "path, text, bytes, modified_at")?;
        files(cursor)?
    } else if cursor.eat("GENERATE") {
        no_columns("GENERATE", "id, body, grp and, with DIMENSIONS, embedding")?;
        generate(cursor)?
    } else {
        for word in ["KAFKA", "POSTGRES", "GIT", "HTTP", "S3"] {
            if cursor.is(word) {
                return Err(later(
                    cursor,
                    &format!("FROM {word}"),
                    "sources of this version are FILES, PUSH and GENERATE",
                ));
            }
        }
        return Err(cursor.unexpected(&CONNECTORS));
    };
    for word in ["FORMAT", "ENVELOPE", "WITH"] {
        if cursor.is(word) {
            return Err(later(
                cursor,
                &format!("{word} of this source"),
                "leave it out",
            ));
        }
    }
    Ok(source)
}

fn required(options: &Options, name: &str, what: &str, at: Position) -> Result<(), Problem> {
    match options.position(name) {
        Some(_) => Ok(()),
        None => Err(Problem::invalid(format!("{what} needs the option {name}"))
            .at(at.line, at.column)
            .expected(name)),
    }
}

fn files(cursor: &mut Cursor<'_>) -> Result<SourceDef, Problem> {
    const KNOWN: Known = Known {
        what: "FROM FILES",
        names: &["PATH", "PATTERN"],
        later: &["INTERVAL", "FOLLOW"],
    };
    let at = cursor.position();
    let options = Options::parse(cursor, &KNOWN)?;
    required(&options, "PATH", "FROM FILES", at)?;
    let path = options.text("PATH")?.unwrap_or_default();
    let pattern = options
        .text("PATTERN")?
        .unwrap_or_else(|| PATTERN_DEFAULT.to_owned());
    for (name, text) in [("PATH", &path), ("PATTERN", &pattern)] {
        if text.is_empty() {
            let at = options.position(name).unwrap_or(at);
            return Err(Problem::invalid(format!("option {name} is empty")).at(at.line, at.column));
        }
    }
    let columns = vec![
        Column {
            nullable: false,
            ..Column::new("path", SqlType::Text)
        },
        Column::new("text", SqlType::Text),
        Column::new("bytes", SqlType::Int8),
        Column::new("modified_at", SqlType::TimestampTz),
    ];
    let schema = Schema {
        columns,
        key: vec![0],
    };
    Ok(SourceDef {
        schema,
        connector: Connector::Files { path, pattern },
    })
}

fn generate(cursor: &mut Cursor<'_>) -> Result<SourceDef, Problem> {
    const KNOWN: Known = Known {
        what: "FROM GENERATE",
        names: &["ROWS", "RATE", "SEED", "DIMENSIONS"],
        later: &[],
    };
    let at = cursor.position();
    let options = Options::parse(cursor, &KNOWN)?;
    required(&options, "ROWS", "FROM GENERATE", at)?;
    let rows = options
        .integer("ROWS", 0..=u64::from(u32::MAX))?
        .unwrap_or_default();
    let rate = options
        .integer("RATE", 0..=u64::from(u32::MAX))?
        .unwrap_or(0);
    let seed = options.integer("SEED", 0..=u64::MAX)?.unwrap_or(0);
    let dimensions = options
        .integer("DIMENSIONS", 1..=u64::from(DIMENSIONS_MAX))?
        .map(|n| u32::try_from(n).expect("at most DIMENSIONS_MAX"));
    let mut columns = vec![
        Column {
            nullable: false,
            ..Column::new("id", SqlType::Int8)
        },
        Column::new("body", SqlType::Text),
        Column::new("grp", SqlType::Int8),
    ];
    columns.extend(dimensions.map(|n| Column::new("embedding", SqlType::Vector(n))));
    let schema = Schema {
        columns,
        key: vec![0],
    };
    Ok(SourceDef {
        schema,
        connector: Connector::Generate {
            rows,
            rate,
            seed,
            dimensions,
        },
    })
}

/// `(name TYPE [NOT NULL] [PRIMARY KEY], …[, PRIMARY KEY (a, b)])`
fn columns(cursor: &mut Cursor<'_>, name_at: Position) -> Result<Schema, Problem> {
    let mut inner = cursor.group("(column TYPE, …)")?;
    let mut schema = Schema::default();
    let mut key: Option<Vec<Name>> = None;
    let set_key = |key: &mut Option<Vec<Name>>, names: Vec<Name>, at: Position| match key {
        Some(_) => Err(Problem::syntax("the primary key is declared twice")
            .at(at.line, at.column)
            .hint("a key of several columns is declared as PRIMARY KEY (a, b)")),
        None => {
            *key = Some(names);
            Ok(())
        }
    };
    loop {
        let at = inner.position();
        if inner.eat_all(&["PRIMARY", "KEY"]) || inner.is("KEY") && is_key_list(&mut inner) {
            let names = inner.names("a column's name")?;
            set_key(&mut key, names, at)?;
        } else {
            let name = inner.name("a column's name")?;
            if schema.position(&name.value).is_some() {
                return Err(Problem::invalid(format!(
                    "column \"{}\" is declared twice",
                    name.value
                ))
                .at(at.line, at.column));
            }
            let mut column = Column::new(&name.value, column_type(&mut inner)?);
            if constraints(&mut inner, &mut column)? {
                set_key(&mut key, vec![name], at)?;
            }
            schema.columns.push(column);
        }
        if !inner.eat_token(&Token::Comma) {
            break;
        }
    }
    inner.finish(&["\",\"", "\")\"", "NOT NULL", "PRIMARY KEY"])?;
    let Some(key) = key else {
        return Err(Problem::invalid("a source needs a primary key")
            .at(name_at.line, name_at.column)
            .expected("PRIMARY KEY at a column, or PRIMARY KEY (a, b)"));
    };
    apply_key(&mut schema, &key)?;
    Ok(schema)
}

/// `KEY (…)`, unless a column is called key.
fn is_key_list(inner: &mut Cursor<'_>) -> bool {
    let mut ahead = *inner;
    let found = ahead.eat("KEY") && ahead.is_token(&Token::LParen);
    if found {
        *inner = ahead;
    }
    found
}

/// Reads a column's constraints; true for PRIMARY KEY.
fn constraints(inner: &mut Cursor<'_>, column: &mut Column) -> Result<bool, Problem> {
    let mut is_key = false;
    loop {
        if inner.eat_all(&["NOT", "NULL"]) {
            column.nullable = false;
        } else if inner.eat_all(&["PRIMARY", "KEY"]) {
            is_key = true;
        } else if !inner.eat("NULL") {
            break;
        }
    }
    for word in [
        "DEFAULT",
        "UNIQUE",
        "REFERENCES",
        "CHECK",
        "GENERATED",
        "COLLATE",
        "CONSTRAINT",
    ] {
        if inner.is(word) {
            return Err(later(inner, &format!("{word} at a column"), "leave it out"));
        }
    }
    Ok(is_key)
}

fn apply_key(schema: &mut Schema, key: &[Name]) -> Result<(), Problem> {
    for name in key {
        let at = name.at;
        let Some(position) = schema.position(&name.value) else {
            return Err(
                Problem::invalid(format!("there is no column \"{}\"", name.value))
                    .at(at.line, at.column)
                    .expected("a column of this source"),
            );
        };
        let sql_type = schema.columns[position].sql_type;
        let unfit = matches!(
            sql_type,
            SqlType::Vector(_) | SqlType::Jsonb | SqlType::Float4 | SqlType::Float8
        );
        if unfit {
            return Err(
                Problem::invalid(format!("a key cannot be of type {sql_type}"))
                    .at(at.line, at.column)
                    .expected("a type with exact equality: TEXT, BIGINT, UUID, …"),
            );
        }
        if schema.key.contains(&position) {
            return Err(
                Problem::invalid(format!("\"{}\" is in the key twice", name.value))
                    .at(at.line, at.column),
            );
        }
        schema.key.push(position);
        schema.columns[position].nullable = false;
    }
    // "In declared order" (engine::model::Schema).
    schema.key.sort_unstable();
    Ok(())
}

fn model(cursor: &mut Cursor<'_>) -> Result<ModelDef, Problem> {
    cursor.expect("FROM")?;
    if cursor.eat("COLUMN") {
        const KNOWN: Known = Known {
            what: "FROM COLUMN",
            names: &["DIMENSIONS"],
            later: &["METRIC"],
        };
        let at = cursor.position();
        cursor.expect("WITH")?;
        let options = Options::parse(cursor, &KNOWN)?;
        required(&options, "DIMENSIONS", "FROM COLUMN", at)?;
        let dimensions = options.integer("DIMENSIONS", 1..=u64::from(DIMENSIONS_MAX))?;
        let dimensions = u32::try_from(dimensions.unwrap_or(1)).expect("at most DIMENSIONS_MAX");
        return Ok(ModelDef::Column { dimensions });
    }
    const KNOWN: Known = Known {
        what: "CREATE MODEL",
        names: &["DEVICE", "PRECISION"],
        later: &["POOLING", "PROMPT", "REVISION"],
    };
    let at = cursor.position();
    let location = cursor.string("a model's name or folder in single quotes, or COLUMN")?;
    if location.is_empty() {
        return Err(Problem::invalid("the model's name is empty").at(at.line, at.column));
    }
    let options = match cursor.eat("WITH") {
        true => Options::parse(cursor, &KNOWN)?,
        false => Options::default(),
    };
    let device = options
        .choice("DEVICE", &["auto", "cpu"])?
        .unwrap_or("auto")
        .to_owned();
    let precision = options
        .choice("PRECISION", &["full"])?
        .unwrap_or("full")
        .to_owned();
    Ok(ModelDef::Pretrained {
        location,
        device,
        precision,
    })
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
        Some(Definition::Model(ModelDef::Pretrained { .. }))
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
