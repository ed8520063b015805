//! How a model is run: which kernels, of those that there are for its shape on a stage of the ladder.
//!
//! All recipes of a stage compute the same within the bars; a device decides which is fastest (bench `gpu`). Recipes
//! differ in bits, clusters apart: one engine has one recipe for all its batches.

use std::fmt;

use super::attention::WIDTH;
use super::cluster::Cluster;
use super::device::{Fault, Stage};
use super::int8::GROUP;
use super::join::Join;
use super::whole::Short;
use crate::weights::BertConfig;

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
    pub(super) fn is_fused(self) -> bool {
        matches!(self, Residual::Fused | Residual::FusedFeed)
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

/// How attention is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attention {
    /// 64 queries at a time, from rows.
    #[default]
    Tiled,
    /// A whole text's or several short texts' at a time, from planes that the product before writes a head: on Hopper,
    /// for heads of [`WIDTH`].
    Heads,
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
    /// How many neighbouring blocks share weights, in products of [`Stage::Hopper`].
    pub cluster: Cluster,
    /// How attention is made.
    pub attention: Attention,
    /// How questions run.
    pub short: Short,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stage)?;
        match self.precision {
            Precision::Half => write!(f, ", residual {:?}", self.residual)?,
            Precision::Int8 => write!(f, ", int8, residual {:?}", self.residual)?,
        }
        if self.cluster != Cluster::One {
            write!(f, ", clusters of {}", self.cluster.blocks())?;
        }
        if self.attention == Attention::Heads {
            f.write_str(", attention by heads")?;
        }
        match self.short {
            Short::Launches => Ok(()),
            Short::Whole => f.write_str(", questions in one launch"),
        }
    }
}

impl Recipe {
    /// The stage's kernels as they are when nothing else is asked for.
    pub fn of(stage: Stage) -> Recipe {
        Recipe {
            stage,
            residual: Residual::default(),
            precision: Precision::default(),
            cluster: Cluster::default(),
            attention: Attention::default(),
            short: Short::default(),
        }
    }

    /// What a stage has kernels for, with models of this shape. Attention does not see where the residual is added, nor
    /// clusters how it is made, and with clusters a product has better to do than to add the residual: not every combination
    /// is listed. Questions as all others.
    pub fn all(stage: Stage, config: &BertConfig) -> Vec<Recipe> {
        use Attention::{Heads, Tiled};
        use Cluster::{Four, One, Two};
        let listed = [
            (
                Residual::InNorm,
                Precision::Half,
                Tiled,
                &[One, Two, Four][..],
            ),
            (Residual::InNorm, Precision::Half, Heads, &[Two]),
            (Residual::InProduct, Precision::Half, Tiled, &[One]),
            (Residual::Fused, Precision::Half, Tiled, &[Two]),
            (
                Residual::FusedFeed,
                Precision::Half,
                Tiled,
                &[One, Two, Four],
            ),
            (Residual::FusedFeed, Precision::Half, Heads, &[Two, Four]),
            (Residual::InNorm, Precision::Int8, Tiled, &[One, Two, Four]),
            (Residual::InNorm, Precision::Int8, Heads, &[Two]),
            (Residual::FusedFeed, Precision::Int8, Tiled, &[Two, Four]),
            (Residual::FusedFeed, Precision::Int8, Heads, &[Two, Four]),
        ];
        let of = |(residual, precision, attention, clusters): (_, _, _, &[Cluster])| {
            let of = move |&cluster: &Cluster| Recipe {
                stage,
                residual,
                precision,
                cluster,
                attention,
                short: Short::default(),
            };
            clusters.iter().map(of).collect::<Vec<Recipe>>()
        };
        let is_listed = |recipe: &Recipe| {
            recipe.stage != Stage::Hopper || recipe.residual != Residual::InProduct
        };
        let all = listed.into_iter().flat_map(of).filter(is_listed);
        all.filter(|recipe| recipe.check(config).is_ok()).collect()
    }

    /// Fails where the stage has no such kernels for models of this shape.
    pub(super) fn check(&self, config: &BertConfig) -> Result<(), Fault> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        if self.residual.is_fused() && !Join::fits(self.stage, hidden) {
            return Err(Fault::Shape(format!(
                "a product with its norm on {}, {hidden} columns, expected {} and {}",
                self.stage,
                Stage::Hopper,
                super::join::HIDDEN
            )));
        }
        let is_hopper = self.stage == Stage::Hopper;
        if self.cluster != Cluster::One && !is_hopper {
            return Err(Fault::Unavailable(format!(
                "there are no clusters on {}, they need compute capability 9.0",
                self.stage
            )));
        }
        let width = hidden / config.num_attention_heads;
        if self.attention == Attention::Heads && !(is_hopper && width == WIDTH) {
            return Err(Fault::Unavailable(format!(
                "attention by heads on {}, heads of {width}: expected {} and heads of {WIDTH}",
                self.stage,
                Stage::Hopper
            )));
        }
        match self.precision {
            Precision::Half => Ok(()),
            Precision::Int8 => self.check_bytes(hidden, wide),
        }
    }

    fn check_bytes(&self, hidden: usize, wide: usize) -> Result<(), Fault> {
        if self.stage != Stage::Hopper {
            return Err(Fault::Unavailable(format!(
                "there are no kernels of int8 for {}, they need compute capability 9.0",
                self.stage
            )));
        }
        let is_whole = hidden.is_multiple_of(GROUP) && wide.is_multiple_of(GROUP);
        let has_kernels = matches!(self.residual, Residual::InNorm | Residual::FusedFeed);
        if !is_whole || !has_kernels {
            return Err(Fault::Unavailable(format!(
                "int8 for {hidden} columns and {wide} between, residual {:?}: expected multiples of {GROUP}, and {:?} or {:?}",
                self.residual,
                Residual::InNorm,
                Residual::FusedFeed
            )));
        }
        Ok(())
    }
}
