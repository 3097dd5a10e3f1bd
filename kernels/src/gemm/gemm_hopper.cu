// Matrix product with a fused epilogue on Hopper's wgmma tensor cores: d[m, n] = epilogue(sum over k of a[m, k] * b[n, k]).
//
// Blocks are persistent. Warpgroup 0 produces: one thread of it has TMA fill a ring of stages in shared memory, BLOCK_K columns of k each,
// as far ahead as the ring is long and across the ends of tiles. The other warpgroups consume: each multiplies 64 rows of a tile in
// registers. Two mbarriers hand over a stage: `full` once its bytes have come, `empty` once every warp is through with it.
//
// Two schedules. Cooperative: both consumers work on the same tile, two times 64 rows. That moves the fewest bytes for a product; the
// tensor cores stand still during the epilogue, which a long k makes up for. Ping-pong: the consumers take turns at tiles of 64 rows, and
// one's epilogue runs under the other's products. In both, two blocks of a cluster work one below the other and fetch rows of b together.
//
// Every tile adds the same products in the same ascending order of k, so an element's bits depend neither on the tile nor on m.
#include "../hopper.cuh"
#include "epilogues.cuh"

// ---- tiles

// BLOCK_M x BLOCK_N is what a stage holds the operands of. BAND: tiles are taken in bands of this many rows of them, n outermost within a
// band, so that the blocks that run at one time cover a nearly square part of d, some 2048 rows high, and share operands in L2.

struct Cooperative {
  static constexpr u32 BLOCK_M = 128, BLOCK_N = 256, CONSUMERS = 2, NUM_STAGES = 4, CLUSTER = 2, BAND = 8;
};

struct PingPong {
  static constexpr u32 BLOCK_M = 64, BLOCK_N = 256, CONSUMERS = 2, NUM_STAGES = 4, CLUSTER = 2, BAND = 16;
};

// For few rows: more blocks, all of them on few rows of a. With BAND 1 the columns of a block's first tile follow from its index alone.
struct Narrow128 {
  static constexpr u32 BLOCK_M = 64, BLOCK_N = 128, CONSUMERS = 1, NUM_STAGES = 8, CLUSTER = 1, BAND = 1;
};

struct Narrow64 {
  static constexpr u32 BLOCK_M = 64, BLOCK_N = 64, CONSUMERS = 1, NUM_STAGES = 8, CLUSTER = 1, BAND = 1;
};

// A row of a stage is one line of the 128-byte swizzle, and so is a row of a box: 64 columns of d on their way out.
constexpr u32 BLOCK_K = 64, LINE_BYTES = 128, BOX_ROWS = 64, BOX_COLUMNS = 64, BOX_BYTES = BOX_ROWS * LINE_BYTES;
// Boxes of each consumer: one is filled while the other is stored.
constexpr u32 NUM_BOXES = 2;

template <class Tile> constexpr u32 THREADS = 128 * (1 + Tile::CONSUMERS);
template <class Tile> constexpr u32 A_BYTES = Tile::BLOCK_M * LINE_BYTES;
template <class Tile> constexpr u32 STAGE_BYTES = (Tile::BLOCK_M + Tile::BLOCK_N) * LINE_BYTES;
template <class Tile> constexpr u32 BOXES = Tile::NUM_STAGES * STAGE_BYTES<Tile>;
template <class Tile> constexpr u32 BARRIERS = BOXES<Tile> + Tile::CONSUMERS * NUM_BOXES * BOX_BYTES;
// Full ones, empty ones, and the turns of consumers.
template <class Tile> constexpr u32 TURNS = BARRIERS<Tile> + 2 * Tile::NUM_STAGES * 8;
template <class Tile> constexpr u32 SHARED_BYTES = TURNS<Tile> + Tile::CONSUMERS * 8;
// Whether the consumers take turns.
template <class Tile> constexpr bool ALTERNATES = Tile::BLOCK_M < 64 * Tile::CONSUMERS;

