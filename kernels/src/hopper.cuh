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
// A kernel whose blocks come in clusters of `blocks`, that run at the same time and reach one another's shared memory.
#define KERNEL_CLUSTER(threads, blocks) __global__ void __cluster_dims__(blocks) __launch_bounds__(threads, 1)

// ---- clusters

// The place of the block in its cluster.
DEV u32 cluster_rank() { u32 rank; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); return rank; }
// Barrier of all threads of the cluster: before a block's mbarriers are used from another one, and before any block ends while others may
// still reach into it.
DEV void sync_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// ---- mbarriers: 8 bytes of shared memory, aligned to 8; a phase ends when all arrivals and all expected bytes have come

// Before use: all inits, `mbarrier_init_fence` by the same thread, a barrier of the block.
DEV void mbarrier_init(u32 address, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory"); }
DEV void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbarrier_arrive(u32 address) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory"); }
// An arrival that adds bytes to those the phase waits for.
DEV void mbarrier_arrive_expect(u32 address, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory"); }
// An arrival at the mbarrier that lies at `address` in block `rank` of the cluster.
DEV void mbarrier_arrive_at(u32 address, u32 rank) {
  asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(address), "r"(rank) : "memory");
}
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
// Of a map with heads, the box at column `x`, head `y`, row `z`: in shared memory the heads of a row one after the other.
DEV void tma_load(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y, i32 z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(destination), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z) : "memory");
}
// The matrix's to the same place in every block of the cluster whose bit is set in `blocks`; each counts the bytes at its own barrier.
DEV void tma_load_multicast(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y, u32 blocks) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(destination), "l"(map), "r"(barrier), "r"(x), "r"(y), "h"((u16)blocks) : "memory");
}
// Shared memory, aligned to 128, to the map's box at column `x`, row `y`; what is outside the matrix is not stored. Belongs to the thread's
// open group. Reads what threads stored only behind their `proxy_fence`.
DEV void tma_store(const TensorMap* map, u32 source, i32 x, i32 y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(source), "r"(x), "r"(y) : "memory");
}
DEV void tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most `N` of this thread's groups of stores have yet to read shared memory. Also before the block ends.
template <int N> DEV void tma_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
// Hints: the map itself, or its box at column `x`, row `y` into L2.
DEV void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
DEV void tma_prefetch(const TensorMap* map, i32 x, i32 y) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}

// ---- matrix products of a warpgroup: four warps, the first a multiple of four

// Begins each group of products: what the threads wrote to the accumulators is there.
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `N` groups are under way. Only then are accumulators and operands the threads' again.
template <int N> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// d[64, n] = a[64, 16] * b[n, 16] transposed, plus d if `accumulate`, for n = 64, 128, 256; f32 sums. Operands by descriptors.
template <class T, u32 N> DEV void wgmma(float (&d)[N], u64 a, u64 b, u32 accumulate);
// The same with a in registers, as the left operand of `mma16816`: each warp has 16 rows. They stay as they are until the wait. With
// TRANSPOSED the rows of b in shared memory are of k, not of n: `wgmma_transposed_operand`.
template <class T, bool TRANSPOSED, u32 N> DEV void wgmma_registers(float (&d)[N], const u32 (&a)[4], u64 b, u32 accumulate);
#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define D64(i) D32(i), D32(i + 32)
#define D128(i) D64(i), D64(i + 64)
#define REGISTERS32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define REGISTERS64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGISTERS128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA(type, name, n, half, a, b, accumulate) \
  template <> DEV void wgmma<type, half>(float (&d)[half], u64 desc_a, u64 desc_b, u32 add) { \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" accumulate ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." name "." name " {" REGISTERS##half "}, %" a ", %" b ", add, 1, 1, 0, 0;\n}" \
                 : D##half(0) : "l"(desc_a), "l"(desc_b), "r"(add)); \
  }
WGMMA(f16, "f16", "64", 32, "32", "33", "34")
WGMMA(bf16, "bf16", "64", 32, "32", "33", "34")
WGMMA(f16, "f16", "128", 64, "64", "65", "66")
WGMMA(bf16, "bf16", "128", 64, "64", "65", "66")
WGMMA(f16, "f16", "256", 128, "128", "129", "130")
WGMMA(bf16, "bf16", "256", 128, "128", "129", "130")
#undef WGMMA
#define WGMMA_REGISTERS(type, name, n, half, transposed, a0, a1, a2, a3, b, accumulate) \
  template <> DEV void wgmma_registers<type, transposed, half>(float (&d)[half], const u32 (&a)[4], u64 desc_b, u32 add) { \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" accumulate ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." name "." name " {" REGISTERS##half "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b ", add, 1, 1, " #transposed ";\n}" \
                 : D##half(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b), "r"(add)); \
  }
WGMMA_REGISTERS(f16, "f16", "64", 32, 0, "32", "33", "34", "35", "36", "37")
WGMMA_REGISTERS(bf16, "bf16", "64", 32, 0, "32", "33", "34", "35", "36", "37")
WGMMA_REGISTERS(f16, "f16", "64", 32, 1, "32", "33", "34", "35", "36", "37")
WGMMA_REGISTERS(bf16, "bf16", "64", 32, 1, "32", "33", "34", "35", "36", "37")
WGMMA_REGISTERS(f16, "f16", "128", 64, 1, "64", "65", "66", "67", "68", "69")
WGMMA_REGISTERS(bf16, "bf16", "128", 64, 1, "64", "65", "66", "67", "68", "69")
WGMMA_REGISTERS(f16, "f16", "256", 128, 1, "128", "129", "130", "131", "132", "133")
WGMMA_REGISTERS(bf16, "bf16", "256", 128, 1, "128", "129", "130", "131", "132", "133")
#undef WGMMA_REGISTERS
#undef REGISTERS32
#undef REGISTERS64
#undef REGISTERS128
#undef D8
#undef D32
#undef D64
#undef D128

// Has `x`, which is not negative, computed by here: a branch that is never taken. No value depends on a wait for products, so without it
// the compiler has them all waited for first, and then computes what was to be computed meanwhile.
DEV void computed(float x) { asm volatile("{\n.reg .pred never;\nsetp.lt.f32 never, %0, 0f00000000;\n@never trap;\n}" ::"f"(x) : "memory"); }

// Four 8 x 8 matrices of 16-bit elements to shared memory, laid out in registers as those of `ldmatrix4`.
DEV void stmatrix4(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

// ---- registers: moved between the warpgroups of a block, each as a whole; only under KERNEL_MIN_BLOCKS, which fixes the number at entry

// `threadIdx.x`, read anew: what is computed from it stays where it is written, and holds no registers before.
DEV u32 thread_index() { u32 index; asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index)); return index; }
// The same number, of which the compiler knows nothing: what is computed from it is computed where it is written.
DEV u32 opaque(u32 x) { asm volatile("" : "+r"(x)); return x; }
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

// The same of an operand whose rows are of k: 64 columns of n, 128 bytes, swizzled alike; further columns `block_bytes` on, in a block of
// their own. 16 elements further along k are 16 rows further.
DEV u64 wgmma_transposed_operand(u32 address, u32 block_bytes) {
  return (wgmma_operand(address) & ~((u64)0x3fff << 16)) | (u64)(block_bytes >> 4 & 0x3fff) << 16;
}
