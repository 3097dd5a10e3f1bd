// Embedding gather with a factor, out[t] = table[input_ids[t]] * scale: one block of 128 threads per token.
#include "../hardware.cuh"
#include "../row.cuh"

struct EmbedParams {
  Size num_tokens;
  u32 hidden_size;
  float scale;
};

template <class T>
KERNEL(128) embed(float* __restrict__ out, const T* __restrict__ table, const u32* __restrict__ input_ids,
                  EmbedParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 tokens = size_of(p.num_tokens);
  for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
    const T* row = table + (u64)input_ids[token] * p.hidden_size;
    float* out_row = out + (u64)token * p.hidden_size;
    for (u32 column = 4 * threadIdx.x; column < p.hidden_size; column += 4 * 128) {
      float v[4];
      load4(v, row + column);
      for (u32 e = 0; e < 4; e++) v[e] *= p.scale;
      store4(out_row + column, v);
    }
  }
}
