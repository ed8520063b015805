//! What is known of each file, and what a scan or a look makes of it.
//!
//! ```text
//! scan: walk PATH ─▶ look at each ─▶ what was not seen is missing ─┐
//! notice ─▶ due in 30 ms ─▶ look at that one ──────────────────────┼─▶ missing twice ─▶ delete
//!            (again while it is still written, or missing) ────────┘
//! ```
//!
//! Invariants: those of [`super`]; what a look does, the next scan would have done. An archive has no row
//! of its own; its members go with it. What is made of what was read is in [`super::take`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use engine::contract::{SinkClosed, SourceContext};
use engine::error::DataError;
use engine::model::{ContentHash, Key};
use walkdir::WalkDir;

use super::notice::Notice;
use super::read::{FRESH, FRESH_DOCUMENT, Found, Stamp, Unread, is_gone, reason, relative};
use super::rows::Rows;
use super::{FilesSource, PAUSE, archive_of, read, text_of};
use crate::document::Kind;

/// The code of the letter about PATH.
const PATH_MISSING: &str = "path-missing";
/// A file that was never at rest for so long is read anyway.
const RESTLESS: Duration = Duration::from_secs(1);
/// Paths that wait for a look; beyond, the scan finds them.
const DUE_MAX: usize = 4_096;
/// From a notification, or a look in vain, to the next look.
const LOOK: Duration = FRESH.saturating_add(Duration::from_millis(1));

/// What is known of a file, or of a member of an archive.
#[derive(Default)]
pub(super) struct Known {
    /// When it was last read at rest; `None` to read it again.
    pub(super) stamp: Option<Stamp>,
    /// Since when a change of it waits to be read.
    waiting_since: Option<Instant>,
    /// Hash of its live row.
    pub(super) live: Option<ContentHash>,
    /// Hash of its live row's text, of a member.
    pub(super) text: Option<ContentHash>,
    /// Since when it is not there.
    pub(super) missing_since: Option<Instant>,
    /// The dead letter that it has had since it was last good.
    pub(super) told: Option<Told>,
    /// When a version that could not be read in time is tried again.
    pub(super) retry: Option<Retry>,
}

/// A dead letter that was told.
pub(super) struct Told {
    pub(super) code: String,
    /// What it said, if it was told before this start.
    pub(super) before: Option<String>,
}

/// A version that is tried again.
pub(super) struct Retry {
    pub(super) stamp: Stamp,
    pub(super) at: Instant,
    pub(super) tries: u32,
}

/// What is left to do after a look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Done,
    /// It is still written, or missing: look again.
    Again,
    /// It is a folder, or may have been one.
    Scan,
}

pub(super) struct Watcher {
    pub(super) source: FilesSource,
    pub(super) rows: Rows,
    pub(super) files: BTreeMap<String, Known>,
    is_missing: bool,
    /// Whether the dead letter about PATH is kept.
    is_path_told: bool,
    due: BTreeMap<String, Instant>,
}

