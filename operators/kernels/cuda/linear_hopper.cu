// Y = epilogue(X·Wᵀ + b) with what only Hopper has: stage 2. Shapes and laws as in linear.cu.
//
//   warpgroup 0, one thread   brings 128×64 of X and of W a step, by the copy engine, into a ring of 4
//   warpgroup 1               tiles 0, 2, 4 … of this block: wgmma over K, then the epilogue
//   warpgroup 2               tiles 1, 3, 5 …                the same, half a beat behind
//
//   copy engine  ▐ 0 0 0 0 0 0 1 1 1 1 1 1 2 2 2 2 2 2 3 3 …          always ahead, over tiles' borders
//   warpgroup 1   ├── tile 0: wgmma ──┤─ epilogue ─┤    ├── tile 2 ──┤─ epilogue ─┤
//   warpgroup 2                       ├── tile 1: wgmma ──┤─ epilogue ─┤            "ping-pong"
//   tensor cores  ████████████████████████████████████████████████████  never wait for an epilogue
//
//   shared memory   4 stages × (X 16 KB | W 16 KB)   two finished tiles of 32 KB   barriers      192.1 KB
//
// The ring, its barriers and the persistent grid are ring.cuh's; a stage is emptied by the 4 warps of the one
// warpgroup whose tile the step belongs to.
//
//   turn 1, 2      named barriers                a warpgroup starts a tile's products only when the other
//                                                has waited for all of the previous tile's steps
//
// Why turns are needed for correctness, not only for speed: barriers know a phase by its parity only,
// so nobody may wait for a phase two ahead. Whoever has its turn has the steps before n behind it.
//
// Invariants as in linear.cu: fixed order over K, no split, rows past the count not written. (Rows past
// the count but inside the capacity are read; they meet only sums that are not stored.)
// Limits: sm_90a; inputs and outputs multiples of 8.
#include "numbers.cuh"
#include "ring.cuh"

namespace {
using namespace numbers;
using namespace ring;

constexpr int DEPTH = 64;
constexpr int CHUNKS = TILE / tiles::CHUNK_HALVES; // of a finished row
constexpr u32 DONE_BYTES = TILE * TILE * 2, DONE_AT = ring::BYTES, BARRIERS_AT = DONE_AT + 2 * DONE_BYTES;
constexpr int TURN = 1, STORED = 3; // named barriers: 1, 2 and 3, 4; 0 is __syncthreads

// All steps of one tile; sums[0] are its upper 64 rows, sums[1] the lower.
DEVICE void multiply_tile(u32 memory, float (&sums)[2][64], int first_step, int steps, int lane) {
  for (int k = 0; k < steps; k++) {
    int step = first_step + k;
    u32 from = stage(memory, step);
    ptx::barrier_wait(full(memory + BARRIERS_AT, step), parity(step));
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++) {
      u64 b = ptx::operand(from + OPERAND_BYTES + (u32)i * 32);
#pragma unroll
      for (int half = 0; half < 2; half++)
        ptx::multiply_64x128x16(sums[half], ptx::operand(from + (u32)half * 64 * 128 + (u32)i * 32), b,
                                k > 0 || i > 0);
    }
    ptx::products_commit();
    ptx::products_wait<1>(); // the step before has been read: its stage is free
    if (k > 0 && lane == 0)
      ptx::barrier_arrive(empty(memory + BARRIERS_AT, step - 1));
  }
}

