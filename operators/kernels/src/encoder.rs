//! The forward pass: one text, or a few short ones, through all layers on the calling thread.
//!
//! ```text
//! ids [S] ─▶ x = word + position + segment
//!   per layer   x = LayerNorm(x)
//!               per head   q, k, v = x·W + b          weights lie head by head, log₂e/√d folded into q
//!                          context[head] = softmax(q·kᵀ)·v
//!               x = x + context·Wo + b
//!               per block of rows   x = LayerNorm(x);  x = x + GELU(x·W1 + b)·W2 + b
//! ─▶ LayerNorm ─▶ mean over tokens, or the first ─▶ L2 norm ─▶ vector [hidden]
//! ```
//!
//! The idea: what a layer works on stays in the second-level cache. A head's q, k and v are made just
//! before they are used, and the wide rows of the feed-forward network exist a block at a time. Rows
//! are normalised when the next product's tiles are made of them. Texts share a pass only to read the
//! weights once for all; attention keeps to each text.
//!
//! The source is "BERT: Pre-training of Deep Bidirectional Transformers" (Devlin et al. 2018) as
//! `transformers` implements it; pooling as `sentence-transformers` does.
//!
//! Invariants: no padding, no threads and no memory allocated here once the [`Scratch`] has grown; no
//! step mixes rows of two texts, so a vector depends on its own ids only, bitwise. Limits: at most `max_position_embeddings` ids.

use std::ops::Range;

use crate::attention::{Attention, AttentionScratch};
use crate::kernel::Kernel;
use crate::linear::{Epilogue, Erf, PackedLinear};
use crate::math::{self, Norm};
use crate::rows::Tiles;
use crate::tile::{Cpu, PANEL_COLUMNS};
use crate::weights::{LayerWeights, Linear, Weights};

/// Rows of the feed-forward network's inside that exist at once: 5 tiles, 360 KiB at 1536 columns.
const WIDE_ROWS: usize = 60;
/// Texts share a pass up to so many tokens: enough to amortise reading the weights.
const PASS_TOKENS: usize = 96;

/// How token states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Mean over all tokens, the special ones included.
    Mean,
    /// The first token's state.
    Cls,
}

struct Layer {
    /// Head by head: its q, k and v, each padded to whole panels.
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
    tiles: Tiles,
    head: Vec<f32>,
    attention: AttentionScratch,
    context: Vec<f32>,
    wide: Vec<f32>,
    wide_tiles: Tiles,
}

