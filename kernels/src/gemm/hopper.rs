//! Launch of gemm_hopper.cu, and the choice of its tile.

use super::cuda::{EPILOGUES, GemmParams, assertions};
use crate::device::{Device, cpp_name};
use crate::driver::{SWIZZLED_COLUMNS, TensorMap};
use crate::operands::OPERAND_TYPES;
use crate::params::{Instance, Source};
use crate::{ElementType, Error, Size};

static SOURCE: Source = Source {
    path: "gemm/gemm_hopper.cu",
    text: include_str!("gemm_hopper.cu"),
    assertions: || assertions() + &TILES.map(Tile::assertions).concat(),
};

/// Columns of k in a stage.
const BLOCK_K: usize = 64;
/// Rows that a consumer multiplies, and those of a box of `d`.
const CONSUMER_ROWS: u32 = 64;

/// What a block computes at a time, and how: a tile of gemm_hopper.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) name: &'static str,
    block_m: u32,
    block_n: u32,
    consumers: u32,
    num_stages: u32,
    cluster: u32,
}

const COOPERATIVE: Tile =
    Tile { name: "Cooperative", block_m: 128, block_n: 256, consumers: 2, num_stages: 4, cluster: 2 };
const PING_PONG: Tile =
    Tile { name: "PingPong", block_m: 64, block_n: 256, consumers: 2, num_stages: 4, cluster: 2 };
const NARROW128: Tile =
    Tile { name: "Narrow128", block_m: 64, block_n: 128, consumers: 1, num_stages: 8, cluster: 1 };
const NARROW64: Tile =
    Tile { name: "Narrow64", block_m: 64, block_n: 64, consumers: 1, num_stages: 8, cluster: 1 };
pub(super) const TILES: [Tile; 4] = [COOPERATIVE, PING_PONG, NARROW128, NARROW64];

impl Tile {
    fn threads(self) -> u32 {
        128 * (1 + self.consumers)
    }

    fn stage_bytes(self) -> u32 {
        (self.block_m + self.block_n) * 2 * SWIZZLED_COLUMNS
    }

    /// Stages, two boxes for each consumer, two barriers for each stage and one for each consumer.
    fn shared_bytes(self) -> u32 {
        let boxes = self.consumers * 2 * CONSUMER_ROWS * 2 * SWIZZLED_COLUMNS;
        self.num_stages * self.stage_bytes() + boxes + 16 * self.num_stages + 8 * self.consumers
    }

    /// Whether the consumers take turns at tiles.
    fn alternates(self) -> bool {
        self.block_m < CONSUMER_ROWS * self.consumers
    }

    /// Whether its outputs are whole boxes: a gated tile has half as many columns of them.
    pub(super) fn can(self, epilogue: &str) -> bool {
        !is_gated(epilogue) || self.block_n >= 2 * SWIZZLED_COLUMNS
    }

    /// Tiles of a cluster that cover `[m, n]`.
    fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil((self.cluster * self.block_m) as usize) * n.div_ceil(self.block_n as usize)
    }

    /// C++ assertions that gemm_hopper.cu means the same by the name.
    fn assertions(self) -> String {
        let Self { name, block_m, block_n, cluster, .. } = self;
        let (threads, shared_bytes) = (self.threads(), self.shared_bytes());
        format!(
            "static_assert({name}::BLOCK_M == {block_m} && {name}::BLOCK_N == {block_n}, \"{name}: block\");\n\
             static_assert({name}::CLUSTER == {cluster}, \"{name}: cluster\");\n\
             static_assert(THREADS<{name}> == {threads}, \"{name}: threads\");\n\
             static_assert(SHARED_BYTES<{name}> == {shared_bytes}, \"{name}: shared memory\");\n"
        )
    }
}

fn is_gated(epilogue: &str) -> bool {
    epilogue.ends_with("Gated")
}

fn instance(operand_type: ElementType, tile: Tile, epilogue: &str) -> Instance {
    Instance {
        source: &SOURCE,
        name: format!("gemm_hopper<{}, {}, {epilogue}>", cpp_name(operand_type), tile.name),
        threads: tile.threads(),
        cluster: tile.cluster,
        shared_bytes: tile.shared_bytes(),
        blocks_per_sm: 1,
    }
}

/// Every instance, for the catalog.
pub(super) fn instances() -> Vec<Instance> {
    let mut instances = Vec::new();
    for operand_type in OPERAND_TYPES {
        for tile in TILES {
            let epilogues = EPILOGUES.iter().filter(|epilogue| tile.can(epilogue));
            instances.extend(epilogues.map(|epilogue| instance(operand_type, tile, epilogue)));
        }
    }
    instances
}

