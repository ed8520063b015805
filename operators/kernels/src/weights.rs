//! What lies in a checkpoint: `config.json` and `model.safetensors`, checked and turned to f32.
//!
//! The reader knows the names of `transformers`' `BertModel` (with or without a `bert.` prefix)
//! and says which tensor or setting it misses. Weights stored as f16 or bf16 are widened.

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Why a checkpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// `config.json` is not what the kernels support.
    #[error("config.json: {0}")]
    Config(String),
    /// `model.safetensors` is damaged or lacks a tensor.
    #[error("model.safetensors: {0}")]
    Tensor(String),
}

fn absolute() -> String {
    "absolute".to_owned()
}

fn gelu() -> String {
    "gelu".to_owned()
}

/// The shape of a BERT-family encoder, under `config.json`'s own names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Family; only `bert` is supported.
    pub model_type: String,
    /// Width of a token's state, and of the vector.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward network.
    pub intermediate_size: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Token ids are below.
    pub vocab_size: usize,
    /// Kinds of segments; only kind 0 is used.
    pub type_vocab_size: usize,
    /// ε of LayerNorm.
    pub layer_norm_eps: f64,
    /// Activation; only `gelu` (erf) is supported.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Only `absolute` is supported.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

/// More than any size of a model of this family.
const SIZE_MAX: usize = 1 << 24;

impl BertConfig {
    /// Parses and checks a `config.json`.
    pub fn parse(json: &[u8]) -> Result<Self, WeightsError> {
        let config: BertConfig =
            serde_json::from_slice(json).map_err(|e| WeightsError::Config(e.to_string()))?;
        let refuse = |what: &str, found: &str, expected: &str| {
            Err(WeightsError::Config(format!(
                "{what} is '{found}', supported is {expected}"
            )))
        };
        if config.model_type != "bert" {
            return refuse("model_type", &config.model_type, "'bert'");
        }
        if config.hidden_act != "gelu" {
            return refuse("hidden_act", &config.hidden_act, "'gelu'");
        }
        if config.position_embedding_type != "absolute" {
            return refuse(
                "position_embedding_type",
                &config.position_embedding_type,
                "'absolute'",
            );
        }
        let sizes = [
            ("hidden_size", config.hidden_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("vocab_size", config.vocab_size),
            ("type_vocab_size", config.type_vocab_size),
        ];
        if let Some((name, size)) = sizes
            .iter()
            .find(|(_, size)| !(1..=SIZE_MAX).contains(size))
        {
            return Err(WeightsError::Config(format!(
                "{name} is {size}, expected 1 to {SIZE_MAX}"
            )));
        }
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            return Err(WeightsError::Config(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                config.hidden_size, config.num_attention_heads
            )));
        }
        Ok(config)
    }
}

/// A linear layer in the checkpoint's layout: weight `[outputs, inputs]`, bias.
pub type Linear = (Vec<f32>, Vec<f32>);

/// One layer's tensors as the checkpoint has them: matrices `[outputs, inputs]`, row-major.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// Query, key, value, attention output, feed-forward in, feed-forward out: (weight, bias).
    pub linears: [Linear; 6],
    /// LayerNorm after attention and after the feed-forward network: (gain, shift).
    pub norms: [(Vec<f32>, Vec<f32>); 2],
}

/// All tensors of an encoder, in f32, in the checkpoint's own layout.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The shape.
    pub config: BertConfig,
    /// `[vocab_size, hidden]`.
    pub words: Vec<f32>,
    /// `[max_position_embeddings, hidden]`.
    pub positions: Vec<f32>,
    /// `[type_vocab_size, hidden]`.
    pub segments: Vec<f32>,
    /// LayerNorm of the embeddings: (gain, shift).
    pub norm: (Vec<f32>, Vec<f32>),
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
}

