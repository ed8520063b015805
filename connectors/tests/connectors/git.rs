//! `FROM GIT` over paths: histories that git itself wrote, followed, rewritten and interrupted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use connectors::git::{GitOptions, GitSource, schema};
use engine::contract::{Source, SourceBatch};
use engine::limits::{KEY_BYTES_MAX, TEXT_BYTES_MAX, TRANSACTION_PIECE_ROWS_MAX};
use engine::model::{Row, RowCodec, Value};
use engine::testing::{Recorded, ScriptedSink, SourceRun, source_laws};

use crate::repo::{Repo, Stream, Tree, random_history};

/// A source of `*.md` of `main`.
pub fn options(repository: &str) -> GitOptions {
    GitOptions {
        repository: repository.to_owned(),
        branch: "main".to_owned(),
        pattern: "**/*.md".to_owned(),
        exclude: None,
        from: None,
        interval: Some(Duration::from_millis(50)),
        token_env: None,
        mirrors: None,
    }
}

/// The source, which is right.
pub fn source(options: GitOptions) -> Box<dyn Source> {
    Box::new(GitSource::new("test", options).expect("good options"))
}

fn values(row: &Row) -> Vec<Value> {
    let codec = RowCodec::new(schema()).expect("packable");
    codec.unpack(row)
}

fn word(value: &Value) -> String {
    match value {
        Value::Text(text) => text.to_string(),
        other => panic!("{other:?} is no text"),
    }
}

/// Paths and blobs of the live rows.
pub fn tree(recorded: &Recorded) -> Tree {
    let pair = |row| {
        let values = values(row);
        (word(&values[0]), word(&values[3]))
    };
    recorded.rows.values().map(pair).collect()
}

/// Paths and texts of the live rows.
fn texts(recorded: &Recorded) -> BTreeMap<String, String> {
    let pair = |row| {
        let values = values(row);
        (word(&values[0]), word(&values[1]))
    };
    recorded.rows.values().map(pair).collect()
}

/// A repository that is followed.
struct Followed {
    repo: Repo,
    sink: Arc<ScriptedSink>,
    run: Option<SourceRun>,
}

impl Followed {
    fn start(repo: Repo, change: impl FnOnce(&mut GitOptions)) -> Followed {
        let mut options = options(&repo.text());
        change(&mut options);
        let sink = ScriptedSink::open();
        let run = SourceRun::start(source(options), &sink, Recorded::default());
        Followed {
            repo,
            sink,
            run: Some(run),
        }
    }

    /// Stops it and runs it again on what it recorded.
    fn restart(&mut self) {
        self.restart_after(usize::MAX, |_| ());
    }

    /// The same as if it had been killed after so many batches; the repository changes meanwhile.
    fn restart_after(&mut self, batches: usize, meanwhile: impl FnOnce(&Repo)) {
        self.run.take().expect("it runs").stop();
        let mut before = self.sink.batches();
        before.truncate(batches);
        meanwhile(&self.repo);
        let made = source(options(&self.repo.text()));
        self.sink = ScriptedSink::open();
        for batch in &before {
            engine::contract::LaneSink::stage(&*self.sink, batch.clone()).expect("open");
        }
        let run = SourceRun::start(made, &self.sink, Recorded::of(&before));
        self.run = Some(run);
    }

    /// Waits until the rows are those of a commit.
    fn expect(&self, commit: &str) {
        let expected = self.repo.tree(commit, ".md");
        let is_there = self.sink.wait(|recorded| {
            let position = recorded.positions.get("");
            position.is_some_and(|position| position["commit"] == commit)
                && tree(recorded) == expected
        });
        let found = self.sink.recorded();
        assert!(is_there, "{:?} at {:?}", tree(&found), found.positions);
    }

    fn letters(&self) -> Vec<(String, String)> {
        let letters = self.sink.recorded().dead_letters.into_iter();
        let pair = |letter: engine::error::DeadLetter| (letter.error.code, letter.error.detail);
        letters.map(pair).collect()
    }

    fn stop(mut self) -> Vec<SourceBatch> {
        self.run.take().expect("it runs").stop();
        self.sink.batches()
    }
}

