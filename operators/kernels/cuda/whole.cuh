// The parts that whole_hopper.cu is put together of: a block's memory, the grid's barrier, narrow products.
//
//   shared memory of a block                                                             hidden 384     768
//   x        64 rows × hidden, chunks of 64 columns (64 × 128 swizzled bytes)                 48 KB      96 KB
//   weights  the tile's rows of W, chunks of 64 of K (COLUMNS × 128 swizzled bytes)           24 KB      48 KB
//   ring     8 stages of 2 or 1 chunks of a left operand; also attention's and pooling's     128 KB      64 KB
//   norm     gain, shift, f32                       bias     the tile's                        3 KB       6 KB
//   starts   of texts                               layers   addresses of all layers' weights
//
// A product: 64 rows × COLUMNS (8, 16 or 32) of Y by one warpgroup, k16 after k16 from the first to the last into
// the same sums, which are rounded once: as linear_hopper.cu makes them 128 columns at a time. A sum depends on its
// row of A, its row of W and that order only, so both kernels give the same bits (what a device must confirm).
//
// Everything that does not depend on other blocks is on its way before they are waited for: `fetch`.
//
// Invariants: operands come by cp.async, which reads L2, where other blocks' stores are; who copied waits, makes it
// known to the engines (`written_for_engines`), and all of the block meet before wgmma reads. Rows past the
// count are not loaded: what lies there is in sums that are not stored. Limits: sm_90a; 256 threads.
#pragma once
#include "softmax.cuh"
#include "hopper.cuh"
#include "pool.cuh"
#include "rows.cuh"

namespace whole {

constexpr int THREADS = 256, WARPS = THREADS / tiles::WARP, GROUP = 128;
constexpr int ROWS = 64, DEPTH = 64, STAGES = 8;
constexpr int AHEAD = STAGES - 2; // stages on their way: one is multiplied, one may still be read
constexpr u32 LINE = 128, CHUNK = ROWS * LINE;
constexpr int TEXTS = 16, BIAS_MAX = 32;
constexpr int ALL = 3; // the named barrier of all threads in two forms of a function; attention has 1 and 2

// What a layer's products and norms read; src/cuda/whole.rs writes these. In order of use: QKV, out, widen, narrow.
struct Layer {
  const u16 *weights[4];
  const float *biases[4];
  const float *gains[2], *shifts[2];
};
enum { QKV, OUT, WIDEN, NARROW };

// What the launch was given.
struct Pass {
  const int *counts, *starts;
  const u32 *ids, *places;
  const u16 *words, *positions, *segments;
  const float *gain, *shift;
  const Layer *layers;
  u16 *qkv, *context, *sum, *wide;
  float *out;
  u32 *met;
  int layer_count, hidden, inner, heads;
  float epsilon, scale;
  int is_mean;
  int qkv_columns, hidden_columns, inner_columns; // of a tile
  int weight_bytes;
};

// A product, and how many columns of it a block makes at a time: a divisor.
struct Product {
  const u16 *weight;
  const float *bias;
  int inputs, outputs, columns;
  bool is_gelu;
  DEVICE int chunks() const { return inputs / DEPTH; }
  DEVICE int tiles() const { return outputs / columns; }
};

// A thread's view of its block.
struct Block {
  const Pass &pass;
  unsigned char *x, *weights, *ring;
  float *gain, *shift, *bias;
  int *starts;
  Layer *layers;
  int thread, warp, lane, rows, texts;

  DEVICE Block(const Pass &pass, unsigned char *memory, u32 ring_bytes)
      : pass(pass), x(memory), weights(x + pass.hidden / DEPTH * CHUNK), ring(weights + pass.weight_bytes),
        gain((float *)(ring + ring_bytes)), shift(gain + pass.hidden), bias(shift + pass.hidden),
        starts((int *)(bias + BIAS_MAX)), layers((Layer *)(starts + 2 * TEXTS)), thread((int)threadIdx.x),
        warp(thread / tiles::WARP), lane(thread % tiles::WARP), rows(pass.counts[0]), texts(pass.counts[1]) {}

