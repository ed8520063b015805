//! The fused score under frozen statistics, and how far drifting statistics can move it.
//!
//! For a question with terms `t` (multiplicity `n_t`) and statistics `S = (N, Σ length, df)`:
//!
//! ```text
//! idf_t   = ln((N + 1) / (df_t + ½))                     (= ln(1 + (N − df + ½)/(df + ½)))
//! u_t(x)  = tf / (tf + 1.2 · (¼ + ¾ · length(x)/avg))    ∈ [0, 1)
//! bm25(x) = Σ n_t · idf_t · 2.2 · u_t(x)
//! f(x)    = w · (1 + cos)/2 + (1 − w) · Σ p_t · u_t(x)     p_t = n_t · idf_t / Σ n · idf
//! ```
//!
//! **Drift, convex.** Let r_t = idf_t(T)/idf_t(S0), osc = max ln r − min ln r, δ = |ln(avg_T/avg_0)|.
//! For two rows x, y the difference of their keyword parts is Σ p_t (u_t(x) − u_t(y)), each bracket
//! in [−1, 1]. (1) New weights p′ ∝ p·r move it by at most ‖p′ − p‖₁ ≤ 2·tanh(osc/4) ≤ osc/2; the
//! norm itself is known, so it is used. (2) With s = ln avg, du/ds = tf·z/(A + z)² with A = tf + 0.3
//! and z = 0.9·length/avg, which lies in [0, ¼]; so the difference of two moves by at most δ/4.
//! Hence no difference f(x) − f(y) moves by more than (1 − w)·(‖p′ − p‖₁ + δ/4): never more than
//! the bound of PROTOCOLS §5.6, (1 − w)/2 · (osc + δ), and a part of it in practice.
//!
//! **Drift, keyword only.** Raw BM25: d ln u/ds = z/(A + z) ∈ [0, 1], so each summand is multiplied
//! by a factor between e^(min ln r) and e^(max ln r), and by one between 1 and e^(±δ): the ratio of
//! two scores moves by at most a factor e^(osc + δ). Compare logarithms.
//!
//! **Vector only.** No statistics, no drift. **RRF.** Ranks have no margin: any change is suspect.

use serde::{Deserialize, Serialize};

/// BM25's k1 + 1.
pub const SATURATION: f64 = 2.2;
const K1: f64 = 1.2;
const B: f64 = 0.75;

/// How an index ranks (API §3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Scoring {
    /// Hybrid, pointwise: `weight` of the vector leg.
    Convex {
        /// w, in [0, 1].
        weight: f64,
    },
    /// Hybrid, reciprocal ranks.
    Rrf,
    /// One leg: the cosine.
    Vector,
    /// One leg: raw BM25; only rows with a positive score are visible.
    Keyword,
}

/// idf of a term that `df` of `chunks` live chunks contain. Positive for `df ≤ chunks`.
pub fn idf(chunks: f64, df: f64) -> f64 {
    ((chunks + 1.0) / (df + 0.5)).ln()
}

/// u_t(x): the share of a term's weight that a row with `tf` occurrences gets; in [0, 1).
/// `inverse_average` is 1/avg (0 while there is no text).
pub fn saturated(tf: u32, length: u32, inverse_average: f64) -> f64 {
    let tf = f64::from(tf);
    tf / (tf + K1 * (1.0 - B + B * f64::from(length) * inverse_average))
}

/// Dot product of two slices of equal length: the cosine of normalised vectors.
///
/// Eight independent accumulators, so that the compiler vectorises without reordering sums behind
/// our back: the result is the same on every machine. Summed in f32, error about 1e-6.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

impl Scoring {
    /// The score of a row that has a vector, a keyword part, or both. `keyword` is Σ p_t u_t under
    /// [`Scoring::Convex`], raw BM25 under [`Scoring::Keyword`]. `None`: the row is not visible.
    pub fn fuse(self, cos: Option<f64>, keyword: f64) -> Option<f64> {
        match self {
            Scoring::Convex { weight } => {
                let vector = cos.map_or(0.0, |cos| (1.0 + cos) / 2.0);
                Some(weight * vector + (1.0 - weight) * keyword)
            }
            Scoring::Vector => cos,
            Scoring::Keyword => (keyword > 0.0).then_some(keyword),
            Scoring::Rrf => Some(0.0),
        }
    }

    /// By how much `high` leads over `low`, two scores that may each be wrong by `epsilon`, on the
    /// scale on which [`Scoring::drift`] is measured. Not positive when they may be equal.
    pub fn lead(self, high: f64, low: f64, epsilon: f64) -> f64 {
        if high == f64::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        if low == f64::NEG_INFINITY {
            return f64::INFINITY;
        }
        match self {
            Scoring::Keyword => {
                let (high, low) = (high - epsilon, low + epsilon);
                if high <= 0.0 || low <= 0.0 {
                    return f64::NEG_INFINITY;
                }
                (high / low).ln()
            }
            _ => high - low - 2.0 * epsilon,
        }
    }

