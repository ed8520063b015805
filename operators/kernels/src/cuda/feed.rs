//! Launches of `cuda/feed_hopper.cu`: x = LayerNorm(x + GELU(x·W1ᵀ + b1)·W2ᵀ + b2), in one kernel.

use super::cluster::Spread;
use super::device::{Arg, Fault, Kind, Launch, Tensor, blocks, int};
use super::join::HIDDEN;
use super::norm::Norm;

/// Rows of x that a block makes, and of its boxes.
const ROWS: usize = 64;
/// Rows of W1 and of W2 that a cluster's blocks bring together, each a box of its share.
const PART: usize = 128;
/// Columns of a box that the copy engine brings.
const DEPTH: usize = 64;
/// Room to begin at a multiple of 1,024, 64×384 of x, two chunks of 64×128 between, a ring of three stages of
/// 128×64 of W1 and one of two of 384×64 of W2, two sums of a row by two groups, twelve barriers.
pub(super) const SHARED_BYTES: u32 =
    1024 + 2 * (64 * 384 + 2 * 64 * 128 + 3 * 128 * 64 + 2 * 384 * 64) + 2 * 2 * 64 * 4 + 96;

/// The operands. Where it fits: [`super::join::Join::fits`].
#[derive(Debug, Clone, Copy)]
pub struct Feed {
    /// One `int` on the device: how many rows the batch really has.
    pub count: Tensor,
    /// W1 `[wide, 384]` and b1 `[1, wide]`, in f32.
    pub widen: (Tensor, Tensor),
    /// W2 `[384, wide]` and b2 `[1, 384]`, in f32.
    pub narrow: (Tensor, Tensor),
    /// The norm behind the sum.
    pub norm: Norm,
    /// `[capacity, 384]`, read and written in place.
    pub x: Tensor,
}

impl Feed {
    /// The launch; its grid has a block a multiprocessor at most, in clusters that share the weights' stream. Fails on
    /// shapes that disagree and on an inner width that is no multiple of 8. Cost: 4 · rows · wide · 384 operations;
    /// memory of x twice; weights from L2 once for 64 rows of each block of a cluster.
    pub fn launch(&self, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        let wide = self.widen.0.rows;
        self.count.expect("the count", 1, 1, Kind::Int)?;
        self.x.expect("x", 0, HIDDEN, Kind::F16)?;
        let (first, second) = (self.widen, self.narrow);
        first.0.expect("the first weight", 1, HIDDEN, Kind::F16)?;
        second
            .0
            .expect("the second weight", HIDDEN, wide, Kind::F16)?;
        first.1.expect("the first bias", 1, wide, Kind::F32)?;
        second.1.expect("the second bias", 1, HIDDEN, Kind::F32)?;
        self.norm.gain.expect("the gain", 1, HIDDEN, Kind::F32)?;
        self.norm.shift.expect("the shift", 1, HIDDEN, Kind::F32)?;
        if second.0.rows != HIDDEN || !wide.is_multiple_of(8) {
            return Err(Fault::Shape(format!(
                "the second weight is {}, expected {HIDDEN} rows and a multiple of 8 columns",
                second.0
            )));
        }
        let grid = spread.into().grid(blocks(self.x.rows, ROWS)?, 1);
        Ok(Launch {
            kernel: grid.kernel([
                "feed_hopper_384",
                "feed_hopper_384_by2",
                "feed_hopper_384_by4",
            ]),
            placement: grid.placement,
            grid: grid.grid,
            threads: 384,
            shared_bytes: SHARED_BYTES,
            args: vec![
                Arg::boxes(self.x, ROWS, DEPTH),
                Arg::boxes(first.0, grid.share(PART), DEPTH),
                Arg::boxes(second.0, grid.share(PART), DEPTH),
                Arg::Address(self.count.address),
                Arg::Address(first.1.address),
                Arg::Address(second.1.address),
                Arg::Address(self.x.address),
                Arg::Address(self.norm.gain.address),
                Arg::Address(self.norm.shift.address),
                int(wide)?,
                Arg::Float(self.norm.epsilon),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::Cluster;
    use super::*;

    #[test]
    fn shapes_that_disagree_are_refused() {
        let tensor = |address: u64, rows: usize, columns: usize, kind: Kind| Tensor {
            address,
            rows,
            columns,
            kind,
        };
        let row = |address: u64, columns: usize| tensor(address, 1, columns, Kind::F32);
        let good = Feed {
            count: tensor(4, 1, 1, Kind::Int),
            widen: (tensor(16, 1536, HIDDEN, Kind::F16), row(32, 1536)),
            narrow: (tensor(48, HIDDEN, 1536, Kind::F16), row(64, HIDDEN)),
            norm: Norm {
                gain: row(80, HIDDEN),
                shift: row(96, HIDDEN),
                epsilon: 1e-12,
            },
            x: tensor(112, 200, HIDDEN, Kind::F16),
        };
        let launch = good.launch(132).unwrap();
        assert_eq!(launch.grid(), [4, 1, 1]);
        assert!(launch.shared_bytes() <= 227 * 1024);
        let by2 = Spread::from(132).by(Cluster::Two);
        assert_eq!(good.launch(by2).unwrap().kernel(), "feed_hopper_384_by2");
        let bad = [
            Feed {
                x: tensor(112, 200, 768, Kind::F16),
                ..good
            },
            Feed {
                widen: (tensor(16, 1528, HIDDEN, Kind::F16), row(32, 1528)),
                ..good
            },
            Feed {
                widen: (good.widen.0, row(32, 768)),
                ..good
            },
            Feed {
                narrow: (tensor(48, 768, 1536, Kind::F16), row(64, HIDDEN)),
                ..good
            },
            Feed {
                widen: (tensor(16, 1532, HIDDEN, Kind::F16), row(32, 1532)),
                narrow: (tensor(48, HIDDEN, 1532, Kind::F16), row(64, HIDDEN)),
                ..good
            },
        ];
        for feed in bad {
            let launch = feed.launch(by2);
            assert!(matches!(launch, Err(Fault::Shape(_))), "{feed:?}");
        }
    }
}
