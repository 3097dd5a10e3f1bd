// softmax(mask(cap(q k^T))) v on Hopper's wgmma tensor cores, flash style: scores never leave the registers.
//
// A tile is 64 rows: a query's heads that share keys stand side by side, as many as `pack_shift` says, and the next
// query's below them. So however few heads have keys of their own, a block reads keys once for all that share them,
// and a tile is full with as few queries as that takes.
//
// Blocks are persistent. Tiles stand in one order, by heads, then spans, then queries, and each block takes a run of
// it, as long as its share of the work: most tiles of a span meet in one block. Tiles of one span and heads that come
// one after the other are a group. Warpgroup 0 provides: a warp plans groups, a thread has TMA fill a ring of slots in
// shared memory with blocks of 64 keys and their values, another fetches queries, a warp clears what must be no values.
// The other warpgroups take tiles in turns, and keep scores and sums in their registers: while one waits for products
// another computes exponentials. If the ring holds all of a group's keys, they stay there until its last tile is done;
// if not, a group is one tile for each warpgroup, and they follow one another through the keys.
//
// Keys are taken in blocks of 64, counted from the start of the prefix and again from the start of the other keys, and
// a row steps through them by the same instructions wherever in a tile it stands: its bits depend on nothing else.
#include "../hopper.cuh"
#include "attention.cuh"

// ---- shared memory

constexpr u32 LINE_BYTES = 128;  // of the swizzle: 64 columns
constexpr u32 PANEL_BYTES = 64 * LINE_BYTES;  // 64 rows of them
constexpr u32 OUT_BYTES = 16 * LINE_BYTES;    // of a warp: its rows on their way out
constexpr u32 NUM_GROUPS = 4, GROUP_BYTES = 64;  // planned ahead

// With wider heads the sums take the registers of a third consumer.
template <u32 D> constexpr u32 CONSUMERS = D == 64 ? 3 : 2;
template <u32 D> constexpr u32 THREADS = 128 * (1 + CONSUMERS<D>);
template <u32 D> constexpr u32 PANELS = D / 64;
template <u32 D> constexpr u32 TILE_BYTES = PANELS<D> * PANEL_BYTES;
// Half of them hold keys, half values.
template <u32 D> constexpr u32 NUM_SLOTS = D == 64 ? 22 : D == 128 ? 11 : 4;

template <u32 D> constexpr u32 SLOTS = CONSUMERS<D> * TILE_BYTES<D>;  // behind a tile of queries for each consumer
template <u32 D> constexpr u32 OUT = SLOTS<D> + NUM_SLOTS<D> * TILE_BYTES<D>;
template <u32 D> constexpr u32 GROUPS = OUT<D> + CONSUMERS<D> * 4 * OUT_BYTES;
// Of a slot: full, empty, and landed: what has come is still to be cleared. Of a consumer's queries and of a group: full,
// empty.
template <u32 D> constexpr u32 SLOT_BARRIERS = GROUPS<D> + NUM_GROUPS * GROUP_BYTES;
template <u32 D> constexpr u32 QUERY_BARRIERS = SLOT_BARRIERS<D> + 3 * NUM_SLOTS<D> * 8;
template <u32 D> constexpr u32 GROUP_BARRIERS = QUERY_BARRIERS<D> + 2 * CONSUMERS<D> * 8;
// Where the block's tiles begin, and where the next one's do.
template <u32 D> constexpr u32 RUN = GROUP_BARRIERS<D> + 2 * NUM_GROUPS * 8;
template <u32 D> constexpr u32 ATTENTION_HOPPER_SHARED_BYTES = RUN<D> + 16;

