//! The default model against sentence-transformers: token ids equal, cosine ≥ 0.99999.
//!
//! The weights are fetched as `headwater model pull` does (once; they stay in the model folder);
//! the reference was made by `tests/data/minilm/make_reference.py` and lies beside it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use engine::contract::Embedder;
use engine::testing::embedder_laws;
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull, verify};
use operators::embed::{LocalModel, PretrainedEmbedder, Shape, load};

fn model() -> Arc<PretrainedEmbedder> {
    static MODEL: OnceLock<Arc<PretrainedEmbedder>> = OnceLock::new();
    let make = || {
        let progress = |p: &operators::embed::download::Progress| {
            eprintln!("{} {} / {:?}", p.what, p.done_bytes, p.total_bytes);
        };
        let folder = pull(DEFAULT_MODEL, &progress).unwrap();
        Arc::new(PretrainedEmbedder::new(ModelFiles::read(&folder).unwrap()).unwrap())
    };
    MODEL.get_or_init(make).clone()
}

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/minilm")
        .join(file)
}

fn json<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(data(file)).unwrap()).unwrap()
}

#[test]
fn ids_and_vectors_are_those_of_sentence_transformers() {
    let texts: Vec<String> = json("texts.json");
    let ids: Vec<Vec<u32>> = json("ids.json");
    let vectors: Vec<f32> = std::fs::read(data("vectors.f32"))
        .unwrap()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert!(texts.len() >= 60);
    let model = model();
    let mut worst = 1.0_f64;
    for ((text, ids), reference) in texts.iter().zip(&ids).zip(vectors.chunks_exact(384)) {
        assert_eq!(&model.token_ids(text), ids, "token ids of {text:.60?}");
        let vector = &model.embed(&[text]).unwrap()[0];
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(&x, &y)| f64::from(x) * f64::from(y))
                .sum()
        };
        let norms = (dot(vector, vector) * dot(reference, reference)).sqrt();
        let cosine = dot(vector, reference) / norms;
        assert!(cosine >= 0.99999, "{text:.60?}: cosine {cosine}");
        worst = worst.min(cosine);
    }
    println!("{} texts, smallest cosine {worst:.8}", texts.len());
}

#[test]
fn it_keeps_the_laws_of_an_embedder() {
    embedder_laws(&*model());
}

#[test]
fn spans_count_the_tokens_that_the_model_sees() {
    let model = model();
    let texts: Vec<String> = json("texts.json");
    for text in &texts {
        let spans = model.token_spans(text);
        let expected = (spans.starts.len() + model.special_tokens()).min(model.max_tokens());
        assert_eq!(model.token_ids(text).len(), expected, "{text:.60?}");
    }
}

#[test]
fn a_large_text_has_the_spans_of_its_parts() {
    let model = model();
    let line = "Ünïcode line — 漢字 with [SEP], numbers 1,234.5 and supercalifragilistic words\n";
    let one = model.token_spans(line);
    let many = model.token_spans(&line.repeat(2_000));
    assert_eq!(many.starts.len(), 2_000 * one.starts.len());
    for (i, start) in many.starts.iter().enumerate() {
        let (row, column) = (i / one.starts.len(), i % one.starts.len());
        assert_eq!(
            *start as usize,
            row * line.len() + one.starts[column] as usize
        );
    }
}

#[test]
fn the_id_names_the_content_and_the_checksums_hold() {
    let again = load("minilm", "cpu", "full", &Shape::default(), &|_| {}).unwrap();
    assert_eq!(again.id(), model().id());
    assert!(
        verify(DEFAULT_MODEL)
            .unwrap()
            .iter()
            .all(|checked| checked.is_good())
    );
    let refused = |device: &str, precision: &str| {
        load(DEFAULT_MODEL, device, precision, &Shape::default(), &|_| {})
            .err()
            .unwrap()
            .to_string()
    };
    for (device, precision, words) in [
        (
            "gpu",
            "full",
            "DEVICE is 'gpu', expected 'auto', 'cpu' or 'cuda:0'",
        ),
        (
            "cuda:99",
            "full",
            "DEVICE 'cuda:99' cannot be used: there is no ",
        ),
        (
            "cuda:99",
            "int8",
            "DEVICE 'cuda:99' cannot be used: there is no ",
        ),
        (
            "cuda",
            "bf16",
            "DEVICE 'cuda' is for encoders with PRECISION 'full' (fp16 there) or 'int8'",
        ),
    ] {
        let said = refused(device, precision);
        assert!(said.contains(words), "{said}");
    }
    let expected = "PRECISION 'int4' is not supported by this version; expected 'full', 'f32', 'bf16' or 'int8'";
    assert!(refused("auto", "int4").contains(expected));
    // Vectors of one class stand beside each other, and those of another never.
    let of = |precision: &str| {
        let model = load(DEFAULT_MODEL, "cpu", precision, &Shape::default(), &|_| {});
        model.unwrap()
    };
    assert_eq!(of("bf16").id(), again.id());
    assert_ne!(of("int8").id(), again.id());
    let text = "how do I reset the second factor of my account?";
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let full = again.embed(&[text]).unwrap().remove(0);
    for (precision, least) in [("f32", 0.999_999), ("bf16", 0.9999), ("int8", 0.998)] {
        let vector = of(precision).embed(&[text]).unwrap().remove(0);
        assert!(dot(&full, &vector) > least, "{precision}");
    }
}

#[test]
fn operations_are_those_of_the_literature() {
    let a_token = model().operations(128).unwrap() / 128.0 / 1e6;
    assert!((a_token - 22.41).abs() < 0.01, "{a_token} million");
}
