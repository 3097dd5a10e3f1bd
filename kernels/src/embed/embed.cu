// Embedding gather with a factor, out[t] = table[input_ids[t]] * scale: four elements at a time.
#include "../hardware.cuh"
#include "../row.cuh"

struct EmbedParams {
  Size num_tokens;
  u32 hidden_size;
  float scale;
};

template <class T>
KERNEL_MIN_BLOCKS(MOVE_THREADS, MOVE_BLOCKS)
embed(float* __restrict__ out, const T* __restrict__ table, const u32* __restrict__ input_ids,
                  EmbedParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  float v[MOVES][4];
  move_rows(
      size_of(p.num_tokens), p.hidden_size / 4,
      [&](u32 i, u32 token, u32 quad) { load4(v[i], table + (u64)input_ids[token] * p.hidden_size + 4 * quad); },
      [&](u32 i, u32 token, u32 quad) {
        for (u32 e = 0; e < 4; e++) v[i][e] *= p.scale;
        store4(out + (u64)token * p.hidden_size + 4 * quad, v[i]);
      });
}
