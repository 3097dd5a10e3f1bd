// Matrix product with a fused epilogue on mma.sync tensor cores: d[m, n] = epilogue(sum over k of a[m, k] * b[n, k]).
//
// A block owns one BLOCK_M x BLOCK_N tile of d at a time and walks k in steps of BLOCK_K. cp.async copies the steps into a ring of
// shared-memory stages ahead of their use; warps read fragments with ldmatrix and keep their part of the tile, WARP_M x 32, in
// registers. Every tile shape adds the same products in the same ascending order of k with the same instruction, so an element's bits
// depend neither on the tile shape nor on m.
#include "../hardware.cuh"
#include "epilogues.cuh"

// ---- tiles

// For many rows. Two blocks share an SM, one's epilogue runs under the other's products: hence 128 registers a thread and 64 KiB.
struct Tile128 {
  static constexpr u32 BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 32;
  static constexpr u32 WARPS_M = 2, WARPS_N = 4;
  static constexpr u32 NUM_STAGES = 4, MIN_BLOCKS = 2;
};

// For few rows: smaller tiles give more blocks, and a block that has an SM to itself hides latency by depth alone, 320 columns of k in
// 80 KiB against 128.
struct Tile64 {
  static constexpr u32 BLOCK_M = 64, BLOCK_N = 64, BLOCK_K = 64;
  static constexpr u32 WARPS_M = 2, WARPS_N = 2;
  static constexpr u32 NUM_STAGES = 5, MIN_BLOCKS = 2;
};

template <class Tile> constexpr u32 THREADS = 32 * Tile::WARPS_M * Tile::WARPS_N;
template <class Tile> constexpr u32 STAGE_BYTES = (Tile::BLOCK_M + Tile::BLOCK_N) * Tile::BLOCK_K * 2;
template <class Tile> constexpr u32 SHARED_BYTES = Tile::NUM_STAGES * STAGE_BYTES<Tile>;

// Tiles are taken in bands of this many along m, n outermost within a band: the blocks that run at one time then cover a nearly square
// part of d and share their rows of a and b in L2.
constexpr u32 BAND = 16;

struct Origin {
  u32 row, col;
};

template <class Tile> DEV Origin origin_of(u32 tile, u32 tiles_m, u32 tiles_n) {
  const u32 first = tile / (BAND * tiles_n) * BAND, height = min(BAND, tiles_m - first), within = tile % (BAND * tiles_n);
  return {(first + within % height) * Tile::BLOCK_M, within / height * Tile::BLOCK_N};
}

// ---- stages

// Byte offset in a stage of a 16-byte chunk, 8 elements of k, of a row. The 8 rows that ldmatrix reads at once are 64 or 128 bytes
// apart; the XOR spreads their chunks over all 32 banks, and so those that cp.async writes. It repeats every 8 rows.
template <class Tile> DEV u32 swizzled(u32 row, u32 chunk) {
  constexpr u32 CHUNKS = Tile::BLOCK_K / 8, ROWS_PER_LINE = 8 / CHUNKS;
  return (row * CHUNKS + (chunk ^ row / ROWS_PER_LINE % CHUNKS)) * 16;
}

// Copies rows first_row .. first_row + ROWS of an operand, one step of k; zeros beyond the operand's last row and beyond k.
template <class Tile, u32 ROWS, class T>
DEV void copy_step(u32 smem, const T* source, u32 first_row, u32 num_rows, u32 first_k, u32 k) {
  constexpr u32 CHUNKS = Tile::BLOCK_K / 8, STRIDE = THREADS<Tile> / CHUNKS;
  static_assert(ROWS % STRIDE == 0 && STRIDE % 8 == 0, "a thread's rows are a whole number of swizzle periods apart");
  const u32 thread_row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, col = first_k + chunk * 8;
  const u32 destination = smem + swizzled<Tile>(thread_row, chunk);
#pragma unroll
  for (u32 i = 0; i < ROWS; i += STRIDE) {
    const u32 row = first_row + thread_row + i;
    cp_async16(destination + i * Tile::BLOCK_K * 2, source + (u64)row * k + col, row < num_rows && col < k);
  }
}

