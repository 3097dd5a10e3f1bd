// What the attention kernels share: the parameter block, spans and masks, tiles in shared memory, and the online
// softmax. For use behind ../hardware.cuh or ../hopper.cuh.
//
// All take keys in blocks of 64, keep the scores of a block in the same registers of the same lanes, and step the
// softmax by the same function. attention.cu and attention_row.cu count blocks from a span's first key, so that a row
// has the same bits from either.
#pragma once

#include "../packed.cuh"

struct AttentionParams {
  Size num_tiles;                // of `attention_row`: spans
  u32 num_heads, num_kv_heads, head_dim;
  u32 q_stride, kv_stride;       // elements of a row of q, and of k and v
  u32 causal, window;            // window: 0 if there is none
  float softmax_scale, softcap;  // above 0; softcap where the instance has one
  u32 pack_shift;                // of `attention_hopper`: a tile has 2^pack_shift heads of each query
};

constexpr u32 BLOCK_KEYS = 64;
constexpr u32 NUM_THREADS = 128;

// ---- masks: a query sees the keys from `last - reach + 1` to `last`

// Of a causal query beyond the span's own, in the rest of a tile, the last ones are zeros.
DEV u32 last_key(const Span& span, u32 query, const AttentionParams& p) {
  const u32 num_keys = span.prefix_len + span.num_keys;
  return p.causal ? num_keys - span.num_queries + query : num_keys - 1;
}

// The window, or more than there can be keys.
DEV u32 key_reach(const AttentionParams& p) { return p.causal && p.window ? p.window : 1u << 31; }

// The first key that is seen from `last`, down to a multiple of 64.
DEV u32 first_block(u32 last, u32 reach) { return last < reach ? 0 : (last - reach + 1) / BLOCK_KEYS * BLOCK_KEYS; }

// The row of k and v that holds a span's key.
DEV u32 key_row(const Span& span, u32 key) {
  return key + (key < span.prefix_len ? span.prefix_start : span.key_start - span.prefix_len);
}

// ---- tiles in shared memory: rows of D elements in chunks of 16 bytes

// Chunks are permuted within every 128 bytes, or within a row that is shorter, so that eight rows of a column of
// chunks lie in different banks: ldmatrix reads them in one cycle.
template <u32 D> DEV u32 chunk_address(u32 tile, u32 row, u32 chunk) {
  const u32 permuted = D == 32 ? chunk ^ ((row >> 1) & 3) : chunk ^ (row & 7);
  return tile + row * (D * 2) + permuted * 16;
}

// From the address of chunk 0 or 1 of a row to the chunk 16 n columns further. Within 128 bytes that is an exclusive
// or, beyond them a constant: only four addresses differ by more than a constant, however wide the row.
DEV u32 columns_right(u32 address, u32 n) { return (address ^ (n % 4 * 32)) + n / 4 * 128; }

// Starts copying `num_rows` rows into a tile of ROWS; `row_of(i)` is the row of the matrix, which begins at the
// head's first column. What is absent, in rows or beyond head_dim, becomes zeros and adds nothing to a product.
template <u32 D, u32 ROWS, class T, class RowOf>
DEV void load_tile(u32 tile, const T* matrix, u32 stride, u32 head_dim, u32 num_rows, RowOf row_of) {
  constexpr u32 CHUNKS = D / 8;
#pragma unroll 4
  for (u32 i = 0; i < ROWS * CHUNKS; i += NUM_THREADS) {
    const u32 row = (i + threadIdx.x) / CHUNKS, chunk = (i + threadIdx.x) % CHUNKS;
    if (ROWS * CHUNKS % NUM_THREADS != 0 && row >= ROWS) break;
    const bool valid = row < num_rows && chunk * 8 < head_dim;
    const T* source = matrix + (u64)(valid ? row_of(row) : 0) * stride + chunk * 8;
    cp_async16(chunk_address<D>(tile, row, chunk), source, valid);
  }
}

// The same for 64 keys of a span from `first` on.
template <u32 D, class T>
DEV void load_keys(u32 tile, const T* matrix, const Span& span, u32 first, const AttentionParams& p) {
  const u32 num_rows = span.prefix_len + span.num_keys - first;
  auto row_of = [&](u32 row) { return key_row(span, first + row); };
  load_tile<D, BLOCK_KEYS>(tile, matrix, p.kv_stride, p.head_dim, num_rows, row_of);
}

