// Bulk tensor copies: a box of a matrix to the shared memory of one or several blocks, and back.
#pragma once

#include "mbarriers.h"

// A matrix in global memory, `dim[0]` columns by `dim[1]` rows; or with heads, so many times `dim[0]` columns in a row,
// a dimension between the two. As large as the driver's, which is opaque.
struct alignas(64) TensorMap {
  void* base;
  u64 dim[2];
  u64 row_bytes;
  u32 box[2];
  u32 element_bytes;
  u32 swizzle;  // the bytes over which chunks of 16 are permuted: 128, or 0
  u64 heads;    // 0: a matrix
  u64 head_bytes;
  u32 box_heads;
  u32 unused[11];

  u32 rank() const { return heads == 0 ? 2 : 3; }
};
static_assert(sizeof(TensorMap) == 128, "as CUtensorMap");

namespace emulator __attribute__((visibility("hidden"))) {

// The 128-byte swizzle is a function of the shared address: the chunk of 16 bytes within a line of 128, by the line
// within 8.
inline u32 swizzle128(u32 address) { return address ^ (address >> 7 & 7) << 4; }

// Of an element in the map; head 0 in a matrix.
struct Place {
  i32 column, head, row;
};

// A box on its way, from its corner on.
struct Box {
  TensorMap map;
  Place corner;
  u32 address;  // in shared memory,
  u8* memory;   // and what is there