// ---- from accumulators to d
//
// A warp's accumulators acc[i][j][2 h + e] are row `row + 16 i + 8 h`, column `col + 8 j + 2 quad + e` of d, where `row` counts in
// lane / 4 and `quad` is lane % 4. What lies beyond m and n is computed like the rest and not stored.

template <class T, class Epilogue, u32 I>
DEV void store_elementwise(T* d, float (&acc)[I][4][4], u32 row, u32 col, u32 quad, u32 m, const Operands& operands, const GemmParams& p) {
#pragma unroll
  for (u32 i = 0; i < I; ++i) {
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
      // A row's 32 columns: each lane stores eight.
      const u32 d_row = row + i * 16 + h * 8, d_col = col + quad * 8;
      u32 words[4];
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        float &x0 = acc[i][j][h * 2], &x1 = acc[i][j][h * 2 + 1];
        Epilogue::apply(x0, x1, min(d_row, m - 1), min(col + j * 8, p.n - 8) + quad * 2, operands, p);
        words[j] = pack2<T>(x0, x1);
      }
      transpose_quad(words, quad);
      if (d_row < m && d_col < p.n) *(u32x4*)(d + (u64)d_row * p.n + d_col) = {words[0], words[1], words[2], words[3]};
    }
  }
}

template <class T, class Epilogue, u32 I>
DEV void store_gated(T* d, const float (&acc)[I][4][4], u32 row, u32 col, u32 quad, u32 m, const GemmParams& p) {
  const u32 outputs = p.n / 2;
#pragma unroll
  for (u32 i = 0; i < I; ++i) {
    // The 16 outputs of rows h = 0 and 1: each lane stores eight of one row.
    u32 words[4];
#pragma unroll
    for (u32 w = 0; w < 4; ++w) {
      const u32 h = w / 2, gate = w % 2 * 2, up = gate + 1;
      words[w] = pack2<T>(Epilogue::activation(acc[i][gate][h * 2]) * acc[i][up][h * 2],
                          Epilogue::activation(acc[i][gate][h * 2 + 1]) * acc[i][up][h * 2 + 1]);
    }
    transpose_quad(words, quad);
    const u32 d_row = row + i * 16 + quad / 2 * 8, d_col = col / 2 + quad % 2 * 8;
    if (d_row < m && d_col < outputs) *(u32x4*)(d + (u64)d_row * outputs + d_col) = {words[0], words[1], words[2], words[3]};
  }
}

// Divides sums by the root mean squares of their rows of a.
template <u32 I> DEV void divide_rows(float (&acc)[I][4][4], const float* squares, u32 row, u32 quad, u32 m, const GemmParams& p) {
#pragma unroll
  for (u32 i = 0; i < I; ++i) {
    float inverse[2];
    inverse_rms(inverse, squares, row + i * 16, quad, m, p);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      for (u32 e = 0; e < 4; ++e) acc[i][j][e] *= inverse[e / 2];
    }
  }
}

// ---- the kernel

