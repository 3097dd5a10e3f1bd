// Rows divided by their root mean square, times a weight: one block of WARPS warps per row.
#include "../hardware.cuh"
#include "../row.cuh"

struct RmsNormParams {
  Size num_rows;
  u32 hidden_size;
  float eps;
};

template <class T, u32 WARPS>
KERNEL_MIN_BLOCKS(32 * WARPS, ROW_BLOCKS / WARPS)
rms_norm(T* __restrict__ out, const float* __restrict__ x, const float* __restrict__ weight, RmsNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    const u64 start = (u64)row * p.hidden_size;
    float v[QUADS][4];
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) { load4(v[i], x + start + column); });

    float inverse = inverse_rms<WARPS>(v, p.hidden_size, p.eps, round);

    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) {
      float w[4];
      load4(w, weight + column);
      for (u32 e = 0; e < 4; e++) v[i][e] = v[i][e] * inverse * w[e];
      store4(out + start + column, v[i]);
    });
  }
}
