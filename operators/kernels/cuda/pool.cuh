// How a block makes a text's unit vector: what pool.cu and whole_hopper.cu share, so that both give the same bits.
//
// 256 threads; a thread takes 4 columns of every slices-th row, slices are added in their order, then every thread
// squares its columns and the block adds the squares up.
//
//   hidden 384:  threads 0–95 → rows 0, 2, 4 …   threads 96–191 → rows 1, 3, 5 …   192–255 idle
//
// Invariants: a text depends on its own rows only, in an order fixed by their number. A text of no rows, or whose mean
// is 0, gives zeros. Limits: hidden % 4 = 0, ≤ 1,024.
#pragma once
#include "numbers.cuh"
#include "tiles.cuh"

namespace pooling {

constexpr int THREADS = 256, SHARED_FLOATS = 1024 + THREADS / tiles::WARP;

// The sum of one number a thread, in every thread; `partial` has 8 floats.
DEVICE float block_sum(float x, float *partial) {
  int warp = (int)threadIdx.x / tiles::WARP;
  x = numbers::warp_sum(x);
  if (threadIdx.x % tiles::WARP == 0)
    partial[warp] = x;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < THREADS / tiles::WARP; i++)
    sum += partial[i];
  return sum;
}

// `load(to, row, column)` gives four columns of a row of the batch, of which the text has `start` … `end`; `sums` has
// SHARED_FLOATS.
template <class Load>
DEVICE void pool(float *sums, const Load &load, int start, int end, float *out, int hidden, int is_mean) {
  float *partial = sums + 1024;
  int rows = end - start;
  if (!is_mean)
    rows = rows < 1 ? rows : 1;
  int groups = hidden / 4, slices = THREADS / groups; // hidden ≤ 1,024: at least one slice
  int group = (int)threadIdx.x % groups, slice = (int)threadIdx.x / groups;
  if (slice < slices) {
    float sum[4] = {};
    for (int row = slice; row < rows; row += slices) {
      float h[4];
      load(h, start + row, group * 4);
#pragma unroll
      for (int e = 0; e < 4; e++)
        sum[e] += h[e];
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
      sums[slice * hidden + group * 4 + e] = sum[e];
  }
  __syncthreads();
  float mine[4] = {}, squares = 0.0f;
  float divisor = rows > 0 ? (float)rows : 1.0f;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    int column = (int)threadIdx.x + e * THREADS;
    if (column < hidden) {
      for (int s = 0; s < slices; s++)
        mine[e] += sums[s * hidden + column];
      mine[e] /= divisor;
      squares += mine[e] * mine[e];
    }
  }
  float total = block_sum(squares, partial);
  float inverse = total > 0.0f ? rsqrtf(total) : (total == 0.0f ? 0.0f : total); // NaN stays NaN
#pragma unroll
  for (int e = 0; e < 4; e++) {
    int column = (int)threadIdx.x + e * THREADS;
    if (column < hidden)
      out[column] = mine[e] * inverse;
  }
}

} // namespace pooling
