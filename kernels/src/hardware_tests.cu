// What the wrappers of hardware.cuh do with known inputs: run on the emulator and on a GPU, whose answers must be those of the
// PTX manual. One warp.
#include "hardware.cuh"

struct HardwareTestParams {
  u32 num_floats;
  u32 unused;
};

// `fragments`, [25, 32]: what each lane gets, word by word. `floats`, [4, num_floats]: 2^x, 1/x, 1/sqrt(x), x rounded to T and back.
template <class T>
KERNEL(32) hardware_test(u32* fragments, float* floats, const T* a, const T* b, const float* x, HardwareTestParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 lane = threadIdx.x, smem = smem_base();
  u32 word = 0;
  auto store = [&](u32 value) { fragments[word++ * 32 + lane] = value; };

  // Sixteen rows of 32 bytes of a, then eight of b, copied asynchronously; behind them 16 bytes that are to be zeros.
  cp_async16(smem + lane * 16, a + lane * 8, true);
  if (lane < 16) cp_async16(smem + 512 + lane * 16, b + lane * 8, true);
  if (lane == 16) cp_async16(smem + 768, b, false);
  cp_async_commit();
  cp_async_wait<0>();
  sync_block();

  // The fragments of a (16 x 16) and b (8 x 16, in its first two matrices).
  u32 fa[4], fb[4], ft[4];
  ldmatrix4(fa, smem + (lane & 15) * 32 + (lane >> 4) * 16);
  ldmatrix4(fb, smem + 512 + (lane & 7) * 32 + ((lane >> 3) & 1) * 16);
  ldmatrix4_trans(ft, smem + (lane & 15) * 32 + (lane >> 4) * 16);
  for (u32 i = 0; i < 4; i++) store(fa[i]);
  for (u32 i = 0; i < 2; i++) store(fb[i]);
  for (u32 i = 0; i < 4; i++) store(ft[i]);
  float d[4] = {0, 0, 0, 0};
  mma16816<T>(d, fa, fb[0], fb[1]);
  mma16816<T>(d, fa, fb[0], fb[1]);
  for (u32 i = 0; i < 4; i++) store(float_to_bits(d[i]));

  // Shared memory, shuffles, conversions.
  store(lds32(smem + 768 + (lane & 3) * 4));
  sts128(smem + 1024 + lane * 16, u32x4{lane, lane + 100, lane + 200, lane + 300});
  sync_warp();
  u32x4 v = lds128(smem + 1024 + (31 - lane) * 16);
  store(v.x), store(v.w);
  store(shfl_xor(lane, 5u));
  store(shfl_up(lane, 3u));
  store(shfl(lane * 2, 7u));
  u32 packed = pack2<T>(lane * 0.5f, lane + 0.25f);
  store(packed);
  store(float_to_bits(unpack_lo<T>(packed))), store(float_to_bits(unpack_hi<T>(packed)));
  store(float_to_bits(warp_sum((float)lane))), store(float_to_bits(warp_max((float)(lane ^ 21))));

  for (u32 i = lane; i < p.num_floats; i += 32) {
    floats[i] = fast_exp2(x[i]);
    floats[p.num_floats + i] = fast_rcp(x[i]);
    floats[2 * p.num_floats + i] = fast_rsqrt(x[i] < 0 ? -x[i] : x[i]);
    floats[3 * p.num_floats + i] = to_float(from_float<T>(x[i]));
  }
}
