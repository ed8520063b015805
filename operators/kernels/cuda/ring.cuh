// What the products by warpgroups share: a ring of operands in shared memory that the copy engine fills and
// the tensor cores empty, the tiles of a persistent block, and how a finished tile leaves.
//
//   stage   X 128 rows × 128 bytes | W 128 rows × 128 bytes       swizzled, 32 KB; 64 halves or 128 bytes of K
//   ring    stage 0 … 3            step n uses stage n % 4, phase n / 4; steps run on over tiles' borders
//
//   full[stage]    1 arrival and 32,768 bytes    the producer announces, the copy engine delivers
//   empty[stage]   an arrival of every warp that reads the stage
//
// Barriers know a phase by its parity only: nobody may wait for a phase two ahead (each kernel says why
// nobody does). Limits: sm_90a.
#pragma once
#include "hopper.cuh"
#include "tiles.cuh"

namespace ring {

constexpr int TILE = 128, STAGES = 4, THREADS = 384, GROUP = 128;
constexpr u32 STEP_BYTES = 128, OPERAND_BYTES = TILE * STEP_BYTES, STAGE_BYTES = 2 * OPERAND_BYTES;
constexpr u32 BYTES = STAGES * STAGE_BYTES, BARRIER_BYTES = 2 * STAGES * 8;

// The tiles of Y: 128×128 each, by number across and then down; counted by the rows that there really are.
struct Work {
  int rows, columns, steps, tiles_across, tiles;
  DEVICE int row0(int tile) const { return tile / tiles_across * TILE; }
  DEVICE int column0(int tile) const { return tile % tiles_across * TILE; }
};

template <int DEPTH> DEVICE Work work(int rows, int inputs, int outputs) {
  int across = (outputs + TILE - 1) / TILE;
  return {rows, outputs, (inputs + DEPTH - 1) / DEPTH, across, (rows + TILE - 1) / TILE * across};
}

DEVICE u32 stage(u32 memory, int step) { return memory + (u32)(step % STAGES) * STAGE_BYTES; }
DEVICE u32 full(u32 barriers, int step) { return barriers + (u32)(step % STAGES) * 8; }
DEVICE u32 empty(u32 barriers, int step) { return barriers + (u32)(STAGES + step % STAGES) * 8; }
DEVICE u32 parity(int step) { return (u32)(step / STAGES) & 1; }

// One thread; `readers` warps empty a stage. Then __syncthreads.
DEVICE void prepare(u32 barriers, int readers) {
  for (int stage = 0; stage < STAGES; stage++) {
    ptx::barrier_init(full(barriers, stage), 1);
    ptx::barrier_init(empty(barriers, stage), (u32)readers);
  }
  ptx::barriers_ready();
}

// One thread: brings every step of every tile of this block, in order. DEPTH elements are 128 bytes.
template <int DEPTH>
DEVICE void produce(u32 memory, u32 barriers, const TensorMap *x, const TensorMap *w, const Work &work) {
  int step = 0;
  for (int tile = (int)blockIdx.x; tile < work.tiles; tile += (int)gridDim.x)
#pragma unroll 1 // the producer has few registers
    for (int k = 0; k < work.steps; k++, step++) {
      u32 to = stage(memory, step), barrier = full(barriers, step);
      ptx::barrier_wait(empty(barriers, step), parity(step) ^ 1); // fresh: at once
      ptx::barrier_expect(barrier, STAGE_BYTES);
      ptx::load_box(to, x, k * DEPTH, work.row0(tile), barrier);
      ptx::load_box(to + OPERAND_BYTES, w, k * DEPTH, work.column0(tile), barrier);
    }
}

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
