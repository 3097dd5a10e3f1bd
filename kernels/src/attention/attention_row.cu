// Attention of one query per span, the row of the last layer that is scored: every K and V is read once, so memory
// decides.
//
// A block of four warps takes one (span, kv head) at a time; the query heads that share it are the rows of one m16
// tile. In Q K^T a warp has 16 of a block's 64 keys; the scores pass through shared memory to all four, and each
// repeats the softmax, which is cheap beside the copies, and has a quarter of the columns of P V. Tiles of K and V
// come by turns through a ring of slots.
#include "../hardware.cuh"
#include "attention.cuh"

constexpr u32 BLOCK_HEADS = 16;
constexpr u32 SCORE_BYTES = BLOCK_HEADS * BLOCK_KEYS * 4;
// More copies in flight where a GPU of 99 KiB has room for them.
template <u32 D> constexpr u32 NUM_SLOTS = D == 256 ? 2 : 4;
template <u32 D>
constexpr u32 ATTENTION_ROW_SHARED_BYTES = SCORE_BYTES + (BLOCK_HEADS + NUM_SLOTS<D> * BLOCK_KEYS) * D * 2;

template <class T, u32 D, bool SOFTCAP>
KERNEL(128) attention_row(T* out, const T* q, const T* k, const T* v, const Span* spans, AttentionParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  constexpr u32 CHUNKS = D / 8, WARP_CHUNKS = CHUNKS / 4;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 smem_scores = smem_base(), smem_q = smem_scores + SCORE_BYTES, smem_ring = smem_q + BLOCK_HEADS * D * 2;
  const u32 reach = key_reach(p);
  const ScoreScale scale = score_scale<SOFTCAP>(p);

  // Groups of more than 16 query heads take several items.
  const u32 group = p.num_heads / p.num_kv_heads, group_items = ceil_div(group, BLOCK_HEADS);
  const u32 num_items = size_of(p.num_tiles) * p.num_kv_heads * group_items;
  for (u32 item = blockIdx.x; item < num_items; item += gridDim.x) {
    const u32 group_item = item % group_items, kv_head = item / group_items % p.num_kv_heads;
    const Span span = spans[item / group_items / p.num_kv_heads];
    const u32 first_head = kv_head * group + group_item * BLOCK_HEADS;
    const u32 num_rows = min(BLOCK_HEADS, group - group_item * BLOCK_HEADS);
    const T* q_head = q + (u64)span.query_start * p.q_stride + first_head * p.head_dim;
    const T* k_head = k + kv_head * p.head_dim;
    const T* v_head = v + kv_head * p.head_dim;
    const u32 last = last_key(span, 0, p), begin = first_block(last, reach);
    const u32 num_tiles = ((last - begin) / BLOCK_KEYS + 1) * 2;

    // Tile n is K or V, by turns, of block n / 2; it goes to slot n % NUM_SLOTS. One copy group each, empty beyond
    // the last.
    auto slot = [&](u32 n) { return smem_ring + n % NUM_SLOTS<D> * (BLOCK_KEYS * D * 2); };
    auto copy_tile = [&](u32 n) {
      if (n < num_tiles) load_keys<D>(slot(n), n % 2 == 0 ? k_head : v_head, span, begin + n / 2 * BLOCK_KEYS, p);
      cp_async_commit();
    };
    // Waits for tile n; then everyone is done with tile n - 1, and its slot takes the next one.
    auto next_tile = [&](u32 n) {
      cp_async_wait<NUM_SLOTS<D> - 2>();
      sync_block();
      copy_tile(n + NUM_SLOTS<D> - 1);
    };

    // ---- Q and the first tiles
    load_tile<D, BLOCK_HEADS>(smem_q, q_head, p.head_dim, p.head_dim, num_rows, [](u32 row) { return row; });
    for (u32 n = 0; n < NUM_SLOTS<D> - 1; n++) copy_tile(n);

    float acc[WARP_CHUNKS][4];
#pragma unroll
    for (u32 i = 0; i < WARP_CHUNKS; i++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) acc[i][e] = 0.0f;
    SoftmaxState state = softmax_start();

    for (u32 n = 0; n < num_tiles; n += 2) {
      // ---- this warp's scores = Q K^T of 16 keys, handed on in the registers' order
      next_tile(n);
      float part[2][4] = {};
#pragma unroll
      for (u32 step = 0; step < D / 16; step++) {
        u32 a[4], b[4];
        ldmatrix4(a, chunk_address<D>(smem_q, lane % 16, step * 2 + lane / 16));
        ldmatrix4(b, chunk_address<D>(slot(n), warp * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
        mma16816<T>(part[0], a, b[0], b[1]);
        mma16816<T>(part[1], a, b[2], b[3]);
      }
#pragma unroll
      for (u32 j = 0; j < 2; j++) {
        const u32x4 bits = {float_to_bits(part[j][0]), float_to_bits(part[j][1]),
                            float_to_bits(part[j][2]), float_to_bits(part[j][3])};
        sts128(smem_scores + ((warp * 2 + j) * 32 + lane) * 16, bits);
      }

      // ---- softmax of all 64 keys, the same in every warp
      next_tile(n + 1);
      float scores[8][4];
#pragma unroll
      for (u32 j = 0; j < 8; j++) {
        const u32x4 bits = lds128(smem_scores + (j * 32 + lane) * 16);
        scores[j][0] = bits_to_float(bits.x);
        scores[j][1] = bits_to_float(bits.y);
        scores[j][2] = bits_to_float(bits.z);
        scores[j][3] = bits_to_float(bits.w);
      }
      const u32 key = begin + n / 2 * BLOCK_KEYS;
      if (SOFTCAP) cap_scores(scores, scale);
      if (key + BLOCK_KEYS - 1 > last || last - key >= reach) mask_scores(scores, key, last, last, reach);
      u32 weights[4][4];
      float factor[2];
      softmax_step(factor, state, scores, scale.outer,
                   [&](u32 j, u32 half, float w0, float w1) { packed_at(weights, j, half) = pack2<T>(w0, w1); });

      // ---- acc = acc * factor + P V, a quarter of the columns; ldmatrix takes 32 keys of 8 columns
#pragma unroll
      for (u32 i = 0; i < WARP_CHUNKS; i++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) acc[i][e] *= factor[e / 2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
          u32 b[4];
          ldmatrix4_trans(b, chunk_address<D>(slot(n + 1), half * 32 + lane, warp * WARP_CHUNKS + i));
          mma16816<T>(acc[i], weights[half * 2], b[0], b[1]);
          mma16816<T>(acc[i], weights[half * 2 + 1], b[2], b[3]);
        }
      }
    }

    // ---- out: the rows are heads of one row
    float inverse[2];
    softmax_end(inverse, state);
    T* out_head = out + ((u64)span.query_start * p.num_heads + first_head) * p.head_dim;
#pragma unroll
    for (u32 i = 0; i < WARP_CHUNKS; i++)
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        const u32 row = lane / 4 + half * 8, column = (warp * WARP_CHUNKS + i) * 8 + lane % 4 * 2;
        const u32 values = pack2<T>(acc[i][half * 2] * inverse[half], acc[i][half * 2 + 1] * inverse[half]);
        if (row < num_rows && column < p.head_dim) *(u32*)(out_head + row * p.head_dim + column) = values;
      }

    // The next item's copies go over all of this.
    sync_block();
  }
}
