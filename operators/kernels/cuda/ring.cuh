// What the products by warpgroups share: a ring of operands in shared memory that the copy engine fills and
// the tensor cores empty, the tiles of a persistent block, and how a finished tile leaves.
//
//   tile    128 rows × WIDTH columns, 128 or 192
//   stage   X 128 rows × 128 bytes | W WIDTH rows × 128 bytes     swizzled, 32 or 40 KB; 64 halves or 128 bytes of K
//   ring    4 stages of 32 KB, 3 of 40     step n uses stage n % STAGES, phase n / STAGES; steps run on over tiles' borders
//
//   full[stage]    1 arrival and all its bytes       the producer announces, the copy engine delivers
//   empty[stage]   an arrival of every warp that reads the stage
//
// Why 192: shared memory gives 128 bytes a clock, to the tensor cores and for what comes in. A step of a tile of halves,
// by a warpgroup with 2 × 64 rows:
//
//                                128×128    128×192
//   tensor cores, clocks             512        768
//   read by wgmma, KB                 48         64       each half of the rows reads W
//   brought, KB                       32         40
//   clocks of shared memory          640        832       125 %, 108 % of the tensor cores'
//
// and 1,152, 1,536, 384 columns are whole tiles of 192, with fewer blocks left over in the last round: of 8,192 rows and
// 384 columns 128 tiles for 132 multiprocessors, not 192.
//
// Barriers know a phase by its parity only: nobody may wait for a phase two ahead (each kernel says why
// nobody does). Limits: sm_90a.
#pragma once
#include "cluster.cuh"
#include "tiles.cuh"

namespace ring {

constexpr int TILE = 128, THREADS = 384, GROUP = 128; // rows of a tile
constexpr u32 STEP_BYTES = 128, X_BYTES = TILE * STEP_BYTES;

// The tiles of Y: 128×WIDTH each, counted by the rows that there really are. A cluster's blocks make tiles of the same
// columns, one below the other, and share W (cluster.cuh): such a column of tiles has a number, across and then down.
// Everything is worked out anew each time: sums need the registers. DEPTH elements of a row are 128 bytes.
template <int WIDTH, int DEPTH, int CLUSTER> struct Work {
  static constexpr int ROWS = CLUSTER * TILE;
  const int *count;
  int inputs, columns;
  DEVICE int rows() const { return *count; }
  DEVICE int steps() const { return (inputs + DEPTH - 1) / DEPTH; }
  DEVICE int across() const { return (columns + WIDTH - 1) / WIDTH; }
  DEVICE int tiles() const { return (*count + ROWS - 1) / ROWS * across(); }
  DEVICE int first() const { return (int)blockIdx.x / CLUSTER; }
  DEVICE int stride() const { return (int)gridDim.x / CLUSTER; }
  DEVICE int row0(int tile) const { return tile / across() * ROWS + (int)blockIdx.x % CLUSTER * TILE; }
  DEVICE int column0(int tile) const { return tile % across() * WIDTH; }
};

// A ring at the beginning of a block's shared memory, its barriers at BARRIERS_AT behind.
template <int WIDTH, u32 BARRIERS_AT, int CLUSTER> struct Ring {
  static constexpr int STAGES = WIDTH > 128 ? 3 : 4;
  static constexpr u32 STAGE_BYTES = X_BYTES + WIDTH * STEP_BYTES;
  u32 memory;

  DEVICE u32 stage(int step) const { return memory + (u32)(step % STAGES) * STAGE_BYTES; }
  DEVICE u32 full(int step) const { return memory + BARRIERS_AT + (u32)(step % STAGES) * 8; }
  DEVICE u32 empty(int step) const { return memory + BARRIERS_AT + (u32)(STAGES + step % STAGES) * 8; }
  DEVICE u32 parity(int step) const { return (u32)(step / STAGES) & 1; }

  // A warp has read a step.
  DEVICE void release(int step, int lane) const { cluster::release<CLUSTER>(empty(step), lane); }

  // One thread; `readers` warps of each block empty a stage. Then cluster::meet.
  DEVICE void prepare(int readers) const {
    for (int stage = 0; stage < STAGES; stage++) {
      ptx::barrier_init(full(stage), 1);
      ptx::barrier_init(empty(stage), (u32)(CLUSTER * readers));
    }
    ptx::barriers_ready();
  }

  // One thread: brings every step of every tile of this block, in order.
  template <int DEPTH>
  DEVICE void produce(const TensorMap *x, const TensorMap *w, const Work<WIDTH, DEPTH, CLUSTER> &work) const {
    int step = 0, steps = work.steps(), tiles = work.tiles();
    for (int tile = work.first(); tile < tiles; tile += work.stride())
#pragma unroll 1 // the producer has few registers
      for (int k = 0; k < steps; k++, step++) {
        u32 to = stage(step), barrier = full(step);
        ptx::barrier_wait_all(empty(step), parity(step) ^ 1); // fresh: at once
        ptx::barrier_expect(barrier, STAGE_BYTES);
        ptx::load_box(to, x, k * DEPTH, work.row0(tile), barrier);
        cluster::bring<CLUSTER, WIDTH>(to + X_BYTES, w, k * DEPTH, work.column0(tile), barrier);
      }
  }
};

// Bytes of the stages.
template <int WIDTH> constexpr u32 BYTES = (WIDTH > 128 ? 3u : 4u) * (X_BYTES + WIDTH * STEP_BYTES);

// A warpgroup stores ROWS finished rows of CHUNKS · 16 bytes, from where `tiles::swizzled` put them, in whole
// chunks. `y` is row `row0`'s first byte of the tile; rows and bytes past the ends stay where they are.
template <int ROWS, int CHUNKS>
DEVICE void store_rows(const unsigned char *done, unsigned char *y, size_t pitch, int rows, int bytes, int thread) {
#pragma unroll 4
  for (int i = 0; i < ROWS * CHUNKS / GROUP; i++) {
    int piece = thread + i * GROUP, row = piece / CHUNKS, chunk = piece % CHUNKS;
    if (row < rows && chunk * tiles::CHUNK_BYTES < bytes)
      *(tiles::Chunk *)(y + (size_t)row * pitch + chunk * tiles::CHUNK_BYTES) =
          *(const tiles::Chunk *)(done + tiles::swizzled<CHUNKS>(row, chunk));
  }
}

} // namespace ring