// ---- scores: 16 queries x 64 keys of a warp, eight m16n8 accumulators
//
// Of accumulator `j` a lane holds columns 8 j + lane % 4 * 2 and the next: elements 0 and 1 are of row lane / 4, 2
// and 3 of the row 8 below.

// Logits to base 2 are `score * outer`; with a cap, `cap(score * inner) * outer`.
struct ScoreScale {
  float inner, outer;
};

template <bool SOFTCAP> DEV ScoreScale score_scale(const AttentionParams& p) {
  constexpr float LOG2_E = 1.4426950408889634f;
  if (!SOFTCAP) return {1.0f, p.softmax_scale * LOG2_E};
  return {2.0f * LOG2_E * p.softmax_scale / p.softcap, 2.0f * LOG2_E * p.softcap};
}

// softcap * tanh(y) = softcap - 2 softcap / (1 + exp(2 y)). Softmax ignores the constant, so only the quotient is
// kept.
DEV void cap_scores(float (&scores)[8][4], ScoreScale scale) {
#pragma unroll
  for (u32 j = 0; j < 8; j++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) scores[j][e] = -fast_rcp(1.0f + fast_exp2(scores[j][e] * scale.inner));
}

// Sets the scores of unseen keys to minus infinity. Column 0 is key `first`; `last` and `last_below` are the last
// keys that rows lane / 4 and 8 below see.
DEV void mask_scores(float (&scores)[8][4], u32 first, u32 last, u32 last_below, u32 reach) {
  const float lowest = bits_to_float(0xff800000);
#pragma unroll
  for (u32 j = 0; j < 8; j++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) {
      // A key above `last` is a huge number below it.
      const u32 key = first + j * 8 + threadIdx.x % 4 * 2 + e % 2, below = (e < 2 ? last : last_below) - key;
      if (below >= reach) scores[j][e] = lowest;
    }
}

// Running maximum (base 2, scaled) and sum of a lane's two rows. The maximum starts below every score but finite, so
// that a block of masked keys alone leaves everything as it is: weights 2^(-inf) = 0, factor 2^0 = 1. Sums are of
// this lane's columns.
struct SoftmaxState {
  float maximum[2], sum[2];
};

DEV SoftmaxState softmax_start() { return {{-1e30f, -1e30f}, {0.0f, 0.0f}}; }

// One block of keys: scores become weights, which go to `put(j, half, weight, next weight)`; `factor` is for what has been
// summed up so far. Products that feed sums are spelled `fma`: left to the compiler, it might fuse them here and not
// there.
template <class Put>
DEV void softmax_step(float (&factor)[2], SoftmaxState& state, const float (&scores)[8][4], float scale, Put put) {
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
    // The maximum of a row is shared by its four lanes.
    float largest = fmaxf(scores[0][half * 2], scores[0][half * 2 + 1]);
#pragma unroll
    for (u32 j = 1; j < 8; j++) largest = fmaxf(largest, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    largest = fmaxf(largest, shfl_xor(largest, 1));
    largest = fmaxf(largest, shfl_xor(largest, 2));
    const float maximum = fmaxf(state.maximum[half], largest * scale);
    factor[half] = fast_exp2(state.maximum[half] - maximum);
    state.maximum[half] = maximum;

    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
      const float w0 = fast_exp2(fma(scores[j][half * 2], scale, -maximum));
      const float w1 = fast_exp2(fma(scores[j][half * 2 + 1], scale, -maximum));
      sum += w0;
      sum += w1;
      put(j, half, w0, w1);
    }
    state.sum[half] = fma(state.sum[half], factor[half], sum);
  }
}

// The place of two weights in the left operand of the product with v.
DEV u32& packed_at(u32 (&weights)[4][4], u32 j, u32 half) { return weights[j / 2][j % 2 * 2 + half]; }

// 1 / (sum of a row's weights), of the lane's two rows.
DEV void softmax_end(float (&inverse)[2], const SoftmaxState& state) {
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
    float sum = state.sum[half];
    sum += shfl_xor(sum, 1);
    sum += shfl_xor(sum, 2);
    inverse[half] = fast_rcp(sum);
  }
}