#[test]
fn it_keeps_the_laws_of_sources() {
    let repo = Repo::new();
    repo.import(&random_history(7, 120).stream);
    let line = repo.line("main");
    let from_tree = || source(options(&repo.text()));
    let rows = source_laws(&from_tree, Duration::from_millis(600));
    assert_eq!(rows.len(), repo.tree("main", ".md").len());
    let from_first = || {
        source(GitOptions {
            from: Some(line[0].clone()),
            ..options(&repo.text())
        })
    };
    let rows = source_laws(&from_first, Duration::from_millis(600));
    assert_eq!(rows.len(), repo.tree("main", ".md").len());
}

/// A commit with so many files.
fn many(repo: &Repo, files: usize) -> String {
    let mut stream = Stream::default();
    stream.commit("refs/heads/main", 1_790_000_000, "many", None, &[]);
    for number in 0..files {
        let text = format!("text {number}");
        stream.file(&format!("d{}/{number}.md", number % 7), text.as_bytes());
    }
    repo.import(&stream.bytes);
    repo.git(&["rev-parse", "main"])
}

#[test]
fn the_laws_hold_in_the_middle_of_the_first_tree() {
    let repo = Repo::new();
    many(&repo, 2_000);
    let make = || source(options(&repo.text()));
    let rows = source_laws(&make, Duration::from_millis(800));
    assert_eq!(rows.len(), 2_000);
}

#[test]
fn a_first_tree_that_was_interrupted_is_finished_before_what_came_meanwhile() {
    let repo = Repo::new();
    let first = many(&repo, 1_000);
    let sink = ScriptedSink::open();
    sink.close_after(2);
    let run = SourceRun::start(source(options(&repo.text())), &sink, Recorded::default());
    assert!(sink.wait(|recorded| recorded.rows.len() == 512));
    run.stop();
    let before = sink.batches();
    let begun = Recorded::of(&before);
    assert_eq!(begun.positions[""]["snapshot"], *first);
    let second = repo.commit("two", &[("d0/0.md", None), ("d1/1.md", Some(b"new"))]);

    let sink = ScriptedSink::open();
    let run = SourceRun::start(source(options(&repo.text())), &sink, begun);
    let all = || {
        let mut all = before.clone();
        all.extend(sink.batches());
        Recorded::of(&all)
    };
    assert!(sink.wait(|_| tree(&all()) == repo.tree(&second, ".md")));
    run.stop();
    let sizes: Vec<usize> = sink
        .batches()
        .iter()
        .map(|batch| batch.changes.len())
        .collect();
    assert_eq!(sizes, [256, 232, 2], "what was taken is not taken again");
    let commits: Vec<String> = all()
        .rows
        .values()
        .map(|row| word(&values(row)[4]))
        .collect();
    assert_eq!(
        commits.iter().filter(|commit| **commit == second).count(),
        1
    );
    assert_eq!(
        commits.iter().filter(|commit| **commit == first).count(),
        998
    );
}

#[test]
fn a_repository_that_is_repacked_under_way_is_read_on() {
    let repo = Repo::new();
    repo.commit("first", &[("a.md", Some(b"a"))]);
    let followed = Followed::start(repo, |_| ());
    let mut last = String::new();
    for number in 0..120 {
        let text = format!("version {number}");
        let repo = &followed.repo;
        last = repo.commit("next", &[("b.md", Some(text.as_bytes()))]);
        // A pack each: more than a handle has room for.
        repo.git(&["repack", "--quiet", "-d"]);
        if number % 50 == 40 {
            repo.git(&["gc", "--quiet", "--prune=now"]);
        }
    }
    followed.expect(&last);
    followed.stop();
}

