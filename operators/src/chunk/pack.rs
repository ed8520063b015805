//! Chooses among possible cuts by what is written beside them, so that an edit moves few of them.
//!
//! A region that is too large is divided at its best cut, and the halves again until all pieces
//! fit. "Best" = highest level, then the highest hash of the bytes just after the cut. The
//! pieces are the leaves of a treap whose priorities are a function of local content: the same set of
//! cuts gives the same pieces however the text came about, and an edit can only change pieces on
//! the path from the root to the edited place (Seidel and Aragon, "Randomized search trees", 1996,
//! §3: history independence; the use of local hashes follows content-defined chunking, Muthitacharoen
//! et al., "A low-bandwidth network file system", 2001).
//!
//! Plain treaps leave slivers: random division fills chunks by half. So a cut must leave a
//! margin on both sides:
//!
//! ```text
//!   size s of the region           inner window              outer window
//!   max < s ≤ 2·max                both sides ≤ max          ≥ max/4 from both ends
//!   s > 2·max                      ≥ max/2 from both ends    ≥ max/4 from both ends
//! ```
//!
//! The level is decided in the outer window (no sentence is cut while a paragraph ends in it), the
//! place in the inner one if that level occurs there. If nothing lies in the outer window (one
//! large table with a line before it), any cut will do.
//!
//! Cost: O(c log c) for c cuts, by a segment tree, whatever the hashes.

use super::Level;
use super::tokens::Units;

/// Bytes after a cut that decide its rank. Short, so that an edit further on does not move it; long
/// enough to tell list items apart.
const HASH_BYTES: usize = 40;

/// How much fits one chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Units of one chunk, overlap included.
    pub(crate) max_units: u32,
    /// Units repeated from the chunk before.
    pub(crate) overlap_units: u32,
}

/// A place where a text may be cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// First byte after the cut.
    pub(crate) at: u32,
    /// Level in the highest byte, local hash below.
    priority: u64,
}

impl Cut {
    /// A cut before byte `at`.
    pub(crate) fn new(text: &str, at: u32, level: Level) -> Cut {
        let rest = &text.as_bytes()[at as usize..];
        let rest = rest[..rest.len().min(HASH_BYTES)].trim_ascii();
        let hash = xxhash_rust::xxh3::xxh3_64(rest);
        Cut {
            at,
            priority: u64::from(level.rank()) << 56 | hash >> 8,
        }
    }
}

/// Divides a region until every piece has at most `max` units or cannot be cut.
///
/// `cuts` lie inside `region`, strictly increasing. Returns the end of each piece, increasing; the
/// last is the region's end.
pub(crate) fn split(cuts: &[Cut], region: (u32, u32), units: &Units, max: u32) -> Vec<u32> {
    let before = |at: u32| units.before(at);
    if before(region.1) - before(region.0) <= max || cuts.is_empty() {
        return vec![region.1];
    }
    // Bound i is cut i − 1; the first and the last are the region's own ends.
    let bounds: Vec<(u32, u32)> = std::iter::once(region.0)
        .chain(cuts.iter().map(|cut| cut.at))
        .chain([region.1])
        .map(|at| (at, before(at)))
        .collect();
    let tree = MaxTree::new(cuts);
    let mut ends = Vec::new();
    let mut stack = vec![(0usize, bounds.len() - 1)];
    while let Some((from, to)) = stack.pop() {
        let size = bounds[to].1 - bounds[from].1;
        let cut = (size > max)
            .then(|| choose(&bounds, &tree, from, to, max))
            .flatten();
        match cut {
            Some(cut) => {
                stack.push((cut, to));
                stack.push((from, cut));
            }
            None => ends.push(bounds[to].0),
        }
    }
    ends
}

