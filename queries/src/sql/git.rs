//! `FROM GIT (…)`.
//!
//! ```text
//! FROM GIT (REPOSITORY 'path or URL', BRANCH 'main' [, PATTERN '**/*.md'] [, EXCLUDE 'drafts/**']
//!           [, FROM COMMIT '1f3c9a0'] [, INTERVAL '30 seconds'] [, TOKEN ENV 'GIT_TOKEN'])
//! ```
//!
//! The columns are the connector's own. A branch has no default: a working copy changes its branch
//! from day to day, and a source must not.

use engine::model::{Column, Schema, SqlType};

use super::cursor::Cursor;
use super::interval::format_micros;
use super::normal::text;
use super::options::{Known, Options};
use super::source::{PATTERN_DEFAULT, required};
use crate::definition::{Connector, GitDef, SourceDef};
use crate::problem::Problem;

/// The columns, for errors.
pub(super) const COLUMNS: &str = "path, text, bytes, blob, commit, author, committed_at";

/// Digits of a commit's id: as few as git shows, and all of them.
const COMMIT_DIGITS: std::ops::RangeInclusive<usize> = 7..=40;
/// Shortest and longest INTERVAL, microseconds.
const INTERVAL: std::ops::RangeInclusive<u64> = 50_000..=86_400_000_000;

/// Reads the option list.
pub(super) fn git(cursor: &mut Cursor<'_>) -> Result<SourceDef, Problem> {
    const KNOWN: Known = Known {
        what: "FROM GIT",
        names: &[
            "REPOSITORY",
            "BRANCH",
            "PATTERN",
            "EXCLUDE",
            "FROM COMMIT",
            "INTERVAL",
            "TOKEN ENV",
        ],
        later: &["CONNECTION", "TOKEN SECRET", "DEPTH"],
    };
    let at = cursor.position();
    let options = Options::parse(cursor, &KNOWN)?;
    for name in ["REPOSITORY", "BRANCH"] {
        required(&options, name, KNOWN.what, at)?;
    }
    for name in KNOWN.names.iter().filter(|name| **name != "INTERVAL") {
        options.refuse_empty(name)?;
    }
    let interval = options.duration("INTERVAL", INTERVAL, "from 50 milliseconds to 1 day")?;
    let def = GitDef {
        repository: options.text("REPOSITORY")?.unwrap_or_default(),
        branch: options.text("BRANCH")?.unwrap_or_default(),
        pattern: options
            .text("PATTERN")?
            .unwrap_or_else(|| PATTERN_DEFAULT.to_owned()),
        exclude: options.text("EXCLUDE")?,
        from_commit: from_commit(&options)?,
        interval_micros: interval,
        token_env: options.text("TOKEN ENV")?,
    };
    let columns = vec![
        Column {
            nullable: false,
            ..Column::new("path", SqlType::Text)
        },
        Column::new("text", SqlType::Text),
        Column::new("bytes", SqlType::Int8),
        Column::new("blob", SqlType::Text),
        Column::new("commit", SqlType::Text),
        Column::new("author", SqlType::Text),
        Column::new("committed_at", SqlType::TimestampTz),
    ];
    let schema = Schema {
        columns,
        key: vec![0],
    };
    Ok(SourceDef {
        schema,
        connector: Connector::Git(Box::new(def)),
    })
}

fn from_commit(options: &Options) -> Result<Option<String>, Problem> {
    let Some(id) = options.text("FROM COMMIT")? else {
        return Ok(None);
    };
    let is_id =
        COMMIT_DIGITS.contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        return Ok(Some(id.to_ascii_lowercase()));
    }
    let at = options.position("FROM COMMIT").unwrap_or_default();
    Err(Problem::invalid(format!("'{id}' is no commit's id"))
        .at(at.line, at.column)
        .expected("7 to 40 hexadecimal digits")
        .hint("git rev-parse shows the id that a branch or tag stands for"))
}

/// The normalised statement.
pub(super) fn normal(name: &str, def: &GitDef) -> String {
    let mut options = vec![
        format!("REPOSITORY = {}", text(&def.repository)),
        format!("BRANCH = {}", text(&def.branch)),
        format!("PATTERN = {}", text(&def.pattern)),
    ];
    let interval = def.interval_micros.map(format_micros);
    let more = [
        ("EXCLUDE", &def.exclude),
        ("FROM COMMIT", &def.from_commit),
        ("INTERVAL", &interval),
        ("TOKEN ENV", &def.token_env),
    ];
    for (option, value) in more {
        options.extend(
            value
                .as_ref()
                .map(|value| format!("{option} = {}", text(value))),
        );
    }
    format!("CREATE SOURCE {name} FROM GIT ({})", options.join(", "))
}
