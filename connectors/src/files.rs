//! `FROM FILES (PATH, PATTERN)`: a folder as a collection, one row a file.
//!
//! Idea: the folder is scanned again and again; a file whose size or time of change differs is read
//! and, if its row differs from the live one, emitted. Nothing but the file system is trusted to
//! notice changes, so editors that replace files, network folders and copies all work.
//!
//! ```text
//! scan ─▶ (size, mtime) changed? ─▶ read ─┬─ UTF-8, fits ─▶ row (path, text, bytes, modified_at)
//!   ▲                                     ├─ not UTF-8, too large ─▶ dead letter, row retracted
//!   └── 50 ms … 2 s, by the scan's cost   └─ unreadable ─▶ dead letter, last good row stays
//! ```
//!
//! Invariants: a file that vanished is deleted after two scans in a row missed it (an editor that
//! replaces a file never shows a gap); a PATH that vanished deletes nothing; a text is taken only
//! when the file was the same before and after reading it; one dead letter a change of a file, not
//! one a scan; after a restart a file whose row is live is not emitted again.
//!
//! Limits: a text up to [`TEXT_BYTES_MAX`], more is never read; symbolic links are not followed; a
//! scan costs one `stat` a file and is repeated after fifty times its own duration, at most every
//! 50 ms. A file that never stops changing is taken as it is found, once a second: such a version
//! may be half of one and half of the next, and is replaced when the file rests. A folder that is
//! there but empty (a mount that went away) counts as emptied.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::contract::{SinkClosed, Source, SourceBatch, SourceContext};
use engine::error::{DataError, DeadLetter, WorldError};
use engine::letters::Redecoded;
use engine::limits::TEXT_BYTES_MAX;
use engine::model::{Column, ContentHash, Key, Row, RowCodec, Schema, SqlType, Value};
use globset::GlobMatcher;
use walkdir::WalkDir;

use crate::text::{self, BadFile};

/// Rows and dead letters of one batch.
const BATCH_ROWS: usize = 256;
/// Bytes of one batch (soft for one file).
const BATCH_BYTES: usize = 2 << 20;
/// Shortest and longest pause between two scans.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A scan is repeated after so many times its duration: idle watching costs 2 % of a core.
const PAUSE_FACTOR: u32 = 50;
/// A file changed within this time may still be written: read it at the next scan.
const FRESH: Duration = Duration::from_millis(30);
/// A file that was never at rest for so long is read anyway.
const RESTLESS: Duration = Duration::from_secs(1);

/// Columns `path` (key, relative, with `/`), `text`, `bytes`, `modified_at`.
pub fn schema() -> Schema {
    Schema {
        columns: vec![
            Column {
                nullable: false,
                ..Column::new("path", SqlType::Text)
            },
            Column::new("text", SqlType::Text),
            Column::new("bytes", SqlType::Int8),
            Column::new("modified_at", SqlType::TimestampTz),
        ],
        key: vec![0],
    }
}

/// Reads and watches a folder.
pub struct FilesSource {
    root: PathBuf,
    pattern: GlobMatcher,
}

impl FilesSource {
    /// A source over `path` with a glob relative to it: `**` crosses folders, `*` does not.
    pub fn new(path: &str, pattern: &str) -> Result<Self, WorldError> {
        Ok(FilesSource {
            root: PathBuf::from(path),
            pattern: text::glob(&format!("files '{path}'"), "PATTERN", pattern)?,
        })
    }
}

impl Source for FilesSource {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let mut watcher = Watcher::new(*self, context);
        while !watcher.context.is_stopping() {
            let started = Instant::now();
            if watcher.scan().is_err() {
                return Ok(());
            }
            let pause = (started.elapsed() * PAUSE_FACTOR).clamp(PAUSE.0, PAUSE.1);
            if !watcher.context.sleep(pause) {
                break;
            }
        }
        Ok(())
    }
}

