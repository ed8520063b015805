// Multi-head self-attention of a packed batch from head-major states, heads of 32: stage 4.
// context = softmax(Q·Kᵀ)·V, each text by itself. Q comes scaled by log₂e / √32 (the weights that make it are:
// src/cuda/layer.rs), so that a weight is 2^(s − m) and nothing else.
//
//   qkv      [3 · heads, capacity, 32]    plane h is Q of head h, heads + h its K, 2 · heads + h its V (heads.cuh)
//   context  [rows, hidden]
//
// In its plane a text's K is one run of 64-byte rows. A block of 4 warps takes one head of an item at a time, K and V
// whole into shared memory, once; from there on no warp waits for another:
//
//   one text, up to 256 queries                 up to four texts that fill 64 rows, each from a multiple of 16 on
//
//   K ┌────────────────────┐ V                  K ┌────────┐
//     │  all keys, ≤ 512   │ on its way           │ text a │ ◀─ warp 0     a warp's 16 queries are of one text, and
//     └────────────────────┘ meanwhile            │ text a │ ◀─ warp 1     only that text's keys have weights:
//   warp w: queries 16 w …, + 64, + 128 …         │ text b │ ◀─ warp 2     blocks on a diagonal
//                                                 │ text c │ ◀─ warp 3
//                                                 └────────┘
//   a warp     S = Q·Kᵀ, 16 × 256 in 128 registers ─▶ one maximum ─▶ P = 2^(S − m), Σ, O += P·V, 16 keys at a time
//
// There is no online softmax up to 256 keys. Beyond, segments of 128 with a rescale before each; beyond 512 keys, they
// come through shared memory 512 at a time, again for every 64 queries.
//
// A segment's scores are named registers, so how many there are is known when this is compiled: the first segment is
// written out for 64, 128, 192 and 256 keys, each a straight line in which tensor cores, exponentials and loads of
// neighbouring blocks overlap. (A branch for every 16 keys made a chain of them.) So up to 63 rows behind a text's
// last key are multiplied too, be they zeros, a neighbour or what an item before left; their scores are replaced by −∞,
// whatever they are, and blocks of 16 without a key are not mixed.
//
// Why 4 warps: 128 scores a thread leave room for 12 warps on a multiprocessor, and 64 KB of K and V for three
// blocks; of 8 warps there would be one block, and nothing to do while it loads. 168 registers are just enough:
// what can be read or made again (an item's words, a lane's number) is, and the item's number waits in shared memory.
//
// Invariants: a text's first key is at a multiple of 16, in its slot as alone, so blocks of 16 keys and segments are
// counted from the text's own start, and what is added to what depends on its length only: batch-invariance. Keys past
// a text's end become zeros when they are loaded (garbage there may be NaN, and 0·NaN is NaN) and −∞ as scores, so that
// a neighbour's NaN stays there.
// Limits: head dimension 32; texts of up to 65,535 rows. Needs nothing of Hopper's but what writes its planes does.
#include "hopper.cuh"
#include "numbers.cuh"
#include "tiles.cuh"

namespace {

constexpr int D = 32, CHUNKS = D / tiles::CHUNK_HALVES;
constexpr int WARPS = 4, THREADS = WARPS * tiles::WARP;
constexpr int BLOCK = 16, SLOTS = WARPS, TILE = SLOTS * BLOCK; // queries of a warp, as many keys are a block
constexpr int STRIDE = THREADS / CHUNKS;                       // rows copied at a time
constexpr int GROUP = 4, GROUP_KEYS = GROUP * BLOCK;           // a segment is so many groups, the last with a tail
constexpr int FIRST = 4 * GROUP_KEYS, NEXT = 2 * GROUP_KEYS;   // keys of the first segment, and of others
constexpr int KEYS = 512;                                      // in shared memory at a time
constexpr u32 ROW_BYTES = D * 2, BLOCK_BYTES = BLOCK * ROW_BYTES, VALUES_AT = KEYS * ROW_BYTES;
constexpr u32 NUMBERS_AT = 2 * VALUES_AT; // a word a thread

// 16 queries of one text, and where they begin in it. Of no rows: nothing to do.
struct Slot {
  int start, length, first;
};

// What a block takes: four slots. A text of more than 64 rows has all of them, each with the next 16 queries.
struct Item {
  const int *words; // four starts; four lengths in bits 0–15, with first / 16 above

