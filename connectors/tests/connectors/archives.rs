//! `FROM FILES`: documents and archives, and how soon changes are seen.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use connectors::files::{FilesSource, reread};
use engine::letters::Redecoded;
use engine::testing::{Recorded, ScriptedSink, SourceRun, source_laws};
use flate2::Compression;
use flate2::write::GzEncoder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zip::ZipWriter;
use zip::unstable::write::FileOptionsExt;
use zip::write::SimpleFileOptions;

use crate::files::{Watched, texts};

pub type Members<'a> = &'a [(&'a str, &'a [u8])];

pub fn zipped(members: Members<'_>) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_directory("deep", SimpleFileOptions::default())
        .expect("a folder");
    for (name, content) in members {
        zip.start_file(*name, SimpleFileOptions::default())
            .expect("begun");
        zip.write_all(content).expect("written");
    }
    zip.finish().expect("finished").into_inner()
}

pub fn tarred(members: Members<'_>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, *content)
            .expect("appended");
    }
    tar.into_inner().expect("finished")
}

fn packed(content: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(content).expect("written");
    gz.finish().expect("finished")
}

/// Puts a file there at once, as careful programs do.
pub fn put(watched: &Watched, name: &str, content: impl AsRef<[u8]>) {
    let new = watched.folder.path().join("new");
    fs::write(&new, content).expect("written");
    let path = watched.path(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::rename(new, path).expect("replaced");
}

#[test]
fn archives_are_opened_and_only_changed_members_change() {
    let watched = Watched::start("**");
    let long = format!("{}/long.md", "folder/".repeat(30));
    let one: Members = &[
        ("a.md", b"one"),
        ("deep/b.md", b"two"),
        ("p.html", b"<h1>Page</h1>"),
    ];
    put(&watched, "docs/x.zip", zipped(one));
    put(
        &watched,
        "y.tar",
        tarred(&[("./a.md", b"three"), (&long, b"far below")]),
    );
    put(&watched, "y.tar.gz", packed(&tarred(&[("a.md", b"four")])));
    put(&watched, "z.md.gz", packed(b"five"));
    let long = format!("y.tar!/{long}").replace("//", "/");
    let mut expected = vec![
        ("docs/x.zip!/a.md", "one"),
        ("docs/x.zip!/deep/b.md", "two"),
        ("docs/x.zip!/p.html", "# Page\n"),
        ("y.tar!/a.md", "three"),
        (&*long, "far below"),
        ("y.tar.gz!/a.md", "four"),
        ("z.md.gz!/z.md", "five"),
    ];
    watched.expect(&expected);
    let changes = watched.changes();
    // One member changes, one goes, one comes; one stays.
    let two: Members = &[("a.md", b"one"), ("deep/b.md", b"TWO"), ("c.md", b"new")];
    put(&watched, "docs/x.zip", zipped(two));
    expected[1].1 = "TWO";
    expected[2] = ("docs/x.zip!/c.md", "new");
    watched.expect(&expected);
    assert_eq!(watched.changes(), changes + 3);
    // Packed again without a change.
    watched.remove("docs/x.zip");
    put(&watched, "docs/x.zip", zipped(two));
    watched.rest();
    assert_eq!(watched.changes(), changes + 3);
    watched.remove("docs/x.zip");
    watched.expect(&expected[3..]);
    assert!(watched.letters().is_empty(), "{:?}", watched.letters());
    watched.stop();
}

#[test]
fn pattern_chooses_archives_and_their_members() {
    let members: Members = &[("a.md", b"one"), ("deep/b.md", b"two"), ("c.txt", b"three")];
    let cases: [(&str, &[(&str, &str)]); 4] = [
        ("**/*.md", &[]),
        (
            "**/*.{zip,md}",
            &[("in/x.zip!/a.md", "one"), ("in/x.zip!/deep/b.md", "two")],
        ),
        ("{in/*.zip,*.txt}", &[("in/x.zip!/c.txt", "three")]),
        (
            "{**/x.zip,in/x.zip!/deep/*}",
            &[("in/x.zip!/deep/b.md", "two")],
        ),
    ];
    for (pattern, expected) in cases {
        let watched = Watched::start(pattern);
        put(&watched, "in/x.zip", zipped(members));
        watched.expect(expected);
        watched.rest();
        watched.expect(expected);
        watched.stop();
    }
    // PATH that is an archive is opened, whatever PATTERN says of its name.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.zip");
    fs::write(&path, zipped(members)).expect("written");
    let sink = ScriptedSink::open();
    let source = connectors::files(path.to_str().expect("UTF-8"), "*.md").expect("a glob");
    let run = SourceRun::start(source, &sink, Recorded::default());
    let expected = BTreeMap::from([("x.zip!/a.md".to_owned(), "one".to_owned())]);
    assert!(sink.wait(|recorded| texts(recorded) == expected));
    fs::write(&path, zipped(&[("a.md", b"changed")])).expect("written");
    let expected = BTreeMap::from([("x.zip!/a.md".to_owned(), "changed".to_owned())]);
    assert!(sink.wait(|recorded| texts(recorded) == expected));
    run.stop();
}

#[test]
fn nothing_is_taken_out_when_it_is_not_wanted() {
    let watched = Watched::with("**", |source| source.extracting(false));
    watched.write("p.html", "<h1>Page</h1>");
    watched.write("x.zip", zipped(&[("a.md", b"one")]));
    watched.expect(&[("p.html", "<h1>Page</h1>")]);
    let letters = watched.expect_letters(1);
    assert!(
        letters[0].starts_with("file 'x.zip' is not UTF-8 at byte "),
        "{letters:?}"
    );
    watched.stop();
}

#[test]
fn what_cannot_be_read_is_a_dead_letter_by_name() {
    let watched = Watched::start("**");
    put(
        &watched,
        "x.zip",
        zipped(&[("a.md", b"good"), ("b.md", b"b\xffd"), ("c.zip", b"PK")]),
    );
    watched.expect(&[("x.zip!/a.md", "good")]);
    let letters = watched.expect_letters(2);
    let expected = [
        "file 'x.zip!/b.md' is not UTF-8 at byte 1",
        "file 'x.zip!/c.zip' is an archive in an archive",
    ];
    assert_eq!(letters, expected);
    let kept = watched.sink.recorded().dead_letters;
    assert_eq!(&*kept[0].position, "x.zip!/b.md");
    assert_eq!(kept[1].error.code, "nested-archive");
    // Replayed, a letter reads the member again.
    let path = watched.path("");
    let source = FilesSource::new(path.to_str().expect("UTF-8"), "**").expect("a glob");
    assert!(matches!(reread(&source, &kept[0]), Redecoded::StillBad(_)));
    put(
        &watched,
        "x.zip",
        zipped(&[("a.md", b"good"), ("b.md", b"better")]),
    );
    watched.expect(&[("x.zip!/a.md", "good"), ("x.zip!/b.md", "better")]);
    let Redecoded::Good { changes, .. } = reread(&source, &kept[0]) else {
        panic!("it is good now");
    };
    assert_eq!(changes.len(), 1);
    assert!(
        matches!(reread(&source, &kept[1]), Redecoded::Refused(_)),
        "it is gone"
    );

    // A broken archive has no rows; whole again, it has them and its letter ends.
    let whole = zipped(&[("a.md", b"good")]);
    put(&watched, "x.zip", &whole[..whole.len() / 2]);
    watched.expect(&[]);
    let letters = watched.expect_letters(3);
    let broken =
        "file 'x.zip' is not a readable ZIP archive: invalid Zip archive: Could not find EOCD";
    assert_eq!(letters[2], broken);
    put(&watched, "x.zip", &whole);
    watched.expect(&[("x.zip!/a.md", "good")]);
    let ended = watched.sink.batches();
    let mut changes = ended.iter().flat_map(|batch| &batch.changes);
    assert!(changes.any(|(key, row, _)| key.as_str() == "\"x.zip\"" && row.is_none()));
    watched.remove("x.zip");

    let tar = packed(&tarred(&[("a.md", b"good"), ("b.md", &[b'x'; 100_000])]));
    put(&watched, "y.tgz", &tar[..tar.len() - 30]);
    let letters = watched.expect_letters(4);
    assert!(
        letters[3].starts_with("file 'y.tgz' is not a readable TAR archive: "),
        "{letters:?}"
    );
    watched.expect(&[]);
    put(&watched, "b.pdf", "%PDF-1.7 and no more");
    put(&watched, "c.docx", "no zip");
    let letters = watched.expect_letters(6);
    assert!(
        letters
            .iter()
            .any(|l| l.starts_with("file 'b.pdf' is not a readable PDF: "))
    );
    assert!(
        letters
            .iter()
            .any(|l| l.starts_with("file 'c.docx' is not a readable DOCX: "))
    );
    watched.stop();
}

#[test]
fn a_member_with_a_password_is_a_dead_letter() {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    let options = options
        .with_deprecated_encryption(b"secret")
        .expect("an option");
    zip.start_file("a.md", options).expect("begun");
    zip.write_all(b"hidden").expect("written");
    zip.start_file("b.md", SimpleFileOptions::default())
        .expect("begun");
    zip.write_all(b"open").expect("written");
    let watched = Watched::start("**");
    put(
        &watched,
        "x.zip",
        zip.finish().expect("finished").into_inner(),
    );
    watched.expect(&[("x.zip!/b.md", "open")]);
    assert_eq!(
        watched.expect_letters(1),
        ["file 'x.zip!/a.md' is encrypted"]
    );
    let letters = watched.sink.recorded().dead_letters;
    assert_eq!(letters[0].error.code, "encrypted-document");
    watched.stop();
}

/// 40 MB of one letter in 40 kB: what no text is packed to.
#[test]
fn an_archive_that_unpacks_to_too_much_is_cut_off() {
    let bomb = vec![b'x'; 7 << 20];
    let names: Vec<String> = (0..6).map(|number| format!("m{number}.md")).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("a.md", b"first" as &[u8])];
    members.extend(names.iter().map(|name| (&**name, &bomb[..])));
    for (name, content) in [
        ("x.zip", zipped(&members)),
        ("y.tar.gz", packed(&tarred(&members))),
    ] {
        let most = (16 << 20) + 100 * content.len();
        let watched = Watched::start("**");
        put(&watched, name, &content);
        let letters = watched.expect_letters(1);
        let taken = watched.sink.recorded().rows.len();
        let last = &names[taken - 2];
        assert_eq!(
            letters,
            [format!(
                "archive '{name}' unpacks to more than {most} bytes (ARCHIVE_RATIO_MAX); what \
                 follows member '{last}' is left out"
            )]
        );
        assert!((2..6).contains(&taken), "{taken}");
        let letters = watched.sink.recorded().dead_letters;
        assert_eq!(letters[0].error.code, "archive-too-large");
        watched.stop();
    }
}

