//! A device's memory: one allocation, carved once, in order.
//!
//! ```text
//!   │ weights │ slot 0: rows, block │ slot 1: rows, block │ …       every piece begins at a multiple of 256
//! ```
//!
//! One allocation is either there or not, before a single weight was copied: an engine that opens has all
//! that it will ever need. Nothing is given back but the whole, with the context.
//!
//! Invariants: pieces do not overlap; what is carved was added up before. Limits: no guard lies between
//! pieces; the kernels' tests give each tensor memory of its own.

use super::batch::Bucket;
use super::device::{Device, Fault, Kind};
use super::encoder::{Buffers, Output, Precision, Recipe};
use super::int8::GROUP;
use super::load::{kind_of, room};
use crate::weights::{BertConfig, Weights};

/// Where a piece may begin.
const ALIGNMENT: usize = 256;

/// Bytes that a piece takes.
pub(super) fn piece(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// See the module.
#[derive(Debug)]
pub struct Arena {
    at: u64,
    end: u64,
}

impl Arena {
    /// Memory for a model, and for slots with these largest batches. Fails when the device has not so much.
    pub fn new(
        device: &mut dyn Device,
        weights: &Weights,
        output: &Output,
        recipe: Recipe,
        slots: &[Bucket],
    ) -> Result<Arena, Fault> {
        let width = output.width(&weights.config);
        let of_slot = |most: &Bucket| {
            let rows = Buffers::room(&weights.config, width, recipe, *most);
            rows + piece(most.bytes())
        };
        let bytes = room(weights, output, recipe.stage) + slots.iter().map(of_slot).sum::<usize>();
        let at = device.allocate(bytes)?;
        let end = at + bytes as u64;
        Ok(Arena { at, end })
    }

    /// The next piece. Panics past the end: sizes were added up before.
    pub(super) fn take(&mut self, bytes: usize) -> u64 {
        let address = self.at;
        self.at += piece(bytes) as u64;
        assert!(self.at <= self.end, "the sizes were added up before");
        address
    }

    /// A batch's block.
    pub fn block(&mut self, most: Bucket) -> u64 {
        self.take(most.bytes())
    }
}

/// Sizes of a slot's matrices, as (rows, columns, kind), in the order of [`Buffers`]; with bytes four more.
pub(super) fn shapes(
    config: &BertConfig,
    width: usize,
    recipe: Recipe,
    most: Bucket,
) -> Vec<(usize, usize, Kind)> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let kind = kind_of(recipe.stage);
    let is_int8 = recipe.precision == Precision::Int8;
    // What is between the feed-forward products is there in one form only.
    let halves = if is_int8 { 0 } else { most.tokens };
    let mut shapes = vec![
        (most.tokens, hidden, kind),
        (most.tokens, 3 * hidden, kind),
        (most.tokens, hidden, kind),
        (most.tokens, hidden, kind),
        (halves, wide, kind),
        (most.texts, hidden, kind),
        (most.texts, hidden, kind),
        (most.texts, width, Kind::F32),
    ];
    if is_int8 {
        shapes.extend([
            (most.tokens, hidden, Kind::Byte),
            (most.tokens, 1, Kind::F32),
            (most.tokens, wide, Kind::Byte),
            (most.tokens, wide / GROUP, Kind::F32),
        ]);
    }
    shapes
}