/// A product: `d[m, n]` of sums over k, and the epilogue's name. Gated, `n` counts rows of `b`.
#[derive(Clone, Copy, Debug)]
struct Problem<'a> {
    m: usize,
    n: usize,
    k: usize,
    epilogue: &'a str,
}

/// What the device is reckoned to do in a cycle of a multiprocessor: multiply-adds of its tensor cores, which is exact, and bytes
/// that reach it from L2 when all ask, which is estimated.
const MULTIPLY_ADDS_PER_CYCLE: f64 = 2048.0;
const L2_BYTES_PER_CYCLE: f64 = 48.0;
/// From the start of a block to its first product, estimated.
const START_CYCLES: f64 = 1000.0;

/// Cycles in which a multiprocessor turns 128 sums into outputs, estimated: an instruction each cycle for all of them; of the residual
/// add the bytes that it moves.
fn epilogue_cycles(epilogue: &str) -> f64 {
    match epilogue {
        "None" => 4.0,
        "Bias" => 5.0,
        "BiasGeluErf" => 28.0,
        "BiasTanh" => 20.0,
        "AddResidual" => 40.0,
        "AddResidualDeferred" => 50.0,
        // Rope and the gated ones.
        _ => 12.0,
    }
}

impl Tile {
    /// Cycles from the first block's start to the last one's end, by a model of what bounds a step: products or the copies they wait for.
    ///
    /// Both go on at once, but not quite: near balance the sum is longer than the longer one, hence the norm of fourth powers. Blocks go
    /// through as many tiles as fall to the busiest. An epilogue stands in the way of the next tile's products, unless consumers
    /// alternate: then under the other's products.
    fn cycles(self, problem: Problem<'_>, num_sms: u32) -> f64 {
        let (block_m, block_n) = (f64::from(self.block_m), f64::from(self.block_n));
        let products = block_m * block_n * BLOCK_K as f64 / MULTIPLY_ADDS_PER_CYCLE;
        let copied_rows = block_m + block_n / f64::from(self.cluster);
        let copies = copied_rows * 2.0 * BLOCK_K as f64 / L2_BYTES_PER_CYCLE;
        let step = (products.powi(4) + copies.powi(4)).powf(0.25);

        let tile = step * problem.k.div_ceil(BLOCK_K) as f64;
        let epilogue = block_m * block_n / 128.0 * epilogue_cycles(problem.epilogue);
        let clusters = (num_sms / self.cluster).max(1) as usize;
        let turns = self.count(problem.m, problem.n).div_ceil(clusters) as f64;
        START_CYCLES
            + match self.alternates() {
                true => turns * tile.max(0.5 * (tile + epilogue)) + epilogue,
                false => turns * (tile + epilogue),
            }
    }

    /// The one that is done first by the model. All of them give the same bits.
    fn choose(problem: Problem<'_>, num_sms: u32) -> Self {
        #[cfg(test)]
        if let Some(tile) = FORCED.get() {
            return tile;
        }
        let cycles = |tile: &Self| tile.cycles(problem, num_sms);
        let legal = TILES.into_iter().filter(|tile| tile.can(problem.epilogue));
        legal.min_by(|a, b| cycles(a).total_cmp(&cycles(b))).unwrap_or(NARROW128)
    }
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Tile>> = const { std::cell::Cell::new(None) };
}

/// Has this thread choose `tile` for what `work` launches.
#[cfg(test)]
pub(super) fn with_tile<R>(tile: Tile, work: impl FnOnce() -> R) -> R {
    FORCED.set(Some(tile));
    let done = work();
    FORCED.set(None);
    done
}

/// The matrices of a product in device memory, each with the rows that are there.
pub(super) struct Operands {
    pub(super) d: u64,
    pub(super) d_rows: usize,
    pub(super) a: u64,
    pub(super) a_rows: usize,
    pub(super) b: u64,
}

