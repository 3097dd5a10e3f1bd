// Rows shared out among the threads of a block, and the norms over them.
//
// A thread takes quads: four neighbouring elements, one access of 16 bytes in f32 or of 8 in f16 and bf16. Neighbouring
// threads take neighbouring quads, so a warp's access is contiguous in either type. Eight elements a thread would make
// every f32 access of a warp strided, and half of each sector of memory would be written at a time.
//
// What keeps memory busy is bytes under way: 4.3 TB/s, 0.8 us and 132 multiprocessors ask for 26 KiB on each. So a thread
// asks for all of its quads before it waits for the first, and there is no branch among its loads: compilers end a
// batch of loads at one.
#pragma once

DEV void load4(float (&v)[4], const float* source) {
  u32x4 bits = *(const u32x4*)source;
  v[0] = bits_to_float(bits.x), v[1] = bits_to_float(bits.y);
  v[2] = bits_to_float(bits.z), v[3] = bits_to_float(bits.w);
}
template <class T> DEV void load4(float (&v)[4], const T* source) {
  u32x2 bits = *(const u32x2*)source;
  v[0] = unpack_lo<T>(bits.x), v[1] = unpack_hi<T>(bits.x);
  v[2] = unpack_lo<T>(bits.y), v[3] = unpack_hi<T>(bits.y);
}
DEV void store4(float* destination, const float (&v)[4]) {
  *(u32x4*)destination = {float_to_bits(v[0]), float_to_bits(v[1]), float_to_bits(v[2]), float_to_bits(v[3])};
}
template <class T> DEV void store4(T* destination, const float (&v)[4]) {
  *(u32x2*)destination = {pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3])};
}

// ---- sums over a row, by a tree that its width alone decides, so that it has the same bits in any batch: four
// ---- elements of a quad, a thread's quads in ascending order, a warp's lanes, the block's warps

DEV float sum4(float a, float b, float c, float d) { return (a + b) + (c + d); }
DEV float dot4(const float (&a)[4], const float (&b)[4]) {
  return fma(a[0], b[0], a[1] * b[1]) + fma(a[2], b[2], a[3] * b[3]);
}

// The sum of `v` over the block; every thread has it. `round` starts at 0 and alternates between two slots of shared
// memory, WARPS floats each: a slot is written again only behind the barrier of the other's sum, when all have read it.
template <u32 WARPS> DEV float row_sum(float v, u32& round) {
  v = warp_sum(v);
  if (WARPS == 1) return v;
  u32 slot = smem_base() + round * (4 * WARPS);
  if (threadIdx.x % 32 == 0) sts_f32(slot + threadIdx.x / 32 * 4, v);
  sync_block();
  float parts[WARPS];
#pragma unroll
  for (u32 warp = 0; warp < WARPS; warp++) parts[warp] = lds_f32(slot + 4 * warp);
  // Neighbours are added until one is left; an odd last one waits.
#pragma unroll
  for (u32 distance = 1; distance < WARPS; distance *= 2) {
#pragma unroll
    for (u32 i = 0; i + distance < WARPS; i += 2 * distance) parts[i] += parts[i + distance];
  }
  round ^= 1;
  return parts[0];
}

// ---- rows in registers
//
// A norm reads its row once: one block of WARPS warps holds it, QUADS quads a thread. All but the last quad of a thread
// lie within the row, so only that one asks.

// Blocks on a multiprocessor: 48 KiB of f32 in a fifth of the registers; the rest is for what else is added, for weights,
// and for addresses. And no more than 16, which is what every architecture takes.
DEV constexpr u32 row_blocks(u32 warps, u32 quads) { return 96 / (quads < 6 ? 6 : quads) / warps; }

template <u32 WARPS, u32 QUADS> DEV bool has_quad(u32 i, u32 hidden_size) {
  return i + 1 < QUADS || 4 * (32 * WARPS * i + threadIdx.x) < hidden_size;
}

// Calls f(i, column) for each of this thread's quads: the i-th begins at `column`.
template <u32 WARPS, u32 QUADS, class F> DEV void for_each_quad(u32 hidden_size, F f) {
#pragma unroll
  for (u32 i = 0; i < QUADS; i++) {
    if (has_quad<WARPS, QUADS>(i, hidden_size)) f(i, 4 * (32 * WARPS * i + threadIdx.x));
  }
}

