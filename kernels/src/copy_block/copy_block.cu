// Copies a block of a matrix into a place of another, in units of 16 bytes: one block of 128 threads per row.
#include "../hardware.cuh"

struct CopyBlockParams {
  Size num_rows, out_row, x_row;
  u32 out_stride, out_column, x_stride, x_column, units;  // of 16 bytes
  u32 unused;
};

KERNEL(128) copy_block(u32x4* __restrict__ out, const u32x4* __restrict__ x, CopyBlockParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows), out_row = size_of(p.out_row), x_row = size_of(p.x_row);
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    const u32x4* source = x + (u64)(x_row + row) * p.x_stride + p.x_column;
    u32x4* destination = out + (u64)(out_row + row) * p.out_stride + p.out_column;
    for (u32 unit = threadIdx.x; unit < p.units; unit += 128) destination[unit] = source[unit];
  }
}
