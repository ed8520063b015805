//! Launches of `cuda/attention.cu` and `cuda/attention_heads.cu`: softmax(Q·Kᵀ / √d)·V of every text of a packed batch.

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

/// The head dimension that attention by heads is written for.
pub const WIDTH: usize = 32;
/// What its queries are multiplied by before, in the weights that make them: log₂e / √32. The kernel's exponentials are
/// powers of two of what it multiplies, and nothing else.
pub const QUERY_SCALE: f64 = std::f64::consts::LOG2_E / 5.656_854_249_492_38;
/// Keys, and then values, of 512 rows; the item's number, for each thread.
const HEADS_SHARED_BYTES: u32 = 2 * 512 * WIDTH as u32 * 2 + 4 * 128;
/// Blocks that a multiprocessor holds at once, as build.sh prints them.
const HEADS_BLOCKS: usize = 3;

/// The launch by heads: `planes` is `[3 · heads · capacity, 32]`, a plane of `capacity` rows for Q of each head, scaled
/// by [`QUERY_SCALE`], then for K, then for V. `context` is `[capacity, 32 · heads]`. Cost: 128 · length² operations a text
/// and head; keys and values are read once for [`super::batch::Bucket::queries`] queries.
pub fn launch_heads(
    batch: &OnDevice,
    planes: Tensor,
    context: Tensor,
    multiprocessors: u32,
) -> Result<Launch, Fault> {
    let (tokens, heads) = (batch.bucket.tokens, context.columns / WIDTH);
    if heads == 0 || !context.columns.is_multiple_of(WIDTH) {
        return Err(Fault::Shape(format!(
            "{} columns of context, heads are of {WIDTH}",
            context.columns
        )));
    }
    planes.expect("the planes", 3 * heads * tokens, WIDTH, Kind::F16)?;
    context.expect("the context", tokens, heads * WIDTH, Kind::F16)?;
    let most = (multiprocessors as usize * HEADS_BLOCKS / heads).max(1);
    Ok(Launch {
        placement: Placement::Alone,
        kernel: "attention_heads_d32",
        grid: [
            blocks(heads, 1)?,
            blocks(batch.bucket.items().min(most), 1)?,
            1,
        ],
        threads: 128,
        shared_bytes: HEADS_SHARED_BYTES,
        args: vec![
            Arg::Address(batch.item_count.address),
            Arg::Address(batch.items.address),
            Arg::Address(planes.address),
            Arg::Address(context.address),
            int(heads)?,
            int(tokens)?,
            int(batch.bucket.queries())?,
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::super::batch::BUCKETS;
    use super::*;

    fn halves(rows: usize, columns: usize) -> Tensor {
        Tensor {
            address: 16,
            rows,
            columns,
            kind: Kind::F16,
        }
    }

    #[test]
    fn by_heads_a_head_is_a_column_of_blocks_and_shapes_that_disagree_are_refused() {
        let batch = OnDevice::new(BUCKETS[5], 4096);
        let tokens = BUCKETS[5].tokens;
        let grid = |planes, context, multiprocessors| {
            let launch = launch_heads(&batch, planes, context, multiprocessors);
            launch.map(|launch| launch.grid())
        };
        let (planes, context) = (halves(36 * tokens, 32), halves(tokens, 384));
        assert_eq!(grid(planes, context, 132), Ok([12, 33, 1]));
        // Never fewer than a block a head, never more than there may be items.
        assert_eq!(grid(planes, context, 1), Ok([12, 1, 1]));
        let most = BUCKETS[5].items() as u32;
        assert_eq!(grid(planes, context, 100_000), Ok([12, most, 1]));
        assert!(grid(halves(36 * tokens - 1, 32), context, 132).is_err());
        assert!(grid(halves(tokens, 1152), context, 132).is_err());
        assert!(grid(planes, halves(tokens, 392), 132).is_err());
        assert!(grid(planes, halves(tokens - 1, 384), 132).is_err());
    }
}
