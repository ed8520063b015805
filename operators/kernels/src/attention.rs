//! Multi-head self-attention of one text: softmax(Q·Kᵀ)·V for each head.
//!
//! ```text
//! qkv [S, 3·hidden] = [ Q₀ … Qₕ | K₀ … Kₕ | V₀ … Vₕ ]      (1/√d is folded into Q's weights at load)
//! per head: scores [S, S] = Q·Kᵀ ─▶ e^(x − max) in place, one pass ─▶ context[:, head] = scores·V, rows ÷ Σ
//! ```
//!
//! The division by the row's sum is applied to the d columns of the context instead of the S
//! columns of the scores. No mask: a text is never padded. Scores of one head (≤ 1 MiB at
//! 512 tokens) stay in the second-level cache.

use crate::linear::{View, multiply};
use crate::math::{scale_rows, softmax_numerators};

/// Computes `context[rows, hidden]` from `qkv[rows, 3 · hidden]`.
///
/// `scores` needs `rows · rows` elements, `sums` `rows`. Cost: 4 · rows² · hidden operations and
/// heads · rows² exponentials.
pub fn attend(
    rows: usize,
    heads: usize,
    hidden: usize,
    qkv: &[f32],
    scores: &mut [f32],
    sums: &mut [f32],
    context: &mut [f32],
) {
    let width = hidden / heads;
    let stride = 3 * hidden;
    let scores = &mut scores[..rows * rows];
    let sums = &mut sums[..rows];
    for head in 0..heads {
        let part = |which: usize| View {
            data: &qkv[which * hidden + head * width..],
            rows,
            columns: width,
            row_stride: stride,
            column_stride: 1,
        };
        let keys = View {
            rows: width,
            columns: rows,
            row_stride: 1,
            column_stride: stride,
            ..part(1)
        };
        multiply(part(0), keys, scores, rows, false);
        softmax_numerators(scores, rows, sums);
        let weights = View {
            data: scores,
            rows,
            columns: rows,
            row_stride: rows,
            column_stride: 1,
        };
        let out = &mut context[head * width..];
        multiply(weights, part(2), out, hidden, false);
        scale_rows(out, width, hidden, sums);
    }
}
