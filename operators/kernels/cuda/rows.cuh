// LayerNorm of a row that a warp holds: what norm.cu and whole_hopper.cu share, so that both give the same bits.
//
//   lane       0        1    …   31      0 …
//   columns  0–3      4–7    124–127   128–131 …   at most 8 rounds: hidden ≤ 1,024; columns past the row are 0
//
// The row is summed twice by shuffles: the mean, then the squares around it (no E[x²] − E[x]², which
// cancels). Invariants: a row depends on itself only, in one fixed order. Limits: hidden % 4 = 0, ≤ 1,024.
#pragma once
#include "numbers.cuh"
#include "tiles.cuh"

namespace rows {

constexpr int ROUNDS = 8, ROUND_COLUMNS = 4 * tiles::WARP;

struct Parameters {
  const float *gain, *shift;
  int hidden;
  float epsilon;
};

// Adds four columns of a row of halves.
DEVICE void add4(float (&to)[4], const u16 *from) {
  float h[4];
  numbers::load4(h, from);
#pragma unroll
  for (int e = 0; e < 4; e++)
    to[e] += h[e];
}

// Adds the three rows that a token's embedding is the sum of. A place is the position in bits 0–15, the segment above.
DEVICE void embed(float (&v)[ROUNDS][4], u32 id, u32 place, const u16 *words, const u16 *positions,
                  const u16 *segments, int hidden, int lane) {
  const u16 *word = words + (size_t)id * hidden;
  const u16 *position = positions + (size_t)(place & 0xffff) * hidden;
  const u16 *segment = segments + (size_t)(place >> 16) * hidden;
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    int column = i * ROUND_COLUMNS + lane * 4;
    if (column < hidden) {
      add4(v[i], word + column);
      add4(v[i], position + column);
      add4(v[i], segment + column);
    }
  }
}

// Normalises the row, in place; `store(column, four)` gets four columns at a time.
template <class Store>
DEVICE void normalize(float (&v)[ROUNDS][4], const Parameters &norm, int lane, const Store &store) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < ROUNDS; i++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      sum += v[i][e]; // columns past the row are 0
  float mean = numbers::warp_sum(sum) / (float)norm.hidden;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < ROUNDS; i++)
    if (i * ROUND_COLUMNS + lane * 4 < norm.hidden) {
#pragma unroll
      for (int e = 0; e < 4; e++)
        squares += (v[i][e] - mean) * (v[i][e] - mean);
    }
  float inverse = rsqrtf(numbers::warp_sum(squares) / (float)norm.hidden + norm.epsilon);
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    int column = i * ROUND_COLUMNS + lane * 4;
    if (column < norm.hidden) {
#pragma unroll
      for (int e = 0; e < 4; e++)
        v[i][e] = (v[i][e] - mean) * inverse * norm.gain[column + e] + norm.shift[column + e];
      store(column, v[i]);
    }
  }
}

} // namespace rows