impl Watcher {
    pub(super) fn new(source: FilesSource, context: SourceContext) -> Self {
        let live = context.resume.live().into_iter().filter_map(|(key, hash)| {
            let path = key.to_json().as_str()?.to_owned();
            let known = Known {
                live: Some(hash),
                ..Known::default()
            };
            Some((path, known))
        });
        let mut files: BTreeMap<String, Known> = live.collect();
        // What was told before is not told again, and ends when it is good or gone.
        let mut is_path_told = false;
        for letter in context.resume.letters() {
            let Some(key) = letter.key.as_ref().map(Key::to_json) else {
                continue;
            };
            if letter.error.code == PATH_MISSING {
                is_path_told = true;
            } else if let Some(name) = key.as_str() {
                files.entry(name.to_owned()).or_default().told = Some(Told {
                    code: letter.error.code.clone(),
                    before: Some(letter.error.detail.clone()),
                });
            }
        }
        Watcher {
            source,
            files,
            rows: Rows::new(context),
            is_missing: false,
            is_path_told,
            due: BTreeMap::new(),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.rows.context.is_stopping()
    }

    /// One pass over the folder.
    pub(super) fn scan(&mut self) -> Result<(), SinkClosed> {
        if let Err(error) = std::fs::metadata(&self.source.root) {
            return self.root_missing(&error);
        }
        if self.is_missing {
            self.is_missing = false;
            self.rows.context.goes_on("path");
            tracing::info!(path = %self.source.root.display(), "the folder is back");
        }
        if std::mem::take(&mut self.is_path_told) {
            self.rows.emit(&self.path_key(), None)?;
        }
        let mut seen = HashSet::new();
        let mut is_whole = true;
        let root = self.source.root.clone();
        for entry in WalkDir::new(&root).follow_links(false) {
            if self.is_stopping() {
                return Ok(());
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    // A folder that cannot be listed hides files: then nothing counts as deleted.
                    // One below PATH that vanished is a deletion; PATH itself never is.
                    is_whole &= error.depth() > 0 && error.io_error().is_some_and(is_gone);
                    continue;
                }
            };
            if !entry.file_type().is_file() {
                continue;
            }
            let name = relative(&root, entry.path());
            if !self.wants(&name) {
                continue;
            }
            self.look(&name, entry.path())?;
            seen.insert(name);
        }
        // Folders below a PATH that vanished during the walk look deleted, too.
        if is_whole && root.exists() {
            self.miss(&seen)?;
        }
        self.rows.flush()
    }

    /// Whether the file is read: PATTERN is not asked about an archive that is PATH itself.
    fn wants(&self, name: &str) -> bool {
        let is_archive = || matches!(self.source.kind_of(name, &[]), Kind::Archive(_));
        self.source.wants(name) || is_archive() && self.source.root.is_file()
    }

    fn root_missing(&mut self, error: &std::io::Error) -> Result<(), SinkClosed> {
        // What was missing before PATH vanished does not count with what is missing after.
        self.files
            .values_mut()
            .for_each(|known| known.missing_since = None);
        self.due.clear();
        if self.is_missing {
            return Ok(());
        }
        self.is_missing = true;
        self.rows
            .context
            .waits_for("path", format!("PATH cannot be read: {}", reason(error)));
        let path = self.source.root.display().to_string();
        tracing::warn!(path, %error, "PATH cannot be read; its rows stay, waiting for it");
        if std::mem::replace(&mut self.is_path_told, true) {
            return Ok(());
        }
        let detail = format!("PATH '{path}' cannot be read: {}", reason(error));
        let error = DataError::new("path-missing", detail)
            .expected("a folder or a file")
            .hint("its rows stay; they are compared again when it is back");
        let key = Key::text(&self.path_key());
        self.rows.letter(path, error, &[], Some(key))?;
        self.rows.flush()
    }

    /// The key of the letter about PATH: it ends as no row's key does.
    fn path_key(&self) -> String {
        format!("{}/", self.source.root.display())
    }

    /// Takes note of a notification; true when the folder is to be scanned soon.
    pub(super) fn note(&mut self, notice: Notice) -> bool {
        let Notice::Path(name, is_structure) = notice else {
            return true;
        };
        let is_wanted = self.wants(&name);
        if is_wanted && self.due.len() < DUE_MAX {
            // The first look stays where it is: what is written all the time is looked at, too.
            let at = Instant::now() + LOOK;
            self.due.entry(name.clone()).or_insert(at);
        }
        // It may be a folder, whose files nothing tells of.
        is_structure && !self.files.contains_key(&name)
    }

    /// When the next look is due.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Looks at the paths that are due; true when the folder is to be scanned soon.
    pub(super) fn look_at_due(&mut self) -> Result<bool, SinkClosed> {
        let now = Instant::now();
        let due = self.due.iter().filter(|(_, at)| **at <= now);
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        let (mut scans, is_idle) = (false, due.is_empty());
        for name in due {
            if self.is_stopping() {
                break;
            }
            self.due.remove(&name);
            match self.look_at(&name)? {
                Then::Done => {}
                Then::Again => drop(self.due.insert(name, Instant::now() + LOOK)),
                Then::Scan => scans = true,
            }
        }
        if !is_idle {
            self.rows.flush()?;
        }
        Ok(scans)
    }

