// What the wrappers of hopper.cuh do with known inputs: run on the emulator and on a GPU, whose answers must be those of the PTX
// manual. A cluster of two blocks, a warpgroup each.
#include "hopper.cuh"

struct HopperTestParams {
  u32 block_words;  // of `words`, for each block
  u32 unused;
};

// Shared memory: an operand of 64 rows and one of 256, 128 bytes each, as many rows on their way out, two mbarriers.
constexpr u32 A = 0, B = A + 64 * 128, OUT = B + 256 * 128, BARRIERS = OUT + 64 * 128;

// Element `k` of row `row` of an operand in registers.
template <class T> DEV float register_element(u32 row, u32 k) { return (float)((i32)((row * 5 + k * 7) % 9) - 4); }

// Where a product's left operand is, and how its right one lies.
enum class Form { MEMORY, REGISTERS, TRANSPOSED };

// Stores a thread's sums of a product with 2 N rows or columns of b. `a` is in shared memory or in registers.
template <class T, Form FORM, u32 N> DEV void multiply(u32* words, u32 smem_a, const u32 (&fragments)[4][4], u32 smem_b) {
  float d[N];
  wgmma_fence();
  for (u32 k = 0; k < 4; ++k) {
    const u64 b = FORM == Form::TRANSPOSED ? wgmma_transposed_operand(smem_b + k * 16 * 128, 64 * 128) : wgmma_operand(smem_b) + k * 2;
    if constexpr (FORM == Form::MEMORY) wgmma<T>(d, wgmma_operand(smem_a) + k * 2, b, k > 0);
    else wgmma_registers<T, FORM == Form::TRANSPOSED>(d, fragments[k], b, k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (u32 i = 0; i < N; ++i) words[i] = float_to_bits(d[i]);
  sync_block();
}

// `words`, for each block: a's box, b's boxes, the sums of each thread for 64, 128 and 256 rows of b, those of an operand in registers
// with 64 rows of b and with 64, 128 and 256 columns of it transposed, a box with heads, what stmatrix stored.
template <class T>
KERNEL_CLUSTER(128, 2)
hardware_test_hopper(TENSOR_MAP map_a, TENSOR_MAP map_b, TENSOR_MAP map_heads, TENSOR_MAP map_out, u32* words, HopperTestParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32, smem = smem_base(), rank = cluster_rank();
  const u32 copied = smem + BARRIERS, greeted = copied + 8;
  words += rank * p.block_words;

  if (thread == 0) {
    mbarrier_init(copied, 1);
    mbarrier_init(greeted, 1);
    mbarrier_init_fence();
  }
  sync_cluster();

  // A box that reaches beyond the matrix in both directions; and a box that each block fetches for both.
  if (thread == 0) {
    mbarrier_arrive_expect(copied, (64 + 256) * 128);
    tma_load(smem + A, &map_a, copied, 16, 48);
    tma_load_multicast(smem + B + rank * 128 * 128, &map_b, copied, 0, rank * 128, 3);
    mbarrier_arrive_at(greeted, 1 - rank);
  }
  mbarrier_wait(copied, 0);
  mbarrier_wait(greeted, 0);
  for (u32 i = thread; i < (64 + 256) * 32; i += 128) words[i] = lds32(smem + i * 4);
  words += (64 + 256) * 32;

  u32 fragments[4][4];
  for (u32 k = 0; k < 4; ++k)
    for (u32 i = 0; i < 4; ++i) {
      const u32 row = warp * 16 + lane / 4 + i % 2 * 8, column = k * 16 + i / 2 * 8 + lane % 4 * 2;
      fragments[k][i] = pack2<T>(register_element<T>(row, column), register_element<T>(row, column + 1));
    }
  // One product after the other, with a barrier between: all sums at once take all registers.
  u32* sums = words + thread * 224;
  multiply<T, Form::MEMORY, 32>(sums, smem + A, fragments, smem + B);
  multiply<T, Form::MEMORY, 64>(sums + 32, smem + A, fragments, smem + B);
  multiply<T, Form::MEMORY, 128>(sums + 96, smem + A, fragments, smem + B);
  words += 128 * 224;

  // b's 256 rows of 64 are four blocks of 64 k and 64 columns.
  sums = words + thread * 256;
  multiply<T, Form::REGISTERS, 32>(sums, smem + A, fragments, smem + B);
  multiply<T, Form::TRANSPOSED, 32>(sums + 32, smem + A, fragments, smem + B);
  multiply<T, Form::TRANSPOSED, 64>(sums + 64, smem + A, fragments, smem + B);
  multiply<T, Form::TRANSPOSED, 128>(sums + 128, smem + A, fragments, smem + B);
  words += 128 * 256;

  // A box that reaches beyond the matrix in all three directions.
  if (thread == 0) {
    mbarrier_arrive_expect(copied, 64 * 128);
    tma_load(smem + OUT, &map_heads, copied, 8, 2, 80);
  }
  mbarrier_wait(copied, 1);
  for (u32 i = thread; i < 64 * 32; i += 128) words[i] = lds32(smem + OUT + i * 4);
  words += 64 * 32;
  sync_block();

  // Every warp four matrices of 8 x 8: 16 rows of 32 bytes.
  const u32 value = thread * 4;
  stmatrix4(smem + OUT + (warp * 16 + lane % 16) * 32 + lane / 16 * 16, value, value + 1, value + 2, value + 3);
  sync_block();
  for (u32 i = thread; i < 64 * 8; i += 128) words[i] = lds32(smem + OUT + i * 4);
  sync_block();

  // A box of consecutive numbers, swizzled, to where part of it is beyond the matrix.
  for (u32 i = thread; i < 64 * 32; i += 128) {
    const u32 row = i / 32, word = i % 32;
    sts32(smem + OUT + row * 128 + ((word / 4 ^ row % 8) * 16) + word % 4 * 4, i * 2 | (i * 2 + 1) << 16);
  }
  proxy_fence();
  sync_block();
  if (thread == 0 && rank == 0) {
    tma_prefetch(&map_out, 16, 20);
    tma_store(&map_out, smem + OUT, 16, 20);
    tma_commit();
    tma_wait_read<0>();
  }
  sync_cluster();
}
