// The emulated bodies of the wrappers in ../src/hardware.cuh, in its order, and what else a kernel sees of CUDA.
#pragma once

#include "asynchronous.h"
#include "collectives.h"
#include "matrix.h"
#include "numbers.h"
#include "simt.h"

#define DEV inline
#define KERNEL(threads) inline void
#define KERNEL_MIN_BLOCKS(threads, blocks) inline void
#define offset_of(type, field) __builtin_offsetof(type, field)

struct alignas(8) u32x2 {
  u32 x, y;
};
struct alignas(16) u32x4 {
  u32 x, y, z, w;
};

// Where the kernel called the wrapper.
#define SITE emulator::Site at = emulator::Site::here()

// ---- numbers

inline float bits_to_float(u32 bits) { return emulator::as_float(bits); }
inline u32 float_to_bits(float x) { return emulator::as_bits(x); }
inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return emulator::f16_to_float(x.bits); }
inline float to_float(bf16 x) { return emulator::bf16_to_float(x.bits); }
template <class T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline f16 from_float<f16>(float x) {
  return {emulator::float_to_f16(x)};
}
template <>
inline bf16 from_float<bf16>(float x) {
  return {emulator::float_to_bf16(x)};
}
template <class T>
inline u32 pack2(float lo, float hi) {
  return from_float<T>(lo).bits | (u32)from_float<T>(hi).bits << 16;
}
template <class T>
inline float unpack_lo(u32 v) {
  return to_float(T{(u16)v});
}
template <class T>
inline float unpack_hi(u32 v) {
  return to_float(T{(u16)(v >> 16)});
}
inline float fast_exp2(float x) { return emulator::approximate_exp2(x); }
inline float fast_rcp(float x) { return emulator::approximate_rcp(x); }
inline float fast_rsqrt(float x) { return emulator::approximate_rsqrt(x); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float div_rn(float a, float b) { return a / b; }
inline float sqrt_rn(float x) { return std::sqrt(x); }

// ---- shared memory

namespace emulator __attribute__((visibility("hidden"))) {

template <class T>
inline void store(u32 address, T value, Site at) {
  const u32 place = machine->place(address, sizeof(T), at);
  machine->races.write(machine->current->index, place, sizeof(T), at);
  if (machine->count_banks) machine->warp().banks.record(machine->current->lane(), address, sizeof(T), at);
  memcpy(machine->memory(place), &value, sizeof(T));
}

template <class T>
inline T load(u32 address, Site at) {
  const u32 place = machine->place(address, sizeof(T), at);
  machine->races.read(machine->current->index, place, sizeof(T), at);
  if (machine->count_banks) machine->warp().banks.record(machine->current->lane(), address, sizeof(T), at);
  T value;
  memcpy(&value, machine->memory(place), sizeof(T));
  return value;
}

}  // namespace emulator

inline u32 smem_base() { return emulator::SHARED_BASE; }
inline void sts32(u32 address, u32 v, SITE) { emulator::store(address, v, at); }
inline u32 lds32(u32 address, SITE) { return emulator::load<u32>(address, at); }
inline void sts128(u32 address, u32x4 v, SITE) { emulator::store(address, v, at); }
inline u32x4 lds128(u32 address, SITE) { return emulator::load<u32x4>(address, at); }
inline void sts_f32(u32 address, float v, SITE) { emulator::store(address, v, at); }
inline float lds_f32(u32 address, SITE) { return emulator::load<float>(address, at); }

// ---- barriers and warp collectives

inline void sync_block(SITE) { emulator::barrier("sync_block", 0, blockDim.x, at); }
inline void sync_named(u32 id, u32 threads, SITE) { emulator::named_barrier(id, threads, at); }
inline void sync_warp(SITE) { emulator::warp_barrier(at); }
inline float shfl_xor(float v, u32 mask, SITE) { return emulator::shuffle("shfl_xor", v, threadIdx.x % 32 ^ mask, at); }
inline u32 shfl_xor(u32 v, u32 mask, SITE) { return emulator::shuffle("shfl_xor", v, threadIdx.x % 32 ^ mask, at); }
inline u32 shfl_up(u32 v, u32 delta, SITE) {
  u32 lane = threadIdx.x % 32;
  return emulator::shuffle("shfl_up", v, lane < delta ? lane : lane - delta, at);
}
inline u32 shfl(u32 v, u32 lane, SITE) { return emulator::shuffle("shfl", v, lane, at); }
inline float shfl(float v, u32 lane, SITE) { return emulator::shuffle("shfl", v, lane, at); }
inline u32 count_lanes(bool v, SITE) {
  u32 count = v;
  for (u32 mask = 1; mask < 32; mask *= 2) count += shfl_xor(count, mask, at);
  return count;
}

// ---- tensor cores

inline void ldmatrix4(u32 (&r)[4], u32 address, SITE) { emulator::load_matrices<false>("ldmatrix4", r, address, at); }
inline void ldmatrix4_trans(u32 (&r)[4], u32 address, SITE) {
  emulator::load_matrices<true>("ldmatrix4_trans", r, address, at);
}
template <class T>
inline void mma16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, SITE) {
  emulator::multiply_matrices<T>(d, a, b0, b1, at);
}

// ---- asynchronous copies

inline void cp_async16(u32 destination, const void* source, bool valid, SITE) {
  emulator::issue_copy(destination, source, valid, at);
}
inline void cp_async_commit() { emulator::commit_copies(); }
template <int N>
inline void cp_async_wait() {
  emulator::wait_for_copies(N);
}

// ---- launches that overlap

inline void wait_for_previous_kernel() { emulator::machine->current->has_waited = true; }
inline void let_next_kernel_start(SITE) { emulator::machine->check_waited("it lets the next kernel start", at); }

#undef SITE
