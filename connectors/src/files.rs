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
//! replaces a file never shows a gap); a PATH that vanished deletes nothing; one dead letter a
//! change of a file, not one a scan; after a restart a file whose row is live is not emitted again.
//!
//! Limits: a text up to [`TEXT_BYTES_MAX`]; symbolic links are not followed; a scan costs one
//! `stat` a file and is repeated after fifty times its own duration, at most every 50 ms.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::contract::{SinkClosed, Source, SourceBatch, SourceContext};
use engine::error::{DataError, DeadLetter, WorldError};
use engine::limits::TEXT_BYTES_MAX;
use engine::model::{Column, ContentHash, Key, Row, RowCodec, Schema, SqlType, Value};
use globset::{GlobBuilder, GlobMatcher};
use walkdir::WalkDir;

/// Rows of one batch.
const BATCH_ROWS: usize = 256;
/// Bytes of one batch (soft for one file).
const BATCH_BYTES: usize = 2 << 20;
/// Shortest and longest pause between two scans.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A scan is repeated after so many times its duration: idle watching costs 2 % of a core.
const PAUSE_FACTOR: u32 = 50;
/// A file changed within this time may still be written: read it at the next scan.
const FRESH: Duration = Duration::from_millis(30);

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
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .map_err(|error| WorldError::Service {
                service: format!("files '{path}'"),
                detail: format!("PATTERN '{pattern}' is not a glob: {}", error.kind()),
                is_transient: false,
            })?;
        Ok(FilesSource {
            root: PathBuf::from(path),
            pattern: glob.compile_matcher(),
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

/// What is known of a file.
struct Known {
    /// (bytes, time of change in nanoseconds) when it was last read; `None` to read it again.
    stamp: Option<(u64, u128)>,
    /// Hash of its live row.
    live: Option<ContentHash>,
    /// Scans in a row that did not see it.
    missed: u8,
    /// The last read failed: the dead letter is written.
    is_unreadable: bool,
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
                stamp: None,
                live: Some(hash),
                missed: 0,
                is_unreadable: false,
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
                    is_whole &= error.io_error().is_some_and(is_not_found);
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
        if is_whole {
            self.delete_missed(&seen)?;
        }
        self.flush()
    }

    fn root_missing(&mut self, error: &std::io::Error) -> Result<(), SinkClosed> {
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
        self.letter(path, error, Vec::new());
        self.flush()
    }

    /// Looks at one file; reads it when it changed.
    fn look(&mut self, name: &str, path: &Path) -> Result<(), SinkClosed> {
        let Ok(metadata) = std::fs::metadata(path) else {
            return Ok(());
        };
        let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = (metadata.len(), since_epoch.as_nanos());
        let known = self.files.entry(name.to_owned()).or_insert(Known {
            stamp: None,
            live: None,
            missed: 0,
            is_unreadable: false,
        });
        known.missed = 0;
        if known.stamp == Some(stamp) {
            return Ok(());
        }
        let age = SystemTime::now().duration_since(modified);
        if age.is_ok_and(|age| age < FRESH) {
            return Ok(());
        }
        match read(path, metadata.len()) {
            Ok(text) => {
                let micros = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX);
                known.stamp = Some(stamp);
                known.is_unreadable = false;
                let row = self.codec.pack(&[
                    Value::Text(name.into()),
                    Value::Text(text.into()),
                    Value::Int(metadata.len() as i64),
                    Value::Timestamp(micros),
                ]);
                let hash = ContentHash::of(row.as_bytes());
                if known.live != Some(hash) {
                    known.live = Some(hash);
                    self.emit(name, Some(row))?;
                }
            }
            Err(Unread::Vanished) => {}
            Err(Unread::World(error)) => {
                if !known.is_unreadable {
                    known.is_unreadable = true;
                    let detail = format!("file '{name}' cannot be read: {}", reason(&error));
                    let error = DataError::new("unreadable-file", detail)
                        .hint("its last good version stays; reading is tried again");
                    self.letter(name.to_owned(), error, Vec::new());
                }
            }
            Err(Unread::Data(error, payload)) => {
                known.stamp = Some(stamp);
                let was_live = known.live.take().is_some();
                self.letter(name.to_owned(), error.on(name), payload);
                if was_live {
                    self.emit(name, None)?;
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
            if self
                .files
                .remove(&name)
                .is_some_and(|known| known.live.is_some())
            {
                self.emit(&name, None)?;
            }
        }
        Ok(())
    }

    fn emit(&mut self, name: &str, row: Option<Row>) -> Result<(), SinkClosed> {
        self.batch_bytes += row.as_ref().map_or(0, |row| row.as_bytes().len());
        self.batch.changes.push((Key::text(name), row, None));
        if self.batch.changes.len() >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn letter(&mut self, position: String, error: DataError, payload: Vec<u8>) {
        let source = self.context.name.clone();
        self.batch.dead_letters.push(DeadLetter {
            source,
            position,
            error,
            payload,
        });
    }

    fn flush(&mut self) -> Result<(), SinkClosed> {
        self.batch_bytes = 0;
        if self.batch.changes.is_empty() && self.batch.dead_letters.is_empty() {
            return Ok(());
        }
        self.context.sink.stage(std::mem::take(&mut self.batch))
    }
}

/// Why a file has no text.
enum Unread {
    Vanished,
    World(std::io::Error),
    Data(BadFile, Vec<u8>),
}

/// What is wrong with a file's bytes.
enum BadFile {
    TooLarge(u64),
    InvalidUtf8(usize),
}

impl BadFile {
    fn on(&self, name: &str) -> DataError {
        match self {
            BadFile::TooLarge(bytes) => DataError::new(
                "text-too-large",
                format!(
                    "file '{name}' has {bytes} bytes; the limit TEXT_BYTES_MAX is {TEXT_BYTES_MAX}"
                ),
            )
            .hint("split it, or leave it out by PATTERN"),
            BadFile::InvalidUtf8(at) => DataError::new(
                "invalid-utf8",
                format!("file '{name}' is not UTF-8 at byte {at}"),
            )
            .expected("UTF-8 text")
            .hint("convert it, or leave it out by PATTERN"),
        }
    }
}

fn read(path: &Path, bytes: u64) -> Result<String, Unread> {
    if bytes > TEXT_BYTES_MAX as u64 {
        return Err(Unread::Data(BadFile::TooLarge(bytes), Vec::new()));
    }
    let content = std::fs::read(path).map_err(|error| match is_not_found(&error) {
        true => Unread::Vanished,
        false => Unread::World(error),
    })?;
    String::from_utf8(content).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let mut payload = error.into_bytes();
        payload.truncate(1024);
        Unread::Data(BadFile::InvalidUtf8(at), payload)
    })
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
