//! A model on a device: its weights, carved from one arena, and the launches of a forward pass.
//!
//! ```text
//!   x = embed + LayerNorm                  halves, [tokens, hidden]
//!   per layer   attention, feed-forward    seven launches, five or four: see `layer`
//!   vectors     pool, scale to length 1            logits   first row ─▶ tanh pooler ─▶ classifier
//!   a question  all of it in one launch, if the recipe says so: see `whole`
//! ```
//!
//! A device decides which [`Recipe`] is fastest (bench `gpu`).
//!
//! Invariants: weights are exactly the checkpoint's, rounded to halves once, or rotated and rounded to bytes; with
//! [`Attention::Heads`] those of queries are multiplied by log₂e / √d before;
//! a forward pass allocates nothing; every launch reads the batch's real counts on the device, so a
//! pass built for a bucket serves every batch that fits it.

use super::arena::Arena;
use super::batch::{Bucket, OnDevice};
pub use super::buffers::Buffers;
use super::cluster::{Cluster, Spread};
use super::device::{Device, Fault, Launch, Stage, Tensor};
use super::layer::{Layer, Pass};
use super::linear::{Epilogue, Linear};
use super::load::{Dense, Loader};
use super::norm::{Norm, Tables};
pub use super::recipe::{Attention, Precision, Recipe, Residual};
use super::whole::{self, Short, Whole};
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

enum Last {
    Vector(Pooling),
    Logits { pooler: Dense, classifier: Dense },
}

/// A model's weights on a device. Plain addresses: it lives as long as the device does.
pub struct Model {
    config: BertConfig,
    recipe: Recipe,
    spread: Spread,
    tables: Tables,
    norm: Norm,
    layers: Vec<Layer>,
    last: Last,
    whole: Option<Whole>,
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
        let spread = Spread {
            at_once: Cluster::ALL.map(|size| device.clusters_at_once(size.blocks())),
            cluster: recipe.cluster,
        };
        let addresses: Option<Vec<_>> = layers.iter().map(Layer::addresses).collect();
        let whole = addresses.and_then(|layers| {
            Whole::new(&config, recipe, spread.at_once[0], &layers, |words| {
                loader.words(words)
            })
        });
        loader.finish(device)?;
        let short = match whole {
            Some(_) => Short::Whole,
            None => Short::Launches,
        };
        Ok(Model {
            config,
            recipe: Recipe { short, ..recipe },
            spread,
            tables,
            norm: first,
            layers,
            last,
            whole,
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
        Buffers::take(&self.config, self.width(), self.recipe, most, arena)
    }

    /// The launches of one pass over a batch, or the one for a question ([`Short`]), of which no two may be
    /// on the device at once. Cost of building: microseconds; engines do it once a bucket.
    pub fn forward(&self, batch: &OnDevice, buffers: &Buffers) -> Result<Vec<Launch>, Fault> {
        let (Some(whole), Last::Vector(pooling)) = (&self.whole, &self.last) else {
            return self.launches(batch, buffers);
        };
        if batch.bucket != whole::MOST {
            return self.launches(batch, buffers);
        }
        let call = whole::Call {
            batch,
            buffers,
            tables: &self.tables,
            norm: &self.norm,
            config: &self.config,
            pooling: *pooling,
        };
        Ok(vec![whole.launch(&call)?])
    }

    /// The same without the one: passes of several slots may be on the device at once.
    pub fn launches(&self, batch: &OnDevice, buffers: &Buffers) -> Result<Vec<Launch>, Fault> {
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
            spread: self.spread,
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
            self.spread,
        )?);
        pass.push(match stage {
            Stage::Naive => product(count, b.pooled, classifier, None, b.out).launch(
                stage,
                Epilogue::Bias,
                self.spread,
            )?,
            _ => pool::logits(batch, b.pooled, classifier.0, classifier.1, b.out)?,
        });
        Ok(())
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
