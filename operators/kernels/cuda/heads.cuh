// Head-major states: a plane a head and part, so that a text's K of a head is one run of memory.
//
//   columns of Q·Kᵀ's product   │ Q₀ … Qₕ₋₁ │ K₀ … Kₕ₋₁ │ V₀ … Vₕ₋₁ │      32 columns each
//                                   │                                    column c of row r lies in plane c / 32,
//   planes [3 · heads, capacity, 32]  └─▶ 0 │ 1 │ …                      row r, column c % 32
//
// A finished tile's 192 columns are 6 planes. Eight rows of one plane are 512 bytes in a row, by one warp:
//
//   lanes  0 … 3 | 4 … 7 | 8 … 11 | 12 … 15 | …        a lane copies 16 bytes
//   rows     0       4       1         5      …        eight lanes read all eight bank groups: rows r and r + 4
//                                                      are swizzled into different halves
//
// Invariants: rows past the count and columns past the last are not written. Limits: columns a multiple of 32.
#pragma once
#include "pingpong.cuh"

namespace pingpong {

struct Planes {
  u16 *y;
  int capacity; // rows of a plane
};

// As store_tile of rows. `done` is swizzled as there.
template <int WIDTH, class Work>
DEVICE void store_tile(const unsigned char *done, const Planes &planes, const Place<Work> &place) {
  constexpr int HEAD = 32, CHUNKS = HEAD / tiles::CHUNK_HALVES, ROWS = 8, WARPS = GROUP / tiles::WARP;
  int lane = place.thread % tiles::WARP, warp = place.thread / tiles::WARP;
  int row0 = place.row0(), plane0 = place.column0() / HEAD, planes_there = place.work.columns / HEAD;
  int rows = place.work.rows() - row0, chunk = lane % CHUNKS;
#pragma unroll 4
  for (int i = 0; i < TILE / ROWS * (WIDTH / HEAD) / WARPS; i++) { // a warp takes 8 rows of a plane
    int piece = i * WARPS + warp, plane = piece / (TILE / ROWS);
    int row = piece % (TILE / ROWS) * ROWS + lane / CHUNKS % 2 * 4 + lane / (2 * CHUNKS);
    if (row < rows && plane0 + plane < planes_there)
      *(tiles::Chunk *)(planes.y + ((size_t)(plane0 + plane) * planes.capacity + row0 + row) * HEAD +
                        chunk * tiles::CHUNK_HALVES) =
          *(const tiles::Chunk *)(done + tiles::swizzled<WIDTH / tiles::CHUNK_HALVES>(row, plane * CHUNKS + chunk));
  }
}

} // namespace pingpong
