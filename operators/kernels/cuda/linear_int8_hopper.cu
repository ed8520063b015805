// Y = epilogue(X·Wᵀ + b) of bytes: stage 5, twice the tensor cores' rate on half of the bytes.
//
//   x ≈ X[row] · rows[row]      w ≈ W[column] · columns[column]      (bytes.cuh says how they are rotated)
//   Y = (Σ X·W, exact) · rows[row] · columns[column] + b
//
//   linear_int8_hopper_bias   Y in halves: what attention reads; _heads in planes, heads.cuh
//   linear_int8_hopper_gelu   GELU(Y), rotated, as bytes, with a scale for each row and 128 columns
//
// The copy engine brings operands, two warpgroups multiply in turns, as in linear_hopper.cu: pingpong.cuh has
// the picture. 128 bytes of a row are 128 of K instead of 64.
//
//   GELU's tile   a lane has 32 of a row's 128 columns: n·8 + 2t, + 1 for n = 0 … 15
//                 ─▶ H over those 32 (160 sums and differences) ─▶ largest over 4 lanes ─▶ bytes, one scale
//
// Invariants: sums are exact, so no order matters. Limits: sm_90a; inputs a multiple of 16, outputs of 8;
// with GELU of 128.
#include "bytes.cuh"
#include "heads.cuh"
#include "numbers.cuh"

namespace {
using namespace numbers;
using namespace pingpong;

// What the operands stand for.
struct Scales {
  const float *rows, *columns, *bias;
  // Of a row; rows past the end are not there.
  DEVICE float row(int row, int count) const { return row < count ? rows[row] : 0.0f; }
};

// Y is u16 * or Planes.
template <int CLUSTER, class Y = u16 *> struct FinishHalves {
  static constexpr int WIDTH = 192, CHUNKS = WIDTH / tiles::CHUNK_HALVES; // of a tile, of a finished row of it
  using Tiles = Work<WIDTH, Bytes::DEPTH, CLUSTER>;
  Scales scales;
  Y y;

  DEVICE void tile(unsigned char *done, const int (&sums)[2][WIDTH / 2], const Place<Tiles> &place) const {
    const Tiles &work = place.work;
    int t = place.thread % 4;
    float of_row[4]; // by half and eight
#pragma unroll
    for (int i = 0; i < 4; i++)
      of_row[i] = scales.row(place.row0() + place.row(i / 2, i % 2), work.rows());
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++) {
      int column = place.column0() + n * 8 + t * 2;
      Pair weights = {}, bias = {};
      if (column < work.columns) {
        weights = *(const Pair *)(scales.columns + column);
        bias = *(const Pair *)(scales.bias + column);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int(&of)[WIDTH / 2] = sums[i / 2];
        float low = (float)of[n * 4 + i % 2 * 2] * (of_row[i] * weights.low) + bias.low;
        float high = (float)of[n * 4 + i % 2 * 2 + 1] * (of_row[i] * weights.high) + bias.high;
        *(u32 *)(done + tiles::swizzled<CHUNKS>(place.row(i / 2, i % 2), n) + t * 4) = ptx::to_halves(low, high);
      }
    }
  }
};

template <int CLUSTER> struct FinishGelu {
  static constexpr int WIDTH = 128, CHUNKS = WIDTH / tiles::CHUNK_BYTES; // a scale stands for 128 columns
  using Tiles = Work<WIDTH, Bytes::DEPTH, CLUSTER>;
  Scales scales;
  unsigned char *y;
  float *y_scales; // [capacity, outputs / 128]

  // One row of a lane's four.
  DEVICE void row(unsigned char *done, const int (&sums)[64], int at, int eight, const Place<Tiles> &place) const {
    const Tiles &work = place.work;
    int row = place.row0() + at, t = place.thread % 4, column0 = place.column0() + t * 2;
    float scale = scales.row(row, work.rows());
    float v[32];
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++) {
      Pair weights = *(const Pair *)(scales.columns + column0 + n * 8);
      Pair bias = *(const Pair *)(scales.bias + column0 + n * 8);
      v[n * 2] = gelu_fast((float)sums[n * 4 + eight * 2] * (scale * weights.low) + bias.low);
      v[n * 2 + 1] = gelu_fast((float)sums[n * 4 + eight * 2 + 1] * (scale * weights.high) + bias.high);
    }
    bytes::mix(v);
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; i++)
      largest = ptx::max_nan(largest, fabsf(v[i]));
    largest = quad_max(largest);
    float inverse = bytes::inverse(largest);
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
      *(u16 *)(done + tiles::swizzled<CHUNKS>(at, n / 2) + n % 2 * 8 + t * 2) =
          (u16)ptx::low_bytes(bytes::byte(v[n * 2], inverse), bytes::byte(v[n * 2 + 1], inverse));
    if (t == 0 && row < work.rows())
      y_scales[(size_t)row * (work.columns / WIDTH) + place.column0() / WIDTH] =
          largest * (0.17677669530f / bytes::LEVELS); // H of 32, scaled by 1 / √32
  }

  DEVICE void tile(unsigned char *done, const int (&sums)[2][64], const Place<Tiles> &place) const {
#pragma unroll
    for (int i = 0; i < 4; i++)
      row(done, sums[i / 2], place.row(i / 2, i % 2), i % 2, place);
  }
};

} // namespace

// ---- grid: a block a multiprocessor at most, whole clusters; 384 threads; 1,024 + BARRIERS_AT + 48 or 64 bytes --------
// Boxes of X have 128 rows, those of W WIDTH / CLUSTER.

#define BIAS(name, CLUSTER)                                                                                           \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const int *count,                \
           const float *rows, const float *columns, const float *bias, u16 *y, int inputs, int outputs) {             \
    multiply<Bytes, CLUSTER>(&x, &w, count, inputs, outputs, FinishHalves<CLUSTER>{{rows, columns, bias}, y});        \
  }
// In planes of `capacity` rows, as linear_hopper_heads.
#define HEADS(name, CLUSTER)                                                                                          \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const int *count,                \
           const float *rows, const float *columns, const float *bias, u16 *y, int inputs, int outputs,               \
           int capacity) {                                                                                            \
    multiply<Bytes, CLUSTER>(&x, &w, count, inputs, outputs,                                                          \
                             FinishHalves<CLUSTER, Planes>{{rows, columns, bias}, {y, capacity}});                    \
  }
#define GELU(name, CLUSTER)                                                                                           \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const int *count,                \
           const float *rows, const float *columns, const float *bias, unsigned char *y, int inputs, int outputs,     \
           float *scales) {                                                                                           \
    multiply<Bytes, CLUSTER>(&x, &w, count, inputs, outputs, FinishGelu<CLUSTER>{{rows, columns, bias}, y, scales});  \
  }
BIAS(linear_int8_hopper_bias, 1)
BIAS(linear_int8_hopper_bias_by2, 2)
BIAS(linear_int8_hopper_bias_by4, 4)
HEADS(linear_int8_hopper_heads, 1)
HEADS(linear_int8_hopper_heads_by2, 2)
HEADS(linear_int8_hopper_heads_by4, 4)
GELU(linear_int8_hopper_gelu, 1)
GELU(linear_int8_hopper_gelu_by2, 2)
GELU(linear_int8_hopper_gelu_by4, 4)
#undef BIAS
#undef HEADS
#undef GELU
