// x = LayerNorm(x + GELU(x·W1ᵀ + b1)·W2ᵀ + b2): the whole feed-forward half of a layer in one kernel (stage 3).
//
//   two products and a norm   read x ─ write wide, 4 rows of x's width ─▶ read wide ─ … ─ write x
//   here                      read x ─ write x; what is between never leaves the multiprocessor
//
// A block makes 64 rows. x stays in shared memory for all of it; the inner width is walked through 128 at a time,
// and W1 and W2 stream past, once for each 64 rows.
//
//                      W1  128 rows of it                H = GELU(…), halves           W2  384 rows, 128 columns
//             K = 384 ┌──────┬──────┐                  ┌──────┬──────┐                ┌──────────┬──────────┐
//   x 64×384  ──────▶ │group1│group2│ 64 columns each ─│ 64×64│ 64×64│─ K = 128 ────▶ │  group 1 │  group 2 │ 192 columns each
//                     └──────┴──────┘  32 sums a thread└──────┴──────┘ shared memory  └──────────┴──────────┘ 96 sums a thread
//
//   group 1   │ W1: 6 steps │ GELU ▶ H │═│ W2: 2 steps │ W1: 6 steps │ GELU ▶ H │═│ …          ═ both have written H
//   group 2   │ W1: 6 steps │ GELU ▶ H │═│ W2: 2 steps │ W1: 6 steps │ GELU ▶ H │═│ …
//   engine    ▐ runs ahead by four steps of W1 (16 KB) and two of W2 (48 KB), over tiles' borders too
//
// One meeting a chunk is enough. Nobody writes H while the other still reads that of the chunk before: six steps of W1
// come through four stages, so the last is there only when both are behind the second, and thus behind the W2 steps
// before it. (For the same reason the copy engine never really waits for a stage of W2.)
//
// Behind the last chunk: + b2 + x, the norm (a row's two halves meet by shared memory, twice), and x is stored from
// where it lay. Sums over a row: 48 columns a thread, two exchanges, group 1 and group 2; mean first, squares second.
//
// Invariants as in linear.cu: fixed order over K, no split, rows past the count not written. x in place.
// Limits: sm_90a; 384 columns; the inner width a multiple of 8. Weights stream once for 64 rows, 2.4 MB of L2 (as much as
// the two products of stage 2 read): 2.2 times what 5.5 TB/s give at the pace of the products. A cluster of two
// blocks that share the stream takes nearly all of that off.
#include "hopper.cuh"
#include "numbers.cuh"
#include "tiles.cuh"

namespace {

constexpr int ROWS = 64, HIDDEN = 384, DEPTH = 64, CHUNK = 128, OWN = HIDDEN / 2, OWN_WIDE = CHUNK / 2;
constexpr int FIRST_STEPS = HIDDEN / DEPTH, SECOND_STEPS = CHUNK / DEPTH, FIRST_STAGES = 4, SECOND_STAGES = 2;
static_assert(FIRST_STAGES < FIRST_STEPS, "who has done all steps of W1 knows that nobody reads H any more");
constexpr int GROUP = 128, THREADS = 3 * GROUP, WARPS = 2 * GROUP / tiles::WARP;
constexpr u32 BOX = ROWS * DEPTH * 2; // of x and of H: 64 rows of 128 bytes
constexpr u32 FIRST_BYTES = CHUNK * DEPTH * 2, SECOND_PART = 128 * DEPTH * 2, SECOND_BYTES = HIDDEN * DEPTH * 2;
constexpr u32 H_AT = FIRST_STEPS * BOX, FIRST_AT = H_AT + 2 * BOX, SECOND_AT = FIRST_AT + FIRST_STAGES * FIRST_BYTES;
constexpr u32 SUMS_AT = SECOND_AT + SECOND_STAGES * SECOND_BYTES, SQUARES_AT = SUMS_AT + 2 * ROWS * 4;
constexpr u32 BARRIERS_AT = SQUARES_AT + 2 * ROWS * 4;
constexpr int MET = 1; // a named barrier of the two groups; 0 is __syncthreads

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
constexpr int BARRIERS = SECOND_BARRIER + 2 * SECOND_STAGES;
DEVICE Stage first_stage(u32 memory, int step) {
  return stage_of<FIRST_STAGES, FIRST_BYTES>(memory, FIRST_AT, FIRST_BARRIER, step);
}
DEVICE Stage second_stage(u32 memory, int step) {
  return stage_of<SECOND_STAGES, SECOND_BYTES>(memory, SECOND_AT, SECOND_BARRIER, step);
}
DEVICE Stage x_stage(u32 memory, int tile) {
  return {memory, memory + BARRIERS_AT, memory + BARRIERS_AT + 8, (u32)tile & 1};
}

DEVICE void bring_x(const Stage &own, const TensorMap *x, int row0) {
  ptx::barrier_wait(own.empty, own.parity ^ 1); // fresh: at once
  ptx::barrier_expect(own.full, FIRST_STEPS * BOX);
#pragma unroll 1
  for (int k = 0; k < FIRST_STEPS; k++)
    ptx::load_box(own.at + (u32)k * BOX, x, k * DEPTH, row0, own.full);
}

// One thread: for each chunk its steps of W1 and of W2, in the order of their use. x of a tile comes behind as many
// steps as there are stages, which are free while the tile before is still normalised and stored from x's place.
DEVICE void produce(u32 memory, const TensorMap *x, const TensorMap *w1, const TensorMap *w2, int rows, int chunks) {
  int first = 0, second = 0, tile = 0;
  for (int row0 = (int)blockIdx.x * ROWS; row0 < rows; row0 += (int)gridDim.x * ROWS, tile++) {
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
#pragma unroll 1
      for (int k = 0; k < FIRST_STEPS; k++, first++) {
        if (chunk == 0 && k == FIRST_STAGES)
          bring_x(x_stage(memory, tile), x, row0);
        Stage stage = first_stage(memory, first);
        ptx::barrier_wait(stage.empty, stage.parity ^ 1);
        ptx::barrier_expect(stage.full, FIRST_BYTES);
        ptx::load_box(stage.at, w1, k * DEPTH, chunk * CHUNK, stage.full);
      }
#pragma unroll 1
      for (int k = 0; k < SECOND_STEPS; k++, second++) {
        Stage stage = second_stage(memory, second);
        ptx::barrier_wait(stage.empty, stage.parity ^ 1);
        ptx::barrier_expect(stage.full, SECOND_BYTES);
#pragma unroll 1
        for (int part = 0; part < 3; part++)
          ptx::load_box(stage.at + (u32)part * SECOND_PART, w2, chunk * CHUNK + k * DEPTH, part * 128, stage.full);
      }
    }
  }
}

