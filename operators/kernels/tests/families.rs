//! The families the reader knows, by their published `config.json`s; cross-encoders.
//!
//! Law: a checkpoint of each shape (one layer and a small vocabulary of generated weights) reads, packs
//! and agrees with the f64 oracle.

mod support;

use kernels::weights::{BertConfig, Weights};
use kernels::{CrossEncoder, Encoder, Head, Kernel, Pooling, Scratch, reference};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use support::ids;

/// (name, hidden, layers, intermediate, pooling, the settings that this one has beside the usual).
const FAMILIES: [(&str, usize, usize, usize, Pooling, &str); 8] = [
    (
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        6,
        1536,
        Pooling::Mean,
        r#""_name_or_path":"nreimers/MiniLM-L6-H384-uncased","gradient_checkpointing":false,"transformers_version":"4.8.2""#,
    ),
    (
        "BAAI/bge-small-en-v1.5",
        384,
        12,
        1536,
        Pooling::Cls,
        r#""classifier_dropout":null,"id2label":{"0":"LABEL_0"},"label2id":{"LABEL_0":0},"torch_dtype":"float32""#,
    ),
    (
        "BAAI/bge-base-en-v1.5",
        768,
        12,
        3072,
        Pooling::Cls,
        r#""gradient_checkpointing":false,"id2label":{"0":"LABEL_0"},"label2id":{"LABEL_0":0},"torch_dtype":"float32""#,
    ),
    (
        "intfloat/e5-small-v2",
        384,
        12,
        1536,
        Pooling::Mean,
        r#""tokenizer_class":"BertTokenizer","torch_dtype":"float32""#,
    ),
    (
        "intfloat/e5-base-v2",
        768,
        12,
        3072,
        Pooling::Mean,
        r#""tokenizer_class":"BertTokenizer","torch_dtype":"float32""#,
    ),
    (
        "Snowflake/snowflake-arctic-embed-m",
        768,
        12,
        3072,
        Pooling::Cls,
        r#""classifier_dropout":null,"gradient_checkpointing":false,"torch_dtype":"float32""#,
    ),
    (
        "thenlper/gte-small",
        384,
        12,
        1536,
        Pooling::Mean,
        r#""_name_or_path":"gte-small","torch_dtype":"float16""#,
    ),
    (
        "thenlper/gte-base",
        768,
        12,
        3072,
        Pooling::Mean,
        r#""_name_or_path":"gte-base","torch_dtype":"float16""#,
    ),
];

fn config_json(hidden: usize, layers: usize, intermediate: usize, more: &str) -> String {
    format!(
        r#"{{"architectures":["BertModel"],"attention_probs_dropout_prob":0.1,"hidden_act":"gelu",
        "hidden_dropout_prob":0.1,"hidden_size":{hidden},"initializer_range":0.02,
        "intermediate_size":{intermediate},"layer_norm_eps":1e-12,"max_position_embeddings":512,
        "model_type":"bert","num_attention_heads":12,"num_hidden_layers":{layers},"pad_token_id":0,
        "position_embedding_type":"absolute","type_vocab_size":2,"use_cache":true,
        "vocab_size":30522,{more}}}"#
    )
}

#[test]
fn published_configurations_are_read_and_run() {
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    for (name, hidden, layers, intermediate, pooling, more) in FAMILIES {
        let json = config_json(hidden, layers, intermediate, more);
        let config = BertConfig::parse(json.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (
                config.hidden_size,
                config.num_hidden_layers,
                config.intermediate_size
            ),
            (hidden, layers, intermediate)
        );
        let small = json
            .replace(
                &format!("\"num_hidden_layers\":{layers}"),
                "\"num_hidden_layers\":1",
            )
            .replace("30522", "300")
            .replace(
                "\"max_position_embeddings\":512",
                "\"max_position_embeddings\":40",
            );
        let made = Weights::generate(BertConfig::parse(small.as_bytes()).unwrap(), 3);
        let weights = Weights::parse(small.as_bytes(), &made.to_safetensors()).unwrap();
        let ids = ids(&mut rng, 21);
        let exact = reference::encode(&weights, pooling, &ids);
        for (kernel, gate) in Kernel::ALL.into_iter().zip([0.999_999, 0.9999, 0.999]) {
            let encoder = Encoder::with_kernel(weights.clone(), pooling, kernel);
            let vector = encoder.encode(&ids, &mut Scratch::default());
            let cosine = reference::cosine(&vector, &exact);
            assert!(cosine >= gate, "{name} {}: {cosine}", kernel.name());
        }
    }
}

/// A cross-encoder's file: the encoder under `bert.`, the head beside it.
fn cross_checkpoint(weights: &Weights, head: &Head) -> Vec<u8> {
    let hidden = weights.config.hidden_size;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut put = |name: String, shape: Vec<usize>, values: &[f32]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    };
    for (name, (shape, values)) in weights.tensors() {
        put(format!("bert.{name}"), shape, values);
    }
    for (name, (weight, bias)) in [
        ("bert.pooler.dense", &head.pooler),
        ("classifier", &head.classifier),
    ] {
        put(format!("{name}.weight"), vec![bias.len(), hidden], weight);
        put(format!("{name}.bias"), vec![bias.len()], bias);
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes);
        (name, view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn a_cross_encoder_agrees_with_the_oracle() {
    let config = support::shape(64, 2, 2, 128);
    let json = serde_json::json!({
        "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 128, "max_position_embeddings": 512, "vocab_size": 300,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "num_labels": 3,
    })
    .to_string();
    let made = Weights::generate(config.clone(), 4);
    let spread = |n: usize, step: usize| -> Vec<f32> {
        (0..n)
            .map(|i| (i * step % 211) as f32 * 1e-3 - 0.1)
            .collect()
    };
    let head = Head {
        pooler: (spread(64 * 64, 7919), spread(64, 31)),
        classifier: (spread(3 * 64, 104_729), spread(3, 17)),
    };
    let file = cross_checkpoint(&made, &head);
    let weights = Weights::parse(json.as_bytes(), &file).unwrap();
    let read = Head::parse(&config, &file).unwrap();
    assert_eq!(read, head);
    let mut rng = ChaCha8Rng::seed_from_u64(22);
    for (kernel, tolerance) in Kernel::ALL.into_iter().zip([1e-5, 2e-2, 5e-2]) {
        let model = CrossEncoder::new(weights.clone(), read.clone(), kernel);
        assert_eq!(model.labels(), 3);
        let mut scratch = Scratch::default();
        for (question, passage) in [(3, 2), (7, 40), (12, 150)] {
            let ids = ids(&mut rng, question + passage);
            let segments: Vec<u8> = (0..ids.len()).map(|i| u8::from(i >= question)).collect();
            scratch.poison();
            let logits = model.score(&ids, &segments, &mut scratch);
            let exact = reference::classify(&weights, &head, &ids, &segments);
            for (found, exact) in logits.iter().zip(&exact) {
                let error = (f64::from(*found) - exact).abs();
                assert!(error < tolerance, "{}: {found} {exact}", kernel.name());
            }
            let other = model.score(&ids, &vec![0; ids.len()], &mut scratch);
            assert_ne!(other, logits, "segments count");
        }
    }
}

#[test]
fn an_encoder_without_a_head_is_no_cross_encoder() {
    let config = support::shape(32, 1, 1, 32);
    let file = Weights::generate(config.clone(), 1).to_safetensors();
    assert_eq!(
        Head::parse(&config, &file).unwrap_err().to_string(),
        "model.safetensors: no tensor classifier.weight: not a cross-encoder"
    );
}
