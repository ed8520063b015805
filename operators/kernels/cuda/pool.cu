// From token states to what a caller gets: pooling with L2 norm, and a cross-encoder's logits.
//
//   pool_naive, scale_naive, gather_naive      stage 0   one thread an output, f32
//   pool_f16, gather_f16, logits_f16           stage 1   one block a text; one warp a logit
//
// How a text's rows are added up: pool.cuh.
// Classification: gather the first rows, multiply by the pooler (linear, tanh), then logits_f16.
// Invariants: a text depends on its own rows only, in an order fixed by their number. A text of no
// rows, or whose mean is 0, gives zeros. Limits: hidden % 4 = 0, ≤ 1,024.
#include "pool.cuh"

namespace {

using pooling::THREADS;

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
  ptx::follow();
  SHARED_MEMORY(memory);
  int text = (int)blockIdx.x;
  if (text >= *text_count)
    return;
  auto load = [&](float(&to)[4], int row, int column) { numbers::load4(to, x + (size_t)row * hidden + column); };
  pooling::pool((float *)memory, load, starts[text], starts[text + 1], out + (size_t)text * hidden, hidden, is_mean);
}

// Grid: capacity in texts. The first row of every text.
KERNEL __launch_bounds__(THREADS) gather_f16(const int *text_count, const int *starts, const u16 *x, u16 *out,
                                             int hidden) {
  ptx::follow();
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
  ptx::follow();
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
