//! `FROM GIT`: the files of a branch as a collection, one row a path, one transaction a commit.
//!
//! Idea: the position in the input log is the commit that was applied last. What follows it on the
//! branch is found by walking first parents back from the head to it; each commit on the way is the
//! difference of two trees, and that difference is one batch. The repository itself is the memory:
//! nothing is kept here but the position.
//!
//! ```text
//! Origin (a path, or a URL's mirror) ─ head ─▶ path(position ⋯ head) ─▶ tree differences ─▶ LaneSink
//!    ▲ looks every INTERVAL                     │ not found: one step, told             {"commit":"…"}
//!    └──────────────────────────────────────────┴ no position: the tree as it is, in small batches
//! ```
//!
//! Invariants: a commit is one batch, or pieces that become visible with the last, so a kill at any
//! point leaves the tree of a commit; a rename is a delete and an upsert in the same transaction; a head
//! that does not have the position among its first parents is reached in one step, never by deleting
//! first; a branch or a repository that is away deletes nothing. No terminal is asked, no credential
//! helper is run, and no configuration outside the repository is read.
//!
//! Limits: regular files only (no symbolic links, no submodules, no LFS content, no modes); a commit
//! over `TRANSACTION_BYTES_MAX` is split and counted; SHA-1 repositories with
//! whole blobs (no partial clones).

mod history;
mod http;
mod mirror;
mod origin;
mod reader;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use engine::contract::{SinkClosed, Source, SourceContext};
use engine::error::WorldError;
use engine::model::{Column, Schema, SqlType};

use origin::Origin;
use reader::Reader;
use rows::Rows;

/// First and longest pause between two tries while the world fails.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Columns `path` (key), `text`, `bytes`, `blob` (its object), and of the commit that last changed
/// the path as this source saw it `commit`, `author` and `committed_at`.
pub fn schema() -> Schema {
    Schema {
        columns: vec![
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
        ],
        key: vec![0],
    }
}

/// What is read.
#[derive(Debug, Clone)]
pub struct GitOptions {
    /// A path, or a URL: `https`, `http`, `ssh`, `git`, `file`, or `user@host:path`.
    pub repository: String,
    /// A branch, or a full reference name (`refs/…`).
    pub branch: String,
    /// A glob over paths in the repository.
    pub pattern: String,
    /// A glob over paths that are left out.
    pub exclude: Option<String>,
    /// The commit whose tree is taken first, as 7 to 40 hexadecimal digits; without it the head's.
    pub from: Option<String>,
    /// Time between two looks at the branch; `None`: a default by the kind of place.
    pub interval: Option<Duration>,
    /// The environment variable with the token or password for `https`.
    pub token_env: Option<String>,
    /// Where the mirrors of URLs lie, in a folder each; `None`: only paths can be read.
    pub mirrors: Option<PathBuf>,
}

/// Reads a branch and follows it. See the module.
pub struct GitSource {
    options: GitOptions,
    origin: Origin,
    rows: Rows,
}

impl GitSource {
    /// A source named `name`. Nothing is opened or connected before it runs.
    ///
    /// Errors: a pattern that is no glob, a branch that cannot be one, a URL of an unknown kind or
    /// with a password in it.
    pub fn new(name: &str, options: GitOptions) -> Result<Self, WorldError> {
        let origin = Origin::new(name, &options).map_err(|detail| failed(&options, detail))?;
        let rows = Rows::new(&options)?;
        Ok(GitSource {
            options,
            origin,
            rows,
        })
    }
}

/// What messages call the repository: a password that somebody wrote into the URL is not repeated.
fn service(repository: &str) -> String {
    let after = |at: usize| &repository[at + 3..];
    let rest = repository.find("://").map(after).unwrap_or_default();
    let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            format!("git '{}'", repository.replacen(user, "***", 1))
        }
        _ => format!("git '{repository}'"),
    }
}

fn failed(options: &GitOptions, detail: String) -> WorldError {
    WorldError::Service {
        service: service(&options.repository),
        detail,
        is_transient: false,
    }
}

/// Why a round ended early.
#[derive(Debug)]
enum Trouble {
    /// Stopping, or the pipeline no longer wants the rows.
    Closed,
    /// The world; tried again.
    World(String),
    /// What a person must solve.
    Person(String),
}

impl From<SinkClosed> for Trouble {
    fn from(_: SinkClosed) -> Self {
        Trouble::Closed
    }
}

impl From<gix::Error> for Trouble {
    fn from(error: gix::Error) -> Self {
        Trouble::World(words(&error))
    }
}

/// An error of gix with its causes, on one line.
fn words(error: &gix::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    for error in error.iter_errors() {
        // What wraps another error often repeats it.
        let next = error.to_string().replace('\n', " ");
        if !words.iter().any(|said| said.contains(&next)) {
            words.push(next);
        }
    }
    words.join(": ")
}

impl Source for GitSource {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let options = self.options.clone();
        let mut reader = Reader::new(*self, context);
        let (mut retry, mut told) = (RETRY.0, None);
        while !reader.context.is_stopping() {
            let pause = match reader.round() {
                Ok(()) => {
                    if told.take().is_some() {
                        reader.context.goes_on("repository");
                        tracing::info!(source = reader.context.name, "the repository is back");
                    }
                    retry = RETRY.0;
                    reader.origin.pause()
                }
                Err(Trouble::Closed) => break,
                Err(Trouble::Person(detail)) => return Err(failed(&options, detail)),
                Err(Trouble::World(detail)) => {
                    // The same trouble is told once, not once a try.
                    if told.as_ref() != Some(&detail) {
                        let source = &reader.context.name;
                        tracing::warn!(source, error = detail, "reading git; trying again");
                        reader.context.waits_for("repository", &detail);
                        told = Some(detail);
                    }
                    reader.forget();
                    let pause = retry;
                    retry = (retry * 2).min(RETRY.1);
                    pause
                }
            };
            if !reader.context.sleep(pause) {
                break;
            }
        }
        Ok(())
    }
}
