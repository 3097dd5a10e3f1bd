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

// Quads of a row that a thread has under way.
constexpr u32 COLUMNS = 4;

// `segments` and `cu_seqlens` describe x, `out_cu_seqlens` the result.
KERNEL_MIN_BLOCKS(128, 8)
token_compress(float* __restrict__ out, const float* __restrict__ x, const Segment* __restrict__ segments,
               const u32* __restrict__ cu_seqlens, const u32* __restrict__ out_cu_seqlens, TokenCompressParams p) {
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
    for (u32 first_column = 4 * threadIdx.x; first_column < p.hidden_size; first_column += COLUMNS * 4 * 128) {
      // Behind the row's end its last quad once more.
      u32 column[COLUMNS];
      float sum[COLUMNS][4];
#pragma unroll
      for (u32 c = 0; c < COLUMNS; c++) column[c] = min(first_column + c * 4 * 128, p.hidden_size - 4);
#pragma unroll
      for (u32 c = 0; c < COLUMNS; c++) load4(sum[c], source + column[c]);
#pragma unroll 1
      for (u32 k = 1; k < group; k++) {
        float v[COLUMNS][4];
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) load4(v[c], source + (u64)k * p.hidden_size + column[c]);
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) {
          for (u32 e = 0; e < 4; e++) sum[c][e] += v[c][e];
        }
      }
#pragma unroll
      for (u32 c = 0; c < COLUMNS; c++) {
        for (u32 e = 0; e < 4; e++) sum[c][e] *= inverse;
        store4(destination + column[c], sum[c]);
      }
    }
  }
}
