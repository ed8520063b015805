//! Matrix products with packed weights: the seam where bf16 and int8 kernels come in.
//!
//! A linear layer is `Y = X·Wᵀ + b`. A [`PackedLinear`] only ever *adds* `X·Wᵀ` onto what lies in
//! the output: the caller puts the bias, or bias + residual, there first, so that no kernel needs
//! an epilogue and the residual connection costs no pass of its own.
//!
//! Invariants: the result of a row depends on that row and the number of rows in the text only,
//! with no thread inside; weights are packed once, at load.

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

/// Full precision, over the `gemm` crate's AVX-512 / AVX2 / NEON kernels.
///
/// The weight is stored transposed, `[inputs, outputs]` row-major: the kernel reads it with unit
/// stride and packs nothing.
pub struct F32Linear {
    inputs: usize,
    outputs: usize,
    /// `[inputs, outputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl F32Linear {
    /// Packs a layer from the checkpoint's layout: `weight[outputs, inputs]` row-major.
    ///
    /// Panics when the lengths disagree; [`crate::weights`] has checked shapes before.
    pub fn pack(inputs: usize, outputs: usize, weight: &[f32], bias: Vec<f32>) -> Self {
        assert_eq!(
            weight.len(),
            inputs * outputs,
            "weight is [outputs, inputs]"
        );
        assert_eq!(bias.len(), outputs, "one bias an output");
        let mut packed = vec![0.0; inputs * outputs];
        for (row, weights) in weight.chunks_exact(inputs).enumerate() {
            for (column, &w) in weights.iter().enumerate() {
                packed[column * outputs + row] = w;
            }
        }
        F32Linear {
            inputs,
            outputs,
            weight: packed,
            bias,
        }
    }
}

impl PackedLinear for F32Linear {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn bias(&self) -> &[f32] {
        &self.bias
    }

    fn accumulate(&self, rows: usize, input: &[f32], output: &mut [f32]) {
        let (k, n) = (self.inputs, self.outputs);
        let input = View {
            data: input,
            rows,
            columns: k,
            row_stride: k,
            column_stride: 1,
        };
        let weight = View {
            data: &self.weight,
            rows: k,
            columns: n,
            row_stride: n,
            column_stride: 1,
        };
        multiply(input, weight, output, n, true);
    }

    fn resident_bytes(&self) -> usize {
        (self.weight.len() + self.bias.len()) * size_of::<f32>()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulate_adds_the_product_onto_the_output() {
        // W is [2 outputs, 3 inputs].
        let layer = F32Linear::pack(3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![0.5, -0.5]);
        let mut output = vec![10.0, 20.0, 30.0, 40.0];
        layer.accumulate(2, &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0], &mut output);
        assert_eq!(output, [11.0, 24.0, 35.0, 51.0]);
        assert_eq!(layer.bias(), [0.5, -0.5]);
    }

    #[test]
    #[should_panic(expected = "the output holds the product")]
    fn a_short_output_is_refused() {
        let layer = F32Linear::pack(1, 2, &[1.0, 1.0], vec![0.0, 0.0]);
        layer.accumulate(2, &[1.0, 1.0], &mut [0.0; 3]);
    }
}