#[test]
fn every_commit_of_a_random_history_is_one_batch_that_leads_to_its_tree() {
    for seed in 0..3 {
        let repo = Repo::new();
        let written = random_history(seed, 200);
        repo.import(&written.stream);
        assert!(written.renames > 20 && written.merges > 3, "{written:?}");
        let line = repo.line("main");
        let from = line[0].clone();
        let followed = Followed::start(repo, |options| options.from = Some(from));
        followed.expect(line.last().expect("commits"));
        let repo = Repo::copy_of(&followed.repo.path());
        let batches = followed.stop();
        let (mut seen, mut at) = (Vec::new(), 0);
        for batch in batches {
            seen.push(batch);
            let recorded = Recorded::of(&seen);
            let position = recorded.positions[""]["commit"].as_str().expect("a commit");
            // Commits that touch no file of the pattern have no batch of their own.
            let found = line[at..].iter().position(|commit| commit == position);
            at += found.unwrap_or_else(|| panic!("seed {seed}: {position} is out of order"));
            assert_eq!(
                tree(&recorded),
                repo.tree(position, ".md"),
                "seed {seed}, {position}"
            );
        }
        assert_eq!(at, line.len() - 1);
    }
}

#[test]
fn a_row_says_what_lies_there_and_who_put_it() {
    let repo = Repo::new();
    let first = repo.commit("one", &[("a.md", Some(b"alpha")), ("b.md", Some(b"beta"))]);
    let followed = Followed::start(repo, |_| ());
    followed.expect(&first);
    let second = followed.repo.commit("two", &[("b.md", Some(b"beta 2"))]);
    followed.expect(&second);
    let recorded = followed.sink.recorded();
    let rows: Vec<Vec<Value>> = recorded.rows.values().map(values).collect();
    let row = |path: &str, text: &str, blob: &str, commit: &str| {
        vec![
            Value::Text(path.into()),
            Value::Text(text.into()),
            Value::Int(text.len() as i64),
            Value::Text(blob.into()),
            Value::Text(commit.into()),
            Value::Text("Ada <ada@example.org>".into()),
            Value::Timestamp(1_790_000_000_000_000),
        ]
    };
    let blobs = followed.repo.tree(&second, ".md");
    assert_eq!(
        rows,
        [
            row("a.md", "alpha", &blobs["a.md"], &first),
            row("b.md", "beta 2", &blobs["b.md"], &second),
        ]
    );
    followed.stop();
}

#[test]
fn a_rename_is_a_delete_and_an_upsert_in_one_batch() {
    let repo = Repo::new();
    let first = repo.commit("one", &[("old.md", Some(b"the same"))]);
    let followed = Followed::start(repo, |_| ());
    followed.expect(&first);
    let changes = [("old.md", None), ("new.md", Some(&b"the same"[..]))];
    let second = followed.repo.commit("two", &changes);
    followed.expect(&second);
    let batches = followed.stop();
    let last = &batches.last().expect("staged").changes;
    let shown: Vec<(&str, bool)> = last
        .iter()
        .map(|(key, row, _)| (key.as_str(), row.is_some()))
        .collect();
    assert_eq!(shown, [("\"new.md\"", true), ("\"old.md\"", false)]);
}

#[test]
fn a_rewritten_branch_is_one_step_and_so_is_one_whose_past_is_gone() {
    let repo = Repo::new();
    let base = repo.commit("base", &[("a.md", Some(b"a")), ("b.md", Some(b"b"))]);
    let old = repo.commit("old", &[("a.md", Some(b"old")), ("c.md", Some(b"c"))]);
    let mut followed = Followed::start(repo, |_| ());
    followed.expect(&old);
    followed.repo.set("main", &base);
    let new = followed.repo.commit("new", &[("a.md", Some(b"new"))]);
    followed.expect(&new);
    let batches = followed.sink.batches();
    let last = batches.last().expect("staged");
    // Seen on the way, perhaps: the base itself. Never a tree that no commit has.
    assert!(last.changes.len() <= 2, "{last:?}");

    // What was read last does not exist any more when the source runs again.
    followed.run.take().expect("it runs").stop();
    followed.repo.set("main", &base);
    let newest = followed.repo.commit("newest", &[("d.md", Some(b"d"))]);
    let gc = ["reflog", "expire", "--expire=now", "--all"];
    followed.repo.git(&gc);
    followed.repo.git(&["gc", "--quiet", "--prune=now"]);
    let before = followed.sink.batches();
    let sink = ScriptedSink::open();
    let made = source(options(&followed.repo.text()));
    let run = SourceRun::start(made, &sink, Recorded::of(&before));
    let expected = followed.repo.tree(&newest, ".md");
    let all = |sink: &ScriptedSink| {
        let mut all = before.clone();
        all.extend(sink.batches());
        Recorded::of(&all)
    };
    assert!(
        sink.wait(|_| tree(&all(&sink)) == expected),
        "{:?}",
        tree(&all(&sink))
    );
    run.stop();
    let batches = sink.batches();
    assert_eq!(batches.len(), 1, "one step");
    let keys: Vec<&str> = batches[0]
        .changes
        .iter()
        .map(|change| change.0.as_str())
        .collect();
    assert_eq!(keys, ["\"a.md\"", "\"d.md\""], "what is the same stays");
}