struct Origin {
  u32 row, col;
};

// The tiles of a cluster, one below the other: every `count`-th, from `first` on.
template <class Tile> struct Tiles {
  u32 first, count, end, tiles_m, tiles_n;

  DEV Tiles(u32 m, u32 n) {
    tiles_m = ceil_div(m, Tile::CLUSTER * Tile::BLOCK_M);
    tiles_n = ceil_div(n, Tile::BLOCK_N);
    first = blockIdx.x / Tile::CLUSTER;
    count = gridDim.x / Tile::CLUSTER;
    end = tiles_m * tiles_n;
  }

  // Of this block's tile.
  DEV Origin origin_of(u32 tile) const {
    const u32 band = tile / (Tile::BAND * tiles_n) * Tile::BAND, within = tile % (Tile::BAND * tiles_n);
    const u32 height = min(Tile::BAND, tiles_m - band);
    return {((band + within % height) * Tile::CLUSTER + cluster_rank()) * Tile::BLOCK_M, within / height * Tile::BLOCK_N};
  }
};

// Where in the ring a warpgroup is. A stage's barriers have been through as many phases as the ring through rounds: `parity` tells which.
template <class Tile> struct Ring {
  u32 stage = 0, parity = 0;

  DEV void advance(u32 steps) {
    parity ^= (stage + steps) / Tile::NUM_STAGES & 1;
    stage = (stage + steps) % Tile::NUM_STAGES;
  }
  DEV u32 address() const { return smem_base() + stage * STAGE_BYTES<Tile>; }
  DEV u32 full() const { return smem_base() + BARRIERS<Tile> + stage * 8; }
  DEV u32 empty() const { return full() + Tile::NUM_STAGES * 8; }
};

// ---- producer

template <class Tile> DEV void produce(const TensorMap* map_a, const TensorMap* map_b, const Tiles<Tile>& tiles, u32 num_steps) {
  Ring<Tile> ring;
  for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.count) {
    const Origin origin = tiles.origin_of(tile);
    for (u32 step = 0; step < num_steps; ++step, ring.advance(1)) {
      // The phase before the first counts as ended: the first round does not wait.
      mbarrier_wait(ring.empty(), ring.parity ^ 1);
      mbarrier_arrive_expect(ring.full(), STAGE_BYTES<Tile>);
      const u32 smem_a = ring.address(), smem_b = smem_a + A_BYTES<Tile>;
      tma_load(smem_a, map_a, ring.full(), step * BLOCK_K, origin.row);
      if constexpr (Tile::CLUSTER == 1) {
        tma_load(smem_b, map_b, ring.full(), step * BLOCK_K, origin.col);
      } else {
        // The blocks of a cluster multiply by the same rows of b: each fetches its share for all.
        constexpr u32 SHARE = Tile::BLOCK_N / Tile::CLUSTER;
        const u32 row = cluster_rank() * SHARE;
        tma_load_multicast(smem_b + row * LINE_BYTES, map_b, ring.full(), step * BLOCK_K, origin.col + row, (1 << Tile::CLUSTER) - 1);
      }
    }
  }
}

// ---- consumers
//
// Lane `lane` of warp `warp` of a consumer holds acc[4 g + 2 h + e]: row `16 warp + lane / 4 + 8 h` of its 64, column
// `8 g + lane % 4 * 2 + e`.

// Says that this warp is through with a stage, to every block whose copies write to it.
template <class Tile> DEV void release(const Ring<Tile>& ring) {
  if (threadIdx.x % 32 < Tile::CLUSTER) {
    if constexpr (Tile::CLUSTER == 1) mbarrier_arrive(ring.empty());
    else mbarrier_arrive_at(ring.empty(), threadIdx.x % 32);
  }
}