/// What tells versions of a file apart without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    /// Time of change, nanoseconds since the epoch.
    modified_nanos: u128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Stamp {
            bytes: metadata.len(),
            modified_nanos: since_epoch.as_nanos(),
        }
    }

    /// Changed so lately that a second change could carry the same stamp.
    fn is_fresh(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let age = now
            .unwrap_or_default()
            .as_nanos()
            .checked_sub(self.modified_nanos);
        // A change in the future is a wrong clock, not a fresh file.
        age.is_some_and(|age| age < FRESH.as_nanos())
    }
}

/// What is known of a file.
#[derive(Default)]
struct Known {
    /// When it was last read at rest; `None` to read it again.
    stamp: Option<Stamp>,
    /// Since when a change of it waits to be read.
    waiting_since: Option<Instant>,
    /// Hash of its live row.
    live: Option<ContentHash>,
    /// Scans in a row that did not see it.
    missed: u8,
    /// The code of the dead letter that it has had since it was last good.
    told: Option<&'static str>,
}

struct Watcher {
    source: FilesSource,
    context: SourceContext,
    codec: RowCodec,
    files: HashMap<String, Known>,
    is_missing: bool,
    batch: SourceBatch,
    batch_bytes: usize,
}

impl Watcher {
    fn new(source: FilesSource, context: SourceContext) -> Self {
        let live = context.resume.live().into_iter().filter_map(|(key, hash)| {
            let path = key.to_json().as_str()?.to_owned();
            let known = Known {
                live: Some(hash),
                ..Known::default()
            };
            Some((path, known))
        });
        let files = live.collect();
        let codec = RowCodec::new(schema()).expect("types that Arrow can order");
        let batch = SourceBatch::default();
        Watcher {
            source,
            context,
            codec,
            files,
            is_missing: false,
            batch,
            batch_bytes: 0,
        }
    }

