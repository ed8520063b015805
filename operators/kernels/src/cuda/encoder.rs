//! A model on a device: its weights, carved from one arena, and the launches of a forward pass.
//!
//! ```text
//!   x = embed + LayerNorm                  halves, [tokens, hidden]
//!   per layer   attention, feed-forward    seven launches, five or four: see `layer`
//!   vectors     pool, scale to length 1            logits   first row ─▶ tanh pooler ─▶ classifier
//! ```
//!
//! A device decides which places for the residual are fastest (bench `gpu`).
//!
//! Invariants: weights are exactly the checkpoint's, rounded to halves once, or rotated and rounded to bytes (1/√d is not
//! folded in);
//! a forward pass allocates nothing; every launch reads the batch's real counts on the device, so a
//! pass built for a bucket serves every batch that fits it.

use std::fmt;

use super::arena::{Arena, piece, shapes};
use super::batch::{Bucket, OnDevice};
use super::cluster::Cluster;
use super::device::{Device, Fault, Launch, Stage, Tensor};
use super::int8::{GROUP, Quantized};
use super::join::Join;
use super::layer::{Layer, Pass};
use super::linear::{Epilogue, Linear};
use super::load::{Dense, Loader};
use super::norm::{Norm, Tables};
use super::{norm, pool};
use crate::Pooling;
use crate::weights::{BertConfig, Weights};

/// What a text becomes.
#[derive(Debug, Clone)]
pub enum Output {
    /// A unit vector of `hidden` floats.
    Vector(Pooling),
    /// A cross-encoder's logits.
    Logits(Head),
}

impl Output {
    /// Floats that a text becomes.
    pub(super) fn width(&self, config: &BertConfig) -> usize {
        match self {
            Output::Vector(_) => config.hidden_size,
            Output::Logits(head) => head.classifier.1.len(),
        }
    }
}

/// The classification head of `BertForSequenceClassification`: (weight, bias) each, as in the file.
#[derive(Debug, Clone)]
pub struct Head {
    /// `[hidden, hidden]`, followed by tanh.
    pub pooler: (Vec<f32>, Vec<f32>),
    /// `[labels, hidden]`.
    pub classifier: (Vec<f32>, Vec<f32>),
}

/// Where the residual is added on stages 1 to 3. Stage 0's products always do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// By the LayerNorm that follows.
    #[default]
    InNorm,
    /// By the product's epilogue.
    InProduct,
    /// By the product's epilogue, which makes the LayerNorm too: stage 3, where [`Join::fits`].
    Fused(Cluster),
    /// The same behind attention, and the whole feed-forward half in one kernel.
    FusedFeed(Cluster),
}

impl Residual {
    /// Which blocks share the weights' stream, where products make the LayerNorm.
    pub(super) fn fused(self) -> Option<Cluster> {
        match self {
            Residual::Fused(cluster) | Residual::FusedFeed(cluster) => Some(cluster),
            _ => None,
        }
    }
}

/// What a layer's large products multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// What the stage has: halves, on stage 0 floats.
    #[default]
    Half,
    /// Bytes, but for attention and the product behind it: on Hopper, where `hidden` and the inner width are
    /// multiples of 128.
    Int8,
}

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Which kernels.
    pub stage: Stage,
    /// Which of the places for the residual.
    pub residual: Residual,
    /// What is multiplied.
    pub precision: Precision,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recipe {
            stage,
            residual,
            precision,
        } = self;
        match precision {
            Precision::Half => write!(f, "{stage}, residual {residual:?}"),
            Precision::Int8 => write!(f, "{stage}, int8, residual {residual:?}"),
        }
    }
}

impl Recipe {
    /// What a stage has kernels for, with models of this shape.
    pub fn all(stage: Stage, config: &BertConfig) -> Vec<Recipe> {
        use Residual::{Fused, FusedFeed, InNorm, InProduct};
        let fused = Cluster::ALL.map(FusedFeed);
        let places = [InNorm, InProduct, Fused(Cluster::One), Fused(Cluster::Two)]
            .into_iter()
            .chain(fused)
            .map(|place| (place, Precision::Half));
        let of_bytes = [InNorm, FusedFeed(Cluster::Two), FusedFeed(Cluster::Four)];
        let recipes = places.chain(of_bytes.map(|place| (place, Precision::Int8)));
        recipes
            .map(|(residual, precision)| Recipe {
                stage,
                residual,
                precision,
            })
            .filter(|recipe| recipe.check(config).is_ok())
            .collect()
    }

