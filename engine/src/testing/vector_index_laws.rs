//! Laws of [`VectorIndex`], and the implementation that is right by construction.

use std::collections::BTreeSet;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::contract::VectorIndex;
use crate::error::WorldError;

/// Length of the vectors of the laws.
const DIMENSIONS: usize = 24;
/// How far rounded components may put two rows in the wrong order.
const ROUNDING: f32 = 0.02;

/// Looks at every row: the oracle of the others.
pub struct ExactIndex(Vec<Vec<f32>>);

impl ExactIndex {
    /// An index of these rows.
    pub fn new(rows: Vec<Vec<f32>>) -> Self {
        ExactIndex(rows)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl VectorIndex for ExactIndex {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn search(
        &self,
        question: &[f32],
        wanted: usize,
        is_visible: &dyn Fn(u32) -> bool,
    ) -> Result<Vec<u32>, WorldError> {
        let rows = (0_u32..).zip(&self.0);
        let visible = rows.filter(|(row, _)| is_visible(*row));
        let mut scored: Vec<(f32, u32)> = visible
            .map(|(row, vector)| (dot(question, vector), row))
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(scored
            .into_iter()
            .take(wanted)
            .map(|(_, row)| row)
            .collect())
    }

    fn bytes(&self) -> usize {
        self.0.len() * DIMENSIONS * 4
    }
}

/// Panics when an implementation breaks a law of [`VectorIndex`]. `build` makes an index of rows;
/// `least_recall` is what it promises of the ten nearest on clustered rows.
pub fn vector_index_laws(build: &dyn Fn(&[Vec<f32>]) -> Box<dyn VectorIndex>, least_recall: f64) {
    for (seed, count) in [(1, 0), (2, 1), (3, 2), (4, 65), (5, 1_000), (6, 4_000)] {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows = clustered(&mut rng, count);
        let index = build(&rows);
        assert_eq!(index.len(), count);
        assert_eq!(index.is_empty(), count == 0);
        let exact = ExactIndex::new(rows.clone());
        let (mut found_of_best, mut best_of_all) = (0, 0);
        for round in 0..60 {
            let question = question(&mut rng, &rows);
            // Everything, half, a few, nothing.
            let share = [1.0, 0.5, 0.02, 0.0][round % 4];
            let hidden: BTreeSet<u32> = (0..count as u32)
                .filter(|_| !rng.random_bool(share))
                .collect();
            let is_visible = |row: u32| !hidden.contains(&row);
            let wanted = [1, 10, 37, count][round / 4 % 4];
            let found = search(&*index, &question, wanted, &is_visible);
            sound(&found, wanted, count, &is_visible);
            ordered(&found, &question, &rows);
            assert_eq!(
                search(&*index, &question, wanted, &is_visible),
                found,
                "asked again"
            );
            let best = search(&exact, &question, 10, &is_visible);
            let ten = search(&*index, &question, 10, &is_visible);
            found_of_best += best.iter().filter(|row| ten.contains(row)).count();
            best_of_all += best.len();
            if wanted >= count && hidden.is_empty() {
                assert_eq!(found.len(), count, "all rows, when all are wanted");
            }
        }
        let recall = found_of_best as f64 / best_of_all.max(1) as f64;
        assert!(
            best_of_all == 0 || recall >= least_recall,
            "recall@10 {recall:.3} of {count} rows, promised {least_recall}"
        );
        from_another_thread(index, &rows);
    }
}

fn search(
    index: &dyn VectorIndex,
    question: &[f32],
    wanted: usize,
    is_visible: &dyn Fn(u32) -> bool,
) -> Vec<u32> {
    let found = index.search(question, wanted, is_visible);
    found.unwrap_or_else(|error| panic!("a plain search: {error}"))
}

fn sound(found: &[u32], wanted: usize, count: usize, is_visible: &dyn Fn(u32) -> bool) {
    assert!(found.len() <= wanted, "{} of {wanted}", found.len());
    let distinct: BTreeSet<&u32> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "no row twice: {found:?}");
    for row in found {
        assert!((*row as usize) < count, "row {row} of {count}");
        assert!(is_visible(*row), "row {row} is hidden");
    }
}

fn ordered(found: &[u32], question: &[f32], rows: &[Vec<f32>]) {
    let scores: Vec<f32> = found
        .iter()
        .map(|row| dot(question, &rows[*row as usize]))
        .collect();
    for pair in scores.windows(2) {
        assert!(
            pair[0] >= pair[1] - ROUNDING,
            "{} before {}",
            pair[0],
            pair[1]
        );
    }
}

fn from_another_thread(index: Box<dyn VectorIndex>, rows: &[Vec<f32>]) {
    let ask = |index: &dyn VectorIndex| -> Vec<Vec<u32>> {
        let questions = rows.iter().take(8);
        let found = questions.map(|question| search(index, question, 10, &|_| true));
        found.collect()
    };
    let here = ask(&*index);
    let there = std::thread::scope(|scope| scope.spawn(|| ask(&*{ index })).join());
    assert_eq!(there.expect("it does not panic"), here);
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = dot(&vector, &vector).sqrt();
    vector.iter_mut().for_each(|x| *x /= norm);
    vector
}

/// Rows around centres, as texts lie; some of them equal.
fn clustered(rng: &mut impl Rng, count: usize) -> Vec<Vec<f32>> {
    let mut random = |scale: f32| -> Vec<f32> {
        let components = (0..DIMENSIONS).map(|_| rng.random_range(-scale..scale));
        components.collect()
    };
    let centres: Vec<Vec<f32>> = (0..8).map(|_| random(1.0)).collect();
    let mut rows: Vec<Vec<f32>> = Vec::with_capacity(count);
    for n in 0..count {
        let row = match n % 50 {
            49 => rows[n - 7].clone(),
            _ => {
                let around = random(0.3);
                let centre = &centres[n % centres.len()];
                unit(centre.iter().zip(&around).map(|(a, b)| a + b).collect())
            }
        };
        rows.push(row);
    }
    rows
}

/// Near a row, or anywhere.
fn question(rng: &mut impl Rng, rows: &[Vec<f32>]) -> Vec<f32> {
    let noise: Vec<f32> = (0..DIMENSIONS)
        .map(|_| rng.random_range(-0.2..0.2_f32))
        .collect();
    match rows.len() {
        0 => unit(noise),
        n => {
            let near = &rows[rng.random_range(0..n)];
            unit(near.iter().zip(&noise).map(|(a, b)| a + b).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_index_keeps_the_laws() {
        vector_index_laws(&|rows| Box::new(ExactIndex::new(rows.to_vec())), 1.0);
    }
}
