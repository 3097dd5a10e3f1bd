// Row gather, out[i] = x[rows[i]], in units of 16 bytes whatever the elements.
#include "../hardware.cuh"
#include "../row.cuh"

struct GatherRowsParams {
  Size num_rows;
  u32 units;  // of a row
  u32 unused;
};

KERNEL_MIN_BLOCKS(MOVE_THREADS, MOVE_BLOCKS)
gather_rows(u32x4* __restrict__ out, const u32x4* __restrict__ x, const u32* __restrict__ rows,
                        GatherRowsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  u32x4 v[MOVES];
  move_rows(
      size_of(p.num_rows), p.units,
      [&](u32 i, u32 row, u32 unit) { v[i] = x[(u64)rows[row] * p.units + unit]; },
      [&](u32 i, u32 row, u32 unit) { out[(u64)row * p.units + unit] = v[i]; });
}
