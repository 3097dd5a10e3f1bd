// The SIMT machine: one fiber for each thread of a block, one block after another, and a schedule that says who runs
// next.
//
// A thread runs until it waits. Collectives are performed by the last thread to arrive, for all of them. All state is
// one object for each OS thread, so that tests launch side by side.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "banks.h"
#include "base.h"
#include "fiber.h"
#include "hopper_state.h"
#include "race.h"

// What a thread knows of its place; set at every switch.
struct Dimension {
  u32 x;
};
inline EMULATOR_THREAD_LOCAL Dimension threadIdx, blockIdx, blockDim, gridDim;

namespace emulator __attribute__((visibility("hidden"))) {

constexpr u32 MOST_THREADS = 1024;
constexpr u32 MOST_SHARED_BYTES = 227 << 10;
// Where shared memory begins in its address space. Not 0: an address that forgets the base is out of bounds.
constexpr u32 SHARED_BASE = 1024;

enum Schedule : u32 { LOWEST_FIRST, HIGHEST_FIRST, RANDOM, ONE_WARP, NUM_SCHEDULES };
// When an asynchronous operation takes effect.
enum Asynchronous : u32 { AT_ONCE, AT_THE_WAIT, MIXED, NUM_ASYNCHRONOUS };

struct Launch {
  const char* kernel = "kernel";
  u32 blocks = 1, threads = 32, shared_bytes = 0;
  u32 schedule = LOWEST_FIRST;
  u32 asynchronous = AT_THE_WAIT;
  u64 seed = 1;
  bool detect_races = true;  // and reads of shared memory that was never written
};

struct Counters {
  u64 switches = 0, collectives = 0, mma = 0, async_copies = 0;
  u64 ldmatrix = 0, ldmatrix_extra = 0;  // 8-row phases; cycles lost to bank conflicts
  u64 shared = 0, shared_extra = 0;      // the same of loads and stores, in phases of 128 bytes
};

// 16 bytes on their way to shared memory.
struct Copy {
  u32 destination;
  const void* source;
  bool valid;
  bool done;
  u32 group;
  Site at;
};

struct Thread {
  Fiber fiber;
  u32 index = 0;
  const char* waits_in = "";
  Site waits_at = {"", 0};
  std::vector<Copy> copies;  // in the order of their issue
  u32 open_group = 0;

  u32 warp() const { return index / 32; }
  u32 lane() const { return index % 32; }
};

struct Warp {
  u32 arrived = 0;  // lanes that wait in the open collective
  u32 exited = 0;
  const char* collective = "";
  Site site = {"", 0};
  void* operands[32];
  BankLog banks;
};

struct Barrier {
  u32 warps = 0;    // that wait
  u32 threads = 0;  // that it is for
  Site site = {"", 0};
  Clock clock;      // what those who wait have done
};

// Threads of a block, with the smallest, the largest or a random one in a few instructions.
struct ThreadSet {
  u32 warps = 0;  // with any lane
  u32 lanes[MOST_THREADS / 32] = {};

  void insert(u32 thread) { insert_lanes(thread / 32, 1u << thread % 32); }
  void insert_lanes(u32 warp, u32 mask) {
    lanes[warp] |= mask;
    warps |= 1u << warp;
  }
  void remove(u32 thread) {
    lanes[thread / 32] &= ~(1u << thread % 32);
    if (lanes[thread / 32] == 0) warps &= ~(1u << thread / 32);
  }
  u32 lowest() const {
    u32 warp = (u32)__builtin_ctz(warps);
    return warp * 32 + (u32)__builtin_ctz(lanes[warp]);
  }
  u32 highest() const {
    u32 warp = 31 - (u32)__builtin_clz(warps);
    return warp * 32 + 31 - (u32)__builtin_clz(lanes[warp]);
  }
  u32 random(Random& random) const {
    u32 warp = random_bit(warps, random);
    return warp * 32 + random_bit(lanes[warp], random);
  }
  static u32 random_bit(u32 mask, Random& random) {
    for (u32 skip = random.below((u32)__builtin_popcount(mask)); skip > 0; skip--) mask &= mask - 1;
    return (u32)__builtin_ctz(mask);
  }
};

class Machine {
 public:
  Thread* current = nullptr;  // null while the scheduler runs
  RaceDetector races;
  Hopper hopper;
  Random random;
  Counters counters;
  bool count_banks = false;

  const Launch& launch() const { return launch_; }
  Warp& warp() { return warps_[current->warp()]; }
  Barrier& barrier(u32 id) { return barriers_[id]; }
  u32 exited() const { return exited_; }

  // The memory behind a shared address.
  u8* shared(u32 address, u32 bytes, Site at) {
    if (address % bytes != 0) fault(at, "shared address %u is not a multiple of %u", address, bytes);
    u32 offset = address - SHARED_BASE;
    if (offset > launch_.shared_bytes || bytes > launch_.shared_bytes - offset) {
      fault(at, "%u bytes at shared address %u are outside the block's %u .. %u", bytes, address, SHARED_BASE,
            SHARED_BASE + launch_.shared_bytes);
    }
    return shared_.get() + offset;
  }