// A place in the ring. Slots are filled in order, keys of a block and then its values, so that the number of the filling
// tells the slot and the phase of its barriers.
template <u32 D> struct Slot {
  u32 number;

  DEV u32 index() const { return number % NUM_SLOTS<D>; }
  DEV u32 parity() const { return number / NUM_SLOTS<D> & 1; }
  DEV u32 address() const { return smem_base() + SLOTS<D> + index() * TILE_BYTES<D>; }
  DEV u32 full() const { return smem_base() + SLOT_BARRIERS<D> + index() * 8; }
  DEV u32 empty() const { return full() + NUM_SLOTS<D> * 8; }
  DEV u32 landed() const { return empty() + NUM_SLOTS<D> * 8; }
};

template <u32 D> DEV u32 queries_address(u32 consumer) { return smem_base() + consumer * TILE_BYTES<D>; }
template <u32 D> DEV u32 queries_full(u32 consumer) { return smem_base() + QUERY_BARRIERS<D> + consumer * 16; }
template <u32 D> DEV u32 queries_empty(u32 consumer) { return queries_full<D>(consumer) + 8; }

// ---- keys of a span, and who sees them: a query sees those from `last - reach + 1` to `last`

// The block of a key, and the first key of that block.
DEV u32 block_of(const Span& span, u32 key) {
  if (key < span.prefix_len) return key / BLOCK_KEYS;
  return ceil_div(span.prefix_len, BLOCK_KEYS) + (key - span.prefix_len) / BLOCK_KEYS;
}
DEV u32 block_start(const Span& span, u32 key) {
  return key - (key < span.prefix_len ? key : key - span.prefix_len) % BLOCK_KEYS;
}
// Keys of the block that begins with `key`.
DEV u32 block_keys(u32 prefix_len, u32 num_keys, u32 key) {
  return min(BLOCK_KEYS, (key < prefix_len ? 0 : num_keys) + prefix_len - key);
}
DEV u32 first_key(const Span& span, u32 query, const AttentionParams& p) {
  const u32 last = last_key(span, query, p), reach = key_reach(p);
  return last < reach ? 0 : last - reach + 1;
}

// ---- groups

// Consecutive tiles of one span and the same heads.
struct Group {
  Span span;
  u32 heads;  // which `1 << pack_shift` of them
  u32 first_query, num_tiles;   // no tiles: there are no more groups
  u32 first_block, num_blocks;  // of keys that some of its queries sees
  // Of the block's tiles and of the ring's fillings, those of earlier groups not counted again: a tile's number tells whose
  // turn it is.
  u32 first_tile, first_slot;
};
constexpr u32 GROUP_WORDS = sizeof(Group) / 4;
static_assert(GROUP_WORDS * 4 <= GROUP_BYTES, "a group fits its place");

// The n-th group of the block in shared memory.
template <u32 D> struct Plan {
  u32 number;

  DEV u32 address() const { return smem_base() + GROUPS<D> + opaque(number) % NUM_GROUPS * GROUP_BYTES; }
  DEV u32 parity() const { return number / NUM_GROUPS & 1; }
  DEV u32 full() const { return smem_base() + GROUP_BARRIERS<D> + opaque(number) % NUM_GROUPS * 8; }
  DEV u32 empty() const { return full() + NUM_GROUPS * 8; }

  DEV void write(const Group& group) const {
    // The phase before the first counts as ended: the first round does not wait.
    mbarrier_wait(empty(), parity() ^ 1);
    const u32 words[GROUP_WORDS] = {group.span.query_start, group.span.num_queries, group.span.prefix_start, group.span.prefix_len,
                                    group.span.key_start,   group.span.num_keys,    group.heads,             group.first_query,
                                    group.num_tiles,        group.first_block,      group.num_blocks,        group.first_tile,
                                    group.first_slot};
#pragma unroll
    for (u32 i = 0; i < GROUP_WORDS; i++) sts32(address() + i * 4, words[i]);
    mbarrier_arrive(full());
  }
  DEV void wait() const { mbarrier_wait(full(), parity()); }
  DEV u32 word(u32 i) const { return lds32(address() + i * 4); }
  DEV u32 field(u64 offset) const { return lds32(address() + (u32)offset); }
  DEV u32 end_tile() const { return field(offset_of(Group, first_tile)) + field(offset_of(Group, num_tiles)); }
  DEV Group read() const {
    return {{word(0), word(1), word(2), word(3), word(4), word(5)}, word(6), word(7), word(8), word(9), word(10), word(11), word(12)};
  }
};