    /// One pass over the folder.
    fn scan(&mut self) -> Result<(), SinkClosed> {
        if let Err(error) = std::fs::metadata(&self.source.root) {
            return self.root_missing(&error);
        }
        if self.is_missing {
            self.is_missing = false;
            tracing::info!(path = %self.source.root.display(), "the folder is back");
        }
        let mut seen = HashSet::new();
        let mut is_whole = true;
        let root = self.source.root.clone();
        for entry in WalkDir::new(&root).follow_links(false) {
            if self.context.is_stopping() {
                return Ok(());
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    // A folder that cannot be listed hides files: then nothing counts as deleted.
                    // One below PATH that vanished is a deletion; PATH itself never is.
                    is_whole &= error.depth() > 0 && error.io_error().is_some_and(is_not_found);
                    continue;
                }
            };
            if !entry.file_type().is_file() {
                continue;
            }
            let name = relative(&root, entry.path());
            if !self.source.pattern.is_match(&name) {
                continue;
            }
            self.look(&name, entry.path())?;
            seen.insert(name);
        }
        // Folders below a PATH that vanished during the walk look deleted, too.
        if is_whole && root.exists() {
            self.delete_missed(&seen)?;
        }
        self.flush()
    }

    fn root_missing(&mut self, error: &std::io::Error) -> Result<(), SinkClosed> {
        // Scans in a row: those before PATH vanished do not count with those after.
        self.files.values_mut().for_each(|known| known.missed = 0);
        if self.is_missing {
            return Ok(());
        }
        self.is_missing = true;
        let path = self.source.root.display().to_string();
        tracing::warn!(path, %error, "PATH cannot be read; its rows stay, waiting for it");
        let detail = format!("PATH '{path}' cannot be read: {}", reason(error));
        let error = DataError::new("path-missing", detail)
            .expected("a folder or a file")
            .hint("its rows stay; they are compared again when it is back");
        self.letter(path, error, &[], None)?;
        self.flush()
    }

    /// Looks at one file; reads it when it changed and is at rest, or has been restless for long.
    fn look(&mut self, name: &str, path: &Path) -> Result<(), SinkClosed> {
        let Ok(metadata) = std::fs::metadata(path) else {
            return Ok(());
        };
        let stamp = Stamp::of(&metadata);
        let known = self.files.entry(name.to_owned()).or_default();
        known.missed = 0;
        if known.stamp == Some(stamp) {
            known.waiting_since = None;
            return Ok(());
        }
        let waiting_since = *known.waiting_since.get_or_insert_with(Instant::now);
        let is_overdue = waiting_since.elapsed() >= RESTLESS;
        if stamp.is_fresh() && !is_overdue {
            return Ok(());
        }
        let found = read(path, stamp.bytes);
        let after = std::fs::metadata(path).map(|metadata| Stamp::of(&metadata));
        let is_at_rest = !stamp.is_fresh() && after.is_ok_and(|after| after == stamp);
        if !is_at_rest && !is_overdue {
            return Ok(());
        }
        known.waiting_since = None;
        self.take(name, found, stamp, is_at_rest)
    }

    /// Takes what reading a file gave.
    fn take(
        &mut self,
        name: &str,
        found: Result<String, Unread>,
        stamp: Stamp,
        is_at_rest: bool,
    ) -> Result<(), SinkClosed> {
        let known = self.files.entry(name.to_owned()).or_default();
        // What was read in motion is read again.
        let read_at = is_at_rest.then_some(stamp);
        match found {
            Ok(text) => {
                known.stamp = read_at;
                // The same row again ends the letter of a file that could not be read.
                let was_told = known.told.take().is_some();
                let row = row(&self.codec, name, text, stamp);
                let hash = ContentHash::of(row.as_bytes());
                if known.live.replace(hash) != Some(hash) || was_told {
                    self.emit(name, Some(row))?;
                }
            }
            Err(Unread::Vanished) => {}
            Err(Unread::World(error)) => {
                if known.told.replace("unreadable-file") != Some("unreadable-file") {
                    let error = unreadable(name, &error);
                    self.letter(name.to_owned(), error, &[], Some(Key::text(name)))?;
                }
            }
            Err(Unread::Data(bad, payload)) => {
                known.stamp = read_at;
                let told = known.told.replace(bad.code());
                let was_live = known.live.take().is_some() || is_live(&self.context, name);
                // Each version at rest that is not UTF-8 names its own byte; a file that grows and
                // grows is too large only once.
                let is_news = is_at_rest && matches!(bad, BadFile::InvalidUtf8(_));
                // The row goes first: the letter is about what came after it.
                if was_live {
                    self.emit(name, None)?;
                }
                if is_news || told != Some(bad.code()) {
                    let key = Some(Key::text(name));
                    self.letter(name.to_owned(), bad.on(name), &payload, key)?;
                }
            }
        }
        Ok(())
    }

    fn delete_missed(&mut self, seen: &HashSet<String>) -> Result<(), SinkClosed> {
        let mut gone = Vec::new();
        for (name, known) in &mut self.files {
            if !seen.contains(name) {
                known.missed += 1;
                if known.missed >= 2 {
                    gone.push(name.clone());
                }
            }
        }
        gone.sort();
        for name in gone {
            let known = self.files.remove(&name).unwrap_or_default();
            // A file that was bad takes its letter with it.
            if known.live.is_some() || known.told.is_some() || is_live(&self.context, &name) {
                self.emit(&name, None)?;
            }
        }
        Ok(())
    }

    fn emit(&mut self, name: &str, row: Option<Row>) -> Result<(), SinkClosed> {
        self.batch_bytes += row.as_ref().map_or(0, |row| row.as_bytes().len());
        self.batch.changes.push((Key::text(name), row, None));
        self.flush_if_full()
    }

    fn letter(
        &mut self,
        position: String,
        error: DataError,
        payload: &[u8],
        key: Option<Key>,
    ) -> Result<(), SinkClosed> {
        self.batch_bytes += payload.len();
        let letter = DeadLetter::new(&*self.context.name, position, error, payload);
        let letter = letter.key(key).after(self.batch.changes.len());
        self.batch.dead_letters.push(letter);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), SinkClosed> {
        let rows = self.batch.changes.len() + self.batch.dead_letters.len();
        if rows >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkClosed> {
        self.batch_bytes = 0;
        if self.batch.changes.is_empty() && self.batch.dead_letters.is_empty() {
            return Ok(());
        }
        self.context.sink.stage(std::mem::take(&mut self.batch))
    }
}

