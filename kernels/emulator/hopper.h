// The emulated bodies of the wrappers in ../src/hopper.cuh, in its order.
#pragma once

#include "wrappers.h"

// A matrix in global memory, `dim[0]` innermost. As large as the driver's, which is opaque.
struct alignas(64) TensorMap {
  const void* base;
  u64 dim[2];
  u64 row_bytes;
  u32 box[2];
  u32 element_bytes;
  u32 swizzle;  // the bytes over which chunks of 16 are permuted: 128, or 0
  u64 unused[9];
};
static_assert(sizeof(TensorMap) == 128, "as CUtensorMap");

#define TENSOR_MAP const TensorMap

namespace emulator __attribute__((visibility("hidden"))) {

// ---- mbarriers

inline MbarrierWord* mbarrier_word(u32 address, Site at) {
  return reinterpret_cast<MbarrierWord*>(machine->shared(address, 8, at));
}

inline Mbarrier& find_mbarrier(u32 address, Site at) {
  auto found = machine->hopper.mbarriers.find(address);
  if (found == machine->hopper.mbarriers.end()) fault(at, "no mbarrier was initialised at shared address %u", address);
  machine->races.check_ordered(machine->current->index, address - SHARED_BASE, 8, at);
  return found->second;
}

inline void init_mbarrier(u32 address, u32 arrivals, Site at) {
  MbarrierWord* word = mbarrier_word(address, at);
  if (arrivals == 0 || arrivals >= 1u << 20) fault(at, "an mbarrier for %u arrivals: expected 1 to 1048575", arrivals);
  machine->races.write(machine->current->index, address - SHARED_BASE, 8, at);
  *word = {0, arrivals, arrivals, 0};
  Mbarrier mbarrier;
  mbarrier.agent = machine->races.new_agent();
  mbarrier.initialiser = machine->current->index;
  if (!machine->hopper.mbarriers.emplace(address, mbarrier).second) fault(at, "the mbarrier is initialised twice");
}

inline void fence_mbarriers() {
  for (auto& [address, mbarrier] : machine->hopper.mbarriers) {
    if (mbarrier.initialiser == machine->current->index) mbarrier.fenced = true;
  }
}

// Ends the phase if all has come; then those who wait look again.
inline void end_phase_if_complete(Mbarrier& mbarrier, MbarrierWord* word) {
  if (word->pending != 0 || word->bytes != 0) return;
  word->phase ^= 1;
  word->pending = word->expected;
  mbarrier.phases++;
  machine->races.learn(mbarrier.arriving, mbarrier.agent, mbarrier.phases);
  mbarrier.completed = mbarrier.arriving;
  for (u32 thread : mbarrier.waiting) machine->wake(thread / 32, 1u << thread % 32);
  mbarrier.waiting.clear();
}

inline void arrive(u32 address, u32 bytes, Site at) {
  MbarrierWord* word = mbarrier_word(address, at);
  Mbarrier& mbarrier = find_mbarrier(address, at);
  if (word->pending == 0) fault(at, "more than the %u arrivals that the mbarrier expects", (u32)word->expected);
  machine->races.release(machine->current->index, mbarrier.arriving);
  word->bytes += bytes;
  word->pending--;
  end_phase_if_complete(mbarrier, word);
}

inline void wait_for_phase(u32 address, u32 parity, Site at) {
  MbarrierWord* word = mbarrier_word(address, at);
  Mbarrier& mbarrier = find_mbarrier(address, at);
  if (parity > 1) fault(at, "parity %u: expected 0 or 1", parity);
  if (machine->launch().asynchronous == MIXED && !machine->hopper.copies.empty() && machine->random.coin()) {
    machine->land_a_copy();
  }
  while (word->phase == parity) {
    mbarrier.waiting.push_back(machine->current->index);
    machine->wait("mbarrier_wait", at);
  }
  machine->races.acquire(machine->current->index, mbarrier.completed);
}

// ---- bulk tensor copies

// The 128-byte swizzle is a function of the shared address: the chunk of 16 bytes within a line of 128, by the line
// within 8.
inline u32 swizzle128(u32 address) { return address ^ (address >> 7 & 7) << 4; }

// 16 bytes of row `y`, from column `x` on: what is outside the matrix is 0.
inline void copy_chunk(u8* destination, const TensorMap& map, i64 x, i64 y) {
  for (u32 byte = 0; byte < 16; byte += map.element_bytes, x++) {
    bool inside = x >= 0 && y >= 0 && (u64)x < map.dim[0] && (u64)y < map.dim[1];
    if (inside) {
      const u8* source = static_cast<const u8*>(map.base) + (u64)y * map.row_bytes + (u64)x * map.element_bytes;
      memcpy(destination + byte, source, map.element_bytes);
    } else {
      memset(destination + byte, 0, map.element_bytes);
    }
  }
}

inline void check_map(const TensorMap& map, Site at) {
  u32 width = map.box[0] * map.element_bytes;
  if (reinterpret_cast<uintptr_t>(map.base) % 16 != 0) fault(at, "the matrix of the tensor map is not aligned to 16");
  if (map.row_bytes % 16 != 0) fault(at, "rows of %llu bytes: expected a multiple of 16", map.row_bytes);
  if (map.box[0] > 256 || map.box[1] > 256) fault(at, "a box of %u x %u: expected at most 256", map.box[0], map.box[1]);
  if (width % 16 != 0) fault(at, "a box %u bytes wide: expected a multiple of 16", width);
  if (map.swizzle != 0 && map.swizzle != 128) fault(at, "a swizzle over %u bytes: expected 128 or none", map.swizzle);
  if (map.swizzle == 128 && width > 128) fault(at, "a box %u bytes wide: expected at most the swizzle's 128", width);
}

inline void load_box(u32 destination, const TensorMap& map, u32 barrier, i32 x, i32 y, Site at) {
  check_map(map, at);
  if (destination % 128 != 0) fault(at, "shared address %u is not a multiple of 128", destination);
  const u32 width = map.box[0] * map.element_bytes, rows = map.box[1];
  MbarrierWord* word = mbarrier_word(barrier, at);
  Mbarrier& mbarrier = find_mbarrier(barrier, at);
  if (!mbarrier.fenced) fault(at, "the mbarrier was initialised with no mbarrier_init_fence since");
  for (u32 offset = 0; offset < width * rows; offset += 16) machine->shared(destination + offset, 16, at);
  machine->races.write_by_agent(machine->current->index, mbarrier.agent, mbarrier.phases + 1, destination - SHARED_BASE,
                                width * rows, at);
  machine->counters.async_copies++;

  Mbarrier* completes = &mbarrier;
  auto land = [=] {
    for (u32 row = 0; row < rows; row++) {
      for (u32 byte = 0; byte < width; byte += 16) {
        u32 address = destination + row * width + byte;
        if (map.swizzle == 128) address = swizzle128(address);
        copy_chunk(machine->shared(address, 16, at), map, x + byte / map.element_bytes, (i64)y + row);
      }
    }
    word->bytes -= width * rows;
    end_phase_if_complete(*completes, word);
  };
  if (machine->takes_effect_at_once()) {
    land();
  } else {
    machine->hopper.copies.push_back(land);
  }
}

// ---- matrix products of a warpgroup

// As `warp_collective`, of 128 threads; `perform` gets the warpgroup.
template <class Perform>
inline void warpgroup_collective(const char* name, Site at, void* operand, Perform perform) {
  if (blockDim.x % 128 != 0) fault(at, "%s in a block of %u threads: expected whole warpgroups", name, blockDim.x);
  const u32 index = machine->current->index / 128;
  Warpgroup& group = machine->hopper.warpgroups[index];
  if (group.arrived == 0) {
    group.collective = name;
    group.site = at;
  } else if (!same_text(group.collective, name) || !same_site(group.site, at)) {
    fault(at, "%s, while %u other threads of the warpgroup wait in %s at %s:%u", name, group.arrived, group.collective,
          file_name(group.site), group.site.line);
  }
  group.operands[machine->current->index % 128] = operand;
  if (++group.arrived < 128) return machine->wait(name, at);
  group.arrived = 0;
  machine->counters.collectives++;
  perform(group);
  for (u32 warp = 4 * index; warp < 4 * index + 4; warp++) machine->wake(warp, ALL_LANES);
}

// The address of row `row` of an operand, 8 elements of k each in two chunks.
inline u32 operand_chunk(u64 descriptor, u32 row, u32 chunk) {
  u32 start = (u32)(descriptor & 0x3fff) << 4, group_stride = (u32)(descriptor >> 32 & 0x3fff) << 4;
  return swizzle128(start + row / 8 * group_stride + row % 8 * 128 + chunk * 16);
}

inline void check_descriptor(u64 descriptor, Site at) {
  u32 layout = (u32)(descriptor >> 62), base = (u32)(descriptor >> 49 & 7);
  u32 group_stride = (u32)(descriptor >> 32 & 0x3fff) << 4;
  if (layout != 1) fault(at, "a descriptor of layout %u: expected 1, swizzled over 128 bytes", layout);
  if (base != 0) fault(at, "a descriptor with base offset %u: expected groups of rows that are aligned to 1024", base);
  if (group_stride % 1024 != 0) fault(at, "groups of rows %u bytes apart: expected a multiple of 1024", group_stride);
  for (u32 row = 0; row < 64; row++) {
    for (u32 chunk = 0; chunk < 2; chunk++) machine->shared(operand_chunk(descriptor, row, chunk), 16, at);
  }
}

// The product reads its operands until a wait for its group. Each warp must be ordered after the writes: its last
// lane stands for it, which is seldom the one that a kernel elects to wait for the others.
inline void note_operand_reads(u64 descriptor, u32 agent, u32 time, Site at) {
  const u32 first = machine->current->index / 128 * 128;
  for (u32 row = 0; row < 64; row++) {
    for (u32 chunk = 0; chunk < 2; chunk++) {
      u32 byte = operand_chunk(descriptor, row, chunk) - SHARED_BASE;
      for (u32 warp = 0; warp < 4; warp++) machine->races.check_ordered(first + warp * 32 + 31, byte, 16, at);
      machine->races.read_by_agent(first + 31, agent, time, byte, 16, at);
    }
  }
}

template <class T>
__attribute__((noinline)) void perform_wgmma(Wgmma& product) {
  const Site nowhere = {"", 0};  // addresses were checked at the issue
  float a[64][16], b[16][64];
  for (u32 row = 0; row < 64; row++) {
    for (u32 chunk = 0; chunk < 2; chunk++) {
      u16 halves[8];
      float values[8];
      memcpy(halves, machine->shared(operand_chunk(product.a, row, chunk), 16, nowhere), 16);
      to_floats<T>(&a[row][chunk * 8], halves);
      memcpy(halves, machine->shared(operand_chunk(product.b, row, chunk), 16, nowhere), 16);
      to_floats<T>(values, halves);
      for (u32 k = 0; k < 8; k++) b[chunk * 8 + k][row] = values[k];
    }
  }
  // Thread `32 w + 4 r + c` of the warpgroup has rows `16 w + r` and 8 below, in each 8 columns `2 c` and `2 c + 1`.
  for (u32 row = 0; row < 64; row++) {
    float sums[64] = {};
    for (u32 k = 0; k < 16; k++) {
      for (u32 column = 0; column < 64; column++) sums[column] += a[row][k] * b[k][column];
    }
    for (u32 column = 0; column < 64; column++) {
      u32 thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      float* d = &product.d[thread][column / 8 * 4 + row / 8 % 2 * 2 + column % 2];
      *d = product.accumulate ? *d + sums[column] : sums[column];
    }
  }
  product.done = true;
}

inline void fence_accumulators(Site at) {
  warpgroup_collective("wgmma_fence", at, nullptr, [](Warpgroup& group) { group.fenced = true; });
}

inline void commit_products(Site at) {
  warpgroup_collective("wgmma_commit", at, nullptr, [](Warpgroup& group) {
    group.open_group++;
    group.fenced = false;
  });
}

template <class T>
inline void issue_product(float* d, u64 a, u64 b, bool accumulate, Site at) {
  struct Operand {
    float* d;
    u64 a, b;
    bool accumulate;
  } mine = {d, a, b, accumulate};
  warpgroup_collective("wgmma64", at, &mine, [at](Warpgroup& group) {
    const Operand& first = *static_cast<Operand*>(group.operands[0]);
    Wgmma product = {first.a, first.b, {}, first.accumulate, false, group.open_group, perform_wgmma<T>};
    for (u32 thread = 0; thread < 128; thread++) {
      const Operand& operand = *static_cast<Operand*>(group.operands[thread]);
      if (operand.a != first.a || operand.b != first.b || operand.accumulate != first.accumulate) {
        fault(at, "thread %u of the warpgroup has other descriptors or another scale than thread 0", thread);
      }
      product.d[thread] = operand.d;
    }
    if (!group.fenced) fault(at, "the first product of a group, with no wgmma_fence before it");
    check_descriptor(product.a, at);
    check_descriptor(product.b, at);
    if (machine->races.on) {
      if (group.issued == 0) group.agent = machine->races.new_agent();
      group.issued++;
      note_operand_reads(product.a, group.agent, group.issued, at);
      note_operand_reads(product.b, group.agent, group.issued, at);
    }
    group.products.push_back(product);
    // They take effect in order: now means now at the latest.
    if (machine->takes_effect_at_once()) {
      for (Wgmma& earlier : group.products) {
        if (!earlier.done) earlier.perform(earlier);
      }
    }
  });
}

inline void wait_for_products(u32 in_flight, Site at) {
  warpgroup_collective("wgmma_wait", at, nullptr, [in_flight](Warpgroup& group) {
    size_t complete = 0;
    while (complete < group.products.size() && group.products[complete].group + in_flight < group.open_group) {
      Wgmma& product = group.products[complete++];
      if (!product.done) product.perform(product);
    }
    group.products.erase(group.products.begin(), group.products.begin() + (ptrdiff_t)complete);
    if (group.issued == 0) return;
    const u32 first = machine->current->index / 128 * 128, time = group.issued - (u32)group.products.size();
    for (u32 thread = first; thread < first + 128; thread++) machine->races.learn(thread, group.agent, time);
  });
}

}  // namespace emulator