impl Weights {
    /// Reads a checkpoint. Cost: one pass over the bytes.
    pub fn parse(config_json: &[u8], safetensors: &[u8]) -> Result<Self, WeightsError> {
        let config = BertConfig::parse(config_json)?;
        let file = open(safetensors)?;
        let plain = "embeddings.word_embeddings.weight";
        let prefix = ["", "bert.", "model."]
            .into_iter()
            .find(|p| file.tensor(&format!("{p}{plain}")).is_ok())
            .ok_or_else(|| WeightsError::Tensor(format!("no tensor {plain}")))?;
        let take = |name: String, shape: &[usize]| read(&file, &format!("{prefix}{name}"), shape);
        let h = config.hidden_size;
        let norm = |name: &str| -> Result<_, WeightsError> {
            Ok((
                take(format!("{name}.weight"), &[h])?,
                take(format!("{name}.bias"), &[h])?,
            ))
        };
        let layer = |i: usize| -> Result<LayerWeights, WeightsError> {
            let f = config.intermediate_size;
            let at = format!("encoder.layer.{i}");
            let linear = |name: &str, outputs: usize, inputs: usize| -> Result<_, WeightsError> {
                Ok((
                    take(format!("{at}.{name}.weight"), &[outputs, inputs])?,
                    take(format!("{at}.{name}.bias"), &[outputs])?,
                ))
            };
            Ok(LayerWeights {
                linears: [
                    linear("attention.self.query", h, h)?,
                    linear("attention.self.key", h, h)?,
                    linear("attention.self.value", h, h)?,
                    linear("attention.output.dense", h, h)?,
                    linear("intermediate.dense", f, h)?,
                    linear("output.dense", h, f)?,
                ],
                norms: [
                    norm(&format!("{at}.attention.output.LayerNorm"))?,
                    norm(&format!("{at}.output.LayerNorm"))?,
                ],
            })
        };
        Ok(Weights {
            words: take(plain.to_owned(), &[config.vocab_size, h])?,
            positions: take(
                "embeddings.position_embeddings.weight".to_owned(),
                &[config.max_position_embeddings, h],
            )?,
            segments: take(
                "embeddings.token_type_embeddings.weight".to_owned(),
                &[config.type_vocab_size, h],
            )?,
            norm: norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers)
                .map(layer)
                .collect::<Result<_, _>>()?,
            config,
        })
    }

    /// Weights of a given shape from a seed, for tests and benches: uniform, scaled so that states
    /// keep their size through the layers; LayerNorm near the identity.
    pub fn generate(config: BertConfig, seed: u64) -> Self {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let mut stream = Stream(seed);
        let linear = |stream: &mut Stream, outputs: usize, inputs: usize| {
            let scale = (3.0 / inputs as f32).sqrt();
            (
                stream.uniform(outputs * inputs, 0.0, scale),
                stream.uniform(outputs, 0.0, 0.1),
            )
        };
        let norm = |stream: &mut Stream| (stream.uniform(h, 1.0, 0.2), stream.uniform(h, 0.0, 0.2));
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerWeights {
                linears: [(h, h), (h, h), (h, h), (h, h), (f, h), (h, f)]
                    .map(|(outputs, inputs)| linear(&mut stream, outputs, inputs)),
                norms: [norm(&mut stream), norm(&mut stream)],
            })
            .collect();
        Weights {
            words: stream.uniform(config.vocab_size * h, 0.0, 1.0),
            positions: stream.uniform(config.max_position_embeddings * h, 0.0, 0.5),
            segments: stream.uniform(config.type_vocab_size * h, 0.0, 0.5),
            norm: norm(&mut stream),
            layers,
            config,
        }
    }

    /// The tensors by name, as a checkpoint would hold them: (shape, values).
    pub fn tensors(&self) -> BTreeMap<String, (Vec<usize>, &[f32])> {
        let h = self.config.hidden_size;
        let mut all = BTreeMap::new();
        let mut put = |name: String, shape: Vec<usize>, values| {
            all.insert(name, (shape, values));
        };
        let names = ["word", "position", "token_type"];
        for (name, values) in names
            .into_iter()
            .zip([&self.words, &self.positions, &self.segments])
        {
            let shape = vec![values.len() / h, h];
            put(
                format!("embeddings.{name}_embeddings.weight"),
                shape,
                &values[..],
            );
        }
        put(
            "embeddings.LayerNorm.weight".to_owned(),
            vec![h],
            &self.norm.0,
        );
        put(
            "embeddings.LayerNorm.bias".to_owned(),
            vec![h],
            &self.norm.1,
        );
        let linears = [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ];
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, (weight, bias)) in linears.into_iter().zip(&layer.linears) {
                let shape = vec![bias.len(), weight.len() / bias.len()];
                put(format!("encoder.layer.{i}.{name}.weight"), shape, weight);
                put(
                    format!("encoder.layer.{i}.{name}.bias"),
                    vec![bias.len()],
                    bias,
                );
            }
            for (name, norm) in ["attention.output", "output"].into_iter().zip(&layer.norms) {
                put(
                    format!("encoder.layer.{i}.{name}.LayerNorm.weight"),
                    vec![h],
                    &norm.0,
                );
                put(
                    format!("encoder.layer.{i}.{name}.LayerNorm.bias"),
                    vec![h],
                    &norm.1,
                );
            }
        }
        all
    }

    /// Bytes of a `model.safetensors` with these weights, for tests of whatever reads one.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors()
            .into_iter()
            .map(|(name, (shape, values))| {
                (
                    name,
                    shape,
                    values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                )
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (
                name,
                view.expect("the shape has as many elements as there are values"),
            )
        });
        safetensors::serialize(views, None).expect("views of f32 tensors serialise")
    }
}

