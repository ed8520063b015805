//! `FROM FILES`: documents that take too long, letters over a restart, and files that come back.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use connectors::files::Extractor;
use engine::limits::DOCUMENT_BYTES_MAX;
use engine::testing::{Recorded, ScriptedSink, SourceRun};
use lopdf::{Document, Object, Stream, dictionary};

use crate::archives::{put, tarred, zipped};
use crate::files::{Watched, texts};

/// A document of one page; its form `Fm0` draws `form`.
fn pdf(page: &str, form: &str) -> Vec<u8> {
    let mut document = Document::with_version("1.7");
    let (tree, form_id) = (document.new_object_id(), document.new_object_id());
    let font = document.add_object(dictionary! {
        "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica",
        "Encoding" => "WinAnsiEncoding",
    });
    let resources = document.add_object(dictionary! {
        "Font" => dictionary! { "F1" => font },
        "XObject" => dictionary! { "Fm0" => form_id },
    });
    let stream = Stream::new(
        dictionary! { "Type" => "XObject", "Subtype" => "Form", "Resources" => resources },
        form.as_bytes().to_vec(),
    );
    document.objects.insert(form_id, Object::Stream(stream));
    let content = Stream::new(dictionary! {}, page.as_bytes().to_vec());
    let content = document.add_object(content);
    let page = dictionary! { "Type" => "Page", "Parent" => tree, "Contents" => content };
    let kids: Vec<Object> = vec![document.add_object(page).into()];
    let pages = dictionary! {
        "Type" => "Pages", "Kids" => kids, "Count" => 1, "Resources" => resources,
    };
    document.objects.insert(tree, Object::Dictionary(pages));
    let catalog = document.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
    document.trailer.set("Root", catalog);
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).expect("saved");
    bytes
}

fn text(text: &str) -> Vec<u8> {
    pdf(&format!("BT /F1 12 Tf ({text}) Tj ET"), "")
}

/// A document that draws itself ten times in itself, twelve levels deep.
fn endless() -> Vec<u8> {
    let form = format!("BT /F1 12 Tf (x) Tj ET {}", "/Fm0 Do ".repeat(10));
    pdf("/Fm0 Do", &form)
}

fn codes(watched: &Watched) -> Vec<String> {
    let letters = watched.sink.recorded().dead_letters;
    letters
        .into_iter()
        .map(|letter| letter.error.code)
        .collect()
}

#[test]
fn what_is_too_slow_keeps_its_row_while_it_is_tried_again() {
    let extractor = Extractor::in_process().within(Duration::from_millis(150));
    let watched = Watched::with("**", move |source| source.extracted_by(extractor.clone()));
    put(&watched, "a.pdf", text("good"));
    put(
        &watched,
        "x.zip",
        zipped(&[("a.md", b"one"), ("b.pdf", &text("two"))]),
    );
    let good = [
        ("a.pdf", "good\n"),
        ("x.zip!/a.md", "one"),
        ("x.zip!/b.pdf", "two\n"),
    ];
    watched.expect(&good);
    put(&watched, "a.pdf", endless());
    let letters = watched.expect_letters(1);
    let expected = "the text of file 'a.pdf' was not found within 30000 ms (EXTRACT_MS_MAX)";
    assert_eq!(letters, [expected]);
    watched.expect(&good);
    // Given up after some tries; the letter is told again behind the delete that ends the first.
    watched.expect(&good[1..]);
    watched.expect_letters(2);
    assert_eq!(codes(&watched), ["extraction-timeout"; 2]);
    put(&watched, "a.pdf", text("better"));
    watched.expect(&[("a.pdf", "better\n"), good[1], good[2]]);

    // A member is tried with its archive; the others are taken at once.
    put(
        &watched,
        "x.zip",
        zipped(&[("a.md", b"ONE"), ("b.pdf", &endless())]),
    );
    watched.expect(&[("a.pdf", "better\n"), ("x.zip!/a.md", "ONE"), good[2]]);
    watched.expect(&[("a.pdf", "better\n"), ("x.zip!/a.md", "ONE")]);
    watched.expect_letters(4);
    watched.rest();
    assert_eq!(codes(&watched), ["extraction-timeout"; 4]);
    watched.stop();
}

#[test]
fn documents_without_a_text_say_why() {
    let watched = Watched::start("**");
    put(&watched, "scan.pdf", pdf("0 0 m", ""));
    let expected = "file 'scan.pdf' has pages, but no text";
    assert_eq!(watched.expect_letters(1), [expected]);
    let file = fs::File::create(watched.path("large.html")).expect("created");
    file.set_len(DOCUMENT_BYTES_MAX as u64 + 1).expect("grown");
    let expected = "file 'large.html' has 67108865 bytes; the limit DOCUMENT_BYTES_MAX is 67108864";
    assert_eq!(watched.expect_letters(2)[1], expected);
    assert_eq!(codes(&watched), ["no-text", "document-too-large"]);
    watched.stop();
}