// Consumers that alternate multiply one after the other. Each waits for its turn at an mbarrier of its own, where the one before it
// arrives as soon as its last products are issued: the tensor cores see no gap. Without that, a consumer could be more than a round of
// the ring ahead, where a stage's parity cannot tell that it is too early.
template <class Tile> DEV void wait_for_turn(u32 consumer, u32 turn) {
  // The first consumer's first turn is at once.
  const u32 phase = consumer == 0 ? turn + 1 : turn;
  if constexpr (ALTERNATES<Tile>) mbarrier_wait(smem_base() + TURNS<Tile> + consumer * 8, phase & 1);
}
template <class Tile> DEV void pass_turn(u32 consumer) {
  if constexpr (ALTERNATES<Tile>) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(smem_base() + TURNS<Tile> + (consumer + 1) % Tile::CONSUMERS * 8);
  }
}

// acc = the products of a tile, from this consumer's rows of each stage on. `meanwhile` runs under the last of them.
template <class T, class Tile, class F>
DEV void multiply(float (&acc)[Tile::BLOCK_N / 2], Ring<Tile>& ring, u32 consumer, u32 num_steps, F meanwhile) {
  const u32 rows = ALTERNATES<Tile> ? 0 : consumer * 64;
  Ring<Tile> before = ring;
  for (u32 step = 0; step < num_steps; ++step) {
    mbarrier_wait(ring.full(), ring.parity);
    const u64 a = wgmma_operand(ring.address() + rows * LINE_BYTES), b = wgmma_operand(ring.address() + A_BYTES<Tile>);
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < BLOCK_K / 16; ++k) wgmma<T>(acc, a + k * 2, b + k * 2, step > 0 || k > 0);
    wgmma_commit();
    // While these run, those of the step before are done.
    wgmma_wait<1>();
    if (step > 0) release(before);
    before = ring;
    ring.advance(1);
  }
  pass_turn<Tile>(consumer);
  meanwhile();
  wgmma_wait<0>();
  release(before);
}

// Two neighbouring columns of the output as they are stored: group `g` of eight columns, rows `row` and, for h = 1, 8 below. `col` is the
// tile's first column of sums.
template <class T, class Epilogue, u32 N>
DEV u32 output(float (&acc)[N], u32 g, u32 h, u32 row, u32 col, u32 m, const Operands& operands, const GemmParams& p) {
  if constexpr (Epilogue::FORM == Form::GATED) {
    const u32 gate = 8 * g + 2 * h, up = gate + 4;
    return pack2<T>(Epilogue::activation(acc[gate]) * acc[up], Epilogue::activation(acc[gate + 1]) * acc[up + 1]);
  } else {
    float &x0 = acc[4 * g + 2 * h], &x1 = acc[4 * g + 2 * h + 1];
    // What lies beyond m and n is computed like the rest and not stored.
    Epilogue::apply(x0, x1, min(row + 8 * h, m - 1), min(col + 8 * g, p.n - 8) + threadIdx.x % 4 * 2, operands, p);
    return pack2<T>(x0, x1);
  }
}

