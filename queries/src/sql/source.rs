//! `CREATE SOURCE`: columns and key, and where the rows come from.
//!
//! ```text
//! CREATE SOURCE name [(columns)] FROM PUSH (columns) | FILES (…) | GENERATE (…) | GIT (…) | KAFKA (…) …
//!                                    | POSTGRES (…)
//! ```
//!
//! Kafka's own clauses are in [`super::kafka`], git's options in [`super::git`], PostgreSQL's in
//! [`super::connection`].

use datafusion_sql::sqlparser::tokenizer::Token;
use engine::limits::DIMENSIONS_MAX;
use engine::model::{Column, Schema, SqlType};

use super::catalog::CatalogView;
use super::cursor::{Cursor, Name};
use super::options::{Known, Options};
use super::statement::later;
use super::types::column_type;
use crate::definition::{Connector, FilesDef, SourceDef};
use crate::problem::{Position, Problem};

/// What `PATTERN` is without the option.
pub(super) const PATTERN_DEFAULT: &str = "**/*";

/// Reads what stands behind the name, which stands at `at`.
pub(super) fn source(
    cursor: &mut Cursor<'_>,
    name: &Name,
    catalog: &dyn CatalogView,
) -> Result<SourceDef, Problem> {
    const CONNECTORS: [&str; 6] = ["PUSH", "FILES", "GENERATE", "GIT", "KAFKA", "POSTGRES"];
    let at = name.at;
    let before = match cursor.is_token(&Token::LParen) {
        true => Some(Columns {
            at: cursor.position(),
            schema: columns(cursor)?,
        }),
        false => None,
    };
    cursor.expect("FROM")?;
    let declared_twice = |at: Position| {
        Problem::syntax("the columns are declared twice")
            .at(at.line, at.column)
            .expected("columns before FROM or behind PUSH")
    };
    let no_columns = |what: &str, list: &str| match &before {
        Some(Columns { at, .. }) => Err(Problem::invalid(format!("{what} has columns of its own"))
            .at(at.line, at.column)
            .expected(format!("no column list; the columns are {list}"))),
        None => Ok(()),
    };
    let source = if cursor.eat("PUSH") {
        let behind = cursor.position();
        let schema = match (&before, cursor.is_token(&Token::LParen)) {
            (Some(_), true) => return Err(declared_twice(behind)),
            (Some(Columns { schema, .. }), false) => schema.clone(),
            (None, _) => columns(cursor)?,
        };
        keyed(&schema, at)?;
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
    } else if cursor.eat("GIT") {
        no_columns("GIT", super::git::COLUMNS)?;
        super::git::git(cursor)?
    } else if cursor.eat("KAFKA") {
        return super::kafka::kafka(cursor, before, at, catalog);
    } else if cursor.eat("POSTGRES") {
        return super::connection::postgres(cursor, before, name, catalog);
    } else {
        for word in ["HTTP", "S3"] {
            if cursor.is(word) {
                return Err(later(
                    cursor,
                    &format!("FROM {word}"),
                    "sources of this version are FILES, PUSH, GENERATE, GIT, KAFKA and POSTGRES",
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

/// Columns as declared; the key may be missing.
pub(super) struct Columns {
    /// Where the list begins.
    pub at: Position,
    /// What it says.
    pub schema: Schema,
}

pub(super) fn keyed(schema: &Schema, name_at: Position) -> Result<(), Problem> {
    if schema.key.is_empty() {
        return Err(Problem::invalid("a source needs a primary key")
            .at(name_at.line, name_at.column)
            .expected("PRIMARY KEY at a column, or PRIMARY KEY (a, b)"));
    }
    Ok(())
}

pub(super) fn required(
    options: &Options,
    name: &str,
    what: &str,
    at: Position,
) -> Result<(), Problem> {
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
        names: &["PATH", "PATTERN", "EXTRACT"],
        later: &["INTERVAL", "FOLLOW"],
    };
    let at = cursor.position();
    let options = Options::parse(cursor, &KNOWN)?;
    required(&options, "PATH", "FROM FILES", at)?;
    let path = options.text("PATH")?.unwrap_or_default();
    let pattern = options
        .text("PATTERN")?
        .unwrap_or_else(|| PATTERN_DEFAULT.to_owned());
    let extract = options.choice("EXTRACT", &["auto", "none"])? != Some("none");
    for name in ["PATH", "PATTERN"] {
        options.refuse_empty(name)?;
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
        connector: Connector::Files(FilesDef {
            path,
            pattern,
            extract,
        }),
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
fn columns(cursor: &mut Cursor<'_>) -> Result<Schema, Problem> {
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
    apply_key(&mut schema, &key.unwrap_or_default())?;
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
