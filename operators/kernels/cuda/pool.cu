// From token states to what a caller gets: pooling with L2 norm, and a cross-encoder's logits.
//
//   pool_naive, scale_naive, gather_naive      stage 0   one thread an output, f32
//   pool_f16, gather_f16, logits_f16           stage 1   one block a text; one warp a logit
//
// Stage 1 pooling: 256 threads; a thread takes 4 columns of every slices-th row, slices are added in
// their order, then every thread squares its columns and the block adds the squares up.
//
//   hidden 384:  threads 0–95 → rows 0, 2, 4 …   threads 96–191 → rows 1, 3, 5 …   192–255 idle
//
// Classification: gather the first rows, multiply by the pooler (linear, tanh), then logits_f16.
// Invariants: a text depends on its own rows only, in an order fixed by their number. A text of no
// rows, or whose mean is 0, gives zeros. Limits: hidden % 4 = 0, ≤ 1,024.
#include "numbers.cuh"
#include "tiles.cuh"

namespace {

constexpr int THREADS = 256;

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

} // namespace

// ---- stage 0 ------------------------------------------------------------------------------------

// Mean of a text's rows, or its first row.
KERNEL pool_naive(const int *text_count, const int *starts, const float *x, float *out, int hidden, int is_mean) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (u64)*text_count * hidden)
    return;
  int text = (int)(i / hidden), column = (int)(i % hidden), start = starts[text];
  int rows = is_mean ? starts[text + 1] - start : (starts[text + 1] > start ? 1 : 0);
  float sum = 0.0f;
  for (int row = 0; row < rows; row++)
    sum += x[(size_t)(start + row) * hidden + column];
  out[i] = rows > 0 ? sum / (float)rows : 0.0f;
}

// Rows scaled to length 1, not in place.
KERNEL scale_naive(const int *text_count, const float *x, float *out, int hidden) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (u64)*text_count * hidden)
    return;
  const float *row = x + i / hidden * hidden;
  float squares = 0.0f;
  for (int c = 0; c < hidden; c++)
    squares += row[c] * row[c];
  out[i] = squares > 0.0f ? x[i] / sqrtf(squares) : 0.0f;
}

// The first row of every text.
KERNEL gather_naive(const int *text_count, const int *starts, const float *x, float *out, int hidden) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (u64)*text_count * hidden)
    return;
  out[i] = x[(size_t)starts[i / hidden] * hidden + i % hidden];
}

// ---- stage 1 ------------------------------------------------------------------------------------

// Grid: capacity in texts; shared memory: (1,024 + 8) floats. out is f32.
KERNEL __launch_bounds__(THREADS) pool_f16(const int *text_count, const int *starts, const u16 *x, float *out,
                                           int hidden, int is_mean) {
  SHARED_MEMORY(memory);
  float *sums = (float *)memory, *partial = sums + 1024;
  int text = (int)blockIdx.x;
  if (text >= *text_count)
    return;
  int start = starts[text], rows = starts[text + 1] - start;
  if (!is_mean)
    rows = rows < 1 ? rows : 1;
  int groups = hidden / 4, slices = THREADS / groups; // hidden ≤ 1,024: at least one slice
  int group = (int)threadIdx.x % groups, slice = (int)threadIdx.x / groups;
  if (slice < slices) {
    float sum[4] = {};
    for (int row = slice; row < rows; row += slices) {
      float h[4];
      numbers::load4(h, x + (size_t)(start + row) * hidden + group * 4);
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
      out[(size_t)text * hidden + column] = mine[e] * inverse;
  }
}

// Grid: capacity in texts. The first row of every text.
KERNEL __launch_bounds__(THREADS) gather_f16(const int *text_count, const int *starts, const u16 *x, u16 *out,
                                             int hidden) {
  int text = (int)blockIdx.x;
  if (text >= *text_count)
    return;
  const u16 *from = x + (size_t)starts[text] * hidden;
  for (int column = (int)threadIdx.x; column < hidden; column += THREADS)
    out[(size_t)text * hidden + column] = from[column];
}

// Grid: capacity in texts; warp i makes labels i, i + 8 … logits [texts, labels] in f32.
KERNEL __launch_bounds__(THREADS) logits_f16(const int *text_count, const u16 *pooled, const u16 *w, const float *bias,
                                             float *out, int hidden, int labels) {
  int text = (int)blockIdx.x, lane = (int)threadIdx.x % tiles::WARP;
  if (text >= *text_count)
    return;
  for (int label = (int)threadIdx.x / tiles::WARP; label < labels; label += THREADS / tiles::WARP) {
    float sum = 0.0f;
    for (int column = lane; column < hidden; column += tiles::WARP)
      sum += ptx::from_half(pooled[(size_t)text * hidden + column]) *
             ptx::from_half(w[(size_t)label * hidden + column]);
    sum = numbers::warp_sum(sum);
    if (lane == 0)
      out[(size_t)text * labels + label] = sum + bias[label];
  }
}
