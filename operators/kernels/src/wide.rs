//! Sixteen lanes of f32 on any machine: what the loops around the micro-kernel are written in.
//!
//! ```text
//! wide(body) ─▶ body.run(Avx512)   one register     16 lanes
//!             ─▶ body.run(Avx2)     two registers     8 + 8
//!             ─▶ body.run(Plain)    an array          NEON by the compiler, or whatever there is
//! ```
//!
//! The idea: rounding, GELU, softmax and LayerNorm are written once over [`Wide`], and compiled for
//! each instruction set. (The compiler's own vectors of plain loops were tried: one closure passed on
//! to an iterator, and it spills every lane; it cost half of the int8 encoder's time.)
//!
//! Invariants: a value of a [`Wide`] type exists only where the CPU has its instructions, so its
//! methods are safe. There are 16 lanes everywhere, so sums have the same order everywhere.
//! Everything that a body calls must be `#[inline(always)]`, or it loses the instructions.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::lines::{self, Line};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// An instruction set for loops over f32; a token that the CPU has it.
pub(crate) trait Wide: Copy {
    /// Sixteen f32.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` when `a` is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` when `a` is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Each lane without its sign, at most `limit`.
    fn magnitude(self, v: Self::V, limit: f32) -> Self::V;
    /// For each lane the element of `table` that the low four bits of the lane's mantissa say.
    fn lookup(self, table: &[f32; LANES], at: Self::V) -> Self::V;
    /// The lanes' Walsh–Hadamard transform: sums and differences over distances 1, 2, 4 and 8.
    fn hadamard(self, v: Self::V) -> Self::V;
    /// The bits of f32.
    fn load_bits(self, from: &[u32; LANES]) -> Self::V;
    /// Signed integers, rounded to f32.
    fn load_integers(self, from: &[u32; LANES]) -> Self::V;
    /// `v` times two to the power that stands in the low bits of `n`.
    fn scale_exponent(self, v: Self::V, n: Self::V) -> Self::V;
    /// The bits of four low bytes, from the first vector's in each word's lowest to the last one's.
    fn low_bytes(self, vectors: [Self::V; 4]) -> Self::V;
    /// The bits of pairs of bf16, low and high half of each lane's word.
    fn bf16_pairs(self, low: Self::V, high: Self::V) -> Self::V;
    /// What is left of each lane above the integer below it: in [0, 1).
    fn fraction(self, v: Self::V) -> Self::V;
    /// `v` times two to the power of the integer below `n`: zero or infinite where that is too much.
    fn scale_floor(self, v: Self::V, n: Self::V) -> Self::V;
    /// Swaps lanes for vectors: lane `j` of the new vector `i` is lane `i` of the old `j`.
    fn transpose(self, vectors: &mut [Self::V; LANES]);

    /// Folds the lanes by halves, in a fixed order.
    #[inline(always)]
    fn fold(self, v: Self::V, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = f(lanes[i], lanes[i + width]);
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The sum of the lanes.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        self.fold(v, |a, b| a + b)
    }

    /// A line's words as f32.
    #[inline(always)]
    fn store_line(self, v: Self::V, to: &mut Line) {
        self.store(v, lines::floats(to));
    }
}

/// Something to do in the widest vectors.
pub(crate) trait Body {
    /// What comes out.
    type Output;
    /// Does it. Must be `#[inline(always)]`.
    fn run<W: Wide>(self, w: W) -> Self::Output;
}

/// Runs `body` with the widest vectors of this machine. Choosing costs some loads and a branch.
#[inline(always)]
pub(crate) fn wide<B: Body>(body: B) -> B::Output {
    #[cfg(target_arch = "x86_64")]
    return x86::run(body);
    #[cfg(not(target_arch = "x86_64"))]
    body.run(Plain)
}

/// `e` in every lane, by arrays: the twin of the others in tests.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = f(lane);
    }
    out
}

impl Wide for Plain {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn magnitude(self, v: Self::V, limit: f32) -> Self::V {
        each(|i| v[i].abs().min(limit))
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], at: Self::V) -> Self::V {
        each(|i| table[at[i].to_bits() as usize % LANES])
    }

    #[inline(always)]
    fn hadamard(self, v: Self::V) -> Self::V {
        let mut v = v;
        for distance in [1, 2, 4, 8] {
            v = each(|i| {
                let other = v[i ^ distance];
                if i & distance == 0 {
                    other + v[i]
                } else {
                    other - v[i]
                }
            });
        }
        v
    }

    #[inline(always)]
    fn load_bits(self, from: &[u32; LANES]) -> Self::V {
        each(|i| f32::from_bits(from[i]))
    }

    #[inline(always)]
    fn load_integers(self, from: &[u32; LANES]) -> Self::V {
        each(|i| from[i] as i32 as f32)
    }

    #[inline(always)]
    fn scale_exponent(self, v: Self::V, n: Self::V) -> Self::V {
        each(|i| f32::from_bits((n[i].to_bits() << 23).wrapping_add(v[i].to_bits())))
    }

    #[inline(always)]
    fn low_bytes(self, vectors: [Self::V; 4]) -> Self::V {
        let byte = |x: f32| x.to_bits() as u8;
        each(|i| f32::from_bits(u32::from_le_bytes(vectors.map(|v| byte(v[i])))))
    }

    #[inline(always)]
    fn bf16_pairs(self, low: Self::V, high: Self::V) -> Self::V {
        let half = |x| u32::from(crate::math::bf16_bits(x));
        each(|i| f32::from_bits(half(low[i]) | half(high[i]) << 16))
    }

    #[inline(always)]
    fn fraction(self, v: Self::V) -> Self::V {
        each(|i| v[i] - v[i].floor())
    }

    #[inline(always)]
    fn scale_floor(self, v: Self::V, n: Self::V) -> Self::V {
        // In two factors, as one may be no f32 where the product is.
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        each(|i| {
            let n = n[i].floor().clamp(-252.0, 254.0) as i32;
            v[i] * power(n / 2) * power(n - n / 2)
        })
    }

    #[inline(always)]
    fn transpose(self, vectors: &mut [Self::V; LANES]) {
        let before = *vectors;
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = each(|j| before[j][i]);
        }
    }
}

#[cfg(test)]
mod tests;