// Stores the outputs of 64 rows, box by box: through shared memory, where the accumulators of a box become rows, and out of it by TMA.
template <class T, class Tile, class Epilogue>
DEV void store(T* d, const TensorMap* map_d, float (&acc)[Tile::BLOCK_N / 2], u32& box, u32 consumer, Origin origin, u32 m,
               const Operands& operands, const GemmParams& p) {
  constexpr bool GATED = Epilogue::FORM == Form::GATED;
  constexpr u32 COLUMNS = GATED ? Tile::BLOCK_N / 2 : Tile::BLOCK_N;
  static_assert(COLUMNS % BOX_COLUMNS == 0, "outputs are whole boxes");
  const u32 thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const u32 outputs = GATED ? p.n / 2 : p.n, first_col = GATED ? origin.col / 2 : origin.col;
  const u32 boxes = smem_base() + BOXES<Tile> + consumer * NUM_BOXES * BOX_BYTES;
#pragma unroll
  for (u32 first = 0; first < COLUMNS; first += BOX_COLUMNS) {
    const u32 col = first_col + first;
    if (col >= outputs) break;

    // The box is free again when the last group but one has been read: one is committed for each box, empty where threads store it.
    const u32 smem = boxes + box * BOX_BYTES;
    box = (box + 1) % NUM_BOXES;
    if (thread == 0) tma_wait_read<NUM_BOXES - 1>();
    sync_named(1 + consumer, 128);

    // A lane gives the address of a row of one of four 8 x 8 matrices: both halves of the warp's 16 rows, two groups of columns.
    const u32 line = smem + (warp * 16 + lane % 16) * LINE_BYTES;
#pragma unroll
    for (u32 chunk = 0; chunk < BOX_COLUMNS / 8; chunk += 2) {
      const u32 g = first / 8 + chunk, row = origin.row + warp * 16 + lane / 4;
      const auto word = [&](u32 g, u32 h) { return output<T, Epilogue>(acc, g, h, row, origin.col, m, operands, p); };
      const u32 top_left = word(g, 0), bottom_left = word(g, 1), top_right = word(g + 1, 0), bottom_right = word(g + 1, 1);
      stmatrix4(line + ((chunk + lane / 16) ^ lane % 8) * 16, top_left, bottom_left, top_right, bottom_right);
    }

    if (origin.row + BOX_ROWS <= m) {
      proxy_fence();
      sync_named(1 + consumer, 128);
      if (thread == 0) tma_store(map_d, smem, col, origin.row);
    } else {
      // Behind the last row d may hold what is none of ours: the map does not know where that is.
      sync_named(1 + consumer, 128);
      for (u32 i = thread; i < BOX_ROWS * 8; i += 128) {
        const u32 row = i / 8, chunk = i % 8;
        const u32x4 words = lds128(smem + row * LINE_BYTES + (chunk ^ row % 8) * 16);
        T* target = d + (u64)(origin.row + row) * outputs + col + chunk * 8;
        if (origin.row + row < m && col + chunk * 8 < outputs) *(u32x4*)target = {words.x, words.y, words.z, words.w};
      }
    }
    if (thread == 0) tma_commit();
  }
}

template <class T, class Tile, class Epilogue>
DEV void add_residual(float* d, T* copy, float* squares, const float (&acc)[Tile::BLOCK_N / 2], Origin origin, u32 m, const GemmParams& p) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
#pragma unroll
  for (u32 col = 0; col < Tile::BLOCK_N; col += 32) {
    float x[4][4];
#pragma unroll
    for (u32 i = 0; i < 16; ++i) x[i / 4][i % 4] = acc[col / 2 + i];
    add_residual<T, Epilogue>(d, copy, squares, x, origin.row + warp * 16 + lane / 4, origin.col + col, lane % 4, m, p);
  }
}

template <class T, class Tile, class Epilogue>
DEV void consume(void* d, T* copy, float* squares, const TensorMap* map_d, const Tiles<Tile>& tiles, u32 num_steps, u32 consumer, u32 m,
                 const Operands& operands, const GemmParams& p) {
  Ring<Tile> ring;
  u32 box = 0, turn = 0;
  for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.count, ++turn) {
    if (ALTERNATES<Tile> && turn % Tile::CONSUMERS != consumer) {
      ring.advance(num_steps);
      continue;
    }
    Origin origin = tiles.origin_of(tile);
    if constexpr (!ALTERNATES<Tile>) origin.row += consumer * 64;
    if constexpr (Epilogue::FORM == Form::RESIDUAL) {
      // What the products are added to comes under them as far as L2.
      if (threadIdx.x % 128 == 0 && origin.row < m) {
        for (u32 col = 0; col < Tile::BLOCK_N; col += BOX_COLUMNS) tma_prefetch(map_d, origin.col + col, origin.row);
      }
    }
    float acc[Tile::BLOCK_N / 2], inverse[2];
    wait_for_turn<Tile>(consumer, turn / Tile::CONSUMERS);
    multiply<T>(acc, ring, consumer, num_steps, [&] {
      if constexpr (Epilogue::TAKES_DEFERRED) {
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
        if (squares) inverse_rms(inverse, squares, origin.row + warp * 16 + lane / 4, lane % 4, m, p);
      }
    });
    if (origin.row >= m) continue;
    if constexpr (Epilogue::TAKES_DEFERRED) {
      if (squares) {
#pragma unroll
        for (u32 i = 0; i < Tile::BLOCK_N / 2; ++i) acc[i] *= inverse[i / 2 % 2];
      }
    }
    if constexpr (Epilogue::FORM == Form::RESIDUAL) {
      add_residual<T, Tile, Epilogue>((float*)d, copy, squares, acc, origin, m, p);
    } else {
      store<T, Tile, Epilogue>((T*)d, map_d, acc, box, consumer, origin, m, operands, p);
    }
  }
  if (threadIdx.x % 128 == 0) tma_wait_read<0>();
}

