//! A model on a device: its weights, carved from one arena, and the launches of a forward pass.
//!
//! ```text
//!   x = embed + LayerNorm                                         halves, [tokens, hidden]
//!   per layer   qkv = x·Wqkv + b ─▶ context ─▶ sum = context·Wo + b ─▶ x = LayerNorm(x + sum)
//!               wide = GELU(x·W1 + b) ─▶ sum = wide·W2 + b ─▶ x = LayerNorm(x + sum)
//!   vectors     pool, scale to length 1            logits   first row ─▶ tanh pooler ─▶ classifier
//! ```
//!
//! Seven launches a layer. The residual is added by the LayerNorm, which has the row in registers
//! anyway, or by the product, or the product makes the LayerNorm too, which leaves five, or four with one for the
//! whole feed-forward half ([`Residual`]); a device decides which is fastest (bench `gpu`).
//!
//! Invariants: weights are exactly the checkpoint's, rounded to halves once (1/√d is not folded in);
//! a forward pass allocates nothing; every launch reads the batch's real counts on the device, so a
//! pass built for a bucket serves every batch that fits it.

use super::arena::{Arena, piece, shapes};
use super::batch::{Bucket, OnDevice};
use super::device::{Device, Fault, Launch, Stage, Tensor};
use super::feed::Feed;
use super::join::Join;
use super::linear::{Epilogue, Linear};
use super::load::{Dense, Loader, kind_of};
use super::norm::{Norm, Tables};
use super::{attention, norm, pool};
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
    Fused,
    /// The same behind attention, and the whole feed-forward half in one kernel.
    FusedFeed,
}

impl Residual {
    /// The places that kernels of a stage have for models of this width.
    pub fn all(stage: Stage, hidden: usize) -> Vec<Residual> {
        let mut all = vec![Residual::InNorm, Residual::InProduct];
        if Join::fits(stage, hidden) {
            all.extend([Residual::Fused, Residual::FusedFeed]);
        }
        all
    }

    fn is_fused(self) -> bool {
        matches!(self, Residual::Fused | Residual::FusedFeed)
    }
}

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Which kernels.
    pub stage: Stage,
    /// Which of the places for the residual.
    pub residual: Residual,
}

struct Layer {
    qkv: Dense,
    attention_out: Dense,
    attention_norm: Norm,
    widen: Dense,
    narrow: Dense,
    norm: Norm,
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
    x: Tensor,
    qkv: Tensor,
    context: Tensor,
    sum: Tensor,
    wide: Tensor,
    first: Tensor,
    pooled: Tensor,
    /// `[texts, width]`, f32: what a pass leaves.
    pub out: Tensor,
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
        if recipe.residual.is_fused() && !Join::fits(recipe.stage, hidden) {
            return Err(Fault::Shape(format!(
                "a product with its norm on {}, {hidden} columns, expected {} and {}",
                recipe.stage,
                Stage::Hopper,
                super::join::HIDDEN
            )));
        }
        let mut loader = Loader::new(arena, weights, output, recipe.stage);
        let tables = Tables {
            words: loader.matrix(&weights.words, hidden)?,
            positions: loader.matrix(&weights.positions, hidden)?,
            segments: loader.matrix(&weights.segments, hidden)?,
        };
        let epsilon = config.layer_norm_eps as f32;
        let first = loader.norm(&weights.norm, epsilon);
        let mut layers = Vec::with_capacity(weights.layers.len());
        for layer in &weights.layers {
            let [query, key, value, attention_out, widen, narrow] = &layer.linears;
            let parts = [query, key, value];
            let weight = parts.into_iter().flat_map(|(weight, _)| weight).copied();
            let bias = parts.into_iter().flat_map(|(_, bias)| bias).copied();
            let qkv = (weight.collect(), bias.collect());
            layers.push(Layer {
                qkv: loader.dense(&qkv)?,
                attention_out: loader.dense(attention_out)?,
                attention_norm: loader.norm(&layer.norms[0], epsilon),
                widen: loader.dense(widen)?,
                narrow: loader.dense(narrow)?,
                norm: loader.norm(&layer.norms[1], epsilon),
            });
        }
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
    pub fn stage(&self) -> Stage {
        self.recipe.stage
    }

