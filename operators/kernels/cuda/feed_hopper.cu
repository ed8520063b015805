// x = LayerNorm(x + GELU(x·W1ᵀ + b1)·W2ᵀ + b2): the whole feed-forward half of a layer in one kernel (stage 3).
//
//   two products and a norm   read x ─ write wide, 4 rows of x's width ─▶ read wide ─ … ─ write x
//   here                      read x ─ write x; what is between never leaves the multiprocessor
//
// A block makes 64 rows. x stays in shared memory for all of it; the inner width is walked through 128 at a time (a
// chunk), and W1 and W2 stream past, once for a cluster of 1, 2 or 4 blocks (cluster.cuh).
//
//              W1 128 rows of it           H = GELU(…), halves         W2  384 rows, 128 columns
//     K = 384 ┌───────────────┐           ┌──────────┐                ┌──────────┬──────────┐
//   x 64×384 ▶│group c % 2    │ ─ + b1 ──▶│ 64×128   │── K = 128 ────▶│  group 0 │  group 1 │ 192 columns each
//             └───────────────┘ 64 sums   └──────────┘ two of them    └──────────┴──────────┘ 96 sums a thread
//
// First products of a chunk are one group's, GELU too; second products are both groups'. So while a group is at GELU the
// other one is at the first product of the next chunk, and tensor cores have work all the time:
//
//   group 0   │ F1 c   F2 c−1  F1 c │ GELU c ▶ H₀ │ F2 c │ F1 c+2   F2 c+1  F1 c+2 │ GELU c+2 ▶ H₀ │ …
//   group 1     GELU c−1 ▶ H₁ │ F2 c−1 │ F1 c+1  F2 c  F1 c+1 │ GELU c+1 ▶ H₁ │ F2 c+1 │ …
//   engine    ▐ W1 c: 3 steps, W2 c−1: 2 steps, W1 c: 3 steps, …: as they are used; ahead by 3 steps of W1 and 2 of W2
//
//   turn 0, 1    a group starts on W1 when the other has waited for all steps of the chunk before: barriers know a phase
//                by its parity only, so nobody may wait for a phase two ahead
//   ready 0, 1   H of a chunk is written. Who says so has also ended its second product of the chunk before, so the
//                other group may write that chunk's H anew: no barrier says that a buffer is free
//
// The two F2 of a group are apart in time, or their 96 KB of W2 would have to come at once.
//
// Behind the last chunk: + b2 + x, the norm (a row's two halves meet by shared memory, twice), and x is stored from
// where it lay. Sums over a row: 48 columns a thread, two exchanges, group 0 and group 1; mean first, squares second.
//
// Invariants as in linear.cu: fixed order over K, no split, rows past the count not written. x in place. The bits
// do not depend on the cluster's size. Limits: sm_90a; 384 columns; the inner width a multiple of 8.
#include "cluster.cuh"
#include "groups.cuh"
#include "numbers.cuh"
#include "tiles.cuh"

