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
//! Invariants: a commit is one batch, logged whole, so a kill at any point leaves the tree of a
//! commit; a rename is a delete and an upsert in the same batch; a head that does not have the
//! position among its first parents is reached in one step, never by deleting first; a branch or a
//! repository that is away deletes nothing. No terminal is asked, no credential helper is run, and
//! no configuration outside the repository is read.
//!
//! Limits: regular files only (no symbolic links, no submodules, no LFS content, no modes); a commit
//! over [`COMMIT_BYTES_MAX`] or [`COMMIT_ROWS_MAX`] is split and counted; SHA-1 repositories with
//! whole blobs (no partial clones).

mod history;
mod http;
mod mirror;
mod origin;
mod rows;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, Source, SourceContext};
use engine::error::WorldError;
use engine::limits::{COMMIT_BYTES_MAX, COMMIT_ROWS_MAX};
use engine::model::{Column, Key, Schema, SqlType};
use engine::telemetry::{GIT_COMMITS, GIT_COMMITS_SPLIT, GIT_LAG, GIT_SNAPSHOT_LEFT};
use gix::{ObjectId, Repository};
use serde_json::json;

use history::Touched;
use origin::Origin;
use rows::{Commit, Rows};

/// Rows and dead letters of one batch of the first tree.
const SNAPSHOT_ROWS: usize = 256;
/// Bytes of such a batch (soft for one file).
const SNAPSHOT_BYTES: usize = 2 << 20;
/// First and longest pause between two tries while the world fails.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Time between two lines about a snapshot in the log.
const TELL: Duration = Duration::from_secs(10);

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
                        told = Some(detail);
                    }
                    reader.origin.forget();
                    reader.rows.clear();
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

/// Where the source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Nothing is logged.
    Start,
    /// The tree of a commit is being taken.
    Snapshot(ObjectId),
    /// The tree of a commit is live.
    Commit(ObjectId),
}

impl Position {
    fn of(context: &SourceContext) -> Position {
        let position = context.resume.position("").unwrap_or_default();
        let id = |name: &str| ObjectId::from_hex(position[name].as_str()?.as_bytes()).ok();
        match (id("commit"), id("snapshot")) {
            (Some(commit), _) => Position::Commit(commit),
            (None, Some(commit)) => Position::Snapshot(commit),
            (None, None) => Position::Start,
        }
    }
}

/// A running source.
struct Reader {
    from: Option<String>,
    origin: Origin,
    rows: Rows,
    context: SourceContext,
    position: Position,
    /// Whether `position` is ahead of what was staged: commits without a file of ours.
    is_ahead: bool,
    /// Whether it was told that the branch is not there.
    is_missing: bool,
}

impl Reader {
    fn new(source: GitSource, context: SourceContext) -> Reader {
        Reader {
            from: source.options.from,
            origin: source.origin,
            rows: source.rows,
            position: Position::of(&context),
            is_ahead: false,
            is_missing: false,
            context,
        }
    }

    /// Looks at the branch once and takes what is new.
    fn round(&mut self) -> Result<(), Trouble> {
        let Some(head) = self.origin.head(&self.context)? else {
            if !std::mem::replace(&mut self.is_missing, true) {
                let (source, branch) = (&self.context.name, self.origin.reference());
                tracing::warn!(
                    source,
                    branch,
                    "the branch does not exist; its rows stay, waiting for it"
                );
            }
            return Ok(());
        };
        if std::mem::take(&mut self.is_missing) {
            tracing::info!(source = self.context.name, "the branch is there");
        }
        if self.position == Position::Commit(head) {
            self.lag(0);
            return Ok(());
        }
        let repository = self.origin.repository()?;
        let first = match (self.position, &self.from) {
            (Position::Commit(at), _) => return self.follow(&repository, at, head),
            // Begun before a stop: finished at the same commit while there is one.
            (Position::Snapshot(at), _) if repository.has_object(at) => at,
            (_, Some(from)) => origin::commit(&repository, from)?,
            (_, None) => head,
        };
        self.snapshot(&repository, first)?;
        self.follow(&repository, first, head)
    }

    /// Takes the tree of a commit in small batches, all but what is live already.
    fn snapshot(&mut self, repository: &Repository, id: ObjectId) -> Result<(), Trouble> {
        let commit = Commit::read(repository, id)?;
        self.position = Position::Snapshot(id);
        let touched = self.compared(repository, &commit)?;
        let (source, files) = (self.context.name.clone(), touched.len());
        tracing::info!(source, commit = %id, files, "taking the tree");
        let mut told_at = Instant::now();
        let during = json!({"snapshot": id.to_string()});
        for (done, one) in touched.iter().enumerate() {
            self.check_stop()?;
            self.rows.take(repository, &commit, one, &source)?;
            if self.rows.is_over(SNAPSHOT_ROWS, SNAPSHOT_BYTES) {
                let batch = self.rows.batch(Some(during.clone()));
                self.context.sink.stage(batch)?;
                let left = files - done - 1;
                metrics::gauge!(GIT_SNAPSHOT_LEFT.name, "source" => source.clone())
                    .set(left as f64);
                if told_at.elapsed() > TELL {
                    told_at = Instant::now();
                    tracing::info!(source, left, "taking the tree");
                }
            }
        }
        metrics::gauge!(GIT_SNAPSHOT_LEFT.name, "source" => source).set(0.0);
        self.close(id)
    }