impl Scratch {
    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        let floats: usize = [&self.states, &self.head, &self.context, &self.wide]
            .iter()
            .map(|buffer| buffer.capacity() * size_of::<f32>())
            .sum();
        floats
            + self.tiles.resident_bytes()
            + self.attention.resident_bytes()
            + self.wide_tiles.resident_bytes()
    }

    /// Fills all memory with NaN, for tests: nothing may be read before it was written.
    #[doc(hidden)]
    pub fn poison(&mut self) {
        for buffer in [
            &mut self.states,
            &mut self.head,
            &mut self.context,
            &mut self.wide,
        ] {
            buffer.fill(f32::NAN);
        }
        self.tiles.poison();
        self.attention.poison();
        self.wide_tiles.poison();
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
    pooling: Pooling,
    kernel: Kernel,
    attention: Attention,
    words: Vec<f32>,
    positions: Vec<f32>,
    segments: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Packs weights for full precision.
    pub fn new(weights: Weights, pooling: Pooling) -> Self {
        Self::with_kernel(weights, pooling, Kernel::F32)
    }

    /// Packs weights for a kernel, on the best instructions of this machine.
    pub fn with_kernel(weights: Weights, pooling: Pooling, kernel: Kernel) -> Self {
        Self::on(weights, pooling, kernel, kernel.cpu())
    }

    /// The same on one instruction set, for tests; its best substitute where the machine lacks it.
    pub fn on(weights: Weights, pooling: Pooling, kernel: Kernel, cpu: Cpu) -> Self {
        let config = weights.config;
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let epsilon = config.layer_norm_eps as f32;
        let linear = |w: &[f32], b| kernel.pack(cpu, w, b);
        let pack = |layer| pack(layer, hidden / heads, epsilon, linear);
        Encoder {
            hidden,
            heads,
            max_tokens: config.max_position_embeddings,
            pooling,
            kernel,
            attention: kernel.attention(cpu, hidden / heads),
            words: weights.words,
            positions: weights.positions,
            segments: weights.segments,
            norm: Norm::new(weights.norm, epsilon),
            layers: weights.layers.into_iter().map(pack).collect(),
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

    /// The arithmetic it runs in.
    pub fn kernel(&self) -> Kernel {
        self.kernel
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
        let tables = self.words.len() + self.positions.len() + self.segments.len();
        linears.map(|linear| linear.resident_bytes()).sum::<usize>() + tables * size_of::<f32>()
    }

    /// Embeds one text, given as ids with its special tokens: a unit vector `dimensions()` long.
    ///
    /// Cost at MiniLM's shape: 21 MFLOP a token plus 9 kFLOP a token and token. Panics on no ids,
    /// on more than [`Encoder::max_tokens`] and on an id outside the vocabulary: the tokenizer in
    /// front guarantees all three.
    pub fn encode(&self, ids: &[u32], scratch: &mut Scratch) -> Vec<f32> {
        self.pass(&[ids], scratch).remove(0)
    }

    /// Embeds texts, as [`Encoder::encode`] would one by one, bitwise; short ones share passes.
    pub fn encode_all(&self, texts: &[&[u32]], scratch: &mut Scratch) -> Vec<Vec<f32>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |ids: &&&[u32]| {
                tokens += ids.len();
                tokens <= PASS_TOKENS
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            vectors.append(&mut self.pass(now, scratch));
            rest = later;
        }
        vectors
    }

    /// One pass: all texts of it through all layers.
    fn pass(&self, texts: &[&[u32]], scratch: &mut Scratch) -> Vec<Vec<f32>> {
        let sequences: Vec<_> = texts.iter().map(|ids| (*ids, None)).collect();
        let spans = self.states(&sequences, scratch);
        let vector = |span: &Range<usize>| {
            let states = &scratch.states[span.start * self.hidden..span.end * self.hidden];
            let mut vector = self.pool(states);
            math::normalize(&mut vector);
            vector
        };
        spans.iter().map(vector).collect()
    }

    /// Runs sequences, each ids and optionally the segment of each, through all layers; where the
    /// states of each lie in `scratch.states`, by row.
    pub(crate) fn states(
        &self,
        sequences: &[(&[u32], Option<&[u8]>)],
        scratch: &mut Scratch,
    ) -> Vec<Range<usize>> {
        let mut spans = Vec::with_capacity(sequences.len());
        let mut rows = 0;
        for (ids, _) in sequences {
            assert!(
                !ids.is_empty() && ids.len() <= self.max_tokens,
                "{} ids, the model takes 1 to its maximum",
                ids.len()
            );
            spans.push(rows..rows + ids.len());
            rows += ids.len();
        }
        let states = sized(&mut scratch.states, rows * self.hidden);
        for ((ids, segments), span) in sequences.iter().zip(&spans) {
            self.embed(
                ids,
                *segments,
                &mut states[span.start * self.hidden..span.end * self.hidden],
            );
        }
        let mut norm = &self.norm;
        for layer in &self.layers {
            self.attend(layer, norm, &spans, rows, scratch);
            self.feed_forward(layer, rows, scratch);
            norm = &layer.norm;
        }
        norm.apply(&mut scratch.states[..rows * self.hidden]);
        spans
    }

    /// The states of one sequence after its run, `[tokens, hidden]`.
    pub(crate) fn rows_of<'a>(&self, span: &Range<usize>, scratch: &'a Scratch) -> &'a [f32] {
        &scratch.states[span.start * self.hidden..span.end * self.hidden]
    }

    fn embed(&self, ids: &[u32], segments: Option<&[u8]>, states: &mut [f32]) {
        let rows = states.chunks_exact_mut(self.hidden);
        let positions = self.positions.chunks_exact(self.hidden);
        for (i, ((&id, state), position)) in ids.iter().zip(rows).zip(positions).enumerate() {
            let segment = segments.map_or(0, |segments| usize::from(segments[i]));
            let segment = &self.segments[segment * self.hidden..][..self.hidden];
            let word = &self.words[id as usize * self.hidden..][..self.hidden];
            for (((x, &w), &p), &s) in state.iter_mut().zip(word).zip(position).zip(segment) {
                *x = w + (p + s);
            }
        }
    }

    /// x = LayerNorm(x), by the norm before this layer; x = x + attention(x).
    fn attend(
        &self,
        layer: &Layer,
        norm: &Norm,
        spans: &[Range<usize>],
        rows: usize,
        scratch: &mut Scratch,
    ) {
        let hidden = self.hidden;
        let columns = layer.qkv.outputs() / self.heads;
        let width = hidden / self.heads;
        let x = &mut scratch.states[..rows * hidden];
        let head = sized(&mut scratch.head, rows * columns);
        let context = sized(&mut scratch.context, rows * hidden);
        layer.qkv.pack_normalized(rows, norm, x, &mut scratch.tiles);
        for h in 0..self.heads {
            let of_head = h * columns..(h + 1) * columns;
            layer
                .qkv
                .apply(&scratch.tiles, of_head, Epilogue::Store, head, columns);
            for span in spans {
                let head = &head[span.start * columns..span.end * columns];
                let context = &mut context[span.start * hidden + h * width..];
                let scratch = &mut scratch.attention;
                self.attention
                    .attend(span.len(), head, scratch, context, width, hidden);
            }
        }
        layer
            .attention_out
            .pack_rows(rows, context, &mut scratch.tiles);
        layer
            .attention_out
            .apply(&scratch.tiles, 0..hidden, Epilogue::Add, x, hidden);
    }

    /// x = LayerNorm(x); x = x + GELU(x·W1 + b)·W2 + b. A block of rows at a time.
    fn feed_forward(&self, layer: &Layer, rows: usize, scratch: &mut Scratch) {
        let hidden = self.hidden;
        let columns = layer.widen.outputs();
        let block_rows = rows.div_ceil(rows.div_ceil(WIDE_ROWS));
        let wide = sized(&mut scratch.wide, block_rows * columns);
        let erf = if self.kernel == Kernel::F32 {
            Erf::Exact
        } else {
            Erf::Short
        };
        for x in scratch.states[..rows * hidden].chunks_mut(block_rows * hidden) {
            let rows = x.len() / hidden;
            let norm = &layer.attention_norm;
            layer
                .widen
                .pack_normalized(rows, norm, x, &mut scratch.tiles);
            layer.widen.apply(
                &scratch.tiles,
                0..columns,
                Epilogue::Gelu(erf),
                wide,
                columns,
            );
            layer.narrow.pack_rows(rows, wide, &mut scratch.wide_tiles);
            layer
                .narrow
                .apply(&scratch.wide_tiles, 0..hidden, Epilogue::Add, x, hidden);
        }
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

/// Packs one layer: q, k and v head by head, log₂e/√d in q.
fn pack(
    layer: LayerWeights,
    width: usize,
    epsilon: f32,
    linear: impl Fn(&[f32], Vec<f32>) -> Box<dyn PackedLinear>,
) -> Layer {
    let [query, key, value, attention_out, widen, narrow] = layer.linears;
    let (weight, bias) = by_head([&query, &key, &value], width);
    let [attention_norm, norm] = layer.norms.map(|norm| Norm::new(norm, epsilon));
    Layer {
        qkv: linear(&weight, bias),
        attention_out: linear(&attention_out.0, attention_out.1),
        attention_norm,
        widen: linear(&widen.0, widen.1),
        narrow: linear(&narrow.0, narrow.1),
        norm,
    }
}

/// q, k and v of each head side by side, each filled up to whole panels with zero columns.
fn by_head(qkv: [&Linear; 3], width: usize) -> Linear {
    let scale = std::f64::consts::LOG2_E / (width as f64).sqrt();
    let padded = width.next_multiple_of(PANEL_COLUMNS);
    let hidden = qkv[0].1.len();
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for head in 0..hidden / width {
        for (i, (w, b)) in qkv.into_iter().enumerate() {
            let scaled = |&x: &f32| {
                if i == 0 {
                    (f64::from(x) * scale) as f32
                } else {
                    x
                }
            };
            let outputs = head * width..(head + 1) * width;
            weight.extend(
                w[outputs.start * hidden..outputs.end * hidden]
                    .iter()
                    .map(scaled),
            );
            bias.extend(b[outputs].iter().map(scaled));
            weight.resize(weight.len() + (padded - width) * hidden, 0.0);
            bias.resize(bias.len() + padded - width, 0.0);
        }
    }
    (weight, bias)
}
