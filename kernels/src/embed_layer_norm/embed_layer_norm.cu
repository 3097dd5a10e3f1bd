// Embedding gather and LayerNorm, LayerNorm(word[id] + token_type + position[position_id]): one block of WARPS warps
// per token.
#include "../hardware.cuh"
#include "../row.cuh"

struct EmbedLayerNormParams {
  Size num_tokens;
  u32 hidden_size;
  float eps;
};

template <class T, u32 WARPS, u32 QUADS>
KERNEL_MIN_BLOCKS(32 * WARPS, row_blocks(WARPS, QUADS))
embed_layer_norm(T* __restrict__ out, const T* __restrict__ word, const float* __restrict__ token_type,
                 const T* __restrict__ position, const u32* __restrict__ input_ids,
                 const u32* __restrict__ position_ids, const float* __restrict__ weight,
                 const float* __restrict__ bias, EmbedLayerNormParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 tokens = size_of(p.num_tokens);
  u32 round = 0;
  u32 token = blockIdx.x;
  if (token >= tokens) return;
  // The ids of a row come while the row before is normalised.
  u32 id = input_ids[token], position_id = position_ids[token];
  for (; token < tokens; token += gridDim.x) {
    float v[QUADS][4], type[QUADS][4], place[QUADS][4];
    load_row<WARPS>(v, word + (u64)id * p.hidden_size, p.hidden_size);
    load_row<WARPS>(place, position + (u64)position_id * p.hidden_size, p.hidden_size);
    load_row<WARPS>(type, token_type, p.hidden_size);
    const u32 next = min(token + gridDim.x, tokens - 1);
    id = input_ids[next], position_id = position_ids[next];

    // The sum's order is the contract's: word and token type, then position.
#pragma unroll
    for (u32 i = 0; i < QUADS; i++) {
      for (u32 e = 0; e < 4; e++) v[i][e] = v[i][e] + type[i][e] + place[i][e];
    }
    layer_norm<WARPS>(v, weight, bias, p.hidden_size, p.eps, round);
    store_row<WARPS>(out + (u64)token * p.hidden_size, v, p.hidden_size);
  }
}