/// The bound at which `(from, to)`, larger than `max`, is divided.
fn choose(
    bounds: &[(u32, u32)],
    tree: &MaxTree,
    from: usize,
    to: usize,
    max: u32,
) -> Option<usize> {
    let (first, last) = (bounds[from].1, bounds[to].1);
    let size = last - first;
    let within = |low: u32, high: u32| {
        let inside = &bounds[from + 1..to];
        let low = inside.partition_point(|bound| bound.1 < first + low);
        let high = inside.partition_point(|bound| bound.1 <= first + high);
        // Cut i is bound i + 1.
        tree.best(from + low, from + high.max(low))
    };
    let margin = (max / 4).max(1);
    let outer = within(margin, size - margin);
    let inner = if size <= 2 * max {
        within((size - max).max(margin), max.min(size - margin))
    } else {
        within(max / 2, size - max / 2)
    };
    let cut = match (inner, outer) {
        (Some(inner), Some(outer)) if tree.level(inner) == tree.level(outer) => Some(inner),
        (_, Some(outer)) => Some(outer),
        (_, None) => within(0, size),
    };
    cut.map(|cut| cut + 1)
}

/// Ends of pieces of `step` units each, moved back to a word's beginning where the second half of
/// the piece has one.
pub(crate) fn every(text: &str, units: &Units, step: u32) -> Vec<u32> {
    let is_word_start = |at: u32| {
        text[..at as usize]
            .chars()
            .next_back()
            .is_none_or(char::is_whitespace)
    };
    let mut ends = Vec::new();
    let mut index = 0;
    loop {
        let full = index + step.max(1);
        let Some(end) = units.start(full) else {
            ends.push(text.len() as u32);
            return ends;
        };
        let least = index + step / 2 + 1;
        let word = (least..=full)
            .rev()
            .filter_map(|unit| units.start(unit))
            .find(|at| is_word_start(*at));
        let end = word.unwrap_or(end);
        let next = units.before(end);
        // Several tokens of one character cannot be parted: go on behind it.
        index = if next > index { next } else { full };
        if ends.last().is_none_or(|last| *last < end) {
            ends.push(end);
        }
    }
}

/// A segment tree over priorities: the leftmost greatest of a range in O(log n).
struct MaxTree {
    leaves: usize,
    /// Node i has children 2i and 2i + 1; leaves begin at `leaves`.
    nodes: Vec<u64>,
}

impl MaxTree {
    fn new(cuts: &[Cut]) -> MaxTree {
        let leaves = cuts.len().next_power_of_two();
        let mut nodes = vec![0; 2 * leaves];
        for (node, cut) in nodes[leaves..].iter_mut().zip(cuts) {
            *node = cut.priority;
        }
        for node in (1..leaves).rev() {
            nodes[node] = nodes[2 * node].max(nodes[2 * node + 1]);
        }
        MaxTree { leaves, nodes }
    }

    fn level(&self, cut: usize) -> u64 {
        self.nodes[self.leaves + cut] >> 56
    }

    /// The leftmost cut with the greatest priority in `[from, to)`.
    fn best(&self, from: usize, to: usize) -> Option<usize> {
        let (mut low, mut high) = (from + self.leaves, to + self.leaves);
        // Nodes that cover the range: those met on the left side are in text order, those on the
        // right side in reverse.
        let mut left: Option<usize> = None;
        let mut right: Option<usize> = None;
        while low < high {
            if low & 1 == 1 {
                if left.is_none_or(|node| self.nodes[low] > self.nodes[node]) {
                    left = Some(low);
                }
                low += 1;
            }
            if high & 1 == 1 {
                high -= 1;
                if right.is_none_or(|node| self.nodes[high] >= self.nodes[node]) {
                    right = Some(high);
                }
            }
            low /= 2;
            high /= 2;
        }
        let mut node = match (left, right) {
            (Some(left), Some(right)) if self.nodes[right] > self.nodes[left] => right,
            (Some(left), _) => left,
            (None, right) => right?,
        };
        while node < self.leaves {
            let is_left = self.nodes[2 * node] == self.nodes[node];
            node = 2 * node + usize::from(!is_left);
        }
        Some(node - self.leaves)
    }
}
