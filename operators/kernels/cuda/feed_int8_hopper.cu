// x = LayerNorm(x + GELU(x·W1ᵀ + b1)·W2ᵀ + b2) of bytes: feed_hopper.cu with stage 5's numbers in it.
//
//   x in halves ─▶ bytes, a scale a row ─ W1 ─▶ GELU ─▶ bytes, a scale a row and 128 columns ─ W2 ─▶ + x, norm ─▶ x in
//   halves, and as bytes with a scale a row: what the next layer's product reads. All rotations as bytes.cuh has them.
//
// A block makes 64 rows; the inner width is walked through 128 at a time (a chunk), and W1 and W2 stream past, once for
// a cluster of 1, 2 or 4 blocks (cluster.cuh).
//
//              W1 128 rows of it            H = GELU(…), bytes          W2  384 rows, 128 columns
//     K = 384 ┌───────────────┐            ┌──────────┐                ┌──────────┬──────────┐
//   x 64×384 ▶│group c % 2    │ ─ + b1 ───▶│ 64×128   │── K = 128 ────▶│  group 0 │  group 1 │ 192 columns each
//             └───────────────┘ 64 integers└──────────┘ four of them   └──────────┴──────────┘ 96 floats a thread
//
//   group 0   │ F1 c │ GELU c ▶ H │ F2 c−1 │ F2 c │ F1 c+2 │ GELU c+2 ▶ H │ …
//   group 1     GELU c−1 ▶ H │ F2 c−2 │ F2 c−1 │ F1 c+1 │ GELU c+1 ▶ H │ …
//   engine    ▐ W1 c, W2 c−1, W1 c+1, …: as they are used; ahead by 3 steps of 16 KB of W1 and 2 of 48 KB of W2
//
// A chunk of H has a scale of its own, so its part of F2 is integers first: 96 a thread, scaled and added to 96 floats
// while the other group's products are made. Both F2 lie behind GELU, or F1's 64 integers would have to live beside these.
//
// Three warps beside the thread that asks the copy engine make bytes of x, a tile ahead, and of what is finished (they
// are free, but their instructions are not: quantize.cuh). A block's first tile and what its last one leaves, for which
// everybody would wait, the groups do themselves.
//
// Rings: x as bytes 2, H 4, W1 3, W2 2; each stage has a barrier `full` and, but for H, one `empty`. Barriers know a phase
// by its parity only: nobody may wait for a phase two ahead.
//   x, H, W2   both groups take all stages in their order, so they are not.
//   W1         a chunk's three steps are one group's: it waits for its turn, which the other group gives when it has
//              waited for all steps of the chunk before. Chunks are counted over tiles' borders, so turns alternate.
//   H          whose turn is chunk c knows the other group behind F2 of c − 3, which lies before its F1 of c − 1, and its
//              own four warps behind F2 of c − 4: they gave that turn. So H of c − 4 may be written over, and no barrier
//              says so. With two stages a group's GELU would wait for the other's F2, which lies behind that one's GELU.
//   x empty    says, too, that a tile's rows are in device memory: from there they are rounded to bytes.
// x's place is free when a tile's last H is full, for the norm: row sums meet there, and rows leave through it.
//
// Invariants as in linear.cu: fixed order, no split, rows past the count not written. x in place. The bits do not depend on
// the cluster's size. Limits: sm_90a; 384 columns; the inner width a multiple of 128.
#include "feed_int8.cuh"
#include "numbers.cuh"

namespace {
using namespace feed_int8;
using numbers::Pair;

// ---- the consumers: two warpgroups ------------------------------------------------------------------

// F1: a chunk's integers; `nth` counts chunks over all tiles. Gives the other group its turn.
template <int CLUSTER> DEVICE void widen(u32 memory, int (&sums)[64], u32 x, int nth, const Place &place) {
  ptx::barrier_wait(turn_of(memory, place.group), (u32)(nth / 2 & 1) ^ (u32)(place.group == 0)); // the first: at once
#pragma unroll
  for (int k = 0; k < FIRST_STEPS; k++) {
    Stage stage = first_stage(memory, nth * FIRST_STEPS + k);
    ptx::barrier_wait(stage.full, stage.parity);
    u64 a = ptx::operand(x + (u32)k * BOX), b = ptx::operand(stage.at);
    ptx::products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 32; i++)
      ptx::multiply_64x128x32(sums, ptx::further(a, (u32)i * 32), ptx::further(b, (u32)i * 32), k > 0 || i > 0);
    ptx::products_commit();
    if (k == FIRST_STEPS - 1 && place.lane == 0)
      ptx::barrier_arrive(turn_of(memory, 1 - place.group));
    ptx::products_wait<1>();
    if (k > 0)
      cluster::release<CLUSTER>(first_stage(memory, nth * FIRST_STEPS + k - 1).empty, place.lane);
  }
  ptx::products_wait<0>();
  cluster::release<CLUSTER>(first_stage(memory, nth * FIRST_STEPS + FIRST_STEPS - 1).empty, place.lane);
}

