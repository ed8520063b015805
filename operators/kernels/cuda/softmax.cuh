// What a warp does in attention: 16 queries of one text and head against 64 keys at a time (FlashAttention-2, Dao
// 2023). attention.cu, which has the picture, and whole_hopper.cu share it, so that both give the same bits.
//
// Invariants: keys past a text's end are zeros when they are loaded (garbage there may be NaN, and 0·NaN is NaN) and
// −∞ as scores. Limits: head dimension 32 or 64; the shared memory of a tile is 64·d halves, swizzled.
#pragma once
#include "numbers.cuh"
#include "tiles.cuh"

namespace softmax {

constexpr int KEYS = 64, THREADS = 128; // a tile has as many queries as keys

// 128 threads start copying 64 rows of one head; rows at or past `rows` become zeros.
template <int D> DEVICE void load_rows(u32 to, const u16 *from, int stride, int first, int rows, int thread) {
  constexpr int CHUNKS = D / tiles::CHUNK_HALVES;
#pragma unroll
  for (int i = 0; i < KEYS * CHUNKS / THREADS; i++) {
    int piece = thread + i * THREADS;
    int row = piece / CHUNKS, chunk = piece % CHUNKS;
    bool is_inside = first + row < rows;
    const u16 *source = is_inside ? from + (size_t)(first + row) * stride + chunk * tiles::CHUNK_HALVES : from;
    ptx::copy16(to + tiles::swizzled<CHUNKS>(row, chunk), source, is_inside ? 16 : 0);
  }
}

// A warp's state: 16 rows; a lane has row g = lane / 4 in [0] and row g + 8 in [1].
template <int D> struct Softmax {
  float output[D / 8][4];
  float maximum[2], sum[2];
};

template <int D> DEVICE Softmax<D> nothing_yet() {
  Softmax<D> state = {};
  state.maximum[0] = state.maximum[1] = -__int_as_float(0x7f800000);
  return state;
}

// A warp's 16 queries as left operands.
template <int D> DEVICE void load_queries(u32 (&q)[D / 16][4], u32 queries, int warp, int lane) {
#pragma unroll
  for (int k = 0; k < D / 16; k++)
    ptx::load_matrices(q[k], queries + tiles::swizzled<D / 8>(warp * 16 + lane % 16, k * 2 + lane / 16));
}

// scores[16×64] = Q·Kᵀ; column n·8 + 2t of row g in scores[n][0].
template <int D> DEVICE void score(float (&scores)[8][4], const u32 (&q)[D / 16][4], u32 keys, int lane) {
#pragma unroll
  for (int n = 0; n < 8; n++)
    scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      u32 b[4];
      int row = pair * 16 + lane / 16 * 8 + lane % 8;
      ptx::load_matrices(b, keys + tiles::swizzled<D / 8>(row, k * 2 + lane / 8 % 2));
      ptx::multiply_16x8x16(scores[pair * 2], q[k], b[0], b[1]);
      ptx::multiply_16x8x16(scores[pair * 2 + 1], q[k], b[2], b[3]);
    }
}

// Scores become weights, the state is brought to the new maximum. `valid` of the 64 keys exist, ≥ 1.
template <int D>
DEVICE void soften(float (&scores)[8][4], Softmax<D> &state, int valid, float scale, int lane) {
  const float nothing = -__int_as_float(0x7f800000);
  if (valid < KEYS) {
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (n * 8 + lane % 4 * 2 + e % 2 >= valid)
          scores[n][e] = nothing;
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float best = state.maximum[half];
#pragma unroll
    for (int n = 0; n < 8; n++)
      best = fmaxf(best, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
    best = fmaxf(best, ptx::shuffle_xor(best, 1)); // the four lanes of a row
    best = fmaxf(best, ptx::shuffle_xor(best, 2));
    float shrink = ptx::exp2_fast((state.maximum[half] - best) * scale); // 0 the first time: −∞
    state.maximum[half] = best;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = half * 2; e < half * 2 + 2; e++) {
        scores[n][e] = ptx::exp2_fast((scores[n][e] - best) * scale);
        sum += scores[n][e];
      }
    state.sum[half] = state.sum[half] * shrink + sum; // this lane's columns; lanes are joined at the end
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      state.output[n][half * 2] *= shrink;
      state.output[n][half * 2 + 1] *= shrink;
    }
  }
}

// output += P·V. Two neighbouring 16×8 score tiles are, as they lie, one 16×16 left operand.
template <int D> DEVICE void mix(Softmax<D> &state, const float (&p)[8][4], u32 values, int lane) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
    const float(&first)[4] = p[k * 2], (&second)[4] = p[k * 2 + 1];
    u32 a[4] = {ptx::to_halves(first[0], first[1]), ptx::to_halves(first[2], first[3]),
                ptx::to_halves(second[0], second[1]), ptx::to_halves(second[2], second[3])};
#pragma unroll
    for (int pair = 0; pair < D / 16; pair++) {
      u32 b[4];
      int row = k * 16 + lane % 16;
      ptx::load_matrices_transposed(b, values + tiles::swizzled<D / 8>(row, pair * 2 + lane / 16));
      ptx::multiply_16x8x16(state.output[pair * 2], a, b[0], b[1]);
      ptx::multiply_16x8x16(state.output[pair * 2 + 1], a, b[2], b[3]);
    }
  }
}

// A tile of 64 keys and values, of which `valid` exist.
template <int D>
DEVICE void take(Softmax<D> &state, const u32 (&q)[D / 16][4], u32 keys, u32 values, int valid, float scale,
                 int lane) {
  float scores[8][4];
  score<D>(scores, q, keys, lane);
  soften<D>(scores, state, valid, scale, lane);
  mix<D>(state, scores, values, lane);
}

// A warp's 16 rows, divided by their sums, to the context.
template <int D>
DEVICE void store_rows(u16 *context, Softmax<D> &state, int hidden, int first, int length, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = state.sum[half];
    sum = numbers::quad_sum(sum);
    float inverse = 1.0f / sum;
    int row = first + half * 8 + lane / 4;
    if (row < length) {
#pragma unroll
      for (int n = 0; n < D / 8; n++)
        *(u32 *)(context + (size_t)row * hidden + n * 8 + lane % 4 * 2) =
            ptx::to_halves(state.output[n][half * 2] * inverse, state.output[n][half * 2 + 1] * inverse);
    }
  }
}

} // namespace softmax
