// Y = epilogue(X·Wᵀ + b) of bytes: stage 5, twice the tensor cores' rate on half of the bytes.
//
//   x ≈ X[row] · rows[row]      w ≈ W[column] · columns[column]      (bytes.cuh says how they are rotated)
//   Y = (Σ X·W, exact) · rows[row] · columns[column] + b
//
//   linear_int8_hopper_bias   Y in halves: what attention reads
//   linear_int8_hopper_gelu   GELU(Y), rotated, as bytes, with a scale for each row and 128 columns
//
// The scheme is linear_hopper.cu's, ring and turns included: 128 bytes of a row are 128 of K instead of 64.
//
//   GELU's tile   a lane has 32 of a row's 128 columns: n·8 + 2t, + 1 for n = 0 … 15
//                 ─▶ H over those 32 (80 sums and differences) ─▶ largest over 4 lanes ─▶ bytes, one scale
//
// Invariants as in linear_hopper.cu; sums are exact, so no order matters. Limits: sm_90a; inputs a multiple
// of 16, outputs of 8; with GELU of 128.
#include "bytes.cuh"
#include "numbers.cuh"
#include "ring.cuh"

namespace {
using namespace numbers;
using namespace ring;

constexpr int DEPTH = 128;
constexpr u32 DONE_BYTES = TILE * TILE * 2, DONE_AT = ring::BYTES, BARRIERS_AT = DONE_AT + 2 * DONE_BYTES;
constexpr int TURN = 1, STORED = 3; // as in linear_hopper.cu

// What the operands stand for, and where results go.
struct Ends {
  const float *rows, *columns, *bias;
  unsigned char *y;
  float *scales; // of GELU's bytes, [capacity, outputs / 128]
};

// As in linear_hopper.cu.
DEVICE void multiply_tile(u32 memory, int (&sums)[2][64], int first_step, int steps, int lane) {
  for (int k = 0; k < steps; k++) {
    int step = first_step + k;
    u32 from = stage(memory, step);
    ptx::barrier_wait(full(memory + BARRIERS_AT, step), parity(step));
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 32; i++) {
      u64 b = ptx::operand(from + OPERAND_BYTES + (u32)i * 32);
#pragma unroll
      for (int half = 0; half < 2; half++)
        ptx::multiply_64x128x32(sums[half], ptx::operand(from + (u32)half * 64 * 128 + (u32)i * 32), b,
                                k > 0 || i > 0);
    }
    ptx::products_commit();
    ptx::products_wait<1>();
    if (k > 0 && lane == 0)
      ptx::barrier_arrive(empty(memory + BARRIERS_AT, step - 1));
  }
}

// Where a lane's rows are in the tile.
DEVICE int row_of(int half, int eight, int thread) {
  return half * 64 + thread / tiles::WARP * 16 + eight * 8 + thread % tiles::WARP / 4;
}

DEVICE void finish_halves(unsigned char *done, int (&sums)[2][64], const Ends &ends, const Work &work, int tile,
                          int thread) {
  constexpr int CHUNKS = TILE / tiles::CHUNK_HALVES;
  int row0 = work.row0(tile), column0 = work.column0(tile), t = thread % 4;
  float scales[4]; // by half and eight
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int row = row0 + row_of(i / 2, i % 2, thread);
    scales[i] = row < work.rows ? ends.rows[row] : 0.0f;
  }
#pragma unroll
  for (int n = 0; n < TILE / 8; n++) {
    int column = column0 + n * 8 + t * 2;
    Pair weights = {}, bias = {};
    if (column < work.columns) {
      weights = *(const Pair *)(ends.columns + column);
      bias = *(const Pair *)(ends.bias + column);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float low = (float)sums[i / 2][n * 4 + i % 2 * 2] * (scales[i] * weights.low) + bias.low;
      float high = (float)sums[i / 2][n * 4 + i % 2 * 2 + 1] * (scales[i] * weights.high) + bias.high;
      *(u32 *)(done + tiles::swizzled<CHUNKS>(row_of(i / 2, i % 2, thread), n) + t * 4) = ptx::to_halves(low, high);
    }
  }
}

// Makes GELU's bytes of one row of a lane's four.
DEVICE void finish_row(unsigned char *done, const int (&sums)[64], const Ends &ends, const Work &work, int tile,
                       int half, int eight, int thread) {
  constexpr int CHUNKS = TILE / tiles::CHUNK_BYTES;
  int at = row_of(half, eight, thread), row = work.row0(tile) + at, t = thread % 4;
  int column0 = work.column0(tile) + t * 2;
  float scale = row < work.rows ? ends.rows[row] : 0.0f;
  float v[32];
#pragma unroll
  for (int n = 0; n < TILE / 8; n++) {
    Pair weights = *(const Pair *)(ends.columns + column0 + n * 8), bias = *(const Pair *)(ends.bias + column0 + n * 8);
    v[n * 2] = gelu_fast((float)sums[n * 4 + eight * 2] * (scale * weights.low) + bias.low);
    v[n * 2 + 1] = gelu_fast((float)sums[n * 4 + eight * 2 + 1] * (scale * weights.high) + bias.high);
  }
  bytes::mix(v);
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 32; i++)
    largest = fmaxf(largest, fabsf(v[i]));
  largest = quad_max(largest);
  float inverse = bytes::inverse(largest);
