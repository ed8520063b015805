// Rows of 384 halves in device memory as bytes, rotated by 128 columns, with a scale a row: what add_norm_int8 leaves, for
// a kernel that has halves only. A warp takes two rows at a time, in halves (bytes.cuh).
//
//   lane of its row   0        1     …   15         8 of 128 columns a lane: 3 steps of the rotation in its words,
//   columns        0 – 7    8 – 15    120 – 127     4 by shuffles, two numbers at once; three times, for 384
//
// Where a row's bytes go, whoever calls says. Invariants: a row past the count is not read; it becomes zeros.
#pragma once
#include "bytes.cuh"
#include "tiles.cuh"

namespace quantize {

constexpr int COLUMNS = 384, PARTS = COLUMNS / 128, LANES = 16, WORDS = 4;

// Eight bytes of a row.
struct alignas(8) Eight {
  u32 low, high;
};

// The rotation of eight columns in four words: the first step's pairs and then the second's are brought face to face.
DEVICE void mix_own(u32 (&v)[WORDS]) {
#pragma unroll
  for (int i = 0; i < WORDS; i += 2)
#pragma unroll
    for (int step = 0; step < 2; step++) {
      u32 even = ptx::low_halves(v[i], v[i + 1]), odd = ptx::high_halves(v[i], v[i + 1]);
      v[i] = ptx::add_halves(even, odd);
      v[i + 1] = ptx::subtract_halves(even, odd);
    }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    u32 low = v[i], high = v[i + 2];
    v[i] = ptx::add_halves(low, high);
    v[i + 2] = ptx::subtract_halves(low, high);
  }
}

// And over the 16 lanes of the row.
DEVICE void mix_lanes(u32 (&v)[PARTS][WORDS], int lane) {
#pragma unroll 1 // few registers
  for (int mask = 1; mask < LANES; mask *= 2) {
    u32 sign = (lane & mask) ? 0xbc00bc00 : 0x3c003c00; // −1 or 1
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
      for (int i = 0; i < WORDS; i++)
        v[part][i] = ptx::fuse_halves(v[part][i], sign, ptx::shuffle_xor(v[part][i], mask));
  }
}

// A word's two rows of a warp: `row` and those `stride` behind it, each as `to(row, columns / 8, bytes)` and
// `scale(row, number)`. x: the tile's first row; `rows` are there.
template <class To, class Scale>
DEVICE void rows(const u16 *x, int rows, int of_tile, int warp, int warps, int lane, const To &to, const Scale &scale) {
  int own = lane % LANES;
#pragma unroll 1
  for (int row = warp * 2 + lane / LANES; row < of_tile + lane / LANES; row += warps * 2) {
    u32 v[PARTS][WORDS] = {};
    if (row < rows)
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        tiles::Chunk chunk = *(const tiles::Chunk *)(x + (size_t)row * COLUMNS + part * 128 + own * 8);
#pragma unroll
        for (int i = 0; i < WORDS; i++)
          v[part][i] = chunk.words[i];
      }
    u32 largest = 0;
#pragma unroll
    for (int part = 0; part < PARTS; part++)
      mix_own(v[part]);
    mix_lanes(v, lane);
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
      for (int i = 0; i < WORDS; i++)
        largest = ptx::largest_halves(largest, v[part][i]);
    largest = ptx::largest_halves(largest, largest >> 16 | largest << 16);
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2)
      largest = ptx::largest_halves(largest, ptx::shuffle_xor(largest, mask));
    bytes::Step step = bytes::step(ptx::from_half((u16)largest), 0.08838834765f); // H of 128, scaled by 1 / √128
    u32 inverse = ptx::low_halves(step.inverse, step.inverse);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      u32 b[WORDS];
#pragma unroll
      for (int i = 0; i < WORDS; i++)
        b[i] = bytes::byte_halves(v[part][i], inverse);
      to(row, part * LANES + own, Eight{ptx::even_bytes(b[0], b[1]), ptx::even_bytes(b[2], b[3])});
    }
    if (own == 0)
      scale(row, step.scale);
  }
}

} // namespace quantize
