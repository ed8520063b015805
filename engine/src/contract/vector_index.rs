//! Near rows of a fixed set of vectors.

use crate::error::WorldError;

/// Finds rows near a question among `0..len()` unit vectors that never change.
///
/// An index is built once and then only searched: rows that die are hidden by the predicate, rows that
/// come are somebody else's until the next index is built. It proposes rows and does not score them:
/// the caller has the vectors and one arithmetic for all.
///
/// Laws, checked by `testing::vector_index_laws` for every implementation:
/// - *Sound*: every row found is below `len()` and satisfies the predicate; none comes twice; at most
///   `wanted` come.
/// - *Ordered*: nearest first, by inner product, as far as the stored precision tells.
/// - *Complete enough*: of the `wanted` nearest rows that satisfy the predicate most are found, how many
///   an implementation states; all when `wanted` is `len()` or more and everything is visible.
/// - *Stable*: equal questions find equal rows, also on another thread than the one that built it. (One
///   thread searches at a time.)
pub trait VectorIndex: Send {
    /// Rows, hidden ones included.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// At most `wanted` visible rows near a question of the rows' length.
    ///
    /// Errors: the implementation's own; the caller can scan instead. May be slow when few rows are
    /// visible, and cannot be interrupted.
    fn search(
        &self,
        question: &[f32],
        wanted: usize,
        is_visible: &dyn Fn(u32) -> bool,
    ) -> Result<Vec<u32>, WorldError>;
    /// Resident bytes.
    fn bytes(&self) -> usize;
}