#[test]
fn archives_keep_the_laws_of_sources() {
    let folder = tempfile::tempdir().expect("a folder");
    let texts: Vec<(String, String)> = (0..600)
        .map(|number| (format!("{number}.md"), format!("# {number}")))
        .collect();
    let members = texts.iter().map(|(name, text)| (&**name, text.as_bytes()));
    let members: Vec<(&str, &[u8])> = members.collect();
    fs::write(folder.path().join("x.zip"), zipped(&members[..300])).expect("written");
    fs::write(
        folder.path().join("y.tgz"),
        packed(&tarred(&members[300..])),
    )
    .expect("written");
    // A member that is there twice (`tar -r`) is what it is at last.
    let twice: Members = &[("a.md", b"old"), ("./a.md", b"new")];
    fs::write(folder.path().join("z.tar"), tarred(twice)).expect("written");
    fs::write(folder.path().join("z.zip"), zipped(twice)).expect("written");
    fs::write(folder.path().join("p.html"), "<h1>Page").expect("written");
    let path = folder.path().to_str().expect("UTF-8");
    let make = || connectors::files(path, "**").expect("a glob");
    let rows = source_laws(&make, Duration::from_millis(2_000));
    assert_eq!(rows.len(), 603);
}

/// What a test knows of a file.
#[derive(Clone)]
enum File {
    Text(String),
    /// A page with one heading.
    Page(String),
    Archive(BTreeMap<String, String>),
    Broken,
}

