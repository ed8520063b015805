//! One layer of a model: its weights, and the launches of a pass through it.
//!
//! ```text
//!   halves   qkv = x·Wqkv + b ─▶ context ─▶ sum = context·Wo + b ─▶ x = LayerNorm(x + sum)
//!            wide = GELU(x·W1 + b) ─▶ sum = wide·W2 + b ─▶ x = LayerNorm(x + sum)
//!   bytes    the same, but x is there twice, in halves and as bytes: Wqkv, W1 and W2 multiply bytes; attention,
//!            Wo (a twelfth of the products) and all sums are in halves, so nothing else is rounded to bytes
//! ```
//!
//! Seven launches. The residual is added by the LayerNorm, which has the row in registers anyway, or by
//! the product, or the product makes the LayerNorm too ([`Residual`]); bytes have the first way, and the whole
//! feed-forward half in one kernel, before which x is in halves only. With
//! [`Attention::Heads`] qkv is planes, a head each, in the same memory, and Wq and its bias are scaled.

use super::attention;
use super::batch::OnDevice;
use super::cluster::Spread;
use super::device::{Fault, Launch, Stage, Tensor};
use super::encoder::{Attention, Buffers, Precision, Recipe, Residual};
use super::feed::Feed;
use super::feed_int8::FeedInt8;
use super::int8::{Product, Quantized, Rotation};
use super::join::Join;
use super::linear::{Epilogue, Linear};
use super::load::{Dense, Loader};
use super::norm::{self, Norm};
use super::whole::LAYER_WORDS;
use crate::weights::{BertConfig, LayerWeights};

/// A layer's weights on a device.
pub(super) struct Layer {
    products: Products,
    attention_out: Dense,
    attention_norm: Norm,
    norm: Norm,
}

/// Those that come as halves or as bytes.
enum Products {
    Halves {
        qkv: Dense,
        widen: Dense,
        narrow: Dense,
    },
    Bytes {
        qkv: (Quantized, Tensor),
        widen: (Quantized, Tensor),
        narrow: (Quantized, Tensor),
    },
}

impl Layer {
    /// Puts a layer's weights where the loader collects them.
    pub(super) fn load(
        loader: &mut Loader,
        parameters: &LayerWeights,
        config: &BertConfig,
        recipe: Recipe,
    ) -> Result<Layer, Fault> {
        let [query, key, value, attention_out, widen, narrow] = &parameters.linears;
        let parts = [query, key, value];
        let weight = parts.into_iter().flat_map(|(weight, _)| weight).copied();
        let bias = parts.into_iter().flat_map(|(_, bias)| bias).copied();
        let mut qkv: (Vec<f32>, Vec<f32>) = (weight.collect(), bias.collect());
        if recipe.attention == Attention::Heads {
            // In f32, before anything is rounded.
            let of_query = qkv.0[..query.0.len()].iter_mut();
            let of_query = of_query.chain(&mut qkv.1[..query.1.len()]);
            of_query.for_each(|x| *x *= attention::QUERY_SCALE as f32);
        }
        let products = match recipe.precision {
            Precision::Half => Products::Halves {
                qkv: loader.dense(&qkv)?,
                widen: loader.dense(widen)?,
                narrow: loader.dense(narrow)?,
            },
            Precision::Int8 => Products::Bytes {
                qkv: loader.quantized(&qkv, Rotation::Columns)?,
                widen: loader.quantized(widen, Rotation::Columns)?,
                narrow: loader.quantized(narrow, Rotation::Lanes)?,
            },
        };
        let epsilon = config.layer_norm_eps as f32;
        Ok(Layer {
            products,
            attention_out: loader.dense(attention_out)?,
            attention_norm: loader.norm(&parameters.norms[0], epsilon),
            norm: loader.norm(&parameters.norms[1], epsilon),
        })
    }

    /// Where its parameters are, in the order of `whole::Layer`; nothing of bytes.
    pub(super) fn addresses(&self) -> Option<[u64; LAYER_WORDS]> {
        let Products::Halves { qkv, widen, narrow } = self.products else {
            return None;
        };
        let (products, norms) = (
            [qkv, self.attention_out, widen, narrow],
            [self.attention_norm, self.norm],
        );
        let parameters = (products.iter().map(|dense| dense.0))
            .chain(products.iter().map(|dense| dense.1))
            .chain(norms.iter().map(|norm| norm.gain))
            .chain(norms.iter().map(|norm| norm.shift));
        let mut addresses = [0; LAYER_WORDS];
        for (to, tensor) in addresses.iter_mut().zip(parameters) {
            *to = tensor.address;
        }
        Some(addresses)
    }
}

/// A pass that is being put together.
pub(super) struct Pass<'a> {
    pub(super) batch: &'a OnDevice,
    pub(super) buffers: &'a Buffers,
    pub(super) recipe: Recipe,
    pub(super) heads: usize,
    pub(super) spread: Spread,
    pub(super) launches: Vec<Launch>,
}

