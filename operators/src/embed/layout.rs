//! Which files of a model's folder are read, in the layouts that are known.
//!
//! ```text
//! an encoder, or a static model of model2vec     config.json  tokenizer.json  model.safetensors
//! a static model of sentence-transformers        modules.json ─▶ <folder>/{tokenizer.json, model.safetensors}
//! ```
//!
//! Invariant: a folder is named by `modules.json` as one plain name; nothing outside the model's own
//! folder is read.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Files that an encoder cannot do without.
pub const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];
/// Files that refine a model: pooling, maximum length, prompts.
pub const FILES_OPTIONAL: [&str; 5] = [
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
];

/// What computes vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A transformer.
    Encoder,
    /// A table of tokens' vectors.
    Static {
        /// model2vec leaves unknown tokens out, and reads so many tokens; sentence-transformers does neither.
        is_model2vec: bool,
    },
}

/// One of sentence-transformers' modules.
#[derive(Debug, Deserialize)]
pub(super) struct Module {
    /// A class of theirs.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The folder of its files.
    #[serde(default)]
    path: String,
}

impl Module {
    /// The last part of the class.
    pub(super) fn name(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }
}

/// Where a folder's files are, and what they make.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    /// The folder of tokenizer and weights, below the model's.
    base: PathBuf,
}

impl Layout {
    /// What lies in a folder. The error says what is wrong with `modules.json` or `config.json`.
    pub(super) fn of(folder: &Path) -> Result<Layout, String> {
        #[derive(Deserialize)]
        struct Config {
            model_type: Option<String>,
        }
        let config: Option<Config> =
            optional(folder, "config.json").map_err(|e| format!("config.json: {e}"))?;
        let is_model2vec =
            config.is_some_and(|config| config.model_type.as_deref() == Some("model2vec"));
        let modules = modules(folder).map_err(|e| format!("modules.json: {e}"))?;
        let first = modules
            .first()
            .filter(|module| module.name() == "StaticEmbedding");
        let base = match first.map(|module| &*module.path) {
            None | Some("" | ".") => PathBuf::new(),
            Some(path) if is_plain(path) => PathBuf::from(path),
            Some(path) => {
                return Err(format!(
                    "modules.json: the path of module 0 is '{path}', expected a folder's name"
                ));
            }
        };
        let kind = match is_model2vec || first.is_some() {
            true => Kind::Static { is_model2vec },
            false => Kind::Encoder,
        };
        Ok(Layout { kind, base })
    }

    /// Files that this model cannot do without, below its folder.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        if self.base == Path::new("") {
            return FILES.iter().map(PathBuf::from).collect();
        }
        let own = FILES[1..].iter().map(|file| self.base.join(file));
        std::iter::once(PathBuf::from("modules.json"))
            .chain(own)
            .collect()
    }

    /// A file of tokenizer or weights, below the model's folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }
}

/// The files that a folder should have and does not.
pub(super) fn missing(folder: &Path) -> Vec<PathBuf> {
    let mut files = required(folder);
    files.retain(|file| !folder.join(file).is_file());
    files
}

/// The files that a folder should have. One that cannot be understood is an encoder's: reading it says
/// what is wrong.
pub(super) fn required(folder: &Path) -> Vec<PathBuf> {
    Layout::of(folder).map_or_else(
        |_| FILES.iter().map(PathBuf::from).collect(),
        |layout| layout.files(),
    )
}

/// sentence-transformers' modules, in order; none when the file is not there.
pub(super) fn modules(folder: &Path) -> Result<Vec<Module>, String> {
    Ok(optional(folder, "modules.json")?.unwrap_or_default())
}

/// Parses a file of the folder if it is there.
pub(super) fn optional<T: for<'de> Deserialize<'de>>(
    folder: &Path,
    file: &str,
) -> Result<Option<T>, String> {
    match std::fs::read(folder.join(file)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| e.to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

fn is_plain(path: &str) -> bool {
    !path.starts_with('.')
        && path
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(files: &[(&str, &str)]) -> Result<Layout, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Layout::of(folder.path())
    }

    #[test]
    fn encoders_and_static_models_are_told_apart() {
        let bert = ("config.json", r#"{"model_type":"bert"}"#);
        let of = |files: &[(&str, &str)]| {
            let layout = layout(files).unwrap();
            let files: Vec<String> = layout
                .files()
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            (layout.kind, files.join(" "))
        };
        let flat = FILES.join(" ");
        assert_eq!(of(&[bert]), (Kind::Encoder, flat.clone()));
        let model2vec = ("config.json", r#"{"model_type":"model2vec"}"#);
        let is_model2vec = true;
        assert_eq!(of(&[model2vec]), (Kind::Static { is_model2vec }, flat));
        let modules = r#"[{"idx":0,"name":"0","path":"0_StaticEmbedding",
            "type":"sentence_transformers.models.StaticEmbedding"}]"#;
        let is_model2vec = false;
        assert_eq!(
            of(&[("modules.json", modules)]),
            (
                Kind::Static { is_model2vec },
                "modules.json 0_StaticEmbedding/tokenizer.json 0_StaticEmbedding/model.safetensors"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_path_out_of_the_folder_is_refused() {
        for path in ["../other", "/etc", "a/b", ".."] {
            let modules = format!(r#"[{{"type":"StaticEmbedding","path":"{path}"}}]"#);
            assert_eq!(
                layout(&[("modules.json", &modules)]),
                Err(format!(
                    "modules.json: the path of module 0 is '{path}', expected a folder's name"
                ))
            );
        }
    }
}