// H = GELU(sums · scales + b1), rotated by lanes, as bytes. A word of v is one column of both rows. columns, bias: from
// this thread's first column on.
DEVICE void activate(unsigned char *h, float *h_scales, const int (&sums)[64], const float *x_scales,
                     const float *columns, const float *bias, const Place &place) {
  float upper = x_scales[place.row()], lower = x_scales[place.row() + 8];
  u32 v[32], largest = 0;
#pragma unroll
  for (int n = 0; n < CHUNK / 8; n++) {
    Pair w = *(const Pair *)(columns + n * 8), b = *(const Pair *)(bias + n * 8);
    v[n * 2] = numbers::gelu_halves(ptx::to_halves((float)sums[n * 4] * (upper * w.low) + b.low,
                                                   (float)sums[n * 4 + 2] * (lower * w.low) + b.low));
    v[n * 2 + 1] = numbers::gelu_halves(ptx::to_halves((float)sums[n * 4 + 1] * (upper * w.high) + b.high,
                                                       (float)sums[n * 4 + 3] * (lower * w.high) + b.high));
  }
  bytes::mix_halves(v);
#pragma unroll
  for (int i = 0; i < 32; i++)
    largest = ptx::largest_halves(largest, v[i]);
  largest = ptx::largest_halves(largest, ptx::shuffle_xor(largest, 1));
  largest = ptx::largest_halves(largest, ptx::shuffle_xor(largest, 2));
  constexpr float UNIT = 0.17677669530f; // H of 32, scaled by 1 / √32
  bytes::Step high = bytes::step(ptx::from_half((u16)largest), UNIT);
  bytes::Step low = bytes::step(ptx::from_half((u16)(largest >> 16)), UNIT);
  u32 inverse = ptx::low_halves(high.inverse, low.inverse);
#pragma unroll
  for (int n = 0; n < CHUNK / 8; n++) {
    u32 both = ptx::both_bytes(bytes::byte_halves(v[n * 2], inverse), bytes::byte_halves(v[n * 2 + 1], inverse));
    u32 within = (u32)(n % 2 * 8 + place.column());
    *(u16 *)(h + tiles::swizzled<8>(place.row(), n / 2) + within) = (u16)both;
    *(u16 *)(h + tiles::swizzled<8>(place.row() + 8, n / 2) + within) = (u16)(both >> 16);
  }
  if (place.lane % 4 == 0) {
    h_scales[place.row()] = high.scale;
    h_scales[place.row() + 8] = low.scale;
  }
}

// F2 of a chunk: this group's 192 columns as integers, which are scaled and added to its floats.
template <int CLUSTER>
DEVICE void narrow(unsigned char *memory, float (&sums)[OWN / 2], int nth, const Place &place) {
  u32 base = ptx::shared(memory);
  int part[OWN / 2];
  Stage h = h_stage(base, nth), w2 = second_stage(base, nth);
  u64 a = ptx::operand(h.at), b = ptx::operand(w2.at + (u32)(place.group * OWN) * DEPTH);
  ptx::barrier_wait(h.full, h.parity);
  ptx::barrier_wait(w2.full, w2.parity);
  ptx::products_begin();
#pragma unroll
  for (int i = 0; i < DEPTH / 32; i++)
    ptx::multiply_64x192x32(part, ptx::further(a, (u32)i * 32), ptx::further(b, (u32)i * 32), i > 0);
  ptx::products_commit();
  const float *scales = (const float *)(memory + H_SCALES_AT) + nth % H_STAGES * ROWS + place.row();
  float upper = scales[0], lower = scales[8];
  ptx::products_wait<0>();
  cluster::release<CLUSTER>(w2.empty, place.lane);
#pragma unroll
  for (int i = 0; i < OWN / 2; i++)
    sums[i] += (float)part[i] * (i % 4 < 2 ? upper : lower);
}

