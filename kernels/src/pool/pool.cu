// The mean of the rows of each span's queries, added in ascending order. One warp takes 128 columns of a span, so that
// few spans still give many blocks.
#include "../hardware.cuh"
#include "../packed.cuh"
#include "../row.cuh"

struct PoolParams {
  Size num_spans;
  u32 hidden_size;
  u32 unused;
};

template <class T>
KERNEL(32) pool(float* __restrict__ out, const T* __restrict__ x, const Span* __restrict__ spans, PoolParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 slices = ceil_div(p.hidden_size, 128);
  const u32 items = size_of(p.num_spans) * slices;
  for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
    const u32 span = item / slices, column = item % slices * 128 + 4 * threadIdx.x;
    if (column >= p.hidden_size) continue;
    const u32 first = spans[span].query_start, rows = spans[span].num_queries;

    float sum[4];
    load4(sum, x + (u64)first * p.hidden_size + column);
#pragma unroll 8
    for (u32 row = 1; row < rows; row++) {
      float v[4];
      load4(v, x + (u64)(first + row) * p.hidden_size + column);
      for (u32 e = 0; e < 4; e++) sum[e] += v[e];
    }
    const float inverse = div_rn(1.0f, (float)rows);
    for (u32 e = 0; e < 4; e++) sum[e] *= inverse;
    store4(out + (u64)span * p.hidden_size + column, sum);
  }
}
