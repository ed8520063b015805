//! What the encoder's tests share: shapes, ids, outlier channels, the default model's real weights.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::weights::{BertConfig, Weights};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Says loudly, and counts, that a test was not run.
pub fn skip(test: &str, why: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let nth = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Past the harness, which keeps what passing tests print to itself.
    let line = format!("SKIPPED {nth}: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Ids below this are drawn.
pub const VOCABULARY: usize = 300;

/// A config of a given shape with 512 positions.
pub fn shape(hidden: usize, layers: usize, heads: usize, intermediate: usize) -> BertConfig {
    BertConfig {
        model_type: "bert".to_owned(),
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        intermediate_size: intermediate,
        max_position_embeddings: 512,
        vocab_size: VOCABULARY,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".to_owned(),
        position_embedding_type: "absolute".to_owned(),
    }
}

/// Random ids.
pub fn ids(rng: &mut ChaCha8Rng, length: usize) -> Vec<u32> {
    (0..length)
        .map(|_| rng.random_range(0..VOCABULARY as u32))
        .collect()
}

/// Makes four channels of the states twenty times as large, as trained encoders have them: the
/// LayerNorms' gains and shifts. What reads these channels is made as much smaller, as training does,
/// so that states keep their scale.
pub fn with_outliers(mut weights: Weights) -> Weights {
    let hidden = weights.config.hidden_size;
    let channels: Vec<usize> = (0..4).map(|i| (i * 97 + 13) % hidden).collect();
    let raise = |(gain, shift): &mut (Vec<f32>, Vec<f32>)| {
        for &c in &channels {
            gain[c] *= 20.0;
            shift[c] *= 20.0;
        }
    };
    raise(&mut weights.norm);
    let layers = weights.layers.len();
    for (i, layer) in weights.layers.iter_mut().enumerate() {
        raise(&mut layer.norms[0]);
        // Not the last: four columns would be all of the vector, and the rest's errors unseen.
        if i + 1 < layers {
            raise(&mut layer.norms[1]);
        }
        for reader in [0, 1, 2, 4] {
            for row in layer.linears[reader].0.chunks_mut(hidden) {
                channels.iter().for_each(|&c| row[c] /= 20.0);
            }
        }
    }
    weights
}

/// The default model's folder, where `HEADWATER_MODELS` (or the usual place) has it.
pub fn real_model() -> Option<PathBuf> {
    let models = std::env::var_os("HEADWATER_MODELS").map(PathBuf::from);
    let home =
        || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share/headwater/models"));
    let folder = models
        .or_else(home)?
        .join("sentence-transformers--all-MiniLM-L6-v2");
    folder.join("model.safetensors").exists().then_some(folder)
}

/// The default model's weights and some real text as its ids: paragraphs of this project's pages.
pub fn real_model_and_texts() -> Option<(Weights, Vec<Vec<u32>>)> {
    let folder = real_model()?;
    let read = |file: &str| std::fs::read(folder.join(file)).expect("a file of the model");
    let weights = Weights::parse(&read("config.json"), &read("model.safetensors"));
    let vocabulary = String::from_utf8(read("vocab.txt")).expect("UTF-8");
    let words: std::collections::HashMap<&str, u32> = vocabulary.lines().zip(0..).collect();
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut texts = Vec::new();
    for page in ["architecture.md", "language.md", "operations.md"] {
        let page = std::fs::read_to_string(docs.join(page)).expect("a page of the manual");
        for paragraph in page.split("\n\n").filter(|paragraph| paragraph.len() > 30) {
            let mut ids = vec![words["[CLS]"]];
            for word in paragraph.to_lowercase().split_whitespace() {
                pieces(word, &words, &mut ids);
            }
            ids.truncate(255);
            ids.push(words["[SEP]"]);
            texts.push(ids);
        }
    }
    Some((weights.expect("the model is whole"), texts))
}

/// WordPiece, roughly: runs of letters and digits, or single characters, by greedy longest match.
fn pieces(word: &str, words: &std::collections::HashMap<&str, u32>, ids: &mut Vec<u32>) {
    let mut rest: &str = word;
    let mut is_inside = false;
    while let Some(first) = rest.chars().next() {
        let run = rest
            .find(|c: char| !c.is_alphanumeric())
            .unwrap_or(rest.len());
        let run = if first.is_alphanumeric() {
            run
        } else {
            first.len_utf8()
        };
        let ends = rest[..run].char_indices().map(|(at, c)| at + c.len_utf8());
        let found = ends.rev().find_map(|end| {
            let piece = &rest[..end];
            let name = if is_inside {
                format!("##{piece}")
            } else {
                piece.to_owned()
            };
            words.get(name.as_str()).map(|&id| (end, id))
        });
        let (end, id) = found.unwrap_or((run, words["[UNK]"]));
        ids.push(id);
        is_inside = end < run;
        rest = &rest[end..];
    }
}