  // Columns c, c + 1 … up to c's chunk of 8 of a row of x.
  DEVICE u16 *x_at(int row, int column) const {
    return (u16 *)(x + column / DEPTH * (int)CHUNK + tiles::swizzled<8>(row, column % DEPTH / 8)) + column % 8;
  }
  DEVICE Product product(int layer, int which) const {
    const Layer &of = layers[layer];
    const Pass &p = pass;
    int inputs = which == NARROW ? p.inner : p.hidden;
    int outputs = which == QKV ? 3 * p.hidden : which == WIDEN ? p.inner : p.hidden;
    int columns = which == QKV ? p.qkv_columns : which == WIDEN ? p.inner_columns : p.hidden_columns;
    return {of.weights[which], of.biases[which], inputs, outputs, columns, which == WIDEN};
  }
};

// ---- the grid's barrier -----------------------------------------------------------------------------

// All blocks of the grid meet: what they stored before `arrive` is seen by all after `wait`. Between the two a block
// does what depends on nobody.
//
// The word's low 31 bits count arrivals, and block 0's is worth so much that the last one turns the top bit:
// the sum of a barrier is 2³¹ exactly. So nothing is ever set back, and a launch may begin at either top bit.
// (Cooperative groups' grids meet in this way.) Every thread's stores are before the block's barrier, it before the
// release; after the acquire the block's other threads are let go.
constexpr u32 TOP = 0x80000000u;

// What the first thread waits for.
DEVICE u32 arrive(u32 *word) {
  __syncthreads();
  u32 before = 0;
  if (threadIdx.x == 0)
    before = ptx::add_release(word, blockIdx.x == 0 ? TOP - (gridDim.x - 1) : 1u);
  return (before & TOP) ^ TOP;
}

DEVICE void wait(const u32 *word, u32 least) {
  if (threadIdx.x == 0)
    ptx::wait_acquire(word, least);
  __syncthreads();
}

DEVICE void block_sync() { ptx::part_sync(ALL, THREADS); }

// ---- operands ---------------------------------------------------------------------------------------

// Starts copying floats, 16 bytes a thread; their number is a multiple of 4.
DEVICE void load_floats(float *to, const float *from, int count, int thread) {
#pragma unroll 1
  for (int i = thread * 4; i < count; i += THREADS * 4)
    ptx::copy16(ptx::shared(to + i), from + i, 16);
}

// Starts copying a tile's weights and its bias. A warp a row of W.
DEVICE void load_weights(const Block &b, const Product &product, int tile) {
  int first = tile * product.columns, pieces = product.inputs / tiles::CHUNK_HALVES;
  u32 to = ptx::shared(b.weights), chunk = (u32)product.columns * LINE;
#pragma unroll 1
  for (int column = b.warp; column < product.columns; column += WARPS) {
    const u16 *row = product.weight + (size_t)(first + column) * product.inputs;
#pragma unroll 1
    for (int piece = b.lane; piece < pieces; piece += tiles::WARP)
      ptx::copy16(to + (u32)(piece / 8) * chunk + tiles::swizzled<8>(column, piece % 8),
                  row + piece * tiles::CHUNK_HALVES, 16);
  }
  load_floats(b.bias, product.bias + first, product.columns, b.thread);
}

// Starts copying what this block's first tile of a product needs and no other block makes. A group of copies.
DEVICE void fetch(const Block &b, const Product &product) {
  if ((int)blockIdx.x < product.tiles())
    load_weights(b, product, (int)blockIdx.x);
  ptx::commit_copies();
}

// The same for a norm.
DEVICE void fetch_norm(const Block &b, const float *gain, const float *shift) {
  load_floats(b.gain, gain, b.pass.hidden, b.thread);
  load_floats(b.shift, shift, b.pass.hidden, b.thread);
  ptx::commit_copies();
}

// Starts copying a stage of a left operand, EACH chunks of the rows that there are. A group of copies.
template <int EACH> DEVICE void load_stage(const Block &b, const u16 *from, int inputs, int stage) {
  u32 to = ptx::shared(b.ring) + (u32)(stage % STAGES) * EACH * CHUNK;
  int piece = b.thread % 8, column = stage * EACH * DEPTH + piece * tiles::CHUNK_HALVES;
  if (column < inputs)
#pragma unroll 1
    for (int row = b.thread / 8; row < b.rows; row += THREADS / 8)
#pragma unroll
      for (int c = 0; c < EACH; c++)
        ptx::copy16(to + c * CHUNK + tiles::swizzled<8>(row, piece), from + (size_t)row * inputs + column + c * DEPTH,
                    16);
  ptx::commit_copies();
}

// ---- products ---------------------------------------------------------------------------------------

// 64 of K.
template <int COLUMNS> DEVICE void multiply_chunk(float (&sums)[COLUMNS / 2], u32 x, u32 weights, bool is_sum) {
#pragma unroll
  for (int i = 0; i < DEPTH / 16; i++)
    ptx::multiply_narrow(sums, ptx::operand(x + (u32)i * 32), ptx::operand(weights + (u32)i * 32), is_sum || i > 0);
}

// What follows has two forms: the first warpgroup multiplies, the second only helps to copy. In one form with
// conditions the compiler did not keep the sums of products under way in their registers.

// A tile of x·Wᵀ, x as it lies in shared memory.
template <bool IS_MULTIPLIER, int COLUMNS>
DEVICE void multiply_x(const Block &b, float (&sums)[COLUMNS / 2], int chunks) {
  ptx::wait_copies<0>();
  ptx::written_for_engines();
  block_sync();
  if (!IS_MULTIPLIER)
    return;
  u32 x = ptx::shared(b.x), weights = ptx::shared(b.weights);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    ptx::products_begin();
    multiply_chunk<COLUMNS>(sums, x + (u32)chunk * CHUNK, weights + (u32)chunk * COLUMNS * LINE, chunk > 0);
    ptx::products_commit();
    ptx::products_wait<1>();
  }
  ptx::products_wait<0>();
}

