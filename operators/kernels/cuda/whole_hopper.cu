// A whole model in one launch, for a question: up to 64 tokens of up to 16 texts, from ids to unit vectors.
//
//   whole_hopper_d32, whole_hopper_d64     stage 2's kernels of halves, bit for bit, by head dimension
//
// Seven launches a layer leave most multiprocessors idle at 64 rows (a product has 3 to 12 tiles of 128 columns) and
// each begins when the one before has ended everywhere. Here a product is cut into tiles of 8 to 32 columns, a block
// each, and blocks stay:
//
//               every block, 64 rows        a tile of columns a block               ┃ the grid meets
//   embed       x = LayerNorm(tables)
//   a layer     qkv   = x·Wqkv + b                                                  ┃ 1
//               context = attention, a text and head for 4 warps                    ┃ 2
//               sum   = context·Wo + b                                              ┃ 3
//               x = LayerNorm(x + sum)      wide = GELU(x·W1 + b)                   ┃ 4
//               sum   = wide·W2 + b                                                 ┃ 5
//               x = LayerNorm(x + sum)
//   pool        a text a block: vector = mean of x, scaled to length 1
//
//   one block   ▐ multiply ▐ store ▐ arrive ▐ fetch next weights ▐ wait ┃ load what the others made ▐ multiply ▐ …
//                                             └── on their way while the block waits: they depend on nobody ──┘
//
// x lives in every block's shared memory: each makes all rows of it, from the same numbers in the same order, and so
// has the same. That is a norm's work once a block and no barrier; and no block reads another's x, so none can read
// it too early. What passes between blocks is qkv, context, sum and wide, in device memory, that is in L2.
//
// Between the store of one of these and its next store lie two barriers at least, and all its readers
// between those: each is read in the phase behind its own, sum by the norm at that phase's beginning.
//
// Nobody waits for ever: all blocks are there at once (a cooperative launch), each comes to the same
// 5 · layers barriers whatever it has to do, and waits for nothing else that another block does. A launch that was cut
// off leaves the barrier's word anywhere; its engine and memory are given up with it.
//
// Invariants: as the kernels' that it is made of (linear_hopper.cu, norm.cu, attention.cu, pool.cu). Rows
// and texts past the counts are not written. Limits: sm_90a; 64 tokens, 16 texts; hidden a multiple of 64, at most
// 1,024; so the inner width; both of 128 with heads of 32; heads of 32 or 64; what shared memory holds
// (src/cuda/whole.rs).
#include "whole.cuh"

namespace {
using namespace whole;

// The tables' rows and their norm: every block makes x.
DEVICE void embed(const Block &b) {
  const Pass &p = b.pass;
#pragma unroll 1
  for (int row = b.warp; row < b.rows; row += WARPS) {
    float v[rows::ROUNDS][4] = {};
    rows::embed(v, p.ids[row], p.places[row], p.words, p.positions, p.segments, p.hidden, b.lane);
    auto store = [&](int column, const float(&four)[4]) { numbers::store4(b.x_at(row, column), four); };
    rows::normalize(v, {p.gain, p.shift, p.hidden, p.epsilon}, b.lane, store);
  }
}

// A row x = LayerNorm(x + sum) by a warp.
DEVICE void add_norm_row(const Block &b, int row, const u16 *sum) {
  int hidden = b.pass.hidden;
  float v[rows::ROUNDS][4] = {};
#pragma unroll
  for (int i = 0; i < rows::ROUNDS; i++) {
    int column = i * rows::ROUND_COLUMNS + b.lane * 4;
    if (column < hidden) {
      rows::add4(v[i], b.x_at(row, column));
      rows::add4(v[i], sum + column);
    }
  }
  auto store = [&](int column, const float(&four)[4]) { numbers::store4(b.x_at(row, column), four); };
  rows::normalize(v, {b.gain, b.shift, hidden, b.pass.epsilon}, b.lane, store);
}

// All rows. A warp brings those of sum that are its own into its part of the ring, as many at a time as it holds, so
// that their ways from L2 overlap. The norm's parameters were fetched.
template <int EACH> DEVICE void add_norm(const Block &b) {
  int hidden = b.pass.hidden, rounds = (b.rows + WARPS - 1) / WARPS;
  int room = STAGES * EACH * (int)CHUNK / WARPS, at_once = room / (hidden * 2);
  u16 *own = (u16 *)(b.ring + b.warp * room);
#pragma unroll 1
  for (int first = 0; first < rounds; first += at_once) {
    int count = rounds - first < at_once ? rounds - first : at_once;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
      int row = (first + i) * WARPS + b.warp;
      if (row < b.rows)
        for (int column = b.lane * 8; column < hidden; column += tiles::WARP * 8)
          ptx::copy16(ptx::shared(own + i * hidden + column), b.pass.sum + (size_t)row * hidden + column, 16);
    }
    ptx::commit_copies();
    ptx::wait_copies<0>();
    __syncthreads(); // the parameters are everybody's copies
#pragma unroll 1
    for (int i = 0; i < count; i++) {
      int row = (first + i) * WARPS + b.warp;
      if (row < b.rows)
        add_norm_row(b, row, own + i * hidden);
    }
    ptx::warp_sync(); // before the warp's part is written again
  }
}

