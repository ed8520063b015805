//! What an edit costs: random paragraphs of real documentation are changed, removed and added, and
//! the chunks that must be embedded again are counted against those that the edit touched.
//!
//! Data: README and CHANGELOG files of the crates in the user's own cargo registry (read only); where
//! there are too few, this repository's own pages. Tokens are the default model's own, by its tokenizer:
//! its files are fetched as `headwater model pull` does. Seed printed; `EDITS` sets how many edits.
//! Ratio = Σ new contents / Σ chunks of the old version that overlap the edited bytes (at least one each).

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::contract::Embedder;
use operators::chunk::{ChunkStrategy, Chunker, ChunkingSpec, ModelTokens, TokenCounter};
use operators::embed::PretrainedEmbedder;
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 20_261_121;
/// Fewer documents than this say little.
const DOCUMENTS_MIN: usize = 15;

fn tokens() -> Arc<ModelTokens> {
    let folder = pull(DEFAULT_MODEL, &|_| {}).expect("the model is there or can be fetched");
    let files = ModelFiles::read(&folder).expect("the model's files are whole");
    let model = PretrainedEmbedder::new(files).expect("the model is supported");
    Arc::new(ModelTokens(Arc::new(model) as Arc<dyn Embedder>))
}

/// What lies in a folder, sorted; nothing of one that cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// The document of a file, if it is one of a size that is worth editing.
fn document(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let is_worth = (2_000..120_000).contains(&text.len());
    is_worth.then(|| text.replace("\r\n", "\n"))
}

/// Of the packages in cargo's registry.
fn registry() -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let registries = home.map(|home| entries(&home.join("registry/src")));
    let packages = registries.into_iter().flatten();
    let packages = packages.flat_map(|registry| entries(&registry));
    let names = ["README.md", "CHANGELOG.md"];
    let files = packages.flat_map(|package| names.map(|name| package.join(name)));
    files.filter_map(|file| document(&file)).collect()
}

/// Of this repository.
fn own_pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = [root.clone(), root.join("docs"), root.join("docs/decisions")];
    let files = folders.iter().flat_map(|folder| entries(folder));
    let pages = files.filter(|file| file.extension().is_some_and(|end| end == "md"));
    pages.filter_map(|file| document(&file)).collect()
}

/// The documents, and where they are from.
///
/// # Panics
/// When there are too few: a law that is tested on nothing does not hold.
fn documents() -> (Vec<String>, &'static str) {
    let found = [
        (registry(), "cargo's registry"),
        (own_pages(), "this repository"),
    ];
    let counts = [found[0].0.len(), found[1].0.len()];
    let enough = found
        .into_iter()
        .find(|(all, _)| all.len() >= DOCUMENTS_MIN);
    enough.unwrap_or_else(|| panic!("{counts:?} documents, not {DOCUMENTS_MIN}"))
}

/// Byte ranges of paragraphs (what blank lines part).
fn paragraphs(text: &str) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    let mut is_open = false;
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            is_open = false;
        } else if is_open {
            out.last_mut().expect("one is open").end = at + line.len();
        } else {
            out.push(at..at + line.len());
            is_open = true;
        }
        at += line.len();
    }
    out
}

/// One edit: the bytes that go, and what comes instead.
fn edit(
    text: &str,
    others: &[String],
    rng: &mut ChaCha8Rng,
    kind: usize,
) -> (Range<usize>, String) {
    let all = paragraphs(text);
    let place = all.choose(rng).expect("documents have paragraphs").clone();
    match kind {
        0 => {
            // A few words of the paragraph are replaced.
            let words: Vec<usize> = text[place.clone()]
                .match_indices(' ')
                .map(|(at, _)| place.start + at)
                .collect();
            let Some(from) = words.choose(rng).copied() else {
                return (place.end - 1..place.end - 1, " changed".to_owned());
            };
            let to = words
                .iter()
                .copied()
                .find(|at| *at > from + 12)
                .unwrap_or(from);
            (
                from..to,
                [" entirely new words", " other", ""]
                    .choose(rng)
                    .expect("some")
                    .to_string(),
            )
        }
        1 => (place, String::new()),
        _ => {
            let other = others.choose(rng).expect("documents");
            let from = paragraphs(other);
            let new = from.choose(rng).expect("paragraphs").clone();
            (
                place.start..place.start,
                format!("{}\n\n", other[new].trim_end()),
            )
        }
    }
}

