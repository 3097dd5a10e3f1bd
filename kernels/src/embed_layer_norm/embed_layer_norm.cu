// Embedding gather and LayerNorm, LayerNorm(word[id] + token_type + position[position_id]): one block of WARPS warps
// per token.
#include "../hardware.cuh"
#include "../row.cuh"

struct EmbedLayerNormParams {
  Size num_tokens;
  u32 hidden_size;
  float eps;
};

template <class T, u32 WARPS>
KERNEL_MIN_BLOCKS(32 * WARPS, ROW_BLOCKS / WARPS)
embed_layer_norm(T* __restrict__ out, const T* __restrict__ word, const float* __restrict__ token_type,
                 const T* __restrict__ position, const u32* __restrict__ input_ids,
                 const u32* __restrict__ position_ids, const float* __restrict__ weight,
                 const float* __restrict__ bias, EmbedLayerNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 tokens = size_of(p.num_tokens);
  u32 round = 0;
  for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
    // The sum's order is the contract's: word and token type, then position.
    const T* word_row = word + (u64)input_ids[token] * p.hidden_size;
    const T* position_row = position + (u64)position_ids[token] * p.hidden_size;
    float v[QUADS][4];
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) {
      float type[4], place[4];
      load4(v[i], word_row + column);
      load4(type, token_type + column);
      load4(place, position_row + column);
      for (u32 e = 0; e < 4; e++) v[i][e] = v[i][e] + type[e] + place[e];
    });

    layer_norm<WARPS>(v, weight, bias, p.hidden_size, p.eps, round);

    T* out_row = out + (u64)token * p.hidden_size;
    for_each_quad<WARPS>(p.hidden_size, [&](u32 i, u32 column) { store4(out_row + column, v[i]); });
  }
}