namespace {
using cluster::Tiles;
using groups::GROUP, groups::HIDDEN, groups::OWN, groups::Place, groups::ROWS;

constexpr int DEPTH = 64, CHUNK = 128;
constexpr int FIRST_STEPS = HIDDEN / DEPTH, FIRST_HALF = FIRST_STEPS / 2, SECOND_STEPS = CHUNK / DEPTH;
constexpr int FIRST_STAGES = 3, SECOND_STAGES = 2;
constexpr int THREADS = 3 * GROUP, GROUP_WARPS = GROUP / tiles::WARP;
constexpr u32 BOX = ROWS * DEPTH * 2; // of x and of H: 64 rows of 128 bytes
constexpr u32 FIRST_BYTES = CHUNK * DEPTH * 2, SECOND_BYTES = HIDDEN * DEPTH * 2;
constexpr u32 H_AT = FIRST_STEPS * BOX, H_BYTES = SECOND_STEPS * BOX, FIRST_AT = H_AT + 2 * H_BYTES;
constexpr u32 SECOND_AT = FIRST_AT + FIRST_STAGES * FIRST_BYTES;
constexpr u32 SUMS_AT = SECOND_AT + SECOND_STAGES * SECOND_BYTES, SQUARES_AT = SUMS_AT + 2 * ROWS * 4;
constexpr u32 BARRIERS_AT = SQUARES_AT + 2 * ROWS * 4;
// Named barriers behind groups::MET: of each group (2), whose turn it is (2), whose H is there (2). 0 is __syncthreads.
constexpr int OWN_MET = 2, TURN = 4, READY = 6;

// A ring's stage of a step: where its bytes are, the barrier that says that they came, and that they may go.
struct Stage {
  u32 at, full, empty, parity;
};
template <int STAGES, u32 BYTES> DEVICE Stage stage_of(u32 memory, u32 ring, int barrier, int step) {
  int i = step % STAGES;
  return {memory + ring + (u32)i * BYTES, memory + BARRIERS_AT + (u32)(barrier + i) * 8,
          memory + BARRIERS_AT + (u32)(barrier + STAGES + i) * 8, (u32)(step / STAGES) & 1};
}
// Barriers: x full, x empty, then each ring's full and empty ones.
constexpr int FIRST_BARRIER = 2, SECOND_BARRIER = FIRST_BARRIER + 2 * FIRST_STAGES;
DEVICE Stage first_stage(u32 memory, int step) {
  return stage_of<FIRST_STAGES, FIRST_BYTES>(memory, FIRST_AT, FIRST_BARRIER, step);
}
DEVICE Stage second_stage(u32 memory, int step) {
  return stage_of<SECOND_STAGES, SECOND_BYTES>(memory, SECOND_AT, SECOND_BARRIER, step);
}
DEVICE Stage x_stage(u32 memory, int tile) {
  return {memory, memory + BARRIERS_AT, memory + BARRIERS_AT + 8, (u32)tile & 1};
}

// One thread. A stage of W1 is read by one group of each block, of W2 by both.
template <int CLUSTER> DEVICE void prepare(u32 memory) {
  ptx::barrier_init(x_stage(memory, 0).full, 1);
  ptx::barrier_init(x_stage(memory, 0).empty, 2 * GROUP_WARPS);
  for (int i = 0; i < FIRST_STAGES; i++) {
    ptx::barrier_init(first_stage(memory, i).full, 1);
    ptx::barrier_init(first_stage(memory, i).empty, CLUSTER * GROUP_WARPS);
  }
  for (int i = 0; i < SECOND_STAGES; i++) {
    ptx::barrier_init(second_stage(memory, i).full, 1);
    ptx::barrier_init(second_stage(memory, i).empty, CLUSTER * 2 * GROUP_WARPS);
  }
  ptx::barriers_ready();
}

// ---- the producer: one thread -----------------------------------------------------------------------

template <int CLUSTER> struct Producer {
  u32 memory;
  int first, second; // steps so far

  // A step's PARTS · 128 rows from `row` on.
  template <int PARTS> DEVICE void step(const Stage &stage, const TensorMap *map, int column, int row) const {
    ptx::barrier_wait(stage.empty, stage.parity ^ 1); // fresh: at once
    ptx::barrier_expect(stage.full, PARTS * 128 * DEPTH * 2);
    cluster::bring_parts<CLUSTER, 128, PARTS>(stage.at, map, column, row, stage.full);
  }
  DEVICE void bring_first(const TensorMap *w1, int chunk, int from, int to) {
#pragma unroll 1
    for (int k = from; k < to; k++, first++)
      step<1>(first_stage(memory, first), w1, k * DEPTH, chunk * CHUNK);
  }
  DEVICE void bring_second(const TensorMap *w2, int chunk) {
#pragma unroll 1
    for (int k = 0; k < SECOND_STEPS; k++, second++)
      step<3>(second_stage(memory, second), w2, chunk * CHUNK + k * DEPTH, 0);
  }
  DEVICE void bring_x(const TensorMap *x, int tile, int row0) const {
    Stage own = x_stage(memory, tile);
    ptx::barrier_wait(own.empty, own.parity ^ 1);
    ptx::barrier_expect(own.full, FIRST_STEPS * BOX);
#pragma unroll 1
    for (int k = 0; k < FIRST_STEPS; k++)
      ptx::load_box(own.at + (u32)k * BOX, x, k * DEPTH, row0, own.full);
  }
};

// Brings every step of every tile, in the order of their use. x of a tile comes behind as many steps as W1 has stages,
// which are free while the tile before is still normalised and stored from x's place.
template <int CLUSTER>
DEVICE void produce(u32 memory, const TensorMap *x, const TensorMap *w1, const TensorMap *w2, const int *count,
                    int chunks) {
  Producer<CLUSTER> producer = {memory, 0, 0};
  Tiles<CLUSTER, ROWS> tiles = {count};
  int tile = 0;
  for (int row0 = tiles.first(); tiles.has(row0); row0 = tiles.next(row0), tile++) {
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      producer.bring_first(w1, chunk, 0, FIRST_HALF);
      if (chunk == 0)
        producer.bring_x(x, tile, row0);
      else
        producer.bring_second(w2, chunk - 1);
      producer.bring_first(w1, chunk, FIRST_HALF, FIRST_STEPS);
    }
    producer.bring_second(w2, chunks - 1);
  }
}