// Calls `visit` for every group of the block. For one thread, or a whole warp.
template <u32 D, class Visit> DEV void for_each_group(bool is_warp, Visit visit) {
#pragma unroll 1
  for (Plan<D> plan = {0};; plan.number++) {
    plan.wait();
    const Group group = plan.read();
    if (group.num_tiles == 0) break;
    visit(group);
    if (is_warp) sync_warp();
    if (!is_warp || threadIdx.x % 32 == 0) mbarrier_arrive(plan.empty());
  }
}

// A place in the order of all tiles: of which heads, and among theirs. 64 queries of a span have as many places as heads
// share keys, even where the last of these are beyond the span's queries.
struct Place {
  u32 heads, place;
};

// The place of the first tile that begins at `work` or later. For a whole warp.
DEV Place place_at(u64 work, const Tile* tiles, u32 num_tiles, u32 places) {
  const u64 work_of_heads = (u64)(tiles ? tiles[num_tiles].work_before : num_tiles) * places;
  if (work_of_heads == 0) return {0, 0};
  const u32 heads = (u32)(work / work_of_heads), rest = (u32)(work % work_of_heads);
  if (!tiles) return {heads, rest};
  // The last tile that begins at or before `rest`, of which each place is a part: 32 candidates at a time.
  u32 first = 0, count = num_tiles;
  while (count > 1) {
    const u32 step = ceil_div(count, 32u), candidate = threadIdx.x % 32 * step;
    const bool is_before = candidate < count && tiles[first + candidate].work_before <= rest / places;
    const u32 skipped = (count_lanes(is_before) - 1) * step;
    first += skipped;
    count = min(step, count - skipped);
  }
  const u32 before = tiles[first].work_before, own = tiles[first + 1].work_before - before;
  return {heads, first * places + ceil_div(rest - before * places, own)};
}

// Plans the groups of the tiles from `at` on.
template <u32 D>
DEV void plan_groups(Place at, u32 num_places, u32 places_of_heads, const Span* spans, const Tile* tiles, const AttentionParams& p) {
  const u32 shift = tiles ? p.pack_shift : 0, queries = TILE_ROWS >> p.pack_shift;
  Plan<D> plan = {0};
  u32 tile_number = 0, slot_number = 0;
  while (num_places > 0) {
    const Tile tile = tiles ? tiles[at.place >> shift] : Tile{at.place, 0, 0};
    const Span span = spans[tile.span];
    const u32 first = tile.block * TILE_ROWS + (at.place & ((1 << shift) - 1)) * queries;
    // Places to the end of the span, and those with queries.
    const u32 left = tiles ? (ceil_div(span.num_queries, TILE_ROWS) << shift) - first / queries : 1;
    const u32 filled = first < span.num_queries ? ceil_div(span.num_queries - first, queries) : 0;
    u32 count = min(filled, num_places);
    if (count > 0) {
      const auto end_block = [&] { return block_of(span, last_key(span, min(first + count * queries, span.num_queries) - 1, p)) + 1; };
      const u32 first_block = block_of(span, first_key(span, first, p));
      if (2 * (end_block() - first_block) > NUM_SLOTS<D>) count = min(count, CONSUMERS<D>);
      const u32 num_blocks = end_block() - first_block;
      plan.write({span, at.heads, first, count, first_block, num_blocks, tile_number, slot_number});
      plan.number++, tile_number += count, slot_number += 2 * num_blocks;
    }
    if (count == filled) count = left;
    num_places -= min(count, num_places);
    at.place += count;
    if (at.place == places_of_heads) at = {at.heads + 1, 0};
  }
  plan.write({});
}

