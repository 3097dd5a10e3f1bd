// The SIMT machine: one fiber for each thread of a cluster of blocks, one cluster after another, and a schedule that
// says who runs next.
//
// A thread runs until it waits. Collectives are performed by the last thread to arrive, for all of them. All state is
// one object for each OS thread, so that tests launch side by side.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base.h"
#include "hopper_state.h"
#include "race.h"
#include "threads.h"

// What a thread knows of its place; set at every switch.
struct Dimension {
  u32 x;
};
inline EMULATOR_THREAD_LOCAL Dimension threadIdx, blockIdx, blockDim, gridDim;

namespace emulator __attribute__((visibility("hidden"))) {

constexpr u32 MOST_SHARED_BYTES = 227 << 10;
// Where shared memory begins in its address space. Not 0: an address that forgets the base is out of bounds.
constexpr u32 SHARED_BASE = 1024;

enum Schedule : u32 { LOWEST_FIRST, HIGHEST_FIRST, RANDOM, ONE_WARP, NUM_SCHEDULES };
// When an asynchronous operation takes effect.
enum Asynchronous : u32 { AT_ONCE, AT_THE_WAIT, MIXED, NUM_ASYNCHRONOUS };

struct Launch {
  const char* kernel = "kernel";
  u32 blocks = 1, cluster = 1, threads = 32, shared_bytes = 0;  // `cluster`: blocks that run together
  u32 schedule = LOWEST_FIRST;
  u32 asynchronous = AT_THE_WAIT;
  u64 seed = 1;
  bool detect_races = true;  // and reads of shared memory that was never written
  bool programmatic = false;     // begins before the previous kernel has ended: every thread has to wait for that
};

struct Counters {
  u64 switches = 0, collectives = 0, mma = 0, async_copies = 0;
  u64 ldmatrix = 0, ldmatrix_extra = 0;  // 8-row phases; cycles lost to bank conflicts
  u64 shared = 0, shared_extra = 0;      // the same of loads and stores, in phases of 128 bytes
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
  Block& block(u32 rank) { return blocks_[rank]; }
  Block& block() { return blocks_[current->block]; }
  Barrier& barrier(u32 id) { return id == CLUSTER_BARRIER ? cluster_barrier_ : block().barriers[id]; }
  // Threads that will not come to the barrier.
  u32 exited(u32 barrier) {
    if (barrier == CLUSTER_BARRIER) return exited_;
    return barrier == BLOCK_BARRIER ? block().exited : 0;
  }

