// Rows shared out among the threads of a block, and the norms over them.
//
// A thread takes quads: four neighbouring elements, one access of 16 bytes in f32 or of 8 in f16 and bf16. Neighbouring
// threads take neighbouring quads, so a warp's access is contiguous in either type. Eight elements a thread would make
// every f32 access of a warp strided, and half of each sector of memory would be written at a time.
//
// A norm reads its row once: one block of WARPS warps holds it in registers, QUADS quads a thread, 1024 elements a
// warp. A multiprocessor holds 512 threads: with 64 KiB of f32 under way memory is busy (4.3 TB/s, 0.8 us and 132
// multiprocessors ask for 26), and a thread has registers enough for its weights to come while the sum is awaited.
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
  v = lds_f32(slot);
#pragma unroll
  for (u32 warp = 1; warp < WARPS; warp++) v += lds_f32(slot + 4 * warp);
  round ^= 1;
  return v;
}

// ---- rows in registers

constexpr u32 QUADS = 8;
// Blocks of one warp on a multiprocessor; with more warps proportionally fewer.
constexpr u32 ROW_BLOCKS = 16;

// Calls f(i, column) for each of this thread's quads: the i-th begins at `column`.
template <u32 WARPS, class F> DEV void for_each_quad(u32 hidden_size, F f) {
#pragma unroll
  for (u32 i = 0; i < QUADS; i++) {
    u32 column = 4 * (32 * WARPS * i + threadIdx.x);
    if (column < hidden_size) f(i, column);
  }
}

// 1 / sqrt(mean_j v[j]^2 + eps)
template <u32 WARPS> DEV float inverse_rms(const float (&v)[QUADS][4], u32 hidden_size, float eps, u32& round) {
  float squares = 0;
  for_each_quad<WARPS>(hidden_size, [&](u32 i, u32) { squares += dot4(v[i], v[i]); });
  float mean_square = div_rn(row_sum<WARPS>(squares, round), (float)hidden_size);
  return div_rn(1.0f, sqrt_rn(mean_square + eps));
}

// v = (v - mean) / sqrt(variance + eps) * weight + bias; the variance from differences, since squares would cancel.
template <u32 WARPS>
DEV void layer_norm(float (&v)[QUADS][4], const float* __restrict__ weight, const float* __restrict__ bias,
                    u32 hidden_size, float eps, u32& round) {
  float sum = 0;
  for_each_quad<WARPS>(hidden_size, [&](u32 i, u32) { sum += sum4(v[i][0], v[i][1], v[i][2], v[i][3]); });
  float mean = div_rn(row_sum<WARPS>(sum, round), (float)hidden_size);

  float squares = 0;
  for_each_quad<WARPS>(hidden_size, [&](u32 i, u32) {
    for (u32 e = 0; e < 4; e++) v[i][e] -= mean;
    squares += dot4(v[i], v[i]);
  });
  float variance = div_rn(row_sum<WARPS>(squares, round), (float)hidden_size);
  float inverse = div_rn(1.0f, sqrt_rn(variance + eps));

  for_each_quad<WARPS>(hidden_size, [&](u32 i, u32 column) {
    float w[4], b[4];
    load4(w, weight + column);
    load4(b, bias + column);
    for (u32 e = 0; e < 4; e++) v[i][e] = fma(v[i][e] * inverse, w[e], b[e]);
  });
}
