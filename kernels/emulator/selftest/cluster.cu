// Kernels on Hopper's clusters, multicast, bulk stores and wide products: without a fault (`Fault::none`), and with one
// each.
#include "../../src/hopper.cuh"

enum class Fault : u32 {
  none,
  no_sync_before_reaching,
  no_sync_before_the_end,
  peers_not_waited_for,
  peers_not_released,
  mask_of_own_block,
  mask_beyond_the_cluster,
  rank_beyond_the_cluster,
  own_part_expected,
  extra_load,
  too_many_registers,
  fewer_registers,
  operand_between_groups,
  no_proxy_fence,
  proxy_fence_after_the_barrier,
  load_over_stores,
  no_barrier_before_the_store,
  no_wait_before_reuse,
  wait_for_one_too_few,
  store_not_committed,
  store_never_awaited,
  store_unaligned,
  staging_not_swizzled,
  matrices_swapped,
  sync_by_some,
};

struct Params {
  u32 m, n, k, unused;
};

// d[m, n] = a[m, k] * b[n, k] transposed, through shared memory: clusters of BLOCKS blocks walk over tiles of 128
// BLOCKS rows and N columns. A block has 128 rows of a; of b, each block loads a part for all. One warpgroup loads, two
// multiply; three stages of 64 elements of k. Staging: for each of the two, two boxes of 64 rows and 64 columns.
template <class T, u32 BLOCKS, u32 N, Fault FAULT>
KERNEL_CLUSTER(384, BLOCKS) multiply(TENSOR_MAP d, TENSOR_MAP a, TENSOR_MAP b, Params p) {
  constexpr u32 STAGES = 3, A_BYTES = 128 * 128, B_BYTES = N * 128, BOX_BYTES = 64 * 128;
  const u32 thread = threadIdx.x, group = thread / 128, rank = cluster_rank();
  const u32 a_stages = smem_base(), b_stages = a_stages + STAGES * A_BYTES, staging = b_stages + STAGES * B_BYTES;
  const u32 full = staging + 4 * BOX_BYTES, empty = full + STAGES * 8;
  const u32 tiles_n = ceil_div(p.n, N), tiles = ceil_div(p.m, 128 * BLOCKS) * tiles_n, steps = ceil_div(p.k, 64);
  constexpr u32 RELEASES = FAULT == Fault::peers_not_waited_for ? 2 : 2 * BLOCKS;

  if (thread == 0) {
    for (u32 stage = 0; stage < STAGES; stage++) {
      mbarrier_init(full + stage * 8, 1);
      mbarrier_init(empty + stage * 8, RELEASES);
    }
    mbarrier_init_fence();
    prefetch_map(&a);
  }
  if (FAULT == Fault::load_over_stores) sts32(a_stages + thread * 4, 0);
  if (FAULT == Fault::no_sync_before_reaching) {
    sync_block();
  } else {
    sync_cluster();
  }

  u32 stage = 0, parity = 0;
  auto advance = [&] {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  };

  if (group == 2) {
    give_registers<40>();
    for (u32 tile = blockIdx.x / BLOCKS; tile < tiles && thread == 256; tile += gridDim.x / BLOCKS) {
      const u32 row = tile / tiles_n * 128 * BLOCKS + rank * 128, column = tile % tiles_n * N;
      for (u32 step = 0; step < steps; step++) {
        mbarrier_wait(empty + stage * 8, parity ^ 1);
        const u32 part = N / BLOCKS, part_bytes = part * 128, barrier = full + stage * 8;
        mbarrier_arrive_expect(barrier, A_BYTES + (FAULT == Fault::own_part_expected ? part_bytes : B_BYTES));
        tma_load(a_stages + stage * A_BYTES, &a, barrier, step * 64, row);
        u32 blocks = (1 << BLOCKS) - 1;
        if (FAULT == Fault::mask_of_own_block) blocks = 1 << rank;
        if (FAULT == Fault::mask_beyond_the_cluster) blocks = 1 << BLOCKS;
        tma_load_multicast(b_stages + stage * B_BYTES + rank * part_bytes, &b, barrier, step * 64, column + rank * part,
                           blocks);
        advance();
      }
    }
    if (FAULT == Fault::extra_load && thread == 256) {
      mbarrier_wait(empty + stage * 8, parity ^ 1);
      mbarrier_arrive_expect(full + stage * 8, A_BYTES);
      tma_load(a_stages + stage * A_BYTES, &a, full + stage * 8, 0, 0);
    }
    if (FAULT == Fault::sync_by_some && thread >= 352) return;
  } else {
    take_registers<FAULT == Fault::too_many_registers ? 240 : FAULT == Fault::fewer_registers ? 160 : 232>();
    const u32 warp = thread / 32 % 4, lane = thread % 32, leader = thread % 128 == 0;
    u32 boxes = 0;
    for (u32 tile = blockIdx.x / BLOCKS; tile < tiles; tile += gridDim.x / BLOCKS) {
      float sums[N / 2];
      for (u32 step = 0; step < steps; step++) {
        mbarrier_wait(full + stage * 8, parity);
        wgmma_fence();
        const u32 shift = FAULT == Fault::operand_between_groups ? 128 : 0;
        const u32 a_rows = a_stages + stage * A_BYTES + group * 64 * 128, b_rows = b_stages + stage * B_BYTES + shift;
        for (u32 k = 0; k < 4; k++) {
          wgmma<T>(sums, wgmma_operand(a_rows + k * 32), wgmma_operand(b_rows + k * 32), step + k > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        constexpr bool OWN = FAULT == Fault::peers_not_waited_for || FAULT == Fault::peers_not_released;
        for (u32 block = 0; block < BLOCKS && leader; block++) {
          const u32 to = FAULT == Fault::rank_beyond_the_cluster ? block + 1 : block;
          if (!OWN || to == rank) mbarrier_arrive_at(empty + stage * 8, to);
        }
        advance();
      }

      // 64 columns at a time, in turn by two boxes.
      for (u32 i = 0; i < N / 64; i++, boxes++) {
        const u32 box = staging + (group * 2 + boxes % 2) * BOX_BYTES;
        constexpr int IN_FLIGHT = FAULT == Fault::wait_for_one_too_few ? 2 : 1;
        if (leader && FAULT != Fault::no_wait_before_reuse) tma_wait_read<IN_FLIGHT>();
        sync_named(1 + group, 128);
        for (u32 g = 0; g < 8; g += 2) {
          const float* v = sums + (i * 8 + g) * 4;
          const u32 matrix = lane / 8, row = warp * 16 + matrix % 2 * 8 + lane % 8, chunk = g + matrix / 2;
          const u32 at = FAULT == Fault::staging_not_swizzled ? chunk : chunk ^ row % 8;
          const u32 upper = pack2<T>(v[0], v[1]), lower = pack2<T>(v[2], v[3]);
          const bool swapped = FAULT == Fault::matrices_swapped;
          stmatrix4(box + row * 128 + at * 16, swapped ? lower : upper, swapped ? upper : lower, pack2<T>(v[4], v[5]),
                    pack2<T>(v[6], v[7]));
        }
        if (FAULT != Fault::no_proxy_fence && FAULT != Fault::proxy_fence_after_the_barrier) proxy_fence();
        if (FAULT != Fault::no_barrier_before_the_store) sync_named(1 + group, 128);
        if (FAULT == Fault::proxy_fence_after_the_barrier) proxy_fence();
        if (leader) {
          const u32 row = tile / tiles_n * 128 * BLOCKS + rank * 128 + group * 64, column = tile % tiles_n * N + i * 64;
          tma_store(&d, FAULT == Fault::store_unaligned ? box + 64 : box, column, row);
          if (FAULT != Fault::store_not_committed) tma_commit();
        }
      }
    }
    if (leader && FAULT != Fault::store_never_awaited) tma_wait_read<0>();
  }
  if (FAULT != Fault::no_sync_before_the_end) sync_cluster();
}

// A thread waits for an mbarrier that does not wait for it.
KERNEL(64) overtaken() {
  if (threadIdx.x == 0) mbarrier_init(smem_base(), 1);
  sync_block();
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < 3; i++) mbarrier_arrive(smem_base());
  }
  if (threadIdx.x == 32) mbarrier_wait(smem_base(), 0);
}

// Rows of 16 bytes, `stride` apart, to shared memory and back to `out`.
KERNEL(32) stride_store(u32* out, u32 stride) {
  const u32 lane = threadIdx.x;
  stmatrix4(smem_base() + lane * stride, lane, 32 + lane, 64 + lane, 96 + lane);
  sync_warp();
  u32 r[4];
  ldmatrix4(r, smem_base() + lane * stride);
  for (u32 i = 0; i < 4; i++) out[i * 32 + lane] = r[i];
}
