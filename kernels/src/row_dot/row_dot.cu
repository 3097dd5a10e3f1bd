// A scalar head, out[i] = x[i] . weight + bias, perhaps soft-capped: one block of 128 threads per row.
#include "../hardware.cuh"
#include "../row.cuh"

struct RowDotParams {
  Size num_rows;
  u32 hidden_size;
  float bias;
  float softcap;  // 0: none
  u32 unused;
};

template <class T>
KERNEL(128) row_dot(float* __restrict__ out, const T* __restrict__ x, const float* __restrict__ weight,
                    RowDotParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows);
  u32 round = 0;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* x_row = x + (u64)row * p.hidden_size;
    float sum = 0;
    for (u32 column = 4 * threadIdx.x; column < p.hidden_size; column += 4 * 128) {
      float v[4], w[4];
      load4(v, x_row + column);
      load4(w, weight + column);
      sum += dot4(v, w);
    }
    float z = row_sum<4>(sum, round) + p.bias;
    if (p.softcap != 0) z = p.softcap * tanhf(div_rn(z, p.softcap));
    if (threadIdx.x == 0) out[row] = z;
  }
}
