//! `FROM GIT` through the whole engine: at every moment the live rows are the tree of a commit as git
//! itself lists it, over crashes, and no chunk is embedded that was embedded before.
//!
//! Two histories: one of 600 commits from a seed with renames and merges, and this repository's own,
//! as long as the checkout has one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::testing::HashedEmbedder;
use operators::chunk::{ChunkStrategy, Chunker, ChunkingSpec, ModelTokens};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value as Json;

#[path = "../support/git_server.rs"]
mod git_server;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/git.rs"]
mod repo;
#[allow(dead_code)] // a part of it is used here
#[path = "../service/rig.rs"]
mod rig;
#[allow(dead_code)] // a part of it is used here
#[path = "../support/server.rs"]
mod server;
#[path = "program.rs"]
mod through_the_program;

use repo::{Repo, Tree, random_history};
use rig::Rig;

const SEED: u64 = 20_261_121;
/// Commits at which the rows are compared.
const CHECKPOINTS: usize = 20;
/// Nothing that a test waits for takes so long.
const LONG: Duration = Duration::from_secs(180);
/// The index's chunks.
const TOKENS_MAX: u32 = 32;

fn pipeline(repo: &Repo, first: &str) -> String {
    format!(
        "CREATE SOURCE handbook FROM GIT (REPOSITORY '{}', BRANCH 'live', PATTERN '**/*.md',
             FROM COMMIT '{first}', INTERVAL '50 milliseconds');
         CREATE MODEL hashed FROM 'hashed';
         CREATE INDEX found ON handbook USING HYBRID (text)
             CHUNK BY recursive(max_tokens => {TOKENS_MAX}) EMBED WITH hashed INCLUDE (commit);",
        repo.text()
    )
}