#[test]
fn a_branch_that_merges_the_old_head_is_one_step() {
    let repo = Repo::new();
    let base = repo.commit("base", &[("a.md", Some(b"a"))]);
    let old = repo.commit("old", &[("b.md", Some(b"b"))]);
    let followed = Followed::start(repo, |_| ());
    followed.expect(&old);
    // Somebody else's line takes the branch in and becomes the branch.
    let mut stream = Stream::default();
    let (feature, ours) = ("refs/heads/feature", [old.as_str()]);
    stream.commit(feature, 1_790_000_100, "work", Some(&base), &[]);
    stream.file("c.md", b"c");
    stream.commit(feature, 1_790_000_200, "merge", None, &ours);
    stream.file("b.md", b"b");
    followed.repo.import(&stream.bytes);
    let merge = followed.repo.git(&["rev-parse", feature]);
    followed.repo.set("main", &merge);
    followed.expect(&merge);
    let last = followed.stop().pop().expect("staged");
    assert_eq!(last.changes.len(), 1, "only c.md came");
}

#[test]
fn what_is_away_deletes_nothing_and_is_waited_for() {
    let repo = Repo::new();
    let followed = Followed::start(repo, |_| ());
    // The branch comes after the source.
    let first = followed.repo.commit("one", &[("a.md", Some(b"a"))]);
    followed.expect(&first);
    followed.repo.git(&["update-ref", "-d", "refs/heads/main"]);
    std::thread::sleep(Duration::from_millis(200));
    followed.repo.set("main", &first);
    let moved = followed.repo.path().with_extension("moved");
    std::fs::rename(followed.repo.path(), &moved).expect("moved");
    std::thread::sleep(Duration::from_millis(400));
    std::fs::rename(&moved, followed.repo.path()).expect("moved back");
    let second = followed.repo.commit("two", &[("b.md", Some(b"b"))]);
    followed.expect(&second);
    let batches = followed.stop();
    let mut changes = batches.iter().flat_map(|batch| &batch.changes);
    assert!(changes.all(|(_, row, _)| row.is_some()), "no delete");
}

#[test]
fn bad_files_are_dead_letters_and_lose_their_row() {
    let repo = Repo::new();
    let first = repo.commit("one", &[("a.md", Some(b"good")), ("b.md", Some(b"good"))]);
    let followed = Followed::start(repo, |options| options.pattern = "**".to_owned());
    followed.expect(&first);
    let large = vec![b'x'; TEXT_BYTES_MAX + 1];
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n";
    let long = format!("{}/a.md", "d".repeat(KEY_BYTES_MAX));
    let second = followed.repo.commit(
        "two",
        &[
            ("a.md", Some(b"b\xffd")),
            ("b.md", Some(&large)),
            ("c.bin", Some(pointer)),
            ("\"d\\377.md\"", Some(b"a path in Latin 1")),
            (&long, Some(b"a long path")),
        ],
    );
    let is_there = |recorded: &Recorded| recorded.dead_letters.len() == 5;
    assert!(followed.sink.wait(is_there), "{:?}", followed.letters());
    assert!(followed.sink.wait(|recorded| recorded.rows.is_empty()));
    let expected = [
        ("invalid-utf8", "file 'a.md' is not UTF-8 at byte 1"),
        (
            "text-too-large",
            "file 'b.md' has 8388609 bytes; the limit TEXT_BYTES_MAX is 8388608",
        ),
        (
            "git-lfs-pointer",
            "file 'c.bin' is a pointer to large file storage (git LFS)",
        ),
        (
            "key-too-large",
            "the key has 4103 bytes; the limit KEY_BYTES_MAX is 4096",
        ),
        ("invalid-path", "the path 'd\u{fffd}.md' is not UTF-8"),
    ];
    let expected = expected.map(|(code, detail)| (code.to_owned(), detail.to_owned()));
    assert_eq!(followed.letters(), expected);
    let letter = &followed.sink.recorded().dead_letters[0];
    assert_eq!(letter.position, format!("commit {second} a.md"));
    assert_eq!(letter.payload, b"b\xffd");
    let third = followed
        .repo
        .commit("three", &[("a.md", Some(b"good again"))]);
    assert!(followed.sink.wait(|recorded| recorded.rows.len() == 1));
    assert_eq!(texts(&followed.sink.recorded())["a.md"], "good again");
    assert!(
        followed
            .sink
            .wait(|recorded| recorded.positions[""]["commit"] == *third)
    );
    followed.stop();
}

