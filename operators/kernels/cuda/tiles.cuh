// Where things lie: pure index maps, shared by all kernels and checked one by one in
// src/cuda/tiles.rs, which mirrors them.
#pragma once
#include "ptx.cuh"

namespace tiles {

constexpr int WARP = 32;
// A chunk is what one thread copies at a time: 16 bytes, 8 halves.
constexpr int CHUNK_BYTES = 16;
constexpr int CHUNK_HALVES = 8;
struct alignas(16) Chunk {
  u32 words[4];
};

// Byte offset of a chunk in a tile whose rows are CHUNKS chunks long, XOR-swizzled:
//
//   8 chunks (128 bytes a row)         4 chunks (64 bytes a row: two rows share 128 bytes)
//   row 0   0 1 2 3 4 5 6 7            rows 0, 1   0 1 2 3 | 0 1 2 3
//   row 1   1 0 3 2 5 4 7 6            rows 2, 3   1 0 3 2 | 1 0 3 2
//   row 2   2 3 0 1 6 7 4 5            rows 4, 5   2 3 0 1 | 2 3 0 1
//   …                                  …
//
// A column of chunks over 8 successive rows, which is what load_matrices reads at a time, thus
// meets all 32 banks once.
template <int CHUNKS> DEVICE u32 swizzled(int row, int chunk) {
  static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes, or of a multiple of 128");
  int turn = CHUNKS == 4 ? (row >> 1) & 3 : row & 7;
  return (u32)((row * CHUNKS + (chunk ^ turn)) * CHUNK_BYTES);
}

// Which text the batch's row lies in: the last with starts[text] ≤ row. texts ≥ 1, starts[0] = 0.
DEVICE int text_of(int row, const int *starts, int texts) {
  int low = 0, high = texts;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (starts[middle] <= row)
      low = middle;
    else
      high = middle;
  }
  return low;
}

} // namespace tiles
