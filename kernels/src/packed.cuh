// How a packed batch is described to kernels.
#pragma once

// A run of rows of the batch: query, then passage, then prompt. Only passages are compressed.
struct Segment {
  u32 query, passage, prompt;
  u32 before;     // the earlier segment whose rows stand before this one's, or NO_SEGMENT, or CARRIED_PREFIX
  u32 is_scored;  // 0 or 1; a scored segment has a row
};
constexpr u32 NO_SEGMENT = 0xffffffff;
// The prefix that the batch before kept; its rows stand behind those of the batch.
constexpr u32 CARRIED_PREFIX = 0xfffffffe;

// Queries and all keys they may see: rows that come first, perhaps shared with other spans, and rows that follow.
struct Span {
  u32 query_start, num_queries;
  u32 prefix_start, prefix_len;
  u32 key_start, num_keys;
};

// Queries TILE_ROWS * block .. of a span. A span's tiles stand together, in ascending order; behind the last of all stands
// one that only has `work_before`.
struct Tile {
  u32 span, block;
  u32 work_before;  // of all earlier tiles: blocks of 64 keys that their queries see, windows aside, and 1 for each tile
};
constexpr u32 TILE_ROWS = 64;

DEV u32 num_rows(const Segment& segment) { return segment.query + segment.passage + segment.prompt; }
