// Token compression: query and prompt rows are copied, passage rows become means of groups. One block of 128 threads
// per row of the result.
#include "../hardware.cuh"
#include "../packed.cuh"
#include "../row.cuh"

struct TokenCompressParams {
  Size num_rows;  // of the result
  Size num_segments;
  u32 ratio;
  u32 hidden_size;
};

// `segments` and `cu_seqlens` describe x, `out_cu_seqlens` the result.
KERNEL(128) token_compress(float* __restrict__ out, const float* __restrict__ x, const Segment* __restrict__ segments,
                           const u32* __restrict__ cu_seqlens, const u32* __restrict__ out_cu_seqlens,
                           TokenCompressParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 rows = size_of(p.num_rows), num_segments = size_of(p.num_segments);
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    // The first segment that ends behind this row; it is not empty, whatever stands before it.
    u32 low = 0, high = num_segments - 1;
    while (low < high) {
      u32 middle = low + (high - low) / 2;
      if (out_cu_seqlens[middle + 1] <= row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }

    // The rows that this one is made of: one, or a group of the passage, the last perhaps short.
    const Segment segment = segments[low];
    const u32 groups = ceil_div(segment.passage, p.ratio), i = row - out_cu_seqlens[low];
    u32 first = i, group = 1;
    if (i >= segment.query + groups) {
      first = i - groups + segment.passage;
    } else if (i >= segment.query) {
      const u32 taken = (i - segment.query) * p.ratio;
      first = segment.query + taken;
      group = min(p.ratio, segment.passage - taken);
    }

    // Added in ascending order; a group of one is a copy, since its factor is 1.
    const float* source = x + (u64)(cu_seqlens[low] + first) * p.hidden_size;
    float* destination = out + (u64)row * p.hidden_size;
    const float inverse = div_rn(1.0f, (float)group);
    for (u32 column = 4 * threadIdx.x; column < p.hidden_size; column += 4 * 128) {
      float sum[4];
      load4(sum, source + column);
#pragma unroll 4
      for (u32 k = 1; k < group; k++) {
        float v[4];
        load4(v, source + (u64)k * p.hidden_size + column);
        for (u32 e = 0; e < 4; e++) sum[e] += v[e];
      }
      for (u32 e = 0; e < 4; e++) sum[e] *= inverse;
      store4(destination + column, sum);
    }
  }
}
