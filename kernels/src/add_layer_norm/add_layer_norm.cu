// Residual addition and LayerNorm, x = LayerNorm(x + y) * weight + bias: one block of WARPS warps per row, sums in f32.
#include "../hardware.cuh"
#include "../row.cuh"

struct AddLayerNormParams {
  Size num_rows;
  u32 hidden_size;
  float eps;
};

template <class T, u32 WARPS, u32 QUADS>
KERNEL_MIN_BLOCKS(32 * WARPS, row_blocks(WARPS, QUADS))
add_layer_norm(T* __restrict__ x, const T* __restrict__ y, const float* __restrict__ weight,
               const float* __restrict__ bias, AddLayerNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    const u64 start = (u64)row * p.hidden_size;
    float v[QUADS][4], other[QUADS][4];
    load_row<WARPS>(v, x + start, p.hidden_size);
    load_row<WARPS>(other, y + start, p.hidden_size);
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      for (u32 e = 0; e < 4; e++) v[i][e] += other[i][e];
    }
    layer_norm<WARPS>(v, weight, bias, p.hidden_size, p.eps, round);
    store_row<WARPS>(x + start, v, p.hidden_size);
  }
}