#[test]
fn only_regular_files_of_the_pattern_are_taken() {
    let repo = Repo::new();
    let mut stream = Stream::default();
    stream.commit("refs/heads/main", 1_790_000_000, "one", None, &[]);
    stream.file("a.md", b"a");
    stream.file("docs/b.md", b"b");
    stream.file("drafts/c.md", b"c");
    stream.entry("120000", "link.md", b"a.md");
    stream.entry("100755", "run.md", b"run");
    let module = "M 160000 0123456789012345678901234567890123456789 module.md\n";
    stream.bytes.extend_from_slice(module.as_bytes());
    repo.import(&stream.bytes);
    let exclude = Some("drafts/**".to_owned());
    let followed = Followed::start(repo, |options| options.exclude = exclude);
    let names = |recorded: &Recorded| texts(recorded).into_keys().collect::<Vec<_>>();
    let is_there = |recorded: &Recorded| names(recorded) == ["a.md", "docs/b.md", "run.md"];
    assert!(
        followed.sink.wait(is_there),
        "{:?}",
        followed.sink.recorded().rows
    );

    // A file that turns to a link is gone; a link that turns to a file comes; a folder takes the
    // place of a file.
    let mut stream = Stream::default();
    stream.commit(
        "refs/heads/main",
        1_790_000_100,
        "two",
        Some("refs/heads/main^0"),
        &[],
    );
    stream.entry("120000", "run.md", b"a.md");
    stream.entry("100644", "link.md", b"now a file");
    stream.delete("a.md");
    stream.file("a.md/inside.md", b"in a folder");
    followed.repo.import(&stream.bytes);
    let expected = ["a.md/inside.md", "docs/b.md", "link.md"];
    assert!(
        followed.sink.wait(|recorded| names(recorded) == expected),
        "{:?}",
        names(&followed.sink.recorded())
    );
    followed.stop();
}

/// A source that has taken a commit of two pieces, after one of a file; both commits.
fn in_pieces() -> (Followed, [String; 2]) {
    let repo = Repo::new();
    let first = repo.commit("one", &[("a.md", Some(b"a"))]);
    let mut stream = Stream::default();
    let from = Some("refs/heads/main^0");
    stream.commit("refs/heads/main", 1_790_000_100, "two", from, &[]);
    for number in 0..TRANSACTION_PIECE_ROWS_MAX {
        stream.file(&format!("d{}/{number}.md", number % 64), b"the same");
    }
    stream.delete("a.md");
    let followed = Followed::start(repo, |_| ());
    followed.expect(&first);
    followed.repo.import(&stream.bytes);
    let second = followed.repo.git(&["rev-parse", "main"]);
    followed.expect(&second);
    (followed, [first, second])
}

fn sizes(followed: &Followed) -> Vec<usize> {
    let batches = followed.sink.batches();
    batches.iter().map(|batch| batch.changes.len()).collect()
}

#[test]
fn a_large_commit_is_staged_in_pieces_that_are_one_transaction() {
    let (mut followed, [_, second]) = in_pieces();
    assert_eq!(sizes(&followed), [1, TRANSACTION_PIECE_ROWS_MAX, 1]);
    assert_eq!(followed.sink.open_batches(), [1]);
    followed.restart();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sizes(&followed).len(), 3, "nothing is new");
    // Killed between its pieces: the rest of it.
    followed.restart_after(2, |_| ());
    followed.expect(&second);
    assert_eq!(sizes(&followed), [1, TRANSACTION_PIECE_ROWS_MAX, 1]);
    followed.stop();
}

