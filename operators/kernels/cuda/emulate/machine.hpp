// A GPU on the host, for tests: a fiber a thread, PTX's words as the manual has them. A block at a time; of a
// launch with clusters a cluster, of a cooperative one the whole grid.
//
// What it checks beyond results: a warp's lanes meet at the same instruction; nothing waits for ever;
// shared memory is touched inside the launch's size and begins as NaN; asynchronous copies land as
// late as the program allows (or as early); the first, the last or any thread runs on while it can; and it
// counts bank conflicts of matrix loads. Device memory ends at a page that cannot be touched.
//
// Limits: blocks that are not meant to meet are never at once, no weak memory order; sums of a tensor core are made in
// order of K in f32, which the hardware does not promise; a warpgroup's threads meet at each of its
// products, which on the hardware only the threads of a warp do.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DEVICE inline __attribute__((always_inline))
#define KERNEL extern "C" void
#define SHARED_MEMORY(name) unsigned char *name = emulate::shared_memory()
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (emulate::thread_index())
#define blockIdx (emulate::block_index())
#define gridDim (emulate::grid_size)
#define blockDim (emulate::block_size)
#define __syncthreads() emulate::block_barrier(0, (int)emulate::block_size.x)

namespace emulate {

struct Index {
  unsigned x, y, z;
};
extern Index grid_size, block_size;
const Index &thread_index();
const Index &block_index();
unsigned char *shared_memory();

// Waits until `threads` threads have come to barrier `id`.
void block_barrier(int id, int threads);

// What 32 lanes do together. `slots[lane]` is what lane gave; the last to come runs the meaning.
typedef void (*Meaning)(void **slots);
void together(Meaning meaning, void *mine, int lanes = 32);

// `bytes` of shared memory at an address made by ptx::shared; stops the launch outside of it.
unsigned char *at(u32 address, u32 bytes);
u32 address_of(const void *pointer);
void stop(const char *format, ...);

// Bar.arrive: counts at a barrier without waiting.
void block_arrive(int id, int threads);

// Words of device memory that threads of other blocks wait for.
void add_word(u32 *word, u32 value);
void wait_word(const u32 *word, u32 least);

// Hopper's barriers and its asynchronous engines: see hopper.hpp. `rank`: of the cluster's blocks, −1 the own one.
void barrier_init(u32 barrier, u32 count);
void barrier_arrive(u32 barrier, u32 bytes, int rank = -1);
void barrier_wait(u32 barrier, u32 parity);
void load_box(u32 to, const void *map, int column, int row, u32 barrier, u32 blocks = 0);
int cluster_rank();
void cluster_sync();
// Of halves, 16 of K and sums in float, or of bytes, 32 of K and sums in int.
void product(void *const *sums, u64 a, u64 b, int columns, int is_sum, bool is_bytes);
void products_commit();
void products_wait(int pending);

void copy(u32 to, const void *from, int bytes);
void commit();
void wait(int pending);
void count_conflicts(const u32 *addresses);

float half_to_float(u16 h);
u16 float_to_half(float f);

} // namespace emulate

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline unsigned __float_as_uint(float f) {
  unsigned bits;
  memcpy(&bits, &f, 4);
  return bits;
}
static inline float __int_as_float(int bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

namespace ptx {

DEVICE float from_half(u16 h) { return emulate::half_to_float(h); }
DEVICE u16 to_half(float f) { return emulate::float_to_half(f); }
DEVICE u32 to_halves(float low, float high) { return (u32)to_half(low) | (u32)to_half(high) << 16; }
DEVICE void made_anew(int &) {}
DEVICE void follow() {}
DEVICE int uniform(int value) { return value; }
DEVICE float max_nan(float a, float b) { return a != a || b != b ? NAN : fmaxf(a, b); }
DEVICE float exp2_fast(float x) { return exp2f(x); }
// As far off as the real one may be.
DEVICE float tanh_fast(float x) {
  int bits;
  memcpy(&bits, &x, 4);
  return tanhf(x) * (bits & 1 ? 1.0f + 0x1p-11f : 1.0f - 0x1p-11f);
}
DEVICE u32 low_bytes(u32 low, u32 high) { return (low & 0xff) | (high & 0xff) << 8 | 0xa5a50000; }
DEVICE u32 low_halves(u32 low, u32 high) { return (low & 0xffff) | high << 16; }
DEVICE float reciprocal_fast(float x) { return 1.0f / x; }
DEVICE u32 even_bytes(u32 low, u32 high) {
  return (low & 0xff) | (low >> 8 & 0xff00) | (high & 0xff) << 16 | (high << 8 & 0xff000000);
}
DEVICE u32 both_bytes(u32 low, u32 high) {
  return (low & 0xff) | (high & 0xff) << 8 | (low & 0xff0000) | (high << 8 & 0xff000000);
}
DEVICE u32 high_halves(u32 low, u32 high) { return low >> 16 | (high & 0xffff0000); }
// A meaning for each of two halves.
template <class F> inline u32 halves(F f, u32 a, u32 b = 0, u32 c = 0) {
  float low = f(from_half((u16)a), from_half((u16)b), from_half((u16)c));
  float high = f(from_half((u16)(a >> 16)), from_half((u16)(b >> 16)), from_half((u16)(c >> 16)));
  return to_halves(low, high);
}
inline u32 add_halves(u32 a, u32 b) { return halves([](float a, float b, float) { return a + b; }, a, b); }
inline u32 subtract_halves(u32 a, u32 b) { return halves([](float a, float b, float) { return a - b; }, a, b); }
inline u32 multiply_halves(u32 a, u32 b) { return halves([](float a, float b, float) { return a * b; }, a, b); }
inline u32 fuse_halves(u32 a, u32 b, u32 c) {
  return halves([](float a, float b, float c) { return fmaf(a, b, c); }, a, b, c);
}
inline u32 largest_halves(u32 a, u32 b) {
  return halves([](float a, float b, float) { return max_nan(a, fabsf(b)); }, a, b);
}
inline u32 tanh_halves(u32 x) {
  return halves([](float x, float, float) { return tanh_fast(x); }, x);
}
DEVICE u32 shared(const void *pointer) { return emulate::address_of(pointer); }
DEVICE void copy16(u32 to, const void *from, int bytes) { emulate::copy(to, from, bytes); }
DEVICE void commit_copies() { emulate::commit(); }
template <int PENDING> DEVICE void wait_copies() { emulate::wait(PENDING); }

struct Shuffle {
  float value, result;
  int mask;
};
inline float shuffle_xor(float value, int mask) {
  Shuffle mine = {value, 0.0f, mask};
  emulate::together(
      [](void **slots) {
        for (int i = 0; i < 32; i++) {
          Shuffle *lane = (Shuffle *)slots[i];
          lane->result = ((Shuffle *)slots[i ^ lane->mask])->value;
        }
      },
      &mine);
  return mine.result;
}

inline u32 shuffle_xor(u32 value, int mask) {
  float bits;
  memcpy(&bits, &value, 4);
  bits = shuffle_xor(bits, mask);
  memcpy(&value, &bits, 4);
  return value;
}

inline void warp_sync() {
  int mine = 0;
  emulate::together([](void **) {}, &mine);
}

struct Matrices {
  u32 address, result[4];
};
template <bool IS_TRANSPOSED> inline void matrices(u32 (&r)[4], u32 address) {
  Matrices mine = {address, {}};
  emulate::together(
      [](void **slots) {
        u32 addresses[32];
        for (int i = 0; i < 32; i++)
          addresses[i] = ((Matrices *)slots[i])->address;
        emulate::count_conflicts(addresses);
        for (int matrix = 0; matrix < 4; matrix++) {
          u16 rows[8][8];
          for (int row = 0; row < 8; row++)
            memcpy(rows[row], emulate::at(addresses[matrix * 8 + row], 16), 16);
          for (int i = 0; i < 32; i++) {
            int a = i / 4, b = i % 4 * 2;
            u16 low = IS_TRANSPOSED ? rows[b][a] : rows[a][b];
            u16 high = IS_TRANSPOSED ? rows[b + 1][a] : rows[a][b + 1];
            ((Matrices *)slots[i])->result[matrix] = (u32)low | (u32)high << 16;
          }
        }
      },
      &mine);
  memcpy(r, mine.result, sizeof mine.result);
}
inline void load_matrices(u32 (&r)[4], u32 address) { matrices<false>(r, address); }
inline void load_matrices_transposed(u32 (&r)[4], u32 address) { matrices<true>(r, address); }

struct Product {
  float *c;
  const u32 *a;
  u32 b[2];
};
inline void multiply_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  Product mine = {c, a, {b0, b1}};
  emulate::together(
      [](void **slots) {
        float a[16][16], b[16][8];
        for (int i = 0; i < 32; i++) {
          const Product *lane = (const Product *)slots[i];
          int g = i / 4, t = i % 4 * 2;
          for (int high = 0; high < 2; high++) {
            int shift = 16 * high;
            a[g][t + high] = from_half((u16)(lane->a[0] >> shift));
            a[g + 8][t + high] = from_half((u16)(lane->a[1] >> shift));
            a[g][t + 8 + high] = from_half((u16)(lane->a[2] >> shift));
            a[g + 8][t + 8 + high] = from_half((u16)(lane->a[3] >> shift));
            b[t + high][g] = from_half((u16)(lane->b[0] >> shift));
            b[t + 8 + high][g] = from_half((u16)(lane->b[1] >> shift));
          }
        }
        for (int i = 0; i < 32; i++) {
          float *c = ((const Product *)slots[i])->c;
          for (int e = 0; e < 4; e++) {
            int row = i / 4 + e / 2 * 8, column = i % 4 * 2 + e % 2;
            for (int k = 0; k < 16; k++)
              c[e] += a[row][k] * b[k][column];
          }
        }
      },
      &mine);
}

} // namespace ptx