  DEVICE Slot slot(int number) const {
    u32 where = (u32)words[SLOTS + number];
    return {words[number], (int)(where & 0xffff), (int)(where >> 16) * BLOCK};
  }
};

DEVICE int lane_number() { return (int)(threadIdx.x % tiles::WARP); }
// The same, made where it is needed: kept, and with it the addresses that are made of it, it would be registers
// beside 128 scores, and some were spilled.
DEVICE int lane_anew() {
  int thread = (int)threadIdx.x;
  ptx::made_anew(thread);
  return (int)((u32)thread % tiles::WARP);
}

// Starts copying the first `rows` rows (a multiple of 16) of those at `from`; from `there` on they become zeros.
// 32 rows are copied at a time, a chunk by a thread: their swizzle is the same again.
DEVICE void load_text(u32 to, const u16 *from, int rows, int there) {
  int row = (int)(threadIdx.x / CHUNKS), chunk = (int)(threadIdx.x % CHUNKS);
  to += tiles::swizzled<CHUNKS>(row, chunk);
  from += chunk * tiles::CHUNK_HALVES;
#pragma unroll 2
  for (; row < rows; row += STRIDE, to += STRIDE * ROW_BYTES)
    ptx::copy16(to, row < there ? from + (size_t)row * D : from, row < there ? 16 : 0);
}

// The same for 64 rows of four slots.
DEVICE void load_slots(u32 to, const u16 *plane, const Item &item) {
  int row = (int)(threadIdx.x / CHUNKS), chunk = (int)(threadIdx.x % CHUNKS);
  to += tiles::swizzled<CHUNKS>(row, chunk);
#pragma unroll
  for (int i = 0; i < TILE / STRIDE; i++) {
    Slot slot = item.slot(row / BLOCK + i * (STRIDE / BLOCK));
    int at = slot.first + row % BLOCK;
    bool is_there = at < slot.length;
    const u16 *source = is_there ? plane + (size_t)(slot.start + at) * D + chunk * tiles::CHUNK_HALVES : plane;
    ptx::copy16(to + i * STRIDE * ROW_BYTES, source, is_there ? 16 : 0);
  }
}

// A warp's 16 queries as left operands, straight from memory: nobody else reads them. Rows past the end are zeros.
DEVICE void load_queries(u32 (&q)[2][4], const u16 *text, int first, int length) {
  int lane = lane_number();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = first + half * 8 + lane / 4;
    const u16 *from = text + (size_t)row * D + lane % 4 * 2;
#pragma unroll
    for (int part = 0; part < 4; part++) // columns 8 · part …
      q[part / 2][part % 2 * 2 + half] = row < length ? *(const u32 *)(from + part * 8) : 0;
  }
}

// A warp's state: 16 rows; a lane has row g = lane / 4 in [0] and row g + 8 in [1].
struct Softmax {
  float output[D / 8][4];
  float maximum[2], sum[2];
};

// All warps, each when it needs the values: they meet here from several places.
DEVICE void values_there() {
  ptx::wait_copies<0>();
  ptx::part_sync(1, THREADS);
}

// The larger of `best` and of a block's.
DEVICE void raise(float (&best)[2], const float (*scores)[4]) {
#pragma unroll
  for (int half = 0; half < 2; half++)
    best[half] = fmaxf(best[half], fmaxf(fmaxf(scores[0][half * 2], scores[0][half * 2 + 1]),
                                         fmaxf(scores[1][half * 2], scores[1][half * 2 + 1])));
}

// scores = Q·Kᵀ: column 8 n + 2t of row g in scores[n][0]. `best` grows by those of the first `valid` keys, which end
// in the last group.
template <int GROUPS>
DEVICE void score(float (&scores)[GROUPS * GROUP * 2][4], float (&best)[2], const u32 (&q)[2][4], u32 keys, int valid) {
  int lane = lane_number(), row = lane / 16 * 8 + lane % 8, chunk = lane / 8 % 2;
  u32 low = keys + tiles::swizzled<CHUNKS>(row, chunk), high = keys + tiles::swizzled<CHUNKS>(row, chunk + 2);
#pragma unroll
  for (int i = 0; i < GROUPS * GROUP; i++) {
    if (i % 2 == 0)
      ptx::warp_sync(); // the compiler looks no further ahead: it ran out of registers
    float(&left)[4] = scores[i * 2], (&right)[4] = scores[i * 2 + 1];
    u32 b[4];
    left[0] = left[1] = left[2] = left[3] = right[0] = right[1] = right[2] = right[3] = 0.0f;
    ptx::load_matrices(b, low + i * BLOCK_BYTES);
    ptx::multiply_16x8x16(left, q[0], b[0], b[1]);
    ptx::multiply_16x8x16(right, q[0], b[2], b[3]);
    ptx::load_matrices(b, high + i * BLOCK_BYTES);
    ptx::multiply_16x8x16(left, q[1], b[0], b[1]);
    ptx::multiply_16x8x16(right, q[1], b[2], b[3]);
    if (i >= (GROUPS - 1) * GROUP) { // the last group: keys past the end have no weight
#pragma unroll
      for (int e = 0; e < 8; e++)
        if (i * BLOCK + e / 4 * 8 + lane % 4 * 2 + e % 2 >= valid)
          scores[i * 2 + e / 4][e % 4] = -__int_as_float(0x7f800000);
    }
    raise(best, scores + i * 2);
  }
#pragma unroll
  for (int half = 0; half < 2; half++) { // the four lanes of a row
    best[half] = fmaxf(best[half], ptx::shuffle_xor(best[half], 1));
    best[half] = fmaxf(best[half], ptx::shuffle_xor(best[half], 2));
  }
}

