// Numbers as bytes: rotated, so that no column stands out, and rounded with a scale for each row.
//
// A few columns of trained states are thirty times as large as the rest and would take nearly all of 255
// levels. Multiplied by the Walsh–Hadamard matrix H (H·Hᵀ = 1) they are mixed with others, and the weights
// are multiplied by the same H at load, which leaves the product as it was. (As the CPU does: src/rows.rs.)
//
//   behind a LayerNorm     groups of 128 columns   4 columns a lane × 32 lanes: 2 + 5 exchanges; one scale a row
//   behind GELU            the 32 columns of 128 that a lane of a tensor core holds: no exchange; a scale
//                          for each row and 128 columns
//
// byte = round(127 · x / largest), scale = largest / 127. A row of zeros has scale 0. A number that is not
// finite makes the scale NaN, and with it all that the row is multiplied with: bytes have no NaN, and a text with
// a state that overflowed must not get a vector that looks good.
#pragma once
#include "ptx.cuh"

namespace bytes {

constexpr float LEVELS = 127.0f;

// H for 2^k numbers of one thread, not yet scaled. (∞ becomes NaN here, or stays ∞.)
template <int COUNT> DEVICE void mix(float (&v)[COUNT]) {
#pragma unroll
  for (int width = 1; width < COUNT; width *= 2)
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if ((i & width) == 0) {
        float low = v[i], high = v[i + width];
        v[i] = low + high;
        v[i + width] = low - high;
      }
}

// H over the lanes of a warp, for each of a lane's numbers, behind `mix`.
template <int COUNT> DEVICE void mix_lanes(float (&v)[COUNT], int lane) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2)
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      float other = ptx::shuffle_xor(v[i], mask);
      v[i] = (lane & mask) ? other - v[i] : v[i] + other;
    }
}

// What turns a number into its byte, given the largest of its row; 0 for a row of zeros or with NaN.
DEVICE float inverse(float largest) { return largest > 0.0f ? LEVELS / largest : 0.0f; }

// In bits 0–7 the byte of x, above them anything: 1.5 · 2²³ leaves the nearest integer, halves to even, in the
// low bits of the sum, in one instruction.
DEVICE u32 byte(float x, float inverse) { return __float_as_uint(fmaf(x, inverse, 12582912.0f)); }

// ---- the same of two halves a word -----------------------------------------------------------------
// Halves as steps of a rotation are off by 2⁻¹² of the largest number or so, a byte by 2⁻⁸. Sums beyond 65,504 become
// infinite, where a group's numbers are 500 on average, and the row's scale with them.

// `mix` of the words; what is in a word is not mixed.
template <int COUNT> DEVICE void mix_halves(u32 (&v)[COUNT]) {
#pragma unroll
  for (int width = 1; width < COUNT; width *= 2)
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if ((i & width) == 0) {
        u32 low = v[i], high = v[i + width];
        v[i] = ptx::add_halves(low, high);
        v[i + width] = ptx::subtract_halves(low, high);
      }
}

// What numbers are multiplied with to be bytes, as a half, and what a byte stands for: `unit` over that half, so that its
// rounding takes nothing away.
struct Step {
  u16 inverse;
  float scale;
};
DEVICE Step step(float largest, float unit) {
  float inverse = LEVELS * ptx::reciprocal_fast(largest);
  u16 half = ptx::to_half(inverse > 60000.0f ? 60000.0f : inverse); // of zeros; NaN stays NaN
  return {half, unit * ptx::reciprocal_fast(ptx::from_half(half))};
}

// In bits 0–7 and 16–23 the bytes of x: 1.5 · 2¹⁰ leaves integers in a half.
DEVICE u32 byte_halves(u32 x, u32 inverse) { return ptx::fuse_halves(x, inverse, 0x66006600); }

} // namespace bytes
