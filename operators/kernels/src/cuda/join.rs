//! Launches of `cuda/join_hopper.cu`: x = LayerNorm(x + Y·Wᵀ + b), in one kernel.

use super::cluster::Spread;
use super::device::{Arg, Fault, Kind, Launch, Stage, Tensor, blocks, int};
use super::norm::Norm;

/// The only width of x: a thread holds a quarter of two rows, 192 sums.
pub const HIDDEN: usize = 384;
/// Rows of x that a block makes.
const ROWS: usize = 128;
/// Columns of a box that the copy engine brings.
const DEPTH: usize = 64;
/// Rows of W that a cluster's blocks bring together, each a box of its share.
const PART: usize = 128;
/// Room to begin at a multiple of 1,024, a ring of three stages of 128×64 of Y and 384×64 of W, 16 rows
/// of 144 bytes for each of 8 warps, six barriers.
const SHARED_BYTES: u32 = 1024 + 3 * (128 + 384) * 64 * 2 + 8 * 16 * 144 + 48;

/// The operands.
#[derive(Debug, Clone, Copy)]
pub struct Join {
    /// One `int` on the device: how many rows the batch really has.
    pub count: Tensor,
    /// Y, `[capacity, inputs]`.
    pub from: Tensor,
    /// `[384, inputs]`, as checkpoints have it.
    pub weight: Tensor,
    /// `[1, 384]` in f32.
    pub bias: Tensor,
    /// The norm behind the sum.
    pub norm: Norm,
    /// `[capacity, 384]`, read and written in place.
    pub x: Tensor,
}

impl Join {
    /// Whether a device of this stage can make rows of this width.
    pub fn fits(stage: Stage, hidden: usize) -> bool {
        stage == Stage::Hopper && hidden == HIDDEN
    }

    /// The launch; its grid has a block a multiprocessor at most, in clusters that share the weight's stream. Fails on shapes that disagree, on inputs
    /// that are no multiple of 8, and when `from` is `x`. Cost: 2 · rows · inputs · 384 operations; memory of
    /// `from` once and of x twice.
    pub fn launch(&self, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        let inputs = self.weight.columns;
        self.count.expect("the count", 1, 1, Kind::Int)?;
        self.weight
            .expect("the weight", HIDDEN, inputs, Kind::F16)?;
        self.from.expect("from", 0, inputs, Kind::F16)?;
        self.x.expect("x", self.from.rows, HIDDEN, Kind::F16)?;
        let Norm {
            gain,
            shift,
            epsilon,
        } = self.norm;
        for (name, row) in [
            ("the bias", self.bias),
            ("the gain", gain),
            ("the shift", shift),
        ] {
            row.expect(name, 1, HIDDEN, Kind::F32)?;
        }
        if self.weight.rows != HIDDEN || !inputs.is_multiple_of(8) {
            return Err(Fault::Shape(format!(
                "the weight is {}, expected {HIDDEN} rows and a multiple of 8 columns",
                self.weight
            )));
        }
        if self.from.address == self.x.address {
            return Err(Fault::Shape("from is also x".to_owned()));
        }
        let grid = spread.into().grid(blocks(self.from.rows, ROWS)?, 1);
        Ok(Launch {
            kernel: grid.kernel([
                "join_hopper_384",
                "join_hopper_384_by2",
                "join_hopper_384_by4",
            ]),
            placement: grid.placement,
            grid: grid.grid,
            threads: 384,
            shared_bytes: SHARED_BYTES,
            args: vec![
                Arg::boxes(self.from, ROWS, DEPTH),
                Arg::boxes(self.weight, grid.share(PART), DEPTH),
                Arg::Address(self.count.address),
                Arg::Address(self.bias.address),
                Arg::Address(self.x.address),
                Arg::Address(gain.address),
                Arg::Address(shift.address),
                int(inputs)?,
                Arg::Float(epsilon),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::Cluster;
    use super::*;

    fn tensor(address: u64, rows: usize, columns: usize, kind: Kind) -> Tensor {
        Tensor {
            address,
            rows,
            columns,
            kind,
        }
    }

    #[test]
    fn shapes_that_disagree_are_refused() {
        let good = Join {
            count: tensor(4, 1, 1, Kind::Int),
            from: tensor(16, 200, 1536, Kind::F16),
            weight: tensor(32, HIDDEN, 1536, Kind::F16),
            bias: tensor(48, 1, HIDDEN, Kind::F32),
            norm: Norm {
                gain: tensor(64, 1, HIDDEN, Kind::F32),
                shift: tensor(80, 1, HIDDEN, Kind::F32),
                epsilon: 1e-12,
            },
            x: tensor(96, 200, HIDDEN, Kind::F16),
        };
        assert_eq!(good.launch(132).unwrap().grid(), [2, 1, 1]);
        assert_eq!(good.launch(1).unwrap().grid(), [1, 1, 1]);
        let by2 = Spread::from(132).by(Cluster::Two);
        assert_eq!(good.launch(by2).unwrap().kernel(), "join_hopper_384_by2");
        let bad = [
            Join {
                x: tensor(96, 199, HIDDEN, Kind::F16),
                ..good
            },
            Join {
                x: tensor(16, 200, HIDDEN, Kind::F16),
                ..good
            },
            Join {
                from: tensor(16, 200, 768, Kind::F16),
                ..good
            },
            Join {
                weight: tensor(32, 768, 1536, Kind::F16),
                ..good
            },
            Join {
                from: tensor(16, 200, 1500, Kind::F16),
                weight: tensor(32, HIDDEN, 1500, Kind::F16),
                ..good
            },
            Join {
                bias: tensor(48, 1, HIDDEN, Kind::F16),
                ..good
            },
        ];
        for join in bad {
            let launch = join.launch(132);
            assert!(matches!(launch, Err(Fault::Shape(_))), "{join:?}");
        }
        assert!(Join::fits(Stage::Hopper, 384));
        assert!(!Join::fits(Stage::Hopper, 768) && !Join::fits(Stage::TensorCore, 384));
    }
}
