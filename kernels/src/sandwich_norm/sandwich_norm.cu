// The norms on both sides of a residual addition, x += RMSNorm(y; post), out = RMSNorm(x; pre): one block of WARPS
// warps per row.
#include "../hardware.cuh"
#include "../row.cuh"

struct SandwichNormParams {
  Size num_rows;
  u32 hidden_size;
  float post_eps, pre_eps;
  u32 unused;
};

template <class T, u32 WARPS>
KERNEL_MIN_BLOCKS(32 * WARPS, ROW_BLOCKS / WARPS)
sandwich_norm(float* __restrict__ x, T* __restrict__ out, const T* __restrict__ y,
              const float* __restrict__ post_weight, const float* __restrict__ pre_weight, SandwichNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    // Both rows are asked for at once: x arrives while the squares of y are summed.
    const u64 start = (u64)row * p.hidden_size;
    float v[QUADS][4], residual[QUADS][4];
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) {
      load4(v[i], y + start + column);
      load4(residual[i], x + start + column);
    });

    // The norm behind the block, and the residual stream.
    float inverse = inverse_rms<WARPS>(v, p.hidden_size, p.post_eps, round);
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) {
      float w[4];
      load4(w, post_weight + column);
      for (u32 e = 0; e < 4; e++) residual[i][e] = fma(v[i][e] * inverse, w[e], residual[i][e]);
      store4(x + start + column, residual[i]);
    });

    // The norm before the next block.
    inverse = inverse_rms<WARPS>(residual, p.hidden_size, p.pre_eps, round);
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) {
      float w[4];
      load4(w, pre_weight + column);
      for (u32 e = 0; e < 4; e++) v[i][e] = residual[i][e] * inverse * w[e];
      store4(out + start + column, v[i]);
    });
  }
}
