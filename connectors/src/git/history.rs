//! What lies between commits: the way from one to another, and the difference of two trees.
//!
//! Idea: a branch is what its first parents say. A merge is one commit on that line whose difference
//! is taken against its first parent: what the branch looked like before, as its users saw it.
//!
//! ```text
//! at ◀─ a ◀─ b ◀─ m ◀─ head        path(at, head) = [a, b, m, head]
//!              ◀─ x ◀─┘            x came with m
//! ```
//!
//! Invariants: a difference names each path once, in the order of bytes; only what is a regular file
//! has a blob. Cost: a walk reads one commit a step, a difference only the trees that differ.

use gix::bstr::{BString, ByteSlice};
use gix::diff::tree::recorder::Change;
use gix::objs::TreeRefIter;
use gix::objs::tree::EntryMode;
use gix::traverse::tree::Recorder as Files;
use gix::{ObjectId, Repository};

use super::Trouble;

/// Commits between two looks whether to stop.
const STOP_EVERY: usize = 256;

/// A path that a commit touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Touched {
    /// As git has it: any bytes.
    pub(super) path: BString,
    /// What lies there afterwards, if it is a regular file.
    pub(super) blob: Option<ObjectId>,
}

impl Touched {
    /// A path where nothing lies any more.
    pub(super) fn gone(path: String) -> Touched {
        Touched {
            path: path.into(),
            blob: None,
        }
    }

    fn now(path: BString, mode: EntryMode, oid: ObjectId) -> Touched {
        Touched {
            path,
            blob: mode.is_blob().then_some(oid),
        }
    }

    /// The path for people; not UTF-8 becomes replacement characters.
    pub(super) fn name(&self) -> String {
        self.path.to_str_lossy().into_owned()
    }
}

/// The commits that follow `at` up to `head` along first parents, oldest first; `None` when `at` is
/// not among them, or when stopping.
pub(super) fn path(
    repository: &Repository,
    at: ObjectId,
    head: ObjectId,
    is_stopping: &dyn Fn() -> bool,
) -> Result<Option<Vec<ObjectId>>, Trouble> {
    let mut commits = Vec::new();
    let mut here = head;
    while here != at {
        if commits.len().is_multiple_of(STOP_EVERY) && is_stopping() {
            return Ok(None);
        }
        // What a shallow clone has cut off is not there.
        let Some(object) = repository.try_find_object(here)? else {
            return Ok(None);
        };
        commits.push(here);
        let parent = object.try_into_commit()?.parent_ids().next();
        let Some(parent) = parent else {
            return Ok(None);
        };
        here = parent.detach();
    }
    commits.reverse();
    Ok(Some(commits))
}

/// Whether a commit has another among all its ancestors.
pub(super) fn descends(repository: &Repository, ancestor: ObjectId, commit: ObjectId) -> bool {
    // It only chooses words for the log: what cannot be read counts as rewritten.
    let base = repository.merge_base(ancestor, commit).ok().flatten();
    base.is_some_and(|base| base.detach() == ancestor)
}

/// The regular files of a tree.
pub(super) fn files(repository: &Repository, tree: ObjectId) -> Result<Vec<Touched>, Trouble> {
    let tree = repository.find_tree(tree)?;
    let mut files = Files::default();
    tree.traverse().breadthfirst(&mut files)?;
    let files = files.records.into_iter();
    let mut files: Vec<Touched> = files
        .filter(|entry| entry.mode.is_blob())
        .map(|entry| Touched::now(entry.filepath, entry.mode, entry.oid))
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The paths at which two trees differ in what regular files they have.
pub(super) fn changes(
    repository: &Repository,
    before: ObjectId,
    after: ObjectId,
) -> Result<Vec<Touched>, Trouble> {
    if before == after {
        return Ok(Vec::new());
    }
    let (before, after) = (repository.find_tree(before)?, repository.find_tree(after)?);
    let mut found = gix::diff::tree::Recorder::default();
    gix::diff::tree(
        TreeRefIter::from_bytes(&before.data, before.id.kind()),
        TreeRefIter::from_bytes(&after.data, after.id.kind()),
        gix::diff::tree::State::default(),
        &repository.objects,
        &mut found,
    )
    .map_err(gix::Error::from_error)?;
    let mut touched: Vec<Touched> = found.records.into_iter().filter_map(touch).collect();
    // A file that became a folder, or a folder a file, is named twice; what lies there now wins.
    touched.sort_by(|a, b| (&a.path, a.blob.is_none()).cmp(&(&b.path, b.blob.is_none())));
    touched.dedup_by(|later, kept| later.path == kept.path);
    Ok(touched)
}

/// A change of a tree as a change of regular files, if it is one.
fn touch(change: Change) -> Option<Touched> {
    match change {
        Change::Addition {
            entry_mode,
            oid,
            path,
            ..
        } => entry_mode
            .is_blob()
            .then(|| Touched::now(path, entry_mode, oid)),
        Change::Deletion {
            entry_mode, path, ..
        } => entry_mode.is_blob().then_some(Touched { path, blob: None }),
        Change::Modification {
            previous_entry_mode,
            previous_oid,
            entry_mode,
            oid,
            path,
        } => {
            let was_same = previous_entry_mode.is_blob() && previous_oid == oid;
            let is_ours = previous_entry_mode.is_blob() || entry_mode.is_blob();
            // Only the mode changed: no content did.
            (is_ours && !(was_same && entry_mode.is_blob()))
                .then(|| Touched::now(path, entry_mode, oid))
        }
    }
}