    fn look_at(&mut self, name: &str) -> Result<Then, SinkClosed> {
        let path = self.source.path_of(name);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => return self.look(name, &path),
            Ok(metadata) if metadata.is_dir() => return Ok(Then::Scan),
            // A link, which is not followed.
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            // The scan judges what cannot be listed.
            Err(_) => return Ok(Then::Done),
        }
        if !self.files.contains_key(name) {
            return Ok(Then::Done);
        }
        // PATH that went away takes nothing with it. (A PATH that is a file goes away itself.)
        match self.source.root.exists() && self.is_gone_for_long(name) {
            true => self.forget(name).map(|()| Then::Done),
            false => Ok(Then::Again),
        }
    }

    /// Notes that a file is missing; true when it is missing for the second time.
    fn is_gone_for_long(&mut self, name: &str) -> bool {
        let Some(known) = self.files.get_mut(name) else {
            return false;
        };
        known
            .missing_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            >= PAUSE.0
    }

    /// Looks at one file; reads it when it changed and is at rest, or has been restless for long.
    fn look(&mut self, name: &str, path: &Path) -> Result<Then, SinkClosed> {
        let Some(stamp) = Stamp::at(path) else {
            return Ok(Then::Again);
        };
        let kind = self.source.kind_of(name, &[]);
        let known = self.files.entry(name.to_owned()).or_default();
        known.missing_since = None;
        if known.stamp == Some(stamp) {
            known.waiting_since = None;
            return Ok(Then::Done);
        }
        let retry = known.retry.as_ref().filter(|retry| retry.stamp == stamp);
        if retry.is_some_and(|retry| Instant::now() < retry.at) {
            return Ok(Then::Done);
        }
        let waiting_since = *known.waiting_since.get_or_insert_with(Instant::now);
        let fresh = if kind == Kind::Plain {
            FRESH
        } else {
            FRESH_DOCUMENT
        };
        let is_fresh = stamp.is_fresh(fresh);
        // Half a document is a broken one.
        let is_overdue = kind == Kind::Plain && waiting_since.elapsed() >= RESTLESS;
        if is_fresh && !is_overdue {
            return Ok(Then::Again);
        }
        let source = &self.source;
        let found = read::file(path, |head| source.kind_of(name, head));
        let is_at_rest = !is_fresh && Stamp::at(path) == Some(stamp);
        if !is_at_rest && !is_overdue {
            return Ok(Then::Again);
        }
        known.waiting_since = None;
        match found {
            Ok(Found {
                kind: Kind::Archive(packing),
                content,
            }) => {
                self.take_archive(name, packing, &content, stamp)?;
            }
            Ok(Found { kind, content }) => {
                let found = text_of(&self.source, kind, content, &self.rows.context.stop);
                self.take(name, found, stamp, is_at_rest)?;
            }
            Err(unread) => {
                let is_bad = matches!(unread, Unread::Data(..));
                self.take(name, Err(unread), stamp, is_at_rest)?;
                if is_bad && matches!(kind, Kind::Archive(_)) {
                    self.forget_members(name, &HashSet::new())?;
                }
            }
        }
        Ok(if is_at_rest { Then::Done } else { Then::Again })
    }

    /// Notes what a scan did not see, and deletes what it missed for the second time. Members are missing
    /// with their archive: one that comes back unchanged is not read again.
    fn miss(&mut self, seen: &HashSet<String>) -> Result<(), SinkClosed> {
        let is_seen = |name: &str| {
            seen.contains(name)
                || archive_of(name).is_some_and(|(archive, _)| seen.contains(archive))
        };
        let missing = self.files.keys().filter(|name| !is_seen(name));
        let file_of = |name: &str| archive_of(name).map_or(name, |(file, _)| file).to_owned();
        let missing: BTreeSet<String> = missing.map(|name| file_of(name)).collect();
        for name in missing {
            // After a start an archive is known by its members only.
            self.files.entry(name.clone()).or_default();
            if self.is_gone_for_long(&name) {
                self.forget(&name)?;
            } else if self.due.len() < DUE_MAX {
                let at = Instant::now() + PAUSE.0;
                self.due.entry(name).or_insert(at);
            }
        }
        Ok(())
    }
}
