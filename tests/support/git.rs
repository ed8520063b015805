//! Repositories made by the real git, from a seed, for tests of `FROM GIT`.
//!
//! git speaks for itself: what a commit holds is asked of `git ls-tree`, and histories are written by
//! `git fast-import`. No configuration of the machine or its user is read.

#![allow(dead_code)] // each test uses its part

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A path and its blob.
pub type Tree = BTreeMap<String, String>;

/// A bare repository in a folder of its own.
pub struct Repo {
    folder: tempfile::TempDir,
}

impl Repo {
    /// An empty one with the branch `main`.
    pub fn new() -> Repo {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repo = Repo { folder };
        repo.git(&["init", "--quiet", "--bare", "--initial-branch=main", "."]);
        repo
    }

    /// A copy of another one's branch.
    pub fn copy_of(path: &Path) -> Repo {
        let repo = Repo::new();
        let path = path.to_str().expect("UTF-8");
        // A checkout may be a shallow clone; then so is the copy.
        let fetch = [
            "fetch",
            "--quiet",
            "--update-shallow",
            path,
            "+HEAD:refs/heads/main",
        ];
        repo.git(&fetch);
        repo
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The path as text.
    pub fn text(&self) -> String {
        self.path().to_str().expect("UTF-8").to_owned()
    }

    /// Runs git; what it prints.
    pub fn git(&self, args: &[&str]) -> String {
        let out = self.run(args, &[]);
        String::from_utf8(out).expect("UTF-8").trim_end().to_owned()
    }

    /// Runs git with an input; what it prints.
    pub fn run(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = command(self.folder.path())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("git is installed");
        let mut stdin = child.stdin.take().expect("piped");
        let output = std::thread::scope(|scope| {
            // Beside the reading: pipes are short.
            scope.spawn(move || stdin.write_all(input).expect("git reads"));
            child.wait_with_output().expect("git ends")
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {args:?}: {said}");
        output.stdout
    }

    /// Writes what a stream says.
    pub fn import(&self, stream: &[u8]) {
        self.run(&["fast-import", "--quiet", "--force"], stream);
    }

    /// One more commit on `main`: `(path, content)`, `None` deletes. Its id.
    pub fn commit(&self, message: &str, changes: &[(&str, Option<&[u8]>)]) -> String {
        let mut stream = Stream::default();
        let known = self.run(&["for-each-ref", "refs/heads/main"], &[]);
        let parent = (!known.is_empty()).then_some("refs/heads/main^0");
        stream.commit("refs/heads/main", 1_790_000_000, message, parent, &[]);
        for (path, content) in changes {
            match content {
                Some(content) => stream.file(path, content),
                None => stream.delete(path),
            }
        }
        self.import(&stream.bytes);
        self.git(&["rev-parse", "refs/heads/main"])
    }

    /// Commits of a branch along first parents, oldest first.
    pub fn line(&self, branch: &str) -> Vec<String> {
        let lines = self.git(&["rev-list", "--first-parent", "--reverse", branch]);
        lines.lines().map(str::to_owned).collect()
    }

    /// Sets a branch.
    pub fn set(&self, branch: &str, commit: &str) {
        self.git(&["update-ref", &format!("refs/heads/{branch}"), commit]);
    }

    /// The regular files of a commit whose paths end so.
    pub fn tree(&self, commit: &str, ending: &str) -> Tree {
        let out = self.run(&["ls-tree", "-r", "-z", commit], &[]);
        let mut tree = Tree::new();
        for entry in out
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty())
        {
            let entry = String::from_utf8_lossy(entry);
            let (head, path) = entry.split_once('\t').expect("a path");
            let mut words = head.split(' ');
            let is_file = words.next().is_some_and(|mode| mode.starts_with("100"));
            if is_file && path.ends_with(ending) {
                let blob = words.nth(1).expect("a blob");
                tree.insert(path.to_owned(), blob.to_owned());
            }
        }
        tree
    }

    /// The contents of blobs.
    pub fn contents(&self, blobs: &[String]) -> BTreeMap<String, Vec<u8>> {
        let out = self.run(&["cat-file", "--batch"], blobs.join("\n").as_bytes());
        let mut rest = &out[..];
        let mut contents = BTreeMap::new();
        for blob in blobs {
            let end = rest.iter().position(|byte| *byte == b'\n').expect("a head");
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            let bytes: usize = head
                .rsplit(' ')
                .next()
                .expect("a size")
                .parse()
                .expect("it");
            contents.insert(blob.clone(), rest[end + 1..end + 1 + bytes].to_vec());
            rest = &rest[end + bytes + 2..];
        }
        contents
    }
}

/// git in a folder, as no user.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder);
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // A checkout may belong to somebody else than who tests it.
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*");
    command
}

/// A stream for `git fast-import`.
#[derive(Default)]
pub struct Stream {
    pub bytes: Vec<u8>,
}

impl Stream {
    fn say(&mut self, text: std::fmt::Arguments<'_>) {
        self.bytes.extend_from_slice(text.to_string().as_bytes());
    }

