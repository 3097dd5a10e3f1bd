// mbarriers, in the running thread's block and in others of its cluster.
#pragma once

#include "collectives.h"

namespace emulator __attribute__((visibility("hidden"))) {

// Before something of another block is touched.
inline void check_block(u32 rank, Site at) {
  if (rank >= machine->launch().cluster) {
    fault(at, "block %u of a cluster of %u", rank, machine->launch().cluster);
  }
  if (machine->block(rank).exited == blockDim.x) fault(at, "block %u of the cluster has ended", rank);
}

// The mbarrier at `address` in block `rank` of the cluster.
inline Mbarrier& find_mbarrier(u32 rank, u32 address, Site at) {
  const Thread& me = *machine->current;
  const u32 place = machine->place(rank, address, 8, at);
  auto found = machine->hopper.mbarriers.find(place);
  if (found == machine->hopper.mbarriers.end()) {
    fault(at, "no mbarrier was initialised at shared address %u of the cluster's block %u", address, rank);
  }
  Mbarrier& mbarrier = found->second;
  if (rank != me.block) {
    if (!mbarrier.fenced) fault(at, "the mbarrier was initialised with no mbarrier_init_fence since");
    if (me.cluster_syncs <= mbarrier.cluster_syncs) {
      fault(at, "the mbarrier of the cluster's block %u was initialised with no sync_cluster since", rank);
    }
  }
  machine->races.check_ordered(me.index, place, 8, at);
  return mbarrier;
}

inline void init_mbarrier(u32 address, u32 arrivals, Site at) {
  const Thread& me = *machine->current;
  const u32 place = machine->place(address, 8, at);
  if (arrivals == 0 || arrivals >= 1u << 20) fault(at, "an mbarrier for %u arrivals: expected 1 to 1048575", arrivals);
  machine->races.write(me.index, place, 8, at);
  Mbarrier mbarrier;
  mbarrier.word = reinterpret_cast<MbarrierWord*>(machine->memory(place));
  *mbarrier.word = {0, arrivals, arrivals, 0};
  mbarrier.agent = machine->races.new_agent();
  mbarrier.initialiser = me.index;
  mbarrier.cluster_syncs = me.cluster_syncs;
  if (!machine->hopper.mbarriers.emplace(place, mbarrier).second) fault(at, "the mbarrier is initialised twice");
}

inline void fence_mbarriers() {
  for (auto& [place, mbarrier] : machine->hopper.mbarriers) {
    if (mbarrier.initialiser == machine->current->index) mbarrier.fenced = true;
  }
}

// When no arrival can raise what the phase expects.
inline void check_bytes(const Mbarrier& mbarrier, Site at) {
  if (mbarrier.word->pending == 0 && mbarrier.loaded_bytes > mbarrier.expected_bytes) {
    fault(at, "%u bytes are loaded in a phase of the mbarrier that expects %u", mbarrier.loaded_bytes,
          mbarrier.expected_bytes);
  }
}

// Ends the phase if all has come; then those who wait look again.
inline void end_phase_if_complete(Mbarrier& mbarrier) {
  MbarrierWord* word = mbarrier.word;
  if (word->pending != 0 || word->bytes != 0) return;
  word->phase ^= 1;
  word->pending = word->expected;
  mbarrier.expected_bytes = mbarrier.loaded_bytes = 0;
  mbarrier.phases++;
  machine->races.learn(mbarrier.arriving, mbarrier.agent, mbarrier.phases);
  mbarrier.completed = mbarrier.arriving;
  for (u32 thread : mbarrier.waiting) machine->wake(thread / 32, 1u << thread % 32);
  mbarrier.waiting.clear();
}

// Decides whether the block's end is ordered after the arrivals of others.
inline void note_remote_arrival(Mbarrier& mbarrier, Access arrival) {
  for (Access& earlier : mbarrier.remote_arrivals) {
    if (earlier.agent != arrival.agent) continue;
    earlier = arrival;
    return;
  }
  mbarrier.remote_arrivals.push_back(arrival);
}

inline void arrive(u32 rank, u32 address, u32 bytes, Site at) {
  const Thread& me = *machine->current;
  check_block(rank, at);
  Mbarrier& mbarrier = find_mbarrier(rank, address, at);
  MbarrierWord* word = mbarrier.word;
  if (word->pending == 0) fault(at, "more than the %u arrivals that the mbarrier expects", (u32)word->expected);
  if (bytes >= 1u << 20) fault(at, "%u bytes in a phase of an mbarrier: expected at most 1048575", bytes);
  if (rank != me.block) note_remote_arrival(mbarrier, machine->races.step(me.index, at));
  machine->races.release(me.index, mbarrier.arriving);
  mbarrier.expected_bytes += bytes;
  word->bytes += bytes;
  word->pending--;
  check_bytes(mbarrier, at);
  end_phase_if_complete(mbarrier);
}

// By its parity, a wait means the last phase that the thread knows to be complete or the next one: it could not tell
// any other. If the mbarrier is further than the phase after, it has not waited for this thread, and parity misleads.
inline void check_not_overtaken(const Mbarrier& mbarrier, u32 parity, Site at) {
  if (!machine->races.on) return;
  const u32 known = machine->races.known(machine->current->index, mbarrier.agent);
  const u32 meant = known % 2 == parity ? known + 1 : known;  // complete when the wait ends
  if (mbarrier.phases > meant) {
    fault(at, "a wait for the end of phase %d (parity %u), but the mbarrier has completed %u: nothing held it back",
          (int)meant - 1, parity, mbarrier.phases);
  }
}

inline void wait_for_phase(u32 address, u32 parity, Site at) {
  const Thread& me = *machine->current;
  Mbarrier& mbarrier = find_mbarrier(me.block, address, at);
  if (parity > 1) fault(at, "parity %u: expected 0 or 1", parity);
  if (machine->launch().asynchronous == MIXED && !machine->hopper.copies.empty() && machine->random.coin()) {
    machine->land_a_copy();
  }
  check_not_overtaken(mbarrier, parity, at);
  while (mbarrier.word->phase == parity) {
    mbarrier.waiting.push_back(me.index);
    machine->wait("mbarrier_wait", at);
    check_not_overtaken(mbarrier, parity, at);
  }
  machine->races.acquire(me.index, mbarrier.completed);
}

}  // namespace emulator
