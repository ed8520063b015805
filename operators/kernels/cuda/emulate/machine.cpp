// The machine behind machine.hpp, and every kernel compiled into it. See there for what it is.
//
// Threads are fibers: entered once through ucontext, switched by _setjmp and _longjmp, which make no
// system call. A thread runs until it must wait; then the scheduler takes the next that need not.

#include "../ptx.cuh"
#include "../numbers.cuh"
#include "../tiles.cuh"
#include "../hopper.cuh"
#include "../cluster.cuh"
#include "../groups.cuh"
#include "../ring.cuh"
#include "../pingpong.cuh"
#include "../heads.cuh"
#include "../bytes.cuh"
#include "../quantize.cuh"
#include "../rows.cuh"
#include "../softmax.cuh"
#include "../pool.cuh"
#include "../whole.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <deque>
#include <map>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace emulate {

Index grid_size, block_size;

namespace {

constexpr u32 SHARED_BASE = 1024; // an address 0 is a mistake
constexpr size_t SHARED_MAX = 227 * 1024, STACK = 128 * 1024;

struct Copy {
  u32 to;
  const void *from;
  int bytes;
};

struct Block;

struct Thread {
  Block *block;
  ucontext_t first;
  jmp_buf here;
  unsigned char *stack = nullptr;
  Index index;
  bool is_started = false, is_done = true;
  const u64 *waits_for = nullptr; // runs again when this differs from `seen`
  u64 seen = 0;
  u64 sleeps_until = 0; // a round
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

struct Meeting {
  Meaning meaning;
  int arrived = 0;
  u64 round = 0;
  void *slots[128];
};

struct Barrier {
  int arrived = 0, expected = 0;
  u64 round = 0;
};

// Hopper: a barrier in shared memory.
struct Phases {
  u32 count, arrivals;
  int bytes;
  u64 phase;
};

// What the tests' tensor map holds: see emulator.rs.
struct TestMap {
  u64 address, rows, columns, box_rows, box_columns, element; // bytes of an element
};

// A box on its way to one block.
struct Box {
  Block *block;
  u32 to;
  TestMap map;
  int column, row;
  u32 barrier;
};

struct Product {
  void *sums[128];
  u64 a, b;
  int columns, is_sum;
  bool is_bytes;
};

// A warpgroup's products: groups committed, and the open one.
struct Products {
  std::deque<std::vector<Product>> groups;
  std::vector<Product> open;
};

// A block under way.
struct Block {
  Index index;
  int number, alive; // its place among those under way, its threads that have not ended
  unsigned char *shared;
  std::map<u32, Phases> phases;
  Products products[8];
  Meeting warps[32], groups[8]; // a warpgroup's warps meet while one of them may still be at its own instructions
  Barrier barriers[16];
};

constexpr int BLOCKS_MAX = 16;
std::deque<Thread> threads; // fibers stay from launch to launch
std::deque<Block> blocks;   // those that are under way together
std::vector<Box> boxes;
Barrier cluster_barriers[BLOCKS_MAX]; // by the first block of the cluster
int cluster_size;
u64 word_changes, rounds;
u32 sleeps_random;
Thread *current;
jmp_buf scheduler;
int order_seed;
bool is_late;
unsigned char *shared_ends[BLOCKS_MAX];
u32 shared_bytes;
bool has_failed;
char message[512];
u64 conflicts;
void (*body)(void **);
void **body_arguments;
float half_table[65536];

void leave() {
  if (_setjmp(current->here) == 0)
    _longjmp(scheduler, 1);
}

void land_box(size_t which);

// Yields until *counter is no longer `seen`.
void wait_change(const u64 *counter, u64 seen) {
  current->waits_for = counter;
  current->seen = seen;
  leave();
  current->waits_for = nullptr;
}

void fiber() {
  for (;;) {
    body(body_arguments);
    if (!current->open.empty())
      stop("copies were started and never committed");
    current->is_done = true;
    current->block->alive--;
    leave();
  }
}

void enter(Thread &thread) {
  current = &thread;
  if (_setjmp(scheduler) != 0)
    return;
  if (thread.is_started)
    _longjmp(thread.here, 1);
  thread.is_started = true;
  getcontext(&thread.first);
  thread.stack = (unsigned char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  thread.first.uc_stack.ss_sp = thread.stack;
  thread.first.uc_stack.ss_size = STACK;
  thread.first.uc_link = nullptr;
  makecontext(&thread.first, fiber, 0);
  setcontext(&thread.first);
}

u32 next_random(u32 &state) {
  state ^= state << 13;
  state ^= state >> 17;
  return state ^= state << 5;
}

bool is_ready(const Thread &thread) {
  return !thread.is_done && !(thread.waits_for && *thread.waits_for == thread.seen);
}

bool may_run(const Thread &thread) { return thread.sleeps_until <= rounds && is_ready(thread); }

// When nobody runs: the first of those that only sleep gets up. Says whether there is one.
bool wake_first() {
  u64 first = ~(u64)0;
  for (size_t i = 0; i < blocks.size() * block_size.x; i++)
    if (is_ready(threads[i]) && threads[i].sleeps_until < first)
      first = threads[i].sleeps_until;
  if (first == ~(u64)0)
    return false;
  rounds = first;
  return true;
}

// A thread of i's warp that can run, or −1.
int next_of_warp(int i) {
  for (int other = i / 32 * 32; other < i / 32 * 32 + 32; other++)
    if (may_run(threads[other]))
      return other;
  return -1;
}

void fail(const char *format, ...) {
  if (has_failed)
    return;
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  has_failed = true;
}

unsigned char *shared_end(int block) {
  unsigned char *&end = shared_ends[block];
  if (!end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (SHARED_MAX + 2 * page - 1) / page * page;
    unsigned char *start = (unsigned char *)mmap(nullptr, room + page, PROT_READ | PROT_WRITE,
                                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(start + room, page, PROT_NONE);
    end = start + room;
  }
  return end;
}

// Fresh blocks with these indices, and their threads.
void place(const std::vector<Index> &indices) {
  int count = (int)block_size.x;
  blocks.resize(indices.size());
  for (size_t i = 0; i < indices.size(); i++) {
    Block &block = blocks[i];
    block = {};
    block.index = indices[i];
    block.number = (int)i;
    block.alive = count;
    block.shared = shared_end((int)i) - (shared_bytes + 1023) / 1024 * 1024;
    memset(block.shared, 0xff, shared_bytes); // NaN
  }
  boxes.clear();
  memset((void *)cluster_barriers, 0, sizeof cluster_barriers);
  if (threads.size() < blocks.size() * (size_t)count)
    threads.resize(blocks.size() * (size_t)count);
  for (int i = 0; i < (int)blocks.size() * count; i++) {
    Thread &thread = threads[i];
    thread.block = &blocks[i / count];
    thread.index = {(unsigned)(i % count), 0, 0};
    thread.is_done = false;
    thread.waits_for = nullptr;
    thread.sleeps_until = 0;
    thread.groups.clear();
    thread.open.clear();
  }
}

// What must be over when all threads have ended.
void check_end(const char *name) {
  for (const Block &block : blocks)
    for (const Barrier &barrier : block.barriers)
      if (barrier.arrived != 0)
        fail("%s: a block ended with %d threads at a barrier", name, barrier.arrived);
  for (const Barrier &barrier : cluster_barriers)
    if (barrier.arrived != 0)
      fail("%s: a block ended with %d threads at its cluster's barrier", name, barrier.arrived);
  if (!boxes.empty())
    fail("%s: a block ended before its copies", name);
}

// Runs these blocks at once.
void run_blocks(const char *name, const std::vector<Index> &indices) {
  place(indices);
  int count = (int)(indices.size() * block_size.x);
  std::vector<int> order(count);
  for (int i = 0; i < count; i++)
    order[i] = order_seed == 1 ? count - 1 - i : i;
  u32 random = 0x9e3779b9u * (u32)(order_seed + 1) + indices[0].x * 31 + indices[0].y;
  sleeps_random = random;
  for (rounds = 0;; rounds++) {
    if (order_seed > 1)
      for (int i = count - 1; i > 0; i--)
        std::swap(order[i], order[next_random(random) % (u32)(i + 1)]);
    int alive = 0, ran = 0;
    for (int i : order) {
      if (threads[i].is_done)
        continue;
      alive++;
      if (!may_run(threads[i]))
        continue;
      ran++;
      // In shuffled order once each; else a warp runs ahead of the others as far as it may.
      do {
        enter(threads[i]);
        if (has_failed)
          return;
      } while (order_seed < 2 && (i = next_of_warp(i)) >= 0);
      if (order_seed < 2)
        break;
    }
    if (ran > 0)
      continue;
    if (alive == 0)
      return check_end(name);
    if (wake_first())
      continue;
    // The copy engine is as slow as can be: it works when nobody else can, in any order.
    if (boxes.empty())
      return fail("%s: %d threads of block (%u, %u) and those beside it wait for ever", name, alive, indices[0].x,
                  indices[0].y);
    land_box(next_random(random) % boxes.size());
    if (has_failed)
      return;
  }
}

} // namespace

const Index &thread_index() { return current->index; }
const Index &block_index() { return current->block->index; }
unsigned char *shared_memory() { return current->block->shared; }

void stop(const char *format, ...) {
  va_list list;
  va_start(list, format);
  if (!has_failed)
    vsnprintf(message, sizeof message, format, list);
  va_end(list);
  has_failed = true;
  for (;;)
    leave(); // never taken up again
}

// Whoever has told others something may be overtaken by them before it goes on, by far at times.
static void give_way() {
  if (order_seed < 2)
    return;
  u32 draw = next_random(sleeps_random);
  if (draw % 4 == 0)
    current->sleeps_until = rounds + (draw >> 8) % 256;
  leave();
}

// Counts one thread at a barrier; says whether it was the last.
static bool arrive(Barrier &barrier, int id, int count) {
  if (barrier.arrived == 0)
    barrier.expected = count;
  if (barrier.expected != count)
    stop("barrier %d: %d threads expected by some, %d by others", id, barrier.expected, count);
  if (++barrier.arrived < count)
    return false;
  barrier.arrived = 0;
  barrier.round++;
  return true;
}

void block_barrier(int id, int count) {
  Barrier &barrier = current->block->barriers[id];
  u64 round = barrier.round;
  if (!arrive(barrier, id, count))
    wait_change(&barrier.round, round);
}

void block_arrive(int id, int count) {
  arrive(current->block->barriers[id], id, count);
  give_way();
}

int cluster_rank() { return current->block->number % cluster_size; }

void cluster_sync() {
  Barrier &barrier = cluster_barriers[current->block->number / cluster_size];
  u64 round = barrier.round;
  if (!arrive(barrier, 0, cluster_size * (int)block_size.x))
    wait_change(&barrier.round, round);
}

void add_word(u32 *word, u32 value) {
  *word += value;
  word_changes++;
  give_way();
}

void wait_word(const u32 *word, u32 least) {
  while ((int)(*word - least) < 0)
    wait_change(&word_changes, word_changes);
}

// A block of the own cluster, −1 the own one. Its shared memory is there as long as one of its threads is.
static Block &block_of(int rank) {
  if (rank < 0)
    return *current->block;
  if (rank >= cluster_size)
    stop("block %d of a cluster of %d", rank, cluster_size);
  Block &block = blocks[current->block->number / cluster_size * cluster_size + rank];
  if (block.alive == 0)
    stop("the shared memory of a block that has ended");
  return block;
}

static Phases &phases_of(Block &block, u32 barrier) {
  at(barrier, 8);
  auto found = block.phases.find(barrier);
  if (found == block.phases.end())
    stop("a barrier at %u was never initialised", barrier);
  return found->second;
}

static void advance(Phases &barrier) {
  if (barrier.arrivals == barrier.count && barrier.bytes == 0) {
    barrier.phase++;
    barrier.arrivals = 0;
  }
}

void barrier_init(u32 barrier, u32 count) {
  at(barrier, 8);
  current->block->phases[barrier] = {count, 0, 0, 0};
}

void barrier_arrive(u32 address, u32 bytes, int rank) {
  Phases &barrier = phases_of(block_of(rank), address);
  barrier.bytes += (int)bytes;
  if (++barrier.arrivals > barrier.count)
    stop("more arrivals than the barrier counts");
  advance(barrier);
  give_way();
}

void barrier_wait(u32 address, u32 parity) {
  Phases &barrier = phases_of(*current->block, address);
  while ((barrier.phase & 1) == parity)
    wait_change(&barrier.phase, barrier.phase);
}

namespace {

u32 turned(u32 address) { return address ^ ((address >> 7 & 7) << 4); }

void land_box(size_t which) {
  Box box = boxes[which];
  boxes.erase(boxes.begin() + (long)which);
  const TestMap &map = box.map;
  for (u64 row = 0; row < map.box_rows; row++)
    for (u64 column = 0; column < map.box_columns; column++) {
      u16 value = 0;
      u64 r = (u64)box.row + row, c = (u64)box.column + column;
      if (r < map.rows && c < map.columns)
        memcpy(&value, (const char *)map.address + (r * map.columns + c) * map.element, map.element);
      u32 to = (u32)(box.to + (row * map.box_columns + column) * map.element);
      memcpy(box.block->shared + (turned(to) - SHARED_BASE), &value, map.element);
    }
  Phases &barrier = box.block->phases[box.barrier]; // load_box saw that it is there
  if (box.block->alive == 0)
    fail("a copy into a block that has ended");
  barrier.bytes -= (int)(map.box_rows * map.box_columns * map.element);
  advance(barrier);
}

float number(u16 half) { return half_table[half]; }
int number(signed char byte) { return byte; }

template <class Element> auto element(u64 operand, int row, int column) {
  u32 address = (u32)(operand & 0x3fff) << 4, stride = (u32)(operand >> 32 & 0x3fff) << 4;
  if (operand >> 62 != 1)
    stop("an operand's swizzle is not of 128 bytes");
  address += (u32)(row / 8) * stride + (u32)(row % 8) * 128 + (u32)column * (u32)sizeof(Element);
  Element bits;
  memcpy(&bits, at(turned(address), sizeof bits), sizeof bits);
  return number(bits);
}

// A product of 32 bytes of K.
template <class Element, class Sum> void make(const Product &product) {
  constexpr int DEPTH = 32 / sizeof(Element);
  static Sum a[64][DEPTH], b[256][DEPTH];
  for (int k = 0; k < DEPTH; k++) {
    for (int row = 0; row < 64; row++)
      a[row][k] = element<Element>(product.a, row, k);
    for (int column = 0; column < product.columns; column++)
      b[column][k] = element<Element>(product.b, column, k);
  }
  for (int i = 0; i < 128; i++)
    for (int e = 0; e < product.columns / 2; e++) {
      int row = i / 32 * 16 + i % 32 / 4 + e % 4 / 2 * 8, column = e / 4 * 8 + i % 4 * 2 + e % 2;
      Sum &sum = ((Sum *)product.sums[i])[e];
      if (!product.is_sum)
        sum = 0;
      for (int k = 0; k < DEPTH; k++)
        sum += a[row][k] * b[column][k];
    }
}

void make(const Product &product) {
  if (product.is_bytes)
    make<signed char, int>(product);
  else
    make<u16, float>(product);
}

Products &mine() { return current->block->products[current->index.x / 128]; }

} // namespace

// One box to the own block, or a copy of it to each of the cluster's blocks in the mask.
void load_box(u32 to, const void *map, int column, int row, u32 barrier, u32 mask) {
  TestMap sizes;
  memcpy(&sizes, map, sizeof sizes);
  u32 bytes = (u32)(sizes.box_rows * sizes.box_columns * sizes.element);
  if (to % 1024 != 0 || sizes.box_columns * sizes.element != 128 || sizes.columns * sizes.element % 16 != 0)
    stop("a box the copy engine would not take");
  at(to, bytes);
  if (mask >> cluster_size != 0)
    stop("a box for blocks %#x of a cluster of %d", mask, cluster_size);
  for (int rank = mask == 0 ? -1 : 0; rank < (mask == 0 ? 0 : cluster_size); rank++) {
    if (rank >= 0 && !(mask >> rank & 1))
      continue;
    Block &block = block_of(rank);
    phases_of(block, barrier);
    boxes.push_back({&block, to, sizes, column, row, barrier});
    if (is_late)
      memset(block.shared + (to - SHARED_BASE), 0xff, bytes);
    else
      land_box(boxes.size() - 1);
  }
}

void product(void *const *sums, u64 a, u64 b, int columns, int is_sum, bool is_bytes) {
  Product product = {{}, a, b, columns, is_sum, is_bytes};
  memcpy(product.sums, sums, sizeof product.sums);
  if (!is_late) {
    make(product);
    return;
  }
  mine().open.push_back(product);
}

void products_commit() {
  mine().groups.push_back(std::move(mine().open));
  mine().open.clear();
}

void products_wait(int pending) {
  while ((int)mine().groups.size() > pending) {
    for (const Product &product : mine().groups.front())
      make(product);
    mine().groups.pop_front();
  }
}

void together(Meaning meaning, void *mine, int lanes) {
  int first = (int)current->index.x / lanes * lanes;
  Block &block = *current->block;
  Meeting &meeting = lanes == 32 ? block.warps[first / 32] : block.groups[first / 128];
  if (meeting.arrived == 0)
    meeting.meaning = meaning;
  if (meeting.meaning != meaning)
    stop("lanes of one warp are at different instructions");
  u64 round = meeting.round;
  meeting.slots[(int)current->index.x - first] = mine;
  if (++meeting.arrived == lanes) {
    meeting.arrived = 0;
    meeting.round++;
    meaning(meeting.slots);
  } else {
    wait_change(&meeting.round, round);
  }
}

u32 address_of(const void *pointer) { return (u32)((const unsigned char *)pointer - current->block->shared) + SHARED_BASE; }

unsigned char *at(u32 address, u32 bytes) {
  if (address < SHARED_BASE || address - SHARED_BASE + bytes > shared_bytes)
    stop("shared memory: %u bytes at %u, the launch has %u", bytes, address - SHARED_BASE, shared_bytes);
  if (bytes <= 16 && address % bytes != 0)
    stop("shared memory: address %u is no multiple of %u", address, bytes);
  return current->block->shared + (address - SHARED_BASE);
}

static void land(const Copy &copy) {
  unsigned char *to = at(copy.to, 16);
  memset(to, 0, 16);
  memcpy(to, copy.from, (size_t)copy.bytes);
}

void copy(u32 to, const void *from, int bytes) {
  if ((uintptr_t)from % 16 != 0)
    stop("copy16 from an address that is no multiple of 16");
  Copy copy = {to, from, bytes};
  if (is_late)
    memset(at(to, 16), 0xff, 16);
  else
    land(copy);
  current->open.push_back(copy);
}

void commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void wait(int pending) {
  auto &groups = current->groups;
  while ((int)groups.size() > pending) {
    if (is_late)
      for (const Copy &copy : groups.front())
        land(copy);
    groups.erase(groups.begin());
  }
}

void count_conflicts(const u32 *addresses) {
  for (int phase = 0; phase < 4; phase++) {
    u32 banks = 0;
    for (int i = 0; i < 8; i++)
      banks |= 1u << (addresses[phase * 8 + i] / 16 % 8);
    conflicts += banks != 0xff;
  }
}

float half_to_float(u16 h) { return half_table[h]; }
u16 float_to_half(float f) {
  if (f != f)
    return 0x7fff; // the device's only NaN
  _Float16 h = (_Float16)f;
  u16 bits;
  memcpy(&bits, &h, 2);
  return bits;
}

} // namespace emulate

// Each file in a namespace of its own: their anonymous ones would meet otherwise.
namespace linear {
#include "../linear.cu"
}
namespace attention {
#include "../attention.cu"
}
namespace attention_heads {
#include "../attention_heads.cu"
}
namespace norm {
#include "../norm.cu"
}
namespace pool {
#include "../pool.cu"
}
namespace linear_hopper {
#include "../linear_hopper.cu"
}
namespace join_hopper {
#include "../join_hopper.cu"
}
namespace feed_hopper {
#include "../feed_hopper.cu"
}
namespace feed_int8_hopper {
#include "../feed_int8_hopper.cu"
}
namespace whole_hopper {
#include "../whole_hopper.cu"
}
namespace linear_int8_hopper {
#include "../linear_int8_hopper.cu"
}
namespace narrow_int8_hopper {
#include "../narrow_int8_hopper.cu"
}

namespace {

template <class... A, size_t... I> void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*(A *)arguments[I]...);
}
template <class... A> void spread(void (*kernel)(A...), void **arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}
template <auto KERNEL_> void run(void **arguments) { spread(KERNEL_, arguments); }

struct Entry {
  const char *name;
  void (*body)(void **);
};

#define ENTRY(space, name) {#name, run<space::name>}
const Entry ENTRIES[] = {
    ENTRY(linear, linear_naive),       ENTRY(linear, linear_f16_bias),     ENTRY(linear, linear_f16_gelu),
    ENTRY(linear, linear_f16_residual), ENTRY(linear, linear_f16_tanh),    ENTRY(attention, attention_naive),
    ENTRY(attention, attention_f16_d32), ENTRY(attention, attention_f16_d64), ENTRY(norm, embed_naive),
    ENTRY(norm, norm_naive),           ENTRY(norm, embed_f16),             ENTRY(norm, add_norm_f16),
    ENTRY(pool, pool_naive),           ENTRY(pool, scale_naive),           ENTRY(pool, gather_naive),
    ENTRY(linear_hopper, linear_hopper_bias), ENTRY(linear_hopper, linear_hopper_bias_by2),
    ENTRY(linear_hopper, linear_hopper_bias_by4), ENTRY(linear_hopper, linear_hopper_gelu), ENTRY(linear_hopper, linear_hopper_gelu_by2),
    ENTRY(linear_hopper, linear_hopper_gelu_by4),
    ENTRY(linear_hopper, linear_hopper_residual), ENTRY(linear_hopper, linear_hopper_tanh),
    ENTRY(attention_heads, attention_heads_d32), ENTRY(linear_hopper, linear_hopper_heads),
    ENTRY(linear_hopper, linear_hopper_heads_by2), ENTRY(linear_hopper, linear_hopper_heads_by4),
    ENTRY(linear_int8_hopper, linear_int8_hopper_heads), ENTRY(linear_int8_hopper, linear_int8_hopper_heads_by2),
    ENTRY(linear_int8_hopper, linear_int8_hopper_heads_by4),
    ENTRY(whole_hopper, whole_hopper_d32), ENTRY(whole_hopper, whole_hopper_d64),
    ENTRY(join_hopper, join_hopper_384), ENTRY(join_hopper, join_hopper_384_by2),
    ENTRY(join_hopper, join_hopper_384_by4), ENTRY(feed_hopper, feed_hopper_384),
    ENTRY(feed_hopper, feed_hopper_384_by2), ENTRY(feed_hopper, feed_hopper_384_by4),
    ENTRY(feed_int8_hopper, feed_int8_hopper_384), ENTRY(feed_int8_hopper, feed_int8_hopper_384_by2),
    ENTRY(feed_int8_hopper, feed_int8_hopper_384_by4),
    ENTRY(linear_int8_hopper, linear_int8_hopper_bias), ENTRY(linear_int8_hopper, linear_int8_hopper_bias_by2),
    ENTRY(linear_int8_hopper, linear_int8_hopper_bias_by4), ENTRY(linear_int8_hopper, linear_int8_hopper_gelu), ENTRY(linear_int8_hopper, linear_int8_hopper_gelu_by2),
    ENTRY(linear_int8_hopper, linear_int8_hopper_gelu_by4),
    ENTRY(narrow_int8_hopper, narrow_int8_hopper), ENTRY(narrow_int8_hopper, narrow_int8_hopper_by2),
    ENTRY(narrow_int8_hopper, narrow_int8_hopper_by4), ENTRY(norm, embed_int8), ENTRY(norm, add_norm_int8),
    ENTRY(pool, pool_f16),             ENTRY(pool, gather_f16),            ENTRY(pool, logits_f16),
};

} // namespace