    /// Rows for passes up to a bucket.
    pub fn buffers(&self, arena: &mut Arena, most: Bucket) -> Buffers {
        let kind = kind_of(self.recipe.stage);
        let shapes = shapes(&self.config, self.width(), kind, most);
        let mut tensors = shapes.into_iter().map(|(rows, columns, kind)| Tensor {
            address: arena.take(rows * columns * kind.bytes()),
            rows,
            columns,
            kind,
        });
        let mut next = || tensors.next().expect("eight shapes");
        Buffers {
            x: next(),
            qkv: next(),
            context: next(),
            sum: next(),
            wide: next(),
            first: next(),
            pooled: next(),
            out: next(),
        }
    }

    /// The launches of one pass over a batch. Cost of building: microseconds; engines do it once a
    /// bucket.
    pub fn forward(&self, batch: &OnDevice, buffers: &Buffers) -> Result<Vec<Launch>, Fault> {
        let stage = self.recipe.stage;
        let b = buffers.within(batch.bucket);
        let mut pass = norm::embed(stage, batch, &self.tables, &self.norm, b.sum, b.x)?;
        let count = batch.token_count;
        for layer in &self.layers {
            let heads = self.config.num_attention_heads;
            pass.push(product(count, b.x, layer.qkv, None, b.qkv).launch(
                stage,
                Epilogue::Bias,
                self.multiprocessors,
            )?);
            pass.push(attention::launch(
                stage,
                batch,
                b.qkv,
                b.context,
                heads,
                self.multiprocessors,
            )?);
            self.join(
                &mut pass,
                count,
                b.context,
                layer.attention_out,
                &layer.attention_norm,
                &b,
            )?;
            if self.recipe.residual == Residual::FusedFeed {
                let feed = Feed {
                    count,
                    widen: layer.widen,
                    narrow: layer.narrow,
                    norm: layer.norm,
                    x: b.x,
                };
                pass.push(feed.launch(self.multiprocessors)?);
                continue;
            }
            pass.push(product(count, b.x, layer.widen, None, b.wide).launch(
                stage,
                Epilogue::Gelu,
                self.multiprocessors,
            )?);
            self.join(&mut pass, count, b.wide, layer.narrow, &layer.norm, &b)?;
        }
        self.finish(&mut pass, batch, &b)?;
        Ok(pass)
    }

    /// x = LayerNorm(x + from·Wᵀ + b).
    fn join(
        &self,
        pass: &mut Vec<Launch>,
        count: Tensor,
        from: Tensor,
        dense: Dense,
        norm: &Norm,
        b: &Buffers,
    ) -> Result<(), Fault> {
        let stage = self.recipe.stage;
        if self.recipe.residual.is_fused() {
            let join = Join {
                count,
                from,
                weight: dense.0,
                bias: dense.1,
                norm: *norm,
                x: b.x,
            };
            pass.push(join.launch(self.multiprocessors)?);
        } else if stage == Stage::Naive || self.recipe.residual == Residual::InProduct {
            let sum = product(count, from, dense, Some(b.x), b.sum);
            pass.push(sum.launch(stage, Epilogue::Residual, self.multiprocessors)?);
            pass.push(norm::add_norm(stage, count, b.sum, None, norm, b.x)?);
        } else {
            let sum = product(count, from, dense, None, b.sum);
            pass.push(sum.launch(stage, Epilogue::Bias, self.multiprocessors)?);
            pass.push(norm::add_norm(stage, count, b.x, Some(b.sum), norm, b.x)?);
        }
        Ok(())
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
    pub(super) fn bytes(config: &BertConfig, width: usize, stage: Stage, most: Bucket) -> usize {
        let shapes = shapes(config, width, kind_of(stage), most).into_iter();
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
