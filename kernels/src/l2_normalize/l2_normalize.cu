// Rows scaled to unit length in place, x / max(||x||, 1e-12): one block of 128 threads per row.
#include "../hardware.cuh"
#include "../row.cuh"

struct L2NormalizeParams {
  Size num_rows;
  u32 hidden_size;
  u32 unused;
};

KERNEL(128) l2_normalize(float* x, L2NormalizeParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    float* x_row = x + (u64)row * p.hidden_size;
    float squares = 0;
    for (u32 column = 4 * threadIdx.x; column < p.hidden_size; column += 4 * 128) {
      float v[4];
      load4(v, x_row + column);
      squares += dot4(v, v);
    }
    float norm = sqrt_rn(row_sum<4>(squares, round));
    // Compared so that a NaN stays one.
    float inverse = div_rn(1.0f, norm < 1e-12f ? 1e-12f : norm);

    // The few rows that there are come from the cache this time; each thread rewrites what it read.
    for (u32 column = 4 * threadIdx.x; column < p.hidden_size; column += 4 * 128) {
      float v[4];
      load4(v, x_row + column);
      for (u32 e = 0; e < 4; e++) v[e] *= inverse;
      store4(x_row + column, v);
    }
  }
}
