//! The members of an archive, one after the other, within bounds.
//!
//! ```text
//! .zip     directory ─▶ wanted members ─┐
//! .tar     headers ─▶ members ──────────┼─▶ (normalised name, bytes or what is wrong)
//! .tar.gz  unpacked on the way ─────────┤
//! .gz      one member: the name without .gz
//! ```
//!
//! Idea: the archive is in memory, nothing is ever written to disk, and a member is unpacked only while
//! it is looked at. A stream is walked once without taking anything: a broken one is found out before
//! its first member is taken, and which of several members of one name is the last.
//!
//! Invariants: unpacked bytes are at most [`ARCHIVE_BYTES_MAX`], and [`ARCHIVE_RATIO_MAX`] times the
//! archive's own beyond 16 MiB, whatever sizes it declares; members at most [`ARCHIVE_MEMBERS_MAX`], the
//! time [`ARCHIVE_MS_MAX`]. Names are relative, with `/`, without `.` and `..`; of a member that is there
//! twice only the last is taken. A reader that panics makes a broken archive.
//!
//! Limits: folders, links and devices are left out, and what macOS adds in `__MACOSX`; a zip's members
//! are stored or deflated.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{Read, Take};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use engine::contract::SinkClosed;
use engine::limits::{ARCHIVE_BYTES_MAX, ARCHIVE_MEMBERS_MAX, ARCHIVE_MS_MAX, ARCHIVE_RATIO_MAX};
use engine::model::ContentHash;
use flate2::read::MultiGzDecoder;

use crate::document::docx::{Zip, open_zip};
use crate::document::{Kind, Packing, kind_of};
use crate::text::BadFile;

/// What any archive may unpack to.
const FREE_BYTES: u64 = 16 << 20;
/// Bytes of a name, and of a header that may hold one; more is no name.
const NAME_BYTES_MAX: u64 = 64 << 10;
/// What macOS adds for itself.
const MACOS: &str = "__MACOSX/";

/// Takes a member: its name, and its bytes or what is wrong with it.
pub(super) type Taker<'t> =
    &'t mut dyn FnMut(&str, Result<Vec<u8>, BadFile>) -> Result<(), SinkClosed>;
/// Whether a member of this name is wanted.
pub(super) type Wants<'t> = &'t mut dyn FnMut(&str) -> bool;

/// What ended a walk early.
enum Stop {
    Closed(SinkClosed),
    Bad(BadFile),
}

impl From<SinkClosed> for Stop {
    fn from(closed: SinkClosed) -> Stop {
        Stop::Closed(closed)
    }
}

impl From<BadFile> for Stop {
    fn from(bad: BadFile) -> Stop {
        Stop::Bad(bad)
    }
}

/// Walks the wanted members of the archive of this name. The inner result is what is wrong with the archive itself:
/// [`BadFile::TooMuch`] when members were taken up to a bound, anything else before any was.
pub(super) fn members(
    packing: Packing,
    archive: &str,
    content: &[u8],
    wants: Wants<'_>,
    take: Taker<'_>,
) -> Result<Result<(), BadFile>, SinkClosed> {
    // What panics here is a reader of others; what is done with a member is ours.
    let is_ours = Cell::new(false);
    let mut take = |name: &str, found: Result<Vec<u8>, BadFile>| {
        is_ours.set(true);
        let taken = take(name, found);
        is_ours.set(false);
        taken
    };
    let until = Instant::now() + Duration::from_millis(ARCHIVE_MS_MAX);
    let walk = AssertUnwindSafe(|| match packing {
        Packing::Zip => zip(content, until, wants, &mut take),
        Packing::Tar => tar(|left| left.over(content), content, until, wants, &mut take),
        Packing::TarGz => tar(
            |left| left.over(MultiGzDecoder::new(content)),
            content,
            until,
            wants,
            &mut take,
        ),
        Packing::Gz => gz(archive, content, wants, &mut take),
    });
    match catch_unwind(walk) {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(Stop::Bad(bad))) => Ok(Err(bad)),
        Ok(Err(Stop::Closed(closed))) => Err(closed),
        Err(panic) if is_ours.get() => resume_unwind(panic),
        Err(_) => Ok(Err(BadFile::Broken {
            format: "archive".into(),
            reason: "its reader failed on it".to_owned(),
        })),
    }
}

