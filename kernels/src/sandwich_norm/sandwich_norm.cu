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

template <class T, u32 WARPS, u32 QUADS>
KERNEL_MIN_BLOCKS(32 * WARPS, row_blocks(WARPS, QUADS))
sandwich_norm(float* __restrict__ x, T* __restrict__ out, const T* __restrict__ y,
              const float* __restrict__ post_weight, const float* __restrict__ pre_weight, SandwichNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    // Both rows are asked for at once: x arrives while the squares of y are summed.
    const u64 start = (u64)row * p.hidden_size;
    float v[QUADS][4], residual[QUADS][4], w[QUADS][4];
    load_row<WARPS>(v, y + start, p.hidden_size);
    load_row<WARPS>(residual, x + start, p.hidden_size);

    // The norm behind the block, and the residual stream.
    float inverse = inverse_rms<WARPS>(v, p.hidden_size, p.post_eps, round);
    load_row<WARPS>(w, post_weight, p.hidden_size);
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      for (u32 e = 0; e < 4; e++) residual[i][e] = fma(v[i][e] * inverse, w[i][e], residual[i][e]);
    }
    load_row<WARPS>(w, pre_weight, p.hidden_size);
    store_row<WARPS>(x + start, residual, p.hidden_size);

    // The norm before the next block.
    inverse = inverse_rms<WARPS>(residual, p.hidden_size, p.pre_eps, round);
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      for (u32 e = 0; e < 4; e++) v[i][e] = residual[i][e] * inverse * w[i][e];
    }
    store_row<WARPS>(out + start, v, p.hidden_size);
  }
}
