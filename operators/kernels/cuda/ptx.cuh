// The machine's words: every instruction that C++ has no name for, one function each.
//
// Why a file of its own: kernels above it are plain C++, so the same text compiles for the device
// and, with HEADWATER_EMULATED, for the host, where emulate/machine.hpp gives each of these
// functions its meaning from the PTX manual. Tests run kernels there, without a GPU.
//
// Invariants: shared memory is addressed by 32-bit offsets (`ptx::shared`); halves travel as raw
// 16-bit words, so that no NVIDIA header is needed, by NVRTC neither. Limits: sm_80 and newer.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef HEADWATER_EMULATED
#include "emulate/machine.hpp"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
// Dynamic shared memory as bytes; 1,024 is what the copy engine's widest swizzle asks for.
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

namespace ptx {

// ---- numbers ------------------------------------------------------------------------------------

DEVICE float from_half(u16 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}

// To nearest even; beyond 65,504 it becomes infinite, which the host notices in the vector.
DEVICE u16 to_half(float f) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

// `low` in bits 0–15, `high` in bits 16–31.
DEVICE u32 to_halves(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// The larger; NaN if one is.
DEVICE float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// 2 to the x; 0 for −∞.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The hyperbolic tangent, within 2⁻¹¹ of itself.
DEVICE float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Close to 1 / x; 0 for ∞ and the other way round.
DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Bits 0–7 of `low`, then of `high`; above them anything.
DEVICE u32 low_bytes(u32 low, u32 high) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, 0x0040;" : "=r"(r) : "r"(low), "r"(high));
  return r;
}

// Bits 0–15 of `low`, then of `high`.
DEVICE u32 low_halves(u32 low, u32 high) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, 0x5410;" : "=r"(r) : "r"(low), "r"(high));
  return r;
}

// Bits 0–7 and 16–23 of `low`, then of `high`: four halves that `byte` left.
DEVICE u32 even_bytes(u32 low, u32 high) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, 0x6420;" : "=r"(r) : "r"(low), "r"(high));
  return r;
}

// Of both: bits 0–7, then bits 16–23.
DEVICE u32 both_bytes(u32 low, u32 high) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, 0x6240;" : "=r"(r) : "r"(low), "r"(high));
  return r;
}

// Bits 16–31 of `low`, then of `high`.
DEVICE u32 high_halves(u32 low, u32 high) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, 0x7632;" : "=r"(r) : "r"(low), "r"(high));
  return r;
}

// ---- two halves a word, each to nearest even ------------------------------------------------------

DEVICE u32 add_halves(u32 a, u32 b) {
  u32 r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE u32 subtract_halves(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE u32 multiply_halves(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// a · b + c, rounded once.
DEVICE u32 fuse_halves(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
// The larger of a and |b|; NaN if one is.
DEVICE u32 largest_halves(u32 a, u32 b) {
  u32 r;
  asm("{\n.reg .b32 size;\nabs.f16x2 size, %2;\nmax.NaN.f16x2 %0, %1, size;\n}" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// The hyperbolic tangent, within 2⁻¹¹.
DEVICE u32 tanh_halves(u32 x) {
  u32 r;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes take part.
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// A value that all lanes have, so that the compiler knows it: branches on it are no divergence.
DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// The lanes of a warp meet, and see what the others wrote to shared memory before.
DEVICE void warp_sync() { __syncwarp(); }

// Hides where a number came from: what is computed from it is computed after this.
DEVICE void made_anew(int &x) { asm volatile("" : "+r"(x)); }

// ---- launches that overlap --------------------------------------------------------------------------

// From here on this launch follows the one before it in its stream, which has ended, and whose results are seen. Where
// launches overlap (programmatic dependent launch) what is in front of this ran beside that one's end, and the next launch
// may get ready from now on; else it does nothing. Every kernel of a chain says it before it reads or writes what
// others write, so whoever has ended has all that came before it behind it.
DEVICE void follow() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// ---- shared memory and asynchronous copies ------------------------------------------------------

DEVICE u32 shared(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Starts copying 16 bytes from global to shared memory; with `bytes` 0 it writes 16 zeros and
// reads nothing. Both addresses are multiples of 16.
DEVICE void copy16(u32 to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes this thread's group of copies.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's newest groups are unfinished.
template <int PENDING> DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- tensor cores, one warp ---------------------------------------------------------------------

// Four 8×8 matrices of halves. Lane i gives the address of row i % 8 of matrix i / 8; afterwards
// register j of lane i holds matrix j's row i / 4, columns 2 (i % 4) and the next.
DEVICE void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed on the way.
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// C[16×8] += A[16×16] · B[16×8], halves in, f32 sums. With g = lane / 4 and t = lane % 4:
//   a[0] (row g, columns 2t, 2t+1)  a[1] (g+8, 2t…)  a[2] (g, 2t+8…)  a[3] (g+8, 2t+8…)
//   b0   (rows 2t, 2t+1, column g)  b1   (rows 2t+8, 2t+9, column g)
//   c[0], c[1] (row g, columns 2t, 2t+1)  c[2], c[3] (row g+8, the same columns)
DEVICE void multiply_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

} // namespace ptx
#endif
