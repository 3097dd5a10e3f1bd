// The emulated bodies of the wrappers in ../src/hopper.cuh, in its order.
#pragma once

#include "bulk_copies.h"
#include "mbarriers.h"
#include "warpgroups.h"
#include "wrappers.h"

#define TENSOR_MAP const TensorMap
#define KERNEL_CLUSTER(threads, blocks) inline void

#define SITE emulator::Site at = emulator::Site::here()

// ---- clusters

inline u32 cluster_rank() { return emulator::machine->current->block; }
inline void sync_cluster(SITE) { emulator::sync_cluster(at); }

// ---- mbarriers

inline void mbarrier_init(u32 address, u32 arrivals, SITE) { emulator::init_mbarrier(address, arrivals, at); }
inline void mbarrier_init_fence() { emulator::fence_mbarriers(); }
inline void mbarrier_arrive(u32 address, SITE) { emulator::arrive(cluster_rank(), address, 0, at); }
inline void mbarrier_arrive_expect(u32 address, u32 bytes, SITE) {
  emulator::arrive(cluster_rank(), address, bytes, at);
}
inline void mbarrier_arrive_at(u32 address, u32 rank, SITE) { emulator::arrive(rank, address, 0, at); }
inline void mbarrier_wait(u32 address, u32 parity, SITE) { emulator::wait_for_phase(address, parity, at); }

inline void proxy_fence() { emulator::machine->races.proxy_fence(emulator::machine->current->index); }

// ---- bulk tensor copies

inline void tma_load(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y, SITE) {
  emulator::load_box(destination, *map, barrier, {x, 0, y}, 2, at);
}
inline void tma_load(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y, i32 z, SITE) {
  emulator::load_box(destination, *map, barrier, {x, y, z}, 3, at);
}
inline void tma_load_multicast(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y, u32 blocks, SITE) {
  emulator::multicast_box(destination, *map, barrier, x, y, blocks, at);
}
inline void tma_store(const TensorMap* map, u32 source, i32 x, i32 y, SITE) {
  emulator::store_box(*map, source, x, y, at);
}
inline void tma_commit() { emulator::commit_stores(); }
template <int N>
inline void tma_wait_read() {
  emulator::wait_for_stores(N);
}
inline void prefetch_map(const TensorMap* map, SITE) { emulator::check_prefetched_map(map, at); }
inline void tma_prefetch(const TensorMap* map, i32, i32, SITE) { emulator::check_prefetched_map(map, at); }

// ---- matrix products of a warpgroup

inline void wgmma_fence(SITE) { emulator::fence_accumulators(at); }
inline void wgmma_commit(SITE) { emulator::commit_products(at); }
template <int N>
inline void wgmma_wait(SITE) {
  emulator::wait_for_products(N, at);
}
template <class T, u32 N>
inline void wgmma(float (&d)[N], u64 a, u64 b, u32 accumulate, SITE) {
  static_assert(N == 32 || N == 64 || N == 128, "64, 128 or 256 columns");
  emulator::issue_product<T, 2 * N>(d, a, nullptr, b, false, accumulate != 0, at);
}
template <class T, bool TRANSPOSED, u32 N>
inline void wgmma_registers(float (&d)[N], const u32 (&a)[4], u64 b, u32 accumulate, SITE) {
  static_assert(N == 32 || N == 64 || N == 128, "64, 128 or 256 columns");
  emulator::issue_product<T, 2 * N>(d, 0, a, b, TRANSPOSED, accumulate != 0, at);
}

inline void computed(float) {}

inline void stmatrix4(u32 address, u32 r0, u32 r1, u32 r2, u32 r3, SITE) {
  emulator::store_matrices({r0, r1, r2, r3}, address, at);
}

// ---- registers

inline u32 thread_index() { return threadIdx.x; }
inline u32 opaque(u32 x) { return x; }
template <int N>
inline void take_registers(SITE) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8");
  emulator::take_registers(N, at);
}
template <int N>
inline void give_registers(SITE) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8");
  emulator::give_registers(N, at);
}

#undef SITE