  // Null, or the fault; the text lives until the next run of this OS thread.
  const char* run(const Launch& launch, bool count, void (*body)(void*), void* context) {
    fault_.clear();
    launch_ = launch;
    body_ = body;
    context_ = context;
    random.state = launch.seed;
    counters = Counters();
    count_banks = count;
    const char* objection = check_launch();
    if (objection) {
      fault_ = std::string(launch.kernel) + ": " + objection;
      return fault_.c_str();
    }
    allocate();
    for (u32 block : block_order()) {
      run_block(block);
      if (!fault_.empty()) break;
    }
    for (Warp& warp : warps_) {
      counters.shared += warp.banks.accesses;
      counters.shared_extra += warp.banks.extra_cycles;
    }
    return fault_.empty() ? nullptr : fault_.c_str();
  }

  // The running thread waits, until `wake`.
  void wait(const char* in, Site at) {
    current->waits_in = in;
    current->waits_at = at;
    ready_.remove(current->index);
    switch_to_next(Leave::for_now);
  }
  void wake(u32 warp, u32 lanes) { ready_.insert_lanes(warp, lanes); }

  [[noreturn]] void fail(Site at, const char* text) {
    char place[256];
    snprintf(place, sizeof place, ": block %u, thread %u, %s:%u: ", blockIdx.x, current->index, file_name(at), at.line);
    fault_ = std::string(launch_.kernel) + place + text;
    switch_fiber(current->fiber, scheduler_, Leave::for_good);
    __builtin_unreachable();
  }

  // Copies in flight land in any order, at the latest when every thread waits.
  void land_a_copy() {
    auto copy = hopper.copies.begin() + (launch_.asynchronous == MIXED ? random.below((u32)hopper.copies.size()) : 0);
    auto land = std::move(*copy);
    hopper.copies.erase(copy);
    land();
  }

  // Whether an asynchronous operation issued now takes effect now.
  bool takes_effect_at_once() {
    return launch_.asynchronous == AT_ONCE || (launch_.asynchronous == MIXED && random.coin());
  }

 private:
  const char* check_launch() const {
    if (launch_.blocks == 0) return "a grid has at least one block";
    if (launch_.threads == 0 || launch_.threads > MOST_THREADS) return "a block has 1 to 1024 threads";
    if (launch_.threads % 32 != 0) return "the threads of a block are whole warps";
    if (launch_.shared_bytes > MOST_SHARED_BYTES) return "more shared memory than any device has";
    if (launch_.schedule >= NUM_SCHEDULES) return "schedules are 0 to 3";
    if (launch_.asynchronous >= NUM_ASYNCHRONOUS) return "the times of asynchronous effects are 0 to 2";
    return nullptr;
  }

  void allocate() {
    stacks_.reserve(launch_.threads);
    threads_.resize(launch_.threads);
    warps_.assign(launch_.threads / 32, Warp());
    shared_.reset(static_cast<u8*>(aligned_alloc(1024, (launch_.shared_bytes + 1023) / 1024 * 1024)));
    races.start_launch(launch_.detect_races, launch_.threads, launch_.shared_bytes);
    blockDim.x = launch_.threads;
    gridDim.x = launch_.blocks;
  }

