// What the four warps of a warpgroup do together: matrix products, and moving registers.
#pragma once

#include "bulk_copies.h"
#include "numbers.h"

namespace emulator __attribute__((visibility("hidden"))) {

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

// ---- operands
//
// K-major, rows of 128 bytes hold 64 elements of k. Transposed, they hold 64 columns n for one k: rows of k in groups of
// 8, and for every further 64 columns the same again.

struct Descriptor {
  u32 start, leading, stride, base, layout;

  explicit Descriptor(u64 bits)
      : start((u32)(bits & 0x3fff) << 4),
        leading((u32)(bits >> 16 & 0x3fff) << 4),
        stride((u32)(bits >> 32 & 0x3fff) << 4),
        base((u32)(bits >> 49 & 7)),
        layout((u32)(bits >> 62)) {}

  // The 8 elements of k of chunk 0 or 1 in row `row`.
  u32 chunk(u32 row, u32 chunk) const { return swizzle128(start + row / 8 * stride + row % 8 * 128 + chunk * 16); }
  // Of a transposed operand: the 8 columns from `column` on, a multiple of 8, for one k.
  u32 columns(u32 k, u32 column) const {
    return swizzle128(start + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2);
  }
};

// Calls `visit(address)` for every 16 bytes of an operand of `rows` rows, or columns if it is transposed, and 16 k.
template <class Visit>
inline void for_each_chunk(const Descriptor& operand, u32 rows, bool transposed, Visit visit) {
  if (transposed) {
    for (u32 k = 0; k < 16; k++) {
      for (u32 column = 0; column < rows; column += 8) visit(operand.columns(k, column));
    }
  } else {
    for (u32 row = 0; row < rows; row++) visit(operand.chunk(row, 0)), visit(operand.chunk(row, 1));
  }
}

inline void check_descriptor(u64 bits, u32 rows, bool transposed, Site at) {
  const Descriptor operand(bits);
  const u32 start = operand.start;
  if (operand.layout != 1) {
    fault(at, "a descriptor of layout %u: expected 1, swizzled over 128 bytes", operand.layout);
  }
  if (operand.base != 0) {
    fault(at, "a descriptor with base offset %u: expected groups of rows that are aligned to 1024", operand.base);
  }
  if (start % 1024 >= (transposed ? 1 : 128)) {
    fault(at, "an operand at shared address %u: expected the first row of a group", start);
  }
  if (operand.stride % 1024 != 0) {
    fault(at, "groups of rows %u bytes apart: expected a multiple of 1024", operand.stride);
  }
  if (transposed && rows > 64 && (operand.leading == 0 || operand.leading % 1024 != 0)) {
    fault(at, "blocks of 64 columns %u bytes apart: expected a multiple of 1024", operand.leading);
  }
  for_each_chunk(operand, rows, transposed, [&](u32 address) { machine->place(address, 16, at); });
}

// The product reads its operands until a wait for its group.
inline void note_operand_reads(u64 bits, u32 rows, bool transposed, const Warpgroup& group, Site at) {
  const u32 first = machine->current->index / 128 * 128;
  for_each_chunk(Descriptor(bits), rows, transposed, [&](u32 address) {
    machine->races.read_by_warpgroup(first, group.agent, group.issued, machine->place(address, 16, at), 16, at);
  });
}

// ---- products

template <class T>
inline void load_chunk(float* values, u32 address) {
  const Site nowhere = {"", 0};  // addresses were checked at the issue
  u16 halves[8];
  memcpy(halves, machine->memory(machine->place(address, 16, nowhere)), 16);
  to_floats<T>(values, halves);
}

template <class T>
inline void load_a(float (&a)[64][16], const Wgmma& product) {
  const Descriptor operand(product.a);
  for (u32 row = 0; row < 64; row++) {
    if (!product.from_registers) {
      load_chunk<T>(&a[row][0], operand.chunk(row, 0));
      load_chunk<T>(&a[row][8], operand.chunk(row, 1));
      continue;
    }
    // As the left operand of m16n8k16: registers 0 and 2 of row `lane / 4`, 1 and 3 of the row 8 below.
    for (u32 k = 0; k < 16; k++) {
      const u32 thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
      const u32 word = product.registers[thread][row % 16 / 8 + k / 8 * 2];
      a[row][k] = to_float(T{(u16)(word >> k % 2 * 16)});
    }
  }
}

template <class T, u32 N>
inline void load_b(float (&b)[16][N], const Wgmma& product) {
  const Descriptor operand(product.b);
  if (product.transposed) {
    for (u32 k = 0; k < 16; k++) {
      for (u32 column = 0; column < N; column += 8) load_chunk<T>(&b[k][column], operand.columns(k, column));
    }
    return;
  }
  for (u32 column = 0; column < N; column++) {
    float values[16];
    load_chunk<T>(&values[0], operand.chunk(column, 0));
    load_chunk<T>(&values[8], operand.chunk(column, 1));
    for (u32 k = 0; k < 16; k++) b[k][column] = values[k];
  }
}

// products[2][N] = a[2][16] * b[16][N]: from 16 columns on, which fit in registers.
template <u32 N>
inline void multiply_two_rows(float (&products)[2][N], const float (&upper)[16], const float (&lower)[16],
                              const float (&b)[16][N]) {
  for (u32 column = 0; column < N; column += 16) {
    Float8 upper_left = {}, upper_right = {}, lower_left = {}, lower_right = {};
    for (u32 k = 0; k < 16; k++) {
      Float8 left, right;
      memcpy(&left, &b[k][column], 32);
      memcpy(&right, &b[k][column + 8], 32);
      upper_left += upper[k] * left;
      upper_right += upper[k] * right;
      lower_left += lower[k] * left;
      lower_right += lower[k] * right;
    }
    memcpy(&products[0][column], &upper_left, 32);
    memcpy(&products[0][column + 8], &upper_right, 32);
    memcpy(&products[1][column], &lower_left, 32);
    memcpy(&products[1][column + 8], &lower_right, 32);
  }
}

// Every element: the products in f32, added in ascending order, then to `d`. Thread `32 w + 4 r + c` of the warpgroup
// has rows `16 w + r` and 8 below, in each 8 columns `2 c` and `2 c + 1`.
template <class T, u32 N>
__attribute__((noinline)) void perform_wgmma(Wgmma& product) {
  float a[64][16];
  alignas(32) float b[16][N], products[2][N];
  load_a<T>(a, product);
  load_b<T, N>(b, product);
  for (u32 warp = 0; warp < 4; warp++) {
    for (u32 r = 0; r < 8; r++) {
      multiply_two_rows(products, a[warp * 16 + r], a[warp * 16 + r + 8], b);
      for (u32 c = 0; c < 4; c++) {
        float* d = product.d[warp * 32 + r * 4 + c];
        for (u32 group = 0; group < N / 8; group++) {
          const u32 column = group * 8 + c * 2;
          const float sums[4] = {products[0][column], products[0][column + 1], products[1][column],
                                 products[1][column + 1]};
          for (u32 i = 0; i < 4; i++) d[group * 4 + i] = product.accumulate ? d[group * 4 + i] + sums[i] : sums[i];
        }
      }
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

// `registers` holds a, or else the descriptor does.
template <class T, u32 N>
inline void issue_product(float* d, u64 a, const u32* registers, u64 b, bool transposed, bool accumulate, Site at) {
  struct Operand {
    float* d;
    u64 a;
    const u32* registers;
    u64 b;
    bool accumulate;
  } mine = {d, a, registers, b, accumulate};
  warpgroup_collective("wgmma", at, &mine, [transposed, at](Warpgroup& group) {
    const Operand& first = *static_cast<Operand*>(group.operands[0]);
    Wgmma product = {};
    product.a = first.a, product.b = first.b, product.accumulate = first.accumulate;
    product.from_registers = first.registers != nullptr, product.transposed = transposed;
    product.group = group.open_group, product.perform = perform_wgmma<T, N>;
    for (u32 thread = 0; thread < 128; thread++) {
      const Operand& operand = *static_cast<Operand*>(group.operands[thread]);
      if (operand.a != first.a || operand.b != first.b || operand.accumulate != first.accumulate) {
        fault(at, "thread %u of the warpgroup has other descriptors or another scale than thread 0", thread);
      }
      product.d[thread] = operand.d;
      product.registers[thread] = operand.registers;
    }
    if (!group.fenced) fault(at, "the first product of a group, with no wgmma_fence before it");
    if (!product.from_registers) check_descriptor(product.a, 64, false, at);
    check_descriptor(product.b, N, transposed, at);
    if (machine->races.on) {
      if (group.issued == 0) group.agent = machine->races.new_agent();
      group.issued++;
      if (!product.from_registers) note_operand_reads(product.a, 64, false, group, at);
      note_operand_reads(product.b, N, transposed, group, at);
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

// ---- registers

// Gives the free registers of the block to the warpgroups that wait for them.
inline void grant_registers(u32 rank) {
  Block& block = machine->block(rank);
  std::vector<Warpgroup>& groups = machine->hopper.warpgroups;
  for (u32 i = 0; i < groups.size(); i++) {
    Warpgroup& group = groups[i];
    if (group.block != rank || group.wanted_registers == 0) continue;
    const u32 more = (group.wanted_registers - group.registers) * 128;
    if (more > block.free_registers) continue;
    block.free_registers -= more;
    group.registers = group.wanted_registers;
    group.wanted_registers = 0;
    for (u32 warp = 4 * i; warp < 4 * i + 4; warp++) machine->wake(warp, ALL_LANES);
  }
}

inline void take_registers(u32 count, Site at) {
  warpgroup_collective("take_registers", at, nullptr, [count, at](Warpgroup& group) {
    if (count < group.registers) fault(at, "takes up to %u registers, but has %u already", count, group.registers);
    group.wanted_registers = count;
    grant_registers(group.block);
  });
  const Warpgroup& group = machine->hopper.warpgroups[machine->current->index / 128];
  while (group.wanted_registers != 0) machine->wait("take_registers", at);
}

inline void give_registers(u32 count, Site at) {
  warpgroup_collective("give_registers", at, nullptr, [count, at](Warpgroup& group) {
    if (count > group.registers) fault(at, "gives all but %u registers, but has %u", count, group.registers);
    machine->block(group.block).free_registers += (group.registers - count) * 128;
    group.registers = count;
    grant_registers(group.block);
  });
}

}  // namespace emulator