  // Where a shared address of a block lies in the memory of its cluster; without `rank`, of the running thread's.
  u32 place(u32 rank, u32 address, u32 bytes, Site at) const {
    if (address % bytes != 0) fault(at, "shared address %u is not a multiple of %u", address, bytes);
    u32 offset = address - SHARED_BASE;
    if (offset > launch_.shared_bytes || bytes > launch_.shared_bytes - offset) {
      fault(at, "%u bytes at shared address %u are outside the block's %u .. %u", bytes, address, SHARED_BASE,
            SHARED_BASE + launch_.shared_bytes);
    }
    return rank * block_bytes_ + offset;
  }
  u32 place(u32 address, u32 bytes, Site at) const { return place(current->block, address, bytes, at); }
  u8* memory(u32 place) const { return shared_.get() + place; }
  u32 block_of(u32 place) const { return place / block_bytes_; }

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
    for (u32 cluster : cluster_order()) {
      run_cluster(cluster);
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
    snprintf(place, sizeof place, ": block %u, thread %u, %s:%u: ", blockIdx.x, threadIdx.x, file_name(at), at.line);
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

  // Nothing is sound that a thread does before the previous kernel has ended, but to prepare.
  void check_waited(const char* what, Site at) const {
    if (launch_.programmatic && !current->has_waited) fault(at, "%s before it has waited for the previous kernel", what);
  }

  // Whether an asynchronous operation issued now takes effect now.
  bool takes_effect_at_once() {
    return launch_.asynchronous == AT_ONCE || (launch_.asynchronous == MIXED && random.coin());
  }

 private:
  const char* check_launch() const {
    if (launch_.blocks == 0) return "a grid has at least one block";
    if (launch_.cluster == 0 || launch_.cluster > MOST_CLUSTER_BLOCKS) return "a cluster has 1 to 8 blocks";
    if (launch_.blocks % launch_.cluster != 0) return "the blocks of a grid are whole clusters";
    if (launch_.threads == 0 || launch_.threads > MOST_THREADS) return "a block has 1 to 1024 threads";
    if (launch_.threads % 32 != 0) return "the threads of a block are whole warps";
    if (launch_.threads * launch_.cluster > MOST_CLUSTER_THREADS) return "more than 2048 threads in a cluster";
    if (launch_.shared_bytes > MOST_SHARED_BYTES) return "more shared memory than any device has";
    if (launch_.schedule >= NUM_SCHEDULES) return "schedules are 0 to 3";
    if (launch_.asynchronous >= NUM_ASYNCHRONOUS) return "the times of asynchronous effects are 0 to 2";
    return nullptr;
  }

  void allocate() {
    const u32 threads = launch_.cluster * launch_.threads;
    block_bytes_ = std::max(1u, (launch_.shared_bytes + 1023) / 1024) * 1024;
    stacks_.reserve(threads);
    threads_.resize(threads);
    warps_.assign(threads / 32, Warp());
    shared_.reset(static_cast<u8*>(aligned_alloc(1024, launch_.cluster * block_bytes_)));
    races.start_launch(launch_.detect_races, launch_.cluster, launch_.threads, block_bytes_);
    blockDim.x = launch_.threads;
    gridDim.x = launch_.blocks;
  }

  // Clusters are independent, so their order follows the schedule as well.
  std::vector<u32> cluster_order() {
    const u32 clusters = launch_.blocks / launch_.cluster;
    std::vector<u32> order(clusters);
    for (u32 i = 0; i < clusters; i++) order[i] = launch_.schedule == HIGHEST_FIRST ? clusters - 1 - i : i;
    if (launch_.schedule == RANDOM) {
      for (u32 i = clusters; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
    }
    return order;
  }

  void run_cluster(u32 cluster) {
    start_cluster(cluster);
    switch_to_next(Leave::for_now);
    while (fault_.empty() && !hopper.copies.empty()) {
      land_a_copy();
      switch_to_next(Leave::for_now);
    }
    if (fault_.empty() && exited_ < threads_.size()) report_deadlock();
  }

  void start_cluster(u32 cluster) {
    first_block_ = cluster * launch_.cluster;
    exited_ = 0;
    favourite_ = 0;
    // NaN in every type.
    const u32 bytes = launch_.cluster * block_bytes_;
    for (u32 i = 0; i < bytes; i += 2) memcpy(&shared_.get()[i], "\xff\x7f", 2);
    for (Warp& warp : warps_) warp.arrived = warp.exited = 0;
    blocks_.assign(launch_.cluster, Block());
    cluster_barrier_ = Barrier();
    ready_ = ThreadSet();
    for (u32 i = 0; i < threads_.size(); i++) start_thread(i);
    races.start_cluster();
    hopper.start_cluster(launch_.cluster, launch_.threads);
    current = nullptr;
  }

  void start_thread(u32 index) {
    Thread& thread = threads_[index];
    thread.index = index;
    thread.block = index / launch_.threads;
    thread.thread_idx = index % launch_.threads;
    thread.waits_in = "nothing";
    thread.waits_at = {"", 0};
    thread.cluster_syncs = 0;
    thread.copies.clear();
    thread.open_group = 0;
    thread.stores.clear();
    thread.open_store_group = thread.stores_issued = 0;
    thread.has_waited = false;
    prepare(thread.fiber, stacks_.stack(index), Stacks::BYTES, Stacks::offset(index), run_current_thread);
    ready_.insert(index);
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
    if (to) {
      threadIdx.x = to->thread_idx;
      blockIdx.x = first_block_ + to->block;
    }
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
    if (!hopper.mbarriers.empty()) races.release(current->index, block().done);
    if (++block().exited == launch_.threads) check_block_end();
    ready_.remove(current->index);
    switch_to_next(Leave::for_good);
  }

  void check_exit() {
    Thread& me = *current;
    check_waited("the thread ends", me.waits_at);
    if (!me.copies.empty()) {
      fault(me.copies[0].at, "the thread ends with %zu copies never waited for; this is the first", me.copies.size());
    }
    if (!me.stores.empty()) {
      fault(me.stores[0].at, "the thread ends with %zu stores not waited for by tma_wait_read; this is the first",
            me.stores.size());
    }
    if (!hopper.warpgroups[me.index / 128].products.empty()) {
      fault(me.waits_at, "the thread ends while products of its warpgroup are in flight: expected wgmma_wait");
    }
    if (warp().arrived != 0) {
      fault(warp().site, "the thread ends while %d lanes of its warp wait in %s",
            __builtin_popcount(warp().arrived), warp().collective);
    }
    check_nobody_waits("block", "sync_block", barrier(BLOCK_BARRIER));
    check_nobody_waits("cluster", "sync_cluster", cluster_barrier_);
  }

  void check_nobody_waits(const char* whose, const char* in, const Barrier& barrier) {
    if (barrier.warps == 0) return;
    fault(barrier.site, "the thread ends while %d warps of its %s wait in %s", __builtin_popcountll(barrier.warps),
          whose, in);
  }

  // Others may not reach into a block that has ended, nor copies land in it: by what orders its end after them, not
  // by the order in which they happened to run.
  void check_block_end() {
    for (const auto& [place, mbarrier] : hopper.mbarriers) {
      if (block_of(place) != current->block) continue;
      if (!races.knows(block().done, mbarrier.last_load)) {
        fault(mbarrier.last_load.at, "the block ends, and no thread of it has waited for this copy to its memory");
      }
      for (const Access& arrival : mbarrier.remote_arrivals) {
        if (races.knows(block().done, arrival)) continue;
        fault(arrival.at, "the block ends with nothing to order that after this arrival by %s: expected a sync_cluster",
              races.name(arrival.agent).text);
      }
    }
  }

  void report_deadlock() {
    std::map<std::string, u32> waiting;
    for (const Thread& thread : threads_) {
      if (warps_[thread.warp()].exited >> thread.lane() & 1) continue;
      std::string where = std::string(thread.waits_in) + " at " + file_name(thread.waits_at) + ":" +
                          std::to_string(thread.waits_at.line);
      if (launch_.cluster > 1) where += " in block " + std::to_string(first_block_ + thread.block);
      waiting[where]++;
    }
    fault_ = std::string(launch_.kernel) + ": block " + std::to_string(first_block_) + ": deadlock:";
    for (const auto& [where, threads] : waiting) {
      fault_ += " " + std::to_string(threads) + " threads wait in " + where + ";";
    }
    for (const auto& [place, mbarrier] : hopper.mbarriers) {
      if (!mbarrier.waiting.empty()) fault_ += " " + describe_mbarrier(place, mbarrier) + ";";
    }
    fault_ += describe_registers() + " " + std::to_string(exited_) + " have ended";
  }

  std::string describe_mbarrier(u32 place, const Mbarrier& mbarrier) const {
    MbarrierWord word;
    memcpy(&word, memory(place), 8);
    char text[256];
    snprintf(text, sizeof text,
             "the mbarrier at byte %u of block %u has completed %u phases and lacks %u arrivals and %d bytes, with %u "
             "bytes expected and %u loaded",
             place % block_bytes_, first_block_ + block_of(place), mbarrier.phases, (u32)word.pending,
             (i32)word.bytes, mbarrier.expected_bytes, mbarrier.loaded_bytes);
    return text;
  }

  std::string describe_registers() const {
    std::string text;
    for (const Warpgroup& group : hopper.warpgroups) {
      if (group.wanted_registers == 0) continue;
      text += " a warpgroup wants " + std::to_string(group.wanted_registers) + " registers a thread, has " +
              std::to_string(group.registers) + ", and " + std::to_string(blocks_[group.block].free_registers / 128) +
              " are free;";
    }
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
  std::vector<Block> blocks_;  // of the cluster that runs
  Barrier cluster_barrier_;
  u32 first_block_ = 0;        // of the cluster, in the grid
  ThreadSet ready_;
  u32 exited_ = 0;
  u32 favourite_ = 0;  // the warp that runs as long as it can
  u32 block_bytes_ = 0;        // of shared memory, rounded up to what keeps blocks aligned
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
