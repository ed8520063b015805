// Small arithmetic: activations, sums over a warp, four halves at a time.
#pragma once
#include "ptx.cuh"

namespace numbers {

// What a matrix product does with its sums before they are stored.
enum Epilogue { BIAS = 0, GELU = 1, RESIDUAL = 2, TANH = 3 };

// x · Φ(x), with the exact error function as BERT's "gelu" has it.
DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// The same for what becomes a half or a byte: off by at most 2.8e-4 for the form (its two factors are fitted
// to that) and |x| · 2.5e-4 for the instruction, which is of the size of rounding to a half where |x| ≥ 1. Six
// instructions instead of 25; 1,536 of these stand behind the 12 · 384² products of a token and layer.
DEVICE float gelu_fast(float x) { return 0.5f * x * (1.0f + ptx::tanh_fast(x * (0.8002f + 0.0347f * x * x))); }

// The same of two halves, in halves: for what becomes bytes, whose step is eight times as large as what this is off by.
// Beyond 255 the square is infinite, and its tangent 1.
DEVICE u32 gelu_halves(u32 x) {
  constexpr u32 LINEAR = 0x3a673a67, CUBIC = 0x28712871, HALF = 0x38003800; // 0.8003, 0.0347, 0.5
  u32 inner = ptx::multiply_halves(x, ptx::fuse_halves(ptx::multiply_halves(x, x), CUBIC, LINEAR));
  u32 half = ptx::multiply_halves(x, HALF);
  return ptx::fuse_halves(half, ptx::tanh_halves(inner), half);
}

template <int EPILOGUE> DEVICE float activate(float x) {
  if (EPILOGUE == GELU)
    return gelu_fast(x);
  if (EPILOGUE == TANH)
    return tanhf(x);
  return x;
}

// The sum over 32 lanes, in every lane, added up in one fixed order.
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1)
    x += ptx::shuffle_xor(x, mask);
  return x;
}

// The sum over the four lanes that share a row of a tensor core's sums, in each of them, in one fixed order.
DEVICE float quad_sum(float x) {
  x += ptx::shuffle_xor(x, 1);
  return x + ptx::shuffle_xor(x, 2);
}

// The largest of them; NaN if one is.
DEVICE float quad_max(float x) {
  x = ptx::max_nan(x, ptx::shuffle_xor(x, 1));
  return ptx::max_nan(x, ptx::shuffle_xor(x, 2));
}

// The largest of 32 lanes, in every lane; NaN if one is.
DEVICE float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1)
    x = ptx::max_nan(x, ptx::shuffle_xor(x, mask));
  return x;
}

// Two neighbours of a row of f32.
struct alignas(8) Pair {
  float low, high;
};

struct alignas(8) Halves4 {
  u32 low, high;
};

// Four halves from an address that is a multiple of 8.
DEVICE void load4(float (&to)[4], const u16 *from) {
  Halves4 h = *(const Halves4 *)from;
  to[0] = ptx::from_half((u16)h.low);
  to[1] = ptx::from_half((u16)(h.low >> 16));
  to[2] = ptx::from_half((u16)h.high);
  to[3] = ptx::from_half((u16)(h.high >> 16));
}

DEVICE void store4(u16 *to, const float (&from)[4]) {
  Halves4 h = {ptx::to_halves(from[0], from[1]), ptx::to_halves(from[2], from[3])};
  *(Halves4 *)to = h;
}

} // namespace numbers