// A tile's products: the floats of this group's 192 columns, not yet scaled by W2's.
template <int CLUSTER>
DEVICE void multiply_tile(unsigned char *memory, float (&sums)[OWN / 2], const Operands &of, int tile,
                          Place place) {
  u32 base = ptx::shared(memory);
#pragma unroll
  for (int i = 0; i < OWN / 2; i++)
    sums[i] = 0.0f;
  int first = tile * of.chunks, chunk = (first + place.group) % 2; // chunks are taken in turns over all tiles
#pragma unroll 1
  for (; chunk < of.chunks; chunk += 2) {
    int nth = first + chunk, wider[64];
    widen<CLUSTER>(base, wider, x_stage(base, tile).at, nth, place);
    ptx::made_anew(place.lane); // addresses are made here, not kept beside the sums while they grow
    Stage h = h_stage(base, nth);
    int column = chunk * CHUNK + place.column();
    activate(memory + (h.at - base), (float *)(memory + H_SCALES_AT) + nth % H_STAGES * ROWS, wider,
             (const float *)(memory + X_SCALES_AT) + tile % 2 * ROWS, of.columns1 + column, of.bias1 + column, place);
    ptx::written_for_engines();
    ptx::warp_sync();
    if (place.lane == 0)
      ptx::barrier_arrive(h.full);
    if (chunk > 0)
      narrow<CLUSTER>(memory, sums, nth - 1, place);
    narrow<CLUSTER>(memory, sums, nth, place);
  }
  if (chunk == of.chunks) // the last one is the other group's
    narrow<CLUSTER>(memory, sums, first + of.chunks - 1, place);
}

// sums · scales + b2 + x, less its mean; 1 / √(variance + ε) of both rows. x is the first row's, from this thread's first
// column on, as b2 and W2's scales are; a row past the count has none.
DEVICE void center(unsigned char *meeting, float (&sums)[OWN / 2], float (&inverse)[2], const float *columns,
                   const float *bias, const u16 *x, int rows, float epsilon, const Place &place) {
  float sum[2] = {};
#pragma unroll
  for (int n = 0; n < OWN / 8; n++) {
    Pair w = *(const Pair *)(columns + n * 8), b = *(const Pair *)(bias + n * 8);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      u32 residual = i * 8 < rows ? *(const u32 *)(x + i * 8 * HIDDEN + n * 8) : 0;
      float *own = &sums[n * 4 + i * 2];
      own[0] = own[0] * w.low + (b.low + ptx::from_half((u16)residual));
      own[1] = own[1] * w.high + (b.high + ptx::from_half((u16)(residual >> 16)));
      sum[i] += own[0] + own[1];
    }
  }
  groups::center((float *)(meeting + SUMS_AT), (float *)(meeting + SQUARES_AT), sums, sum, inverse, epsilon, place);
}

// Stores a warp's 16 rows of its group's columns, 64 at a time. gain and shift: from this thread's first column on; x:
// from the warp's first row and its group's first column on, of which `rows` are there.
DEVICE void store(unsigned char *slice, const float (&sums)[OWN / 2], const float (&inverse)[2],
                  const float *gain, const float *shift, u16 *x, int rows, int lane) {
  unsigned char *mine = slice + lane / 4 * PITCH + lane % 4 * 4;
  const unsigned char *leaving = slice + lane / SLICE_CHUNKS * PITCH + lane % SLICE_CHUNKS * tiles::CHUNK_BYTES;
  u16 *to = x + lane / SLICE_CHUNKS * HIDDEN + lane % SLICE_CHUNKS * tiles::CHUNK_HALVES;
#pragma unroll
  for (int first = 0; first < OWN; first += SLICE) {
#pragma unroll
    for (int n = 0; n < SLICE / 8; n++) {
      int column = first + n * 8;
      Pair g = *(const Pair *)(gain + column), s = *(const Pair *)(shift + column);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float *own = &sums[column / 2 + i * 2];
        *(u32 *)(mine + i * 8 * PITCH + n * 16) =
            ptx::to_halves(own[0] * inverse[i] * g.low + s.low, own[1] * inverse[i] * g.high + s.high);
      }
    }
    ptx::warp_sync();
#pragma unroll
    for (int row = 0; row < 16; row += tiles::WARP / SLICE_CHUNKS)
      if (row + lane / SLICE_CHUNKS < rows)
        *(tiles::Chunk *)(to + row * HIDDEN + first) = *(const tiles::Chunk *)(leaving + row * PITCH);
    ptx::warp_sync(); // before the next columns are written there
  }
}

