// Residual addition and LayerNorm, x = LayerNorm(x + y) * weight + bias: one block of WARPS warps per row, sums in f32.
#include "../hardware.cuh"
#include "../row.cuh"

struct AddLayerNormParams {
  Size num_rows;
  u32 hidden_size;
  float eps;
};

template <class T, u32 WARPS>
KERNEL_MIN_BLOCKS(32 * WARPS, ROW_BLOCKS / WARPS)
add_layer_norm(T* __restrict__ x, const T* __restrict__ y, const float* __restrict__ weight,
               const float* __restrict__ bias, AddLayerNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    const u64 start = (u64)row * p.hidden_size;
    float v[QUADS][4];
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) {
      float other[4];
      load4(v[i], x + start + column);
      load4(other, y + start + column);
      for (u32 e = 0; e < 4; e++) v[i][e] += other[e];
    });

    layer_norm<WARPS>(v, weight, bias, p.hidden_size, p.eps, round);

    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) { store4(x + start + column, v[i]); });
  }
}
