// A product in tiles of 128×192, or 128×128, by two warpgroups in turns: what linear_hopper.cu and linear_int8_hopper.cu
// share. They differ in what is multiplied, and in what becomes of the sums.
//
//   warpgroup 0, one thread   brings 128 bytes of a tile's rows of X and of W a step, by the copy engine, into the ring
//   warpgroup 1               tiles 0, 2, 4 … of this block: wgmma over K, then the epilogue
//   warpgroup 2               tiles 1, 3, 5 …                the same, half a beat behind
//
//   copy engine  ▐ 0 0 0 0 0 0 1 1 1 1 1 1 2 2 2 2 2 2 3 3 …          always ahead, over tiles' borders
//   warpgroup 1   ├── tile 0: wgmma ──┤─ epilogue ─┤    ├── tile 2 ──┤─ epilogue ─┤
//   warpgroup 2                       ├── tile 1: wgmma ──┤─ epilogue ─┤            "ping-pong"
//   tensor cores  ████████████████████████████████████████████████████  never wait for an epilogue
//
//   shared memory   3 stages × (X 16 KB | W 24 KB)   two finished tiles of 48 KB   barriers      216 KB
//       or          4 stages × (X 16 KB | W 16 KB)   two finished tiles of 32 KB   barriers      192 KB
//   a thread        192 or 128 sums, in registers till the tile is done
//
// The grid is persistent: block b takes tiles b, b + grid, …, counted by the rows that the batch really has.
// A stage of the ring is emptied by the 4 warps of the one warpgroup whose tile the step belongs to, and by those
// of all blocks of the cluster, which take the same turns.
//
//   turn 1, 2      named barriers                a warpgroup starts a tile's products only when the other
//                                                has waited for all of the previous tile's steps
//
// Why turns are needed for correctness, not only for speed: barriers know a phase by its parity only,
// so nobody may wait for a phase two ahead. Whoever has its turn has the steps before n behind it.
//
// Invariants: fixed order over K, no split, rows past the count not written. (Rows past the count but inside
// the capacity are read; they meet only sums that are not stored.) Limits: sm_90a.
#pragma once
#include "ring.cuh"

namespace pingpong {
using namespace ring;

constexpr int TURN = 1, STORED = 3; // named barriers: 1, 2 and 3, 4; 0 is __syncthreads

// Where things lie in shared memory: the ring, two finished tiles of halves, the barriers.
template <int WIDTH, int CLUSTER> struct Places {
  static constexpr u32 DONE_BYTES = TILE * WIDTH * 2, DONE_AT = BYTES<WIDTH>;
  static constexpr u32 BARRIERS_AT = DONE_AT + 2 * DONE_BYTES;
  using Ring = ring::Ring<WIDTH, BARRIERS_AT, CLUSTER>;
};

// What is multiplied: 32 bytes of K at a time, into a half of a tile's sums. DEPTH elements are a step.
struct Halves {
  using Sum = float;
  static constexpr int DEPTH = 64;
  DEVICE static void multiply(float (&d)[64], u64 a, u64 b, int is_sum) { ptx::multiply_64x128x16(d, a, b, is_sum); }
  DEVICE static void multiply(float (&d)[96], u64 a, u64 b, int is_sum) { ptx::multiply_64x192x16(d, a, b, is_sum); }
};
struct Bytes {
  using Sum = int;
  static constexpr int DEPTH = 128;
  DEVICE static void multiply(int (&d)[64], u64 a, u64 b, int is_sum) { ptx::multiply_64x128x32(d, a, b, is_sum); }
  DEVICE static void multiply(int (&d)[96], u64 a, u64 b, int is_sum) { ptx::multiply_64x192x32(d, a, b, is_sum); }
};

// A thread's part of a tile: sums[0] are its upper 64 rows, sums[1] the lower. `thread` is of its warpgroup.
template <class Work> struct Place {
  const Work &work;
  int tile, thread;
  DEVICE int row0() const { return work.row0(tile); }
  DEVICE int column0() const { return work.column0(tile); }
  // The row in the tile of sums[half][… + eight · 2].
  DEVICE int row(int half, int eight) const {
    return half * 64 + thread / tiles::WARP * 16 + eight * 8 + thread % tiles::WARP / 4;
  }
};

// All steps of one tile.
template <class Operands, class Ring, int COUNT>
DEVICE void multiply_tile(const Ring &ring, typename Operands::Sum (&sums)[2][COUNT], int first_step, int steps,
                          int lane) {
  for (int k = 0; k < steps; k++) {
    int step = first_step + k;
    u32 from = ring.stage(step);
    ptx::barrier_wait(ring.full(step), ring.parity(step));
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < (int)STEP_BYTES / 32; i++) {
      u64 b = ptx::operand(from + X_BYTES + (u32)i * 32);
#pragma unroll
      for (int half = 0; half < 2; half++)
        Operands::multiply(sums[half], ptx::operand(from + (u32)half * 64 * STEP_BYTES + (u32)i * 32), b,
                           k > 0 || i > 0);
    }
    ptx::products_commit();
    ptx::products_wait<1>(); // the step before has been read: its stage is free
    if (k > 0)
      ring.release(step - 1, lane);
  }
}