// ---- fetching

// The box of a tile's columns: panels of 64, side by side.
template <u32 D> DEV void fetch(u32 address, const TensorMap* map, u32 barrier, u32 head, u32 row) {
  mbarrier_arrive_expect(barrier, TILE_BYTES<D>);
#pragma unroll
  for (u32 panel = 0; panel < PANELS<D>; panel++) tma_load(address + panel * PANEL_BYTES, map, barrier, panel * 64, head, row);
}

template <u32 D> DEV void fetch_keys(const TensorMap* map_k, const TensorMap* map_v, const AttentionParams& p) {
  // Packs of query heads that a key head has.
  const u32 packs = (p.num_heads / p.num_kv_heads) >> p.pack_shift;
  for_each_group<D>(false, [&](const Group& group) {
    Slot<D> slot = {group.first_slot};
    const u32 head = group.heads / packs, blocks_before = ceil_div(group.span.prefix_len, BLOCK_KEYS);
#pragma unroll 1
    for (u32 block = group.first_block; block < group.first_block + group.num_blocks; block++) {
      const bool is_prefix = block < blocks_before;
      const u32 first = (is_prefix ? block : block - blocks_before) * BLOCK_KEYS;
      const u32 row = (is_prefix ? group.span.prefix_start : group.span.key_start) + first;
      const bool is_full = (is_prefix ? group.span.prefix_len : group.span.num_keys) - first >= BLOCK_KEYS;
      mbarrier_wait(slot.empty(), slot.parity() ^ 1);
      fetch<D>(slot.address(), map_k, slot.full(), head, row);
      slot.number++;
      mbarrier_wait(slot.empty(), slot.parity() ^ 1);
      fetch<D>(slot.address(), map_v, is_full ? slot.full() : slot.landed(), head, row);
      slot.number++;
    }
  });
}

// Behind a span's last key there are rows of others, or none. Keys there have no weight, but no weight times NaN is NaN:
// such rows of values become zeros.
template <u32 D> DEV void clear_values() {
  const u32 lane = threadIdx.x % 32;
  u32 parities = 0;  // of the slots' `landed`, which not every round uses
  for_each_group<D>(true, [&](const Group& group) {
    Slot<D> slot = {group.first_slot + 1};
    const u32 blocks_before = ceil_div(group.span.prefix_len, BLOCK_KEYS);
#pragma unroll 1
    for (u32 block = group.first_block; block < group.first_block + group.num_blocks; block++, slot.number += 2) {
      const u32 first = (block < blocks_before ? block : block - blocks_before) * BLOCK_KEYS;
      const u32 num_keys = (block < blocks_before ? group.span.prefix_len : group.span.num_keys) - first;
      if (num_keys >= BLOCK_KEYS) continue;
      mbarrier_wait(slot.landed(), parities >> slot.index() & 1);
      parities ^= 1 << slot.index();
      for (u32 panel = 0; panel < PANELS<D>; panel++)
        for (u32 i = num_keys * 8 + lane; i < BLOCK_KEYS * 8; i += 32)
          sts128(slot.address() + panel * PANEL_BYTES + i * 16, {0, 0, 0, 0});
      proxy_fence();
      sync_warp();
      if (lane == 0) mbarrier_arrive(slot.full());
    }
  });
}

template <u32 D> DEV void fetch_queries(const TensorMap* map_q, const AttentionParams& p) {
  const u32 queries = TILE_ROWS >> p.pack_shift;
  for_each_group<D>(false, [&](const Group& group) {
    const u32 row = group.span.query_start + group.first_query;
#pragma unroll 1
    for (u32 i = 0; i < group.num_tiles; i++) {
      const u32 tile = group.first_tile + i, consumer = tile % CONSUMERS<D>;
      mbarrier_wait(queries_empty<D>(consumer), (tile / CONSUMERS<D> & 1) ^ 1);
      fetch<D>(queries_address<D>(consumer), map_q, queries_full<D>(consumer), group.heads << p.pack_shift, row + i * queries);
    }
  });
}

