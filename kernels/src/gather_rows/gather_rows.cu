// Row gather, out[i] = x[rows[i]], in units of 16 bytes whatever the elements: one block of 128 threads per row.
#include "../hardware.cuh"

struct GatherRowsParams {
  Size num_rows;
  u32 units;  // of a row
  u32 unused;
};

KERNEL(128) gather_rows(u32x4* __restrict__ out, const u32x4* __restrict__ x, const u32* __restrict__ rows,
                        GatherRowsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 num_rows = size_of(p.num_rows);
  for (u32 i = blockIdx.x; i < num_rows; i += gridDim.x) {
    const u32x4* source = x + (u64)rows[i] * p.units;
    u32x4* destination = out + (u64)i * p.units;
    for (u32 unit = threadIdx.x; unit < p.units; unit += 128) destination[unit] = source[unit];
  }
}
