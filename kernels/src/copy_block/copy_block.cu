// Copies a block of a matrix into a place of another, in units of 16 bytes.
#include "../hardware.cuh"
#include "../row.cuh"

struct CopyBlockParams {
  Size num_rows, out_row, x_row;
  u32 out_stride, out_column, x_stride, x_column, units;  // of 16 bytes
  u32 unused;
};

KERNEL_MIN_BLOCKS(MOVE_THREADS, MOVE_BLOCKS)
copy_block(u32x4* __restrict__ out, const u32x4* __restrict__ x, CopyBlockParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 out_row = size_of(p.out_row), x_row = size_of(p.x_row);
  u32x4 v[MOVES];
  move_rows(
      size_of(p.num_rows), p.units,
      [&](u32 i, u32 row, u32 unit) { v[i] = x[(u64)(x_row + row) * p.x_stride + p.x_column + unit]; },
      [&](u32 i, u32 row, u32 unit) { out[(u64)(out_row + row) * p.out_stride + p.out_column + unit] = v[i]; });
}