impl Pass<'_> {
    /// Adds a layer's launches.
    pub(super) fn layer(&mut self, layer: &Layer) -> Result<(), Fault> {
        match layer.products {
            Products::Halves { qkv, widen, narrow } => self.halves(layer, qkv, widen, narrow),
            Products::Bytes { qkv, widen, narrow } => self.bytes(layer, qkv, widen, narrow),
        }
    }

    fn halves(
        &mut self,
        layer: &Layer,
        qkv: Dense,
        widen: Dense,
        narrow: Dense,
    ) -> Result<(), Fault> {
        let b = self.buffers;
        match self.recipe.attention {
            Attention::Tiled => self.product(b.x, qkv, None, Epilogue::Bias, b.qkv)?,
            Attention::Heads => {
                let product = self.linear(b.x, qkv, None, self.planes());
                let launch = product.launch_heads(self.spread)?;
                self.launches.push(launch);
            }
        }
        self.attention()?;
        self.join(b.context, layer.attention_out, &layer.attention_norm)?;
        if self.recipe.residual == Residual::FusedFeed {
            let feed = Feed {
                count: self.batch.token_count,
                widen,
                narrow,
                norm: layer.norm,
                x: b.x,
            };
            self.launches.push(feed.launch(self.spread)?);
            return Ok(());
        }
        self.product(b.x, widen, None, Epilogue::Gelu, b.wide)?;
        self.join(b.wide, narrow, &layer.norm)
    }

    fn bytes(
        &mut self,
        layer: &Layer,
        qkv: (Quantized, Tensor),
        widen: (Quantized, Tensor),
        narrow: (Quantized, Tensor),
    ) -> Result<(), Fault> {
        let b = self.buffers;
        let bytes = b.bytes.expect("buffers of the same precision");
        let (count, spread) = (self.batch.token_count, self.spread);
        let of = |x: Quantized, (weight, bias): (Quantized, Tensor)| Product {
            count,
            x,
            weight,
            bias,
        };
        let add_norm =
            |norm: &Norm| norm::add_norm_int8(count, b.x, Some(b.sum), norm, b.x, bytes.x);
        self.launches.push(match self.recipe.attention {
            Attention::Tiled => of(bytes.x, qkv).halves(b.qkv, spread)?,
            Attention::Heads => of(bytes.x, qkv).heads(self.planes(), spread)?,
        });
        self.attention()?;
        if self.recipe.residual == Residual::FusedFeed {
            self.join(b.context, layer.attention_out, &layer.attention_norm)?;
            let feed = FeedInt8 {
                count,
                widen,
                narrow,
                norm: layer.norm,
                x: b.x,
                bytes: bytes.x,
            };
            self.launches.push(feed.launch(spread)?);
            return Ok(());
        }
        self.product(b.context, layer.attention_out, None, Epilogue::Bias, b.sum)?;
        self.launches.extend([
            add_norm(&layer.attention_norm)?,
            of(bytes.x, widen).gelu(bytes.wide, spread)?,
            of(bytes.wide, narrow).narrow(b.sum, spread)?,
            add_norm(&layer.norm)?,
        ]);
        Ok(())
    }

    fn attention(&mut self) -> Result<(), Fault> {
        let (b, multiprocessors) = (self.buffers, self.spread.at_once[0]);
        self.launches.push(match self.recipe.attention {
            Attention::Tiled => attention::launch(
                self.recipe.stage,
                self.batch,
                b.qkv,
                b.context,
                self.heads,
                multiprocessors,
            )?,
            Attention::Heads => {
                attention::launch_heads(self.batch, self.planes(), b.context, multiprocessors)?
            }
        });
        Ok(())
    }

    /// The memory of qkv, as a plane for each head of each part.
    fn planes(&self) -> Tensor {
        let qkv = self.buffers.qkv;
        Tensor {
            rows: qkv.rows * (qkv.columns / attention::WIDTH),
            columns: attention::WIDTH,
            ..qkv
        }
    }

    fn linear(
        &self,
        x: Tensor,
        (weight, bias): Dense,
        residual: Option<Tensor>,
        y: Tensor,
    ) -> Linear {
        Linear {
            count: self.batch.token_count,
            x,
            weight,
            bias,
            residual,
            y,
        }
    }

    fn product(
        &mut self,
        x: Tensor,
        dense: Dense,
        residual: Option<Tensor>,
        epilogue: Epilogue,
        y: Tensor,
    ) -> Result<(), Fault> {
        let product = self.linear(x, dense, residual, y);
        let launch = product.launch(self.recipe.stage, epilogue, self.spread)?;
        self.launches.push(launch);
        Ok(())
    }

    /// x = LayerNorm(x + from·Wᵀ + b).
    fn join(&mut self, from: Tensor, dense: Dense, norm: &Norm) -> Result<(), Fault> {
        let (stage, b) = (self.recipe.stage, self.buffers);
        let count = self.batch.token_count;
        if self.recipe.residual.is_fused() {
            let join = Join {
                count,
                from,
                weight: dense.0,
                bias: dense.1,
                norm: *norm,
                x: b.x,
            };
            self.launches.push(join.launch(self.spread)?);
            return Ok(());
        }
        let norm = if stage == Stage::Naive || self.recipe.residual == Residual::InProduct {
            self.product(from, dense, Some(b.x), Epilogue::Residual, b.sum)?;
            norm::add_norm(stage, count, b.sum, None, norm, b.x)?
        } else {
            self.product(from, dense, None, Epilogue::Bias, b.sum)?;
            norm::add_norm(stage, count, b.x, Some(b.sum), norm, b.x)?
        };
        self.launches.push(norm);
        Ok(())
    }
}
