// What the threads of a warp or of a block do together.
#pragma once

#include "simt.h"

namespace emulator __attribute__((visibility("hidden"))) {

constexpr u32 ALL_LANES = ~0u;

// The running lane joins its warp's open collective, or opens one. True for the last lane: the collective is
// complete.
inline bool join_warp(const char* collective, Site at, void* operand) {
  Warp& warp = machine->warp();
  if (warp.exited != 0) {
    fault(at, "%s, but %d lanes of the warp have ended", collective, __builtin_popcount(warp.exited));
  }
  if (warp.arrived == 0) {
    warp.collective = collective;
    warp.site = at;
  } else if (!same_text(warp.collective, collective) || !same_site(warp.site, at)) {
    fault(at, "%s, while %d other lanes of the warp wait in %s at %s:%u", collective, __builtin_popcount(warp.arrived),
          warp.collective, file_name(warp.site), warp.site.line);
  }
  u32 lane = machine->current->lane();
  warp.operands[lane] = operand;
  warp.arrived |= 1u << lane;
  if (warp.arrived != ALL_LANES) return false;
  warp.arrived = 0;
  machine->counters.collectives++;
  if (machine->count_banks) warp.banks.close();
  return true;
}

// Each lane brings an operand; the last calls `perform` with those of all lanes.
template <class Operand, class Perform>
inline void warp_collective(const char* name, Site at, Operand& mine, Perform perform) {
  if (!join_warp(name, at, &mine)) return machine->wait(name, at);
  perform(reinterpret_cast<Operand* const*>(machine->warp().operands));
  machine->wake(machine->current->warp(), ALL_LANES);
}

// ---- barriers

// Those who wait at the barrier go on, knowing what all have done; the others are woken.
inline void open_barrier(Barrier& barrier) {
  for (u64 warps = barrier.warps; warps != 0; warps &= warps - 1) {
    u32 warp = (u32)__builtin_ctzll(warps);
    for (u32 lane = 0; lane < 32; lane++) machine->races.acquire(warp * 32 + lane, barrier.clock);
    machine->wake(warp, ALL_LANES);
  }
  barrier = Barrier();
}

// Warps arrive at a barrier as a whole, so it is a collective of the warp first.
inline void barrier(const char* name, u32 id, u32 threads, Site at) {
  Barrier& barrier = machine->barrier(id);
  if (barrier.warps != 0 && barrier.threads != threads) {
    fault(at, "barrier %u of %u threads, while others wait in it for %u threads at %s:%u", id, threads, barrier.threads,
          file_name(barrier.site), barrier.site.line);
  }
  if (u32 exited = machine->exited(id)) {
    fault(at, "%s, but %u threads of the %s have ended", name, exited, id == CLUSTER_BARRIER ? "cluster" : "block");
  }
  machine->races.release(machine->current->index, barrier.clock);
  if (!join_warp(name, at, nullptr)) return machine->wait(name, at);

  barrier.threads = threads;
  barrier.site = at;
  barrier.warps |= 1ull << machine->current->warp();
  if ((u32)__builtin_popcountll(barrier.warps) * 32 < threads) return machine->wait(name, at);
  open_barrier(barrier);
}

inline void named_barrier(u32 id, u32 threads, Site at) {
  if (id < 1 || id > 15) fault(at, "named barriers are 1 to 15, not %u", id);
  if (threads == 0 || threads % 32 != 0 || threads > machine->launch().threads) {
    fault(at, "a barrier for %u threads in a block of %u: expected whole warps of the block", threads,
          machine->launch().threads);
  }
  barrier("sync_named", id, threads, at);
}

inline void sync_cluster(Site at) {
  barrier("sync_cluster", CLUSTER_BARRIER, machine->launch().cluster * blockDim.x, at);
  machine->current->cluster_syncs++;
}

// The only collective of the warp that orders its memory accesses.
inline void warp_barrier(Site at) {
  struct Nothing {
  } nothing;
  warp_collective("sync_warp", at, nothing, [](Nothing* const*) {
    if (!machine->races.on) return;
    u32 first = machine->current->warp() * 32;
    Clock clock;
    for (u32 lane = 0; lane < 32; lane++) machine->races.release(first + lane, clock);
    for (u32 lane = 0; lane < 32; lane++) machine->races.acquire(first + lane, clock);
  });
}

// ---- shuffles

// The value that lane `from` brings.
template <class T>
inline T shuffle(const char* name, T value, u32 from, Site at) {
  struct Operand {
    T value;
    u32 from;
    T result;
  } mine = {value, from, value};
  if (from > 31) fault(at, "%s from lane %u of 32", name, from);
  warp_collective(name, at, mine, [](Operand* const* lanes) {
    for (u32 lane = 0; lane < 32; lane++) lanes[lane]->result = lanes[lanes[lane]->from]->value;
  });
  return mine.result;
}

}  // namespace emulator