// Where this thread is: its group's half of the columns, its warp's 16 rows, its first row and column of them.
struct Place {
  int group, warp, lane;
  DEVICE int row() const { return warp * 16 + lane / 4; }
  DEVICE int column() const { return lane % 4 * 2; }
};

// Says that the step before is read, whose products have ended, and remembers this one.
DEVICE void release(u32 &before, u32 empty, int lane) {
  if (before != 0 && lane == 0)
    ptx::barrier_arrive(before);
  before = empty;
}

// H's part of this group: 64 rows, 64 of the chunk's columns.
DEVICE void multiply_first(u32 memory, float (&sums)[32], int &step, u32 &before, const Place &place) {
  for (int k = 0; k < FIRST_STEPS; k++, step++) {
    Stage stage = first_stage(memory, step);
    ptx::barrier_wait(stage.full, stage.parity);
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++)
      ptx::multiply_64x64x16(sums, ptx::operand(memory + (u32)k * BOX + (u32)i * 32),
                             ptx::operand(stage.at + (u32)place.group * OWN_WIDE * 128 + (u32)i * 32), k > 0 || i > 0);
    ptx::products_commit();
    ptx::products_wait<1>();
    release(before, stage.empty, place.lane);
  }
  ptx::products_wait<0>();
  release(before, 0, place.lane);
}

// Adds a chunk's part to this group's 192 columns; its last step is still under way.
DEVICE void multiply_second(u32 memory, float (&sums)[96], int &step, u32 &before, bool is_first, const Place &place) {
  for (int k = 0; k < SECOND_STEPS; k++, step++) {
    Stage stage = second_stage(memory, step);
    ptx::barrier_wait(stage.full, stage.parity);
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++)
      ptx::multiply_64x192x16(sums, ptx::operand(memory + H_AT + (u32)k * BOX + (u32)i * 32),
                              ptx::operand(stage.at + (u32)place.group * OWN * 128 + (u32)i * 32),
                              !is_first || k > 0 || i > 0);
    ptx::products_commit();
    ptx::products_wait<1>();
    release(before, stage.empty, place.lane);
  }
}

// H = GELU(sums + b1) as halves, swizzled as wgmma reads it. `column`: of the inner width, this thread's first.
DEVICE void widen(unsigned char *h, const float (&sums)[32], const float *bias, int column, int wide,
                  const Place &place) {
#pragma unroll
  for (int n = 0; n < OWN_WIDE / 8; n++) {
    // Past the inner width W2 is zeros: whatever is finite will do.
    numbers::Pair b = column + n * 8 < wide ? *(const numbers::Pair *)(bias + column + n * 8) : numbers::Pair{0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2; i++)
      *(u32 *)(h + tiles::swizzled<8>(place.row() + i * 8, n) + place.lane % 4 * 4) =
          ptx::to_halves(numbers::gelu_fast(sums[n * 4 + i * 2] + b.low), numbers::gelu_fast(sums[n * 4 + i * 2 + 1] + b.high));
  }
}

