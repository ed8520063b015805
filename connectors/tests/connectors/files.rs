//! `FROM FILES`: folders that change while they are watched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use connectors::files::{FilesSource, schema};
use engine::limits::TEXT_BYTES_MAX;
use engine::model::{RowCodec, Value};
use engine::testing::{Recorded, ScriptedSink, SourceRun, source_laws};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// A folder, a source that watches it, and what it emitted.
pub struct Watched {
    pub folder: TempDir,
    pub sink: Arc<ScriptedSink>,
    run: Option<SourceRun>,
}

impl Watched {
    /// Watches `docs` in a new folder.
    pub fn start(pattern: &str) -> Self {
        Watched::with(pattern, |source| source)
    }

    /// The same, with a source that is `changed`.
    pub fn with(pattern: &str, changed: impl Fn(FilesSource) -> FilesSource) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        fs::create_dir(folder.path().join("docs")).expect("a folder");
        let mut watched = Watched {
            folder,
            sink: ScriptedSink::open(),
            run: None,
        };
        let path = watched.path("");
        let source = FilesSource::new(path.to_str().expect("UTF-8"), pattern).expect("a glob");
        let source = Box::new(changed(source));
        watched.run = Some(SourceRun::start(source, &watched.sink, Recorded::default()));
        watched
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("docs").join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("written");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    /// Waits until the rows are these.
    pub fn expect(&self, rows: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = rows
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let is_there = self.sink.wait(|recorded| texts(recorded) == expected);
        assert!(is_there, "{:?}", texts(&self.sink.recorded()));
    }

    /// The words of all dead letters.
    pub fn letters(&self) -> Vec<String> {
        let letters = self.sink.recorded().dead_letters;
        letters
            .into_iter()
            .map(|letter| letter.error.detail)
            .collect()
    }

    /// Waits for so many dead letters.
    pub fn expect_letters(&self, count: usize) -> Vec<String> {
        assert!(
            self.sink
                .wait(|recorded| recorded.dead_letters.len() >= count)
        );
        self.letters()
    }

    /// Long enough for several scans.
    pub fn rest(&self) {
        std::thread::sleep(Duration::from_millis(400));
    }

    pub fn changes(&self) -> usize {
        let batches = self.sink.batches();
        batches.iter().map(|batch| batch.changes.len()).sum()
    }

    pub fn stop(mut self) {
        self.run.take().expect("it runs").stop();
    }
}

pub fn texts(recorded: &Recorded) -> BTreeMap<String, String> {
    let codec = RowCodec::new(schema()).expect("packable");
    let text = |row| match &codec.unpack(row)[..] {
        [
            Value::Text(path),
            Value::Text(text),
            Value::Int(bytes),
            Value::Timestamp(_),
        ] => {
            assert_eq!(*bytes, text.len() as i64);
            (path.to_string(), text.to_string())
        }
        other => panic!("{other:?}"),
    };
    recorded.rows.values().map(text).collect()
}