#[test]
fn a_commit_that_was_half_taken_and_is_gone_leaves_nothing() {
    let (mut followed, [first, _]) = in_pieces();
    let mut third = String::new();
    followed.restart_after(2, |repo| {
        repo.set("main", &first);
        third = repo.commit("three", &[("b.md", Some(b"b"))]);
    });
    followed.expect(&third);
    assert_eq!(sizes(&followed)[2..], [TRANSACTION_PIECE_ROWS_MAX, 1]);
    // The commit is amended, and its new form is half taken, too.
    let mut amended = String::new();
    followed.restart_after(2, |repo| {
        let mut stream = Stream::default();
        let from = Some(&*first);
        stream.commit("refs/heads/main", 1_790_000_300, "two, amended", from, &[]);
        for number in 0..TRANSACTION_PIECE_ROWS_MAX {
            stream.file(&format!("e{}/{number}.md", number % 64), b"the same");
        }
        repo.set("main", &first);
        repo.import(&stream.bytes);
        amended = repo.git(&["rev-parse", "main"]);
    });
    followed.expect(&amended);
    followed.restart_after(3, |_| ());
    followed.expect(&amended);
    // The branch is where it was before the commit.
    followed.restart_after(2, |repo| {
        repo.set("main", &first);
    });
    followed.expect(&first);
    followed.stop();
}

/// What ends a source that cannot go on.
pub(crate) fn ends(options: GitOptions) -> String {
    let context = engine::contract::SourceContext {
        name: "test".to_owned(),
        sink: ScriptedSink::open(),
        resume: Arc::new(Recorded::default()),
        stop: Arc::default(),
        dropped: Arc::default(),
        waits: Arc::default(),
    };
    let ended = source(options).run(context);
    ended.expect_err("it cannot heal").to_string()
}

#[test]
fn what_cannot_heal_is_said_and_ends_the_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8").to_owned();
    let error = ends(options(&path));
    let expected = format!("git '{path}': '{path}' is not a git repository: ");
    assert!(error.starts_with(&expected), "{error}");
    let hint = "; expected the folder that has .git, or a bare repository";
    assert!(error.ends_with(hint), "{error}");

    let repo = Repo::new();
    repo.commit("one", &[("a.md", Some(b"a"))]);
    let error = ends(GitOptions {
        from: Some("0123456789".to_owned()),
        ..options(&repo.text())
    });
    assert!(
        error.contains("FROM COMMIT '0123456789' names no commit of the repository; "),
        "{error}"
    );
}

#[test]
fn what_can_be_no_source_is_refused() {
    let refused = |change: &dyn Fn(&mut GitOptions)| {
        let mut options = options("/repo");
        options.mirrors = Some("/nowhere".into());
        change(&mut options);
        let made = GitSource::new("test", options).err();
        made.expect("refused").to_string()
    };
    let branch = refused(&|options| options.branch = "a..b".to_owned());
    assert!(
        branch.starts_with("git '/repo': BRANCH 'a..b' cannot be one: "),
        "{branch}"
    );
    let glob = refused(&|options| options.exclude = Some("a[".to_owned()));
    assert!(
        glob.starts_with("git '/repo': EXCLUDE 'a[' is not a glob: "),
        "{glob}"
    );
    let secret = refused(&|options| options.repository = "https://me:pw@host/r.git".to_owned());
    assert_eq!(
        secret,
        "git 'https://***@host/r.git': REPOSITORY has a password in it, which SHOW CREATE would \
         show; name an environment variable with TOKEN ENV"
    );
    let clear = refused(&|options| {
        options.repository = "http://host/r.git".to_owned();
        options.token_env = Some("TOKEN".to_owned());
    });
    assert!(clear.contains("TOKEN ENV is for https: "), "{clear}");
    let scheme = refused(&|options| options.repository = "ftp://host/r.git".to_owned());
    assert!(scheme.contains("has the unknown scheme 'ftp'"), "{scheme}");
}
