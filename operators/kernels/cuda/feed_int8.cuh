// feed_int8_hopper.cu's shared memory and barriers, and its first warpgroup: what is there before the products, and behind
// them. The picture and the laws are there.
//
//   x as bytes 2 × 24 KB │ H 4 × 8 KB │ W1 3 × 16 KB │ W2 2 × 48 KB │ scales of x and H │ 20 barriers         225.7 KB
//
//   thread 0       asks the copy engine for W1 and W2
//   warps 1 – 3    in halves, from device memory: x of the next tile ▶ bytes here; finished rows ▶ bytes there
#pragma once
#include "cluster.cuh"
#include "groups.cuh"
#include "quantize.cuh"

namespace feed_int8 {
using cluster::Tiles;
using groups::GROUP, groups::HIDDEN, groups::MET, groups::OWN, groups::Place, groups::ROWS;

constexpr int CHUNK = 128, DEPTH = 128;
constexpr int FIRST_STEPS = HIDDEN / DEPTH, FIRST_STAGES = 3, H_STAGES = 4;
constexpr int THREADS = 3 * GROUP, GROUP_WARPS = GROUP / tiles::WARP, WARPS = 2 * GROUP_WARPS;
constexpr int HELPERS = GROUP_WARPS - 1;
constexpr u32 BOX = ROWS * DEPTH; // of x and of H: 64 rows of 128 bytes
constexpr u32 X_BYTES = FIRST_STEPS * BOX, FIRST_BYTES = CHUNK * DEPTH, SECOND_BYTES = HIDDEN * DEPTH;
constexpr u32 H_AT = 2 * X_BYTES, FIRST_AT = H_AT + H_STAGES * BOX, SECOND_AT = FIRST_AT + FIRST_STAGES * FIRST_BYTES;
constexpr u32 X_SCALES_AT = SECOND_AT + 2 * SECOND_BYTES, H_SCALES_AT = X_SCALES_AT + 2 * ROWS * 4;
constexpr u32 BARRIERS_AT = H_SCALES_AT + H_STAGES * ROWS * 4;
// In x's place, behind a tile's products: 16 rows and 64 columns leave a warp at a time (join_hopper.cu), then row sums.
constexpr int SLICE = 64, SLICE_CHUNKS = SLICE / tiles::CHUNK_HALVES, PITCH = SLICE * 2 + tiles::CHUNK_BYTES;
constexpr u32 SUMS_AT = WARPS * 16 * PITCH, SQUARES_AT = SUMS_AT + 2 * ROWS * 4;
static_assert(SQUARES_AT + 2 * ROWS * 4 <= X_BYTES, "a tile of x as bytes");

// A ring's stage of a step: where its bytes are, the barrier that says that they came, and that they may go.
struct Stage {
  u32 at, full, empty, parity;
};
template <int STAGES, u32 AT, u32 BYTES, int BARRIER> DEVICE Stage stage_of(u32 memory, int step) {
  u32 nth = (u32)step, i = nth % STAGES; // without a sign they are a mask and a shift
  u32 barrier = memory + BARRIERS_AT + (BARRIER + i) * 8;
  return {memory + AT + i * BYTES, barrier, barrier + STAGES * 8, nth / STAGES & 1};
}
DEVICE Stage x_stage(u32 memory, int tile) { return stage_of<2, 0, X_BYTES, 0>(memory, tile); }
// Of H, `empty` is not there.
DEVICE Stage h_stage(u32 memory, int chunk) { return stage_of<H_STAGES, H_AT, BOX, 14>(memory, chunk); }
DEVICE Stage first_stage(u32 memory, int step) { return stage_of<FIRST_STAGES, FIRST_AT, FIRST_BYTES, 4>(memory, step); }
DEVICE Stage second_stage(u32 memory, int step) { return stage_of<2, SECOND_AT, SECOND_BYTES, 10>(memory, step); }
DEVICE u32 turn_of(u32 memory, int group) { return memory + BARRIERS_AT + (u32)(18 + group) * 8; }

// One thread. A stage of W1 is read by one group of each block, of W2 by both.
template <int CLUSTER> DEVICE void prepare(u32 memory) {
  for (int i = 0; i < 2; i++) {
    ptx::barrier_init(x_stage(memory, i).full, HELPERS);
    ptx::barrier_init(x_stage(memory, i).empty, WARPS);
    ptx::barrier_init(second_stage(memory, i).full, 1);
    ptx::barrier_init(second_stage(memory, i).empty, CLUSTER * WARPS);
    ptx::barrier_init(turn_of(memory, i), GROUP_WARPS);
  }
  for (int i = 0; i < H_STAGES; i++)
    ptx::barrier_init(h_stage(memory, i).full, GROUP_WARPS);
  for (int i = 0; i < FIRST_STAGES; i++) {
    ptx::barrier_init(first_stage(memory, i).full, 1);
    ptx::barrier_init(first_stage(memory, i).empty, CLUSTER * GROUP_WARPS);
  }
  ptx::barriers_ready();
}

// What is in device memory.
struct Operands {
  const int *count;
  const float *columns1, *bias1, *columns2, *bias2; // what a weight's row is multiplied with, what is added
  const float *gain, *shift;
  u16 *x;
  unsigned char *bytes;
  float *scales;
  float epsilon;
  int chunks;
};

// ---- the first warpgroup: a thread that copies, three warps that make bytes -----------------------------

// A step's PARTS · 128 rows from `row` on.
template <int CLUSTER, int PARTS> DEVICE void bring(const Stage &stage, const TensorMap *map, int column, int row) {
  ptx::barrier_wait(stage.empty, stage.parity ^ 1); // fresh: at once
  ptx::barrier_expect(stage.full, PARTS * 128 * DEPTH);
  cluster::bring_parts<CLUSTER, 128, PARTS>(stage.at, map, column, row, stage.full);
}

// Every step of every tile, in the order of their use: W2 of a chunk behind W1 of the next, over tiles' borders too.
template <int CLUSTER>
DEVICE void produce(u32 memory, const TensorMap *w1, const TensorMap *w2, const int *count, int chunks) {
  int nth = 0, before = 0;
  Tiles<CLUSTER, ROWS> tiles = {count};
  for (int row0 = tiles.first(); tiles.has(row0); row0 = tiles.next(row0))
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++, nth++) {
#pragma unroll 1
      for (int k = 0; k < FIRST_STEPS; k++)
        bring<CLUSTER, 1>(first_stage(memory, nth * FIRST_STEPS + k), w1, k * DEPTH, chunk * CHUNK);
      if (nth > 0)
        bring<CLUSTER, HIDDEN / 128>(second_stage(memory, nth - 1), w2, before * CHUNK, 0);
      before = chunk;
    }
  if (nth > 0)
    bring<CLUSTER, HIDDEN / 128>(second_stage(memory, nth - 1), w2, before * CHUNK, 0);
}