// ---- what the tests call, one thread at a time ---------------------------------------------------

// How blocks of a launch meet: in clusters of so many, and whether all of the grid are there at once.
struct Together {
  unsigned cluster, is_whole;
};

// Runs a grid. `order`: 0 the first thread that can run, 1 the last, else shuffled by it; `late`: copies land at their wait.
// Returns null, or what went wrong.
extern "C" const char *emulate_launch(const char *name, const unsigned *grid, unsigned block, unsigned shared,
                                      const Together *meets, void **arguments, int order, int late) {
  using namespace emulate;
  if (half_table[1] == 0.0f)
    for (int i = 0; i < 65536; i++) {
      u16 bits = (u16)i;
      _Float16 h;
      memcpy(&h, &bits, 2);
      half_table[i] = (float)h;
    }
  has_failed = false;
  body = nullptr;
  for (const Entry &entry : ENTRIES)
    if (strcmp(entry.name, name) == 0)
      body = entry.body;
  if (!body)
    return "no such kernel";
  if (block == 0 || block > 1024 || block % 32 != 0 || shared > SHARED_MAX)
    return "the launch's sizes are impossible";
  unsigned count = grid[0] * grid[1] * grid[2], at_once = meets->is_whole ? count : meets->cluster;
  if (meets->cluster == 0 || grid[0] % meets->cluster != 0)
    return "the grid is no multiple of its clusters";
  if (at_once > BLOCKS_MAX)
    return "more blocks at once than this machine has";
  cluster_size = (int)meets->cluster;
  order_seed = order;
  is_late = late != 0;
  shared_bytes = shared;
  body_arguments = arguments;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block, 1, 1};
  std::vector<Index> indices;
  for (unsigned i = 0; i < count; i++) {
    indices.push_back({i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]});
    if (indices.size() < at_once)
      continue;
    run_blocks(name, indices);
    indices.clear();
    if (has_failed) {
      for (Thread &thread : threads) // their stacks are lost in the middle of a kernel
        if (thread.is_started) {
          munmap(thread.stack, STACK);
          thread.is_started = false;
        }
      return message;
    }
  }
  return nullptr;
}

// Memory that ends, rounded up to 16 bytes, where a forbidden page begins.
extern "C" void *emulate_allocate(size_t bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (bytes + 15) / 16 * 16, room = (size + page - 1) / page * page;
  unsigned char *start =
      (unsigned char *)mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED)
    return nullptr;
  mprotect(start + room, page, PROT_NONE);
  return start + room - size;
}

extern "C" void emulate_free(void *memory, size_t bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (bytes + 15) / 16 * 16, room = (size + page - 1) / page * page;
  munmap((unsigned char *)memory + size - room, room + page);
}

// Matrix loads so far whose eight rows met in a bank.
extern "C" unsigned long long emulate_conflicts() { return emulate::conflicts; }
