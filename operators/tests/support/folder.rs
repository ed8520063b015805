//! A model's folder as a hub would have it, of generated weights: what tests of the loader spoil or vary.

use std::path::Path;

use engine::error::WorldError;
use kernels::weights::{BertConfig, Weights};
use operators::embed::{Kernel, ModelFolder, local};

/// Tokens of [`tokenizer`]; a table may have fewer than 128 rows more.
pub const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "is", "wide", "##r", "today", ".",
];

/// A `config.json` as published, but for the number of layers and the vocabulary.
pub fn config(hidden: usize, layers: usize, intermediate: usize, vocabulary: usize) -> String {
    format!(
        r#"{{"_name_or_path":"x","architectures":["BertModel"],"attention_probs_dropout_prob":0.1,
        "classifier_dropout":null,"gradient_checkpointing":false,"hidden_act":"gelu",
        "hidden_dropout_prob":0.1,"hidden_size":{hidden},"id2label":{{"0":"LABEL_0"}},
        "initializer_range":0.02,"intermediate_size":{intermediate},"label2id":{{"LABEL_0":0}},
        "layer_norm_eps":1e-12,"max_position_embeddings":512,"model_type":"bert",
        "num_attention_heads":12,"num_hidden_layers":{layers},"pad_token_id":0,
        "position_embedding_type":"absolute","torch_dtype":"float32","transformers_version":"4.30.2",
        "type_vocab_size":2,"use_cache":true,"vocab_size":{vocabulary}}}"#
    )
}

/// A `tokenizer.json` of some words.
pub fn tokenizer(words: &[&str]) -> String {
    let vocabulary: Vec<String> = words
        .iter()
        .zip(0..)
        .map(|(word, id): (&&str, u32)| format!("\"{word}\":{id}"))
        .collect();
    let vocabulary = vocabulary.join(",");
    format!(
        r###"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,
            "strip_accents":null,"lowercase":true}},
        "pre_tokenizer":{{"type":"BertPreTokenizer"}},
        "post_processor":{{"type":"BertProcessing","cls":["[CLS]",2],"sep":["[SEP]",3]}},
        "model":{{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
            "max_input_chars_per_word":100,"vocab":{{{vocabulary}}}}}}}"###
    )
}

/// `modules.json` of these classes of sentence-transformers.
pub fn modules(kinds: &[&str]) -> String {
    let entries = kinds.iter().enumerate().map(|(n, kind)| {
        let path = if n == 0 {
            String::new()
        } else {
            format!("{n}_{kind}")
        };
        format!(
            r#"{{"idx":{n},"name":"{n}","path":"{path}","type":"sentence_transformers.models.{kind}"}}"#
        )
    });
    format!("[{}]", entries.collect::<Vec<_>>().join(","))
}

/// `1_Pooling/config.json` with one mode set.
pub fn pooling(hidden: usize, mode: &str) -> String {
    let modes = [
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
    ];
    let modes = modes.map(|name| format!(r#""pooling_mode_{name}":{}"#, name == mode));
    format!(
        r#"{{"word_embedding_dimension":{hidden},{}}}"#,
        modes.join(",")
    )
}

/// Writes a file below a folder, and the folders above it.
pub fn put(folder: &Path, file: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Generated weights of a `config.json`.
pub fn weights(config: &str) -> Weights {
    Weights::generate(BertConfig::parse(config.as_bytes()).unwrap(), 7)
}

/// A whole and sound model: hidden 24, one layer, mean pooling.
pub fn sound(folder: &Path) {
    let config = config(24, 1, 48, WORDS.len());
    put(
        folder,
        "model.safetensors",
        weights(&config).to_safetensors(),
    );
    put(folder, "config.json", config);
    put(folder, "tokenizer.json", tokenizer(&WORDS));
    put(
        folder,
        "modules.json",
        modules(&["Transformer", "Pooling", "Normalize"]),
    );
    put(folder, "1_Pooling/config.json", pooling(24, "mean_tokens"));
}

/// The folder under a name.
pub fn named(name: &str, folder: &Path) -> ModelFolder {
    ModelFolder {
        name: name.to_owned(),
        path: folder.to_owned(),
        origin: "a test".to_owned(),
    }
}

/// The message of a folder that must be refused, with `FOLDER` for where it is.
pub fn refusal(folder: &Path) -> String {
    let refused: Result<(), WorldError> = local(&named("m", folder), Kernel::F32).map(|_| ());
    let message = refused.unwrap_err().to_string();
    message.replace(&folder.display().to_string(), "FOLDER")
}
