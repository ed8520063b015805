// Y = epilogue(X·Wᵀ + b): X [rows, inputs], W [outputs, inputs] as checkpoints have it, Y [rows, outputs].
//
//   linear_naive            stage 0   one thread an output, f32; the device's own reference
//   linear_f16_<epilogue>   stage 1   tensor cores by mma.sync, halves in and out, f32 sums
//
// Stage 1, one block of 8 warps a 128×128 tile of Y:
//
//        K →  32 at a time                          a ring of 3 stages in shared memory
//   X  ┌────┬────┬────┬──    128 rows  cp.async  ┌─────────┬─────────┬─────────┐
//      │ 0  │ 1  │ 2  │         ───────────────▶ │ X₀ 8 KB │ X₁      │ X₂      │  two in flight
//   W  ├────┼────┼────┼──    128 rows            │ W₀ 8 KB │ W₁      │ W₂      │  while one is
//      │ 0  │ 1  │ 2  │                          └─────────┴─────────┴─────────┘  multiplied
//      └────┴────┴────┴──
//   a warp's 64×32 of the tile = 4×4 products of 16×8: rows by warp % 2, columns by warp / 2
//
// The finished tile goes through shared memory once more, so that a row leaves in 16-byte stores.
//
// Invariants: a row of Y depends on that row of X only, and is added up over K in one fixed order
// (no split K, no atomics), wherever the row lies: batch-invariance. Rows past the count are neither
// read nor written. Limits: inputs and outputs are multiples of 8.
#include "numbers.cuh"
#include "tiles.cuh"