// ---- consumers
//
// Lane `lane` of warp `warp` of a consumer holds scores[j][2 h + e]: row `16 warp + lane / 4 + 8 h` of the tile, key
// `8 j + lane % 4 * 2 + e` of the block; and acc[4 j + 2 h + e]: of that row, column `8 j + lane % 4 * 2 + e` of the sums.

// Says that this warp is through with a slot or with queries.
DEV void release(u32 barrier) {
  if (thread_index() % 32 == 0) mbarrier_arrive(barrier);
}

// Waits for a slot, and is through with it: once all lanes have seen it, for then it may be filled again.
template <u32 D> DEV void pass(Slot<D> slot) {
  mbarrier_wait(slot.full(), slot.parity());
  sync_warp();
  release(slot.empty());
}

// Weights that stand in their scores' place, as the left operand of the product with v.
template <class T> DEV void pack_weights(u32 (&packed)[4][4], const float (&weights)[8][4]) {
#pragma unroll
  for (u32 j = 0; j < 8; j++)
#pragma unroll
    for (u32 half = 0; half < 2; half++) packed_at(packed, j, half) = pack2<T>(weights[j][half * 2], weights[j][half * 2 + 1]);
}

// Begins scores = Q K^T: queries are in registers or in shared memory.
template <class T, u32 D> DEV void multiply_keys(float (&scores)[8][4], const u32 (&q)[4][4], u32 smem_q, u32 smem_k) {
  float (&sums)[32] = *(float (*)[32])scores;
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < D / 16; step++) {
    const u64 k = wgmma_operand(smem_k + step / 4 * PANEL_BYTES) + step % 4 * 2;
    if constexpr (D == 64) wgmma_registers<T, false>(sums, q[step], k, step > 0);
    else wgmma<T>(sums, wgmma_operand(smem_q + step / 4 * PANEL_BYTES) + step % 4 * 2, k, step > 0);
  }
  wgmma_commit();
}

// Begins acc += P V.
template <class T, u32 D> DEV void multiply_values(float (&acc)[D / 2], const u32 (&weights)[4][4], u32 smem_v) {
  wgmma_fence();
#pragma unroll
  for (u32 step = 0; step < 4; step++) {
    const u64 v = wgmma_transposed_operand(smem_v + step * 16 * LINE_BYTES, PANEL_BYTES);
    wgmma_registers<T, true>(acc, weights[step], v, true);
  }
  wgmma_commit();
}

// Sets the scores of unseen keys to minus infinity: of a block of `num_keys` from `first` on. `last` is the last key that
// the lane's first row sees.
DEV void mask_block(float (&scores)[8][4], u32 first, u32 num_keys, u32 last, const AttentionParams& p) {
  const u32 reach = key_reach(p), last_below = last + (p.causal ? 8 >> p.pack_shift : 0);
  // Only blocks that a lane's rows do not see whole pay for it.
  if (num_keys == BLOCK_KEYS && first + BLOCK_KEYS - 1 <= last && last_below - first < reach) return;
  const float lowest = bits_to_float(0xff800000);
  const u32 column = thread_index() % 4 * 2;
#pragma unroll
  for (u32 j = 0; j < 8; j++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) {
      const u32 key = j * 8 + column + e % 2;
      // A key above the last is a huge number below it.
      const u32 below = (e < 2 ? last : last_below) - first - key;
      if (key >= num_keys || below >= reach) scores[j][e] = lowest;
    }
}

