//! The forward pass: one text at a time through all layers, on the calling thread.
//!
//! ```text
//! ids [S] ─▶ x = LayerNorm(word + position + segment 0)
//!   per layer   qkv = x·Wqkv + b            one product for Q, K and V, 1/√d folded in
//!               x   = LayerNorm(x + attend(qkv)·Wo + b)
//!               x   = LayerNorm(x + GELU(x·W1 + b)·W2 + b)
//! ─▶ mean over tokens, or the first ─▶ L2 norm ─▶ vector [hidden]
//! ```
//!
//! The source is "BERT: Pre-training of Deep Bidirectional Transformers" (Devlin et al. 2018) as
//! `transformers` implements it; pooling as `sentence-transformers` does.
//!
//! Invariants: no padding, no threads and no memory allocated here once the [`Scratch`] has grown,
//! so a vector depends on its own ids only. Limits: at most `max_position_embeddings` ids.

use crate::attention::attend;
use crate::linear::PackedLinear;
use crate::math;
use crate::panels::F32Linear;
use crate::weights::{LayerWeights, Weights};

/// How token states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Mean over all tokens, the special ones included.
    Mean,
    /// The first token's state.
    Cls,
}

/// LayerNorm's parameters.
struct Norm {
    gain: Vec<f32>,
    shift: Vec<f32>,
}

impl Norm {
    fn new((gain, shift): (Vec<f32>, Vec<f32>)) -> Self {
        Norm { gain, shift }
    }
}

struct Layer {
    qkv: Box<dyn PackedLinear>,
    attention_out: Box<dyn PackedLinear>,
    attention_norm: Norm,
    widen: Box<dyn PackedLinear>,
    narrow: Box<dyn PackedLinear>,
    norm: Norm,
}

/// Working memory of one thread: grows to the longest text seen, then stays.
#[derive(Default)]
pub struct Scratch {
    states: Vec<f32>,
    qkv: Vec<f32>,
    context: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    wide: Vec<f32>,
}

impl Scratch {
    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        [
            &self.states,
            &self.qkv,
            &self.context,
            &self.scores,
            &self.sums,
            &self.wide,
        ]
        .iter()
        .map(|buffer| buffer.capacity() * size_of::<f32>())
        .sum()
    }
}

/// The first `len` elements of a buffer that grows when it must. What they hold is left over.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// A BERT-family encoder with packed weights. Shared between threads; each brings a [`Scratch`].
pub struct Encoder {
    hidden: usize,
    heads: usize,
    max_tokens: usize,
    epsilon: f32,
    pooling: Pooling,
    words: Vec<f32>,
    /// Position and segment 0, added up at load.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Packs weights for full precision.
    pub fn new(weights: Weights, pooling: Pooling) -> Self {
        let config = weights.config;
        let hidden = config.hidden_size;
        let mut positions = weights.positions;
        math::add_to_rows(&mut positions, &weights.segments[..hidden]);
        Encoder {
            hidden,
            heads: config.num_attention_heads,
            max_tokens: config.max_position_embeddings,
            epsilon: config.layer_norm_eps as f32,
            pooling,
            words: weights.words,
            positions,
            norm: Norm::new(weights.norm),
            layers: weights
                .layers
                .into_iter()
                .map(|layer| pack(layer, hidden, config.num_attention_heads))
                .collect(),
        }
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.hidden
    }

    /// The longest sequence, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Token ids are below.
    pub fn vocabulary(&self) -> usize {
        self.words.len() / self.hidden
    }