    /// How far the lead of one row over another can have moved since S0: `terms` are (n_t, idf at
    /// S0, idf now), `average` is ln(avg now / avg at S0). Exactly 0 when nothing moved; infinite
    /// when it cannot be said. Cost: two passes over the question's terms.
    pub fn drift(self, terms: impl Iterator<Item = (f64, f64, f64)> + Clone, average: f64) -> f64 {
        match self {
            Scoring::Vector => return 0.0,
            Scoring::Convex { weight } if weight >= 1.0 => return 0.0,
            Scoring::Rrf => return f64::INFINITY,
            _ => {}
        }
        let (mut old_sum, mut new_sum, mut count) = (0.0, 0.0, 0usize);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for (n, old, new) in terms.clone() {
            if old <= 0.0 || new <= 0.0 {
                return f64::INFINITY;
            }
            (old_sum, new_sum, count) = (old_sum + n * old, new_sum + n * new, count + 1);
            let moved = (new / old).ln();
            (low, high) = (low.min(moved), high.max(moved));
        }
        if count == 0 {
            return 0.0;
        }
        match self {
            Scoring::Convex { weight } => {
                let moved =
                    |(n, old, new): (f64, f64, f64)| (n * new / new_sum - n * old / old_sum).abs();
                let weights: f64 = terms.map(moved).sum();
                (1.0 - weight) * (weights + average.abs() / 4.0)
            }
            _ => (high - low) + average.abs(),
        }
    }

    /// Whether scores depend on the statistics.
    pub fn drifts(self) -> bool {
        self != Scoring::Vector
    }

    /// Whether rows are scored by their vectors.
    pub fn has_vectors(self) -> bool {
        self != Scoring::Keyword
    }

    /// Whether rows are scored by their terms.
    pub fn has_keywords(self) -> bool {
        self != Scoring::Vector
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt as _;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The bound is the heart of the cache: 200,000 random pairs of rows under random drift.
    #[test]
    fn no_difference_moves_further_than_the_bound() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut tightest = [0.0f64; 2];
        for case in 0..200_000 {
            let terms = rng.random_range(1..6);
            let weight: f64 = rng.random_range(0.0..1.0);
            let old: Vec<f64> = (0..terms).map(|_| rng.random_range(0.01..9.0)).collect();
            let ratio: Vec<f64> = (0..terms)
                .map(|_| rng.random_range(-0.7f64..0.7).exp())
                .collect();
            let averages = (
                rng.random_range(1.0..300.0f64),
                rng.random_range(1.0..300.0f64),
            );
            let mut row = |_: u8| -> Vec<(u32, u32)> {
                let length = rng.random_range(1..500);
                (0..terms)
                    .map(|_| (rng.random_range(0..6), length))
                    .collect()
            };
            let (x, y) = (row(0), row(1));
            let raw = |row: &[(u32, u32)], idf: &[f64], average: f64| -> f64 {
                let part =
                    |(at, idf): (usize, &f64)| idf * saturated(row[at].0, row[at].1, 1.0 / average);
                idf.iter().enumerate().map(part).sum()
            };
            let new: Vec<f64> = old.iter().zip(&ratio).map(|(idf, r)| idf * r).collect();
            let average = (averages.1 / averages.0).ln();

            let share = |row: &[(u32, u32)], idf: &[f64], average: f64| {
                raw(row, idf, average) / idf.iter().sum::<f64>()
            };
            let before = share(&x, &old, averages.0) - share(&y, &old, averages.0);
            let after = share(&x, &new, averages.1) - share(&y, &new, averages.1);
            let moved = (1.0 - weight) * (after - before).abs();
            let terms = || old.iter().zip(&new).map(|(old, new)| (1.0, *old, *new));
            let bound = Scoring::Convex { weight }.drift(terms(), average);
            assert!(
                moved <= bound + 1e-12,
                "case {case}: convex moved {moved}, bound {bound}"
            );
            tightest[0] = tightest[0].max(moved / bound);

            let (fx, fy) = (raw(&x, &old, averages.0), raw(&y, &old, averages.0));
            let (gx, gy) = (raw(&x, &new, averages.1), raw(&y, &new, averages.1));
            if fx > 0.0 && fy > 0.0 {
                let moved = ((gx / gy).ln() - (fx / fy).ln()).abs();
                let bound = Scoring::Keyword.drift(terms(), average);
                assert!(
                    moved <= bound + 1e-9,
                    "case {case}: keyword moved {moved}, bound {bound}"
                );
                tightest[1] = tightest[1].max(moved / bound);
            }
        }
        // A bound that nothing comes near would retract for nothing.
        assert!(tightest[0] > 0.6 && tightest[1] > 0.6, "{tightest:?}");
    }

    #[test]
    fn idf_is_the_published_form() {
        let (n, df) = (1000.0f64, 17.0);
        let published = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
        assert!((idf(n, df) - published).abs() < 1e-12);
        assert!(idf(1.0, 1.0) > 0.0);
    }

    #[test]
    fn dot_agrees_with_the_plain_sum() {
        let a: Vec<f32> = (0..77).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..77).map(|i| (i as f32 * 0.91).cos()).collect();
        let plain: f64 = a
            .iter()
            .zip(&b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum();
        assert!((f64::from(dot(&a, &b)) - plain).abs() < 1e-5);
        assert_eq!(dot(&[], &[]), 0.0);
    }
}
