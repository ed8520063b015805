//! `FROM FILES (PATH, PATTERN, EXTRACT)`: a folder as a collection, one row a file.
//!
//! Idea: the folder is scanned again and again; a file whose size, times of change or number differ is read
//! and, if its row differs from the live one, emitted. The operating system's notifications only make
//! this quicker: nothing but the scan is trusted, so that editors that replace files, network folders,
//! copies and lost notifications all work.
//!
//! ```text
//! notice ─ look at that path ─┐
//! scan ─▶ (size, times, number) changed? ─▶ read ─▶ text: as it is, or taken out (HTML, DOCX, PDF)
//!   ▲                                ├─ archive ─▶ its members, each as a file of its own
//!   │                                ├─ good ─▶ row (path, text, bytes, modified_at)
//!   │                                ├─ no text, too large, broken ─▶ dead letter, row retracted
//!   │                                ├─ too slow ─▶ dead letter, last good row stays, tried again three times
//!   └── 50 ms … 2 s, by its cost     └─ unreadable ─▶ dead letter, last good row stays
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`watch`] | what is known of each file, what a scan and a look do |
//! | [`take`] | what is made of what was read: files, archives and their members |
//! | [`rows`] | rows, deletes and dead letters, gathered to batches |
//! | [`archive`] | the members of an archive, bounded |
//! | [`notice`] | the operating system's notifications |
//! | [`read`] | one file's bytes and stamp |
//!
//! Invariants: a file that vanished is deleted after it was missed twice, 50 ms apart (an editor that
//! replaces a file never shows a gap); a PATH that vanished deletes nothing; a text is taken only
//! when the file was the same before and after reading it; one dead letter a change of a file, not
//! one a scan, also over a restart; after a restart a file whose row is live is not emitted again. A member of an archive
//! that has the text that its row has is not emitted, whatever else changed in the archive.
//!
//! Limits: a text up to [`TEXT_BYTES_MAX`](engine::limits::TEXT_BYTES_MAX), a document or archive up to
//! [`DOCUMENT_BYTES_MAX`](engine::limits::DOCUMENT_BYTES_MAX), more is never read; symbolic links are not
//! followed; a scan costs one `stat` a file and is repeated after fifty times its own duration, at
//! most every 50 ms. A file that never stops changing is taken as it is found, once a second: such a
//! version may be half of one and half of the next, and is replaced when the file rests. Documents and
//! archives are taken only at rest. A folder that is there but empty (a mount that went away) counts
//! as emptied.

mod archive;
mod notice;
mod read;
mod rows;
mod take;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use engine::contract::{Source, SourceContext};
use engine::error::{DeadLetter, WorldError};
use engine::letters::Redecoded;
use engine::model::{Column, Key, RowCodec, Schema, SqlType};
use globset::GlobMatcher;

use crate::document::{self, Guarded, Kind};
pub use crate::document::{EXTRACT_PDF, Extractor, extract_pdf};
use crate::text;
use notice::Notices;
use read::{Stamp, Unread};
use watch::Watcher;

/// Shortest and longest pause between two scans.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A scan is repeated after so many times its duration, [`PAUSE`] at most: idle watching costs 2 % of a core
/// while a scan takes less than 40 ms.
const PAUSE_FACTOR: u32 = 50;
/// The same for a scan that a notification asked for.
const EARLY_FACTOR: u32 = 10;

/// What stands between the name of an archive and the path of a member in it.
const MEMBER: &str = "!/";

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
    extracts: bool,
    extractor: Extractor,
    is_notified: bool,
}

impl FilesSource {
    /// A source over `path` with a glob relative to it: `**` crosses folders, `*` does not. Texts are
    /// taken out of documents and archives. Errors: a pattern that is no glob.
    pub fn new(path: &str, pattern: &str) -> Result<Self, WorldError> {
        Ok(FilesSource {
            root: PathBuf::from(path),
            pattern: text::glob(&format!("files '{path}'"), "PATTERN", pattern)?,
            extracts: true,
            extractor: Extractor::in_process(),
            is_notified: true,
        })
    }

    /// Whether texts are taken out of documents and archives, or every file is a text as it is.
    pub fn extracting(self, extracts: bool) -> Self {
        FilesSource { extracts, ..self }
    }

    /// With another way to take texts out of documents than in this process.
    pub fn extracted_by(self, extractor: Extractor) -> Self {
        FilesSource { extractor, ..self }
    }

