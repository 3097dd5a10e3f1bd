// What a cluster has of Hopper's asynchronous operations; the operations are in mbarriers.h, bulk_copies.h and
// warpgroups.h.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "base.h"
#include "race.h"

namespace emulator __attribute__((visibility("hidden"))) {

// The state of an mbarrier is a 64-bit word in shared memory.
struct MbarrierWord {
  u64 phase : 1, expected : 20, pending : 20;
  i64 bytes : 22;  // still to come in this phase
};
static_assert(sizeof(MbarrierWord) == 8, "as on the device");

// What the emulator knows about it besides.
struct Mbarrier {
  MbarrierWord* word;
  u32 agent;               // for the race detector: does what the copies do that count here
  u32 phases = 0;          // completed
  u32 expected_bytes = 0;  // in this phase so far,
  u32 loaded_bytes = 0;    // and by the copies issued in it
  u32 initialiser = 0;     // the thread,
  u32 cluster_syncs = 0;   // and how many of these it had passed
  bool fenced = false;     // visible to asynchronous operations and other blocks
  Clock arriving;          // what those have done who arrived in all phases,
  Clock completed;         // and in the completed ones
  Access last_load;
  std::vector<Access> remote_arrivals;  // from other blocks: of each thread the last
  std::vector<u32> waiting;
};

// A product on its way.
struct Wgmma {
  u64 a, b;
  const u32* registers[128];  // of a, in place of its descriptor
  bool from_registers, transposed;
  float* d[128];
  bool accumulate;
  bool done;
  u32 group;
  void (*perform)(Wgmma&);
};

struct Warpgroup {
  u32 block = 0;
  u32 arrived = 0;
  const char* collective = "";
  Site site = {"", 0};
  void* operands[128];
  bool fenced = false;       // since the last group was committed
  u32 open_group = 0;
  u32 issued = 0;            // products, of all groups
  u32 agent = 0;             // for the race detector: reads the operands
  std::vector<Wgmma> products;
  u32 registers = 0;         // of each thread
  u32 wanted_registers = 0;  // not 0: waits until there are as many
};

constexpr u32 NUM_REGISTERS = 65536;  // of a multiprocessor

struct Hopper {
  std::map<u32, Mbarrier> mbarriers;  // by place in the cluster's memory
  std::vector<Warpgroup> warpgroups;  // of all blocks
  std::deque<std::function<void()>> copies;  // in flight

  void start_cluster(u32 blocks, u32 block_threads) {
    mbarriers.clear();
    copies.clear();
    warpgroups.assign((blocks * block_threads + 127) / 128, Warpgroup());
    for (u32 i = 0; i < warpgroups.size(); i++) {
      warpgroups[i].block = i * 128 / block_threads;
      warpgroups[i].registers = std::min(256u, NUM_REGISTERS / block_threads / 8 * 8);
    }
  }
};

}  // namespace emulator
