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
#include "softmax.cuh"

namespace {

using namespace softmax;

// One tile: 64 queries from `first` on of a text of `length` rows; pointers at its head's first row.
template <int D>
DEVICE void attend_tile(u32 memory, const u16 *qkv, u16 *context, int first, int length, int hidden, float scale) {
  constexpr u32 TILE_BYTES = KEYS * D * 2;
  int thread = (int)threadIdx.x, warp = thread / tiles::WARP, lane = thread % tiles::WARP;
  u32 queries = memory, ring = memory + TILE_BYTES;
  auto load = [&](int step) {
    u32 stage = ring + (u32)(step % 2) * 2 * TILE_BYTES;
    load_rows<D>(stage, qkv + hidden, 3 * hidden, step * KEYS, length, thread);
    load_rows<D>(stage + TILE_BYTES, qkv + 2 * hidden, 3 * hidden, step * KEYS, length, thread);
  };
  load_rows<D>(queries, qkv, 3 * hidden, first, length, thread);
  load(0);
  ptx::commit_copies();
  Softmax<D> state = nothing_yet<D>();
  u32 q[D / 16][4];
  int steps = (length + KEYS - 1) / KEYS;
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps)
      load(step + 1);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncthreads(); // this step's tiles are there, everybody's part
    if (step == 0)
      load_queries<D>(q, queries, warp, lane);
    u32 stage = ring + (u32)(step % 2) * 2 * TILE_BYTES;
    take<D>(state, q, stage, stage + TILE_BYTES, length - step * KEYS, scale, lane);
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
  ptx::follow();
  attend<32>(tile_count, starts, list, qkv, context, heads, scale);
}
KERNEL __launch_bounds__(THREADS) attention_f16_d64(const int *tile_count, const int *starts, const int *list,
                                                    const u16 *qkv, u16 *context, int heads, float scale) {
  ptx::follow();
  attend<64>(tile_count, starts, list, qkv, context, heads, scale);
}