#[test]
fn an_edit_embeds_little_more_than_the_chunks_it_touches() {
    let (documents, from) = documents();
    let tokens = tokens();
    let edits: usize = std::env::var("EDITS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3_000);
    for strategy in [ChunkStrategy::Markdown, ChunkStrategy::Recursive] {
        let spec = ChunkingSpec {
            strategy,
            max_tokens: 256,
            overlap: 0,
            heading_prefix: false,
        };
        let chunker = Chunker::new(&spec, Arc::clone(&tokens) as Arc<dyn TokenCounter>);
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let mut sums = [[0usize; 2]; 3];
        for round in 0..edits {
            let text = documents.choose(&mut rng).expect("documents");
            let kind = round % 3;
            let (range, new) = edit(text, &documents, &mut rng, kind);
            if text[range.clone()] == new {
                continue;
            }
            let after = format!("{}{new}{}", &text[..range.start], &text[range.end..]);
            let old = chunker.cut(text);
            let known: HashSet<_> = old.iter().map(|piece| piece.content).collect();
            let embedded: HashSet<_> = chunker
                .cut(&after)
                .iter()
                .map(|piece| piece.content)
                .filter(|content| !known.contains(content))
                .collect();
            let touches = |piece: &&engine::model::ChunkPiece| {
                (piece.range.0 as usize) < range.end.max(range.start + 1)
                    && range.start < piece.range.1 as usize
            };
            sums[kind][0] += embedded.len();
            sums[kind][1] += old.iter().filter(touches).count().max(1);
        }
        let ratio = |sums: &[usize; 2]| sums[0] as f64 / sums[1] as f64;
        let total = [
            sums.iter().map(|s| s[0]).sum(),
            sums.iter().map(|s| s[1]).sum(),
        ];
        println!(
            "{} seed {SEED}, {edits} edits of {} documents of {from}: ratio {:.3} (edited {:.3}, removed {:.3}, added {:.3})",
            chunker.strategy(),
            documents.len(),
            ratio(&total),
            ratio(&sums[0]),
            ratio(&sums[1]),
            ratio(&sums[2])
        );
        fullness(&documents, &chunker, &*tokens);
        assert!(
            ratio(&total) <= 1.5,
            "edits embed {:.3} × what they touch",
            ratio(&total)
        );
    }
}

/// Prints how full chunks are: all, and those of texts under one heading that is larger than a chunk.
fn fullness(documents: &[String], chunker: &Chunker, tokens: &dyn TokenCounter) {
    let mut all = (0usize, 0usize);
    let mut large = (0usize, 0usize);
    for text in documents {
        let pieces = chunker.cut(text);
        let count = |piece: &engine::model::ChunkPiece| {
            tokens
                .token_spans(&text[piece.range.0 as usize..piece.range.1 as usize])
                .starts
                .len()
                + tokens.special_tokens()
        };
        for section in pieces.chunk_by(|a, b| a.heading == b.heading) {
            let tokens: usize = section.iter().map(count).sum();
            all = (all.0 + tokens, all.1 + section.len());
            if tokens > 256 {
                large = (large.0 + tokens, large.1 + section.len());
            }
        }
    }
    println!(
        "  {} chunks, mean {} tokens; {} chunks of large sections, mean {} tokens = {} %",
        all.1,
        all.0 / all.1,
        large.1,
        large.0 / large.1,
        100 * large.0 / large.1 / 256
    );
}
