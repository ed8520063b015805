//! One file: what tells its versions apart, its bytes, and why they cannot be had.
//!
//! Invariants: never more is read than the limit of the file's kind and one byte; the kind is chosen
//! by the name and the first bytes, before the rest is read.

use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::error::DataError;

use crate::document::{HEAD_BYTES, Kind};
use crate::text::BadFile;

/// A file changed within this time may still be written.
pub(super) const FRESH: Duration = Duration::from_millis(30);
/// The same for documents and archives: half of one is broken.
pub(super) const FRESH_DOCUMENT: Duration = Duration::from_millis(200);

/// What tells versions of a file apart without reading it. Programs set the time of change of what they
/// copy (`rsync -t`, archives); what the system notes itself they cannot set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    /// Time of change, nanoseconds since the epoch.
    modified_nanos: u128,
    /// When the system saw the last change of bytes, name or rights, and which file it is.
    system: System,
}

/// Time of the system's last change in nanoseconds since the epoch, and the file's number; zeros where the
/// system has neither.
type System = (u128, u64);

#[cfg(unix)]
fn system(metadata: &Metadata) -> System {
    use std::os::unix::fs::MetadataExt;
    let seconds = u128::try_from(metadata.ctime()).unwrap_or(0);
    let nanos = u128::try_from(metadata.ctime_nsec()).unwrap_or(0);
    (seconds * 1_000_000_000 + nanos, metadata.ino())
}

#[cfg(not(unix))]
fn system(_metadata: &Metadata) -> System {
    (0, 0)
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Stamp {
        let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Stamp {
            bytes: metadata.len(),
            modified_nanos: since_epoch.as_nanos(),
            system: system(metadata),
        }
    }

    /// The stamp of the file there.
    pub(super) fn at(path: &Path) -> Option<Stamp> {
        Some(Stamp::of(&std::fs::metadata(path).ok()?))
    }

    /// Changed so lately that a second change could carry the same stamp, or may follow.
    pub(super) fn is_fresh(&self, fresh: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        // A change in the future is a wrong clock, not a fresh file.
        let age = |at: u128| now.checked_sub(at);
        let is_within = |at: u128, time: Duration| age(at).is_some_and(|age| age < time.as_nanos());
        is_within(self.modified_nanos, fresh) || is_within(self.system.0, FRESH)
    }

    /// Time of change, microseconds since the epoch.
    pub(super) fn modified_micros(&self) -> i64 {
        i64::try_from(self.modified_nanos / 1_000).unwrap_or(i64::MAX)
    }
}

/// A file's bytes.
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) content: Vec<u8>,
}

/// Why a file has no text.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is not there.
    Vanished,
    /// It is an archive, which has no text of its own.
    Archive,
    /// The source is stopping.
    Stopped,
    /// No document can be read now.
    Busy,
    /// It cannot be read now.
    World(Error),
    /// What it holds is no text; with the payload of its dead letter.
    Data(BadFile, Vec<u8>),
}

/// Reads a file; `kind_of` judges its first bytes.
pub(super) fn file(path: &Path, kind_of: impl Fn(&[u8]) -> Kind) -> Result<Found, Unread> {
    let failed = |error: Error| match is_gone(&error) {
        true => Unread::Vanished,
        false => Unread::World(error),
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    let head = file
        .by_ref()
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut content);
    head.map_err(failed)?;
    let kind = kind_of(&content);
    let max = kind.bytes_max() as u64;
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    if bytes > max {
        return Err(Unread::Data(BadFile::too_large(kind, bytes), Vec::new()));
    }
    content.reserve_exact((bytes as usize + 1).saturating_sub(content.len()));
    let rest = (max + 1).saturating_sub(content.len() as u64);
    file.take(rest).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > max {
        let bad = BadFile::too_large(kind, content.len() as u64);
        return Err(Unread::Data(bad, Vec::new()));
    }
    Ok(Found { kind, content })
}

pub(super) fn unreadable(name: &str, error: &Error) -> DataError {
    let detail = format!("file '{name}' cannot be read: {}", reason(error));
    DataError::new("unreadable-file", detail)
        .hint("its last good version stays; reading is tried again")
}

/// Nothing is there, or what was a folder above it is a file now.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The error in words that do not depend on the platform's number.
pub(super) fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "it does not exist".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The path below the root, with `/`; a root that is a file gives its own name.
pub(super) fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    if below.as_os_str().is_empty() {
        return path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
    }
    let parts = below
        .components()
        .map(|part| part.as_os_str().to_string_lossy());
    parts.collect::<Vec<_>>().join("/")
}