// Sums times the factor of their row, where that is any but 1.
template <u32 N> DEV void rescale(float (&acc)[N], const float (&factor)[2]) {
  if (count_lanes(factor[0] != 1.0f || factor[1] != 1.0f) == 0) return;
#pragma unroll
  for (u32 i = 0; i < N; i++) acc[i] *= factor[i / 2 % 2];
}

// Stores a warp's 16 rows of the tile, 64 columns at a time: through shared memory, where the accumulators become rows.
template <class T, u32 D>
DEV void store(T* out, const float (&acc)[D / 2], const float (&inverse)[2], u32 consumer, const Group& group, u32 first_query,
               const AttentionParams& p) {
  // What follows from the thread's place is worked out here: kept from tile to tile it would take registers.
  const u32 thread = thread_index(), lane = thread % 32, warp = thread % 128 / 32;
  const u32 smem = smem_base() + OUT<D> + (consumer * 4 + warp) * OUT_BYTES;
  // A lane gives the address of a row of one of four 8 x 8 matrices: both halves of the rows, two groups of columns.
  const u32 line = smem + lane % 16 * LINE_BYTES;
#pragma unroll
  for (u32 panel = 0; panel < PANELS<D>; panel++) {
#pragma unroll
    for (u32 chunk = 0; chunk < 8; chunk += 2) {
      const auto word = [&](u32 chunk, u32 half) {
        const u32 i = panel * 32 + chunk * 4 + half * 2;
        return pack2<T>(acc[i] * inverse[half], acc[i + 1] * inverse[half]);
      };
      stmatrix4(line + ((chunk + lane / 16) ^ lane % 8) * 16, word(chunk, 0), word(chunk, 1), word(chunk + 1, 0), word(chunk + 1, 1));
    }
    sync_warp();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      const u32 row = i * 4 + lane / 8, chunk = lane % 8, column = panel * 64 + chunk * 8;
      const u32 query = first_query + ((warp * 16 + row) >> p.pack_shift);
      const u32 head = (group.heads << p.pack_shift) + ((warp * 16 + row) & ((1 << p.pack_shift) - 1));
      T* target = out + ((u64)(group.span.query_start + query) * p.num_heads + head) * p.head_dim + column;
      if (query < group.span.num_queries && column < p.head_dim)
        *(u32x4*)target = lds128(smem + row * LINE_BYTES + (chunk ^ row % 8) * 16);
    }
    sync_warp();
  }
}