/// A file's table of contents, checked against its length.
pub(crate) fn open(bytes: &[u8]) -> Result<SafeTensors<'_>, WeightsError> {
    SafeTensors::deserialize(bytes).map_err(|e| {
        let why = format!("it is damaged or cut off ({e}); remove the folder and pull again");
        WeightsError::Tensor(why)
    })
}

/// Reads one tensor of the expected shape, widened to f32.
pub(crate) fn read(
    file: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, WeightsError> {
    let tensor = file
        .tensor(name)
        .map_err(|_| WeightsError::Tensor(format!("no tensor {name}")))?;
    if tensor.shape() != shape {
        return Err(WeightsError::Tensor(format!(
            "{name} has shape {:?}, config.json says {shape:?}",
            tensor.shape()
        )));
    }
    let values = widened(name, &tensor)?;
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(values),
        Some(at) => Err(WeightsError::Tensor(format!(
            "{name} has {} at element {at}, expected finite numbers",
            values[at]
        ))),
    }
}

fn widened(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, WeightsError> {
    let bytes = tensor.data();
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match tensor.dtype() {
        Dtype::F32 => Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()),
        Dtype::F16 => Ok(pairs()
            .map(|b| half::f16::from_le_bytes(*b).to_f32())
            .collect()),
        Dtype::BF16 => Ok(pairs()
            .map(|b| half::bf16::from_le_bytes(*b).to_f32())
            .collect()),
        other => Err(WeightsError::Tensor(format!(
            "{name} is {other:?}, supported are F32, F16 and BF16"
        ))),
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): a stream of numbers from a seed.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `count` numbers in `[centre − spread, centre + spread)`.
    fn uniform(&mut self, count: usize, centre: f32, spread: f32) -> Vec<f32> {
        let mut draw = || (self.next() >> 40) as f32 / (1 << 24) as f32;
        (0..count)
            .map(|_| centre + (2.0 * draw() - 1.0) * spread)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":1,
        "num_attention_heads":2,"intermediate_size":16,"max_position_embeddings":9,
        "vocab_size":5,"type_vocab_size":2,"layer_norm_eps":1e-12,"hidden_act":"gelu"}"#;

    #[test]
    fn a_generated_checkpoint_reads_back_as_it_was_written() {
        let config = BertConfig::parse(CONFIG.as_bytes()).unwrap();
        let weights = Weights::generate(config, 7);
        let read = Weights::parse(CONFIG.as_bytes(), &weights.to_safetensors()).unwrap();
        assert_eq!(weights.tensors(), read.tensors());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let message = |from: &str, to: &str| {
            let json = CONFIG.replace(from, to);
            BertConfig::parse(json.as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(
            message("\"bert\"", "\"roberta\""),
            "config.json: model_type is 'roberta', supported is 'bert'"
        );
        assert_eq!(
            message("\"num_attention_heads\":2", "\"num_attention_heads\":3"),
            "config.json: hidden_size 8 is not a multiple of num_attention_heads 3"
        );
        assert_eq!(
            message("\"vocab_size\":5", "\"vocab_size\":0"),
            "config.json: vocab_size is 0, expected 1 to 16777216"
        );
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        let config = BertConfig::parse(CONFIG.as_bytes()).unwrap();
        let mut weights = Weights::generate(config, 7);
        weights.layers[0].linears[4].0[5] = f32::NAN;
        let error = Weights::parse(CONFIG.as_bytes(), &weights.to_safetensors()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.safetensors: encoder.layer.0.intermediate.dense.weight has NaN at element 5, \
             expected finite numbers"
        );
    }

    #[test]
    fn damaged_bytes_are_an_error_not_a_panic() {
        let config = BertConfig::parse(CONFIG.as_bytes()).unwrap();
        let bytes = Weights::generate(config, 7).to_safetensors();
        for cut in [0, 7, 8, 100, bytes.len() - 1] {
            assert!(Weights::parse(CONFIG.as_bytes(), &bytes[..cut]).is_err());
        }
        let shorter = CONFIG.replace("\"vocab_size\":5", "\"vocab_size\":6");
        let error = Weights::parse(shorter.as_bytes(), &bytes)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("has shape [5, 8], config.json says [6, 8]"),
            "{error}"
        );
    }
}