// Brings a finished tile from where `tiles::swizzled` put it to Y.
template <int WIDTH, int AT_ONCE, class Work, class Element>
DEVICE void store_tile(const unsigned char *done, Element *y, const Place<Work> &place) {
  constexpr int SIZE = sizeof(Element);
  const Work &work = place.work;
  int row0 = place.row0(), column0 = place.column0();
  store_rows<TILE, WIDTH * SIZE / tiles::CHUNK_BYTES, AT_ONCE>(
      done, (unsigned char *)(y + (size_t)row0 * work.columns + column0), (size_t)work.columns * SIZE,
      work.rows() - row0, (work.columns - column0) * SIZE, place.thread);
}

// Warpgroup 1 (group 0) or 2 (group 1): every other tile of this block. `finish` has four members:
//   WIDTH                      columns of a tile
//   AT_ONCE                    chunks of a finished tile that a thread has in registers: see store_rows
//   tile(done, sums, place)    leaves the finished tile in shared memory, where `tiles::swizzled` says
//   y                          where Y begins, halves or bytes
template <class Operands, int CLUSTER, class Finish, class Work>
DEVICE void consume(unsigned char *memory, const Work &work, const Finish &finish, int group, int thread) {
  constexpr int WIDTH = Finish::WIDTH;
  using Places = pingpong::Places<WIDTH, CLUSTER>;
  typename Places::Ring ring = {ptx::shared(memory)};
  unsigned char *done = memory + Places::DONE_AT + group * Places::DONE_BYTES;
  int stride = work.stride(), tile = work.first() + group * stride;
  if (group == 1 && work.first() < work.tiles())
    ptx::part_arrive(TURN, 2 * GROUP); // the first turn is warpgroup 1's
  for (int nth = group; tile < work.tiles(); nth += 2, tile += 2 * stride) {
    typename Operands::Sum sums[2][WIDTH / 2];
    int steps = work.steps(), last = nth * steps + steps - 1;
    ptx::part_sync(TURN + group, 2 * GROUP);
    multiply_tile<Operands>(ring, sums, nth * steps, steps, thread % tiles::WARP);
    if (tile + stride < work.tiles())
      ptx::part_arrive(TURN + (group ^ 1), 2 * GROUP); // there is a next tile, and it is the other's
    ptx::products_wait<0>();
    ring.release(last, thread % tiles::WARP);
    int own = thread;
    ptx::made_anew(own); // addresses are made here, not kept beside the sums while they grow
    Place<Work> place = {work, tile, own};
    finish.tile(done, sums, place);
    ptx::part_sync(STORED + group, GROUP);
    store_tile<WIDTH, Finish::AT_ONCE>(done, finish.y, place);
    ptx::part_sync(STORED + group, GROUP); // before the next tile is written there
  }
}

// All of a block.
template <class Operands, int CLUSTER, class Finish>
DEVICE void multiply(const TensorMap *x, const TensorMap *w, const int *count, int inputs, int outputs,
                     const Finish &finish) {
  constexpr int WIDTH = Finish::WIDTH;
  Work<WIDTH, Operands::DEPTH, CLUSTER> work = {count, inputs, outputs};
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: stages begin at a multiple of 1,024 wherever the memory does.
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  typename Places<WIDTH, CLUSTER>::Ring ring = {ptx::shared(memory)};
  if (threadIdx.x == 0) {
    ptx::prefetch_map(x);
    ptx::prefetch_map(w);
    ring.prepare(GROUP / tiles::WARP);
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
    consume<Operands, CLUSTER>(memory, work, finish, group - 1, (int)threadIdx.x % GROUP);
  }
  cluster::leave<CLUSTER>();
}

} // namespace pingpong
