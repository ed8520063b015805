// x = LayerNorm(x + Y·Wᵀ + b), in one kernel: a product, its residual and the norm behind it (stage 3).
// Twice a layer: behind attention (Y is `context`, K = hidden) and behind GELU (Y is `wide`, K = 4 · hidden).
//
//   stage 2, two kernels   read Y ─ product ─ write sum ─▶ read sum, read x ─ norm ─ write x     4 rows of x's width
//   here                   read Y ─ product ─ read x, norm ─ write x                             2 rows, one launch less
//
// A norm needs whole rows, so a block makes whole rows: 128 of them, a warpgroup 64.
//
//                    columns   0 …          192 …              one step: 64 of K
//   rows 0–63    ┌────────────┬────────────┐ warpgroup 1       X  128×64  16 KB ┐ by the copy engine,
//   rows 64–127  └────────────┴────────────┘ warpgroup 2       W  384×64  48 KB ┘ 3 steps in flight: 192 KB
//                 192 sums a thread, in registers till         warpgroup 0, one thread, asks for them
//                 the row is done
//
//   warpgroup 1   ├── wgmma over K ──┤ + b + x │ mean │ squares │ ▶ x ├── the next tile …
//   warpgroup 2     ├── wgmma over K ──┤ + b + x │ mean │ squares │ ▶ x ├── …       free to drift by two to three steps
//   copy engine   ▐ runs ahead: the next tile's first three steps come meanwhile
//
// Four threads of one warp share a row, so sums over it are two exchanges: nothing meets, no shared memory. A row's
// numbers are added up in one order, 96 columns a thread, then the exchanges; mean first, squares around it second,
// as in norm.cu. The sum before the norm stays f32 and is never rounded to halves.
//
// W is read once for 128 rows of x at their whole width of each block of a cluster of 1, 2 or 4 (cluster.cuh). x is
// read and written in place: a row is one warp's alone.
//
//   full[stage]    1 arrival and 65,536 bytes    empty[stage]   8 arrivals of each block, one a warp
//   Both warpgroups take all steps in their order, so nobody is ever two phases ahead.
//
// Invariants as in linear.cu: fixed order over K, no split, rows past the count not written.
// Limits: sm_90a; 384 columns (a thread holds no more sums); K a multiple of 8. The epilogue is hidden behind the
// other warpgroup's products only as far as they drift apart: of K = 384 that is felt most.
#include "cluster.cuh"
#include "numbers.cuh"
#include "tiles.cuh"

namespace {
using cluster::Tiles;

constexpr int ROWS = 128, HALF = ROWS / 2, HIDDEN = 384, PARTS = 2, PART = HIDDEN / PARTS, DEPTH = 64, STAGES = 3;
constexpr int GROUP = 128, THREADS = 3 * GROUP, WARPS = 2 * GROUP / tiles::WARP;
// 16 rows and 64 columns leave a warp at a time; 16 bytes more a row, so that 8 rows meet 32 banks once, as in tiles.cuh,
// and every place is a constant from one address: a swizzle would need registers that the sums have.
constexpr int SLICE = 64, CHUNKS = SLICE / tiles::CHUNK_HALVES, PITCH = SLICE * 2 + tiles::CHUNK_BYTES;
constexpr u32 X_BYTES = ROWS * DEPTH * 2, W_BYTES = HIDDEN * DEPTH * 2, STAGE_BYTES = X_BYTES + W_BYTES;
constexpr u32 SLICES_AT = STAGES * STAGE_BYTES, BARRIERS_AT = SLICES_AT + WARPS * 16 * PITCH;

DEVICE u32 full(u32 memory, int step) { return memory + BARRIERS_AT + (u32)(step % STAGES) * 8; }
DEVICE u32 empty(u32 memory, int step) { return memory + BARRIERS_AT + (u32)(STAGES + step % STAGES) * 8; }
DEVICE u32 parity(int step) { return (u32)(step / STAGES) & 1; }

// One thread: brings every step of every tile of this block, in order.
template <int CLUSTER>
DEVICE void produce(u32 memory, const TensorMap *from, const TensorMap *w, const int *count, int steps) {
  Tiles<CLUSTER, ROWS> tiles = {count};
  int step = 0;
  for (int row0 = tiles.first(); tiles.has(row0); row0 = tiles.next(row0))
#pragma unroll 1
    for (int k = 0; k < steps; k++, step++) {
      u32 stage = memory + (u32)(step % STAGES) * STAGE_BYTES, barrier = full(memory, step);
      ptx::barrier_wait(empty(memory, step), parity(step) ^ 1); // fresh: at once
      ptx::barrier_expect(barrier, STAGE_BYTES);
      ptx::load_box(stage, from, k * DEPTH, row0, barrier);
      cluster::bring_parts<CLUSTER, 128, HIDDEN / 128>(stage + X_BYTES, w, k * DEPTH, 0, barrier);
    }
}

// All steps of one tile: this warpgroup's 64 rows; sums[part] are 192 columns.
template <int CLUSTER>
DEVICE void multiply_tile(u32 memory, float (&sums)[PARTS][PART / 2], int first_step, int steps, int group, int lane) {
  for (int k = 0; k < steps; k++) {
    int step = first_step + k;
    u32 stage = memory + (u32)(step % STAGES) * STAGE_BYTES;
    ptx::barrier_wait(full(memory, step), parity(step));
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++) {
      u64 a = ptx::operand(stage + (u32)group * HALF * 128 + (u32)i * 32);
#pragma unroll
      for (int part = 0; part < PARTS; part++)
        ptx::multiply_64x192x16(sums[part], a,
                                ptx::operand(stage + X_BYTES + (u32)part * PART * DEPTH * 2 + (u32)i * 32), k > 0 || i > 0);
    }
    ptx::products_commit();
    ptx::products_wait<1>(); // the step before has been read: its stage is free
    if (k > 0)
      cluster::release<CLUSTER>(empty(memory, step - 1), lane);
  }
  ptx::products_wait<0>();
  cluster::release<CLUSTER>(empty(memory, first_step + steps - 1), lane);
}