/// Launches the product; `rest` are the pointers of the epilogue's operands.
pub(super) fn launch(
    device: &Device,
    operand_type: ElementType,
    operands: &Operands,
    rest: &[u64],
    m: Size,
    params: &GemmParams,
    epilogue: &str,
) -> Result<(), Error> {
    let (n, k) = (params.n as usize, params.k as usize);
    let problem = Problem { m: m.bound(), n, k, epilogue };
    let tile = Tile::choose(problem, device.properties().num_sms);
    let map = |address, rows: usize, box_rows| TensorMap {
        address,
        // A map without rows would be refused; nothing is copied where there are none.
        rows: rows.max(1),
        columns: k,
        stride: k,
        heads: None,
        element_type: operand_type,
        box_rows,
        box_columns: SWIZZLED_COLUMNS,
        is_swizzled: true,
    };
    // The residual stream is f32, of which a box is only ever prefetched.
    let is_residual = epilogue.starts_with("AddResidual");
    let outputs = if is_gated(epilogue) { n / 2 } else { n };
    let d = TensorMap {
        columns: outputs,
        stride: outputs,
        element_type: if is_residual { ElementType::F32 } else { operand_type },
        is_swizzled: !is_residual,
        ..map(operands.d, operands.d_rows, CONSUMER_ROWS)
    };
    let maps =
        [d, map(operands.a, operands.a_rows, tile.block_m), map(operands.b, n, tile.block_n / tile.cluster)];
    let pointers = [&[operands.d], rest].concat();
    let items = tile.count(m.bound(), n);
    instance(operand_type, tile, epilogue).launch_mapped(device, items, &maps, &pointers, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiprocessors of an H200.
    const NUM_SMS: u32 = 132;

    fn chosen(m: usize, n: usize, k: usize, epilogue: &'static str) -> &'static str {
        Tile::choose(Problem { m, n, k, epilogue }, NUM_SMS).name
    }

    #[test]
    fn a_block_fits_a_multiprocessor() {
        for tile in TILES {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}: {}", tile.shared_bytes());
            assert!(tile.threads() <= 1024);
            // What a copy or a product may take: boxes of 256 rows, 64 rows of sums and 256 columns.
            assert!(
                tile.block_m <= 256 && tile.block_n / tile.cluster <= 256 && tile.block_n <= 256,
                "{tile:?}"
            );
            assert!(tile.alternates() || tile.block_m == CONSUMER_ROWS * tile.consumers, "{tile:?}");
        }
    }

    #[test]
    fn long_sums_of_many_rows_are_cooperative() {
        assert_eq!(chosen(51_200, 16_384, 2048, "None"), "Cooperative");
        assert_eq!(chosen(51_200, 2048, 16_384, "AddResidual"), "Cooperative");
        assert_eq!(chosen(16_384, 28_672, 3584, "GeluTanhGated"), "Cooperative");
    }

    #[test]
    fn a_heavy_epilogue_behind_a_short_sum_runs_under_products() {
        for (n, k) in [(3072, 768), (4096, 1024)] {
            assert_eq!(chosen(51_200, n, k, "BiasGeluErf"), "PingPong");
            assert_eq!(chosen(16_384, n, k, "BiasGeluErf"), "PingPong");
        }
    }

    #[test]
    fn few_rows_are_spread_over_many_blocks() {
        for m in [1, 20, 64] {
            assert_eq!(chosen(m, 768, 768, "Bias"), "Narrow64");
        }
        assert_eq!(chosen(512, 768, 3072, "Bias"), "Narrow64");
        // Half a box of outputs would be none.
        assert_eq!(chosen(64, 11_520, 2304, "SiluGated"), "Narrow128");
    }

    /// By hand: 2 x 3 tiles of a cluster for 66 clusters, 12 steps of 1024 cycles of products and 683 of copies, 256 times 5 of epilogue.
    #[test]
    fn the_model_counts_steps_turns_and_epilogues() {
        let problem = Problem { m: 512, n: 768, k: 768, epilogue: "Bias" };
        let step = (1024f64.powi(4) + (256.0 * 128.0 / 48.0f64).powi(4)).powf(0.25);
        let expected = START_CYCLES + 12.0 * step + 256.0 * 5.0;
        assert!((COOPERATIVE.cycles(problem, NUM_SMS) - expected).abs() < 1e-6);
        // A seventh tile for three pairs of multiprocessors is a third turn.
        let turns = |m, num_sms| {
            let cycles = COOPERATIVE.cycles(Problem { m, n: 256, ..problem }, num_sms) - START_CYCLES;
            cycles / (12.0 * step + 256.0 * 5.0)
        };
        assert!((turns(6 * 256, 6) - 2.0).abs() < 1e-9);
        assert!((turns(6 * 256 + 1, 6) - 3.0).abs() < 1e-9);
        assert!((turns(1, 1) - 1.0).abs() < 1e-9, "fewer multiprocessors than a cluster has blocks");
    }

    #[test]
    fn more_multiprocessors_never_take_longer() {
        for tile in TILES {
            for m in [1, 100, 5000, 51_200] {
                let cycles =
                    |num_sms| tile.cycles(Problem { m, n: 4096, k: 1024, epilogue: "None" }, num_sms);
                assert!(cycles(132) <= cycles(114), "{tile:?} {m}");
            }
        }
    }
}