/// A naive list of what should be there.
fn listing(files: &BTreeMap<String, File>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, file) in files {
        match file {
            File::Text(text) => drop(all.insert(name.clone(), text.clone())),
            File::Page(text) => drop(all.insert(name.clone(), format!("# {text}\n"))),
            File::Archive(members) => {
                let members = members.iter();
                all.extend(members.map(|(inner, text)| (format!("{name}!/{inner}"), text.clone())));
            }
            File::Broken => {}
        }
    }
    all
}

/// Writes one of `names` anew, broken every sixth time.
fn random_file(rng: &mut ChaCha8Rng, name: &str, step: usize) -> (File, Vec<u8>) {
    if rng.random_range(0..6) == 0 {
        return (File::Broken, b"\xff is no text, page or archive".to_vec());
    }
    let text = format!("{name} {step}");
    match name.rsplit('.').next() {
        Some("md") => (File::Text(text.clone()), text.into_bytes()),
        Some("html") => (File::Page(text.clone()), format!("<h1>{text}").into_bytes()),
        _ => {
            let numbers = 0..rng.random_range(0..5);
            // Some members are the same in every version.
            let members: BTreeMap<String, String> = numbers
                .map(|n| {
                    (
                        format!("m{n}.md"),
                        if n % 2 == 0 {
                            text.clone()
                        } else {
                            n.to_string()
                        },
                    )
                })
                .collect();
            let list = members
                .iter()
                .map(|(name, text)| (&**name, text.as_bytes()));
            let list: Vec<(&str, &[u8])> = list.collect();
            let content = match name.ends_with(".zip") {
                true => zipped(&list),
                false => packed(&tarred(&list)),
            };
            (File::Archive(members), content)
        }
    }
}

