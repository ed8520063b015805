//! The main job on real documents, seen from outside: everything goes over HTTP, as a user's program
//! would, and every step counts only if what it claims was really observed.
//!
//! ```text
//! sample (copied) ─▶ server ─▶ indexed ─▶ asked ─▶ cached ─▶ hit ─▶ cited file edited
//!        ─▶ entry retracted with its cause ─▶ new text found ─▶ chunks counted ─▶ file deleted ─▶ gone
//! ```
//!
//! Reading order: [`sample`] (which documents), [`steps`] (what is done and observed), [`observe`]
//! (how it is observed). There is no language model in the demo: an answer is the best passages,
//! quoted, with their citations.

pub mod observe;
pub mod sample;
pub mod steps;

use std::path::Path;

/// The pipeline of the demo over a folder of documents.
pub fn pipeline(documents: &Path, model: &str) -> String {
    let path = documents.display().to_string().replace('\'', "''");
    let model = model.replace('\'', "''");
    format!(
        "CREATE SOURCE docs FROM FILES (PATH '{path}', PATTERN '**/*');\n\
         CREATE MODEL minilm FROM '{model}';\n\
         CREATE INDEX by_text ON docs USING HYBRID (text)\n    \
             CHUNK BY markdown(max_tokens => 256) EMBED WITH minilm WITH (RETAIN = '1 hour');\n\
         CREATE CACHE answers ON by_text WITH (K = 5, SIMILARITY = 0.95, TTL = '1 hour');\n"
    )
}

/// The name of the demo's source.
pub const SOURCE: &str = "docs";
/// The name of the demo's index.
pub const INDEX: &str = "by_text";
/// The name of the demo's cache.
pub const CACHE: &str = "answers";
