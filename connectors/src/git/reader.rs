//! The running source: from the position to the head of the branch, commit by commit.
//!
//! Idea: a round looks at the branch once. Without a position it takes a tree; with one it walks the
//! commits that follow, or makes one step where the branch does not lead there.
//!
//! ```text
//! Start ─ tree of FROM COMMIT or the head ─▶ Snapshot(c) ─ last batch ─▶ Commit(c) ─ batch ─▶ Commit(d) …
//! ```
//!
//! Invariants: only the last piece of a commit has its position; an unfinished one, or what the branch has
//! in its place, is finished by comparing with the live rows; a tree that a stop interrupted is finished
//! before what follows it; commits without a file of ours have no batch of their own.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use engine::contract::{Part, SourceContext};
use engine::limits::{
    TRANSACTION_BYTES_MAX, TRANSACTION_PIECE_BYTES_MAX, TRANSACTION_PIECE_ROWS_MAX,
};
use engine::model::Key;
use engine::telemetry::{GIT_COMMITS, GIT_COMMITS_SPLIT, GIT_LAG, GIT_SNAPSHOT_LEFT};
use gix::{ObjectId, Repository};
use serde_json::json;

use super::history::{self, Touched};
use super::origin::{self, Origin};
use super::rows::{Commit, Rows};
use super::{GitSource, Trouble};

/// Rows and dead letters of one batch of the first tree.
const SNAPSHOT_ROWS: usize = 256;
/// Bytes of such a batch (soft for one file).
const SNAPSHOT_BYTES: usize = 2 << 20;
/// Time between two lines about a snapshot in the log.
const TELL: Duration = Duration::from_secs(10);

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
    /// With it, the commit of which not all pieces were staged.
    fn of(context: &SourceContext) -> (Position, Option<ObjectId>) {
        let position = context.resume.position("").unwrap_or_default();
        let id = |name: &str| ObjectId::from_hex(position[name].as_str()?.as_bytes()).ok();
        let stands = match (id("commit"), id("snapshot")) {
            (Some(commit), _) => Position::Commit(commit),
            (None, Some(commit)) => Position::Snapshot(commit),
            (None, None) => Position::Start,
        };
        (stands, id("begun"))
    }
}

/// A running source.
pub(super) struct Reader {
    from: Option<String>,
    pub(super) origin: Origin,
    rows: Rows,
    pub(super) context: SourceContext,
    position: Position,
    /// A commit of which pieces were staged, and not the last.
    begun: Option<ObjectId>,
    /// Whether `position` is ahead of what was staged: commits without a file of ours.
    is_ahead: bool,
    /// Whether it was told that the branch is not there.
    is_missing: bool,
}

impl Reader {
    pub(super) fn new(source: GitSource, context: SourceContext) -> Reader {
        let (position, begun) = Position::of(&context);
        Reader {
            from: source.options.from,
            origin: source.origin,
            rows: source.rows,
            position,
            begun,
            is_ahead: false,
            is_missing: false,
            context,
        }
    }

    /// Looks at the branch once and takes what is new.
    pub(super) fn round(&mut self) -> Result<(), Trouble> {
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
        if self.position == Position::Commit(head) && self.begun.is_none() {
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

    /// Starts afresh after trouble: with the repository, and with what was gathered of a commit.
    pub(super) fn forget(&mut self) {
        self.origin.forget();
        self.rows.clear();
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
        let mut gone: HashSet<Key> = resume.keys().into_iter().collect();
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
        let commits = history::path(repository, at, head, &stop)?;
        let has_begun = |commits: &Vec<ObjectId>| self.begun.is_none_or(|id| commits.contains(&id));
        let Some(commits) = commits.filter(has_begun) else {
            self.check_stop()?;
            return self.jump(repository, at, head);
        };
        let mut last = Commit::read(repository, at)?.tree;
        for (done, id) in commits.iter().enumerate() {
            self.lag(commits.len() - done);
            let commit = Commit::read(repository, *id)?;
            let touched = match self.begun {
                // What is live of it is not staged again, nor is what an earlier form of it left.
                Some(begun) if begun == *id => self.compared(repository, &commit)?,
                _ => history::changes(repository, last, commit.tree)?,
            };
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
        let touched = if self.begun.is_some() {
            tracing::warn!(
                source, from = %at, to = %to,
                "the branch was rewritten while a commit of it was taken; compared with the live rows"
            );
            self.compared(repository, &commit)?
        } else if repository.has_object(at) {
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

    /// Stages the changes of one commit, a large one's in pieces.
    fn apply(
        &mut self,
        repository: &Repository,
        commit: &Commit,
        touched: &[Touched],
    ) -> Result<(), Trouble> {
        let source = self.context.name.clone();
        let (mut open_bytes, mut is_split) = (0, false);
        for one in touched {
            self.check_stop()?;
            if !self.rows.wants(one) {
                continue;
            }
            let (rows, bytes) = (TRANSACTION_PIECE_ROWS_MAX, TRANSACTION_PIECE_BYTES_MAX);
            if self.rows.is_over(rows, bytes) {
                open_bytes += self.rows.bytes();
                let is_open = open_bytes <= TRANSACTION_BYTES_MAX;
                if !is_open {
                    (open_bytes, is_split) = (0, true);
                }
                self.piece(commit.id, is_open)?;
            }
            self.rows.take(repository, commit, one, &source)?;
        }
        if is_split {
            tracing::warn!(
                source, commit = %commit.id,
                limit = TRANSACTION_BYTES_MAX,
                "the commit is larger than TRANSACTION_BYTES_MAX: it became visible in parts"
            );
            metrics::counter!(GIT_COMMITS_SPLIT.name, "source" => source.clone()).increment(1);
        }
        metrics::counter!(GIT_COMMITS.name, "source" => source).increment(1);
        if self.rows.is_empty() && self.begun.is_none() {
            self.position = Position::Commit(commit.id);
            self.is_ahead = true;
            return Ok(());
        }
        self.close(commit.id)
    }

    /// Stages what is gathered of a commit; visible with what comes next if `is_open`.
    fn piece(&mut self, of: ObjectId, is_open: bool) -> Result<(), Trouble> {
        let mut position = json!({"begun": of.to_string()});
        if let Position::Commit(id) = self.position {
            position["commit"] = id.to_string().into();
        }
        self.begun = Some(of);
        let part = Part {
            source: self.context.sink.source(),
            name: self.context.name.as_str().into(),
            batch: self.rows.batch(Some(position)),
        };
        let staged = self.context.sink.stage_together(vec![part], is_open);
        staged.map_err(|_| Trouble::Closed)
    }

    /// Stages what is gathered as the end of a commit.
    fn close(&mut self, id: ObjectId) -> Result<(), Trouble> {
        let batch = self.rows.batch(Some(json!({"commit": id.to_string()})));
        self.context.sink.stage(batch)?;
        self.position = Position::Commit(id);
        (self.is_ahead, self.begun) = (false, None);
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