constexpr int ALL_ROWS = ROWS / 2 / WARPS; // pairs of them a warp, at once

// Both groups: this block's tiles, one after the other.
template <int CLUSTER> DEVICE void consume(unsigned char *memory, const Operands &of) {
  Tiles<CLUSTER, ROWS> tiles = {of.count};
  int group = (int)threadIdx.x / GROUP - 1, tile = 0;
  for (int row0 = tiles.first(); tiles.has(row0); row0 = tiles.next(row0), tile++) {
    float sums[OWN / 2], inverse[2];
    int thread = (int)threadIdx.x % GROUP;
    Place place = {group, thread / tiles::WARP, thread % tiles::WARP};
    Stage own = x_stage(ptx::shared(memory), tile);
    if (tile == 0) {
      take<ALL_ROWS>(memory, of, row0, 0, group * GROUP_WARPS + place.warp, WARPS, place.lane);
      ptx::part_sync(MET, 2 * GROUP);
    }
    ptx::barrier_wait(own.full, own.parity);
    multiply_tile<CLUSTER>(memory, sums, of, tile, place);
    ptx::made_anew(thread); // addresses are made here, not kept beside the sums while they grow
    place = {group, thread / tiles::WARP, thread % tiles::WARP};
    unsigned char *free = memory + (u32)(tile % 2) * X_BYTES;
    int column = group * OWN + place.column(), row = row0 + place.warp * 16, rows = *of.count - row;
    u16 *x = of.x + (size_t)row * HIDDEN;
    center(free, sums, inverse, of.columns2 + column, of.bias2 + column, x + place.lane / 4 * HIDDEN + column,
           rows - place.lane / 4, of.epsilon, place);
    store(free + (group * GROUP_WARPS + place.warp) * 16 * PITCH, sums, inverse, of.gain + column, of.shift + column,
          x + group * OWN, rows, place.lane);
    if (place.lane == 0)
      ptx::barrier_arrive(own.empty);
    if (!tiles.has(tiles.next(row0))) {
      ptx::part_sync(MET, 2 * GROUP);
      leave<ALL_ROWS>(of, row0, group * GROUP_WARPS + place.warp, WARPS, place.lane);
    }
  }
}

template <int CLUSTER> DEVICE void feed(const TensorMap *w1, const TensorMap *w2, const Operands &of) {
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: stages begin at a multiple of 1,024 wherever the memory does.
  unsigned char *memory = raw + (0u - ptx::shared(raw)) % 1024;
  u32 base = ptx::shared(memory);
  if (threadIdx.x == 0)
    prepare<CLUSTER>(base);
  cluster::meet<CLUSTER>();
  ptx::follow();
  int warp = (int)threadIdx.x / tiles::WARP;
  if (warp < GROUP_WARPS) {
    ptx::registers_down<40>();
    if (threadIdx.x == 0)
      produce<CLUSTER>(base, w1, w2, of.count, of.chunks);
    if (warp > 0)
      help<CLUSTER>(memory, of, warp - 1, (int)threadIdx.x % tiles::WARP);
    ptx::warp_sync();
  } else {
    ptx::registers_up<232>();
    consume<CLUSTER>(memory, of);
  }
  cluster::leave<CLUSTER>();
}

} // namespace

// ---- grid: a block a multiprocessor at most, whole clusters; 384 threads; 1,024 + BARRIERS_AT + 160 bytes ----------
// Boxes of W1 and W2 have 128 / CLUSTER rows.

#define FEED(name, CLUSTER)                                                                                           \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap w1, const __grid_constant__ TensorMap w2, const int *count,              \
           const float *columns1, const float *bias1, const float *columns2, const float *bias2, u16 *x,              \
           const float *gain, const float *shift, int wide, float epsilon, unsigned char *bytes, float *scales) {     \
    feed<CLUSTER>(&w1, &w2,                                                                                           \
                  Operands{count, columns1, bias1, columns2, bias2, gain, shift, x, bytes, scales, epsilon,           \
                           wide / CHUNK});                                                                            \
  }
FEED(feed_int8_hopper_384, 1)
FEED(feed_int8_hopper_384_by2, 2)
FEED(feed_int8_hopper_384_by4, 4)
#undef FEED