fn random_script(watched: &Watched, seed: u64) {
    const NAMES: [&str; 6] = ["a.md", "b.md", "p.html", "x.zip", "y.zip", "z.tgz"];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut files: BTreeMap<String, File> = BTreeMap::new();
    for step in 0..120 {
        let folder = ["", "d/", "d/e/"][rng.random_range(0..3)];
        let name = format!("{folder}{}", NAMES[rng.random_range(0..NAMES.len())]);
        match rng.random_range(0..8) {
            0 => {
                let _ = fs::remove_file(watched.path(&name));
                files.remove(&name);
            }
            // A file under another name of its kind.
            1 => {
                let other = name.replace("a.md", "b.md").replace("x.zip", "y.zip");
                if let Some(file) = files.remove(&name) {
                    fs::rename(watched.path(&name), watched.path(&other)).expect("renamed");
                    files.insert(other, file);
                }
            }
            // A folder goes with all that is in it, or moves.
            2 if step % 3 == 0 => {
                let _ = fs::remove_dir_all(watched.path("d"));
                files.retain(|name, _| !name.starts_with("d/"));
            }
            3 if watched.path("d").exists() && !watched.path("moved").exists() => {
                fs::rename(watched.path("d"), watched.path("moved")).expect("moved");
                std::thread::sleep(Duration::from_millis(rng.random_range(0..80)));
                fs::rename(watched.path("moved"), watched.path("d")).expect("moved back");
            }
            // Written in two parts where it stands.
            4 => {
                let (file, content) = random_file(&mut rng, &name, step);
                watched.write(&name, &content[..content.len() / 2]);
                std::thread::sleep(Duration::from_millis(rng.random_range(0..40)));
                watched.write(&name, content);
                files.insert(name, file);
            }
            _ => {
                let (file, content) = random_file(&mut rng, &name, step);
                put(watched, &name, content);
                files.insert(name, file);
            }
        }
        if rng.random_range(0..3) == 0 {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..40)));
        }
        if step % 30 == 29 {
            let expected = listing(&files);
            let is_there = watched.sink.wait(|recorded| texts(recorded) == expected);
            let found = texts(&watched.sink.recorded());
            assert!(
                is_there,
                "seed {seed} step {step}: {found:?} is not {expected:?}"
            );
        }
    }
}

#[test]
fn random_edits_of_documents_and_archives_end_in_what_is_there() {
    for seed in 1..=2 {
        let watched = Watched::start("**");
        random_script(&watched, seed);
        watched.stop();
        let watched = Watched::with("**", FilesSource::scanning_only);
        random_script(&watched, seed);
        watched.stop();
    }
}

/// The rows of a folder that takes long to scan.
fn large(folder: &Path) {
    for number in 0..8_000 {
        fs::write(folder.join(format!("{number}.md")), "").expect("written");
    }
}

#[test]
fn a_notification_is_quicker_than_the_next_scan() {
    let watched = Watched::start("**");
    large(&watched.path(""));
    assert!(watched.sink.wait(|recorded| recorded.rows.len() == 8_000));
    std::thread::sleep(Duration::from_millis(2_500));
    let seen = |name: &str, text: Option<&str>| {
        let begun = Instant::now();
        let is_there = watched
            .sink
            .wait(|recorded| texts(recorded).get(name).map(|t| &**t) == text);
        assert!(is_there, "{name}");
        begun.elapsed()
    };
    let round = |round: usize| {
        let mut waits = Vec::new();
        for number in 9 * round..9 * round + 9 {
            let (name, text) = (format!("deep{number}/new.md"), format!("text {number}"));
            watched.write(&name, &text);
            seen(&name, Some(&text));
            let changed = format!("changed {number}");
            put(&watched, &name, &changed);
            waits.push(seen(&name, Some(&changed)));
        }
        waits.sort();
        eprintln!("a change is seen after {waits:?}");
        waits[waits.len() / 2]
    };
    // Scans alone, two seconds apart, show one change in five so soon. The machine may be busy for a while.
    let is_quick = (0..4).any(|number| round(number) < Duration::from_millis(500));
    assert!(is_quick, "a change is seen when the folder is scanned");
    watched.remove("deep0/new.md");
    seen("deep0/new.md", None);
    // Another folder under the same name is watched, too.
    let away = watched.folder.path().join("away");
    fs::rename(watched.path(""), &away).expect("moved");
    watched.expect_letters(1);
    fs::create_dir(watched.path("")).expect("a folder");
    fs::write(watched.path("only.md"), "one").expect("written");
    watched.expect(&[("only.md", "one")]);
    watched.stop();
}
