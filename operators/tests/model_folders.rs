//! Models' folders: what is read of the families' published settings, and what each fault of a folder says,
//! word for word. A vector is never made of damaged weights or of another model's tokens.

#[path = "support/folder.rs"]
mod folder;

use std::path::Path;

use engine::contract::Embedder;
use kernels::{Encoder, Pooling, Scratch, Weights};
use operators::embed::{Kernel, LocalModel, ModelFiles, PretrainedEmbedder, local};

use folder::{WORDS, config, modules, named, pooling, put, refusal, sound, tokenizer, weights};

const TEXT: &str = "The sea is wider today.";

#[test]
fn a_sound_folder_is_read() {
    let dir = tempfile::tempdir().unwrap();
    sound(dir.path());
    let model = local(&named("m", dir.path()), Kernel::F32).unwrap().model;
    assert_eq!((model.dimensions(), model.max_tokens()), (24, 512));
    assert_eq!(model.token_ids(TEXT), [2, 5, 6, 7, 8, 9, 10, 11, 3]);
    assert_eq!(model.embed(&[TEXT]).unwrap()[0].len(), 24);
}

/// What is wrong with a sound folder, and what is said of it.
type Fault = (&'static str, fn(&Path), &'static str);

const FAULTS: &[Fault] = &[
    (
        "weights cut off",
        |dir| {
            let path = dir.join("model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        "model 'm' at byte 0: model.safetensors: it is damaged or cut off (incomplete metadata, file not fully covered); remove the folder and pull again",
    ),
    (
        "weights cut off within their table of contents",
        |dir| put(dir, "model.safetensors", [9, 0, 0, 0]),
        "model 'm' at byte 0: model.safetensors: it is damaged or cut off (header too small); remove the folder and pull again",
    ),
    (
        "weights of another width",
        |dir| {
            let other = config(36, 1, 48, WORDS.len());
            put(dir, "model.safetensors", weights(&other).to_safetensors());
        },
        "model 'm' at byte 0: model.safetensors: embeddings.word_embeddings.weight has shape [12, 36], config.json says [12, 24]",
    ),
    (
        "weights of fewer layers",
        |dir| put(dir, "config.json", config(24, 2, 48, WORDS.len())),
        "model 'm' at byte 0: model.safetensors: no tensor encoder.layer.1.attention.self.query.weight",
    ),
    (
        "weights that are no numbers",
        |dir| {
            let mut broken = weights(&config(24, 1, 48, WORDS.len()));
            broken.layers[0].linears[4].0[5] = f32::NAN;
            put(dir, "model.safetensors", broken.to_safetensors());
        },
        "model 'm' at byte 0: model.safetensors: encoder.layer.0.intermediate.dense.weight has NaN at element 5, expected finite numbers",
    ),
    (
        "a tokenizer with more tokens",
        |dir| {
            let more = [&WORDS[..], &["river"]].concat();
            put(dir, "tokenizer.json", tokenizer(&more));
        },
        "model 'm' at byte 0: tokenizer.json has 13 tokens, config.json's vocab_size and the weights only 12: it is another model's",
    ),
    (
        "a tokenizer with far fewer tokens",
        |dir| {
            let config = config(24, 1, 48, WORDS.len() + 128);
            put(dir, "model.safetensors", weights(&config).to_safetensors());
            put(dir, "config.json", config);
        },
        "model 'm' at byte 0: tokenizer.json has 12 tokens, config.json's vocab_size and the weights 140, expected fewer than 128 more (padding): it is another model's",
    ),
    (
        "a tokenizer of another kind",
        |dir| {
            put(
                dir,
                "tokenizer.json",
                tokenizer(&WORDS).replace("WordPiece", "Unigram"),
            )
        },
        "model 'm' at byte 0: tokenizer.json: model.type is 'Unigram', expected 'WordPiece'",
    ),
    (
        "a tokenizer without its special tokens",
        |dir| {
            put(
                dir,
                "tokenizer.json",
                tokenizer(&WORDS).replace("\"[UNK]\":1", "\"[unk]\":1"),
            )
        },
        "model 'm' at byte 0: tokenizer.json: the vocabulary has no '[UNK]', which model.unk_token needs",
    ),
    (
        "a pooling that is not known",
        |dir| put(dir, "1_Pooling/config.json", pooling(24, "max_tokens")),
        "FOLDER/1_Pooling/config.json at byte 0: pooling is [pooling_mode_max_tokens], expected pooling_mode_mean_tokens or pooling_mode_cls_token alone",
    ),
    (
        "two poolings at once",
        |dir| {
            let both = pooling(24, "mean_tokens").replace("cls_token\":false", "cls_token\":true");
            put(dir, "1_Pooling/config.json", both);
        },
        "FOLDER/1_Pooling/config.json at byte 0: pooling is [pooling_mode_cls_token, pooling_mode_mean_tokens], expected pooling_mode_mean_tokens or pooling_mode_cls_token alone",
    ),
    (
        "a module that is not known",
        |dir| {
            put(
                dir,
                "modules.json",
                modules(&["Transformer", "Pooling", "Dense"]),
            )
        },
        "FOLDER/modules.json at byte 0: module 2 is 'sentence_transformers.models.Dense', expected one of Transformer, Pooling, Normalize",
    ),
    (
        "an architecture that is not known",
        |dir| {
            let config = config(24, 1, 48, WORDS.len());
            put(
                dir,
                "config.json",
                config.replace("\"bert\"", "\"roberta\""),
            );
        },
        "model 'm' at byte 0: config.json: model_type is 'roberta', supported is 'bert'",
    ),
    (
        "an activation that is not known",
        |dir| {
            let config = config(24, 1, 48, WORDS.len());
            put(dir, "config.json", config.replace("\"gelu\"", "\"relu\""));
        },
        "model 'm' at byte 0: config.json: hidden_act is 'relu', supported is 'gelu'",
    ),
    (
        "no weights",
        |dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap(),
        "cannot read FOLDER/model.safetensors: No such file or directory (os error 2)",
    ),
];

#[test]
fn every_fault_of_a_folder_is_said_word_for_word() {
    let mut differ = Vec::new();
    for (what, spoil, expected) in FAULTS {
        let dir = tempfile::tempdir().unwrap();
        sound(dir.path());
        spoil(dir.path());
        let said = refusal(dir.path());
        if said != *expected {
            differ.push(format!("{what}: {said}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn rows_of_padding_are_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    sound(dir.path());
    let config = config(24, 1, 48, WORDS.len() + 127);
    put(
        dir.path(),
        "model.safetensors",
        weights(&config).to_safetensors(),
    );
    put(dir.path(), "config.json", config);
    let model = local(&named("m", dir.path()), Kernel::F32).unwrap().model;
    assert_eq!(model.embed(&[TEXT]).unwrap().len(), 1);
}

/// A family's published settings.
struct Family {
    name: &'static str,
    hidden: usize,
    layers: usize,
    pooling: (Pooling, &'static str),
    max_tokens: usize,
    /// (query, document).
    prompts: (&'static str, &'static str),
    /// `config_sentence_transformers.json`, where it says more than versions.
    settings: Option<&'static str>,
}

const MEAN: (Pooling, &str) = (Pooling::Mean, "mean_tokens");
const CLS: (Pooling, &str) = (Pooling::Cls, "cls_token");
const E5: (&str, &str) = ("query: ", "passage: ");
const SEARCH: (&str, &str) = (
    "Represent this sentence for searching relevant passages: ",
    "",
);
const NONE: (&str, &str) = ("", "");

const fn family(
    name: &'static str,
    (hidden, layers): (usize, usize),
    pooling: (Pooling, &'static str),
    max_tokens: usize,
    prompts: (&'static str, &'static str),
) -> Family {
    Family {
        name,
        hidden,
        layers,
        pooling,
        max_tokens,
        prompts,
        settings: None,
    }
}

const FAMILIES: [Family; 8] = [
    family(
        "sentence-transformers/all-MiniLM-L6-v2",
        (384, 6),
        MEAN,
        256,
        NONE,
    ),
    family("BAAI/bge-small-en-v1.5", (384, 12), CLS, 512, SEARCH),
    family("BAAI/bge-base-en-v1.5", (768, 12), CLS, 512, SEARCH),
    family("intfloat/e5-small-v2", (384, 12), MEAN, 512, E5),
    family("intfloat/e5-base-v2", (768, 12), MEAN, 512, E5),
    Family {
        settings: Some(
            r#"{"prompts":{"query":"Represent this sentence for searching relevant passages: "},
            "default_prompt_name":null}"#,
        ),
        ..family(
            "Snowflake/snowflake-arctic-embed-m",
            (768, 12),
            CLS,
            512,
            SEARCH,
        )
    },
    family("thenlper/gte-small", (384, 12), MEAN, 512, NONE),
    family("thenlper/gte-base", (768, 12), MEAN, 512, NONE),
];

/// Writes the family's files as published. The default model's weights are pinned by checksum under its
/// own name, so the folder is called otherwise where weights are generated.
fn write(dir: &Path, family: &Family, layers: usize) -> Weights {
    let config = config(family.hidden, layers, 4 * family.hidden, WORDS.len());
    let weights = weights(&config);
    put(dir, "model.safetensors", weights.to_safetensors());
    put(dir, "config.json", config);
    put(dir, "tokenizer.json", tokenizer(&WORDS));
    put(
        dir,
        "modules.json",
        modules(&["Transformer", "Pooling", "Normalize"]),
    );
    put(
        dir,
        "1_Pooling/config.json",
        pooling(family.hidden, family.pooling.1),
    );
    let window = format!(
        r#"{{"max_seq_length":{},"do_lower_case":false}}"#,
        family.max_tokens
    );
    put(dir, "sentence_bert_config.json", window);
    let versions = r#"{"__version__":{"sentence_transformers":"2.2.2","transformers":"4.30.2"}}"#;
    let settings = family.settings.unwrap_or(versions);
    put(dir, "config_sentence_transformers.json", settings);
    weights
}

#[test]
fn the_families_settings_are_read_as_published() {
    for family in &FAMILIES {
        // All layers of the small ones; of the base ones two, to be quick.
        let layers = if family.hidden == 384 {
            family.layers
        } else {
            2
        };
        let dir = tempfile::tempdir().unwrap();
        let weights = write(dir.path(), family, layers);
        let name = match family.name {
            "sentence-transformers/all-MiniLM-L6-v2" => "all-MiniLM-L6-v2 of generated weights",
            name => name,
        };
        let files = ModelFiles::read(&named(name, dir.path())).unwrap();
        assert_eq!(files.pooling, family.pooling.0, "{name}");
        assert_eq!(files.max_tokens, Some(family.max_tokens), "{name}");
        let prompts = (&*files.prompts.query, &*files.prompts.document);
        assert_eq!(prompts, family.prompts, "{name}");
        let model = PretrainedEmbedder::new(files).unwrap();
        assert_eq!(model.config().num_hidden_layers, layers, "{name}");
        assert_eq!(model.dimensions(), family.hidden, "{name}");
        assert_eq!(model.max_tokens(), family.max_tokens, "{name}");
        // The window cuts, special tokens included.
        let long = model.token_ids(&"sea ".repeat(600));
        assert_eq!(long.len(), family.max_tokens, "{name}");
        assert_eq!((long[0], long[long.len() - 1]), (2, 3), "{name}");
        // The vector is the encoder's, pooled as the family pools and no other way.
        let ids = model.token_ids(TEXT);
        let vector = model.embed(&[TEXT]).unwrap().remove(0);
        let of = |pooling| {
            let encoder = Encoder::new(weights.clone(), pooling);
            encoder.encode(&ids, &mut Scratch::default())
        };
        assert_eq!(vector, of(family.pooling.0), "{name}");
        let other = match family.pooling.0 {
            Pooling::Mean => Pooling::Cls,
            Pooling::Cls => Pooling::Mean,
        };
        assert_ne!(vector, of(other), "{name}");
    }
}

#[test]
fn the_published_number_of_layers_is_what_the_weights_must_have() {
    for family in FAMILIES.iter().filter(|family| family.hidden == 768) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), family, 2);
        let published = config(768, family.layers, 3072, WORDS.len());
        put(dir.path(), "config.json", published);
        let said = refusal(dir.path());
        let missing = "no tensor encoder.layer.2.attention.self.query.weight";
        assert!(said.contains(missing), "{}: {said}", family.name);
    }
}
