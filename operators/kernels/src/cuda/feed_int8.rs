//! Launches of `cuda/feed_int8_hopper.cu`: x = LayerNorm(x + GELU(x·W1ᵀ + b1)·W2ᵀ + b2) of bytes, in one kernel.

use super::cluster::Spread;
use super::device::{Arg, Fault, Kind, Launch, Tensor, blocks, int};
use super::int8::{GROUP, Quantized};
use super::join::HIDDEN;
use super::norm::Norm;

/// Rows of x that a block makes.
const ROWS: usize = 64;
/// Rows of W1 and of W2 that a cluster's blocks bring together, each a box of its share.
const PART: usize = 128;
/// Room to begin at a multiple of 1,024, two tiles of 64×384 of x as bytes, four chunks of 64×128 between, a ring of three
/// stages of 128×128 of W1 and one of two of 384×128 of W2, scales of tiles and chunks, 20 barriers.
const SHARED_BYTES: u32 = 1024
    + 2 * 64 * 384
    + 4 * 64 * 128
    + 3 * 128 * 128
    + 2 * 384 * 128
    + 4 * (2 * 64 + 4 * 64)
    + 20 * 8;

/// The operands. Where it fits: [`super::join::Join::fits`], and an inner width that is a multiple of [`GROUP`].
#[derive(Debug, Clone, Copy)]
pub struct FeedInt8 {
    /// One `int` on the device: how many rows the batch really has.
    pub count: Tensor,
    /// W1 `[wide, 384]`, rotated by [`super::int8::Rotation::Columns`], and b1 `[1, wide]`, in f32.
    pub widen: (Quantized, Tensor),
    /// W2 `[384, wide]`, rotated by [`super::int8::Rotation::Lanes`], and b2 `[1, 384]`, in f32.
    pub narrow: (Quantized, Tensor),
    /// The norm behind the sum.
    pub norm: Norm,
    /// `[capacity, 384]` in halves, read and written in place.
    pub x: Tensor,
    /// What is left in x as bytes, rotated by [`super::int8::Rotation::Columns`], with a scale a row. Not read.
    pub bytes: Quantized,
}

impl FeedInt8 {
    /// The launch; its grid has a block a multiprocessor at most, in clusters that share the weights' stream. Fails on
    /// shapes that disagree. Cost: 4 · rows · wide · 384 operations; memory of x twice and of its bytes once; weights from
    /// L2 once for 64 rows of each block of a cluster.
    pub fn launch(&self, spread: impl Into<Spread>) -> Result<Launch, Fault> {
        let wide = self.wide()?;
        let grid = spread.into().grid(blocks(self.x.rows, ROWS)?, 1);
        let (first, second) = (self.widen, self.narrow);
        let boxes = |weight: Quantized| Arg::boxes(weight.bytes, grid.share(PART), GROUP);
        let addresses = [
            self.count,
            first.0.scales,
            first.1,
            second.0.scales,
            second.1,
            self.x,
            self.norm.gain,
            self.norm.shift,
        ];
        let mut args = vec![boxes(first.0), boxes(second.0)];
        args.extend(addresses.map(|tensor| Arg::Address(tensor.address)));
        args.extend([
            int(wide)?,
            Arg::Float(self.norm.epsilon),
            Arg::Address(self.bytes.bytes.address),
            Arg::Address(self.bytes.scales.address),
        ]);
        Ok(Launch {
            kernel: grid.kernel([
                "feed_int8_hopper_384",
                "feed_int8_hopper_384_by2",
                "feed_int8_hopper_384_by4",
            ]),
            placement: grid.placement,
            grid: grid.grid,
            threads: 384,
            shared_bytes: SHARED_BYTES,
            args,
        })
    }

    /// The inner width. Fails on shapes that disagree.
    fn wide(&self) -> Result<usize, Fault> {
        let (widen, narrow) = (self.widen.0, self.narrow.0);
        let wide = widen.bytes.rows;
        self.count.expect("the count", 1, 1, Kind::Int)?;
        self.x.expect("x", 0, HIDDEN, Kind::F16)?;
        widen
            .bytes
            .expect("the first weight", 1, HIDDEN, Kind::Byte)?;
        narrow
            .bytes
            .expect("the second weight", HIDDEN, wide, Kind::Byte)?;
        for (name, row, columns) in [
            ("the first weight's scales", widen.scales, wide),
            ("the first bias", self.widen.1, wide),
            ("the second weight's scales", narrow.scales, HIDDEN),
            ("the second bias", self.narrow.1, HIDDEN),
            ("the gain", self.norm.gain, HIDDEN),
            ("the shift", self.norm.shift, HIDDEN),
        ] {
            row.expect(name, 1, columns, Kind::F32)?;
        }
        let rows = self.x.rows;
        self.bytes
            .bytes
            .expect("x as bytes", rows, HIDDEN, Kind::Byte)?;
        self.bytes
            .scales
            .expect("the scales of x", rows, 1, Kind::F32)?;
        if narrow.bytes.rows != HIDDEN || !wide.is_multiple_of(GROUP) {
            return Err(Fault::Shape(format!(
                "the second weight is {}, expected {HIDDEN} rows and a multiple of {GROUP} columns",
                narrow.bytes
            )));
        }
        Ok(wide)
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
        let weight = |address: u64, rows: usize, columns: usize| Quantized {
            bytes: tensor(address, rows, columns, Kind::Byte),
            scales: row(address + 0x1000, rows),
        };
        let state = |rows: usize| Quantized {
            bytes: tensor(128, rows, HIDDEN, Kind::Byte),
            scales: tensor(144, rows, 1, Kind::F32),
        };
        let good = FeedInt8 {
            count: tensor(4, 1, 1, Kind::Int),
            widen: (weight(16, 1536, HIDDEN), row(32, 1536)),
            narrow: (weight(48, HIDDEN, 1536), row(64, HIDDEN)),
            norm: Norm {
                gain: row(80, HIDDEN),
                shift: row(96, HIDDEN),
                epsilon: 1e-12,
            },
            x: tensor(112, 300, HIDDEN, Kind::F16),
            bytes: state(300),
        };
        let grid = |cluster, multiprocessors| {
            let spread = Spread::from(multiprocessors).by(cluster);
            good.launch(spread).unwrap().grid()
        };
        assert_eq!(grid(Cluster::One, 132), [5, 1, 1]);
        assert_eq!(grid(Cluster::Two, 132), [6, 1, 1]);
        assert_eq!(grid(Cluster::Four, 7), [4, 1, 1]);
        let launch = good.launch(132).unwrap();
        assert!(launch.shared_bytes() <= 227 * 1024);
        let bad = [
            FeedInt8 {
                x: tensor(112, 300, 768, Kind::F16),
                ..good
            },
            FeedInt8 {
                bytes: state(299),
                ..good
            },
            FeedInt8 {
                widen: (weight(16, 1408, HIDDEN), row(32, 1408)),
                ..good
            },
            FeedInt8 {
                widen: (good.widen.0, row(32, 768)),
                ..good
            },
            FeedInt8 {
                narrow: (weight(48, 768, 1536), row(64, HIDDEN)),
                ..good
            },
            // What halves may have: a chunk that is not whole.
            FeedInt8 {
                widen: (weight(16, 1544, HIDDEN), row(32, 1544)),
                narrow: (weight(48, HIDDEN, 1544), row(64, HIDDEN)),
                ..good
            },
        ];
        for feed in bad {
            let launch = feed.launch(132);
            assert!(matches!(launch, Err(Fault::Shape(_))), "{feed:?}");
        }
    }
}