// ---- the consumers: two warpgroups ------------------------------------------------------------------

// The step before is read, whose products have ended; remembers this one.
template <int CLUSTER> DEVICE void release(u32 &before, u32 empty, int lane) {
  if (before != 0)
    cluster::release<CLUSTER>(before, lane);
  before = empty;
}

// Steps `from` … of a chunk's first product; the last one is still under way.
template <int CLUSTER>
DEVICE void multiply_first(u32 memory, float (&sums)[64], int first_step, int from, int to, u32 &before, int lane) {
  for (int k = from; k < to; k++) {
    Stage stage = first_stage(memory, first_step + k);
    ptx::barrier_wait(stage.full, stage.parity);
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++)
      ptx::multiply_64x128x16(sums, ptx::operand(memory + (u32)k * BOX + (u32)i * 32),
                              ptx::operand(stage.at + (u32)i * 32), k > 0 || i > 0);
    ptx::products_commit();
    ptx::products_wait<1>();
    release<CLUSTER>(before, stage.empty, lane);
  }
}

// Adds a chunk's part to this group's 192 columns; its last step is still under way.
template <int CLUSTER>
DEVICE void multiply_second(u32 memory, float (&sums)[96], int first_step, int chunk, u32 &before,
                            const Place &place) {
  for (int k = 0; k < SECOND_STEPS; k++) {
    Stage stage = second_stage(memory, first_step + chunk * SECOND_STEPS + k);
    u32 h = memory + H_AT + (u32)(chunk % 2) * H_BYTES + (u32)k * BOX;
    ptx::barrier_wait(stage.full, stage.parity);
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++)
      ptx::multiply_64x192x16(sums, ptx::operand(h + (u32)i * 32),
                              ptx::operand(stage.at + (u32)place.group * OWN * 128 + (u32)i * 32),
                              chunk > 0 || k > 0 || i > 0);
    ptx::products_commit();
    ptx::products_wait<1>();
    release<CLUSTER>(before, stage.empty, place.lane);
  }
}

// H = GELU(sums + b1) as halves, swizzled as wgmma reads it. `column`: of the inner width, this thread's first.
DEVICE void widen(unsigned char *h, const float (&sums)[64], const float *bias, int column, int wide,
                  const Place &place) {
#pragma unroll
  for (int n = 0; n < CHUNK / 8; n++) {
    // Past the inner width W2 is zeros: whatever is finite will do.
    numbers::Pair b = column + n * 8 < wide ? *(const numbers::Pair *)(bias + column + n * 8) : numbers::Pair{0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2; i++)
      *(u32 *)(h + (u32)(n / 8) * BOX + tiles::swizzled<8>(place.row() + i * 8, n % 8) + place.lane % 4 * 4) =
          ptx::to_halves(numbers::gelu_fast(sums[n * 4 + i * 2] + b.low), numbers::gelu_fast(sums[n * 4 + i * 2 + 1] + b.high));
  }
}