  u32 width() const { return map.box[0] * map.element_bytes; }
  u32 heads() const { return map.rank() == 2 ? 1 : map.box_heads; }
  u32 bytes() const { return width() * heads() * map.box[1]; }
};

// Calls `copy(shared, global, bytes)` for every piece of the box; `global` is null where the matrix has nothing.
template <class Copy>
inline void for_each_piece(const Box& box, Copy copy) {
  const TensorMap& map = box.map;
  const u32 chunk = 16 / map.element_bytes;
  const u64 heads = map.rank() == 2 ? 1 : map.heads;
  for (u32 line = 0; line < map.box[1] * box.heads(); line++) {
    const i64 row = (i64)box.corner.row + line / box.heads(), head = (i64)box.corner.head + line % box.heads();
    const bool is_inside = row >= 0 && (u64)row < map.dim[1] && head >= 0 && (u64)head < heads;
    u8* global_line = static_cast<u8*>(map.base) + (is_inside ? (u64)row * map.row_bytes + (u64)head * map.head_bytes : 0);
    for (u32 byte = 0; byte < box.width(); byte += 16) {
      u32 address = box.address + line * box.width() + byte;
      if (map.swizzle == 128) address = swizzle128(address);
      u8* shared = box.memory + (address - box.address);
      const i64 x = (i64)box.corner.column + byte / map.element_bytes;
      if (is_inside && x >= 0 && (u64)x + chunk <= map.dim[0]) {
        copy(shared, global_line + (u64)x * map.element_bytes, 16);
        continue;
      }
      for (u32 i = 0; i < chunk; i++) {
        const bool inside = is_inside && x + i >= 0 && (u64)(x + i) < map.dim[0];
        u8* global = inside ? global_line + (u64)(x + i) * map.element_bytes : nullptr;
        copy(shared + i * map.element_bytes, global, map.element_bytes);
      }
    }
  }
}

inline void read_box(const Box& box) {
  for_each_piece(box, [](u8* shared, const u8* global, u32 bytes) {
    if (global) {
      memcpy(shared, global, bytes);
    } else {
      memset(shared, 0, bytes);
    }
  });
}

inline void write_box(const Box& box) {
  for_each_piece(box, [](const u8* shared, u8* global, u32 bytes) {
    if (global) memcpy(global, shared, bytes);
  });
}

inline void check_map(const TensorMap& map, u32 rank, Site at) {
  if (map.rank() != rank) fault(at, "%u coordinates for a tensor map of %u dimensions", rank, map.rank());
  u32 width = map.box[0] * map.element_bytes;
  if (reinterpret_cast<uintptr_t>(map.base) % 16 != 0) fault(at, "the matrix of the tensor map is not aligned to 16");
  if (map.row_bytes % 16 != 0) fault(at, "rows of %llu bytes: expected a multiple of 16", map.row_bytes);
  if (map.box[0] > 256 || map.box[1] > 256) fault(at, "a box of %u x %u: expected at most 256", map.box[0], map.box[1]);
  if (rank == 3 && map.head_bytes % 16 != 0) {
    fault(at, "heads %llu bytes apart: expected a multiple of 16", map.head_bytes);
  }
  if (rank == 3 && (map.box_heads == 0 || map.box_heads > 256)) fault(at, "a box of %u heads", map.box_heads);
  if (width == 0 || map.box[1] == 0) fault(at, "a box of %u x %u: expected at least 1", map.box[0], map.box[1]);
  if (width % 16 != 0) fault(at, "a box %u bytes wide: expected a multiple of 16", width);
  if (map.swizzle != 0 && map.swizzle != 128) fault(at, "a swizzle over %u bytes: expected 128 or none", map.swizzle);
  if (map.swizzle == 128 && width != 128) fault(at, "a box %u bytes wide: expected the swizzle's 128", width);
}

// The box at a shared address of block `rank`.
inline Box make_box(const TensorMap& map, u32 dimensions, u32 rank, u32 address, Place corner, Site at) {
  machine->check_waited("a box is copied", at);
  check_map(map, dimensions, at);
  if (address % 128 != 0) fault(at, "shared address %u is not a multiple of 128", address);
  Box box = {map, corner, address, nullptr};
  const u32 place = machine->place(rank, address, 16, at);
  machine->place(rank, address + box.bytes() - 16, 16, at);
  box.memory = machine->memory(place);
  return box;
}

// ---- to shared memory

inline void load_box_into(u32 rank, u32 destination, const TensorMap& map, u32 barrier, Place corner, u32 dimensions,
                          Site at) {
  check_block(rank, at);
  const Box box = make_box(map, dimensions, rank, destination, corner, at);
  const u32 bytes = box.bytes();
  Mbarrier& mbarrier = find_mbarrier(rank, barrier, at);
  if (!mbarrier.fenced) fault(at, "the mbarrier was initialised with no mbarrier_init_fence since");
  machine->races.write_by_agent(machine->current->index, mbarrier.agent, mbarrier.phases + 1,
                                machine->place(rank, destination, 16, at), bytes, at);
  machine->counters.async_copies++;
  mbarrier.last_load = {mbarrier.agent, mbarrier.phases + 1, at};
  mbarrier.loaded_bytes += bytes;
  check_bytes(mbarrier, at);

  Mbarrier* completes = &mbarrier;
  auto land = [box, bytes, completes] {
    read_box(box);
    completes->word->bytes -= bytes;
    end_phase_if_complete(*completes);
  };
  if (machine->takes_effect_at_once()) {
    land();
  } else {
    machine->hopper.copies.push_back(land);
  }
}

inline void load_box(u32 destination, const TensorMap& map, u32 barrier, Place corner, u32 dimensions, Site at) {
  load_box_into(machine->current->block, destination, map, barrier, corner, dimensions, at);
}

// To the same place in several blocks, where it arrives at different times.
inline void multicast_box(u32 destination, const TensorMap& map, u32 barrier, i32 x, i32 y, u32 blocks, Site at) {
  if (blocks == 0 || blocks >> machine->launch().cluster != 0) {
    fault(at, "a multicast to the blocks of mask %#x in a cluster of %u", blocks, machine->launch().cluster);
  }
  for (u32 rank = 0; rank < machine->launch().cluster; rank++) {
    if (blocks >> rank & 1) load_box_into(rank, destination, map, barrier, {x, 0, y}, 2, at);
  }
}

// ---- from shared memory

inline void store_box(const TensorMap& map, u32 source, i32 x, i32 y, Site at) {
  Thread& me = *machine->current;
  const Box box = make_box(map, 2, me.block, source, {x, 0, y}, at);
  machine->counters.async_copies++;
  if (me.stores_issued++ == 0) me.store_agent = machine->races.new_agent();
  machine->races.read_by_agent(me.index, me.store_agent, me.stores_issued, machine->place(source, 16, at), box.bytes(),
                               at);
  me.stores.push_back({nullptr, me.open_store_group, at});
  if (machine->takes_effect_at_once()) {
    write_box(box);
  } else {
    me.stores.back().perform = [box] { write_box(box); };
  }
}

inline void commit_stores() { machine->current->open_store_group++; }

// Waits for all groups but the last `in_flight`.
inline void wait_for_stores(u32 in_flight) {
  Thread& me = *machine->current;
  size_t read = 0;
  while (read < me.stores.size() && me.stores[read].group + in_flight < me.open_store_group) {
    BulkStore& store = me.stores[read++];
    if (store.perform) store.perform();
  }
  me.stores.erase(me.stores.begin(), me.stores.begin() + (ptrdiff_t)read);
  if (me.stores_issued == 0) return;
  machine->races.learn(me.index, me.store_agent, me.stores_issued - (u32)me.stores.size());
}

// ---- hints

inline void check_prefetched_map(const TensorMap* map, Site at) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) fault(at, "the tensor map is not aligned to 64");
}

}  // namespace emulator