// The state is brought to a new maximum.
DEVICE void rescale(Softmax &state, const float (&best)[2]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float shrink = ptx::exp2_fast(state.maximum[half] - best[half]);
    state.maximum[half] = best[half];
    state.sum[half] *= shrink;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      state.output[n][half * 2] *= shrink;
      state.output[n][half * 2 + 1] *= shrink;
    }
  }
}

// Scores become weights, 16 keys at a time, and output += P·V: two 16×8 tiles of weights are, as they lie, one
// 16×16 left operand.
template <int GROUPS>
DEVICE void mix(Softmax &state, const float (&scores)[GROUPS * GROUP * 2][4], u32 values, int valid) {
  int lane = lane_anew();
  u32 left = values + tiles::swizzled<CHUNKS>(lane % 16, lane / 16);
  u32 right = values + tiles::swizzled<CHUNKS>(lane % 16, lane / 16 + 2);
#pragma unroll
  for (int i = 0; i < GROUPS * GROUP; i++) {
    if (i >= (GROUPS - 1) * GROUP && i * BLOCK >= valid)
      break;
    u32 a[4], b[4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float p[4];
#pragma unroll
      for (int e = 0; e < 4; e++)
        p[e] = ptx::exp2_fast(scores[i * 2 + e / 2][half * 2 + e % 2] - state.maximum[half]);
      state.sum[half] += (p[0] + p[1]) + (p[2] + p[3]); // this lane's columns; lanes are joined at the end
      a[half] = ptx::to_halves(p[0], p[1]);
      a[2 + half] = ptx::to_halves(p[2], p[3]);
    }
    ptx::load_matrices_transposed(b, left + i * BLOCK_BYTES);
    ptx::multiply_16x8x16(state.output[0], a, b[0], b[1]);
    ptx::multiply_16x8x16(state.output[1], a, b[2], b[3]);
    ptx::load_matrices_transposed(b, right + i * BLOCK_BYTES);
    ptx::multiply_16x8x16(state.output[2], a, b[0], b[1]);
    ptx::multiply_16x8x16(state.output[3], a, b[2], b[3]);
  }
}

// A segment of GROUPS groups of keys, of which `valid` are there. `awaits`: the values are still on their way.
template <int GROUPS, bool IS_FIRST>
DEVICE void walk(Softmax &state, const u32 (&q)[2][4], u32 keys, int valid, bool awaits) {
  float scores[GROUPS * GROUP * 2][4], best[2] = {state.maximum[0], state.maximum[1]};
  score<GROUPS>(scores, best, q, keys, valid);
  if (IS_FIRST)
    state.maximum[0] = best[0], state.maximum[1] = best[1];
  else
    rescale(state, best);
  if (awaits)
    values_there();
  mix<GROUPS>(state, scores, keys + VALUES_AT, valid);
}

// A warp's 16 rows, divided by their sums, to the context.
DEVICE void store_rows(u16 *context, const Softmax &state, int hidden, int first, int length) {
  int lane = lane_anew();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float inverse = 1.0f / numbers::quad_sum(state.sum[half]);
    int row = first + half * 8 + lane / 4;
    if (row < length) {
#pragma unroll
      for (int n = 0; n < D / 8; n++)
        *(u32 *)(context + (size_t)row * hidden + n * 8 + lane % 4 * 2) =
            ptx::to_halves(state.output[n][half * 2] * inverse, state.output[n][half * 2 + 1] * inverse);
    }
  }
}

// What a block works on: one head of one item.
struct Work {
  u32 memory;
  Item item;
  const u16 *qkv;
  u16 *context;
  int heads, capacity;

