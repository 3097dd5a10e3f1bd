// One fault in each kernel; it must be reported under every schedule, with the line that is marked, and nothing else
// may be. All are launched with two blocks of 64 threads and 1024 bytes of shared memory; `x` is 1024 bytes.
#include "../../src/hardware.cuh"

struct Params {  // not the one of clean.cu
  u32 zero;
};

DEV u32 slot(u32 thread) { return smem_base() + thread * 4; }
DEV u32 slot16(u32 thread) { return smem_base() + thread * 16; }

KERNEL(64) missing_barrier(u32* out, const u32* x, Params) {
  sts32(slot(threadIdx.x), x[threadIdx.x]);
  out[threadIdx.x] = lds32(slot(63 - threadIdx.x));  // planted: missing_barrier
}

KERNEL(64) missing_barrier_before_reuse(u32* out, const u32* x, Params) {
  for (u32 turn = 0; turn < 2; turn++) {
    sts32(slot(threadIdx.x), x[threadIdx.x]);  // planted: missing_barrier_before_reuse
    sync_block();
    out[threadIdx.x] = lds32(slot(63 - threadIdx.x));
  }
}

// The warps differ, so a barrier of the warp orders nothing.
KERNEL(64) barrier_of_the_warp_only(u32* out, const u32* x, Params) {
  sts32(slot(threadIdx.x), x[threadIdx.x]);
  sync_warp();
  out[threadIdx.x] = lds32(slot(63 - threadIdx.x));  // planted: barrier_of_the_warp_only
}

// A shuffle brings the lanes together and orders no memory.
KERNEL(64) shuffle_as_barrier(u32* out, const u32* x, Params) {
  sts32(slot(threadIdx.x), x[threadIdx.x]);
  const u32 other = shfl_xor(threadIdx.x, 1);
  out[threadIdx.x] = lds32(slot(other));  // planted: shuffle_as_barrier
}

// Each lane loads the row that it stored itself, but gets elements of all rows.
KERNEL(64) matrix_of_own_rows(u32* out, const u32* x, Params) {
  sts128(slot16(threadIdx.x), {x[0], x[1], x[2], x[3]});
  u32 r[4];
  ldmatrix4(r, slot16(threadIdx.x));  // planted: matrix_of_own_rows
  out[threadIdx.x] = r[0];
}

KERNEL(64) divergent_barrier(u32* out, const u32* x, Params) {
  if (threadIdx.x % 32 < 16) sync_block();
  out[threadIdx.x] = shfl_xor(x[threadIdx.x], 1);  // planted: divergent_barrier
}

KERNEL(64) barrier_without_a_warp(u32* out, const u32* x, Params) {
  if (threadIdx.x < 32) sync_block();  // planted: barrier_without_a_warp
  out[threadIdx.x] = x[threadIdx.x];
}

KERNEL(64) unequal_counts(u32* out, const u32* x, Params) {
  sync_named(1, threadIdx.x < 32 ? 64 : 32);  // planted: unequal_counts
  out[threadIdx.x] = x[threadIdx.x];
}

KERNEL(64) count_of_half_a_warp(u32* out, const u32* x, Params) {
  sync_named(1, 16);  // planted: count_of_half_a_warp
  out[threadIdx.x] = x[threadIdx.x];
}

KERNEL(64) crossed_barriers(u32* out, const u32* x, Params) {
  sync_named(threadIdx.x < 32 ? 1 : 2, 64);  // planted: crossed_barriers
  out[threadIdx.x] = x[threadIdx.x];
}

KERNEL(64) unequal_collectives(u32* out, const u32* x, Params) {
  u32 v = x[threadIdx.x];
  if (threadIdx.x % 2) v = shfl_xor(v, 2);
  else v = shfl(v, 0);  // planted: unequal_collectives
  out[threadIdx.x] = v;
}

KERNEL(64) collective_in_a_branch(u32* out, const u32* x, Params) {
  u32 v = x[threadIdx.x];
  if (threadIdx.x % 32 != 7) v = shfl_xor(v, 2);  // planted: collective_in_a_branch
  out[threadIdx.x] = v;
}

KERNEL(64) lane_out_of_range(u32* out, const u32* x, Params) {
  out[threadIdx.x] = shfl(x[threadIdx.x], threadIdx.x + 1);  // planted: lane_out_of_range
}

