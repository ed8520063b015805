//! Launches of `cuda/whole_hopper.cu`: a whole model for a question, in one launch.
//!
//! ```text
//!   outputs of a product   ▏ 8 ▏ 8 ▏ 8 ▏ …     tiles of 8, 16 or 32 columns: the narrowest of which there is
//!                            ▲   ▲   ▲          one a block at most, so that a phase has one round
//!                          block 0   1   2 …
//! ```
//!
//! Invariants: the same bits as the launches of the default recipe, so which of the two ran shows in the time only;
//! one launch at a time works on a model (the word that its blocks meet at is the model's).
//! Limits: see the kernel; what it does not take runs as launches.

use super::batch::{BUCKETS, Bucket, OnDevice};
use super::device::{Arg, Fault, Kind, Launch, Placement, Stage, Tensor, int};
use super::encoder::{Attention, Buffers, Precision, Recipe, Residual};
use super::norm::{HIDDEN_MAX, Norm, Tables};
use crate::Pooling;
use crate::weights::BertConfig;

/// How batches of the smallest bucket run, that is questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Short {
    /// As all others.
    #[default]
    Launches,
    /// In one launch where the kernel takes the model; off until a device has shown that it is faster.
    Whole,
}

impl Recipe {
    /// Whether the launches of this recipe give the bits that the kernel gives.
    fn default_bits(&self) -> bool {
        self.stage == Stage::Hopper
            && self.precision == Precision::Half
            && self.residual == Residual::InNorm
            && self.attention == Attention::Tiled
    }
}

/// The largest batch.
pub const MOST: Bucket = BUCKETS[0];
/// Words that the kernel reads of a layer: addresses of four weights, four biases, two gains, two shifts.
pub(super) const LAYER_WORDS: usize = 12;

const THREADS: u32 = 256;
/// Of K that lie side by side in shared memory, with the rows of a batch.
const CHUNK: usize = 64;
const CHUNK_BYTES: usize = CHUNK * 64 * 2;
const STAGES: usize = 8;
/// Biases of a tile, beginnings of texts.
const REST: usize = 32 * 4 + 32 * 4;
/// What a block may have.
const SHARED_MOST: usize = 227 * 1024;
/// Columns that a tile may have.
const COLUMNS: [usize; 3] = [8, 16, 32];

/// How a model of some shape is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    kernel: &'static str,
    /// Columns of a tile: of the product for queries, keys and values, of those to `hidden`, of the widening one.
    columns: [usize; 3],
    /// Bytes of the largest tile's weights.
    weight_bytes: usize,
    shared_bytes: usize,
    grid: u32,
}

impl Cut {
    /// Nothing where the kernel does not take such models.
    fn new(config: &BertConfig, multiprocessors: u32) -> Option<Cut> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (kernel, each) = match hidden.checked_div(config.num_attention_heads)? {
            32 => ("whole_hopper_d32", 2),
            64 => ("whole_hopper_d64", 1),
            _ => return None,
        };
        let stage = each * CHUNK;
        let is_whole = hidden.is_multiple_of(config.num_attention_heads)
            && hidden.is_multiple_of(stage)
            && inner.is_multiple_of(stage);
        if !is_whole || hidden > HIDDEN_MAX || inner == 0 || config.num_hidden_layers == 0 {
            return None;
        }
        let around = 1024 // to begin at a multiple of it
            + hidden / CHUNK * CHUNK_BYTES
            + STAGES * each * CHUNK_BYTES
            + 2 * hidden * 4
            + REST
            + config.num_hidden_layers * LAYER_WORDS * 8;
        let room = SHARED_MOST.checked_sub(around)?;
        // (outputs, inputs): of the two products to `hidden` the one with more inputs.
        let products = [
            (3 * hidden, hidden),
            (hidden, hidden.max(inner)),
            (inner, hidden),
        ];
        let mut cut = Cut {
            kernel,
            columns: [0; 3],
            weight_bytes: 0,
            shared_bytes: 0,
            grid: 1,
        };
        for (to, (outputs, inputs)) in cut.columns.iter_mut().zip(products) {
            let fits = |columns: &&usize| **columns * inputs * 2 <= room;
            let is_one_round =
                |columns: &&usize| outputs.div_ceil(**columns) <= multiprocessors as usize;
            let mut fitting = COLUMNS.iter().filter(fits);
            let widest = fitting.clone().next_back()?;
            *to = *fitting.find(is_one_round).unwrap_or(widest);
            cut.weight_bytes = cut.weight_bytes.max(*to * inputs * 2);
            let tiles = outputs.div_ceil(*to) as u32;
            // More blocks than tiles would only make the barrier dearer.
            cut.grid = cut.grid.max(tiles.min(multiprocessors));
        }
        cut.shared_bytes = around + cut.weight_bytes;
        Some(cut)
    }
}

/// A model that runs in one launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    cut: Cut,
    /// [`LAYER_WORDS`] a layer.
    layers: Tensor,
    /// The word that blocks meet at; 0 at first.
    met: Tensor,
}

