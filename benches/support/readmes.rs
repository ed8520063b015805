//! Real texts on every machine that builds this: the documentation of the crates in the user's cargo
//! registry, sorted by path, cut every so many tokens.

#[path = "registry.rs"]
mod registry;

use std::path::Path;

use engine::contract::Embedder;
use operators::embed::PretrainedEmbedder;

/// A text of a chunk with the number of its tokens, special ones included.
pub type Counted = (String, usize);

/// Chunks of at most `room` tokens of the README files.
///
/// # Panics
/// When the registry has no README files.
#[allow(dead_code)] // each bench wants one of the two
pub fn chunks(model: &PretrainedEmbedder, room: usize) -> Vec<Counted> {
    let texts = registry::readmes().into_iter();
    let texts = texts.filter_map(|path| std::fs::read_to_string(path).ok());
    let chunks: Vec<Counted> = texts.flat_map(|text| cut(model, room, &text)).collect();
    assert!(!chunks.is_empty(), "the cargo registry has README files");
    chunks
}

/// At most `wanted` distinct chunks of at most `room` tokens: of all Markdown, then of the doc comments
/// of all sources.
#[allow(dead_code)] // each bench wants one of the two
pub fn documentation(model: &PretrainedEmbedder, room: usize, wanted: usize) -> Vec<Counted> {
    let mut paths = registry::documentation();
    paths.sort_by_key(|path| is_source(path));
    let mut seen = std::collections::HashSet::new();
    let texts = paths.iter().filter_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(if is_source(path) {
            doc_comments(&text)
        } else {
            text
        })
    });
    let chunks = texts.flat_map(|text| cut(model, room, &text));
    let distinct = chunks.filter(|(text, _)| seen.insert(text.clone()));
    distinct.take(wanted).collect()
}

/// Chunks of at most `room` tokens of the Markdown and text files right in a folder, by name.
#[allow(dead_code)] // only one bench reads other texts
pub fn of_folder(model: &PretrainedEmbedder, room: usize, folder: &Path) -> Vec<Counted> {
    let entries = std::fs::read_dir(folder).expect("a folder of texts");
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_text = |path: &std::path::PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "md" || extension == "txt")
    };
    let mut paths: Vec<_> = paths.filter(is_text).collect();
    paths.sort();
    let texts = paths
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok());
    texts.flat_map(|text| cut(model, room, &text)).collect()
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// What rustdoc would show of a source.
fn doc_comments(source: &str) -> String {
    let lines = source.lines().map(str::trim_start);
    let docs = lines.filter_map(|line| {
        let text = line
            .strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"))?;
        Some(text.strip_prefix(' ').unwrap_or(text))
    });
    docs.collect::<Vec<_>>().join("\n")
}

fn cut(model: &PretrainedEmbedder, room: usize, text: &str) -> Vec<Counted> {
    let spans = model.token_spans(text);
    let starts = spans.starts.iter().enumerate().step_by(room);
    let cuts = starts.map(|(i, &start)| {
        let last = (i + room).min(spans.ends.len()) - 1;
        let count = last - i + 1 + model.special_tokens();
        (
            text[start as usize..spans.ends[last] as usize].to_owned(),
            count,
        )
    });
    cuts.collect()
}
