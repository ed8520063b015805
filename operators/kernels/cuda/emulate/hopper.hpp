// Hopper's words on the emulated GPU. Boxes land and products are made as late as the program allows, or
// at once; barriers know their phase by its parity, as the real ones do, so that waiting for a phase two
// ahead goes wrong here too.
#pragma once

namespace ptx {

DEVICE void barrier_init(u32 barrier, u32 count) { emulate::barrier_init(barrier, count); }
DEVICE void barriers_ready() {}
DEVICE void written_for_engines() {}
DEVICE void barrier_arrive(u32 barrier) { emulate::barrier_arrive(barrier, 0); }
DEVICE void barrier_expect(u32 barrier, u32 bytes) { emulate::barrier_arrive(barrier, bytes); }
DEVICE void barrier_wait(u32 barrier, u32 parity) { emulate::barrier_wait(barrier, parity); }
DEVICE void prefetch_map(const TensorMap *) {}
DEVICE void load_box(u32 to, const TensorMap *map, int column, int row, u32 barrier) {
  emulate::load_box(to, map, column, row, barrier);
}

DEVICE void load_box_to(u32 to, const TensorMap *map, int column, int row, u32 barrier, u32 blocks) {
  emulate::load_box(to, map, column, row, barrier, blocks);
}
DEVICE int cluster_rank() { return emulate::cluster_rank(); }
DEVICE void cluster_sync() { emulate::cluster_sync(); }
DEVICE void cluster_leave() { emulate::cluster_sync(); }
DEVICE void barrier_arrive_at(u32 barrier, int rank) { emulate::barrier_arrive(barrier, 0, rank); }

DEVICE u32 add_release(u32 *word, u32 value) {
  u32 before = *word;
  emulate::add_word(word, value);
  return before;
}
DEVICE void wait_acquire(const u32 *word, u32 least) { emulate::wait_word(word, least); }

DEVICE u64 operand(u32 address) {
  return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

DEVICE u64 further(u64 operand, u32 bytes) { return (operand >> 32 << 32) | ((u32)operand + bytes / 16); }

struct GroupProduct {
  void *d;
  u64 a, b;
  int is_sum;
};
template <int COLUMNS, bool IS_BYTES = false> inline void multiply_group(void *d, u64 a, u64 b, int is_sum) {
  GroupProduct mine = {d, a, b, is_sum};
  emulate::together(
      [](void **slots) {
        void *sums[128];
        const GroupProduct *first = (const GroupProduct *)slots[0];
        for (int i = 0; i < 128; i++) {
          const GroupProduct *lane = (const GroupProduct *)slots[i];
          if (lane->a != first->a || lane->b != first->b || lane->is_sum != first->is_sum)
            emulate::stop("a warpgroup's threads give different operands");
          sums[i] = lane->d;
        }
        emulate::product(sums, first->a, first->b, COLUMNS, first->is_sum, IS_BYTES);
      },
      &mine, 128);
}
inline void multiply_64x64x16(float (&d)[32], u64 a, u64 b, int is_sum) { multiply_group<64>(d, a, b, is_sum); }
inline void multiply_64x128x16(float (&d)[64], u64 a, u64 b, int is_sum) { multiply_group<128>(d, a, b, is_sum); }
inline void multiply_64x192x16(float (&d)[96], u64 a, u64 b, int is_sum) { multiply_group<192>(d, a, b, is_sum); }
template <int SUMS> inline void multiply_narrow(float (&d)[SUMS], u64 a, u64 b, int is_sum) {
  static_assert(SUMS % 4 == 0 && SUMS <= 16, "8 to 32 columns");
  multiply_group<2 * SUMS>(d, a, b, is_sum);
}
inline void multiply_64x128x32(int (&d)[64], u64 a, u64 b, int is_sum) { multiply_group<128, true>(d, a, b, is_sum); }
inline void multiply_64x192x32(int (&d)[96], u64 a, u64 b, int is_sum) { multiply_group<192, true>(d, a, b, is_sum); }
inline void products_begin() {
  int mine = 0;
  emulate::together([](void **) {}, &mine, 128);
}
inline void products_commit() {
  int mine = 0;
  emulate::together([](void **) { emulate::products_commit(); }, &mine, 128);
}
template <int PENDING> inline void products_wait() {
  int mine = 0;
  emulate::together([](void **) { emulate::products_wait(PENDING); }, &mine, 128);
}

DEVICE void part_sync(int id, int threads) { emulate::block_barrier(id, threads); }
DEVICE void part_arrive(int id, int threads) { emulate::block_arrive(id, threads); }
template <int COUNT> DEVICE void registers_down() {}
template <int COUNT> DEVICE void registers_up() {}

} // namespace ptx