// Adds four lanes' numbers, which share a row, and those of the other group's half of it.
DEVICE void row_sums(float *meeting, float (&sum)[2], const Place &place) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    sum[i] = numbers::quad_sum(sum[i]);
    if (place.lane % 4 == 0)
      meeting[place.group * ROWS + place.row() + i * 8] = sum[i];
  }
  ptx::part_sync(MET, 2 * GROUP);
#pragma unroll
  for (int i = 0; i < 2; i++)
    sum[i] = meeting[place.row() + i * 8] + meeting[ROWS + place.row() + i * 8];
}

// x's place in shared memory of this group's columns 8 n …, row `row` of the tile.
DEVICE u32 *x_at(unsigned char *memory, const Place &place, int n, int i) {
  return (u32 *)(memory + (u32)(place.group * 3 + n / 8) * BOX + tiles::swizzled<8>(place.row() + i * 8, n % 8) +
                 place.lane % 4 * 4);
}

// sums + b2 + x, normalised, to x's place in shared memory.
DEVICE void normalize(unsigned char *memory, float (&sums)[96], const float *bias, const float *gain,
                      const float *shift, float epsilon, const Place &place) {
  float sum[2] = {}, squares[2] = {};
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
  row_sums((float *)(memory + SUMS_AT), sum, place);
#pragma unroll
  for (int n = 0; n < OWN / 8; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float &low = sums[n * 4 + i * 2], &high = sums[n * 4 + i * 2 + 1];
      low -= sum[i] * (1.0f / HIDDEN); // in place: what is computed anew is kept beside what it was
      high -= sum[i] * (1.0f / HIDDEN);
      squares[i] += low * low + high * high;
    }
  row_sums((float *)(memory + SQUARES_AT), squares, place);
  float inverse[2] = {rsqrtf(squares[0] * (1.0f / HIDDEN) + epsilon), rsqrtf(squares[1] * (1.0f / HIDDEN) + epsilon)};
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

} // namespace

// ---- grid: a block a multiprocessor at most; 384 threads; 1,024 + BARRIERS_AT + 112 bytes ---------------------------

KERNEL __launch_bounds__(THREADS, 1)
    feed_hopper_384(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap w1,
                    const __grid_constant__ TensorMap w2, const int *count, const float *bias1, const float *bias2,
                    u16 *x, const float *gain, const float *shift, int wide, float epsilon) {
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: boxes begin at a multiple of 1,024 wherever the memory does.
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  u32 base = ptx::shared(memory);
  int chunks = (wide + CHUNK - 1) / CHUNK;
  if (threadIdx.x == 0) {
    for (int i = 0; i < BARRIERS; i++) {
      bool is_full = i == 0 || (i >= FIRST_BARRIER && i < FIRST_BARRIER + FIRST_STAGES) ||
                     (i >= SECOND_BARRIER && i < SECOND_BARRIER + SECOND_STAGES);
      ptx::barrier_init(base + BARRIERS_AT + (u32)i * 8, is_full ? 1 : WARPS);
    }
    ptx::barriers_ready();
  }
  __syncthreads();
  int group = (int)threadIdx.x / GROUP - 1;
  if (group < 0) {
    ptx::registers_down<24>();
    if (threadIdx.x == 0)
      produce(base, &from, &w1, &w2, *count, chunks);
    return;
  }
  ptx::registers_up<240>();
  int first = 0, second = 0, tile = 0;
  for (int row0 = (int)blockIdx.x * ROWS; row0 < *count; row0 += (int)gridDim.x * ROWS, tile++) {
    float sums[96];
    int thread = (int)threadIdx.x % GROUP;
    Place place = {group, thread / tiles::WARP, thread % tiles::WARP};
    Stage own = x_stage(base, tile);
    u32 before = 0;
    ptx::barrier_wait(own.full, own.parity);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      float wider[32];
      multiply_first(base, wider, first, before, place);
      widen(memory + H_AT + (u32)group * BOX, wider, bias1, chunk * CHUNK + group * OWN_WIDE + place.column(), wide, place);
      ptx::written_for_engines();
      ptx::part_sync(MET, 2 * GROUP);
      multiply_second(base, sums, second, before, chunk == 0, place);
    }
    ptx::products_wait<0>();
    release(before, 0, place.lane);
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