    /// Fails where the stage has no such kernels for models of this shape.
    pub(super) fn check(&self, config: &BertConfig) -> Result<(), Fault> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        if self.residual.fused().is_some() && !Join::fits(self.stage, hidden) {
            return Err(Fault::Shape(format!(
                "a product with its norm on {}, {hidden} columns, expected {} and {}",
                self.stage,
                Stage::Hopper,
                super::join::HIDDEN
            )));
        }
        if self.precision == Precision::Half {
            return Ok(());
        }
        if self.stage != Stage::Hopper {
            return Err(Fault::Unavailable(format!(
                "there are no kernels of int8 for {}, they need compute capability 9.0",
                self.stage
            )));
        }
        let is_whole = hidden.is_multiple_of(GROUP) && wide.is_multiple_of(GROUP);
        let has_kernels = matches!(self.residual, Residual::InNorm | Residual::FusedFeed(_));
        if !is_whole || !has_kernels {
            return Err(Fault::Unavailable(format!(
                "int8 for {hidden} columns and {wide} between, residual {:?}: expected multiples of {GROUP}, and {:?} or FusedFeed",
                self.residual,
                Residual::InNorm
            )));
        }
        Ok(())
    }
}

enum Last {
    Vector(Pooling),
    Logits { pooler: Dense, classifier: Dense },
}

/// A model's weights on a device. Plain addresses: it lives as long as the device does.
pub struct Model {
    config: BertConfig,
    recipe: Recipe,
    multiprocessors: u32,
    tables: Tables,
    norm: Norm,
    layers: Vec<Layer>,
    last: Last,
}

/// Rows for the largest batch of one slot.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    pub(super) x: Tensor,
    pub(super) qkv: Tensor,
    pub(super) context: Tensor,
    pub(super) sum: Tensor,
    pub(super) wide: Tensor,
    first: Tensor,
    pooled: Tensor,
    /// `[texts, width]`, f32: what a pass leaves.
    pub out: Tensor,
    /// With [`Precision::Int8`].
    pub(super) bytes: Option<ByteBuffers>,
}

/// x as bytes, and what is between the feed-forward products.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteBuffers {
    pub(super) x: Quantized,
    pub(super) wide: Quantized,
}

impl Model {
    /// Puts weights on the device. Fails on shapes that the stage's kernels do not take and on weights
    /// that no half can hold. Cost: one copy.
    pub fn load(
        device: &mut dyn Device,
        arena: &mut Arena,
        weights: &Weights,
        output: &Output,
        recipe: Recipe,
    ) -> Result<Model, Fault> {
        let config = weights.config.clone();
        let hidden = config.hidden_size;
        recipe.check(&config)?;
        let mut loader = Loader::new(arena, weights, output, recipe.stage);
        let tables = Tables {
            words: loader.matrix(&weights.words, hidden)?,
            positions: loader.matrix(&weights.positions, hidden)?,
            segments: loader.matrix(&weights.segments, hidden)?,
        };
        let epsilon = config.layer_norm_eps as f32;
        let first = loader.norm(&weights.norm, epsilon);
        let layers = weights.layers.iter();
        let layers = layers
            .map(|layer| Layer::load(&mut loader, layer, &config, recipe))
            .collect::<Result<Vec<Layer>, Fault>>()?;
        let last = match output {
            Output::Vector(pooling) => Last::Vector(*pooling),
            Output::Logits(head) => Last::Logits {
                pooler: loader.dense(&head.pooler)?,
                classifier: loader.dense(&head.classifier)?,
            },
        };
        loader.finish(device)?;
        Ok(Model {
            config,
            recipe,
            multiprocessors: device.multiprocessors(),
            tables,
            norm: first,
            layers,
            last,
        })
    }

    /// Floats that a text becomes.
    pub fn width(&self) -> usize {
        match &self.last {
            Last::Vector(_) => self.config.hidden_size,
            Last::Logits { classifier, .. } => classifier.0.rows,
        }
    }

