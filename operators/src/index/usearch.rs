//! The only file that knows the usearch crate: an immutable graph over positions `0..n`.
//!
//! ```text
//! segment (row i) ──build, once──▶ Graph (key = i) ──search + predicate──▶ nearest positions
//! ```
//!
//! Why it is wrapped so tightly, measured or read in usearch 2.26.6 (`docs` of the index):
//! - `remove` + `add` reuses a slot, leaves stale in-links and loses recall for good (0.976 → 0.88
//!   after three turnovers); `compact` corrupts. Neither is reachable from here: a graph is built
//!   once and then only searched, dead rows are hidden by a predicate.
//! - Adding beyond capacity fails and growing reallocates: capacity is reserved before the first add.
//! - Searching while adding is a data race: a graph is published only when it is complete.
//! - Stored as bf16, added as f32: the rows *are* bf16 already, so the conversion is exact.
//!
//! Distances are not used for scores: the caller scores positions with the shard's own kernel.
//! The metric is the inner product, as rows have unit length; it costs a third of usearch's cosine.

use engine::contract::VectorIndex;
use engine::error::WorldError;

use ::usearch::{Index, IndexOptions, MetricKind, ScalarKind};

use super::kernel::Quantization;

/// Links of a node in the upper levels; the base level has twice as many (HNSW's M).
const CONNECTIVITY: usize = 16;
/// Candidates held while adding (HNSW's efConstruction).
const EXPANSION_ADD: usize = 128;

/// What usearch said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GraphError {
    /// The shard went away.
    #[error("the build was cancelled")]
    Cancelled,
    /// Memory, or a broken invariant inside the library.
    #[error("usearch: {0}")]
    Library(String),
}

fn library(error: impl std::fmt::Display) -> GraphError {
    GraphError::Library(error.to_string())
}

/// A finished graph. `Send + Sync`; searched by one thread at a time (each search takes one of its
/// contexts; one is reserved).
pub(crate) struct Graph {
    index: Index,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({})", self.index.size())
    }
}

impl Graph {
    /// Builds the graph of rows `0..count`. `read` writes one row to the buffer; `is_cancelled` is
    /// asked every 64 rows. Cost: about 0.1 to 0.3 ms a row at 384 dimensions.
    pub(crate) fn build(
        dimensions: usize,
        quantization: Quantization,
        expansion_search: usize,
        count: usize,
        mut read: impl FnMut(usize, &mut Vec<f32>),
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Graph, GraphError> {
        let options = IndexOptions {
            dimensions,
            metric: MetricKind::IP,
            quantization: match quantization {
                Quantization::Bf16 => ScalarKind::BF16,
                Quantization::F32 => ScalarKind::F32,
            },
            connectivity: CONNECTIVITY,
            expansion_add: EXPANSION_ADD,
            expansion_search,
            multi: false,
        };
        let index = Index::new(&options).map_err(library)?;
        index
            .reserve_capacity_and_threads(count.max(1), 1)
            .map_err(library)?;
        let mut row = Vec::with_capacity(dimensions);
        for position in 0..count {
            if position % 64 == 0 && is_cancelled() {
                return Err(GraphError::Cancelled);
            }
            read(position, &mut row);
            index.add(position as u64, &row).map_err(library)?;
        }
        Ok(Graph { index })
    }
}

impl VectorIndex for Graph {
    fn len(&self) -> usize {
        self.index.size()
    }

    /// Never call it when few rows are visible: it would visit them all.
    fn search(
        &self,
        question: &[f32],
        wanted: usize,
        is_visible: &dyn Fn(u32) -> bool,
    ) -> Result<Vec<u32>, WorldError> {
        if wanted == 0 || self.is_empty() {
            return Ok(Vec::new());
        }
        let matches = self
            .index
            .filtered_search(question, wanted, |key| is_visible(key as u32))
            .map_err(|error| WorldError::Service {
                service: "usearch".to_owned(),
                detail: error.to_string(),
                is_transient: false,
            })?;
        Ok(matches.keys.into_iter().map(|key| key as u32).collect())
    }

    /// Links and vectors.
    fn bytes(&self) -> usize {
        self.index.memory_usage()
    }
}

/// The instruction set that graphs of these dimensions would use on this machine, for `headwater
/// doctor`; `serial` means the SIMD feature is off.
pub fn acceleration(dimensions: usize, quantization: Quantization) -> String {
    let graph = Graph::build(dimensions, quantization, 0, 0, |_, _| (), || false);
    match graph {
        Ok(graph) => graph.index.hardware_acceleration(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use engine::testing::vector_index_laws;

    use super::*;

    #[test]
    fn a_graph_keeps_the_laws_of_an_index() {
        for quantization in [Quantization::Bf16, Quantization::F32] {
            let build = |rows: &[Vec<f32>]| -> Box<dyn VectorIndex> {
                let dimensions = rows.first().map_or(24, Vec::len);
                let read = |position: usize, row: &mut Vec<f32>| row.clone_from(&rows[position]);
                let built = Graph::build(dimensions, quantization, 96, rows.len(), read, || false);
                Box::new(built.unwrap())
            };
            vector_index_laws(&build, 0.95);
        }
    }

    #[test]
    fn the_simd_feature_is_on() {
        let graph = Graph::build(
            8,
            Quantization::Bf16,
            64,
            4,
            |position, row| {
                row.clear();
                row.extend((0..8).map(|i| if i == position { 1.0 } else { 0.0 }));
            },
            || false,
        )
        .unwrap();
        println!("usearch uses {}", acceleration(384, Quantization::Bf16));
        assert_ne!(::usearch::hardware_acceleration_compiled(), "serial");
        let question = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(graph.search(&question, 1, &|_| true).unwrap(), vec![2]);
        assert!(
            !graph
                .search(&question, 4, &|position| position != 2)
                .unwrap()
                .contains(&2)
        );
    }
}