/// What may still be unpacked.
#[derive(Clone)]
struct Left {
    bytes: Rc<Cell<u64>>,
    is_over: Rc<Cell<bool>>,
    total: u64,
}

impl Left {
    fn of(content: &[u8]) -> Left {
        let by_ratio = FREE_BYTES + ARCHIVE_RATIO_MAX * content.len() as u64;
        let total = by_ratio.min(ARCHIVE_BYTES_MAX);
        Left {
            bytes: Rc::new(Cell::new(total)),
            is_over: Rc::default(),
            total,
        }
    }

    fn over<R: Read>(&self, inner: R) -> Bounded<R> {
        Bounded {
            inner,
            left: self.clone(),
        }
    }

    /// The bound that was passed.
    fn passed(&self, after: Option<String>) -> BadFile {
        let name = match self.total {
            ARCHIVE_BYTES_MAX => "ARCHIVE_BYTES_MAX",
            _ => "ARCHIVE_RATIO_MAX",
        };
        BadFile::TooMuch {
            what: format!("unpacks to more than {} bytes ({name})", self.total),
            after,
        }
    }
}

/// Reads until nothing may be unpacked any more.
struct Bounded<R> {
    inner: R,
    left: Left,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.bytes.get();
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 && !buffer.is_empty() {
            // Only what really goes on is too much.
            if self.inner.read(&mut [0])? == 0 {
                return Ok(0);
            }
            self.left.is_over.set(true);
            return Err(std::io::Error::other("it unpacks to too much"));
        }
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.bytes.set(left - read as u64);
        Ok(read)
    }
}

/// Counts members, and remembers the last for errors.
struct Count {
    members: usize,
    last: Option<String>,
    until: Instant,
}

impl Count {
    fn until(until: Instant) -> Count {
        Count {
            members: 0,
            last: None,
            until,
        }
    }

    /// The number of the next member.
    fn next(&mut self) -> Result<usize, BadFile> {
        self.members += 1;
        let what = if self.members > ARCHIVE_MEMBERS_MAX {
            format!("unpacks to more than {ARCHIVE_MEMBERS_MAX} members (ARCHIVE_MEMBERS_MAX)")
        } else if Instant::now() > self.until {
            format!("takes more than {ARCHIVE_MS_MAX} ms (ARCHIVE_MS_MAX)")
        } else {
            return Ok(self.members);
        };
        let after = self.last.take();
        Err(BadFile::TooMuch { what, after })
    }
}

/// The number of the last member of each name, by its hash.
#[derive(Default)]
struct Last(HashMap<ContentHash, usize>);

impl Last {
    fn note(&mut self, name: &str, number: usize) {
        self.0.insert(ContentHash::of(name.as_bytes()), number);
    }

    fn is(&self, name: &str, number: usize) -> bool {
        self.0.get(&ContentHash::of(name.as_bytes())) == Some(&number)
    }
}

fn zip(content: &[u8], until: Instant, wants: Wants<'_>, take: Taker<'_>) -> Result<(), Stop> {
    let mut archive = open_zip(content, "ZIP archive")?;
    let (left, mut count, mut last) = (Left::of(content), Count::until(until), Last::default());
    let name_of = |archive: &Zip<'_>, index: usize| {
        let name = normal(&archive.name_for_index(index)?.ok()?);
        (!name.is_empty() && !name.starts_with(MACOS)).then_some(name)
    };
    for index in 0..archive.len() {
        if let Some(name) = name_of(&archive, index) {
            last.note(&name, index);
        }
    }
    for index in 0..archive.len() {
        let Some(name) = name_of(&archive, index) else {
            continue;
        };
        count.next()?;
        if !last.is(&name, index) || !wants(&name) {
            continue;
        }
        let found = match archive.by_index(index) {
            Ok(file) if file.is_dir() || file.is_symlink() => continue,
            Ok(file) => {
                let size = file.size();
                member(&name, size, left.over(file), &left)
            }
            Err(zip::result::ZipError::UnsupportedArchive(reason))
                if reason == zip::result::ZipError::PASSWORD_REQUIRED =>
            {
                Err(BadFile::Encrypted)
            }
            Err(error) => Err(broken("member", &error)),
        };
        if left.is_over.get() {
            return Err(left.passed(count.last).into());
        }
        take(&name, found)?;
        count.last = Some(name);
    }
    Ok(())
}