// This thread's quads of a vector; zeros beyond its end.
template <u32 WARPS, u32 QUADS, class T> DEV void load_row(float (&v)[QUADS][4], const T* source, u32 hidden_size) {
  for (u32 e = 0; e < 4; e++) v[QUADS - 1][e] = 0;
  for_each_quad<WARPS, QUADS>(hidden_size, [&](u32 i, u32 column) { load4(v[i], source + column); });
}
template <u32 WARPS, u32 QUADS, class T> DEV void store_row(T* destination, const float (&v)[QUADS][4], u32 hidden_size) {
  for_each_quad<WARPS, QUADS>(hidden_size, [&](u32 i, u32 column) { store4(destination + column, v[i]); });
}

// 1 / sqrt(mean_j v[j]^2 + eps)
template <u32 WARPS, u32 QUADS>
DEV float inverse_rms(const float (&v)[QUADS][4], u32 hidden_size, float eps, u32& round) {
  float squares = 0;
#pragma unroll
  for (u32 i = 0; i < QUADS; i++) squares += dot4(v[i], v[i]);
  float mean_square = div_rn(row_sum<WARPS>(squares, round), (float)hidden_size);
  return div_rn(1.0f, sqrt_rn(mean_square + eps));
}

// v = (v - mean) / sqrt(variance + eps) * weight + bias; the variance from differences, since squares would cancel.
template <u32 WARPS, u32 QUADS>
DEV void layer_norm(float (&v)[QUADS][4], const float* __restrict__ weight, const float* __restrict__ bias,
                    u32 hidden_size, float eps, u32& round) {
  float sum = 0;
#pragma unroll
  for (u32 i = 0; i < QUADS; i++) sum += sum4(v[i][0], v[i][1], v[i][2], v[i][3]);
  float mean = div_rn(row_sum<WARPS>(sum, round), (float)hidden_size);

  // Asked for here, where the operands' registers are free again: they come while the differences are summed.
  float w[QUADS][4], b[QUADS][4];
  load_row<WARPS>(w, weight, hidden_size);
  load_row<WARPS>(b, bias, hidden_size);

  float squares = 0;
#pragma unroll
  for (u32 i = 0; i < QUADS; i++) {
    for (u32 e = 0; e < 4; e++) v[i][e] -= mean;
    squares += has_quad<WARPS, QUADS>(i, hidden_size) ? dot4(v[i], v[i]) : 0;
  }
  float variance = div_rn(row_sum<WARPS>(squares, round), (float)hidden_size);
  float inverse = div_rn(1.0f, sqrt_rn(variance + eps));

#pragma unroll
  for (u32 i = 0; i < QUADS; i++) {
    for (u32 e = 0; e < 4; e++) v[i][e] = fma(v[i][e] * inverse, w[i][e], b[i][e]);
  }
}

// ---- rows that are only moved

constexpr u32 MOVE_THREADS = 128;
// Units that a thread has under way.
constexpr u32 MOVES = 4;
// Blocks on a multiprocessor: enough for memory. Asked for, because without a number compilers save registers for more,
// and then wait for some of the units before they load the others.
constexpr u32 MOVE_BLOCKS = 10;

// Calls load(i, row, unit) and then store(i, row, unit) for all units of `num_rows` rows of `units` each, whatever these
// are; i counts those of a thread, from 0 to MOVES. All rows are one sequence to the grid, so that neither short rows nor
// few leave threads idle. Behind its end a thread moves the last unit once more rather than none: no load waits for a
// branch.
template <class Load, class Store> DEV void move_rows(u32 num_rows, u32 units, Load load, Store store) {
  const u32 all = num_rows * units, step = MOVES * MOVE_THREADS;
  for (u32 first = blockIdx.x * step + threadIdx.x; first < all; first += gridDim.x * step) {
    u32 row[MOVES], unit[MOVES];
#pragma unroll
    for (u32 i = 0; i < MOVES; i++) {
      u32 at = min(first + i * MOVE_THREADS, all - 1);
      row[i] = at / units, unit[i] = at % units;
    }
#pragma unroll
    for (u32 i = 0; i < MOVES; i++) load(i, row[i], unit[i]);
#pragma unroll
    for (u32 i = 0; i < MOVES; i++) store(i, row[i], unit[i]);
  }
}