    /// Without the operating system's notifications: scans find everything, later.
    pub fn scanning_only(self) -> Self {
        FilesSource {
            is_notified: false,
            ..self
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }

    fn kind_of(&self, name: &str, head: &[u8]) -> Kind {
        match self.extracts {
            true => document::kind_of(name, head),
            false => Kind::Plain,
        }
    }

    /// Where the file of this name lies.
    fn path_of(&self, name: &str) -> PathBuf {
        match self.root.is_file() {
            true => self.root.clone(),
            false => self.root.join(name),
        }
    }
}

impl Source for FilesSource {
    fn run(self: Box<Self>, context: SourceContext) -> Result<(), WorldError> {
        let mut notices = Notices::new(&context.name, &self.root, self.is_notified);
        let mut watcher = Watcher::new(*self, context);
        while !watcher.is_stopping() {
            notices.attach();
            let started = Instant::now();
            if watcher.scan().is_err() {
                break;
            }
            let (cost, ended) = (started.elapsed(), Instant::now());
            let pause = (cost * PAUSE_FACTOR).clamp(PAUSE.0, PAUSE.1);
            let early = ended + (cost * EARLY_FACTOR).clamp(PAUSE.0, PAUSE.1);
            let mut next_scan = ended + pause;
            while Instant::now() < next_scan && !watcher.is_stopping() {
                for notice in notices.wait(watcher.next_look().unwrap_or(next_scan).min(next_scan))
                {
                    if watcher.note(notice) {
                        next_scan = next_scan.min(early);
                    }
                }
                match watcher.look_at_due() {
                    Ok(true) => next_scan = next_scan.min(early),
                    Ok(false) => {}
                    Err(_) => return Ok(()),
                }
            }
        }
        Ok(())
    }
}

/// The archive that a path is in: what stands before the first `!/` behind the name of one.
fn archive_of(name: &str) -> Option<(&str, &str)> {
    let places = name.match_indices(MEMBER);
    let mut split = places.map(|(at, mark)| (&name[..at], &name[at + mark.len()..]));
    split.find(|(archive, _)| document::packing_of(archive).is_some())
}

/// Whether a member of an archive is wanted: by its whole path, or by its path in the archive.
fn wants_member(pattern: &GlobMatcher, archive: &str, inner: &str) -> bool {
    pattern.is_match(inner) || pattern.is_match(format!("{archive}{MEMBER}{inner}"))
}

/// Reads the file that a dead letter of `source` is about again. Cost: that of reading it; of a member,
/// its whole archive.
pub fn reread(source: &FilesSource, letter: &DeadLetter) -> Redecoded {
    let name = &*letter.position;
    let refused = |reason: &str| Redecoded::Refused(reason.to_owned());
    let is_file = !matches!(&*letter.error.code, "path-missing" | "key-too-large");
    if letter.key.is_none() || !is_file {
        return refused("it is about PATH, or about a name, not about a file");
    }
    let member = archive_of(name).filter(|_| source.extracts);
    let is_wanted = source.root.is_file()
        || source.wants(name)
        || member.is_some_and(|(archive, inner)| wants_member(&source.pattern, archive, inner));
    if !is_wanted {
        return refused("PATTERN leaves the file out now");
    }
    let found = match member {
        Some((archive, inner)) => member_again(source, archive, inner),
        None => file_again(source, name),
    };
    match found {
        Ok((text, stamp)) => {
            let codec = RowCodec::new(schema()).expect("types that Arrow can order");
            let row = rows::row(&codec, name, text, stamp);
            Redecoded::Good {
                lane: String::new(),
                changes: vec![(Key::text(name), Some(row), None)],
            }
        }
        Err(Unread::Vanished) => refused("the file does not exist"),
        Err(Unread::Archive) => refused("an archive is read again when it changes"),
        Err(Unread::Stopped) => refused("the server is stopping"),
        Err(Unread::Busy) => refused("no document can be read now; try again"),
        Err(Unread::World(error)) => Redecoded::StillBad(read::unreadable(name, &error)),
        Err(Unread::Data(bad, _)) => Redecoded::StillBad(bad.on(name)),
    }
}

/// Whether the file, or a folder above it, is a link: scans do not follow any below PATH.
fn is_linked(source: &FilesSource, name: &str) -> bool {
    let mut path = source.root.clone();
    let is_below = !source.root.is_file();
    is_below
        && name.split('/').any(|part| {
            path.push(part);
            std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink())
        })
}

fn file_again(source: &FilesSource, name: &str) -> Result<(String, Stamp), Unread> {
    let path = source.path_of(name);
    if is_linked(source, name) {
        return Err(Unread::Vanished);
    }
    let stamp = Stamp::at(&path).ok_or(Unread::Vanished)?;
    let found = read::file(&path, |head| source.kind_of(name, head))?;
    if matches!(found.kind, Kind::Archive(_)) {
        return Err(Unread::Archive);
    }
    Ok((
        text_of(source, found.kind, found.content, &Arc::default())?,
        stamp,
    ))
}

fn member_again(
    source: &FilesSource,
    archive: &str,
    inner: &str,
) -> Result<(String, Stamp), Unread> {
    let path = source.path_of(archive);
    if is_linked(source, archive) {
        return Err(Unread::Vanished);
    }
    let stamp = Stamp::at(&path).ok_or(Unread::Vanished)?;
    let found = read::file(&path, |head| source.kind_of(archive, head))?;
    let Kind::Archive(packing) = found.kind else {
        return Err(Unread::Vanished);
    };
    let mut member = Err(Unread::Vanished);
    let mut wants = |name: &str| name == inner;
    let ending = archive::members(
        packing,
        archive,
        &found.content,
        &mut wants,
        &mut |_, content| {
            member = content.map_err(|bad| Unread::Data(bad, Vec::new()));
            Ok(())
        },
    );
    if let (Err(Unread::Vanished), Ok(Err(bad))) = (&member, ending) {
        return Err(Unread::Data(bad, Vec::new()));
    }
    let content = member?;
    let kind = source.kind_of(inner, &content);
    Ok((text_of(source, kind, content, &Arc::default())?, stamp))
}

/// The text of a file's bytes.
fn text_of(
    source: &FilesSource,
    kind: Kind,
    content: Vec<u8>,
    stop: &Arc<AtomicBool>,
) -> Result<String, Unread> {
    match document::text(kind, content, &source.extractor, stop) {
        Guarded::Done(found) => found.map_err(|(bad, payload)| Unread::Data(bad, payload)),
        Guarded::Stopped => Err(Unread::Stopped),
        Guarded::Busy => Err(Unread::Busy),
    }
}
