//! Matrix products with packed weights: the seam where bf16 and int8 kernels come in.
//!
//! A linear layer is `Y = X·Wᵀ + b`. A [`PackedLinear`] only ever *adds* `X·Wᵀ` onto what lies in
//! the output: the caller puts the bias, or bias + residual, there first, so that no kernel needs
//! an epilogue and the residual connection costs no pass of its own.
//!
//! Invariants: the result of a row depends on nothing but that row, with no thread inside; weights
//! are packed once, at load. [`multiply`], over the `gemm` crate, serves attention, whose operands
//! change with every text.

use gemm::Parallelism;

/// A linear layer whose weights were laid out for one kind of kernel.
pub trait PackedLinear: Send + Sync {
    /// Columns of the input.
    fn inputs(&self) -> usize;
    /// Columns of the output.
    fn outputs(&self) -> usize;
    /// The bias, `outputs()` long.
    fn bias(&self) -> &[f32];
    /// `output[rows, outputs] += input[rows, inputs] · Wᵀ`, both row-major and dense.
    ///
    /// Cost: 2 · rows · inputs · outputs operations. Panics when a slice is too short.
    fn accumulate(&self, rows: usize, input: &[f32], output: &mut [f32]);
    /// Bytes held for the weights.
    fn resident_bytes(&self) -> usize;
}

/// A strided matrix inside a slice: element `(r, c)` is `data[r * row_stride + c * column_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Where the elements lie; the view starts at its first.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a column to the next.
    pub column_stride: usize,
}

impl View<'_> {
    /// Elements the view reaches into its slice.
    fn reach(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `output (+)= left · right`, on the calling thread. `output` is row-major with `stride` elements
/// from a row to the next; with `onto` the product is added, else it replaces.
///
/// Panics when the shapes disagree or a view reaches past its slice.
pub fn multiply(left: View<'_>, right: View<'_>, output: &mut [f32], stride: usize, onto: bool) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "inner dimensions agree");
    assert!(
        left.reach() <= left.data.len(),
        "the left view lies in its slice"
    );
    assert!(
        right.reach() <= right.data.len(),
        "the right view lies in its slice"
    );
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        stride >= n && (m - 1) * stride + n <= output.len(),
        "the output holds the product"
    );
    // SAFETY: the assertions above bound every address `gemm` reads (`left`, `right`, shared
    // borrows) and writes (`output`, an exclusive borrow, so it overlaps neither); slices are at
    // most isize::MAX bytes, so the strides fit `isize`.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm::<f32>(
            m,
            n,
            k,
            output.as_mut_ptr(),
            1,
            stride as isize,
            onto,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
