//! Cross-encoders: a question and a passage read together, a score out. For reranking.
//!
//! ```text
//! [CLS] question [SEP] passage [SEP]     segments 0 … 0 1 … 1
//!   ─▶ encoder ─▶ first token's state ─▶ tanh(pooler) ─▶ classifier ─▶ logits [labels]
//! ```
//!
//! `transformers`' `BertForSequenceClassification`, as the ms-marco-MiniLM rerankers are saved: one
//! label, whose logit orders passages. The head runs in f32 whatever the kernel of the encoder.
//!
//! Invariants: as the encoder's; a pair's logits do not depend on other pairs, bitwise.

use crate::encoder::{Encoder, Pooling, Scratch};
use crate::kernel::Kernel;
use crate::weights::{BertConfig, Linear, Weights, WeightsError, open, read};

/// The tensors behind the encoder: a dense layer with tanh, then one score a label.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `[hidden, hidden]`.
    pub pooler: Linear,
    /// `[labels, hidden]`.
    pub classifier: Linear,
}

impl Head {
    /// Reads the head of a checkpoint whose encoder [`Weights::parse`] reads.
    pub fn parse(config: &BertConfig, safetensors: &[u8]) -> Result<Self, WeightsError> {
        if config.type_vocab_size < 2 {
            let found = config.type_vocab_size;
            return Err(WeightsError::Config(format!(
                "type_vocab_size is {found}, expected 2 or more for pairs of texts"
            )));
        }
        let file = open(safetensors)?;
        let hidden = config.hidden_size;
        let name = "classifier.weight";
        let tensor = file
            .tensor(name)
            .map_err(|_| WeightsError::Tensor(format!("no tensor {name}: not a cross-encoder")))?;
        let labels = tensor.shape().first().copied().unwrap_or_default();
        if labels == 0 {
            return Err(WeightsError::Tensor(format!("{name} has no labels")));
        }
        let linear = |name: &str, outputs: usize| -> Result<Linear, WeightsError> {
            Ok((
                read(&file, &format!("{name}.weight"), &[outputs, hidden])?,
                read(&file, &format!("{name}.bias"), &[outputs])?,
            ))
        };
        Ok(Head {
            pooler: linear("bert.pooler.dense", hidden)?,
            classifier: linear("classifier", labels)?,
        })
    }

    /// Logits of a first token's state.
    fn logits(&self, state: &[f32]) -> Vec<f32> {
        let pooled: Vec<f32> = apply(&self.pooler, state)
            .into_iter()
            .map(f32::tanh)
            .collect();
        apply(&self.classifier, &pooled)
    }
}

/// `x·Wᵀ + b` of one row, summed in f64: 2 · hidden² operations beside millions in the layers.
fn apply((weight, bias): &Linear, x: &[f32]) -> Vec<f32> {
    let rows = weight.chunks_exact(x.len()).zip(bias);
    let output = |(w, &b): (&[f32], &f32)| {
        let products = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
        (products.sum::<f64>() + f64::from(b)) as f32
    };
    rows.map(output).collect()
}

/// A sequence classifier with packed weights. Shared between threads; each brings a [`Scratch`].
pub struct CrossEncoder {
    encoder: Encoder,
    head: Head,
}

impl CrossEncoder {
    /// Packs weights for a kernel, on the best instructions of this machine.
    pub fn new(weights: Weights, head: Head, kernel: Kernel) -> Self {
        let encoder = Encoder::with_kernel(weights, Pooling::Cls, kernel);
        CrossEncoder { encoder, head }
    }

    /// Scores of a pair.
    pub fn labels(&self) -> usize {
        self.head.classifier.1.len()
    }

    /// The longest pair, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    /// Token ids are below.
    pub fn vocabulary(&self) -> usize {
        self.encoder.vocabulary()
    }

    /// Bytes held for weights and tables.
    pub fn resident_bytes(&self) -> usize {
        let head = [&self.head.pooler, &self.head.classifier];
        let floats: usize = head.iter().map(|(w, b)| w.len() + b.len()).sum();
        self.encoder.resident_bytes() + floats * size_of::<f32>()
    }

    /// The logits of one pair, `labels()` long: its ids and the segment (0 or 1) of each.
    ///
    /// Cost: the encoder's. Panics as [`Encoder::encode`] does, and when a segment is missing or
    /// unknown to the model.
    pub fn score(&self, ids: &[u32], segments: &[u8], scratch: &mut Scratch) -> Vec<f32> {
        assert_eq!(ids.len(), segments.len(), "a segment for each id");
        let spans = self.encoder.states(&[(ids, Some(segments))], scratch);
        let states = self.encoder.rows_of(&spans[0], scratch);
        self.head.logits(&states[..self.encoder.dimensions()])
    }
}