    /// Bytes held for weights and tables.
    pub fn resident_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(|layer| {
            [
                &layer.qkv,
                &layer.attention_out,
                &layer.widen,
                &layer.narrow,
            ]
        });
        linears.map(|linear| linear.resident_bytes()).sum::<usize>()
            + (self.words.len() + self.positions.len()) * size_of::<f32>()
    }

    /// Embeds one text, given as ids with its special tokens: a unit vector `dimensions()` long.
    ///
    /// Cost at MiniLM's shape: 21 MFLOP a token plus 9 kFLOP a token and token. Panics on no ids,
    /// on more than [`Encoder::max_tokens`] and on an id outside the vocabulary: the tokenizer in
    /// front guarantees all three.
    pub fn encode(&self, ids: &[u32], scratch: &mut Scratch) -> Vec<f32> {
        let rows = ids.len();
        assert!(
            rows > 0 && rows <= self.max_tokens,
            "{rows} ids, the model takes 1 to its maximum"
        );
        self.embed_ids(ids, sized(&mut scratch.states, rows * self.hidden));
        for layer in &self.layers {
            self.run(layer, rows, scratch);
        }
        let mut vector = self.pool(&scratch.states[..rows * self.hidden]);
        math::normalize(&mut vector);
        vector
    }

    fn embed_ids(&self, ids: &[u32], states: &mut [f32]) {
        let rows = states.chunks_exact_mut(self.hidden);
        let positions = self.positions.chunks_exact(self.hidden);
        for ((&id, state), position) in ids.iter().zip(rows).zip(positions) {
            let word = &self.words[id as usize * self.hidden..][..self.hidden];
            for ((x, &w), &p) in state.iter_mut().zip(word).zip(position) {
                *x = w + p;
            }
        }
        math::layer_norm(states, &self.norm.gain, &self.norm.shift, self.epsilon);
    }

    fn run(&self, layer: &Layer, rows: usize, scratch: &mut Scratch) {
        let hidden = self.hidden;
        let x = &mut scratch.states[..rows * hidden];
        let qkv = sized(&mut scratch.qkv, rows * 3 * hidden);
        let context = sized(&mut scratch.context, rows * hidden);
        let scores = sized(&mut scratch.scores, rows * rows);
        let sums = sized(&mut scratch.sums, rows);

        math::fill_rows(qkv, layer.qkv.bias());
        layer.qkv.accumulate(rows, x, qkv);
        attend(rows, self.heads, hidden, qkv, scores, sums, context);
        math::add_to_rows(x, layer.attention_out.bias());
        layer.attention_out.accumulate(rows, context, x);
        let norm = &layer.attention_norm;
        math::layer_norm(x, &norm.gain, &norm.shift, self.epsilon);

        let wide = sized(&mut scratch.wide, rows * layer.widen.outputs());
        math::fill_rows(wide, layer.widen.bias());
        layer.widen.accumulate(rows, x, wide);
        math::gelu(wide);
        math::add_to_rows(x, layer.narrow.bias());
        layer.narrow.accumulate(rows, wide, x);
        math::layer_norm(x, &layer.norm.gain, &layer.norm.shift, self.epsilon);
    }

    fn pool(&self, states: &[f32]) -> Vec<f32> {
        let mut vector = states[..self.hidden].to_vec();
        if self.pooling == Pooling::Mean {
            // The norm that follows makes the division by the number of tokens superfluous.
            for state in states.chunks_exact(self.hidden).skip(1) {
                vector.iter_mut().zip(state).for_each(|(sum, &x)| *sum += x);
            }
        }
        vector
    }
}

/// Packs one layer: Q, K and V as one matrix, 1/√d in Q.
fn pack(layer: LayerWeights, hidden: usize, heads: usize) -> Layer {
    let [query, key, value, attention_out, widen, narrow] = layer.linears;
    let scale = ((hidden / heads) as f64).sqrt().recip();
    let scaled = |values: Vec<f32>| {
        values
            .into_iter()
            .map(move |x| (f64::from(x) * scale) as f32)
    };
    let weight: Vec<f32> = scaled(query.0).chain(key.0).chain(value.0).collect();
    let bias: Vec<f32> = scaled(query.1).chain(key.1).chain(value.1).collect();
    let linear = |weight: &[f32], bias: Vec<f32>| -> Box<dyn PackedLinear> {
        Box::new(F32Linear::pack(
            weight.len() / bias.len(),
            bias.len(),
            weight,
            bias,
        ))
    };
    let [attention_norm, norm] = layer.norms.map(Norm::new);
    Layer {
        qkv: linear(&weight, bias),
        attention_out: linear(&attention_out.0, attention_out.1),
        attention_norm,
        widen: linear(&widen.0, widen.1),
        narrow: linear(&narrow.0, narrow.1),
        norm,
    }
}