/// A history with all that git says of it.
struct Known {
    repo: Repo,
    line: Vec<String>,
    trees: Vec<Tree>,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Known {
    fn of(repo: Repo) -> Known {
        let line = repo.line("main");
        let trees: Vec<Tree> = line.iter().map(|commit| repo.tree(commit, ".md")).collect();
        let blobs: BTreeSet<String> = trees
            .iter()
            .flat_map(|tree| tree.values().cloned())
            .collect();
        let blobs: Vec<String> = blobs.into_iter().collect();
        let contents = repo.contents(&blobs);
        Known {
            repo,
            line,
            trees,
            contents,
        }
    }

    /// The newest commits whose tree this is.
    fn positions(&self, tree: &Tree) -> Vec<usize> {
        let trees = self.trees.iter().enumerate();
        let same = trees.filter(|(_, other)| *other == tree);
        same.map(|(at, _)| at).collect()
    }

    fn text(&self, blob: &str) -> &str {
        std::str::from_utf8(&self.contents[blob]).expect("UTF-8")
    }

    /// The texts of all chunks that the history ever had, each once.
    fn chunks(&self) -> BTreeSet<String> {
        let spec = ChunkingSpec {
            strategy: ChunkStrategy::Recursive,
            max_tokens: TOKENS_MAX,
            ..ChunkingSpec::default()
        };
        let tokens = ModelTokens(Arc::new(HashedEmbedder::new("hashed", 8)));
        let chunker = Chunker::new(&spec, Arc::new(tokens));
        let mut chunks = BTreeSet::new();
        for blob in self.contents.keys() {
            let text = self.text(blob);
            let pieces = chunker.cut(text);
            chunks.extend(
                pieces
                    .iter()
                    .map(|piece| chunker.embedded_text(text, piece).into_owned()),
            );
        }
        chunks
    }
}

/// The live rows: path and blob; their texts are those blobs.
fn seen(rig: &Rig, known: &Known) -> Tree {
    let rows = rig.rows("SELECT path, blob, text, bytes FROM handbook");
    let word = |value: &Json| value.as_str().expect("a text").to_owned();
    rows.iter()
        .map(|row| {
            let (path, blob) = (word(&row[0]), word(&row[1]));
            assert_eq!(row[2], known.text(&blob), "{path}");
            assert_eq!(row[3], known.contents[&blob].len(), "{path}");
            (path, blob)
        })
        .collect()
}

/// Waits until the rows, which were the tree of the commit at `at`, are that of the one at `to`. On the
/// way they are always the tree of some commit, and never go back.
fn reach(rig: &Rig, known: &Known, mut at: usize, to: usize) {
    let begun = Instant::now();
    loop {
        let tree = seen(rig, known);
        if tree == known.trees[to] {
            return;
        }
        // The first tree is a snapshot, and comes in parts.
        let found = known
            .positions(&tree)
            .into_iter()
            .find(|found| *found >= at);
        let is_begin = at == 0 && tree.iter().all(|file| is_in(file, &known.trees[0]));
        assert!(
            found.is_some() || is_begin,
            "no commit has the rows {tree:?}"
        );
        at = found.unwrap_or(0);
        assert!(begun.elapsed() < LONG, "{} is not reached", known.line[to]);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_in(file: (&String, &String), tree: &Tree) -> bool {
    tree.get(file.0) == Some(file.1)
}

/// Waits until every chunk has its vector and the index has just the documents of a tree.
fn settle(rig: &Rig, tree: &Tree) {
    let pending = "SELECT pending FROM headwater.indexes WHERE name = 'found'";
    rig::eventually("all is embedded", || rig.rows(pending)[0][0] == 0);
    let rows = rig.rows("SELECT document FROM found");
    let found: BTreeSet<&str> = rows.iter().filter_map(|row| row[0].as_str()).collect();
    let expected: BTreeSet<&str> = tree.keys().map(|path| &**path).collect();
    assert_eq!(found, expected, "documents of the index");
}

/// Random commits in their order, the last one included.
fn checkpoints(known: &Known, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let last = known.line.len() - 1;
    let mut chosen = BTreeSet::from([last]);
    while chosen.len() < CHECKPOINTS.min(last + 1) {
        chosen.insert(rng.random_range(0..=last));
    }
    chosen.into_iter().collect()
}

/// Replays a history over [`CHECKPOINTS`] commits, with crashes while it rests.
fn replay(known: &Known, seed: u64) {
    let begun = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    known.repo.set("live", &known.line[0]);
    let mut rig = Rig::start(&pipeline(&known.repo, &known.line[0]));
    let chunks = known.chunks();
    let mut counts: HashMap<&str, u64> = HashMap::new();
    let mut total = 0;
    let mut note = |rig: &Rig| {
        total += rig.encoder.total();
        for text in &chunks {
            *counts.entry(text).or_default() += rig.encoder.count_of(text);
        }
        total
    };
    let (mut crashes, mut before) = (0, 0);
    for at in checkpoints(known, &mut rng) {
        known.repo.set("live", &known.line[at]);
        reach(&rig, known, std::mem::replace(&mut before, at), at);
        if rng.random_range(0..4) == 0 {
            settle(&rig, &known.trees[at]);
            note(&rig);
            let store = rig.store.after_crash(rng.random_range(0..1_000));
            rig = Rig::over(store);
            rig.wait_ready();
            assert_eq!(seen(&rig, known), known.trees[at], "after a crash");
            crashes += 1;
        }
    }
    settle(&rig, known.trees.last().expect("commits"));
    let total = note(&rig);
    assert!(rig.letters("handbook").is_empty());
    let again: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(again.is_empty(), "embedded again: {again:?}");
    let once: u64 = counts.values().sum();
    assert_eq!(once, total, "something else was embedded");
    println!(
        "{} commits, {} checkpoints, {crashes} crashes, {} blobs, {} distinct chunks, {total} embedded, {:.1} s",
        known.line.len(),
        CHECKPOINTS.min(known.line.len()),
        known.contents.len(),
        chunks.len(),
        begun.elapsed().as_secs_f64()
    );
}

#[test]
fn six_hundred_random_commits_are_replayed_and_nothing_is_embedded_twice() {
    let _room = rig::together();
    let repo = Repo::new();
    let written = random_history(SEED, 600);
    repo.import(&written.stream);
    let known = Known::of(repo);
    assert_eq!(known.line.len(), 600);
    println!("{} renames, {} merges", written.renames, written.merges);
    assert!(written.renames > 100 && written.merges > 20);
    replay(&known, SEED);
}

#[test]
fn this_repository_s_own_history_is_replayed() {
    let _room = rig::together();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join(".git").exists() {
        println!("NOT CHECKED: this checkout has no .git, so there is no history to replay");
        return;
    }
    let known = Known::of(Repo::copy_of(root));
    if known.line.len() < CHECKPOINTS {
        println!(
            "a short history (a shallow clone?): {} commits",
            known.line.len()
        );
    }
    replay(&known, SEED);
}

#[test]
fn a_kill_at_any_point_leaves_a_commit_and_goes_on_from_it() {
    let _room = rig::together();
    let repo = Repo::new();
    repo.import(&random_history(SEED + 1, 500).stream);
    let known = Known::of(repo);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let last = known.line.len() - 1;
    known.repo.set("live", &known.line[0]);
    let mut rig = Rig::start(&pipeline(&known.repo, &known.line[0]));
    known.repo.set("live", &known.line[last]);
    let (mut at, mut kills, mut points) = (0, 0, BTreeSet::new());
    while at < last && kills < 40 {
        std::thread::sleep(Duration::from_millis(rng.random_range(0..8)));
        rig = Rig::over(rig.store.after_crash(kills));
        kills += 1;
        let tree = seen(&rig, &known);
        let found = known
            .positions(&tree)
            .into_iter()
            .find(|found| *found >= at);
        let is_begin = tree.iter().all(|file| is_in(file, &known.trees[0]));
        assert!(
            found.is_some() || (at == 0 && is_begin),
            "kill {kills}: {tree:?}"
        );
        at = found.unwrap_or(0);
        points.insert(at);
    }
    reach(&rig, &known, at, last);
    settle(&rig, &known.trees[last]);
    println!("{kills} kills, found at the commits {points:?} of {last}");
}
