// Converts rows of a weight matrix and puts each where the matrix product wants it: one block of 128 threads per row.
#include "../hardware.cuh"
#include "../row.cuh"

struct PackWeightsParams {
  u32 num_rows;
  u32 k;          // elements of a row
  u32 mode;       // a PackMode
  u32 head_dim;   // of PACK_ROTARY
  u32 first_row;  // of the result
};

enum PackMode : u32 {
  PACK_PLAIN,   // one after the other
  PACK_ROTARY,  // in every head, the two elements of a rotated pair side by side: i and i + head_dim / 2
  PACK_GATE,    // eight gate rows, eight up rows, and so on: a thread's accumulators of a product then hold both values
  PACK_UP,      // of an output
};

DEV u32 packed_row(u32 row, const PackWeightsParams& p) {
  if (p.mode == PACK_PLAIN) return row;
  if (p.mode == PACK_ROTARY) {
    const u32 i = row % p.head_dim, half = p.head_dim / 2;
    return row - i + (i < half ? 2 * i : 2 * (i - half) + 1);
  }
  return row / 8 * 16 + row % 8 + (p.mode == PACK_GATE ? 0 : 8);
}

// Four elements rounded to nearest, ties to even. The same type keeps its bits, those of a NaN too.
template <class TOut, class TIn> DEV void convert4(TOut* out, const TIn* source) {
  if constexpr (is_same<TOut, TIn>::value && sizeof(TIn) == 2) {
    *(u32x2*)out = *(const u32x2*)source;
  } else {
    float v[4];
    load4(v, source);
    store4(out, v);
  }
}

template <class TOut, class TIn>
KERNEL(128) pack_weights(TOut* __restrict__ out, const TIn* __restrict__ weight, PackWeightsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (u32 row = blockIdx.x; row < p.num_rows; row += gridDim.x) {
    const TIn* source = weight + (u64)row * p.k;
    TOut* destination = out + (u64)(p.first_row + packed_row(row, p)) * p.k;
    for (u32 column = 4 * threadIdx.x; column < p.k; column += 4 * 128) convert4(destination + column, source + column);
  }
}
