// softmax(mask(cap(q k^T))) v for tiles of 64 queries of packed sequences, flash style: scores never leave the
// registers.
//
// A block of four warps takes one (tile, head) at a time; each warp has 16 queries, and all walk over the keys
// together in blocks of 64. V of a block is copied to shared memory under Q K^T and softmax, the next K under P V.
#include "../hardware.cuh"
#include "attention.cuh"

template <u32 D> constexpr u32 ATTENTION_SHARED_BYTES = (TILE_ROWS + 2 * BLOCK_KEYS) * D * 2;

template <class T, u32 D, bool SOFTCAP>
KERNEL_MIN_BLOCKS(128, (D <= 64 ? 4 : D == 128 ? 3 : 2))
attention(T* out, const T* q, const T* k, const T* v, const Span* spans, const Tile* tiles, AttentionParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  // Queries of D <= 64 stay in registers; wider ones are read again for every block of keys.
  constexpr bool KEEP_Q = D <= 64;
  constexpr u32 CHUNKS = D / 8;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 smem_q = smem_base(), smem_k = smem_q + TILE_ROWS * D * 2, smem_v = smem_k + BLOCK_KEYS * D * 2;
  // Where this lane points ldmatrix: row and half of a 16 x 16 matrix, as each operand has its four 8 x 8 ones.
  const u32 q_address = chunk_address<D>(smem_q, warp * 16 + lane % 16, lane / 16);
  const u32 k_address = chunk_address<D>(smem_k, lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const u32 v_address = chunk_address<D>(smem_v, lane % 16, lane / 16);
  const u32 reach = key_reach(p);
  const ScoreScale scale = score_scale<SOFTCAP>(p);

  // Heads go by fastest: those that share keys run at about the same time.
  const u32 num_items = size_of(p.num_tiles) * p.num_heads;
  for (u32 item = blockIdx.x; item < num_items; item += gridDim.x) {
    const u32 head = item % p.num_heads, kv_head = head / (p.num_heads / p.num_kv_heads);
    const Tile tile = tiles[item / p.num_heads];
    const Span span = spans[tile.span];
    const u32 first_query = tile.block * TILE_ROWS;
    const u32 last_query = min(first_query + TILE_ROWS, span.num_queries) - 1;
    const T* q_head = q + (u64)(span.query_start + first_query) * p.q_stride + head * p.head_dim;
    const T* k_head = k + kv_head * p.head_dim;
    const T* v_head = v + kv_head * p.head_dim;

    // The first and the last query see least far and farthest.
    const u32 near = last_key(span, first_query, p), far = last_key(span, last_query, p);
    const u32 begin = first_block(near, reach);

    // ---- Q and the first K
    const u32 num_queries = last_query - first_query + 1;
    load_tile<D, TILE_ROWS>(smem_q, q_head, p.q_stride, p.head_dim, num_queries, [](u32 row) { return row; });
    load_keys<D>(smem_k, k_head, span, begin, p);
    cp_async_commit();

    u32 q_kept[KEEP_Q ? D / 16 : 1][4];
    float acc[CHUNKS][4];
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) acc[i][e] = 0.0f;
    SoftmaxState state = softmax_start();

    for (u32 key = begin; key <= far; key += BLOCK_KEYS) {
      // ---- K is there, and everyone is done with the V before: V may be copied
      cp_async_wait<0>();
      sync_block();
      load_keys<D>(smem_v, v_head, span, key, p);
      cp_async_commit();

      // ---- scores = Q K^T
      if (KEEP_Q && key == begin) {
#pragma unroll
        for (u32 step = 0; step < D / 16; step++)
          ldmatrix4(q_kept[KEEP_Q ? step : 0], columns_right(q_address, step));
      }
      float scores[8][4];
#pragma unroll
      for (u32 j = 0; j < 8; j++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) scores[j][e] = 0.0f;
#pragma unroll
      for (u32 step = 0; step < D / 16; step++) {
        u32 (&a)[4] = q_kept[KEEP_Q ? step : 0];
        if (!KEEP_Q) ldmatrix4(a, columns_right(q_address, step));
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
          u32 b[4];
          ldmatrix4(b, columns_right(k_address, step) + j * 16 * D * 2);
          mma16816<T>(scores[2 * j], a, b[0], b[1]);
          mma16816<T>(scores[2 * j + 1], a, b[2], b[3]);
        }
      }

      // ---- softmax; only blocks that some query does not see whole pay for the mask
      if (SOFTCAP) cap_scores(scores, scale);
      if (key + BLOCK_KEYS - 1 > near || far - key >= reach) {
        const u32 query = first_query + warp * 16 + lane / 4;
        mask_scores(scores, key, last_key(span, query, p), last_key(span, query + 8, p), reach);
      }
      u32 weights[4][4];
      float factor[2];
      softmax_step(factor, state, scores, scale.outer,
                   [&](u32 j, u32 half, float w0, float w1) { packed_at(weights, j, half) = pack2<T>(w0, w1); });

      // ---- V is there, and everyone is done with K: the next K may be copied
      cp_async_wait<0>();
      sync_block();
      if (key + BLOCK_KEYS <= far) load_keys<D>(smem_k, k_head, span, key + BLOCK_KEYS, p);
      cp_async_commit();

      // ---- acc = acc * factor + P V
#pragma unroll
      for (u32 i = 0; i < CHUNKS; i++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) acc[i][e] *= factor[e / 2];
#pragma unroll
      for (u32 step = 0; step < 4; step++)
#pragma unroll
        for (u32 i = 0; i < D / 16; i++) {
          u32 b[4];
          ldmatrix4_trans(b, columns_right(v_address, i) + step * 16 * D * 2);
          mma16816<T>(acc[2 * i], weights[step], b[0], b[1]);
          mma16816<T>(acc[2 * i + 1], weights[step], b[2], b[3]);
        }
    }

    // ---- out: through the place of this warp's own queries, 8 x 8 values at a time as the registers have them, so
    // that four lanes store 64 bytes of a row side by side
    float inverse[2];
    softmax_end(inverse, state);
    const u32 smem_out = smem_q + warp * 16 * D * 2;
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++)
#pragma unroll
      for (u32 half = 0; half < 2; half++)
        sts32(smem_out + i * 256 + half * 128 + lane * 4,
              pack2<T>(acc[i][half * 2] * inverse[half], acc[i][half * 2 + 1] * inverse[half]));
    sync_warp();
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      const u32 query = first_query + warp * 16 + half * 8 + lane % 8;
      u32x4* out_row = (u32x4*)(out + ((u64)(span.query_start + query) * p.num_heads + head) * p.head_dim);
#pragma unroll
      for (u32 i = 0; i < CHUNKS; i += 4) {
        const u32 chunk = i + lane / 8;
        if (query <= last_query && chunk * 8 < p.head_dim)
          out_row[chunk] = lds128(smem_out + chunk * 256 + half * 128 + lane % 8 * 16);
      }
    }

    // The next item's copies go over all of this.
    sync_block();
  }
}
