//! Launches of `cuda/attention.cu`: softmax(Q·Kᵀ / √d)·V of every text of a packed batch.

use super::batch::OnDevice;
use super::device::{Arg, Fault, Kind, Launch, Placement, Stage, Tensor, blocks, int};
use super::tiles::ATTENTION_TILE;

/// Blocks that a multiprocessor holds at once, as build.sh prints them: the persistent grid has no more,
/// or the last would begin when the first end.
fn blocks_per_multiprocessor(width: usize) -> u32 {
    if width == 32 { 4 } else { 3 }
}

/// The launch. `qkv` is `[capacity, 3 · hidden]`, `context` `[capacity, hidden]`; `heads` divides
/// hidden. Cost: 4 · length² · hidden operations a text.
pub fn launch(
    stage: Stage,
    batch: &OnDevice,
    qkv: Tensor,
    context: Tensor,
    heads: usize,
    multiprocessors: u32,
) -> Result<Launch, Fault> {
    let hidden = context.columns;
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Fault::Shape(format!("{heads} heads of {hidden} columns")));
    }
    let (width, kind) = (
        hidden / heads,
        match stage {
            Stage::Naive => Kind::F32,
            _ => Kind::F16,
        },
    );
    let tokens = batch.bucket.tokens;
    qkv.expect("qkv", tokens, 3 * hidden, kind)?;
    context.expect("the context", tokens, hidden, kind)?;
    if stage == Stage::Naive {
        return Ok(Launch {
            kernel: "attention_naive",
            placement: Placement::Alone,
            grid: [blocks(tokens * hidden, 256)?, 1, 1],
            threads: 256,
            shared_bytes: 0,
            args: vec![
                Arg::Address(batch.token_count.address),
                Arg::Address(batch.starts.address),
                Arg::Address(qkv.address),
                Arg::Address(context.address),
                int(heads)?,
                int(width)?,
            ],
        });
    }
    let kernel = match width {
        32 => "attention_f16_d32",
        64 => "attention_f16_d64",
        _ => {
            return Err(Fault::Shape(format!(
                "heads of {width} columns, the kernels are for 32 and 64"
            )));
        }
    };
    let items = blocks(batch.bucket.tiles() * heads, 1)?;
    Ok(Launch {
        kernel,
        placement: Placement::Alone,
        grid: [
            items.min(multiprocessors * blocks_per_multiprocessor(width)),
            1,
            1,
        ],
        threads: 128,
        // Queries, and two tiles of keys and of values in flight.
        shared_bytes: (5 * ATTENTION_TILE * width * 2) as u32,
        args: vec![
            Arg::Address(batch.tile_count.address),
            Arg::Address(batch.starts.address),
            Arg::Address(batch.tiles.address),
            Arg::Address(qkv.address),
            Arg::Address(context.address),
            int(heads)?,
            Arg::Float((std::f64::consts::LOG2_E / (width as f64).sqrt()) as f32),
        ],
    })
}