// Four warps take a text and head at a time. No text is longer than a tile of keys.
template <int D> DEVICE void attention(const Block &b) {
  constexpr u32 TILE_BYTES = softmax::KEYS * D * 2;
  const Pass &p = b.pass;
  int group = b.thread / GROUP, thread = b.thread % GROUP, warp = b.warp % (GROUP / tiles::WARP);
  u32 queries = ptx::shared(b.ring) + (u32)group * 3 * TILE_BYTES, keys = queries + TILE_BYTES;
  u32 values = keys + TILE_BYTES;
  int grid = (int)gridDim.x, items = b.texts * p.heads;
#pragma unroll 1
  for (int item = (int)blockIdx.x + group * grid; item < items; item += 2 * grid) {
    int text = item / p.heads, head = item % p.heads, start = b.starts[text], length = b.starts[text + 1] - start;
    const u16 *qkv = p.qkv + (size_t)start * 3 * p.hidden + head * D;
    softmax::load_rows<D>(queries, qkv, 3 * p.hidden, 0, length, thread);
    softmax::load_rows<D>(keys, qkv + p.hidden, 3 * p.hidden, 0, length, thread);
    softmax::load_rows<D>(values, qkv + 2 * p.hidden, 3 * p.hidden, 0, length, thread);
    ptx::commit_copies();
    ptx::wait_copies<0>();
    ptx::part_sync(1 + group, GROUP);
    softmax::Softmax<D> state = softmax::nothing_yet<D>();
    u32 q[D / 16][4];
    softmax::load_queries<D>(q, queries, warp, b.lane);
    softmax::take<D>(state, q, keys, values, length, p.scale, b.lane);
    softmax::store_rows<D>(p.context + (size_t)start * p.hidden + head * D, state, p.hidden, warp * 16, length, b.lane);
    ptx::part_sync(1 + group, GROUP); // before the next one's rows are written there
  }
}

// x becomes vectors: a text a block.
DEVICE void pool(const Block &b) {
  const Pass &p = b.pass;
  auto load = [&](float(&to)[4], int row, int column) { numbers::load4(to, b.x_at(row, column)); };
#pragma unroll 1
  for (int text = (int)blockIdx.x; text < b.texts; text += (int)gridDim.x) {
    __syncthreads(); // x is there; the sums of the text before have been read
    pooling::pool((float *)b.ring, load, b.starts[text], b.starts[text + 1], p.out + (size_t)text * p.hidden, p.hidden,
                  p.is_mean);
  }
}

// Half a layer: QKV, attention and out, or widen and narrow; with the norm behind it. One text for both, and each
// function in it once: a pass runs through its instructions as it does through weights.
template <int D, int EACH> DEVICE void half_layer(const Block &b, int half) {
  const Pass &p = b.pass;
  int layer = half / 2, which = half % 2, next = half + 1;
  u16 *made = which == 0 ? p.qkv : p.wide;
  Product second = b.product(layer, which * 2 + 1);
  multiply<EACH, true>(b, b.product(layer, which * 2), nullptr, made);
  u32 met = arrive(p.met);
  fetch(b, second);
  wait(p.met, met);
  if (which == 0) {
    attention<D>(b);
    met = arrive(p.met);
    made = p.context;
    wait(p.met, met);
  }
  multiply<EACH, false>(b, second, made, p.sum);
  met = arrive(p.met);
  fetch_norm(b, b.layers[layer].gains[which], b.layers[layer].shifts[which]);
  if (next < 2 * p.layer_count)
    fetch(b, b.product(next / 2, next % 2 * 2));
  wait(p.met, met);
  add_norm<EACH>(b);
}

template <int D, int EACH> DEVICE void run(const Pass &pass) {
  SHARED_MEMORY(raw);
  // The swizzle is a pattern of addresses: chunks begin at a multiple of 1,024 wherever the memory does.
  Block b(pass, raw + (0u - ptx::shared(raw)) % 1024, STAGES * EACH * CHUNK);
#pragma unroll 1
  for (int i = b.thread; i < pass.layer_count * (int)(sizeof(Layer) / 8); i += THREADS)
    ((u64 *)b.layers)[i] = ((const u64 *)pass.layers)[i];
  if (b.thread <= b.texts)
    b.starts[b.thread] = pass.starts[b.thread];
  __syncthreads();
  fetch(b, b.product(0, QKV));
  embed(b);
#pragma unroll 1
  for (int half = 0; half < 2 * pass.layer_count; half++)
    half_layer<D, EACH>(b, half);
  pool(b);
}

} // namespace

// ---- grid: a block a multiprocessor at most, all at once; 256 threads; shared memory: see src/cuda/whole.rs ----------

#define WHOLE(name, D, EACH)                                                                                          \
  KERNEL __launch_bounds__(THREADS, 1) whole_hopper_##name(                                                           \
      const int *counts, const int *starts, const u32 *ids, const u32 *places, const u16 *words, const u16 *positions,\
      const u16 *segments, const float *gain, const float *shift, const Layer *layers, u16 *qkv, u16 *context,        \
      u16 *sum, u16 *wide, float *out, u32 *met, int layer_count, int hidden, int inner, int heads, float epsilon,    \
      float scale, int is_mean, int qkv_columns, int hidden_columns, int inner_columns, int weight_bytes) {           \
    run<D, EACH>({counts, starts, ids, places, words, positions, segments, gain, shift, layers, qkv, context, sum, wide,\
                  out, met, layer_count, hidden, inner, heads, epsilon, scale, is_mean, qkv_columns, hidden_columns,  \
                  inner_columns, weight_bytes});                                                                      \
  }
WHOLE(d32, 32, 2)
WHOLE(d64, 64, 1)
#undef WHOLE