KERNEL(64) beyond_the_end(u32* out, const u32* x, Params) {
  sts32(slot(threadIdx.x + 193), x[threadIdx.x]);  // planted: beyond_the_end
  out[threadIdx.x] = 0;
}

KERNEL(64) base_forgotten(u32* out, const u32* x, Params) {
  sts32(threadIdx.x * 4, x[threadIdx.x]);  // planted: base_forgotten
  out[threadIdx.x] = 0;
}

KERNEL(64) misaligned(u32* out, const u32* x, Params) {
  sts128(smem_base() + threadIdx.x * 8, {x[0], x[1], x[2], x[3]});  // planted: misaligned
  out[threadIdx.x] = 0;
}

KERNEL(64) never_written(u32* out, const u32* x, Params) {
  if (threadIdx.x != 63) sts32(slot(threadIdx.x), x[threadIdx.x]);
  sync_block();
  out[threadIdx.x] = lds32(slot(threadIdx.x));  // planted: never_written
}

// What one block leaves is not there for the next.
KERNEL(64) left_by_another_block(u32* out, const u32* x, Params) {
  if (blockIdx.x == 0) sts32(slot(threadIdx.x), x[threadIdx.x]);
  out[threadIdx.x] = lds32(slot(threadIdx.x));  // planted: left_by_another_block
}

KERNEL(64) copy_read_before_the_wait(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  out[threadIdx.x] = lds32(slot16(threadIdx.x));  // planted: copy_read_before_the_wait
  cp_async_wait<0>();
}

KERNEL(64) wait_for_one_too_few(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<1>();
  out[threadIdx.x] = lds32(slot16(threadIdx.x));  // planted: wait_for_one_too_few
  cp_async_wait<0>();
}

KERNEL(64) wait_without_commit(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_wait<0>();
  out[threadIdx.x] = lds32(slot16(threadIdx.x));  // planted: wait_without_commit
}

KERNEL(64) copy_of_another_thread(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = lds32(slot16(63 - threadIdx.x));  // planted: copy_of_another_thread
}

// A barrier alone does not make another thread's copy land.
KERNEL(64) barrier_before_the_wait(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  sync_block();
  cp_async_wait<0>();
  out[threadIdx.x] = lds32(slot16(63 - threadIdx.x));  // planted: barrier_before_the_wait
}

KERNEL(64) write_over_a_copy(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  sts32(slot16(threadIdx.x), 0);  // planted: write_over_a_copy
  cp_async_wait<0>();
  out[threadIdx.x] = lds32(slot16(threadIdx.x));
}

KERNEL(64) copy_over_what_is_read(u32* out, const u32* x, Params) {
  sts128(slot16(threadIdx.x), {x[0], x[1], x[2], x[3]});
  sync_block();
  out[threadIdx.x] = lds32(slot16(63 - threadIdx.x));
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);  // planted: copy_over_what_is_read
  cp_async_commit();
  cp_async_wait<0>();
}

KERNEL(64) copy_never_waited_for(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);  // planted: copy_never_waited_for
  cp_async_commit();
  out[threadIdx.x] = 0;
}

KERNEL(64) source_misaligned(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x, true);  // planted: source_misaligned
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = 0;
}

// Launched to begin before the previous kernel has ended.
KERNEL(64) overlaps_well(u32* out, const u32* x, Params) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = 0;
}

KERNEL(64) never_waits(u32* out, const u32*, Params) { out[threadIdx.x] = 0; }

KERNEL(64) waits_in_one_thread(u32* out, const u32*, Params) {
  if (threadIdx.x == 0) wait_for_previous_kernel();
  sync_block();
  out[threadIdx.x] = 0;
}

KERNEL(64) waits_where_there_is_work(u32* out, const u32*, Params) {
  if (blockIdx.x == 1) return;
  wait_for_previous_kernel();
  out[threadIdx.x] = 0;
}

KERNEL(64) waits_behind_a_copy(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + threadIdx.x * 4, true);
  cp_async_commit();
  wait_for_previous_kernel();
  cp_async_wait<0>();
  out[threadIdx.x] = 0;
}

KERNEL(64) starts_the_next_too_early(u32* out, const u32*, Params) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  out[threadIdx.x] = 0;
}

// For the address sanitizer: the last block's source is past the end of `x`.
KERNEL(64) source_out_of_bounds(u32* out, const u32* x, Params) {
  cp_async16(slot16(threadIdx.x), x + blockIdx.x * 256 + threadIdx.x * 4, true);  // planted: source_out_of_bounds
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = 0;
}