    /// What to do so that exactly the files of a commit are live: compared with the live rows.
    fn compared(&self, repository: &Repository, commit: &Commit) -> Result<Vec<Touched>, Trouble> {
        let resume = &self.context.resume;
        let mut gone: HashSet<Key> = resume.live().into_iter().map(|(key, _)| key).collect();
        let mut touched = Vec::new();
        for file in history::files(repository, commit.tree)? {
            self.check_stop()?;
            let key = Key::text(&file.name());
            let is_same = gone.remove(&key) && {
                let row = resume.row(&key);
                row.is_some_and(|row| self.rows.blob(&row) == file.blob.map(|id| id.to_string()))
            };
            if !is_same && self.rows.wants(&file) {
                touched.push(file);
            }
        }
        let gone = gone.iter().filter_map(|key| {
            let path = key.to_json().as_str()?.to_owned();
            Some(Touched::gone(path))
        });
        let mut gone: Vec<Touched> = gone.collect();
        gone.sort_by(|a, b| a.path.cmp(&b.path));
        touched.extend(gone);
        Ok(touched)
    }

    /// Goes from one commit to the head.
    fn follow(
        &mut self,
        repository: &Repository,
        at: ObjectId,
        head: ObjectId,
    ) -> Result<(), Trouble> {
        let stop = || self.context.is_stopping();
        let Some(commits) = history::path(repository, at, head, &stop)? else {
            self.check_stop()?;
            return self.jump(repository, at, head);
        };
        let mut last = Commit::read(repository, at)?.tree;
        for (done, id) in commits.iter().enumerate() {
            self.lag(commits.len() - done);
            let commit = Commit::read(repository, *id)?;
            let touched = history::changes(repository, last, commit.tree)?;
            last = commit.tree;
            self.apply(repository, &commit, &touched)?;
        }
        self.lag(0);
        self.settle()
    }

    /// Goes from one commit to another that does not follow it on the branch, in one step.
    fn jump(&mut self, repository: &Repository, at: ObjectId, to: ObjectId) -> Result<(), Trouble> {
        let source = &self.context.name;
        let commit = Commit::read(repository, to)?;
        let touched = if repository.has_object(at) {
            if history::descends(repository, at, to) {
                tracing::info!(
                    source, from = %at, to = %to,
                    "the branch was merged into another line; taken as one step"
                );
            } else {
                tracing::warn!(
                    source, from = %at, to = %to,
                    "the branch was rewritten; the difference is taken as one step"
                );
            }
            let before = Commit::read(repository, at)?.tree;
            history::changes(repository, before, commit.tree)?
        } else {
            tracing::warn!(
                source, from = %at, to = %to,
                "the branch was rewritten and what was read last is gone; compared with the live rows"
            );
            self.compared(repository, &commit)?
        };
        self.lag(1);
        self.apply(repository, &commit, &touched)?;
        self.lag(0);
        self.settle()
    }

    /// Stages the changes of one commit as one batch.
    fn apply(
        &mut self,
        repository: &Repository,
        commit: &Commit,
        touched: &[Touched],
    ) -> Result<(), Trouble> {
        let source = self.context.name.clone();
        let mut is_split = false;
        for one in touched {
            self.check_stop()?;
            if !self.rows.wants(one) {
                continue;
            }
            if self.rows.is_over(COMMIT_ROWS_MAX, COMMIT_BYTES_MAX) {
                is_split = true;
                let batch = self.rows.batch(None);
                self.context.sink.stage(batch)?;
            }
            self.rows.take(repository, commit, one, &source)?;
        }
        if is_split {
            tracing::warn!(
                source, commit = %commit.id,
                "the commit is over COMMIT_BYTES_MAX or COMMIT_ROWS_MAX: it became visible in parts"
            );
            metrics::counter!(GIT_COMMITS_SPLIT.name, "source" => source.clone()).increment(1);
        }
        metrics::counter!(GIT_COMMITS.name, "source" => source).increment(1);
        if self.rows.is_empty() && !is_split {
            self.position = Position::Commit(commit.id);
            self.is_ahead = true;
            return Ok(());
        }
        self.close(commit.id)
    }

    /// Stages what is gathered as the end of a commit.
    fn close(&mut self, id: ObjectId) -> Result<(), Trouble> {
        let batch = self.rows.batch(Some(json!({"commit": id.to_string()})));
        self.context.sink.stage(batch)?;
        self.position = Position::Commit(id);
        self.is_ahead = false;
        Ok(())
    }

    /// Stages a position that is ahead: else a restart walks the same commits again.
    fn settle(&mut self) -> Result<(), Trouble> {
        match self.position {
            Position::Commit(id) if self.is_ahead => self.close(id),
            _ => Ok(()),
        }
    }

    fn check_stop(&self) -> Result<(), Trouble> {
        match self.context.is_stopping() {
            true => Err(Trouble::Closed),
            false => Ok(()),
        }
    }

    fn lag(&self, commits: usize) {
        metrics::gauge!(GIT_LAG.name, "source" => self.context.name.clone()).set(commits as f64);
    }
}