// A tile's products: the sums of this group's 192 columns. `tile` counts those before.
template <int CLUSTER>
DEVICE void multiply_tile(unsigned char *memory, float (&sums)[96], const float *bias, int wide, int chunks, int tile,
                          const Place &place) {
  u32 base = ptx::shared(memory), before = 0;
  int group = place.group, second_step = tile * chunks * SECOND_STEPS;
#pragma unroll 1
  for (int chunk = group; chunk < chunks; chunk += 2) {
    float wider[64];
    int first_step = (tile * chunks + chunk) * FIRST_STEPS;
    if (chunk > 0) // a tile's first chunk follows the norm of the tile before, where both met
      ptx::part_sync(TURN + group, 2 * GROUP);
    multiply_first<CLUSTER>(base, wider, first_step, 0, FIRST_HALF, before, place.lane);
    if (chunk > 0) {
      ptx::part_sync(READY + (1 - group), 2 * GROUP);
      multiply_second<CLUSTER>(base, sums, second_step, chunk - 1, before, place);
    }
    multiply_first<CLUSTER>(base, wider, first_step, FIRST_HALF, FIRST_STEPS, before, place.lane);
    if (chunk + 1 < chunks)
      ptx::part_arrive(TURN + (1 - group), 2 * GROUP);
    ptx::products_wait<0>();
    release<CLUSTER>(before, 0, place.lane);
    widen(memory + H_AT + (u32)group * H_BYTES, wider, bias, chunk * CHUNK + place.column(), wide, place);
    ptx::written_for_engines();
    ptx::part_sync(OWN_MET + group, GROUP);
    ptx::part_arrive(READY + group, 2 * GROUP);
    multiply_second<CLUSTER>(base, sums, second_step, chunk, before, place);
  }
  if ((chunks - 1) % 2 != group) {
    ptx::part_sync(READY + (1 - group), 2 * GROUP);
    multiply_second<CLUSTER>(base, sums, second_step, chunks - 1, before, place);
  }
  ptx::products_wait<0>();
  release<CLUSTER>(before, 0, place.lane);
}

// x's place in shared memory of this group's columns 8 n …, row `row` of the tile.
DEVICE u32 *x_at(unsigned char *memory, const Place &place, int n, int i) {
  return (u32 *)(memory + (u32)(place.group * 3 + n / 8) * BOX + tiles::swizzled<8>(place.row() + i * 8, n % 8) +
                 place.lane % 4 * 4);
}

// sums + b2 + x, normalised, to x's place in shared memory.
DEVICE void normalize(unsigned char *memory, float (&sums)[96], const float *bias, const float *gain,
                      const float *shift, float epsilon, const Place &place) {
  float sum[2] = {};
#pragma unroll
  for (int n = 0; n < OWN / 8; n++) {
    numbers::Pair b = *(const numbers::Pair *)(bias + n * 8);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      u32 residual = *x_at(memory, place, n, i);
      float &low = sums[n * 4 + i * 2], &high = sums[n * 4 + i * 2 + 1];
      low += b.low + ptx::from_half((u16)residual);
      high += b.high + ptx::from_half((u16)(residual >> 16));
      sum[i] += low + high;
    }
  }
  float inverse[2];
  groups::center((float *)(memory + SUMS_AT), (float *)(memory + SQUARES_AT), sums, sum, inverse, epsilon, place);
#pragma unroll
  for (int n = 0; n < OWN / 8; n++) {
    numbers::Pair g = *(const numbers::Pair *)(gain + n * 8), s = *(const numbers::Pair *)(shift + n * 8);
#pragma unroll
    for (int i = 0; i < 2; i++)
      *x_at(memory, place, n, i) = ptx::to_halves(sums[n * 4 + i * 2] * inverse[i] * g.low + s.low,
                                                  sums[n * 4 + i * 2 + 1] * inverse[i] * g.high + s.high);
  }
}