// sums + bias + residual, in place; of a thread's two rows (the second 8 below) the mean. x is the first row's, from
// this thread's first column on; a row past the count has no residual.
DEVICE void add_rest(float (&sums)[PARTS][PART / 2], float (&mean)[2], const float *bias, const u16 *x, int rows) {
#pragma unroll
  for (int part = 0; part < PARTS; part++)
#pragma unroll
    for (int n = 0; n < PART / 8; n++) {
      int column = part * PART + n * 8;
      numbers::Pair b = *(const numbers::Pair *)(bias + column);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        u32 residual = i * 8 < rows ? *(const u32 *)(x + i * 8 * HIDDEN + column) : 0;
        float &low = sums[part][n * 4 + i * 2], &high = sums[part][n * 4 + i * 2 + 1];
        low += b.low + ptx::from_half((u16)residual);
        high += b.high + ptx::from_half((u16)(residual >> 16));
        mean[i] += low + high;
      }
    }
#pragma unroll
  for (int i = 0; i < 2; i++)
    mean[i] = numbers::quad_sum(mean[i]) * (1.0f / HIDDEN);
}

// Takes the mean off a row, in place; 1 / √(variance + epsilon).
DEVICE float center(float (&sums)[PARTS][PART / 2], int i, float mean, float epsilon) {
  float squares = 0.0f;
#pragma unroll
  for (int part = 0; part < PARTS; part++)
#pragma unroll
    for (int n = 0; n < PART / 8; n++) {
      float &low = sums[part][n * 4 + i * 2], &high = sums[part][n * 4 + i * 2 + 1];
      low -= mean;
      high -= mean;
      squares += low * low + high * high;
    }
  return rsqrtf(numbers::quad_sum(squares) * (1.0f / HIDDEN) + epsilon);
}

