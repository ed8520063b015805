// What kernels share whose blocks share a stream of weights: a cluster of 1, 2 or 4 blocks on neighbouring
// multiprocessors takes the same weights at the same time, so each brings its share of a stage to all of them.
//
//   a stage of W, 128 rows      block 0            block 1
//     rows  0 …  63  brought by block 0 ──▶ here and here       to the same place in every block
//     rows 64 … 127  brought by block 1 ──▶ here and here
//   full    a block's own: 1 arrival, all the stage's bytes. Bytes of others may come before the own block has announced
//           them; the phase still waits for the announcement.
//   empty   a block's own: arrivals of the warps of *all* blocks that read the stage
//
// So nobody fills what somebody still reads, and everybody walks through the same steps: blocks whose rows are past the
// count go along. Nobody leaves before all have done all: others write into its memory and arrive there.
#pragma once
#include "hopper.cuh"

namespace cluster {

// The walk over tiles of ROWS rows: all blocks of a cluster, which have neighbouring numbers, make as many.
template <int CLUSTER, int ROWS> struct Tiles {
  const int *count; // read each time: sums need the registers
  DEVICE int first() const { return (int)blockIdx.x * ROWS; }
  DEVICE int next(int row0) const { return row0 + (int)gridDim.x * ROWS; }
  DEVICE bool has(int row0) const { return row0 / (CLUSTER * ROWS) * (CLUSTER * ROWS) < *count; }
};

// All threads of all blocks.
template <int CLUSTER> DEVICE void meet() {
  if (CLUSTER == 1)
    __syncthreads();
  else
    ptx::cluster_sync();
}

// One thread of each block: brings its share of ROWS rows, from `row` of the map on, to all blocks. A box of the map
// has ROWS / CLUSTER rows of 128 bytes.
template <int CLUSTER, int ROWS> DEVICE void bring(u32 to, const TensorMap *map, int column, int row, u32 full) {
  if (CLUSTER == 1) {
    ptx::load_box(to, map, column, row, full);
  } else {
    int share = ptx::cluster_rank() * (ROWS / CLUSTER);
    ptx::load_box_to(to + (u32)share * 128, map, column, row + share, full, (1u << CLUSTER) - 1);
  }
}

// The same of PARTS · ROWS rows: a box may have 256 of them.
template <int CLUSTER, int ROWS, int PARTS>
DEVICE void bring_parts(u32 to, const TensorMap *map, int column, int row, u32 full) {
#pragma unroll 1 // the producer has few registers
  for (int part = 0; part < PARTS; part++)
    bring<CLUSTER, ROWS>(to + (u32)part * ROWS * 128, map, column, row + part * ROWS, full);
}

// A warp: says to all blocks that it has read a stage.
template <int CLUSTER> DEVICE void release(u32 empty, int lane) {
  if (CLUSTER == 1 && lane == 0)
    ptx::barrier_arrive(empty);
  if (CLUSTER > 1 && lane < CLUSTER)
    ptx::barrier_arrive_at(empty, lane);
}

} // namespace cluster