// x of a tile, for the first product: swizzled as the copy engine would. By `warps` warps, each AT_ONCE · 2 rows at a time.
template <int AT_ONCE>
DEVICE void take(unsigned char *memory, const Operands &of, int row0, int tile, int warp, int warps, int lane) {
  unsigned char *x = memory + (u32)(tile % 2) * X_BYTES;
  float *scales = (float *)(memory + X_SCALES_AT) + tile % 2 * ROWS;
  quantize::rows<ROWS, AT_ONCE>(
      of.x + (size_t)row0 * HIDDEN, *of.count - row0, warp, warps, lane,
      [&](int row, int eight, quantize::Eight bytes) {
        *(quantize::Eight *)(x + (u32)(eight / 16) * BOX + tiles::swizzled<8>(row, eight % 16 / 2) + eight % 2 * 8) = bytes;
      },
      [&](int row, float scale) { scales[row] = scale; });
  ptx::written_for_engines();
}

// A finished tile's rows, which are in device memory, for the next product.
template <int AT_ONCE> DEVICE void leave(const Operands &of, int row0, int warp, int warps, int lane) {
  int rows = *of.count - row0;
  quantize::rows<ROWS, AT_ONCE>(
      of.x + (size_t)row0 * HIDDEN, rows, warp, warps, lane,
      [&](int row, int eight, quantize::Eight bytes) {
        if (row < rows)
          *(quantize::Eight *)(of.bytes + (size_t)(row0 + row) * HIDDEN + eight * 8) = bytes;
      },
      [&](int row, float scale) {
        if (row < rows)
          of.scales[row0 + row] = scale;
      });
}

// Three warps: x of all tiles but the first, bytes of all but the last, those of a tile before x that takes its place.
template <int CLUSTER> DEVICE void help(unsigned char *memory, const Operands &of, int warp, int lane) {
  u32 base = ptx::shared(memory);
  Tiles<CLUSTER, ROWS> tiles = {of.count};
  int tile = 0, stride = tiles.next(0), row0 = tiles.first();
  auto finish = [&](int done) { // tile `done`, two before row0
    if (done < 0)
      return;
    ptx::barrier_wait(x_stage(base, done).empty, x_stage(base, done).parity);
    leave<1>(of, row0 - 2 * stride, warp, HELPERS, lane);
  };
  for (; tiles.has(row0); row0 += stride, tile++) {
    finish(tile - 2);
    if (tile > 0)
      take<1>(memory, of, row0, tile, warp, HELPERS, lane);
    ptx::warp_sync();
    if (lane == 0)
      ptx::barrier_arrive(x_stage(base, tile).full);
  }
  finish(tile - 2);
}

} // namespace feed_int8
