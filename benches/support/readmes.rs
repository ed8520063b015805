//! Real texts on every machine that builds this: the README files of the crates in the user's cargo
//! registry, sorted by path, cut every so many tokens.

#[path = "registry.rs"]
mod registry;

use engine::contract::Embedder;
use operators::embed::PretrainedEmbedder;

/// Chunks of at most `room` tokens with the number of their tokens, special ones included.
///
/// # Panics
/// When the registry has no README files.
pub fn chunks(model: &PretrainedEmbedder, room: usize) -> Vec<(String, usize)> {
    let mut chunks = Vec::new();
    for path in registry::readmes() {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let spans = model.token_spans(&text);
        for (i, &start) in spans.starts.iter().enumerate().step_by(room) {
            let last = (i + room).min(spans.ends.len()) - 1;
            let count = last - i + 1 + model.special_tokens();
            let cut = &text[start as usize..spans.ends[last] as usize];
            chunks.push((cut.to_owned(), count));
        }
    }
    assert!(!chunks.is_empty(), "the cargo registry has README files");
    chunks
}
