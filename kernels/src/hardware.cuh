// Everything that kernels take from the hardware: types, shared memory, collectives, tensor cores, asynchronous copies.
//
// A kernel uses these wrappers and plain C++, nothing else: no inline PTX, no toolkit header, no `__shared__` variable, no
// pointer into shared memory. That is what lets the same file run on a GPU and, with the bodies in ../emulator, on a CPU where
// races, bounds and bank conflicts are seen. A wrapper and its emulated body are changed together.
//
// Shared memory is one dynamic buffer, addressed by 32-bit byte addresses from `smem_base()` on. Kernels are templates; the launch
// code names an instance by its C++ expression.
#pragma once

#ifdef __CUDACC_RTC__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#define DEV __device__ __forceinline__
#define KERNEL(threads) __global__ void __launch_bounds__(threads)
#define KERNEL_MIN_BLOCKS(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define offset_of(type, field) __INTADDR__(&((type*)0)->field)

// The bits of an IEEE half and of a bfloat16.
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
// Vectors of one memory access.
struct alignas(8) u32x2 { u32 x, y; };
struct alignas(16) u32x4 { u32 x, y, z, w; };

extern __shared__ __align__(1024) u8 smem_raw[];

// ---- numbers

DEV float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEV u32 float_to_bits(float x) { return __float_as_uint(x); }
DEV float to_float(float x) { return x; }
DEV float to_float(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
DEV float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
template <class T> DEV T from_float(float x);
template <> DEV float from_float<float>(float x) { return x; }
template <> DEV f16 from_float<f16>(float x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
template <> DEV bf16 from_float<bf16>(float x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
// Two values in one register, `lo` in the lower half.
template <class T> DEV u32 pack2(float lo, float hi);
template <> DEV u32 pack2<f16>(float lo, float hi) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
template <> DEV u32 pack2<bf16>(float lo, float hi) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
template <class T> DEV float unpack_lo(u32 v) { T x; x.bits = (u16)v; return to_float(x); }
template <class T> DEV float unpack_hi(u32 v) { T x; x.bits = (u16)(v >> 16); return to_float(x); }
// 2^x, 1/x, 1/sqrt(x) of the special-function unit: 2 ulp; subnormal results are zero.
DEV float fast_exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float fast_rcp(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEV float fast_rsqrt(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
// Correctly rounded a * b + c, a / b, sqrt(x); and the CUDA math library's erff and tanhf, which need no wrapper.
DEV float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEV float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEV float sqrt_rn(float x) { return __fsqrt_rn(x); }

// ---- shared memory

DEV u32 smem_base() { return (u32)__cvta_generic_to_shared(smem_raw); }
DEV void sts32(u32 address, u32 v) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory"); }
DEV u32 lds32(u32 address) { u32 v; asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory"); return v; }
DEV void sts128(u32 address, u32x4 v) { asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
DEV u32x4 lds128(u32 address) { u32x4 v; asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory"); return v; }
DEV void sts_f32(u32 address, float v) { sts32(address, __float_as_uint(v)); }
DEV float lds_f32(u32 address) { return __uint_as_float(lds32(address)); }

// ---- barriers and warp collectives; every thread of the block, or of the warp, takes part

DEV void sync_block() { asm volatile("bar.sync 0;" ::: "memory"); }
// Barrier `id` of 1 .. 15 among `threads` threads, a multiple of 32.
DEV void sync_named(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV void sync_warp() { __syncwarp(); }
DEV float shfl_xor(float v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEV u32 shfl_xor(u32 v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
// The value of the lane `delta` below; lanes under `delta` keep their own.
DEV u32 shfl_up(u32 v, u32 delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
// The value of lane `lane`.
DEV u32 shfl(u32 v, u32 lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEV float shfl(float v, u32 lane) { return __shfl_sync(0xffffffffu, v, lane); }

// How many lanes say so.
DEV u32 count_lanes(bool v) { return __popc(__ballot_sync(0xffffffffu, v)); }

// ---- tensor cores: PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix"

// Four 8 x 8 matrices of 16-bit elements; lane `8 i + r` gives the address of row `r` of matrix `i`.
DEV void ldmatrix4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// The same, each matrix transposed.
DEV void ldmatrix4_trans(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// d[16, 8] += a[16, 16] * b[8, 16] transposed, f32 sums.
template <class T> DEV void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
#define MMA16816(type, name) \
  template <> DEV void mma16816<type>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
  }
MMA16816(f16, "f16")
MMA16816(bf16, "bf16")
#undef MMA16816

// ---- asynchronous copies

// 16 bytes from global to shared memory, both aligned to 16; zeros if not `valid` (then `source` is not read, but must be a pointer).
DEV void cp_async16(u32 destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(valid ? 16 : 0) : "memory");
}
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `N` of this thread's groups are under way.
template <int N> DEV void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- launches that overlap: PTX ISA, "griddepcontrol". GPUs before Hopper do not know them.

// Every kernel calls both, in this order, in all its threads. Before the first it touches nothing in global memory, hints aside.

// Waits until the kernel before this one has ended and all its writes can be seen, where this one was launched to begin before that. As
// no block ends without it, a kernel that has ended says the same of all before it.
DEV void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel begin, up to its own wait, as soon as every block has come here. Right behind the wait: then all blocks of this kernel
// have their places, so those of the next take what is left over and nothing from anyone, however early they come. And not before the wait:
// then kernels without number would begin ahead of their time, and one would not know that its predecessors but the last have ended.
DEV void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else

#include "../emulator/wrappers.h"

#endif

// ---- the same everywhere

template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };

// A number that a batch decides. Kernels read it from device memory, so that a recorded launch serves every batch; the launch geometry
// follows from the bound alone.
struct Size {
  const u32* address;  // null: the number is `bound`
  u32 bound;
  u32 unused;
};
DEV u32 size_of(Size s) { return s.address ? *s.address : s.bound; }

template <class T> DEV T min(T a, T b) { return b < a ? b : a; }
template <class T> DEV T max(T a, T b) { return a < b ? b : a; }
DEV u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// Sum over the warp, the same tree whatever the values; every lane has it.
DEV float warp_sum(float v) {
  for (u32 mask = 16; mask > 0; mask /= 2) v += shfl_xor(v, mask);
  return v;
}
DEV float warp_max(float v) {
  for (u32 mask = 16; mask > 0; mask /= 2) v = max(v, shfl_xor(v, mask));
  return v;
}