/// What a pass reads and writes besides.
pub(super) struct Call<'a> {
    pub(super) batch: &'a OnDevice,
    pub(super) buffers: &'a Buffers,
    pub(super) tables: &'a Tables,
    pub(super) norm: &'a Norm,
    pub(super) config: &'a BertConfig,
    pub(super) pooling: Pooling,
}

impl Whole {
    /// Whether models of this shape run in one launch with this recipe.
    pub(super) fn fits(config: &BertConfig, recipe: Recipe, multiprocessors: u32) -> bool {
        recipe.short == Short::Whole
            && recipe.default_bits()
            && Cut::new(config, multiprocessors).is_some()
    }

    /// Nothing where it does not fit. `put` brings words to the device.
    pub(super) fn new(
        config: &BertConfig,
        recipe: Recipe,
        multiprocessors: u32,
        layers: &[[u64; LAYER_WORDS]],
        mut put: impl FnMut(&[u64]) -> Tensor,
    ) -> Option<Whole> {
        if !Whole::fits(config, recipe, multiprocessors) {
            return None;
        }
        Some(Whole {
            cut: Cut::new(config, multiprocessors)?,
            layers: put(layers.as_flattened()),
            met: put(&[0]),
        })
    }

    /// The launch for a batch of [`MOST`].
    pub(super) fn launch(&self, call: &Call<'_>) -> Result<Launch, Fault> {
        let Call {
            batch,
            buffers: b,
            tables,
            norm,
            config,
            ..
        } = call;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (tokens, texts, heads) = (MOST.tokens, MOST.texts, config.num_attention_heads);
        if batch.bucket != MOST {
            return Err(Fault::Shape(format!("{:?} in one launch", batch.bucket)));
        }
        for (name, table) in [
            ("words", tables.words),
            ("positions", tables.positions),
            ("segments", tables.segments),
        ] {
            table.expect(name, 1, hidden, Kind::F16)?;
        }
        norm.gain.expect("the gain", 1, hidden, Kind::F32)?;
        norm.shift.expect("the shift", 1, hidden, Kind::F32)?;
        b.qkv.expect("qkv", tokens, 3 * hidden, Kind::F16)?;
        b.context.expect("the context", tokens, hidden, Kind::F16)?;
        b.sum.expect("the sum", tokens, hidden, Kind::F16)?;
        b.wide.expect("what is between", tokens, inner, Kind::F16)?;
        b.out.expect("the vectors", texts, hidden, Kind::F32)?;
        let addresses = [
            batch.token_count,
            batch.starts,
            batch.ids,
            batch.places,
            tables.words,
            tables.positions,
            tables.segments,
            norm.gain,
            norm.shift,
            self.layers,
            b.qkv,
            b.context,
            b.sum,
            b.wide,
            b.out,
            self.met,
        ];
        let mut args: Vec<Arg> = addresses.map(|t| Arg::Address(t.address)).to_vec();
        for size in [self.layers.rows, hidden, inner, heads] {
            args.push(int(size)?);
        }
        let scale = std::f64::consts::LOG2_E / ((hidden / heads) as f64).sqrt();
        args.extend([Arg::Float(norm.epsilon), Arg::Float(scale as f32)]);
        args.push(Arg::Int(i32::from(call.pooling == Pooling::Mean)));
        for size in self.cut.columns.into_iter().chain([self.cut.weight_bytes]) {
            args.push(int(size)?);
        }
        Ok(Launch {
            kernel: self.cut.kernel,
            placement: Placement::Whole,
            grid: [self.cut.grid, 1, 1],
            threads: THREADS,
            shared_bytes: self.cut.shared_bytes as u32,
            args,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(hidden: usize, heads: usize, layers: usize, multiprocessors: u32) -> Option<Cut> {
        let config = BertConfig {
            model_type: "bert".to_owned(),
            hidden_size: hidden,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: 4 * hidden,
            max_position_embeddings: 512,
            vocab_size: 100,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".to_owned(),
            position_embedding_type: "absolute".to_owned(),
        };
        Cut::new(&config, multiprocessors)
    }

    #[test]
    fn models_that_people_use_take_one_round_a_phase() {
        let small = cut(384, 12, 6, 132).unwrap();
        assert_eq!((small.columns, small.grid), ([16, 8, 16], 96));
        let base = cut(768, 12, 12, 132).unwrap();
        assert_eq!((base.columns, base.grid), ([32, 8, 32], 96));
        assert!(base.shared_bytes <= SHARED_MOST);
        assert!(cut(384, 12, 12, 132).is_some());
    }

    #[test]
    fn what_does_not_fit_is_not_cut() {
        assert_eq!(cut(96, 3, 1, 132), None);
        assert_eq!(cut(384, 4, 1, 132), None);
        assert_eq!(cut(384, 0, 1, 132), None);
        assert_eq!(cut(1024, 16, 24, 132), None);
        // Few multiprocessors: several rounds.
        let few = cut(384, 12, 6, 2).unwrap();
        assert!(few.shared_bytes <= SHARED_MOST && few.grid == 2);
    }
}