#pragma unroll
  for (int n = 0; n < TILE / 8; n++)
    *(u16 *)(done + tiles::swizzled<CHUNKS>(at, n / 2) + n % 2 * 8 + t * 2) =
        (u16)ptx::low_bytes(bytes::byte(v[n * 2], inverse), bytes::byte(v[n * 2 + 1], inverse));
  if (t == 0 && row < work.rows)
    ends.scales[(size_t)row * (work.columns / TILE) + work.column0(tile) / TILE] =
        largest * (0.17677669530f / bytes::LEVELS); // H of 32, scaled by 1 / √32
}

template <int EPILOGUE>
DEVICE void finish_tile(unsigned char *done, int (&sums)[2][64], const Ends &ends, const Work &work, int tile,
                        int group, int thread) {
  constexpr int WIDTH = EPILOGUE == GELU ? 1 : 2; // bytes of an element of Y
  ptx::made_anew(thread);
  if (EPILOGUE == GELU) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      finish_row(done, sums[i / 2], ends, work, tile, i / 2, i % 2, thread);
  } else {
    finish_halves(done, sums, ends, work, tile, thread);
  }
  int row0 = work.row0(tile), column0 = work.column0(tile);
  ptx::part_sync(STORED + group, ring::GROUP);
  store_rows<TILE, TILE * WIDTH / tiles::CHUNK_BYTES>(
      done, ends.y + ((size_t)row0 * work.columns + column0) * WIDTH, (size_t)work.columns * WIDTH, work.rows - row0,
      (work.columns - column0) * WIDTH, thread);
  ptx::part_sync(STORED + group, ring::GROUP); // before the next tile is written there
}

// As in linear_hopper.cu: every other tile of this block.
template <int EPILOGUE>
DEVICE void consume(unsigned char *memory, const Ends &ends, const Work &work, int group, int thread) {
  u32 base = ptx::shared(memory);
  unsigned char *done = memory + DONE_AT + group * DONE_BYTES;
  int stride = (int)gridDim.x, tile = (int)blockIdx.x + group * stride;
  if (group == 1 && (int)blockIdx.x < work.tiles)
    ptx::part_arrive(TURN, 2 * ring::GROUP); // the first turn is warpgroup 1's
  for (int nth = group; tile < work.tiles; nth += 2, tile += 2 * stride) {
    int sums[2][64];
    ptx::part_sync(TURN + group, 2 * ring::GROUP);
    multiply_tile(base, sums, nth * work.steps, work.steps, thread % tiles::WARP);
    if (tile + stride < work.tiles)
      ptx::part_arrive(TURN + (group ^ 1), 2 * ring::GROUP);
    ptx::products_wait<0>();
    if (thread % tiles::WARP == 0)
      ptx::barrier_arrive(empty(base + BARRIERS_AT, nth * work.steps + work.steps - 1));
    finish_tile<EPILOGUE>(done, sums, ends, work, tile, group, thread);
  }
}

template <int EPILOGUE>
DEVICE void linear_int8(const TensorMap *x, const TensorMap *w, const int *count, const Ends &ends, int inputs,
                        int outputs) {
  SHARED_MEMORY(raw);
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  u32 base = ptx::shared(memory);
  Work work = ring::work<DEPTH>(*count, inputs, outputs);
  if (threadIdx.x == 0)
    prepare(base + BARRIERS_AT, ring::GROUP / tiles::WARP);
  __syncthreads();
  int group = (int)threadIdx.x / ring::GROUP;
  if (group == 0) {
    ptx::registers_down<24>();
    if (threadIdx.x == 0)
      produce<DEPTH>(base, base + BARRIERS_AT, x, w, work);
  } else {
    ptx::registers_up<240>();
    consume<EPILOGUE>(memory, ends, work, group - 1, (int)threadIdx.x % ring::GROUP);
  }
}

} // namespace

// ---- grid: a block a multiprocessor at most; 384 threads; 1,024 + BARRIERS_AT + 64 bytes -------------------------------

#define LINEAR(name, EPILOGUE)                                                                                        \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      linear_int8_hopper_##name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,             \
                                const int *count, const float *rows, const float *columns, const float *bias,         \
                                unsigned char *y, float *scales, int inputs, int outputs) {                           \
    linear_int8<EPILOGUE>(&x, &w, count, Ends{rows, columns, bias, y, scales}, inputs, outputs);                      \
  }
LINEAR(bias, BIAS)
LINEAR(gelu, GELU)
#undef LINEAR