// `squares` are those of the rows of a where their norm is deferred, and those of `copy` where the epilogue defers one. The epilogue's
// operands are restrict, so that their loads may move up past the stores to d. An epilogue's unused ones are null.
template <class T, class Tile, class Epilogue>
KERNEL_MIN_BLOCKS(THREADS<Tile>, Tile::MIN_BLOCKS)
gemm(void* d, T* copy, float* squares, const T* a, const T* b, const float* __restrict__ bias, const float* __restrict__ cos,
     const float* __restrict__ sin, const u32* __restrict__ position_ids, GemmParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  constexpr u32 WARP_M = Tile::BLOCK_M / Tile::WARPS_M, WARP_N = Tile::BLOCK_N / Tile::WARPS_N;
  constexpr u32 ROW_BYTES = Tile::BLOCK_K * 2, A_BYTES = Tile::BLOCK_M * ROW_BYTES;
  static_assert(WARP_M % 16 == 0 && WARP_N == 32, "the stores take four groups of eight columns");

  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 warp_row = warp / Tile::WARPS_N * WARP_M, warp_col = warp % Tile::WARPS_N * WARP_N;
  const u32 m = size_of(p.m), n = p.n, k = p.k;
  const u32 tiles_m = ceil_div(m, Tile::BLOCK_M), tiles_n = ceil_div(n, Tile::BLOCK_N), num_tiles = tiles_m * tiles_n;
  const u32 num_steps = ceil_div(k, Tile::BLOCK_K);
  const u32 smem = smem_base();

  // The copies run NUM_STAGES - 1 steps ahead of the products and do not stop at the end of a tile: the next tile's first steps arrive
  // under this one's epilogue. One group is committed per step, empty behind the last tile, so that the wait below counts steps.
  u32 copy_tile = blockIdx.x, copy_k = 0;
  Origin copy_origin = {};
  const auto copy_next_step = [&](u32 stage) {
    if (copy_tile < num_tiles) {
      if (copy_k == 0) copy_origin = origin_of<Tile>(copy_tile, tiles_m, tiles_n);
      const u32 smem_a = smem + stage * STAGE_BYTES<Tile>;
      copy_step<Tile, Tile::BLOCK_M>(smem_a, a, copy_origin.row, m, copy_k, k);
      copy_step<Tile, Tile::BLOCK_N>(smem_a + A_BYTES, b, copy_origin.col, n, copy_k, k);
      copy_k += Tile::BLOCK_K;
      if (copy_k >= k) {
        copy_k = 0;
        copy_tile += gridDim.x;
      }
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (u32 stage = 0; stage < Tile::NUM_STAGES - 1; ++stage) copy_next_step(stage);

  // Where this lane's row of an ldmatrix begins at the step's first 16 columns of k; chunk c is at `offset ^ c * 16`.
  const u32 a_offset = swizzled<Tile>(warp_row + lane % 16, lane / 16);
  const u32 b_offset = swizzled<Tile>(warp_col + lane / 16 * 8 + lane % 8, lane / 8 % 2) + A_BYTES;

  u32 stage = 0;
  for (u32 tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    // Products: WARP_M x 32 sums a warp, 16 x 8 an instruction.
    float acc[WARP_M / 16][4][4] = {};
    for (u32 step = 0; step < num_steps; ++step) {
      // This thread's chunks of the step are there after the wait, everybody's after the barrier. The barrier also says that all warps
      // are through with the previous step, whose stage the next copies overwrite.
      cp_async_wait<Tile::NUM_STAGES - 2>();
      sync_block();
      copy_next_step(stage == 0 ? Tile::NUM_STAGES - 1 : stage - 1);

      const u32 smem_stage = smem + stage * STAGE_BYTES<Tile>;
#pragma unroll
      for (u32 chunk = 0; chunk < Tile::BLOCK_K / 8; chunk += 2) {
        u32 a_frag[WARP_M / 16][4], b_frag[2][4];
#pragma unroll
        for (u32 i = 0; i < WARP_M / 16; ++i) ldmatrix4(a_frag[i], smem_stage + (a_offset ^ chunk * 16) + i * 16 * ROW_BYTES);
#pragma unroll
        for (u32 j = 0; j < 2; ++j) ldmatrix4(b_frag[j], smem_stage + (b_offset ^ chunk * 16) + j * 16 * ROW_BYTES);
#pragma unroll
        for (u32 i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
          for (u32 j = 0; j < 4; ++j) mma16816<T>(acc[i][j], a_frag[i], b_frag[j / 2][j % 2 * 2], b_frag[j / 2][j % 2 * 2 + 1]);
        }
      }
      stage = stage == Tile::NUM_STAGES - 1 ? 0 : stage + 1;
    }

    // Epilogue.
    const Origin origin = origin_of<Tile>(tile, tiles_m, tiles_n);
    const u32 row = origin.row + warp_row + lane / 4, col = origin.col + warp_col, quad = lane % 4;
    if constexpr (Epilogue::TAKES_DEFERRED) {
      if (squares) divide_rows(acc, squares, row, quad, m, p);
    }
    if constexpr (Epilogue::FORM == Form::ELEMENTWISE) {
      store_elementwise<T, Epilogue>((T*)d, acc, row, col, quad, m, {bias, cos, sin, position_ids}, p);
    } else if constexpr (Epilogue::FORM == Form::GATED) {
      store_gated<T, Epilogue>((T*)d, acc, row, col, quad, m, p);
    } else {
#pragma unroll
      for (u32 i = 0; i < WARP_M / 16; ++i) {
        add_residual<T, Epilogue>((float*)d, copy, squares, acc[i], row + i * 16, col, quad, m, p);
      }
    }
  }
}