/// A member's bytes, no more than its kind may have.
fn member(
    name: &str,
    size: u64,
    reader: Bounded<impl Read>,
    left: &Left,
) -> Result<Vec<u8>, BadFile> {
    let kind = kind_of(name, &[]);
    let max = kind.bytes_max() as u64;
    if matches!(kind, Kind::Archive(_)) {
        return Err(BadFile::NestedArchive);
    }
    if size > max {
        return Err(BadFile::too_large(kind, size));
    }
    let mut content = Vec::new();
    let mut reader: Take<Bounded<_>> = reader.take(max + 1);
    match reader.read_to_end(&mut content) {
        Ok(_) if content.len() as u64 > max => Err(BadFile::too_large(kind, content.len() as u64)),
        Ok(_) => Ok(content),
        Err(_) if left.is_over.get() => Err(left.passed(None)),
        Err(error) => Err(broken("member", &error)),
    }
}

fn broken(format: &'static str, error: &dyn std::error::Error) -> BadFile {
    BadFile::Broken {
        format: format.into(),
        reason: error.to_string(),
    }
}

/// Walks a tar twice: the first time nothing is taken.
fn tar<R: Read>(
    open: impl Fn(&Left) -> Bounded<R>,
    content: &[u8],
    until: Instant,
    wants: Wants<'_>,
    take: Taker<'_>,
) -> Result<(), Stop> {
    let (left, mut last) = (Left::of(content), Last::default());
    let mut note = |name: &str, number: usize| {
        last.note(name, number);
        false
    };
    let checked = walk_tar(open(&left), &left, until, &mut note, &mut |_, _| Ok(()));
    match checked {
        Ok(()) | Err(Stop::Bad(BadFile::TooMuch { .. })) => {}
        Err(stop) => return Err(stop),
    }
    let left = Left::of(content);
    let mut wants = |name: &str, number: usize| last.is(name, number) && wants(name);
    walk_tar(open(&left), &left, until, &mut wants, take)
}

fn walk_tar<R: Read>(
    reader: Bounded<R>,
    left: &Left,
    until: Instant,
    wants: &mut dyn FnMut(&str, usize) -> bool,
    take: Taker<'_>,
) -> Result<(), Stop> {
    let mut archive = tar::Archive::new(reader);
    let mut count = Count::until(until);
    // The name that a header before the member gives it, when it is a long one.
    let mut long = None;
    let failed = |error: std::io::Error, count: &mut Count| match left.is_over.get() {
        true => Stop::Bad(left.passed(count.last.take())),
        false => Stop::Bad(broken("TAR archive", &error)),
    };
    let entries = archive
        .entries()
        .map_err(|error| failed(error, &mut count))?;
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|error| failed(error, &mut count))?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut header = Vec::new();
            let read = entry.by_ref().take(NAME_BYTES_MAX).read_to_end(&mut header);
            read.map_err(|error| failed(error, &mut count))?;
            long = long_name(&header, kind.is_gnu_longname()).or(long);
            continue;
        }
        if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
            continue;
        }
        let name = match long.take() {
            Some(name) => normal(&name),
            None => normal(&String::from_utf8_lossy(&entry.path_bytes())),
        };
        if !(kind.is_file() || kind.is_contiguous()) || name.is_empty() || name.starts_with(MACOS) {
            continue;
        }
        let number = count.next()?;
        if !wants(&name, number) {
            continue;
        }
        let size = entry.size();
        // The archive's own reader counts what is unpacked; here nothing is counted a second time.
        let uncounted = Left {
            bytes: Rc::new(Cell::new(u64::MAX)),
            ..left.clone()
        };
        let found = member(&name, size, uncounted.over(&mut entry), left);
        if left.is_over.get() {
            return Err(left.passed(count.last).into());
        }
        take(&name, found)?;
        count.last = Some(name);
    }
    Ok(())
}

