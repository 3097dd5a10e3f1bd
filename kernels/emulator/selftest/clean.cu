// Kernels without a fault: each must give the right result under every schedule.
#include "../../src/hardware.cuh"

struct Params {
  Size rows;
  u32 k;
  u32 unused;
};

// d[16 rows, 16] = a[16 rows, k] * b[16, k] transposed, one warp for each 16 rows: copies two stages ahead, swizzled
// tiles of 16 x 32, fragments by ldmatrix. `k` is a multiple of 8; chunks beyond it are zeros.
template <class T>
KERNEL(128) multiply(float* d, const T* a, const T* b, Params p) {
  constexpr u32 STAGES = 3, TILE = 16 * 64;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = ceil_div(p.k, 32);
  const u32 base = smem_base() + warp * STAGES * 2 * TILE;
  auto chunk = [](u32 row, u32 column) { return row * 64 + ((column ^ (row / 2 % 4)) << 4); };

  for (u32 tile = blockIdx.x * 4 + warp; tile * 16 < size_of(p.rows); tile += gridDim.x * 4) {
    auto load = [&](u32 step) {
      const u32 stage = base + step % STAGES * 2 * TILE;
      for (u32 i = lane; i < 64; i += 32) {
        const u32 row = i / 4, column = i % 4, k = step * 32 + column * 8, a_row = tile * 16 + row;
        cp_async16(stage + chunk(row, column), k < p.k && a_row < size_of(p.rows) ? a + (u64)a_row * p.k + k : a,
                   k < p.k && a_row < size_of(p.rows));
        cp_async16(stage + TILE + chunk(row, column), k < p.k ? b + row * p.k + k : b, k < p.k);
      }
    };
    float sums[2][4] = {};
    for (u32 step = 0; step < STAGES - 1; step++) {
      if (step < steps) load(step);
      cp_async_commit();
    }
    for (u32 step = 0; step < steps; step++) {
      cp_async_wait<STAGES - 2>();
      sync_warp();  // this stage has landed for all lanes, and all are done with the one that the next load overwrites
      if (step + STAGES - 1 < steps) load(step + STAGES - 1);
      cp_async_commit();
      const u32 stage = base + step % STAGES * 2 * TILE;
      for (u32 half = 0; half < 2; half++) {
        u32 fa[4], fb[4];
        ldmatrix4(fa, stage + chunk(lane % 16, half * 2 + lane / 16));
        ldmatrix4(fb, stage + TILE + chunk(lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
        mma16816<T>(sums[0], fa, fb[0], fb[1]);
        mma16816<T>(sums[1], fa, fb[2], fb[3]);
      }
    }
    for (u32 i = 0; i < 8; i++) {
      const u32 row = tile * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row < size_of(p.rows)) d[row * 16 + column] = sums[i / 4][i % 4];
    }
    sync_warp();
  }
}

// out[column][row] = x[row][column], 16 x 16 elements, by ldmatrix4_trans.
KERNEL(32) transpose(f16* out, const f16* x) {
  const u32 lane = threadIdx.x, at = smem_base();
  cp_async16(at + lane * 16, x + lane * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  sync_warp();
  u32 r[4];
  ldmatrix4_trans(r, at + lane % 16 * 32 + lane / 16 * 16);  // upper and lower left, then upper and lower right
  for (u32 i = 0; i < 4; i++) {
    const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2 * 8;
    *(u32*)&out[row * 16 + column] = r[i];
  }
}

// out[block] = the sum of the block's 256 numbers: shuffles, then shared memory.
KERNEL(256) sum(float* out, const float* x) {
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (u32 turn = 0; turn < 2; turn++) {
    float total = warp_sum(x[blockIdx.x * 256 + threadIdx.x]);
    if (lane == 0) sts_f32(smem_base() + warp * 4, total);
    sync_block();
    total = warp_sum(lane < 8 ? lds_f32(smem_base() + lane * 4) : 0.f);
    if (threadIdx.x == turn) out[blockIdx.x * 2 + turn] = total;
    sync_block();
  }
}

// out[i] = sum of x[0 .. i], 32 numbers; out[32 + i] = x[31 - i]; out[64] = the largest, from lane 5.
KERNEL(32) scan(u32* out, const u32* x) {
  const u32 lane = threadIdx.x;
  u32 total = x[lane];
  for (u32 delta = 1; delta < 32; delta *= 2) {
    const u32 below = shfl_up(total, delta);
    if (lane >= delta) total += below;
  }
  out[lane] = total;
  out[32 + lane] = shfl(x[lane], 31 - lane);
  const float largest = warp_max((float)x[lane]);
  if (lane == 5) out[64] = (u32)largest;
}

// Two warps of producers and two of consumers hand over a buffer through named barriers: 1 is "full", 2 is "empty".
KERNEL(128) hand_over(float* out, const float* x, u32 rounds) {
  const u32 thread = threadIdx.x % 64, slot = smem_base() + thread * 4;
  const bool produces = threadIdx.x < 64;
  for (u32 round = 0; round < rounds; round++) {
    if (produces) {
      if (round > 0) sync_named(2, 128);
      sts_f32(slot, x[round * 64 + thread]);
      sync_named(1, 128);
    } else {
      sync_named(1, 128);
      out[round * 64 + thread] = lds_f32(smem_base() + (63 - thread) * 4);
      if (round + 1 < rounds) sync_named(2, 128);
    }
  }
}

// Accesses with known bank conflicts, of one warp: a load and a store of 4 bytes every `stride` bytes, the same of 16
// bytes, and ldmatrix with rows `stride` bytes apart.
KERNEL(32) stride4(u32* out, u32 stride) {
  const u32 at = smem_base() + threadIdx.x * stride;
  sts32(at, threadIdx.x);
  sync_warp();
  out[threadIdx.x] = lds32(at);
}
KERNEL(32) stride16(u32* out, u32 stride) {
  const u32 at = smem_base() + threadIdx.x * stride;
  sts128(at, {threadIdx.x, 0, 0, 0});
  sync_warp();
  out[threadIdx.x] = lds128(at).x;
}
KERNEL(32) stride_matrix(u32* out, u32 stride) {
  const u32 at = smem_base() + threadIdx.x * stride;
  sts128(at, {threadIdx.x, 0, 0, 0});
  sync_warp();
  u32 r[4];
  ldmatrix4(r, at);
  out[threadIdx.x] = r[0];
}
