// Tensor-core instructions of a warp: ldmatrix, stmatrix and mma.m16n8k16. Layouts: PTX ISA, "Matrix fragments for
// mma.m16n8k16".
//
// The work for all lanes is in functions that are never inlined: a kernel has many calls, and one copy of each is
// fast enough.
#pragma once

#include "collectives.h"
#include "numbers.h"

namespace emulator __attribute__((visibility("hidden"))) {

// ---- ldmatrix

struct LoadOperand {
  u32* registers;
  u32 address;
  const u8* row;
};

// Four 8 x 8 matrices; lane `8 i + r` brings the address of row `r` of matrix `i`. Lane `4 r + c` gets elements `2 c`
// and `2 c + 1` of row `r` of each; if transposed, of column `r`.
template <bool TRANSPOSED>
__attribute__((noinline)) void load_matrices(LoadOperand* const* lanes) {
  u16 rows[32][8];
  for (u32 i = 0; i < 32; i++) memcpy(rows[i], lanes[i]->row, 16);
  for (u32 matrix = 0; matrix < 4; matrix++) {
    const u16(*m)[8] = rows + 8 * matrix;
    for (u32 lane = 0; lane < 32; lane++) {
      u32 r = lane / 4, c = lane % 4 * 2;
      u16 lo = TRANSPOSED ? m[c][r] : m[r][c];
      u16 hi = TRANSPOSED ? m[c + 1][r] : m[r][c + 1];
      lanes[lane]->registers[matrix] = lo | (u32)hi << 16;
    }
  }
}

// The operands are of a load or of a store.
template <class Operand>
inline void count_phases(Operand* const* lanes) {
  for (u32 matrix = 0; matrix < 4; matrix++) {
    u32 addresses[8];
    for (u32 r = 0; r < 8; r++) addresses[r] = lanes[8 * matrix + r]->address;
    machine->counters.ldmatrix++;
    machine->counters.ldmatrix_extra += bank_cycles(addresses, 8, 16) - 1;
  }
}

template <bool TRANSPOSED>
inline void load_matrices(const char* name, u32 (&registers)[4], u32 address, Site at) {
  const u32 place = machine->place(address, 16, at);
  LoadOperand mine = {registers, address, machine->memory(place)};
  machine->races.read_by_warp(machine->current->index, place, 16, at);
  warp_collective(name, at, mine, [](LoadOperand* const* lanes) {
    load_matrices<TRANSPOSED>(lanes);
    if (machine->count_banks) count_phases(lanes);
  });
}

// ---- stmatrix

struct StoreOperand {
  u32 registers[4];
  u32 address;
  u8* row;
};

// The inverse of ldmatrix.
__attribute__((noinline)) inline void store_matrices(StoreOperand* const* lanes) {
  for (u32 matrix = 0; matrix < 4; matrix++) {
    for (u32 lane = 0; lane < 32; lane++) {
      u32 r = lane / 4, c = lane % 4;
      memcpy(lanes[8 * matrix + r]->row + 4 * c, &lanes[lane]->registers[matrix], 4);
    }
  }
}

inline void store_matrices(const u32 (&registers)[4], u32 address, Site at) {
  const u32 place = machine->place(address, 16, at);
  StoreOperand mine = {{registers[0], registers[1], registers[2], registers[3]}, address, machine->memory(place)};
  machine->races.write_by_warp(machine->current->index, place, 16, at);
  warp_collective("stmatrix4", at, mine, [](StoreOperand* const* lanes) {
    store_matrices(lanes);
    if (machine->count_banks) count_phases(lanes);
  });
}

// ---- mma

struct MmaOperand {
  float* d;
  const u32* a;
  u32 b[2];
};

// d[16, 8] += a[16, 16] * b[8, 16] transposed. Every element: the products in f32, added in ascending order, then to
// `d`. (A tensor core keeps the products exact and truncates their sum; tests allow for the difference.)
template <class T>
__attribute__((noinline)) void multiply_matrices(MmaOperand* const* lanes) {
  alignas(32) u16 a_bits[16][16], b_bits[16][8];  // [m][k], [k][n]
  for (u32 lane = 0; lane < 32; lane++) {
    u32 row = lane / 4, pair = lane % 4 * 2;
    const MmaOperand& from = *lanes[lane];
    memcpy(&a_bits[row][pair], &from.a[0], 4);
    memcpy(&a_bits[row + 8][pair], &from.a[1], 4);
    memcpy(&a_bits[row][pair + 8], &from.a[2], 4);
    memcpy(&a_bits[row + 8][pair + 8], &from.a[3], 4);
    b_bits[pair][row] = (u16)from.b[0];
    b_bits[pair + 1][row] = (u16)(from.b[0] >> 16);
    b_bits[pair + 8][row] = (u16)from.b[1];
    b_bits[pair + 9][row] = (u16)(from.b[1] >> 16);
  }

  float a_values[16][16], products[16][8];
  Float8 b_values[16];
  for (u32 m = 0; m < 16; m++) {
    to_floats<T>(&a_values[m][0], &a_bits[m][0]);
    to_floats<T>(&a_values[m][8], &a_bits[m][8]);
  }
  for (u32 k = 0; k < 16; k++) to_floats<T>(reinterpret_cast<float*>(&b_values[k]), b_bits[k]);
  for (u32 m = 0; m < 16; m++) {
    Float8 sum = {};
    for (u32 k = 0; k < 16; k++) sum += a_values[m][k] * b_values[k];
    memcpy(products[m], &sum, 32);
  }

  for (u32 lane = 0; lane < 32; lane++) {
    u32 row = lane / 4, pair = lane % 4 * 2;
    float* d = lanes[lane]->d;
    d[0] += products[row][pair];
    d[1] += products[row][pair + 1];
    d[2] += products[row + 8][pair];
    d[3] += products[row + 8][pair + 1];
  }
}

template <class T>
inline void multiply_matrices(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, Site at) {
  MmaOperand mine = {d, a, {b0, b1}};
  warp_collective("mma16816", at, mine, [](MmaOperand* const* lanes) {
    machine->counters.mma++;
    multiply_matrices<T>(lanes);
  });
}

}  // namespace emulator
