// What kernels for sm_90a take from the hardware beyond hardware.cuh: mbarriers, bulk tensor copies, warpgroup matrix products.
//
// The rules of hardware.cuh hold. These operations run beside the threads that issue them; who may touch what, and when, is said at
// each wrapper, and the emulator insists on it.
#pragma once

#include "hardware.cuh"

#ifdef __CUDACC_RTC__

// A matrix in global memory, and the box and swizzle of its copies: CUtensorMap, encoded by the driver.
struct alignas(64) TensorMap { u64 opaque[16]; };
// A kernel parameter of that type.
#define TENSOR_MAP const __grid_constant__ TensorMap

// ---- mbarriers: 8 bytes of shared memory, aligned to 8; a phase ends when all arrivals and all expected bytes have come

// Before use: all inits, `mbarrier_init_fence` by the same thread, a barrier of the block.
DEV void mbarrier_init(u32 address, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory"); }
DEV void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbarrier_arrive(u32 address) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory"); }
// An arrival that adds bytes to those the phase waits for.
DEV void mbarrier_arrive_expect(u32 address, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory"); }
// Waits until the phase of this parity has ended; phases count from 0.
DEV void mbarrier_wait(u32 address, u32 parity) {
  asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::"r"(address), "r"(parity) : "memory");
}

// After ordinary stores to shared memory that asynchronous operations will read: by the thread that stored, before the barrier that
// the issuing thread waits at.
DEV void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk tensor copies

// The map's box at column `x`, row `y` to shared memory, aligned to 128; zeros outside the matrix. Counts all its bytes at the barrier.
DEV void tma_load(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(destination), "l"(map), "r"(barrier), "r"(x), "r"(y) : "memory");
}

// ---- matrix products of a warpgroup: four warps, the first a multiple of four

// Begins each group of products: what the threads wrote to the accumulators is there.
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `N` groups are under way. Only then are accumulators and operands the threads' again.
template <int N> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// d[64, 64] = a[64, 16] * b[64, 16] transposed, plus d if `accumulate`; f32 sums. Operands by descriptors.
template <class T> DEV void wgmma64(float (&d)[32], u64 a, u64 b, u32 accumulate);
#define WGMMA8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA64(type, name) \
  template <> DEV void wgmma64<type>(float (&d)[32], u64 a, u64 b, u32 accumulate) { \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " " \
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, " \
                 "%32, %33, accumulate, 1, 1, 0, 0;\n}" \
                 : WGMMA8(0), WGMMA8(8), WGMMA8(16), WGMMA8(24) : "l"(a), "l"(b), "r"(accumulate)); \
  }
WGMMA64(f16, "f16")
WGMMA64(bf16, "bf16")
#undef WGMMA64
#undef WGMMA8

// ---- registers: moved between the warpgroups of a block, each as a whole; only under KERNEL_MIN_BLOCKS, which fixes the number at entry

template <int N> DEV void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEV void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

#else

#include "../emulator/hopper.h"

#endif

// ---- the same everywhere

// Descriptor of a wgmma operand: rows of 64 elements of k, 128 bytes, in groups of 8 rows, each group aligned to 1024 and swizzled over
// 128 bytes as a tensor map does it. 16 elements further along k are 32 bytes further.
DEV u64 wgmma_operand(u32 address) {
  return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