// A tile of Y·Wᵀ, Y through the ring.
//
// Step n: stage n has come, for everybody; stage n + AHEAD is asked for, where stage n − 2 was, whose products were
// waited for before this step's barrier; stage n − 1 may still be read.
template <int EACH, bool IS_MULTIPLIER, int COLUMNS>
DEVICE void multiply_streamed(const Block &b, float (&sums)[COLUMNS / 2], const u16 *from, int inputs) {
  int stages = inputs / (EACH * DEPTH);
  u32 ring = ptx::shared(b.ring), weights = ptx::shared(b.weights);
#pragma unroll 1
  for (int stage = 0; stage < AHEAD; stage++)
    load_stage<EACH>(b, from, inputs, stage);
#pragma unroll 1
  for (int stage = 0; stage < stages; stage++, weights += EACH * COLUMNS * LINE) {
    ptx::wait_copies<AHEAD - 1>(); // the weights too: they were asked for earlier
    ptx::written_for_engines();
    block_sync();
    load_stage<EACH>(b, from, inputs, stage + AHEAD);
    if (IS_MULTIPLIER) {
      u32 at = ring + (u32)(stage % STAGES) * EACH * CHUNK;
      ptx::products_begin();
#pragma unroll
      for (int c = 0; c < EACH; c++)
        multiply_chunk<COLUMNS>(sums, at + c * CHUNK, weights + c * COLUMNS * LINE, stage > 0 || c > 0);
      ptx::products_commit();
      ptx::products_wait<1>();
    }
  }
  if (IS_MULTIPLIER)
    ptx::products_wait<0>();
}

// A tile's sums become halves of Y.
template <int COLUMNS>
DEVICE void store_tile(const Block &b, const float (&sums)[COLUMNS / 2], const Product &product, int tile, u16 *y) {
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i += 2) {
    int row = b.warp * 16 + b.lane / 4 + i % 4 / 2 * 8, column = tile * COLUMNS + i / 4 * 8 + b.lane % 4 * 2;
    if (row < b.rows)
      *(u32 *)(y + (size_t)row * product.outputs + column) = ptx::to_halves(sums[i], sums[i + 1]);
  }
}

// This block's tiles of Y = X·Wᵀ + b, or GELU of that; X is x where `from` is null. The first tile's weights were
// fetched.
template <int EACH, bool IS_X, bool IS_MULTIPLIER, int COLUMNS>
DEVICE void multiply_tiles(const Block &b, const Product &product, const u16 *from, u16 *y) {
  int tiles = product.tiles();
#pragma unroll 1
  for (int tile = (int)blockIdx.x; tile < tiles; tile += (int)gridDim.x) {
    if (tile != (int)blockIdx.x) {
      load_weights(b, product, tile);
      ptx::commit_copies();
    }
    float sums[COLUMNS / 2] = {}; // the zeros are not added; without them the compiler serialised all products
    if (IS_X)
      multiply_x<IS_MULTIPLIER, COLUMNS>(b, sums, product.chunks());
    else
      multiply_streamed<EACH, IS_MULTIPLIER, COLUMNS>(b, sums, from, product.inputs);
    if (IS_MULTIPLIER) {
#pragma unroll
      for (int i = 0; i < COLUMNS / 2; i++) {
        float sum = sums[i] + b.bias[i / 4 * 8 + b.lane % 4 * 2 + i % 2];
        sums[i] = product.is_gelu ? numbers::activate<numbers::GELU>(sum) : numbers::activate<numbers::BIAS>(sum);
      }
    }
    block_sync(); // weights, bias and ring have been read
    if (IS_MULTIPLIER)
      store_tile<COLUMNS>(b, sums, product, tile, y);
  }
}

template <int EACH, bool IS_X, bool IS_MULTIPLIER>
DEVICE void multiply_as(const Block &b, const Product &product, const u16 *from, u16 *y) {
  switch (product.columns) {
  case 8:
    return multiply_tiles<EACH, IS_X, IS_MULTIPLIER, 8>(b, product, from, y);
  case 16:
    return multiply_tiles<EACH, IS_X, IS_MULTIPLIER, 16>(b, product, from, y);
  default:
    return multiply_tiles<EACH, IS_X, IS_MULTIPLIER, 32>(b, product, from, y);
  }
}

// Afterwards the weights' place is free.
template <int EACH, bool IS_X> DEVICE void multiply(const Block &b, const Product &product, const u16 *from, u16 *y) {
  if (b.thread < GROUP)
    multiply_as<EACH, IS_X, true>(b, product, from, y);
  else
    multiply_as<EACH, IS_X, false>(b, product, from, y);
}

} // namespace whole
