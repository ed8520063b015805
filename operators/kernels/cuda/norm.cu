// LayerNorm of rows, alone, behind the embedding tables, or behind a residual sum.
//
//   embed_naive, norm_naive     stage 0   one thread an output, f32
//   embed_f16, add_norm_f16     stage 1   one warp a row, halves in and out
//   embed_int8, add_norm_int8   stage 5   the row as bytes too, rotated, with its scale (bytes.cuh)
//
//   embed:     row = LayerNorm(word[id] + position[place] + segment[place])
//   add_norm:  row = LayerNorm(x + y)   (y may be null)       in place is allowed: out = x
//
// Stage 1 reads a row once, four halves a lane, and keeps it in registers as f32: rows.cuh. A round's 128
// columns are just what is rotated together.
//
// A place is the position in bits 0–15 and the segment above. Invariants: a row depends on itself
// only; rows past the count are neither read nor written. Limits: hidden % 4 = 0, as bytes % 128, ≤ 1,024.
#include "bytes.cuh"
#include "rows.cuh"

namespace {

constexpr int THREADS = 256;
using rows::ROUND_COLUMNS;
using rows::ROUNDS;

// The operands of a norm, and where its rows go: as halves, and as bytes with a scale a row where there are any.
struct Norm {
  u16 *out;
  unsigned char *bytes;
  float *scales;
  const float *gain, *shift;
  int hidden;
  float epsilon;
};

// Stores the normalised row that a warp holds as bytes.
DEVICE void store_bytes(float (&v)[ROUNDS][4], const Norm &norm, int row, int lane) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < ROUNDS; i++)
    if (i * ROUND_COLUMNS < norm.hidden) {
      bytes::mix(v[i]);
      bytes::mix_lanes(v[i], lane);
#pragma unroll
      for (int e = 0; e < 4; e++)
        largest = ptx::max_nan(largest, fabsf(v[i][e]));
    }
  largest = numbers::warp_max(largest);
  float inverse = bytes::inverse(largest);
#pragma unroll
  for (int i = 0; i < ROUNDS; i++)
    if (i * ROUND_COLUMNS < norm.hidden) {
      u32 low = ptx::low_bytes(bytes::byte(v[i][0], inverse), bytes::byte(v[i][1], inverse));
      u32 high = ptx::low_bytes(bytes::byte(v[i][2], inverse), bytes::byte(v[i][3], inverse));
      *(u32 *)(norm.bytes + (size_t)row * norm.hidden + i * ROUND_COLUMNS + lane * 4) = ptx::low_halves(low, high);
    }
  if (lane == 0)
    norm.scales[row] = largest * (0.08838834765f / bytes::LEVELS); // H of 128, scaled by 1 / √128
}

// Normalises the row that a warp holds and stores it.
template <bool IS_INT8> DEVICE void normalize(float (&v)[ROUNDS][4], const Norm &norm, int row, int lane) {
  auto store = [&](int column, const float(&four)[4]) {
    numbers::store4(norm.out + (size_t)row * norm.hidden + column, four);
  };
  rows::normalize(v, {norm.gain, norm.shift, norm.hidden, norm.epsilon}, lane, store);
  if (IS_INT8)
    store_bytes(v, norm, row, lane);
}

} // namespace

// ---- stage 0 ------------------------------------------------------------------------------------

KERNEL embed_naive(const int *count, const u32 *ids, const u32 *places, const float *words, const float *positions,
                   const float *segments, float *out, int hidden) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (u64)*count * hidden)
    return;
  size_t row = i / hidden, column = i % hidden;
  u32 place = places[row];
  out[i] = words[(size_t)ids[row] * hidden + column] + positions[(size_t)(place & 0xffff) * hidden + column] +
           segments[(size_t)(place >> 16) * hidden + column];
}

// Not in place: every output reads its whole row.
KERNEL norm_naive(const int *count, const float *x, float *out, const float *gain, const float *shift, int hidden,
                  float epsilon) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (u64)*count * hidden)
    return;
  const float *row = x + i / hidden * hidden;
  int column = (int)(i % hidden);
  float sum = 0.0f, squares = 0.0f;
  for (int c = 0; c < hidden; c++)
    sum += row[c];
  float mean = sum / (float)hidden;
  for (int c = 0; c < hidden; c++)
    squares += (row[c] - mean) * (row[c] - mean);
  out[i] = (row[column] - mean) * rsqrtf(squares / (float)hidden + epsilon) * gain[column] + shift[column];
}

// ---- stages 1 and 5: grid ⌈capacity / 8⌉, 256 threads ---------------------------------------------

namespace {

template <bool IS_INT8>
DEVICE void embed(const int *count, const u32 *ids, const u32 *places, const u16 *words, const u16 *positions,
                  const u16 *segments, const Norm &norm) {
  int row = (int)(blockIdx.x * (THREADS / tiles::WARP) + threadIdx.x / tiles::WARP);
  int lane = (int)threadIdx.x % tiles::WARP;
  if (row >= *count)
    return; // the whole warp: its lanes share the row
  float v[ROUNDS][4] = {};
  rows::embed(v, ids[row], places[row], words, positions, segments, norm.hidden, lane);
  normalize<IS_INT8>(v, norm, row, lane);
}

template <bool IS_INT8> DEVICE void add_norm(const int *count, const u16 *x, const u16 *y, const Norm &norm) {
  int row = (int)(blockIdx.x * (THREADS / tiles::WARP) + threadIdx.x / tiles::WARP);
  int lane = (int)threadIdx.x % tiles::WARP;
  if (row >= *count)
    return;
  size_t start = (size_t)row * norm.hidden;
  float v[ROUNDS][4] = {};
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    int column = i * ROUND_COLUMNS + lane * 4;
    if (column < norm.hidden) {
      rows::add4(v[i], x + start + column);
      if (y)
        rows::add4(v[i], y + start + column);
    }
  }
  normalize<IS_INT8>(v, norm, row, lane);
}

} // namespace

KERNEL __launch_bounds__(THREADS) embed_f16(const int *count, const u32 *ids, const u32 *places, const u16 *words,
                                            const u16 *positions, const u16 *segments, u16 *out, const float *gain,
                                            const float *shift, int hidden, float epsilon) {
  ptx::follow();
  embed<false>(count, ids, places, words, positions, segments,
               Norm{out, nullptr, nullptr, gain, shift, hidden, epsilon});
}

KERNEL __launch_bounds__(THREADS) embed_int8(const int *count, const u32 *ids, const u32 *places, const u16 *words,
                                             const u16 *positions, const u16 *segments, u16 *out, const float *gain,
                                             const float *shift, int hidden, float epsilon, unsigned char *bytes,
                                             float *scales) {
  ptx::follow();
  embed<true>(count, ids, places, words, positions, segments, Norm{out, bytes, scales, gain, shift, hidden, epsilon});
}

KERNEL __launch_bounds__(THREADS) add_norm_f16(const int *count, const u16 *x, const u16 *y, u16 *out,
                                               const float *gain, const float *shift, int hidden, float epsilon) {
  ptx::follow();
  add_norm<false>(count, x, y, Norm{out, nullptr, nullptr, gain, shift, hidden, epsilon});
}

KERNEL __launch_bounds__(THREADS) add_norm_int8(const int *count, const u16 *x, const u16 *y, u16 *out,
                                                const float *gain, const float *shift, int hidden, float epsilon,
                                                unsigned char *bytes, float *scales) {
  ptx::follow();
  add_norm<true>(count, x, y, Norm{out, bytes, scales, gain, shift, hidden, epsilon});
}
