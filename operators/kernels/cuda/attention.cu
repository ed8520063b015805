// Multi-head self-attention of a packed batch: context = softmax(Q·Kᵀ / √d)·V, each text by itself.
//
//   attention_naive        stage 0   one thread an output, f32
//   attention_f16_d32/64   stage 1   tensor cores, online softmax (FlashAttention-2, Dao 2023)
//
//   qkv [rows, 3·hidden] = [ Q₀ … Qₕ | K₀ … Kₕ | V₀ … Vₕ ] a row      context [rows, hidden]
//
// Stage 1: a block of 4 warps owns 64 queries of one text and head and walks over its keys, 64 at a
// time, two tiles of K and V in flight:
//
//      Q 64×d      K₀ K₁ K₂ …  (64×d each)     scores S = Q·Kᵀ stay in registers, 16×64 a warp
//     ┌──────┐    ┌────┬────┬────┬─            m ← max(m, S)       running maximum of a row
//     │warp 0│  × │    │    │    │             P = 2^((S − m)·c)   c = log₂e / √d
//     │warp 1│    └────┴────┴────┴─            l ← l·2^((m₀ − m)·c) + ΣP
//     │warp 2│     V₀ V₁ V₂ …                  O ← O·2^((m₀ − m)·c) + P·V
//     │warp 3│                                 at the end O / l
//     └──────┘
//
// The blocks are persistent: a list made by the host names (text, first query) of every tile, and a
// block takes every gridDim-th of tiles × heads. So one graph serves any mix of lengths.
//
// Invariants: tiles of keys begin at the text's own start, so nothing depends on neighbours: batch-
// invariance. Keys past a text's end become zeros when they are loaded (garbage there may be NaN, and
// 0·NaN is NaN) and −∞ as scores. Limits: head dimension 32 or 64 (stage 0: any); hidden % 8 = 0.
#include "numbers.cuh"
#include "tiles.cuh"

namespace {

constexpr int KEYS = 64, THREADS = 128; // a tile has as many queries as keys

// Starts copying 64 rows of one head; rows at or past `rows` become zeros.
template <int D> DEVICE void load_rows(u32 to, const u16 *from, int stride, int first, int rows) {
  constexpr int CHUNKS = D / tiles::CHUNK_HALVES;
#pragma unroll
  for (int i = 0; i < KEYS * CHUNKS / THREADS; i++) {
    int piece = (int)threadIdx.x + i * THREADS;
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

// One tile: 64 queries from `first` on of a text of `length` rows; pointers at its head's first row.
template <int D>
DEVICE void attend_tile(u32 memory, const u16 *qkv, u16 *context, int first, int length, int hidden, float scale) {
  constexpr u32 TILE_BYTES = KEYS * D * 2;
  int warp = (int)threadIdx.x / tiles::WARP, lane = (int)threadIdx.x % tiles::WARP;
  u32 queries = memory, ring = memory + TILE_BYTES;
  auto load = [&](int step) {
    u32 stage = ring + (u32)(step % 2) * 2 * TILE_BYTES;
    load_rows<D>(stage, qkv + hidden, 3 * hidden, step * KEYS, length);
    load_rows<D>(stage + TILE_BYTES, qkv + 2 * hidden, 3 * hidden, step * KEYS, length);
  };
  load_rows<D>(queries, qkv, 3 * hidden, first, length);
  load(0);
  ptx::commit_copies();
  Softmax<D> state = {};
  state.maximum[0] = state.maximum[1] = -__int_as_float(0x7f800000);
  u32 q[D / 16][4];
  int steps = (length + KEYS - 1) / KEYS;
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps)
      load(step + 1);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncthreads(); // this step's tiles are there, everybody's part
    if (step == 0) {
#pragma unroll
      for (int k = 0; k < D / 16; k++)
        ptx::load_matrices(q[k], queries + tiles::swizzled<D / 8>(warp * 16 + lane % 16, k * 2 + lane / 16));
    }
    u32 stage = ring + (u32)(step % 2) * 2 * TILE_BYTES;
    float scores[8][4];
    score<D>(scores, q, stage, lane);
    soften<D>(scores, state, length - step * KEYS, scale, lane);
    mix<D>(state, scores, stage + TILE_BYTES, lane);
    __syncthreads(); // all are done with this stage: the next round loads into it
  }
  store_rows<D>(context, state, hidden, first + warp * 16, length, lane);
}

template <int D>
DEVICE void attend(const int *tile_count, const int *starts, const int *list, const u16 *qkv, u16 *context, int heads,
                   float scale) {
  SHARED_MEMORY(memory);
  int hidden = heads * D, work = *tile_count * heads;
  for (int item = (int)blockIdx.x; item < work; item += (int)gridDim.x) {
    int tile = item / heads, head = item % heads;
    int text = list[tile * 2], first = list[tile * 2 + 1];
    size_t start = (size_t)starts[text];
    int length = starts[text + 1] - starts[text];
    attend_tile<D>(ptx::shared(memory), qkv + start * 3 * hidden + head * D, context + start * hidden + head * D,
                   first, length, hidden, scale);
  }
}

} // namespace

// ---- stage 0 ------------------------------------------------------------------------------------

// counts: rows, texts.
KERNEL attention_naive(const int *counts, const int *starts, const float *qkv, float *context, int heads, int width) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  int hidden = heads * width;
  if (i >= (u64)counts[0] * hidden)
    return;
  int row = (int)(i / hidden), column = (int)(i % hidden), head = column / width;
  int text = tiles::text_of(row, starts, counts[1]);
  float scale = rsqrtf((float)width);
  const float *query = qkv + (size_t)row * 3 * hidden + head * width;
  float best = -__int_as_float(0x7f800000), sum = 0.0f, mixed = 0.0f;
  for (int other = starts[text]; other < starts[text + 1]; other++) {
    const float *key = qkv + (size_t)other * 3 * hidden + hidden + head * width;
    float dot = 0.0f;
    for (int k = 0; k < width; k++)
      dot += query[k] * key[k];
    dot *= scale;
    float now = fmaxf(best, dot), shrink = expf(best - now), weight = expf(dot - now);
    sum = sum * shrink + weight;
    mixed = mixed * shrink + weight * qkv[(size_t)other * 3 * hidden + 2 * hidden + column];
    best = now;
  }
  context[i] = mixed / sum;
}

// ---- stage 1: 128 threads, 5 tiles of 64·d halves -------------------------------------------------

KERNEL __launch_bounds__(THREADS) attention_f16_d32(const int *tile_count, const int *starts, const int *list,
                                                    const u16 *qkv, u16 *context, int heads, float scale) {
  attend<32>(tile_count, starts, list, qkv, context, heads, scale);
}
KERNEL __launch_bounds__(THREADS) attention_f16_d64(const int *tile_count, const int *starts, const int *list,
                                                    const u16 *qkv, u16 *context, int heads, float scale) {
  attend<64>(tile_count, starts, list, qkv, context, heads, scale);
}
