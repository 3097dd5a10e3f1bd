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

// Rows that a warp has under way.
constexpr u32 ROWS = 16;

template <class T>
KERNEL_MIN_BLOCKS(32, 16)
pool(float* __restrict__ out, const T* __restrict__ x, const Span* __restrict__ spans, PoolParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 slices = ceil_div(p.hidden_size, 128);
  const u32 items = size_of(p.num_spans) * slices;
  for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
    const u32 span = item / slices, column = item % slices * 128 + 4 * threadIdx.x;
    if (column >= p.hidden_size) continue;
    const u32 first = spans[span].query_start, rows = spans[span].num_queries;

    // Beyond the last row it is loaded again, and not added.
    float sum[4];
    const T* source = x + (u64)first * p.hidden_size + column;
    load4(sum, source);
    for (u32 row = 1; row < rows; row += ROWS) {
      float v[ROWS][4];
#pragma unroll
      for (u32 i = 0; i < ROWS; i++) load4(v[i], source + (u64)min(row + i, rows - 1) * p.hidden_size);
#pragma unroll
      for (u32 i = 0; i < ROWS; i++) {
        for (u32 e = 0; e < 4; e++) sum[e] = row + i < rows ? sum[e] + v[i][e] : sum[e];
      }
    }
    const float inverse = div_rn(1.0f, (float)rows);
    for (u32 e = 0; e < 4; e++) sum[e] *= inverse;
    store4(out + (u64)span * p.hidden_size + column, sum);
  }
}
