// The threads of a cluster of blocks, as the machine in simt.h keeps them. Threads and warps are numbered through all
// blocks of the cluster; a block alone is a cluster of one.
#pragma once

#include <functional>
#include <vector>

#include "banks.h"
#include "base.h"
#include "fiber.h"
#include "race.h"

namespace emulator __attribute__((visibility("hidden"))) {

constexpr u32 MOST_THREADS = 1024;          // of a block
constexpr u32 MOST_CLUSTER_THREADS = 2048;  // of all blocks of a cluster
constexpr u32 MOST_CLUSTER_BLOCKS = 8;

// 16 bytes on their way to shared memory.
struct Copy {
  u32 destination;  // in the cluster's memory
  const void* source;
  bool valid;
  bool done;
  u32 group;
  Site at;
};

// A box on its way from shared memory.
struct BulkStore {
  std::function<void()> perform;  // null when done
  u32 group;
  Site at;
};

struct Thread {
  Fiber fiber;
  u32 index = 0;       // in the cluster
  u32 block = 0;       // of the cluster
  u32 thread_idx = 0;  // in the block
  const char* waits_in = "";
  Site waits_at = {"", 0};
  u32 cluster_syncs = 0;     // passed
  std::vector<Copy> copies;  // in the order of their issue
  u32 open_group = 0;
  std::vector<BulkStore> stores;
  u32 open_store_group = 0;
  u32 stores_issued = 0;
  u32 store_agent = 0;  // for the race detector: reads what they store
  bool has_waited = false;  // for the previous kernel

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
  u64 warps = 0;    // that wait
  u32 threads = 0;  // that it is for
  Site site = {"", 0};
  Clock clock;      // what those who wait have done
};

// Barriers of a block are 0 (of all its threads) to 15. One more is that of all threads of the cluster.
constexpr u32 BLOCK_BARRIER = 0, NUM_BARRIERS = 16, CLUSTER_BARRIER = 16;

struct Block {
  Barrier barriers[NUM_BARRIERS];
  u32 exited = 0;          // threads
  Clock done;              // what those have done
  u32 free_registers = 0;  // given up by warpgroups, for others to take
};

// Threads of a cluster, with the smallest, the largest or a random one in a few instructions.
struct ThreadSet {
  u64 warps = 0;  // with any lane
  u32 lanes[MOST_CLUSTER_THREADS / 32] = {};

  void insert(u32 thread) { insert_lanes(thread / 32, 1u << thread % 32); }
  void insert_lanes(u32 warp, u32 mask) {
    lanes[warp] |= mask;
    warps |= 1ull << warp;
  }
  void remove(u32 thread) {
    lanes[thread / 32] &= ~(1u << thread % 32);
    if (lanes[thread / 32] == 0) warps &= ~(1ull << thread / 32);
  }
  u32 lowest() const {
    u32 warp = (u32)__builtin_ctzll(warps);
    return warp * 32 + (u32)__builtin_ctz(lanes[warp]);
  }
  u32 highest() const {
    u32 warp = 63 - (u32)__builtin_clzll(warps);
    return warp * 32 + 31 - (u32)__builtin_clz(lanes[warp]);
  }
  u32 random(Random& random) const {
    u32 warp = random_bit(warps, random);
    return warp * 32 + random_bit(lanes[warp], random);
  }
  static u32 random_bit(u64 mask, Random& random) {
    for (u32 skip = random.below((u32)__builtin_popcountll(mask)); skip > 0; skip--) mask &= mask - 1;
    return (u32)__builtin_ctzll(mask);
  }
};

}  // namespace emulator
