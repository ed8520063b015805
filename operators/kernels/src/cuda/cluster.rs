//! Clusters of blocks that share one stream of weights.
//!
//! A block that makes whole rows reads all of a product's weights for the few rows that it makes, and what that asks of
//! L2 is more than L2 gives. Blocks of a cluster take the same weights at the same time: each brings its share, and
//! the copy engine puts it into the shared memory of all of them.

use super::device::Placement;

/// How many neighbouring blocks share one stream of weights: each brings its part to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Cluster {
    /// Each has its own.
    #[default]
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
}

/// Where a persistent kernel's blocks go: a multiprocessor each at most, in clusters of this size at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// How many clusters of each size the device holds at once, a block a multiprocessor: of [`Cluster::One`] as many as it
    /// has. Blocks of a cluster are near each other, so that multiprocessors may be left over.
    pub at_once: [u32; 3],
    /// Blocks that share weights.
    pub cluster: Cluster,
}

impl From<u32> for Spread {
    /// So many multiprocessors, none of which clusters leave over; every block by itself.
    fn from(multiprocessors: u32) -> Self {
        Spread {
            at_once: Cluster::ALL.map(|cluster| multiprocessors / cluster.blocks()),
            cluster: Cluster::One,
        }
    }
}

/// A persistent grid.
pub(super) struct Grid {
    pub(super) cluster: Cluster,
    pub(super) placement: Placement,
    pub(super) grid: [u32; 3],
}

impl Spread {
    /// The same device with clusters of another size.
    pub fn by(self, cluster: Cluster) -> Spread {
        Spread { cluster, ..self }
    }

    /// For `down` tiles below each other, which may share weights, and as many beside each.
    pub(super) fn grid(self, down: u32, across: u32) -> Grid {
        let is_held = |cluster: Cluster| self.at_once[cluster as usize] > 0;
        let mut sizes = Cluster::ALL.into_iter().rev();
        // What has no rows would go along for nothing, and what the device never holds would wait for ever.
        let cluster = sizes
            .find(|&size| size <= self.cluster && size.blocks() <= down && is_held(size))
            .unwrap_or(Cluster::One);
        let tiles = down.div_ceil(cluster.blocks()) * across;
        let clusters = tiles.min(self.at_once[cluster as usize]).max(1);
        Grid {
            cluster,
            placement: match cluster {
                Cluster::One => Placement::Alone,
                _ => Placement::Clusters(cluster.blocks()),
            },
            grid: [clusters * cluster.blocks(), 1, 1],
        }
    }
}

impl Grid {
    /// Rows of a box of weights, of which all blocks of a cluster together bring `rows`.
    pub(super) fn share(&self, rows: usize) -> usize {
        rows / self.cluster.blocks() as usize
    }

    /// The kernel for clusters of this size.
    pub(super) fn kernel(&self, [one, two, four]: [&'static str; 3]) -> &'static str {
        match self.cluster {
            Cluster::One => one,
            Cluster::Two => two,
            Cluster::Four => four,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_whole_clusters_that_fit() {
        let grid = |multiprocessors, cluster, down, across| {
            let grid = Spread::from(multiprocessors).by(cluster).grid(down, across);
            (grid.cluster, grid.grid[0])
        };
        assert_eq!(grid(132, Cluster::One, 64, 6), (Cluster::One, 132));
        assert_eq!(grid(132, Cluster::Two, 64, 2), (Cluster::Two, 128));
        assert_eq!(grid(7, Cluster::Two, 64, 2), (Cluster::Two, 6));
        assert_eq!(grid(132, Cluster::Four, 5, 1), (Cluster::Four, 8));
        // Fewer tiles than blocks, and fewer multiprocessors.
        assert_eq!(grid(132, Cluster::Four, 1, 6), (Cluster::One, 6));
        assert_eq!(grid(132, Cluster::Four, 3, 6), (Cluster::Two, 24));
        assert_eq!(grid(2, Cluster::Four, 64, 6), (Cluster::Two, 2));
        assert_eq!(grid(1, Cluster::Four, 64, 6), (Cluster::One, 1));
        // Multiprocessors that clusters of four leave over.
        let uneven = Spread {
            at_once: [132, 66, 31],
            cluster: Cluster::Four,
        };
        assert_eq!(uneven.grid(64, 6).grid, [124, 1, 1]);
    }
}