/// A naive listing of what the folder holds.
fn listing(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries
        .map(|entry| {
            let text = fs::read_to_string(entry.path()).expect("a text");
            (entry.file_name().to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[test]
fn it_keeps_the_laws_of_sources() {
    let folder = TempDir::new().expect("a temporary folder");
    for number in 0..600 {
        let name = folder.path().join(format!("{number}.md"));
        fs::write(name, format!("# {number}")).expect("written");
    }
    let path = folder.path().to_str().expect("UTF-8");
    let make = || connectors::files(path, "**").expect("a glob");
    let rows = source_laws(&make, Duration::from_millis(1_000));
    assert_eq!(rows.len(), 600);
}

#[test]
fn random_edits_end_in_what_the_folder_holds() {
    random_edits(Watched::start("**"));
}

#[test]
fn random_edits_are_found_by_scans_alone() {
    random_edits(Watched::with("**", FilesSource::scanning_only));
}

fn random_edits(watched: Watched) {
    let seed = 20_261_121;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for step in 0..150 {
        let name = watched.path(&format!("f{}", rng.random_range(0..6)));
        let other = watched.path(&format!("f{}", rng.random_range(0..6)));
        match rng.random_range(0..5) {
            0 => drop(fs::remove_file(name)),
            1 => drop(fs::rename(name, other)),
            2 => {
                let new = watched.folder.path().join("new");
                fs::write(&new, format!("replaced {step}")).expect("written");
                fs::rename(new, name).expect("replaced");
            }
            _ => fs::write(name, format!("written {step}")).expect("written"),
        }
        if rng.random_range(0..3) == 0 {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..40)));
        }
    }
    let expected = listing(&watched.path(""));
    let is_there = watched.sink.wait(|recorded| texts(recorded) == expected);
    assert!(is_there, "seed {seed}");
    watched.stop();
}

#[test]
fn files_come_change_move_and_go() {
    let watched = Watched::start("**/*.md");
    watched.write("a.md", "one");
    watched.write("deep/er/b.md", "nested");
    watched.write("a.txt", "another pattern");
    watched.expect(&[("a.md", "one"), ("deep/er/b.md", "nested")]);
    watched.write("a.md", "two");
    watched.expect(&[("a.md", "two"), ("deep/er/b.md", "nested")]);
    fs::rename(watched.path("a.md"), watched.path("c.md")).expect("renamed");
    watched.expect(&[("c.md", "two"), ("deep/er/b.md", "nested")]);
    fs::remove_dir_all(watched.path("deep")).expect("removed");
    watched.expect(&[("c.md", "two")]);
    watched.remove("c.md");
    watched.expect(&[]);
    assert!(watched.letters().is_empty());
    watched.stop();
}

#[test]
fn an_atomic_replace_never_shows_a_gap() {
    // A busy machine may make a gap as long as any deletion: then the run says nothing.
    const TRIES: usize = 20;
    let mut tries = (0..TRIES).map(|_| replaces());
    assert!(
        tries.any(|is_quick| is_quick),
        "each of {TRIES} tries had a gap over 20 ms"
    );
}

/// Whether all gaps were short; if they were, no deletion was seen.
fn replaces() -> bool {
    let watched = Watched::start("*");
    watched.write("a", "0");
    watched.expect(&[("a", "0")]);
    let mut longest = Duration::ZERO;
    for number in 1..20 {
        let new = watched.folder.path().join("new");
        fs::write(&new, number.to_string()).expect("written");
        let begun = Instant::now();
        // Some editors remove first: the gap is shorter than two scans.
        if number % 2 == 0 {
            watched.remove("a");
        }
        fs::rename(new, watched.path("a")).expect("replaced");
        longest = longest.max(begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    watched.expect(&[("a", "19")]);
    let batches = watched.sink.batches();
    watched.stop();
    if longest > Duration::from_millis(20) {
        return false;
    }
    let mut changes = batches.iter().flat_map(|batch| &batch.changes);
    assert!(changes.all(|(_, row, _)| row.is_some()), "no delete");
    true
}

#[test]
fn bad_files_are_dead_letters_until_they_are_good() {
    let watched = Watched::start("*");
    watched.write("a", "good");
    watched.expect(&[("a", "good")]);
    watched.write("a", b"b\xffd");
    watched.expect(&[]);
    assert_eq!(watched.letters(), ["file 'a' is not UTF-8 at byte 1"]);
    watched.rest();
    assert_eq!(watched.letters().len(), 1, "one a change, not one a scan");
    watched.write("a", "good again");
    watched.expect(&[("a", "good again")]);

    let file = fs::File::create(watched.path("a")).expect("created");
    file.set_len(TEXT_BYTES_MAX as u64 + 1).expect("grown");
    watched.expect(&[]);
    let too_large = "file 'a' has 8388609 bytes; the limit TEXT_BYTES_MAX is 8388608";
    assert_eq!(watched.letters()[1..], [too_large]);
    file.set_len(TEXT_BYTES_MAX as u64).expect("cut");
    assert!(watched.sink.wait(|recorded| recorded.rows.len() == 1));
    assert_eq!(texts(&watched.sink.recorded())["a"].len(), TEXT_BYTES_MAX);
    watched.stop();
}

#[test]
fn dead_letters_fill_batches_too() {
    let folder = TempDir::new().expect("a temporary folder");
    for number in 0..600 {
        fs::write(folder.path().join(number.to_string()), b"\xff").expect("written");
    }
    let sink = ScriptedSink::open();
    let path = folder.path().to_str().expect("UTF-8");
    let source = connectors::files(path, "*").expect("a glob");
    let run = SourceRun::start(source, &sink, Recorded::default());
    assert!(sink.wait(|recorded| recorded.dead_letters.len() == 600));
    run.stop();
    let batches = sink.batches();
    assert!(batches.iter().all(|batch| batch.dead_letters.len() <= 256));
}

#[test]
fn a_path_that_vanishes_deletes_nothing() {
    let watched = Watched::start("*");
    watched.write("a", "stays");
    watched.write("b", "goes");
    watched.expect(&[("a", "stays"), ("b", "goes")]);
    let changes = watched.changes();
    let away = watched.folder.path().join("away");
    fs::rename(watched.path(""), &away).expect("moved");
    let letters = watched.expect_letters(1);
    let path = watched.path("");
    let path = path.to_str().expect("UTF-8");
    assert_eq!(
        letters,
        [format!("PATH '{path}' cannot be read: it does not exist")]
    );
    watched.rest();
    assert_eq!(watched.changes(), changes, "rows stay");
    fs::remove_file(away.join("b")).expect("removed");
    fs::rename(&away, watched.path("")).expect("moved back");
    watched.expect(&[("a", "stays")]);
    assert_eq!(
        watched.changes(),
        changes + 2,
        "the delete, and the letter's end"
    );
    assert_eq!(watched.letters().len(), 1, "one letter an absence");
    watched.stop();
}

#[test]
fn patterns_are_globs_over_relative_paths() {
    let watched = Watched::start("*.md");
    watched.write("a.md", "here");
    watched.write("deep/b.md", "a star does not cross folders");
    watched.expect(&[("a.md", "here")]);
    watched.rest();
    watched.expect(&[("a.md", "here")]);
    watched.stop();
    let error = connectors::files("x", "a[")
        .err()
        .expect("no glob")
        .to_string();
    assert!(error.contains("PATTERN 'a[' is not a glob"), "{error}");
}

#[cfg(unix)]
#[test]
fn symbolic_links_are_not_followed() {
    let watched = Watched::start("**");
    let link = std::os::unix::fs::symlink::<PathBuf, PathBuf>;
    watched.write("deep/a", "once");
    link(watched.path(""), watched.path("deep/loop")).expect("linked");
    link(watched.path("deep/a"), watched.path("b")).expect("linked");
    watched.expect(&[("deep/a", "once")]);
    watched.rest();
    watched.expect(&[("deep/a", "once")]);
    assert!(watched.letters().is_empty());
    watched.stop();
}

#[test]
fn a_file_that_never_rests_is_read_anyway() {
    let watched = Watched::start("*");
    let begun = Instant::now();
    let mut number = 0;
    while watched.changes() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        number += 1;
        // Replaced, so that no read meets an empty file.
        let new = watched.folder.path().join("new");
        fs::write(&new, number.to_string()).expect("written");
        fs::rename(new, watched.path("a")).expect("replaced");
        std::thread::sleep(Duration::from_millis(8));
    }
    watched.expect(&[("a", &number.to_string())]);
    watched.stop();
}
