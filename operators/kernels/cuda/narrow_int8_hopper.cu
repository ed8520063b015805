// Y = X·Wᵀ + b of bytes, where every 128 columns of a row of X have a scale of their own: behind GELU, whose
// largest number of a row nobody knows before all of the row is there. Stage 5.
//
//   x ≈ X[row] · rows[row, column / 128]      w ≈ W[column] · columns[column]      Y in halves
//
// A step of the ring is 128 columns: just one scale a row. So its sums are exact integers, and are scaled and
// added to the row's floats while the tensor cores make the next step's:
//
//   tensor cores   │ step 0 ▶ A │ step 1 ▶ B │ step 2 ▶ A │ …      A, B: 64 integers a thread
//   a warpgroup                 │ Y += A · s₀ │ Y += B · s₁ │ …     Y: 64 floats
//
//   columns of a tile   0 … 127
//   rows   0–63        ┌───────┐ warpgroup 1        both read every step of the ring, W's part together:
//   rows  64–127       └───────┘ warpgroup 2        a stage is empty when 8 warps have read it
//
// No turns are needed: a stage is filled again only when both have read it, so neither is ever two phases
// behind. Nobody's products wait for the other's scaling; at a tile's end both store while the ring fills.
//
// Invariants: a row's floats are added in order of K; rows past the count are not written, and their scales
// are not read. Limits: sm_90a; inputs a multiple of 128, outputs of 8.
#include "numbers.cuh"
#include "ring.cuh"