    /// Which kernels run it.
    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// Rows for passes up to a bucket.
    pub fn buffers(&self, arena: &mut Arena, most: Bucket) -> Buffers {
        let shapes = shapes(&self.config, self.width(), self.recipe, most);
        let mut tensors = shapes.into_iter().map(|(rows, columns, kind)| Tensor {
            address: arena.take(rows * columns * kind.bytes()),
            rows,
            columns,
            kind,
        });
        let mut next = || tensors.next().expect("as many shapes");
        let mut buffers = Buffers {
            x: next(),
            qkv: next(),
            context: next(),
            sum: next(),
            wide: next(),
            first: next(),
            pooled: next(),
            out: next(),
            bytes: None,
        };
        if self.recipe.precision == Precision::Int8 {
            let mut quantized = || Quantized {
                bytes: next(),
                scales: next(),
            };
            buffers.bytes = Some(ByteBuffers {
                x: quantized(),
                wide: quantized(),
            });
        }
        buffers
    }

    /// The launches of one pass over a batch. Cost of building: microseconds; engines do it once a
    /// bucket.
    pub fn forward(&self, batch: &OnDevice, buffers: &Buffers) -> Result<Vec<Launch>, Fault> {
        let stage = self.recipe.stage;
        let b = buffers.within(batch.bucket);
        let launches = match b.bytes {
            Some(bytes) => {
                let (tables, norm) = (&self.tables, &self.norm);
                vec![norm::embed_int8(batch, tables, norm, b.x, bytes.x)?]
            }
            None => norm::embed(stage, batch, &self.tables, &self.norm, b.sum, b.x)?,
        };
        let mut pass = Pass {
            batch,
            buffers: &b,
            recipe: self.recipe,
            heads: self.config.num_attention_heads,
            multiprocessors: self.multiprocessors,
            launches,
        };
        for layer in &self.layers {
            pass.layer(layer)?;
        }
        let mut launches = pass.launches;
        self.finish(&mut launches, batch, &b)?;
        Ok(launches)
    }

    fn finish(&self, pass: &mut Vec<Launch>, batch: &OnDevice, b: &Buffers) -> Result<(), Fault> {
        let stage = self.recipe.stage;
        let (pooler, classifier) = match &self.last {
            Last::Vector(pooling) => {
                // Stage 0 needs floats to go through: the pooled rows, which nothing else uses then.
                pass.extend(pool::pool(stage, batch, b.x, b.pooled, b.out, *pooling)?);
                return Ok(());
            }
            Last::Logits { pooler, classifier } => (*pooler, *classifier),
        };
        let count = batch.text_count;
        pass.push(pool::gather(stage, batch, b.x, b.first)?);
        pass.push(product(count, b.first, pooler, None, b.pooled).launch(
            stage,
            Epilogue::Tanh,
            self.multiprocessors,
        )?);
        pass.push(match stage {
            Stage::Naive => product(count, b.pooled, classifier, None, b.out).launch(
                stage,
                Epilogue::Bias,
                self.multiprocessors,
            )?,
            _ => pool::logits(batch, b.pooled, classifier.0, classifier.1, b.out)?,
        });
        Ok(())
    }
}

impl Buffers {
    /// Device memory for passes up to a bucket.
    pub(super) fn room(config: &BertConfig, width: usize, recipe: Recipe, most: Bucket) -> usize {
        let shapes = shapes(config, width, recipe, most).into_iter();
        let bytes = shapes.map(|(rows, columns, kind)| piece(rows * columns * kind.bytes()));
        bytes.sum()
    }

    /// The same buffers with the rows of a smaller bucket.
    fn within(&self, bucket: Bucket) -> Buffers {
        let rows = |tensor: Tensor, rows: usize| Tensor {
            rows: rows.min(tensor.rows),
            ..tensor
        };
        Buffers {
            x: rows(self.x, bucket.tokens),
            qkv: rows(self.qkv, bucket.tokens),
            context: rows(self.context, bucket.tokens),
            sum: rows(self.sum, bucket.tokens),
            wide: rows(self.wide, bucket.tokens),
            first: rows(self.first, bucket.texts),
            pooled: rows(self.pooled, bucket.texts),
            out: rows(self.out, bucket.texts),
            bytes: self.bytes.map(|ByteBuffers { x, wide }| {
                let of = |quantized: Quantized| Quantized {
                    bytes: rows(quantized.bytes, bucket.tokens),
                    scales: rows(quantized.scales, bucket.tokens),
                };
                ByteBuffers {
                    x: of(x),
                    wide: of(wide),
                }
            }),
        }
    }
}

fn product(count: Tensor, x: Tensor, dense: Dense, residual: Option<Tensor>, y: Tensor) -> Linear {
    Linear {
        count,
        x,
        weight: dense.0,
        bias: dense.1,
        residual,
        y,
    }
}