// The block's tile of number `tile`, of the group that `plan` holds.
template <class T, u32 D, bool SOFTCAP> DEV void attend(T* out, u32 tile, Plan<D> plan, const AttentionParams& p) {
  const u32 thread = thread_index(), lane = thread % 32, row = thread % 128 / 32 * 16, consumer = tile % CONSUMERS<D>;
  const auto query_of = [&](const Group& group) { return group.first_query + (tile - group.first_tile) * (TILE_ROWS >> p.pack_shift); };
  const ScoreScale scale = score_scale<SOFTCAP>(p);
  const u32 smem_q = queries_address<D>(consumer);
  // With a consumer's last tile of a group its keys and values may go.
  const auto is_last = [&] { return tile + CONSUMERS<D> >= plan.end_tile(); };

  // ---- what the tile sees: keys `first` .. `far`, in whole blocks
  u32 first, far, last;
  Slot<D> slot;
  {
    const Group group = plan.read();
    const u32 first_query = query_of(group), last_query = min(first_query + (TILE_ROWS >> p.pack_shift), group.span.num_queries) - 1;
    slot.number = group.first_slot;
    first = block_start(group.span, first_key(group.span, first_query, p));
    far = last_key(group.span, last_query, p);
    last = last_key(group.span, first_query + ((row + lane / 4) >> p.pack_shift), p);
    const u32 skipped = block_of(group.span, first) - group.first_block;
#pragma unroll 1
    for (u32 i = 0; i < 2 * skipped; i++, slot.number++) {
      if (is_last()) pass(slot);
    }
  }
  const auto num_keys = [&] {
    const u32 prefix_len = plan.field(offset_of(Group, span.prefix_len)), num_keys = plan.field(offset_of(Group, span.num_keys));
    return block_keys(prefix_len, num_keys, first);
  };

  // ---- queries
  u32 q[4][4];
  mbarrier_wait(queries_full<D>(consumer), tile / CONSUMERS<D> & 1);
  if constexpr (D == 64) {
    sync_warp();
#pragma unroll
    for (u32 step = 0; step < 4; step++)
      ldmatrix4(q[step], smem_q + (row + lane % 16) * LINE_BYTES + ((step * 2 + lane / 16) ^ lane % 8) * 16);
    sync_warp();
    release(queries_empty<D>(consumer));
  }

  // ---- the first block's scores
  float scores[8][4], acc[D / 2], factor[2];
  u32 weights[4][4];
#pragma unroll
  for (u32 i = 0; i < D / 2; i++) acc[i] = 0.0f;
  SoftmaxState state = softmax_start();
  const auto softmax = [&] {
    if (SOFTCAP) cap_scores(scores, scale);
    mask_block(scores, first, num_keys(), last, p);
    softmax_step(factor, state, scores, scale.outer,
                 [&](u32 j, u32 half, float w0, float w1) { scores[j][half * 2] = w0, scores[j][half * 2 + 1] = w1; });
  };
  mbarrier_wait(slot.full(), slot.parity());
  multiply_keys<T, D>(scores, q, smem_q, slot.address());
  wgmma_wait<0>();
  if (is_last()) release(slot.empty());
  softmax();
  pack_weights<T>(weights, scores);

  // ---- the next block's scores, and under their softmax the product of the block before. With the widest heads there are
  // no registers for that; but there products take four times as long as a softmax, and it runs under another consumer's.
  constexpr bool OVERLAPS = D < 256;
  first += num_keys();
#pragma unroll 1
  for (; first <= far; first += num_keys()) {
    const Slot<D> values = {slot.number + 1};
    slot.number += 2;
    mbarrier_wait(slot.full(), slot.parity());
    multiply_keys<T, D>(scores, q, smem_q, slot.address());
    mbarrier_wait(values.full(), values.parity());
    multiply_values<T, D>(acc, weights, values.address());
    wgmma_wait<OVERLAPS ? 1 : 0>();
    softmax();
    if constexpr (OVERLAPS) {
      computed(state.sum[0] + state.sum[1]);
      wgmma_wait<0>();
    }
    if (is_last()) release(slot.empty()), release(values.empty());
    rescale(acc, factor);
    pack_weights<T>(weights, scores);
  }
  if constexpr (D > 64) release(queries_empty<D>(consumer));

  // ---- the last product
  slot.number++;
  mbarrier_wait(slot.full(), slot.parity());
  multiply_values<T, D>(acc, weights, slot.address());
  wgmma_wait<0>();
  if (is_last()) release(slot.empty());
  slot.number++;

  const Group group = plan.read();
  if (is_last()) {
#pragma unroll 1
    for (; slot.number < group.first_slot + 2 * group.num_blocks; slot.number++) pass(slot);
  }
  float inverse[2];
  softmax_end(inverse, state);
  store<T, D>(out, acc, inverse, consumer, group, query_of(group), p);
}

template <class T, u32 D, bool SOFTCAP> DEV void consume(T* out, u32 consumer, const AttentionParams& p) {
  u32 tile = consumer;  // the next one of this consumer
#pragma unroll 1
  for (Plan<D> plan = {0};; plan.number++) {
    plan.wait();
    if (plan.field(offset_of(Group, num_tiles)) == 0) break;
    if (tile >= plan.end_tile()) {
      const u32 first = plan.field(offset_of(Group, first_slot)), num_slots = 2 * plan.field(offset_of(Group, num_blocks));
#pragma unroll 1
      for (u32 i = 0; i < num_slots; i++) pass(Slot<D>{first + i});
    }
#pragma unroll 1
    for (; tile < plan.end_tile(); tile += CONSUMERS<D>) attend<T, D, SOFTCAP>(out, tile, plan, p);
    sync_warp();
    release(plan.empty());
  }
}