    fn data(&mut self, data: &[u8]) {
        self.say(format_args!("data {}\n", data.len()));
        self.bytes.extend_from_slice(data);
        self.bytes.push(b'\n');
    }

    /// Begins a commit.
    pub fn commit(
        &mut self,
        branch: &str,
        seconds: u64,
        message: &str,
        from: Option<&str>,
        merged: &[&str],
    ) {
        self.say(format_args!("commit {branch}\n"));
        self.say(format_args!(
            "author Ada <ada@example.org> {seconds} +0100\n"
        ));
        self.say(format_args!(
            "committer Bob <bob@example.org> {seconds} -0500\n"
        ));
        self.data(message.as_bytes());
        if let Some(from) = from {
            self.say(format_args!("from {from}\n"));
        }
        for merged in merged {
            self.say(format_args!("merge {merged}\n"));
        }
    }

    /// A file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry("100644", path, content);
    }

    /// Anything with a mode.
    pub fn entry(&mut self, mode: &str, path: &str, content: &[u8]) {
        self.say(format_args!("M {mode} inline {path}\n"));
        self.data(content);
    }

    /// Nothing any more.
    pub fn delete(&mut self, path: &str) {
        self.say(format_args!("D {path}\n"));
    }

    /// The same elsewhere.
    pub fn rename(&mut self, from: &str, to: &str) {
        self.say(format_args!("R {from} {to}\n"));
    }
}

/// What a random history has.
#[derive(Debug, Default)]
pub struct Written {
    pub stream: Vec<u8>,
    pub renames: usize,
    pub merges: usize,
}

/// A history of `main` from a seed: documents that come, are edited by paragraph, renamed alone and by
/// folder, copied and deleted; merges of side lines; other files, links and modes on the way.
pub fn random_history(seed: u64, commits: usize) -> Written {
    let mut history = History {
        rng: ChaCha8Rng::seed_from_u64(seed),
        stream: Stream::default(),
        files: BTreeMap::new(),
        serial: 0,
        written: Written::default(),
    };
    for number in 0..commits {
        history.step(number);
    }
    Written {
        stream: history.stream.bytes,
        ..history.written
    }
}

struct History {
    rng: ChaCha8Rng,
    stream: Stream,
    files: BTreeMap<String, Vec<String>>,
    serial: usize,
    written: Written,
}

impl History {
    fn step(&mut self, number: usize) {
        let seconds = 1_700_000_000 + number as u64 * 60;
        let is_merge = number > 3 && self.rng.random_range(0..12) == 0;
        let side = is_merge.then(|| self.side(seconds));
        // Without a parent named fast-import goes on from the branch's end.
        let merged: &[&str] = match side {
            Some(_) => &["refs/heads/side"],
            None => &[],
        };
        let message = format!("commit {number}");
        self.stream
            .commit("refs/heads/main", seconds, &message, None, merged);
        if let Some((path, paragraphs)) = side {
            self.put(path, paragraphs);
            self.written.merges += 1;
            return;
        }
        for _ in 0..self.rng.random_range(1..4) {
            self.change(number);
        }
    }

