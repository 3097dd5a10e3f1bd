// Bank conflicts of shared memory: 32 banks of 4 bytes. An instruction of a warp takes one cycle for each 128 bytes,
// and one more for every further row of the same bank.
#pragma once

#include <vector>

#include "base.h"

namespace emulator __attribute__((visibility("hidden"))) {

// Cycles to serve `count` accesses of `unit` bytes (4, or 16: four banks at a time) that together ask for at most 128
// bytes. Equal addresses are served together.
inline u32 bank_cycles(const u32* addresses, u32 count, u32 unit) {
  u32 distinct[32][32], depth[32] = {}, cycles = 0;
  for (u32 i = 0; i < count; i++) {
    u32 index = addresses[i] / unit, bank = index % (128 / unit), k = 0;
    while (k < depth[bank] && distinct[bank][k] != index) k++;
    if (k == depth[bank]) distinct[bank][depth[bank]++] = index;
    if (depth[bank] > cycles) cycles = depth[bank];
  }
  return cycles;
}

// Lanes run one after another; this finds out which of their loads and stores are one instruction of the warp: the
// n-th of a lane from some site goes with the n-th of the others, counted from where the warp last met.
class BankLog {
 public:
  u64 accesses = 0;      // cycles without conflicts
  u64 extra_cycles = 0;  // because of them

  void record(u32 lane, u32 address, u32 bytes, Site at) {
    for (u32 i = cursor_[lane]; i < open_.size(); i++) {
      Instruction& instruction = open_[i];
      if (same_site(instruction.at, at) && !(instruction.lanes >> lane & 1)) {
        instruction.lanes |= 1u << lane;
        instruction.address[lane] = address;
        cursor_[lane] = i + 1;
        return;
      }
    }
    if (open_.size() == MOST_OPEN) close();
    open_.push_back({at, bytes, 1u << lane, {}});
    open_.back().address[lane] = address;
    cursor_[lane] = (u32)open_.size();
  }

  // The warp meets: what is open is complete.
  void close() {
    for (const Instruction& instruction : open_) count(instruction);
    open_.clear();
    memset(cursor_, 0, sizeof cursor_);
  }

 private:
  static constexpr size_t MOST_OPEN = 4096;

  struct Instruction {
    Site at;
    u32 bytes;
    u32 lanes;
    u32 address[32];
  };

  // 16-byte accesses are served a quarter of the warp at a time.
  void count(const Instruction& instruction) {
    u32 lanes_at_a_time = 128 / instruction.bytes;
    for (u32 first = 0; first < 32; first += lanes_at_a_time) {
      u32 addresses[32], n = 0;
      for (u32 lane = first; lane < first + lanes_at_a_time; lane++) {
        if (instruction.lanes >> lane & 1) addresses[n++] = instruction.address[lane];
      }
      if (n == 0) continue;
      accesses++;
      extra_cycles += bank_cycles(addresses, n, instruction.bytes) - 1;
    }
  }

  std::vector<Instruction> open_;
  u32 cursor_[32] = {};
};

}  // namespace emulator