// ---- the kernel

// Steps of b that a block asks into L2 while the kernel before this one still runs.
constexpr u32 PREFETCHED_STEPS = 16;
// Registers of a thread: of 65536, what a producer does without goes to the consumers.
constexpr u32 PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

// Boxes of the maps: of a BLOCK_M rows and of b BLOCK_N / CLUSTER, both BLOCK_K columns; of d BOX_ROWS x BOX_COLUMNS. Rows of 128 bytes
// are swizzled, those of an f32 d are not. `squares` are those of the rows of a where their norm is deferred, and those of `copy` where the
// epilogue defers one. The epilogue's operands are restrict, so that their loads may move up past the stores to d. An epilogue's unused
// ones are null.
template <class T, class Tile, class Epilogue>
KERNEL_CLUSTER(THREADS<Tile>, Tile::CLUSTER)
gemm_hopper(TENSOR_MAP map_d, TENSOR_MAP map_a, TENSOR_MAP map_b, void* d, T* copy, float* squares, const float* __restrict__ bias,
            const float* __restrict__ cos, const float* __restrict__ sin, const u32* __restrict__ position_ids, GemmParams p) {
  const u32 num_steps = ceil_div(p.k, BLOCK_K), warpgroup = threadIdx.x / 128;

  if (threadIdx.x == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_b);
    prefetch_map(&map_d);
    for (Ring<Tile> ring; ring.parity == 0; ring.advance(1)) {
      mbarrier_init(ring.full(), 1);
      // Every warp of the consumers that share the stage, in every block of the cluster.
      mbarrier_init(ring.empty(), Tile::CLUSTER * Tile::BLOCK_M / 64 * 4);
    }
    for (u32 consumer = 0; consumer < Tile::CONSUMERS; ++consumer) mbarrier_init(smem_base() + TURNS<Tile> + consumer * 8, 4);
    mbarrier_init_fence();
    if constexpr (Tile::BAND == 1) {
      const u32 col = blockIdx.x % ceil_div(p.n, Tile::BLOCK_N) * Tile::BLOCK_N;
      for (u32 step = 0; step < min(num_steps, PREFETCHED_STEPS); ++step) tma_prefetch(&map_b, step * BLOCK_K, col);
    }
  }
  sync_cluster();
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u32 m = size_of(p.m);
  const Tiles<Tile> tiles(m, p.n);

  if (warpgroup == 0) {
    if constexpr (Tile::CONSUMERS > 1) give_registers<PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) produce(&map_a, &map_b, tiles, num_steps);
    sync_warp();
  } else {
    if constexpr (Tile::CONSUMERS > 1) take_registers<CONSUMER_REGISTERS>();
    consume<T, Tile, Epilogue>(d, copy, squares, &map_d, tiles, num_steps, warpgroup - 1, m, {bias, cos, sin, position_ids}, p);
    sync_warp();
  }
  // No block leaves while another may still reach into it.
  sync_cluster();
}