    /// A commit beside the branch; what it brings.
    fn side(&mut self, seconds: u64) -> (String, Vec<String>) {
        let from = Some("refs/heads/main");
        self.stream
            .commit("refs/heads/side", seconds, "beside", from, &[]);
        let path = self.fresh_path();
        let paragraphs = vec![self.paragraph(), self.paragraph()];
        self.stream.file(&path, paragraphs.join("\n\n").as_bytes());
        (path, paragraphs)
    }

    fn change(&mut self, number: usize) {
        if self.files.len() < 12 {
            let (path, paragraphs) = (self.fresh_path(), self.paragraphs());
            return self.put(path, paragraphs);
        }
        match self.rng.random_range(0..20) {
            0..=3 => {
                let (path, paragraphs) = (self.fresh_path(), self.paragraphs());
                self.put(path, paragraphs);
            }
            4..=10 => {
                let path = self.any();
                let mut paragraphs = self.files[&path].clone();
                let at = self.rng.random_range(0..paragraphs.len());
                match self.rng.random_range(0..3) {
                    0 => paragraphs.insert(at, self.paragraph()),
                    1 if paragraphs.len() > 1 => drop(paragraphs.remove(at)),
                    _ => paragraphs[at] = self.paragraph(),
                }
                self.put(path, paragraphs);
            }
            11..=14 => self.rename(),
            15 => {
                let folder = format!("moved{}", self.rng.random_range(0..3));
                for _ in 0..3 {
                    let (from, serial) = (self.any(), self.serial());
                    self.move_to(&from, &format!("{folder}/{serial}.md"));
                }
            }
            16 => {
                let (from, to) = (self.any(), self.fresh_path());
                let paragraphs = self.files[&from].clone();
                self.put(to, paragraphs);
            }
            17 => {
                let path = self.any();
                self.files.remove(&path);
                self.stream.delete(&path);
            }
            18 => {
                let content = format!("build {number}");
                self.stream.file("build/log.txt", content.as_bytes());
                self.stream.entry("120000", "link.md", b"build/log.txt");
            }
            _ => {
                // Only the mode changes.
                let path = self.any();
                let content = self.files[&path].join("\n\n");
                self.stream.entry("100755", &path, content.as_bytes());
            }
        }
    }

    fn rename(&mut self) {
        let (from, to) = (self.any(), self.fresh_path());
        self.move_to(&from, &to);
        if self.rng.random_range(0..3) == 0 {
            let mut paragraphs = self.files[&to].clone();
            paragraphs.push(self.paragraph());
            self.put(to, paragraphs);
        }
    }

    fn move_to(&mut self, from: &str, to: &str) {
        let paragraphs = self.files.remove(from).expect("known");
        self.stream.rename(from, to);
        self.files.insert(to.to_owned(), paragraphs);
        self.written.renames += 1;
    }

    fn put(&mut self, path: String, paragraphs: Vec<String>) {
        self.stream.file(&path, paragraphs.join("\n\n").as_bytes());
        self.files.insert(path, paragraphs);
    }

    fn any(&mut self) -> String {
        let at = self.rng.random_range(0..self.files.len());
        self.files.keys().nth(at).expect("in range").clone()
    }

    fn serial(&mut self) -> usize {
        self.serial += 1;
        self.serial
    }

    fn fresh_path(&mut self) -> String {
        let folder = ["", "docs/", "docs/deep/", "guide/"][self.rng.random_range(0..4)];
        format!("{folder}page{}.md", self.serial())
    }

    fn paragraphs(&mut self) -> Vec<String> {
        let count = self.rng.random_range(1..6);
        (0..count).map(|_| self.paragraph()).collect()
    }

    /// Some twenty words that no other paragraph has in this order.
    fn paragraph(&mut self) -> String {
        let mut out = format!("Paragraph {}", self.serial());
        for _ in 0..self.rng.random_range(12..24) {
            let word = self.rng.random_range(0..2_000);
            let _ = write!(out, " word{word}");
        }
        out.push('.');
        out
    }
}