  // Blocks are independent, so their order follows the schedule as well.
  std::vector<u32> block_order() {
    std::vector<u32> order(launch_.blocks);
    for (u32 i = 0; i < launch_.blocks; i++) {
      order[i] = launch_.schedule == HIGHEST_FIRST ? launch_.blocks - 1 - i : i;
    }
    if (launch_.schedule == RANDOM) {
      for (u32 i = launch_.blocks; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
    }
    return order;
  }

  void run_block(u32 block) {
    start_block(block);
    switch_to_next(Leave::for_now);
    while (fault_.empty() && !hopper.copies.empty()) {
      land_a_copy();
      switch_to_next(Leave::for_now);
    }
    if (fault_.empty() && exited_ < launch_.threads) report_deadlock();
  }

  void start_block(u32 block) {
    blockIdx.x = block;
    exited_ = 0;
    favourite_ = 0;
    // NaN in every type.
    for (u32 i = 0; i + 1 < launch_.shared_bytes; i += 2) memcpy(&shared_.get()[i], "\xff\x7f", 2);
    for (Warp& warp : warps_) warp.arrived = warp.exited = 0;
    for (Barrier& barrier : barriers_) barrier = Barrier();
    ready_ = ThreadSet();
    for (u32 i = 0; i < launch_.threads; i++) {
      Thread& thread = threads_[i];
      thread.index = i;
      thread.waits_in = "nothing";
      thread.waits_at = {"", 0};
      thread.copies.clear();
      thread.open_group = 0;
      prepare(thread.fiber, stacks_.stack(i), Stacks::BYTES, Stacks::offset(i), run_current_thread);
      ready_.insert(i);
    }
    races.start_block();
    hopper.start_block(launch_.threads);
    current = nullptr;
  }

  Thread* next() {
    if (ready_.warps == 0) return nullptr;
    switch (launch_.schedule) {
      case LOWEST_FIRST: return &threads_[ready_.lowest()];
      case HIGHEST_FIRST: return &threads_[ready_.highest()];
      case RANDOM: return &threads_[ready_.random(random)];
    }
    if (ready_.lanes[favourite_] == 0) favourite_ = ThreadSet::random_bit(ready_.warps, random);
    return &threads_[favourite_ * 32 + (u32)__builtin_ctz(ready_.lanes[favourite_])];
  }

  // From one thread to the next directly; to the scheduler when nobody is ready.
  void switch_to_next(Leave leave) {
    Fiber& from = current ? current->fiber : scheduler_;
    Thread* to = next();
    counters.switches++;
    current = to;
    previous_ = &from;
    if (to) threadIdx.x = to->index;
    switch_fiber(from, to ? to->fiber : scheduler_, leave);
  }

  static void run_current_thread();

  void run_thread() {
    entered(*previous_);
    body_(context_);
    check_exit();
    warp().exited |= 1u << current->lane();
    if (warp().exited == ~0u && count_banks) warp().banks.close();
    exited_++;
    ready_.remove(current->index);
    switch_to_next(Leave::for_good);
  }

  void check_exit() {
    Thread& me = *current;
    if (!me.copies.empty()) {
      fault(me.copies[0].at, "the thread ends with %zu copies never waited for; this is the first", me.copies.size());
    }
    if (!hopper.warpgroups[me.index / 128].products.empty()) {
      fault(me.waits_at, "the thread ends while products of its warpgroup are in flight: expected wgmma_wait");
    }
    if (warp().arrived != 0) {
      fault(warp().site, "the thread ends while %d lanes of its warp wait in %s",
            __builtin_popcount(warp().arrived), warp().collective);
    }
    if (barriers_[0].warps != 0) {
      fault(barriers_[0].site, "the thread ends while %d warps of its block wait in sync_block",
            __builtin_popcount(barriers_[0].warps));
    }
  }

  void report_deadlock() {
    std::map<std::string, u32> waiting;
    for (const Thread& thread : threads_) {
      if (warps_[thread.warp()].exited >> thread.lane() & 1) continue;
      waiting[std::string(thread.waits_in) + " at " + file_name(thread.waits_at) + ":" +
              std::to_string(thread.waits_at.line)]++;
    }
    fault_ = std::string(launch_.kernel) + ": block " + std::to_string(blockIdx.x) + ": deadlock:";
    for (const auto& [where, threads] : waiting) {
      fault_ += " " + std::to_string(threads) + " threads wait in " + where + ";";
    }
    for (const auto& [address, mbarrier] : hopper.mbarriers) {
      if (!mbarrier.waiting.empty()) fault_ += " " + describe_mbarrier(address, mbarrier) + ";";
    }
    fault_ += " " + std::to_string(exited_) + " have ended";
  }

  std::string describe_mbarrier(u32 address, const Mbarrier& mbarrier) {
    MbarrierWord word;
    memcpy(&word, &shared_.get()[address - SHARED_BASE], 8);
    char text[160];
    snprintf(text, sizeof text, "the mbarrier at byte %u has completed %u phases and lacks %u arrivals and %d bytes",
             address - SHARED_BASE, mbarrier.phases, (u32)word.pending, (i32)word.bytes);
    return text;
  }

  struct Free {
    void operator()(u8* memory) const { free(memory); }
  };

  Launch launch_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::string fault_;
  Fiber scheduler_;
  Fiber* previous_ = nullptr;  // ran before the one that runs
  Stacks stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Barrier barriers_[16];
  ThreadSet ready_;
  u32 exited_ = 0;
  u32 favourite_ = 0;  // the warp that runs as long as it can
  std::unique_ptr<u8, Free> shared_;
};

inline EMULATOR_THREAD_LOCAL Machine* machine = nullptr;

inline void Machine::run_current_thread() { machine->run_thread(); }

inline void fault(Site at, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  machine->fail(at, text);
}

// Runs `body` as every thread of every block. Null, or the fault; the text lives until this OS thread's next run.
inline const char* run(const Launch& launch, void (*body)(void*), void* context, Counters* counters) {
  static thread_local std::unique_ptr<Machine> machine_of_this_thread;  // on the heap: thread-local storage is scarce
  if (!machine_of_this_thread) machine_of_this_thread.reset(new Machine);
  machine = machine_of_this_thread.get();
  const char* fault = machine->run(launch, counters != nullptr, body, context);
  if (counters) *counters = machine->counters;
  return fault;
}

// The same for a C++ test: `body` calls the kernel. An empty string, or the fault.
template <class Body>
std::string run(const Launch& launch, Body body, Counters* counters = nullptr) {
  const char* fault = run(launch, [](void* body) { (*static_cast<Body*>(body))(); }, &body, counters);
  return fault ? fault : "";
}

}  // namespace emulator