// ---- the kernel

// Registers of a thread: of 65536, what the producers do without goes to the consumers.
template <u32 D> constexpr int PRODUCER_REGISTERS = 40;
template <u32 D> constexpr int CONSUMER_REGISTERS = D == 64 ? 152 : 232;

// The maps see heads of head_dim columns; boxes are 64 columns, of q the heads of a pack and the queries of a tile, of
// k and v one head and 64 rows, all of them swizzled. `tiles` is null where every span has one query. Of every tile
// `work_before` counts from 0, and behind the last stands one that tells the sum.
template <class T, u32 D, bool SOFTCAP>
KERNEL_CLUSTER(THREADS<D>, 1)
attention_hopper(TENSOR_MAP map_q, TENSOR_MAP map_k, TENSOR_MAP map_v, T* out, const Span* spans, const Tile* tiles, AttentionParams p) {
  const u32 warp = threadIdx.x / 32, warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    prefetch_map(&map_q);
    prefetch_map(&map_k);
    prefetch_map(&map_v);
    for (Slot<D> slot = {0}; slot.number < NUM_SLOTS<D>; slot.number++) {
      mbarrier_init(slot.full(), 1);
      mbarrier_init(slot.landed(), 1);
      mbarrier_init(slot.empty(), CONSUMERS<D> * 4);
    }
    for (u32 consumer = 0; consumer < CONSUMERS<D>; consumer++) {
      mbarrier_init(queries_full<D>(consumer), 1);
      mbarrier_init(queries_empty<D>(consumer), 4);
    }
    for (Plan<D> plan = {0}; plan.number < NUM_GROUPS; plan.number++) {
      mbarrier_init(plan.full(), 1);
      mbarrier_init(plan.empty(), 3 + CONSUMERS<D> * 4);
    }
    mbarrier_init_fence();
  }
  wait_for_previous_kernel();
  let_next_kernel_start();

  // The share of this block: from where its part of the work begins to where the next one's does.
  const u32 num_tiles = size_of(p.num_tiles), places = tiles ? 1 << p.pack_shift : 1;
  if (warp < 2) {
    const u64 work = (u64)(tiles ? tiles[num_tiles].work_before : num_tiles) * places * (p.num_heads >> p.pack_shift);
    const Place place = place_at(work * (blockIdx.x + warp) / gridDim.x, tiles, num_tiles, places);
    if (threadIdx.x % 32 == 0) {
      sts32(smem_base() + RUN<D> + warp * 8, place.heads);
      sts32(smem_base() + RUN<D> + warp * 8 + 4, place.place);
    }
  }
  sync_block();

  if (warpgroup == 0) {
    give_registers<PRODUCER_REGISTERS<D>>();
    if (threadIdx.x == 0) {
      const auto word = [](u32 i) { return lds32(smem_base() + RUN<D> + i * 4); };
      const Place begin = {word(0), word(1)}, end = {word(2), word(3)};
      const u32 num_places = (end.heads - begin.heads) * num_tiles * places + end.place - begin.place;
      plan_groups<D>(begin, num_places, num_tiles * places, spans, tiles, p);
    }
    if (threadIdx.x == 32) fetch_keys<D>(&map_k, &map_v, p);
    if (threadIdx.x == 64) fetch_queries<D>(&map_q, p);
    if (warp == 3) clear_values<D>();
    sync_warp();
  } else {
    take_registers<CONSUMER_REGISTERS<D>>();
    consume<T, D, SOFTCAP>(out, warpgroup - 1, p);
  }
}