  // The longest of the item's texts, or the 64 rows of slots.
  DEVICE int longest() const { return ptx::uniform(max(item.slot(0).length, TILE)); }
  DEVICE bool is_long() const { return longest() > TILE; }
  // This warp's slot, `round` queries on.
  DEVICE Slot own(int round) const {
    Slot slot = item.slot(ptx::uniform((int)(threadIdx.x / tiles::WARP)));
    slot.first += round;
    return slot;
  }
  // Queries from slot 0's on that are this item's.
  DEVICE int queries(int most) const {
    Slot slot = item.slot(0);
    int rows = is_long() ? slot.length - slot.first : TILE;
    return rows < most ? rows : most;
  }
  // Keys of the warp's text from `at` on; none when its slot has no queries.
  DEVICE int valid(int round, int at) const {
    Slot slot = own(round);
    return ptx::uniform(slot.first < slot.length ? slot.length - at : 0);
  }
  // Where they begin in shared memory.
  DEVICE u32 keys(int round, int at) const {
    int warp = (int)(threadIdx.x / tiles::WARP);
    return memory + (u32)(is_long() ? at % KEYS : warp * BLOCK - own(round).first) * ROW_BYTES;
  }
  DEVICE void queries_of(u32 (&q)[2][4], int round) const {
    Slot slot = own(round);
    load_queries(q, plane(0) + (size_t)slot.start * D, slot.first, slot.length);
  }
  DEVICE void store(const Softmax &state, int round) const {
    Slot slot = own(round);
    store_rows(context + (size_t)slot.start * heads * D + blockIdx.x * D, state, heads * D, slot.first, slot.length);
  }
  // Plane of Q (0), K (1) or V (2).
  DEVICE const u16 *plane(int part) const { return qkv + (size_t)(part * heads + (int)blockIdx.x) * capacity * D; }
  // Starts copying keys, and then values, from `at` on, as two groups.
  DEVICE void load(int at) const {
#pragma unroll 1
    for (int part = 1; part < 3; part++) {
      u32 to = memory + (part == 2 ? VALUES_AT : 0);
      if (is_long())
        load_text(to, plane(part) + (size_t)(item.slot(0).start + at) * D,
                  min(longest() - at + BLOCK - 1, KEYS) / BLOCK * BLOCK, longest() - at);
      else
        load_slots(to, plane(part), item);
      ptx::commit_copies();
    }
  }
};

// The first segment, for a slot's 16 queries a warp. All warps go through all barriers.
DEVICE void attend_first(const Work &work, Softmax &state, int round, bool is_new) {
  if (is_new) {
    __syncthreads(); // everybody has done with what lies there
    work.load(0);
  }
  u32 q[2][4];
  work.queries_of(q, round);
  int valid = work.valid(round, 0);
  u32 keys = work.keys(round, 0);
  if (is_new) {
    ptx::wait_copies<1>();
    __syncthreads(); // the keys are there, everybody's part
  }
  switch ((valid + GROUP_KEYS - 1) / GROUP_KEYS) {
  case 0:
    if (is_new)
      values_there();
    break;
  case 1:
    walk<1, true>(state, q, keys, valid, is_new);
    break;
  case 2:
    walk<2, true>(state, q, keys, valid, is_new);
    break;
  case 3:
    walk<3, true>(state, q, keys, valid, is_new);
    break;
  default:
    walk<4, true>(state, q, keys, valid, is_new);
  }
}

// A later segment, from key `at` on.
DEVICE void attend_next(const Work &work, Softmax &state, int round, int at) {
  if (at % KEYS == 0) {
    __syncthreads();
    work.load(at);
    ptx::wait_copies<0>();
    __syncthreads();
  }
  u32 q[2][4];
  work.queries_of(q, round);
  int valid = work.valid(round, at);
  u32 keys = work.keys(round, at);
  if (valid > GROUP_KEYS)
    walk<2, false>(state, q, keys, valid, false);
  else if (valid > 0)
    walk<1, false>(state, q, keys, valid, false);
}

} // namespace

// ---- grid: heads × blocks, three a multiprocessor at most; 128 threads; NUMBERS_AT + 4 · 128 bytes ------------------

// `items` are eight ints each: see Item. An item of a long text has `queries` of it, a multiple of 64.
KERNEL __launch_bounds__(THREADS, 3)
    attention_heads_d32(const int *item_count, const int *items, const u16 *qkv, u16 *context, int heads, int capacity,
                        int queries) {
  SHARED_MEMORY(memory);
  int *own_number = (int *)(memory + NUMBERS_AT) + threadIdx.x;
#pragma unroll 1
  for (int number = (int)blockIdx.y; number < *item_count; number = *own_number + (int)gridDim.y) {
    *own_number = number;
    Work work = {ptx::shared(memory), {items + (size_t)number * 2 * SLOTS}, qkv, context, heads, capacity};
#pragma unroll 1
    for (int round = 0; round < work.queries(queries); round += TILE) {
      Softmax state = {};
      state.maximum[0] = state.maximum[1] = -__int_as_float(0x7f800000);
      attend_first(work, state, round, round == 0 || work.longest() > KEYS);
#pragma unroll 1
      for (int at = FIRST; at < work.longest(); at += NEXT)
        attend_next(work, state, round, at);
      work.store(state, round);
    }
  }
}
