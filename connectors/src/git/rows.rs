//! Paths of a commit to rows and dead letters, gathered to a batch.
//!
//! Invariants: a path that has no good text after a commit is deleted in the same batch as its dead
//! letter; a blob over [`TEXT_BYTES_MAX`] is never read; each path is in a batch once; a path that
//! cannot be a key has a dead letter and no row.

use engine::contract::SourceBatch;
use engine::error::{DataError, DeadLetter, WorldError};
use engine::limits::{KEY_BYTES_MAX, TEXT_BYTES_MAX};
use engine::model::{Key, Row, RowCodec, Value};
use gix::bstr::ByteSlice;
use gix::{ObjectId, Repository};
use globset::GlobMatcher;
use serde_json::Value as Json;

use super::history::Touched;
use super::{GitOptions, Trouble, schema};
use crate::text::{self, BadFile};

/// How a pointer to a file in large file storage begins.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";
/// A pointer is shorter than this.
const LFS_POINTER_BYTES_MAX: usize = 1024;
/// The column of a row that names its blob.
const BLOB_COLUMN: usize = 3;

/// What rows say of a commit.
pub(super) struct Commit {
    /// Its id.
    pub(super) id: ObjectId,
    /// Its tree.
    pub(super) tree: ObjectId,
    author: String,
    /// Microseconds since the epoch.
    committed_at: i64,
}

impl Commit {
    /// Reads a commit.
    pub(super) fn read(repository: &Repository, id: ObjectId) -> Result<Commit, Trouble> {
        let commit = repository.find_commit(id)?;
        // Signatures are free text: a malformed one must not stop what follows it.
        let author = commit.author().map(|author| {
            let author = author.trim();
            let (name, email) = (author.name.to_str_lossy(), author.email.to_str_lossy());
            format!("{name} <{email}>")
        });
        let committed = commit.committer().map(|committer| committer.seconds());
        Ok(Commit {
            id,
            tree: commit.tree_id()?.detach(),
            author: author.unwrap_or_default(),
            committed_at: committed.unwrap_or_default().saturating_mul(1_000_000),
        })
    }
}

/// Makes rows of the wanted paths.
pub(super) struct Rows {
    pattern: GlobMatcher,
    exclude: Option<GlobMatcher>,
    codec: RowCodec,
    batch: SourceBatch,
    bytes: usize,
}

impl Rows {
    /// Errors: a pattern that is no glob.
    pub(super) fn new(options: &GitOptions) -> Result<Rows, WorldError> {
        let service = super::service(&options.repository);
        let exclude = options.exclude.as_deref();
        let exclude = exclude.map(|pattern| text::glob(&service, "EXCLUDE", pattern));
        Ok(Rows {
            pattern: text::glob(&service, "PATTERN", &options.pattern)?,
            exclude: exclude.transpose()?,
            codec: RowCodec::new(schema()).expect("types that Arrow can order"),
            batch: SourceBatch::default(),
            bytes: 0,
        })
    }

    /// Whether a path is one of this source's.
    pub(super) fn wants(&self, touched: &Touched) -> bool {
        let name = touched.name();
        let is_excluded = |exclude: &GlobMatcher| exclude.is_match(&name);
        self.pattern.is_match(&name) && !self.exclude.as_ref().is_some_and(is_excluded)
    }

    /// The blob that a live row shows.
    pub(super) fn blob(&self, row: &Row) -> Option<String> {
        match self.codec.unpack(row).into_iter().nth(BLOB_COLUMN) {
            Some(Value::Text(blob)) => Some(blob.to_string()),
            _ => None,
        }
    }

    /// Adds what a commit made of a path.
    pub(super) fn take(
        &mut self,
        repository: &Repository,
        commit: &Commit,
        touched: &Touched,
        source: &str,
    ) -> Result<(), Trouble> {
        let name = touched.name();
        let unnameable = unnameable(touched);
        let Some(blob) = touched.blob else {
            if unnameable.is_none() {
                self.push(&name, None);
            }
            return Ok(());
        };
        let is_nameable = unnameable.is_none();
        let found = match unnameable {
            Some(error) => Err((error, Vec::new())),
            None => read(repository, blob, &name)?,
        };
        match found {
            Ok(text) => {
                let bytes = text.len() as i64;
                let row = self.codec.pack(&[
                    Value::Text(name.as_str().into()),
                    Value::Text(text.into()),
                    Value::Int(bytes),
                    Value::Text(blob.to_string().into()),
                    Value::Text(commit.id.to_string().into()),
                    Value::Text(commit.author.as_str().into()),
                    Value::Timestamp(commit.committed_at),
                ]);
                self.push(&name, Some(row));
            }
            Err((error, payload)) => {
                self.bytes += payload.len();
                // The delete first: it is no answer to the letter.
                if is_nameable {
                    self.push(&name, None);
                }
                let position = format!("commit {} {name}", commit.id);
                let letter = DeadLetter::new(source, position, error, &payload)
                    .key(is_nameable.then(|| Key::text(&name)))
                    .after(self.batch.changes.len());
                self.batch.dead_letters.push(letter);
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &str, row: Option<Row>) {
        self.bytes += name.len() + row.as_ref().map_or(0, |row| row.as_bytes().len());
        self.batch.changes.push((Key::text(name), row, None));
    }

    /// Whether nothing is gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.changes.is_empty() && self.batch.dead_letters.is_empty()
    }

    /// Whether as much is gathered as may be.
    pub(super) fn is_over(&self, rows: usize, bytes: usize) -> bool {
        self.batch.changes.len().max(self.batch.dead_letters.len()) >= rows || self.bytes >= bytes
    }

    /// The bytes of what is gathered.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was gathered, with the position that it leads to.
    pub(super) fn batch(&mut self, position: Option<Json>) -> SourceBatch {
        self.bytes = 0;
        let mut batch = std::mem::take(&mut self.batch);
        batch.position = position;
        batch
    }

    /// Forgets what was gathered: the rest of it cannot be had now.
    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        self.batch = SourceBatch::default();
    }
}

/// Why a path cannot be a key, if it cannot.
fn unnameable(touched: &Touched) -> Option<DataError> {
    let name = touched.name();
    if touched.path.to_str().is_err() {
        let error = DataError::new("invalid-path", format!("the path '{name}' is not UTF-8"));
        return Some(error.hint("rename the file, or leave it out by EXCLUDE"));
    }
    let bytes = Key::text(&name).as_str().len();
    (bytes > KEY_BYTES_MAX).then(|| {
        DataError::new(
            "key-too-large",
            format!("the key has {bytes} bytes; the limit KEY_BYTES_MAX is {KEY_BYTES_MAX}"),
        )
    })
}

/// A blob's text, or its dead letter.
fn read(
    repository: &Repository,
    blob: ObjectId,
    name: &str,
) -> Result<Result<String, (DataError, Vec<u8>)>, Trouble> {
    let bytes = repository.find_header(blob)?.size();
    if bytes > TEXT_BYTES_MAX as u64 {
        return Ok(Err((BadFile::TooLarge(bytes).on(name), Vec::new())));
    }
    let content = repository.find_object(blob)?.detach().data;
    if content.len() < LFS_POINTER_BYTES_MAX && content.starts_with(LFS_POINTER) {
        let detail = format!("file '{name}' is a pointer to large file storage (git LFS)");
        let error = DataError::new("git-lfs-pointer", detail)
            .expected("the text itself in the repository")
            .hint("leave it out by EXCLUDE, or keep it in the repository");
        return Ok(Err((error, content)));
    }
    Ok(text::text(content).map_err(|(bad, payload)| (bad.on(name), payload)))
}
