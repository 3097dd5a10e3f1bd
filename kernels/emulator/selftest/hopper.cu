// Kernels on Hopper's asynchronous operations: without a fault (`Fault::none`), and with one each.
#include "../../src/hopper.cuh"

enum class Fault : u32 {
  none,
  init_not_fenced,
  no_barrier_after_init,
  full_not_awaited,
  empty_not_awaited,
  wrong_parity,
  too_few_bytes_expected,
  too_many_bytes_expected,
  too_many_arrivals,
  released_before_the_wait,
  released_one_too_early,
  no_accumulator_fence,
  unequal_descriptors,
  unaligned_stage,
  products_never_awaited,
};

struct Params {
  u32 m, n, k, unused;
};

// d[m, n] = a[m, k] * b[n, k] transposed: blocks walk over tiles of 128 x 64; one warpgroup loads, two multiply; four
// stages of 64 elements of k, each with a barrier "full" and one "empty".
template <class T, Fault FAULT>
KERNEL_MIN_BLOCKS(384, 1) multiply(float* d, TENSOR_MAP a, TENSOR_MAP b, Params p) {
  constexpr u32 STAGES = 4, A_BYTES = 128 * 128, B_BYTES = 64 * 128;
  constexpr u32 UNALIGNED = FAULT == Fault::unaligned_stage ? 64 : 0;
  const u32 thread = threadIdx.x, group = thread / 128, lane = thread % 32;
  const u32 a_stages = smem_base(), b_stages = a_stages + STAGES * A_BYTES, full = b_stages + STAGES * B_BYTES;
  const u32 empty = full + STAGES * 8;
  const u32 tiles_n = ceil_div(p.n, 64), tiles = ceil_div(p.m, 128) * tiles_n, steps = ceil_div(p.k, 64);

  if (thread == 0) {
    for (u32 stage = 0; stage < STAGES; stage++) {
      mbarrier_init(full + stage * 8, 1);
      mbarrier_init(empty + stage * 8, 2);
    }
    if (FAULT != Fault::init_not_fenced) mbarrier_init_fence();
  }
  if (FAULT != Fault::no_barrier_after_init) sync_block();

  u32 stage = 0, parity = 0;
  auto advance = [&] {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  };

  if (group == 2) {
    // Loads, by one thread.
    give_registers<40>();
    if (thread != 256) return;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (u32 step = 0; step < steps; step++) {
        const u32 before = FAULT == Fault::wrong_parity ? parity : parity ^ 1;
        if (FAULT != Fault::empty_not_awaited) mbarrier_wait(empty + stage * 8, before);
        u32 bytes = A_BYTES + B_BYTES;
        if (FAULT == Fault::too_few_bytes_expected) bytes -= 128;
        if (FAULT == Fault::too_many_bytes_expected) bytes += 128;
        mbarrier_arrive_expect(full + stage * 8, bytes);
        tma_load(a_stages + stage * A_BYTES, &a, full + stage * 8, step * 64, tile / tiles_n * 128);
        tma_load(b_stages + stage * B_BYTES + UNALIGNED, &b, full + stage * 8, step * 64, tile % tiles_n * 64);
        advance();
      }
    }
    return;
  }

  // Products. One group stays in flight while the next stage is awaited; the stage before is released when it is
  // complete.
  take_registers<232>();
  for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[32];
    for (u32 step = 0; step < steps; step++) {
      if (FAULT != Fault::full_not_awaited) mbarrier_wait(full + stage * 8, parity);
      if (FAULT != Fault::no_accumulator_fence) wgmma_fence();
      const u32 a_rows = a_stages + stage * A_BYTES + group * 64 * 128, b_rows = b_stages + stage * B_BYTES;
      for (u32 k = 0; k < 4; k++) {
        const u32 other = FAULT == Fault::unequal_descriptors && thread % 128 == 77 ? 32 : 0;
        wgmma<T>(sums, wgmma_operand(a_rows + k * 32 + other), wgmma_operand(b_rows + k * 32), step + k > 0);
      }
      wgmma_commit();
      const u32 previous = (stage + STAGES - 1) % STAGES;
      const bool releases = thread % 128 == 0 || FAULT == Fault::too_many_arrivals;
      if (FAULT == Fault::released_before_the_wait) {
        if (releases) mbarrier_arrive(empty + stage * 8);
        wgmma_wait<0>();
      } else if (FAULT == Fault::released_one_too_early) {
        wgmma_wait<1>();
        if (releases) mbarrier_arrive(empty + stage * 8);
      } else {
        wgmma_wait<1>();
        if (releases && step > 0) mbarrier_arrive(empty + previous * 8);
      }
      advance();
    }
    if (FAULT != Fault::products_never_awaited) wgmma_wait<0>();
    const bool released = FAULT == Fault::released_before_the_wait || FAULT == Fault::released_one_too_early;
    if (thread % 128 == 0 && !released) mbarrier_arrive(empty + (stage + STAGES - 1) % STAGES * 8);

    for (u32 i = 0; i < 32; i++) {
      const u32 row = tile / tiles_n * 128 + group * 64 + thread / 32 % 4 * 16 + lane / 4 + i / 2 % 2 * 8;
      const u32 column = tile % tiles_n * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row < p.m && column < p.n) d[(u64)row * p.n + column] = sums[i];
    }
  }
}

// d[64, 64] = a[64, 16] * b[64, 16] transposed, operands by ordinary stores, rows of 128 bytes of which 32 are used.
template <bool FENCED>
KERNEL(128) multiply_stored(float* d, const u32* a, const u32* b) {
  const u32 thread = threadIdx.x, row = thread / 2, half = thread % 2, b_base = smem_base() + 64 * 128;
  for (u32 i = 0; i < 4; i++) {
    const u32 at = row * 128 + ((half ^ row % 8) * 16) + i * 4;
    sts32(smem_base() + at, a[row * 8 + half * 4 + i]);
    sts32(b_base + at, b[row * 8 + half * 4 + i]);
  }
  if (FENCED) proxy_fence();
  sync_block();
  float sums[32];
  wgmma_fence();
  wgmma<bf16>(sums, wgmma_operand(smem_base()), wgmma_operand(b_base), 0);
  wgmma_commit();
  wgmma_wait<0>();
  for (u32 i = 0; i < 32; i++) {
    const u32 r = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    d[r * 64 + column] = sums[i];
  }
}
