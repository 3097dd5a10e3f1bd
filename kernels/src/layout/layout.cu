// From the segments of a packed batch to all that the other kernels read of it. One block: there is little to do, and
// the sums need no second launch.
#include "../hardware.cuh"
#include "../packed.cuh"

struct LayoutParams {
  u32 ratio;             // rows of a passage that become one; 1 leaves passages alone
  u32 scores_first_row;  // of a scored segment: 1 the first row is scored, 0 the last
};

// What the host says of a batch.
struct Header {
  u32 num_segments;
  u32 carried_rows;  // of the prefix that the batch before has kept
  u32 kept_segment;  // what the next batch begins with, or NO_SEGMENT
};

// What launches read of it.
struct Counts {
  u32 num_tokens, num_seqs, num_tiles;  // rows; scored segments; query tiles
  u32 kept_start, kept_rows;            // rows of the kept segment
  u32 carried_rows;
};

// A warp has as many lanes as the block has warps: the sums of all warps are scanned by one warp's lanes.
constexpr u32 LAYOUT_THREADS = 1024;

DEV u32 warp_inclusive_sum(u32 v) {
  for (u32 delta = 1; delta < 32; delta *= 2) {
    u32 below = shfl_up(v, delta);
    if (threadIdx.x % 32 >= delta) v += below;
  }
  return v;
}

// The sum of `v` over the threads below this one; `total` is that over the block.
DEV u32 block_exclusive_sum(u32 v, u32& total) {
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 inclusive = warp_inclusive_sum(v);
  if (lane == 31) sts32(smem_base() + 4 * warp, inclusive);
  sync_block();
  const u32 warps = warp_inclusive_sum(lds32(smem_base() + 4 * lane));
  total = shfl(warps, 31);
  const u32 below = shfl(warps, max(warp, 1u) - 1);
  sync_block();  // all have read before the next sum writes
  return (warp > 0 ? below : 0) + inclusive - v;
}

// `header_out` and `segments_out` may be the inputs themselves.
KERNEL(LAYOUT_THREADS) layout(Header* header_out, Segment* segments_out, Counts* counts, u32* cu_seqlens,
                              u32* position_ids, Span* spans, Tile* tiles, u32* scored_rows, u32* scored_position_ids,
                              Span* scored_spans, const Header* header, const Segment* segments, LayoutParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Header batch = *header;
  const u32 n = batch.num_segments;

  // Compressed segments, and the row where each begins.
  u32 num_tokens = 0;
  for (u32 base = 0; base < n; base += LAYOUT_THREADS) {
    const u32 i = base + threadIdx.x;
    u32 rows = 0, total;
    if (i < n) {
      Segment segment = segments[i];
      segment.passage = ceil_div(segment.passage, p.ratio);
      segments_out[i] = segment;
      rows = num_rows(segment);
    }
    const u32 start = num_tokens + block_exclusive_sum(rows, total);
    if (i < n) cu_seqlens[i] = start;
    num_tokens += total;
  }
  if (threadIdx.x == 0) cu_seqlens[n] = num_tokens;
  sync_block();  // cu_seqlens is read by other threads from here on

  // Spans; the scored ones and the tiles in the order of their segments. Sequences whose last row is scored are causal: of
  // a span's own blocks of keys, a tile sees those up to its own.
  const bool is_causal = !p.scores_first_row;
  u32 num_seqs = 0, num_tiles = 0, work = 0;
  for (u32 base = 0; base < n; base += LAYOUT_THREADS) {
    const u32 i = base + threadIdx.x;
    Span span = {};
    bool is_scored = false;
    if (i < n) {
      const u32 before = segments[i].before;
      is_scored = segments[i].is_scored;
      span.query_start = span.key_start = cu_seqlens[i];
      span.num_queries = span.num_keys = cu_seqlens[i + 1] - cu_seqlens[i];
      if (before == CARRIED_PREFIX) {
        span.prefix_start = num_tokens, span.prefix_len = batch.carried_rows;
      } else if (before != NO_SEGMENT) {
        span.prefix_start = cu_seqlens[before], span.prefix_len = cu_seqlens[before + 1] - cu_seqlens[before];
      }
      spans[i] = span;
    }
    // Blocks of 64 queries, and of as many keys: the span's own, and its prefix's.
    const u32 blocks = ceil_div(span.num_queries, TILE_ROWS), before = ceil_div(span.prefix_len, TILE_ROWS);
    const u32 seen = is_causal ? blocks * (blocks + 1) / 2 : blocks * blocks;
    u32 total_seqs, total_tiles, total_work;
    const u32 seq = num_seqs + block_exclusive_sum(is_scored, total_seqs);
    const u32 tile = num_tiles + block_exclusive_sum(blocks, total_tiles);
    u32 work_before = work + block_exclusive_sum(blocks * (1 + before) + seen, total_work);
    num_seqs += total_seqs;
    num_tiles += total_tiles;
    work += total_work;
    for (u32 block = 0; block < blocks; block++) {
      tiles[tile + block] = {i, block, work_before};
      work_before += 1 + before + (is_causal ? block + 1 : blocks);
    }
    if (is_scored) {
      const u32 row = p.scores_first_row ? 0 : span.num_queries - 1;
      scored_rows[seq] = span.query_start + row;
      scored_position_ids[seq] = span.prefix_len + row;
      scored_spans[seq] = {seq, 1, span.prefix_start, span.prefix_len, span.key_start, span.num_keys};
    }
  }

  // Positions, counted from the prefix's length: a warp per segment. Its span was written before the barriers of the
  // sums above.
  for (u32 i = threadIdx.x / 32; i < n; i += LAYOUT_THREADS / 32) {
    const Span span = spans[i];
    for (u32 row = threadIdx.x % 32; row < span.num_queries; row += 32) {
      position_ids[span.query_start + row] = span.prefix_len + row;
    }
  }

  if (threadIdx.x == 0) {
    tiles[num_tiles] = {0, 0, work};
    *header_out = batch;
    *counts = {num_tokens, num_seqs, num_tiles, 0, 0, batch.carried_rows};
    if (batch.kept_segment != NO_SEGMENT) {
      counts->kept_start = cu_seqlens[batch.kept_segment];
      counts->kept_rows = cu_seqlens[batch.kept_segment + 1] - counts->kept_start;
    }
  }
}