namespace {
using namespace numbers;

constexpr int TILE = 128;    // rows and columns of Y a block makes
constexpr int DEPTH = 32;    // of K a stage
constexpr int STAGES = 3;    // of the ring
constexpr int THREADS = 256; // 8 warps
constexpr int WARP_ROWS = 64, WARP_COLUMNS = 32;
constexpr int ROW_CHUNKS = DEPTH / tiles::CHUNK_HALVES;
constexpr u32 OPERAND_BYTES = TILE * DEPTH * 2;
constexpr u32 STAGE_BYTES = 2 * OPERAND_BYTES;
static_assert(TILE *TILE * 2 <= STAGES * STAGE_BYTES, "the finished tile fits where the ring was");

// Starts copying 128 rows × 32 columns; what lies outside the matrix becomes zeros.
DEVICE void load_operand(u32 to, const u16 *from, int first, int rows, int column, int columns) {
#pragma unroll
  for (int i = 0; i < TILE * ROW_CHUNKS / THREADS; i++) {
    int piece = (int)threadIdx.x + i * THREADS;
    int row = piece / ROW_CHUNKS, chunk = piece % ROW_CHUNKS;
    int at = column + chunk * tiles::CHUNK_HALVES;
    bool is_inside = first + row < rows && at < columns;
    const u16 *source = is_inside ? from + (size_t)(first + row) * columns + at : from;
    ptx::copy16(to + tiles::swizzled<ROW_CHUNKS>(row, chunk), source, is_inside ? 16 : 0);
  }
}

// One warp's 64×32 products over a stage's 32 of K.
DEVICE void multiply_stage(float (&sums)[4][4][4], u32 x, u32 w, int warp_row, int warp_column, int lane) {
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    u32 a[4][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      ptx::load_matrices(a[i], x + tiles::swizzled<ROW_CHUNKS>(warp_row + i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
    for (int j = 0; j < 2; j++) {
      int row = warp_column + j * 16 + lane / 16 * 8 + lane % 8;
      ptx::load_matrices(b[j], w + tiles::swizzled<ROW_CHUNKS>(row, k * 2 + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        ptx::multiply_16x8x16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

// Bias, activation or residual on a warp's sums; the tile to shared memory, 256 swizzled bytes a row.
template <int EPILOGUE>
DEVICE void finish(unsigned char *tile, float (&sums)[4][4][4], const float *bias, const u16 *residual, int row0,
                   int column0, int rows, int outputs, int warp_row, int warp_column, int lane) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int column = warp_column + j * 8 + lane % 4 * 2;
    bool is_column = column0 + column < outputs;
    float bias0 = is_column ? bias[column0 + column] : 0.0f;
    float bias1 = is_column ? bias[column0 + column + 1] : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int row = warp_row + i * 16 + half * 8 + lane / 4;
        float low = activate<EPILOGUE>(sums[i][j][half * 2] + bias0);
        float high = activate<EPILOGUE>(sums[i][j][half * 2 + 1] + bias1);
        if (EPILOGUE == RESIDUAL && is_column && row0 + row < rows) {
          u32 r = *(const u32 *)(residual + (size_t)(row0 + row) * outputs + column0 + column);
          low += ptx::from_half((u16)r);
          high += ptx::from_half((u16)(r >> 16));
        }
        u32 at = tiles::swizzled<TILE / tiles::CHUNK_HALVES>(row, column / 8) + column % 8 * 2;
        *(u32 *)(tile + at) = ptx::to_halves(low, high);
      }
  }
}

// The tile from shared memory to Y, 16 bytes a thread.
DEVICE void store_tile(u16 *y, const unsigned char *tile, int row0, int column0, int rows, int outputs) {
  constexpr int CHUNKS = TILE / tiles::CHUNK_HALVES;
#pragma unroll
  for (int i = 0; i < TILE * CHUNKS / THREADS; i++) {
    int piece = (int)threadIdx.x + i * THREADS;
    int row = piece / CHUNKS, chunk = piece % CHUNKS;
    int column = column0 + chunk * tiles::CHUNK_HALVES;
    if (row0 + row < rows && column < outputs)
      *(tiles::Chunk *)(y + (size_t)(row0 + row) * outputs + column) =
          *(const tiles::Chunk *)(tile + tiles::swizzled<CHUNKS>(row, chunk));
  }
}

template <int EPILOGUE>
DEVICE void linear_tile(const int *count, const u16 *x, const u16 *w, const float *bias, const u16 *residual, u16 *y,
                        int inputs, int outputs) {
  SHARED_MEMORY(memory);
  int rows = *count;
  int column0 = (int)blockIdx.x * TILE, row0 = (int)blockIdx.y * TILE;
  if (row0 >= rows)
    return; // the graph was captured for more rows than this batch has
  int warp = (int)threadIdx.x / tiles::WARP, lane = (int)threadIdx.x % tiles::WARP;
  int warp_row = warp % 2 * WARP_ROWS, warp_column = warp / 2 * WARP_COLUMNS;
  u32 ring = ptx::shared(memory);
  auto load = [&](int step) {
    u32 stage = ring + (u32)(step % STAGES) * STAGE_BYTES;
    load_operand(stage, x, row0, rows, step * DEPTH, inputs);
    load_operand(stage + OPERAND_BYTES, w, column0, outputs, step * DEPTH, inputs);
  };
  int steps = (inputs + DEPTH - 1) / DEPTH;
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps)
      load(step);
    ptx::commit_copies(); // empty at the end too: groups are counted
  }
  float sums[4][4][4] = {};
  for (int step = 0; step < steps; step++) {
    ptx::wait_copies<STAGES - 2>(); // this step's group is there, mine…
    __syncthreads();                // … and everybody's; and all are done with the previous stage
    if (step + STAGES - 1 < steps)
      load(step + STAGES - 1); // into the previous stage
    ptx::commit_copies();
    u32 stage = ring + (u32)(step % STAGES) * STAGE_BYTES;
    multiply_stage(sums, stage, stage + OPERAND_BYTES, warp_row, warp_column, lane);
  }
  __syncthreads(); // all have read the last stage: the ring becomes the finished tile
  finish<EPILOGUE>(memory, sums, bias, residual, row0, column0, rows, outputs, warp_row, warp_column, lane);
  __syncthreads();
  store_tile(y, memory, row0, column0, rows, outputs);
}

} // namespace

// ---- stage 0 ------------------------------------------------------------------------------------

KERNEL linear_naive(const int *count, const float *x, const float *w, const float *bias, const float *residual,
                    float *y, int inputs, int outputs, int epilogue) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (u64)*count * outputs)
    return;
  int column = (int)(i % outputs);
  const float *row = x + i / outputs * inputs;
  const float *weights = w + (size_t)column * inputs;
  float sum = 0.0f;
  for (int k = 0; k < inputs; k++)
    sum += row[k] * weights[k];
  sum += bias[column];
  if (epilogue == numbers::GELU)
    sum = numbers::gelu(sum);
  if (epilogue == numbers::TANH)
    sum = tanhf(sum);
  if (epilogue == numbers::RESIDUAL)
    sum += residual[i];
  y[i] = sum;
}

// ---- stage 1: grid (⌈outputs / 128⌉, ⌈capacity / 128⌉), 256 threads, 48 KB ------------------------

#define LINEAR(name, EPILOGUE)                                                                                        \
  KERNEL __launch_bounds__(THREADS, 2) linear_f16_##name(const int *count, const u16 *x, const u16 *w,                \
                                                         const float *bias, const u16 *residual, u16 *y, int inputs,  \
                                                         int outputs) {                                               \
    ptx::follow();                                                                                                    \
    linear_tile<EPILOGUE>(count, x, w, bias, residual, y, inputs, outputs);                                           \
  }
LINEAR(bias, BIAS)
LINEAR(gelu, GELU)
LINEAR(residual, RESIDUAL)
LINEAR(tanh, TANH)
#undef LINEAR