template <int EPILOGUE>
DEVICE void finish_tile(unsigned char *done, float (&sums)[2][64], const float *bias, const u16 *residual, u16 *y,
                        const Work &work, int tile, int group, int thread) {
  ptx::made_anew(thread); // addresses are made here, not kept beside the sums while they grow
  int warp = thread / tiles::WARP, lane = thread % tiles::WARP;
  int row0 = work.row0(tile), column0 = work.column0(tile);
#pragma unroll
  for (int n = 0; n < TILE / 8; n++) {
    int column = n * 8 + lane % 4 * 2;
    bool is_column = column0 + column < work.columns;
    float bias0 = is_column ? bias[column0 + column] : 0.0f;
    float bias1 = is_column ? bias[column0 + column + 1] : 0.0f;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int eight = 0; eight < 2; eight++) {
        int row = half * 64 + warp * 16 + eight * 8 + lane / 4;
        float low = activate<EPILOGUE>(sums[half][n * 4 + eight * 2] + bias0);
        float high = activate<EPILOGUE>(sums[half][n * 4 + eight * 2 + 1] + bias1);
        if (EPILOGUE == RESIDUAL && is_column && row0 + row < work.rows) {
          u32 r = *(const u32 *)(residual + (size_t)(row0 + row) * work.columns + column0 + column);
          low += ptx::from_half((u16)r);
          high += ptx::from_half((u16)(r >> 16));
        }
        *(u32 *)(done + tiles::swizzled<CHUNKS>(row, n) + lane % 4 * 4) = ptx::to_halves(low, high);
      }
  }
  ptx::part_sync(STORED + group, GROUP);
  store_rows<TILE, CHUNKS>(done, (unsigned char *)(y + (size_t)row0 * work.columns + column0),
                           (size_t)work.columns * 2, work.rows - row0, (work.columns - column0) * 2, thread);
  ptx::part_sync(STORED + group, GROUP); // before the next tile is written there
}

// Warpgroup 1 (group 0) or 2 (group 1): every other tile of this block.
template <int EPILOGUE>
DEVICE void consume(unsigned char *memory, const float *bias, const u16 *residual, u16 *y, const Work &work,
                    int group, int thread) {
  u32 base = ptx::shared(memory);
  unsigned char *done = memory + DONE_AT + group * DONE_BYTES;
  int stride = (int)gridDim.x, tile = (int)blockIdx.x + group * stride;
  if (group == 1 && (int)blockIdx.x < work.tiles)
    ptx::part_arrive(TURN, 2 * GROUP); // the first turn is warpgroup 1's
  for (int nth = group; tile < work.tiles; nth += 2, tile += 2 * stride) {
    float sums[2][64];
    ptx::part_sync(TURN + group, 2 * GROUP);
    multiply_tile(base, sums, nth * work.steps, work.steps, thread % tiles::WARP);
    if (tile + stride < work.tiles)
      ptx::part_arrive(TURN + (group ^ 1), 2 * GROUP); // there is a next tile, and it is the other's
    ptx::products_wait<0>();
    if (thread % tiles::WARP == 0)
      ptx::barrier_arrive(empty(base + BARRIERS_AT, nth * work.steps + work.steps - 1));
    finish_tile<EPILOGUE>(done, sums, bias, residual, y, work, tile, group, thread);
  }
}

template <int EPILOGUE>
DEVICE void linear_hopper(const TensorMap *x, const TensorMap *w, const int *count, const float *bias,
                          const u16 *residual, u16 *y, int inputs, int outputs) {
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: stages begin at a multiple of 1,024 wherever the memory does.
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  u32 base = ptx::shared(memory);
  Work work = ring::work<DEPTH>(*count, inputs, outputs);
  if (threadIdx.x == 0)
    prepare(base + BARRIERS_AT, GROUP / tiles::WARP);
  __syncthreads();
  int group = (int)threadIdx.x / GROUP;
  if (group == 0) {
    ptx::registers_down<24>();
    if (threadIdx.x == 0)
      produce<DEPTH>(base, base + BARRIERS_AT, x, w, work);
  } else {
    ptx::registers_up<240>();
    consume<EPILOGUE>(memory, bias, residual, y, work, group - 1, (int)threadIdx.x % GROUP);
  }
}

} // namespace

// ---- grid: a block a multiprocessor at most; 384 threads; 1,024 + BARRIERS_AT + 64 bytes -------------------------------

#define LINEAR(name, EPILOGUE)                                                                                        \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      linear_hopper_##name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,                  \
                           const int *count, const float *bias, const u16 *residual, u16 *y, int inputs,              \
                           int outputs) {                                                                             \
    linear_hopper<EPILOGUE>(&x, &w, count, bias, residual, y, inputs, outputs);                                       \
  }
LINEAR(bias, BIAS)
LINEAR(gelu, GELU)
LINEAR(residual, RESIDUAL)
LINEAR(tanh, TANH)
#undef LINEAR
