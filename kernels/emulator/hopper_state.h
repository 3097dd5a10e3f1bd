// What a block has of Hopper's asynchronous operations; the operations are in hopper.h.
#pragma once

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
  u32 agent;            // for the race detector: does what the copies do that count here
  u32 phases = 0;       // completed
  u32 initialiser = 0;  // the thread
  bool fenced = false;  // visible to asynchronous operations
  Clock arriving;       // what those have done who arrived in all phases,
  Clock completed;      // and in the completed ones
  std::vector<u32> waiting;
};

// A product on its way.
struct Wgmma {
  u64 a, b;
  float* d[128];
  bool accumulate;
  bool done;
  u32 group;
  void (*perform)(Wgmma&);
};

struct Warpgroup {
  u32 arrived = 0;
  const char* collective = "";
  Site site = {"", 0};
  void* operands[128];
  bool fenced = false;  // since the last group was committed
  u32 open_group = 0;
  u32 issued = 0;       // products, of all groups
  u32 agent = 0;        // for the race detector: reads the operands
  std::vector<Wgmma> products;
};

struct Hopper {
  std::map<u32, Mbarrier> mbarriers;  // by address
  std::vector<Warpgroup> warpgroups;
  std::deque<std::function<void()>> copies;  // in flight

  void start_block(u32 threads) {
    mbarriers.clear();
    warpgroups.assign((threads + 127) / 128, Warpgroup());
    copies.clear();
  }
};

}  // namespace emulator
