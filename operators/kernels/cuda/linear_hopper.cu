// Y = epilogue(X·Wᵀ + b) with what only Hopper has: stage 2. Shapes and laws as in linear.cu.
//
// The copy engine brings operands, two warpgroups multiply in turns: pingpong.cuh has the picture. Here is
// what becomes of a tile's sums:
//
//   sums, f32      a lane has columns 8 n + 2t, + 1 of four rows      + b, GELU or the residual
//   done, halves   128×192, swizzled in shared memory                 4 bytes a lane at a time, no conflicts
//   Y              whole chunks of 16 bytes, a row's by 24 lanes; linear_hopper_heads: in planes (heads.cuh)
//
// Limits: sm_90a; inputs and outputs multiples of 8.
#include "heads.cuh"
#include "numbers.cuh"

namespace {
using namespace numbers;
using namespace pingpong;

// Y is u16 * or Planes.
template <int EPILOGUE, int CLUSTER, class Y = u16 *> struct Finish {
  static constexpr int WIDTH = 192, CHUNKS = WIDTH / tiles::CHUNK_HALVES; // of a tile, of a finished row of it
  using Tiles = Work<WIDTH, Halves::DEPTH, CLUSTER>;
  const float *bias;
  const u16 *residual;
  Y y;

  DEVICE void tile(unsigned char *done, float (&sums)[2][WIDTH / 2], const Place<Tiles> &place) const {
    // Taken once: read as members beside the sums they cost registers, and some sums were spilled.
    const float *bias = this->bias;
    const u16 *residual = this->residual;
    const Tiles &work = place.work;
    int row0 = place.row0(), column0 = place.column0(), t = place.thread % 4;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++) {
      int column = n * 8 + t * 2;
      bool is_column = column0 + column < work.columns;
      float bias0 = is_column ? bias[column0 + column] : 0.0f;
      float bias1 = is_column ? bias[column0 + column + 1] : 0.0f;
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int eight = 0; eight < 2; eight++) {
          int row = place.row(half, eight);
          float low = activate<EPILOGUE>(sums[half][n * 4 + eight * 2] + bias0);
          float high = activate<EPILOGUE>(sums[half][n * 4 + eight * 2 + 1] + bias1);
          if (EPILOGUE == RESIDUAL && is_column && row0 + row < work.rows()) {
            u32 r = *(const u32 *)(residual + (size_t)(row0 + row) * work.columns + column0 + column);
            low += ptx::from_half((u16)r);
            high += ptx::from_half((u16)(r >> 16));
          }
          *(u32 *)(done + tiles::swizzled<CHUNKS>(row, n) + t * 4) = ptx::to_halves(low, high);
        }
    }
  }
};

} // namespace

// ---- grid: a block a multiprocessor at most, whole clusters; 384 threads; 1,024 + BARRIERS_AT + 48 bytes --------------
// Boxes of X have 128 rows, those of W 192 / CLUSTER.

#define LINEAR(name, EPILOGUE, CLUSTER)                                                                               \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const int *count,                \
           const float *bias, const u16 *residual, u16 *y, int inputs, int outputs) {                                 \
    multiply<Halves, CLUSTER>(&x, &w, count, inputs, outputs, Finish<EPILOGUE, CLUSTER>{bias, residual, y});          \
  }
LINEAR(linear_hopper_bias, BIAS, 1)
LINEAR(linear_hopper_bias_by2, BIAS, 2)
LINEAR(linear_hopper_bias_by4, BIAS, 4)
LINEAR(linear_hopper_gelu, GELU, 1)
LINEAR(linear_hopper_gelu_by2, GELU, 2)
LINEAR(linear_hopper_gelu_by4, GELU, 4)
LINEAR(linear_hopper_residual, RESIDUAL, 1)
LINEAR(linear_hopper_tanh, TANH, 1)
#undef LINEAR

// What attention_heads.cu reads, in planes of `capacity` rows; outputs a multiple of 32.
#define HEADS(name, CLUSTER)                                                                                          \
  KERNEL __launch_bounds__(THREADS, 1)                                                                                \
      name(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const int *count,                \
           const float *bias, u16 *y, int inputs, int outputs, int capacity) {                                        \
    multiply<Halves, CLUSTER>(&x, &w, count, inputs, outputs,                                                         \
                              Finish<BIAS, CLUSTER, Planes>{bias, nullptr, {y, capacity}});                           \
  }
HEADS(linear_hopper_heads, 1)
HEADS(linear_hopper_heads_by2, 2)
HEADS(linear_hopper_heads_by4, 4)
#undef HEADS