/// What `rsync -t` and builds of a fixed date do: other bytes, the same size and time of change.
#[cfg(unix)]
#[test]
fn other_bytes_of_the_same_size_and_time_are_seen() {
    let watched = Watched::start("**");
    let write = |text: &str| {
        let new = watched.folder.path().join("new");
        fs::write(&new, text).expect("written");
        let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let file = fs::File::options().write(true).open(&new).expect("open");
        file.set_modified(at).expect("set");
        fs::rename(new, watched.path("a.md")).expect("replaced");
    };
    write("one");
    watched.expect(&[("a.md", "one")]);
    watched.rest();
    write("two");
    watched.expect(&[("a.md", "two")]);
    // The same bytes again, in another file: nothing changed.
    let changes = watched.changes();
    write("two");
    watched.rest();
    assert_eq!(watched.changes(), changes);
    watched.stop();
}

/// Its members are not seen while it is away; missing for a moment is not gone.
#[test]
fn an_archive_that_comes_back_unchanged_keeps_its_rows() {
    let watched = Watched::start("**");
    put(
        &watched,
        "x.zip",
        zipped(&[("a.md", b"one"), ("b.md", b"two")]),
    );
    let expected = [("x.zip!/a.md", "one"), ("x.zip!/b.md", "two")];
    watched.expect(&expected);
    watched.rest();
    let changes = watched.changes();
    let away = watched.folder.path().join("away");
    let mut longest = Duration::ZERO;
    for _ in 0..12 {
        let begun = Instant::now();
        fs::rename(watched.path("x.zip"), &away).expect("moved");
        std::thread::sleep(Duration::from_millis(30));
        fs::rename(&away, watched.path("x.zip")).expect("moved back");
        longest = longest.max(begun.elapsed());
        // Seen in between: what is missed twice is gone.
        std::thread::sleep(Duration::from_millis(150));
    }
    watched.rest();
    watched.expect(&expected);
    // A machine that is busy makes a moment long.
    if longest < Duration::from_millis(50) {
        assert_eq!(watched.changes(), changes, "no delete, no row");
    }
    watched.stop();
}

#[test]
fn a_member_with_a_path_that_is_no_key_is_told_until_it_is_gone() {
    let watched = Watched::start("**");
    let long = format!("{}/a.md", "x".repeat(100)).repeat(50);
    let both = |text: &'static [u8]| tarred(&[("a.md", text), (&long, b"far")]);
    put(&watched, "x.tar", both(b"one"));
    watched.expect(&[("x.tar!/a.md", "one")]);
    watched.expect_letters(1);
    put(&watched, "x.tar", both(b"two"));
    watched.expect(&[("x.tar!/a.md", "two")]);
    watched.rest();
    assert_eq!(codes(&watched), ["key-too-large"], "once");
    put(&watched, "x.tar", tarred(&[("a.md", b"three")]));
    watched.expect(&[("x.tar!/a.md", "three")]);
    watched.rest();
    assert!(
        is_ended(&watched.sink.recorded()),
        "ended by the archive's key"
    );
    watched.stop();
}

/// Whether no letter is open.
fn is_ended(recorded: &Recorded) -> bool {
    engine::contract::Resume::letters(recorded).is_empty()
}

#[test]
fn letters_end_after_a_restart_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("docs");
    let run = |before: Recorded, until: &dyn Fn(&Recorded) -> bool| {
        let sink = ScriptedSink::open();
        let source = connectors::files(path.to_str().expect("UTF-8"), "**").expect("a glob");
        let run = SourceRun::start(source, &sink, before);
        assert!(sink.wait(until), "{:?}", sink.recorded());
        std::thread::sleep(Duration::from_millis(300));
        run.stop();
        sink
    };
    let missing = run(Recorded::default(), &|found| found.dead_letters.len() == 1);
    // Told before: not again. The letter ends when the folder is there.
    fs::create_dir(&path).expect("a folder");
    for name in ["stays", "mended", "gone"] {
        fs::write(path.join(name), b"b\xffd").expect("written");
    }
    let mut all = missing.batches();
    let sink = run(Recorded::of(&all), &|found| found.dead_letters.len() == 3);
    all.extend(sink.batches());
    let known = Recorded::of(&all);
    assert_eq!(engine::contract::Resume::letters(&known).len(), 3);

    fs::write(path.join("mended"), "good").expect("written");
    fs::remove_file(path.join("gone")).expect("removed");
    let begun = Instant::now();
    let sink = run(known, &|found| !found.rows.is_empty());
    let told = sink.recorded().dead_letters.len();
    assert_eq!(told, 0, "after {:?}", begun.elapsed());
    all.extend(sink.batches());
    let known = Recorded::of(&all);
    let expected = BTreeMap::from([("mended".to_owned(), "good".to_owned())]);
    assert_eq!(texts(&known), expected);
    let open = engine::contract::Resume::letters(&known);
    assert_eq!(open.len(), 1);
    assert_eq!(&*open[0].position, "stays");
}
