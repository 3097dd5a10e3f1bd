// Rows divided by their root mean square, times a weight: one block of WARPS warps per row.
#include "../hardware.cuh"
#include "../row.cuh"

struct RmsNormParams {
  Size num_rows;
  u32 hidden_size;
  float eps;
};

template <class T, u32 WARPS, u32 QUADS>
KERNEL_MIN_BLOCKS(32 * WARPS, row_blocks(WARPS, QUADS))
rms_norm(T* __restrict__ out, const float* __restrict__ x, const float* __restrict__ weight, RmsNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    const u64 start = (u64)row * p.hidden_size;
    // The weights come with the row, and wait for its sum in registers.
    float v[QUADS][4], w[QUADS][4];
    load_row<WARPS>(v, x + start, p.hidden_size);
    load_row<WARPS>(w, weight, p.hidden_size);

    float inverse = inverse_rms<WARPS>(v, p.hidden_size, p.eps, round);
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      for (u32 e = 0; e < 4; e++) v[i][e] = v[i][e] * inverse * w[i][e];
    }
    store_row<WARPS>(out + start, v, p.hidden_size);
  }
}