// A warp's 16 rows of its group's columns leave in whole 16 bytes, 128 in a row. x: from the warp's first row on.
DEVICE void store(const unsigned char *memory, u16 *x, int rows, const Place &place) {
#pragma unroll
  for (int box = 0; box < 3; box++)
#pragma unroll
    for (int row = 0; row < 16; row += 4) {
      int own = row + place.lane / 8, chunk = place.lane % 8;
      if (own < rows)
        *(tiles::Chunk *)(x + (size_t)own * HIDDEN + (place.group * 3 + box) * DEPTH + chunk * tiles::CHUNK_HALVES) =
            *(const tiles::Chunk *)(memory + (u32)(place.group * 3 + box) * BOX + tiles::swizzled<8>(place.warp * 16 + own, chunk));
    }
}

// Both groups: this block's tiles, one after the other.
template <int CLUSTER>
DEVICE void consume(unsigned char *memory, const int *count, const float *bias1, const float *bias2, u16 *x,
                    const float *gain, const float *shift, int wide, float epsilon, int chunks) {
  Tiles<CLUSTER, ROWS> tiles = {count};
  int group = (int)threadIdx.x / GROUP - 1, tile = 0;
  for (int row0 = tiles.first(); tiles.has(row0); row0 = tiles.next(row0), tile++) {
    float sums[96];
    int thread = (int)threadIdx.x % GROUP;
    Place place = {group, thread / tiles::WARP, thread % tiles::WARP};
    Stage own = x_stage(ptx::shared(memory), tile);
    ptx::barrier_wait(own.full, own.parity);
    multiply_tile<CLUSTER>(memory, sums, bias1, wide, chunks, tile, place);
    ptx::made_anew(thread); // addresses are made here, not kept beside the sums while they grow
    place = {group, thread / tiles::WARP, thread % tiles::WARP};
    int column = group * OWN + place.column(), row = row0 + place.warp * 16;
    normalize(memory, sums, bias2 + column, gain + column, shift + column, epsilon, place);
    ptx::warp_sync();
    store(memory, x + (size_t)row * HIDDEN, *count - row, place);
    ptx::written_for_engines();
    ptx::warp_sync();
    if (place.lane == 0)
      ptx::barrier_arrive(own.empty);
  }
}

template <int CLUSTER>
DEVICE void feed(const TensorMap *from, const TensorMap *w1, const TensorMap *w2, const int *count, const float *bias1,
                 const float *bias2, u16 *x, const float *gain, const float *shift, int wide, float epsilon) {
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: boxes begin at a multiple of 1,024 wherever the memory does.
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  u32 base = ptx::shared(memory);
  int chunks = (wide + CHUNK - 1) / CHUNK;
  if (threadIdx.x == 0) {
    ptx::prefetch_map(from);
    ptx::prefetch_map(w1);
    ptx::prefetch_map(w2);
    prepare<CLUSTER>(base);
  }
  cluster::meet<CLUSTER>();
  ptx::follow();
  if (threadIdx.x < GROUP) {
    ptx::registers_down<40>();
    if (threadIdx.x == 0)
      produce<CLUSTER>(base, from, w1, w2, count, chunks);
    ptx::warp_sync();
  } else {
    ptx::registers_up<232>();
    consume<CLUSTER>(memory, count, bias1, bias2, x, gain, shift, wide, epsilon, chunks);
  }
  cluster::leave<CLUSTER>();
}

} // namespace

// ---- grid: a block a multiprocessor at most, whole clusters; 384 threads; 1,024 + BARRIERS_AT + 96 bytes -----------
// Boxes of W1 and W2 have 128 / CLUSTER rows, those of x 64.

#define FEED(name, CLUSTER)                                                                                           \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap w1,                              \
           const __grid_constant__ TensorMap w2, const int *count, const float *bias1, const float *bias2, u16 *x,    \
           const float *gain, const float *shift, int wide, float epsilon) {                                          \
    feed<CLUSTER>(&from, &w1, &w2, count, bias1, bias2, x, gain, shift, wide, epsilon);                               \
  }
FEED(feed_hopper_384, 1)
FEED(feed_hopper_384_by2, 2)
FEED(feed_hopper_384_by4, 4)
#undef FEED