/// The name in GNU's header for a long one, or `path` of POSIX's.
fn long_name(header: &[u8], is_gnu: bool) -> Option<String> {
    let name = match is_gnu {
        true => header.split(|byte| *byte == 0).next()?.to_vec(),
        false => {
            // The last of several counts.
            let records = tar::PaxExtensions::new(header).flatten();
            let paths = records.filter(|record| record.key_bytes() == b"path");
            paths.last()?.value_bytes().to_vec()
        }
    };
    Some(String::from_utf8_lossy(&name).into_owned())
}

/// One member: the archive's own name without its ending.
fn gz(archive: &str, content: &[u8], wants: Wants<'_>, take: Taker<'_>) -> Result<(), Stop> {
    let name = gz_name(archive);
    if !wants(name) {
        return Ok(());
    }
    let left = Left::of(content);
    let found = match member(name, 0, left.over(MultiGzDecoder::new(content)), &left) {
        Err(BadFile::Broken { reason, .. }) => {
            return Err(BadFile::Broken {
                format: "gzip file".into(),
                reason,
            }
            .into());
        }
        Err(bad @ BadFile::TooMuch { .. }) => return Err(bad.into()),
        found => found,
    };
    Ok(take(name, found)?)
}

/// The name of the one member of a `.gz`: its own without the ending.
pub(super) fn gz_name(archive: &str) -> &str {
    let name = archive.rsplit('/').next().unwrap_or_default();
    &name[..name.len().saturating_sub(".gz".len())]
}

/// A relative path with `/`; `..` never leads out of the archive.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let is_folder = name.ends_with(['/', '\\']);
    for part in name.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    match is_folder {
        true => String::new(),
        false => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        for (name, expected) in [
            ("a/b.md", "a/b.md"),
            ("./a//b.md", "a/b.md"),
            ("/etc/passwd", "etc/passwd"),
            ("../../a.md", "a.md"),
            ("a/../b.md", "b.md"),
            (r"docs\a.md", "docs/a.md"),
            ("a/", ""),
            ("..", ""),
        ] {
            assert_eq!(normal(name), expected, "{name}");
        }
        assert_eq!(gz_name("deep/a.md.gz"), "a.md");
    }

    #[test]
    fn an_archive_ends_with_its_time() {
        let mut count = Count::until(Instant::now() + Duration::from_secs(60));
        assert_eq!(count.next(), Ok(1));
        count.last = Some("a.md".to_owned());
        count.until = Instant::now() - Duration::from_millis(1);
        let bad = count.next().expect_err("too long");
        assert_eq!(
            bad.on("x.zip").detail,
            "archive 'x.zip' takes more than 300000 ms (ARCHIVE_MS_MAX); what follows member \
             'a.md' is left out"
        );
    }

    #[test]
    fn a_reader_that_panics_makes_a_broken_archive() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_cksum();
        archive
            .append_data(&mut header, "a.md", &b"a"[..])
            .expect("appended");
        let content = archive.into_inner().expect("finished");
        // What decides whether a member is wanted stands for a reader.
        let walked = members(
            Packing::Tar,
            "x.tar",
            &content,
            &mut |_| panic!("of a reader"),
            &mut |_, _| Ok(()),
        );
        let bad = walked.expect("open").expect_err("broken");
        assert_eq!(
            bad.on("x.tar").detail,
            "file 'x.tar' is not a readable archive: its reader failed on it"
        );
    }
}