// Normalises and stores a warp's 16 rows, 64 columns at a time: through shared memory, so that they leave in whole
// 16 bytes. gain and shift begin at this thread's first column, x at the warp's first row; rows: of it on.
DEVICE void store(unsigned char *slice, const float (&sums)[PARTS][PART / 2], const float (&inverse)[2], const float *gain,
                  const float *shift, u16 *x, int rows, int lane) {
  unsigned char *mine = slice + lane / 4 * PITCH + lane % 4 * 4;
  const unsigned char *leaving = slice + lane / CHUNKS * PITCH + lane % CHUNKS * tiles::CHUNK_BYTES;
  u16 *to = x + lane / CHUNKS * HIDDEN + lane % CHUNKS * tiles::CHUNK_HALVES;
#pragma unroll
  for (int first = 0; first < HIDDEN; first += SLICE) {
#pragma unroll
    for (int n = 0; n < SLICE / 8; n++) {
      int column = first + n * 8;
      numbers::Pair g = *(const numbers::Pair *)(gain + column), s = *(const numbers::Pair *)(shift + column);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float *own = &sums[column / PART][column % PART / 2 + i * 2];
        float low = own[0] * inverse[i] * g.low + s.low, high = own[1] * inverse[i] * g.high + s.high;
        *(u32 *)(mine + i * 8 * PITCH + n * 16) = ptx::to_halves(low, high);
      }
    }
    ptx::warp_sync();
#pragma unroll
    for (int row = 0; row < 16; row += tiles::WARP / CHUNKS)
      if (row + lane / CHUNKS < rows)
        *(tiles::Chunk *)(to + row * HIDDEN + first) = *(const tiles::Chunk *)(leaving + row * PITCH);
    ptx::warp_sync(); // before the next columns are written there
  }
}

// Both warpgroups: this block's tiles, one after the other.
template <int CLUSTER>
DEVICE void consume(unsigned char *memory, const int *count, const float *bias, u16 *x, const float *gain,
                    const float *shift, int steps, float epsilon) {
  Tiles<CLUSTER, ROWS> tiles = {count};
  int group = (int)threadIdx.x / GROUP - 1, first_step = 0;
  for (int row0 = tiles.first(); tiles.has(row0); row0 = tiles.next(row0), first_step += steps) {
    float sums[PARTS][PART / 2];
    int thread = (int)threadIdx.x % GROUP;
    multiply_tile<CLUSTER>(ptx::shared(memory), sums, first_step, steps, group, thread % tiles::WARP);
    ptx::made_anew(thread); // addresses are made here, not kept beside the sums while they grow
    int lane = thread % tiles::WARP, warp = thread / tiles::WARP, column = lane % 4 * 2;
    int row = row0 + group * HALF + warp * 16, rows = *count - row;
    u16 *first = x + (size_t)row * HIDDEN;
    float mean[2] = {};
    add_rest(sums, mean, bias + column, first + lane / 4 * HIDDEN + column, rows - lane / 4);
    float inverse[2] = {center(sums, 0, mean[0], epsilon), center(sums, 1, mean[1], epsilon)};
    unsigned char *slice = memory + SLICES_AT + (group * GROUP / tiles::WARP + warp) * 16 * PITCH;
    store(slice, sums, inverse, gain + column, shift + column, first, rows, lane);
  }
}

template <int CLUSTER>
DEVICE void join(const TensorMap *from, const TensorMap *w, const int *count, const float *bias, u16 *x,
                 const float *gain, const float *shift, int inputs, float epsilon) {
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: stages begin at a multiple of 1,024 wherever the memory does.
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  u32 base = ptx::shared(memory);
  int steps = (inputs + DEPTH - 1) / DEPTH;
  if (threadIdx.x == 0) {
    ptx::prefetch_map(from);
    ptx::prefetch_map(w);
    for (int stage = 0; stage < STAGES; stage++) {
      ptx::barrier_init(full(base, stage), 1);
      ptx::barrier_init(empty(base, stage), CLUSTER * WARPS);
    }
    ptx::barriers_ready();
  }
  cluster::meet<CLUSTER>();
  ptx::follow();
  if (threadIdx.x < GROUP) {
    ptx::registers_down<40>();
    if (threadIdx.x == 0)
      produce<CLUSTER>(base, from, w, count, steps);
    ptx::warp_sync();
  } else {
    ptx::registers_up<232>();
    consume<CLUSTER>(memory, count, bias, x, gain, shift, steps, epsilon);
  }
  cluster::leave<CLUSTER>();
}

} // namespace

// ---- grid: a block a multiprocessor at most, whole clusters; 384 threads; 1,024 + BARRIERS_AT + 48 bytes -----------
// Boxes of Y have 128 rows, those of W 128 / CLUSTER.

#define JOIN(name, CLUSTER)                                                                                           \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap w, const int *count,             \
           const float *bias, u16 *x, const float *gain, const float *shift, int inputs, float epsilon) {             \
    join<CLUSTER>(&from, &w, count, bias, x, gain, shift, inputs, epsilon);                                           \
  }
JOIN(join_hopper_384, 1)
JOIN(join_hopper_384_by2, 2)
JOIN(join_hopper_384_by4, 4)
#undef JOIN