/// Whether the source has a row of a file: a replayed letter may have brought one.
fn is_live(context: &SourceContext, name: &str) -> bool {
    context.resume.row(&Key::text(name)).is_some()
}

fn row(codec: &RowCodec, name: &str, text: String, stamp: Stamp) -> Row {
    let micros = i64::try_from(stamp.modified_nanos / 1_000).unwrap_or(i64::MAX);
    let bytes = text.len() as i64;
    codec.pack(&[
        Value::Text(name.into()),
        Value::Text(text.into()),
        Value::Int(bytes),
        Value::Timestamp(micros),
    ])
}

/// Reads the file that a dead letter of `FROM FILES (PATH path, PATTERN pattern)` is about again.
///
/// Errors: a pattern that is no glob.
pub fn reread(path: &str, pattern: &str, letter: &DeadLetter) -> Result<Redecoded, WorldError> {
    let source = FilesSource::new(path, pattern)?;
    let name = &*letter.position;
    let refused = |reason: &str| Ok(Redecoded::Refused(reason.to_owned()));
    if letter.key.is_none() {
        return refused("it is about PATH, not about a file");
    }
    if !source.pattern.is_match(name) {
        return refused("PATTERN leaves the file out now");
    }
    let file = match source.root.is_file() {
        true => source.root.clone(),
        false => source.root.join(name),
    };
    let Ok(metadata) = std::fs::metadata(&file) else {
        return refused("the file does not exist");
    };
    let stamp = Stamp::of(&metadata);
    Ok(match read(&file, stamp.bytes) {
        Ok(text) => {
            let codec = RowCodec::new(schema()).expect("types that Arrow can order");
            let row = row(&codec, name, text, stamp);
            Redecoded::Good {
                lane: String::new(),
                changes: vec![(Key::text(name), Some(row), None)],
            }
        }
        Err(Unread::Vanished) => return refused("the file does not exist"),
        Err(Unread::World(error)) => Redecoded::StillBad(unreadable(name, &error)),
        Err(Unread::Data(bad, _)) => Redecoded::StillBad(bad.on(name)),
    })
}

fn unreadable(name: &str, error: &std::io::Error) -> DataError {
    let detail = format!("file '{name}' cannot be read: {}", reason(error));
    DataError::new("unreadable-file", detail)
        .hint("its last good version stays; reading is tried again")
}

/// Why a file has no text.
enum Unread {
    Vanished,
    World(std::io::Error),
    Data(BadFile, Vec<u8>),
}

/// Reads a file that had `bytes` bytes; never more than the limit and one.
fn read(path: &Path, bytes: u64) -> Result<String, Unread> {
    let max = TEXT_BYTES_MAX as u64;
    if bytes > max {
        return Err(Unread::Data(BadFile::TooLarge(bytes), Vec::new()));
    }
    let mut content = Vec::with_capacity(bytes as usize + 1);
    let reading = File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut content));
    reading.map_err(|error| match is_not_found(&error) {
        true => Unread::Vanished,
        false => Unread::World(error),
    })?;
    text::text(content).map_err(|(bad, payload)| Unread::Data(bad, payload))
}

fn is_not_found(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

/// The error in words that do not depend on the platform's number.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The path below the root, with `/`; a root that is a file gives its own name.
fn relative(root: &Path, path: &Path) -> String {
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