namespace {
using namespace ring;
using numbers::Pair;

constexpr int DEPTH = 128, ROWS = TILE / 2; // of a warpgroup
constexpr int CHUNKS = TILE / tiles::CHUNK_HALVES;
constexpr u32 DONE_BYTES = ROWS * TILE * 2, DONE_AT = ring::BYTES<TILE>, BARRIERS_AT = DONE_AT + 2 * DONE_BYTES;
template <int CLUSTER> using Steps = ring::Ring<TILE, BARRIERS_AT, CLUSTER>;
template <int CLUSTER> using Tiles = ring::Work<TILE, DEPTH, CLUSTER>;
constexpr int STORED = 1; // named barriers 1 and 2

// The scales of a lane's two rows of one step.
struct Scales {
  float low, high;
};

// Starts one step's products.
template <int CLUSTER>
DEVICE void multiply(const Steps<CLUSTER> &ring, int (&part)[64], int step, int group) {
  u32 from = ring.stage(step);
  ptx::barrier_wait(ring.full(step), ring.parity(step));
  ptx::products_begin();
#pragma unroll
  for (int i = 0; i < DEPTH / 32; i++)
    ptx::multiply_64x128x32(part, ptx::operand(from + (u32)group * ROWS * 128 + (u32)i * 32),
                            ptx::operand(from + X_BYTES + (u32)i * 32), i > 0);
  ptx::products_commit();
}

// A finished step: its stage is free, its sums become floats.
template <int CLUSTER>
DEVICE void add(const Steps<CLUSTER> &ring, float (&sums)[64], const int (&part)[64], const Scales &scales, int step, int lane) {
  ring.release(step, lane);
#pragma unroll
  for (int i = 0; i < 64; i++)
    sums[i] += (float)part[i] * (i % 4 < 2 ? scales.low : scales.high);
}

template <int CLUSTER>
DEVICE void multiply_tile(const Steps<CLUSTER> &ring, float (&sums)[64], const float *low, const float *high, int first_step,
                          int steps, int group, int lane) {
  int a[64], b[64];
#pragma unroll
  for (int i = 0; i < 64; i++)
    sums[i] = 0.0f;
  auto scales = [&](int k) { return Scales{low ? low[k] : 0.0f, high ? high[k] : 0.0f}; };
  Scales of_a = scales(0), of_b;
  multiply(ring, a, first_step, group);
  int k = 0; // the step that is being made in a
  for (; k + 2 < steps; k += 2) {
    of_b = scales(k + 1);
    multiply(ring, b, first_step + k + 1, group);
    ptx::products_wait<1>();
    add(ring, sums, a, of_a, first_step + k, lane);
    of_a = scales(k + 2);
    multiply(ring, a, first_step + k + 2, group);
    ptx::products_wait<1>();
    add(ring, sums, b, of_b, first_step + k + 1, lane);
  }
  if (k + 2 == steps) {
    of_b = scales(k + 1);
    multiply(ring, b, first_step + k + 1, group);
    ptx::products_wait<1>();
    add(ring, sums, a, of_a, first_step + k, lane);
    ptx::products_wait<0>();
    add(ring, sums, b, of_b, first_step + k + 1, lane);
  } else {
    ptx::products_wait<0>();
    add(ring, sums, a, of_a, first_step + k, lane);
  }
}

template <int CLUSTER>
DEVICE void finish_tile(unsigned char *done, const float (&sums)[64], const float *columns, const float *bias, u16 *y,
                        const Tiles<CLUSTER> &work, int tile, int group, int thread) {
  ptx::made_anew(thread);
  int row = thread / tiles::WARP * 16 + thread % tiles::WARP / 4, t = thread % 4;
  int row0 = work.row0(tile) + group * ROWS, column0 = work.column0(tile);
#pragma unroll
  for (int n = 0; n < TILE / 8; n++) {
    int column = column0 + n * 8 + t * 2;
    Pair weights = {}, added = {};
    if (column < work.columns) {
      weights = *(const Pair *)(columns + column);
      added = *(const Pair *)(bias + column);
    }
#pragma unroll
    for (int eight = 0; eight < 2; eight++)
      *(u32 *)(done + tiles::swizzled<CHUNKS>(row + eight * 8, n) + t * 4) =
          ptx::to_halves(sums[n * 4 + eight * 2] * weights.low + added.low,
                         sums[n * 4 + eight * 2 + 1] * weights.high + added.high);
  }
  ptx::part_sync(STORED + group, GROUP);
  store_rows<ROWS, CHUNKS, 4>(done, (unsigned char *)(y + (size_t)row0 * work.columns + column0),
                           (size_t)work.columns * 2, work.rows() - row0, (work.columns - column0) * 2, thread);
  ptx::part_sync(STORED + group, GROUP); // before the next tile is written there
}

// A warpgroup: its 64 rows of every tile of this block.
template <int CLUSTER>
DEVICE void consume(unsigned char *memory, const float *rows, const float *columns, const float *bias, u16 *y,
                    const Tiles<CLUSTER> &work, int group, int thread) {
  Steps<CLUSTER> ring = {ptx::shared(memory)};
  int lane = thread % tiles::WARP, at = group * ROWS + thread / tiles::WARP * 16 + lane / 4;
  int first_step = 0;
  for (int tile = work.first(); tile < work.tiles(); tile += work.stride(), first_step += work.steps()) {
    int row = work.row0(tile) + at;
    const float *low = row < work.rows() ? rows + (size_t)row * work.steps() : nullptr;
    const float *high = row + 8 < work.rows() ? rows + (size_t)(row + 8) * work.steps() : nullptr;
    float sums[64];
    multiply_tile(ring, sums, low, high, first_step, work.steps(), group, lane);
    finish_tile(memory + DONE_AT + group * DONE_BYTES, sums, columns, bias, y, work, tile, group, thread);
  }
}

template <int CLUSTER>
DEVICE void narrow(const TensorMap *x, const TensorMap *w, const int *count, const float *rows, const float *columns,
                   const float *bias, u16 *y, int inputs, int outputs) {
  SHARED_MEMORY(raw);
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  Steps<CLUSTER> ring = {ptx::shared(memory)};
  Tiles<CLUSTER> work = {count, inputs, outputs};
  if (threadIdx.x == 0) {
    ptx::prefetch_map(x);
    ptx::prefetch_map(w);
    ring.prepare(2 * GROUP / tiles::WARP);
  }
  cluster::meet<CLUSTER>();
  ptx::follow();
  int group = (int)threadIdx.x / GROUP;
  if (group == 0) {
    ptx::registers_down<24>();
    if (threadIdx.x == 0)
      ring.produce(x, w, work);
    ptx::warp_sync();
  } else {
    ptx::registers_up<240>();
    consume(memory, rows, columns, bias, y, work, group - 1, (int)threadIdx.x % GROUP);
  }
  cluster::leave<CLUSTER>();
}

} // namespace

// ---- grid: a block a multiprocessor at most, whole clusters; 384 threads; 1,024 + BARRIERS_AT + 64 bytes --------------
// Boxes of X have 128 rows, those of W 128 / CLUSTER.

#define NARROW(name, CLUSTER)                                                                                         \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const int *count,                \
           const float *rows, const float *columns, const float *bias, u16 *y, int inputs, int outputs) {             \
    narrow<CLUSTER>(&x, &w, count, rows, columns, bias, y, inputs, outputs);                                          \
  }
NARROW(narrow_int8_hopper, 1)
NARROW(narrow_int8_hopper_by2, 2)
NARROW(narrow_int8_hopper_by4, 4)
#undef NARROW
