//! Clusters of blocks that share one stream of weights.
//!
//! A block that makes whole rows reads all of a product's weights for the few rows that it makes, and what that asks of
//! L2 is more than L2 gives. Blocks of a cluster take the same weights at the same time: each brings its share, and
//! the copy engine puts it into the shared memory of all of them.

use super::device::Placement;

/// How many neighbouring blocks share one stream of weights: each brings its part to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// Each has its own.
    One,
    /// Two.
    Two,
    /// Four.
    Four,
}

impl Cluster {
    /// All sizes.
    pub const ALL: [Cluster; 3] = [Cluster::One, Cluster::Two, Cluster::Four];

    /// How many.
    pub fn blocks(self) -> u32 {
        match self {
            Cluster::One => 1,
            Cluster::Two => 2,
            Cluster::Four => 4,
        }
    }

    pub(super) fn placement(self) -> Placement {
        match self {
            Cluster::One => Placement::Alone,
            _ => Placement::Clusters(self.blocks()),
        }
    }

    /// Blocks of a persistent grid for so many tiles: whole clusters, no more than there are multiprocessors for.
    pub(super) fn grid(self, tiles: u32, multiprocessors: u32) -> u32 {
        let most = (multiprocessors / self.blocks()).max(1);
        tiles.div_ceil(self.blocks()).min(most) * self.blocks()
    }
}