#define SITE emulator::Site at = emulator::Site::here()

inline void mbarrier_init(u32 address, u32 arrivals, SITE) { emulator::init_mbarrier(address, arrivals, at); }
inline void mbarrier_init_fence() { emulator::fence_mbarriers(); }
inline void mbarrier_arrive(u32 address, SITE) { emulator::arrive(address, 0, at); }
inline void mbarrier_arrive_expect(u32 address, u32 bytes, SITE) { emulator::arrive(address, bytes, at); }
inline void mbarrier_wait(u32 address, u32 parity, SITE) { emulator::wait_for_phase(address, parity, at); }

inline void proxy_fence() { emulator::machine->races.proxy_fence(threadIdx.x); }

inline void tma_load(u32 destination, const TensorMap* map, u32 barrier, i32 x, i32 y, SITE) {
  emulator::load_box(destination, *map, barrier, x, y, at);
}

inline void wgmma_fence(SITE) { emulator::fence_accumulators(at); }
inline void wgmma_commit(SITE) { emulator::commit_products(at); }
template <int N>
inline void wgmma_wait(SITE) {
  emulator::wait_for_products(N, at);
}
template <class T>
inline void wgmma64(float (&d)[32], u64 a, u64 b, u32 accumulate, SITE) {
  emulator::issue_product<T>(d, a, b, accumulate != 0, at);
}

template <int N>
inline void take_registers(SITE) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8");
  emulator::warpgroup_collective("take_registers", at, nullptr, [](emulator::Warpgroup&) {});
}
template <int N>
inline void give_registers(SITE) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8");
  emulator::warpgroup_collective("give_registers", at, nullptr, [](emulator::Warpgroup&) {});
}

#undef SITE
