// Rows of 384 halves in device memory as bytes, rotated by 128 columns, with a scale a row: what add_norm_int8 leaves, for
// a kernel that has halves only. A warp takes two rows at a time or more, in halves (bytes.cuh).
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

// And over the 16 lanes of the row, of AT_ONCE rows.
template <int AT_ONCE> DEVICE void mix_lanes(u32 (&v)[AT_ONCE][PARTS][WORDS], int lane) {
#pragma unroll 1 // few registers
  for (int mask = 1; mask < LANES; mask *= 2) {
    u32 sign = (lane & mask) ? 0xbc00bc00 : 0x3c003c00; // −1 or 1
#pragma unroll
    for (int i = 0; i < AT_ONCE * PARTS * WORDS; i++) {
      u32 &own = v[i / (PARTS * WORDS)][i / WORDS % PARTS][i % WORDS];
      own = ptx::fuse_halves(own, sign, ptx::shuffle_xor(own, mask));
    }
  }
}

// A row, where there is one.
DEVICE void load(u32 (&v)[PARTS][WORDS], const u16 *row, bool is_there) {
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    tiles::Chunk chunk = {};
    if (is_there)
      chunk = *(const tiles::Chunk *)(row + part * 128);
#pragma unroll
    for (int i = 0; i < WORDS; i++)
      v[part][i] = chunk.words[i];
  }
}

// The largest number of a row, in all its lanes.
DEVICE float largest(const u32 (&v)[PARTS][WORDS]) {
  u32 most = 0;
#pragma unroll
  for (int part = 0; part < PARTS; part++)
#pragma unroll
    for (int i = 0; i < WORDS; i++)
      most = ptx::largest_halves(most, v[part][i]);
  most = ptx::largest_halves(most, most >> 16 | most << 16);
#pragma unroll
  for (int mask = 1; mask < LANES; mask *= 2)
    most = ptx::largest_halves(most, ptx::shuffle_xor(most, mask));
  return ptx::from_half((u16)most);
}

// This warp's part of a tile of ROWS rows, of which `rows` are there from x on, among `warps` warps. A row leaves as
// `to(row, columns / 8, bytes)` and `scale(row, number)`. AT_ONCE · 2 rows at a time: as many as there are registers for,
// while each waits for memory and shuffles.
template <int ROWS, int AT_ONCE, class To, class Scale>
DEVICE void rows(const u16 *x, int rows, int warp, int warps, int lane, const To &to, const Scale &scale) {
  int own = lane % LANES;
  x += own * 8;
#pragma unroll 1
  for (int pair = warp; pair < ROWS / 2; pair += warps * AT_ONCE) {
    u32 v[AT_ONCE][PARTS][WORDS];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      int row = (pair + i * warps) * 2 + lane / LANES;
      load(v[i], x + (size_t)row * COLUMNS, row < rows);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE * PARTS; i++)
      mix_own(v[i / PARTS][i % PARTS]);
    mix_lanes(v, lane);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      int row = (pair + i * warps) * 2 + lane / LANES;
      bytes::Step step = bytes::step(largest(v[i]), 0.08838834765f); // H of 128, scaled by 1 / √128
      u32 inverse = ptx::low_halves(step.inverse, step.inverse);
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        u32 b[WORDS];
#pragma unroll
        for (int j = 0; j < WORDS; j++)
          b[j] = bytes::byte_halves(v[i][part][j], inverse);
        to(row, part * LANES + own, Eight{ptx::even_bytes(b[0], b[1]), ptx::even_bytes(b[2], b[3])});
      }
      if (own == 0)
        scale(row, step.scale);
    }
  }
}

} // namespace quantize
