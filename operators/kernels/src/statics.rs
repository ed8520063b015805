//! Static models: a vector for each token, the mean of a text's tokens. The cheap tier.
//!
//! ```text
//! ids ─▶ rows of the table ─▶ sum ─▶ L2 norm ─▶ vector [dimensions]
//! ```
//!
//! Reads what model2vec (`embeddings`, optionally `weights` for each token) and sentence-transformers'
//! `StaticEmbedding` (`embedding.weight`) write. Some hundred times as fast as a transformer and about
//! four fifths of its retrieval quality: below BM25 alone, so pair it with keywords.
//!
//! Invariants: a vector depends on its own ids only, bitwise. Limits: no special tokens, no position;
//! tables quantized by shared rows (model2vec's `mapping`) are refused.

use crate::math;
use crate::weights::{WeightsError, open, read};
use crate::wide::{Body, LANES, Wide, wide};

/// Names of the table, as the two families write it.
const TABLES: [&str; 2] = ["embeddings", "embedding.weight"];

/// A table of token vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticEncoder {
    dimensions: usize,
    /// `[vocabulary, dimensions]`, weighted.
    table: Vec<f32>,
}

impl StaticEncoder {
    /// Reads a `model.safetensors`. Cost: one pass over the bytes.
    pub fn parse(safetensors: &[u8]) -> Result<Self, WeightsError> {
        let file = open(safetensors)?;
        let found = TABLES
            .iter()
            .find_map(|&name| Some((name, file.tensor(name).ok()?)));
        let (name, tensor) = found.ok_or_else(|| {
            WeightsError::Tensor(format!("no tensor {} or {}", TABLES[0], TABLES[1]))
        })?;
        let &[vocabulary, dimensions] = tensor.shape() else {
            return Err(WeightsError::Tensor(format!(
                "{name} has shape {:?}, expected [tokens, dimensions]",
                tensor.shape()
            )));
        };
        if file.tensor("mapping").is_ok() {
            return Err(WeightsError::Tensor(
                "rows shared by a 'mapping' are not supported, expected a row for each token"
                    .to_owned(),
            ));
        }
        let mut table = read(&file, name, &[vocabulary, dimensions])?;
        if table.is_empty() {
            return Err(WeightsError::Tensor(format!("{name} is empty")));
        }
        if file.tensor("weights").is_ok() {
            let weights = read(&file, "weights", &[vocabulary])?;
            for (row, weight) in table.chunks_exact_mut(dimensions).zip(weights) {
                row.iter_mut().for_each(|x| *x *= weight);
            }
        }
        Ok(StaticEncoder { dimensions, table })
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Token ids are below.
    pub fn vocabulary(&self) -> usize {
        self.table.len() / self.dimensions
    }

    /// Bytes held.
    pub fn resident_bytes(&self) -> usize {
        self.table.len() * size_of::<f32>()
    }

    /// The unit vector of a text, given as ids without special tokens; zeros when there are none.
    ///
    /// Cost: one row of the table a token. Panics on an id outside the vocabulary.
    pub fn encode(&self, ids: &[u32]) -> Vec<f32> {
        let mut vector = vec![0.0; self.dimensions];
        wide(AddRows {
            encoder: self,
            ids,
            sum: &mut vector,
        });
        // The norm makes the division by the number of tokens superfluous.
        math::normalize(&mut vector);
        vector
    }
}

/// Adds rows up, token by token.
struct AddRows<'a> {
    encoder: &'a StaticEncoder,
    ids: &'a [u32],
    sum: &'a mut [f32],
}

impl Body for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        let (sums, sums_rest) = self.sum.as_chunks_mut::<LANES>();
        for &id in self.ids {
            let at = id as usize * self.encoder.dimensions;
            let row = &self.encoder.table[at..][..self.encoder.dimensions];
            let (row, row_rest) = row.as_chunks::<LANES>();
            for (sum, x) in sums.iter_mut().zip(row) {
                w.store(w.add(w.load(sum), w.load(x)), sum);
            }
            for (sum, x) in sums_rest.iter_mut().zip(row_rest) {
                *sum += x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;

    /// A file of f32 tensors.
    fn file(tensors: &[(&str, Vec<usize>, &[f32])]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn a_vector_is_the_normed_mean_of_its_tokens() {
        let table: Vec<f32> = (0..4 * 19).map(|i| (i % 13) as f32 - 5.0).collect();
        for name in TABLES {
            let model = StaticEncoder::parse(&file(&[(name, vec![4, 19], &table)])).unwrap();
            assert_eq!((model.dimensions(), model.vocabulary()), (19, 4));
            let ids = [2, 0, 2];
            let mean: Vec<f64> = (0..19)
                .map(|c| ids.iter().map(|&id| f64::from(table[id * 19 + c])).sum())
                .collect();
            let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (x, exact) in model.encode(&ids.map(|id| id as u32)).iter().zip(mean) {
                assert!((f64::from(*x) - exact / norm).abs() < 1e-6);
            }
            assert_eq!(model.encode(&[]), [0.0; 19]);
        }
    }

    #[test]
    fn token_weights_are_taken_in() {
        let tensors = [
            ("embeddings", vec![2, 2], &[1.0, 0.0, 0.0, 1.0][..]),
            ("weights", vec![2], &[3.0, 4.0][..]),
        ];
        let model = StaticEncoder::parse(&file(&tensors)).unwrap();
        assert_eq!(model.encode(&[0, 1]), [0.6, 0.8]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let message = |tensors: &[(&str, Vec<usize>, &[f32])]| {
            StaticEncoder::parse(&file(tensors))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message(&[("other", vec![1], &[0.0])]),
            "model.safetensors: no tensor embeddings or embedding.weight"
        );
        assert_eq!(
            message(&[("embeddings", vec![2], &[0.0, 0.0])]),
            "model.safetensors: embeddings has shape [2], expected [tokens, dimensions]"
        );
        let mapped = [
            ("embeddings", vec![1, 1], &[0.0][..]),
            ("mapping", vec![1], &[0.0][..]),
        ];
        assert!(message(&mapped).contains("'mapping' are not supported"));
    }
}
