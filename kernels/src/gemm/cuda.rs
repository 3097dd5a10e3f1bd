//! Launch of gemm.cu, and on Hopper of gemm_hopper.cu in its place.

use std::ops::Range;

use super::{Activation, DeferredRows, Epilogue, Matrix, SQUARES_COLUMNS, hopper};
use crate::device::cpp_name;
use crate::operands::{OPERAND_TYPES, Operands};
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, ElementType, Error, Size};

parameter_block! {
    /// Of every instance.
    GemmParams {
        m: DeviceSize,
        n: u32,
        k: u32,
        scale: f32,
        head_dim: u32,
        rotary_columns: u32,
        eps: f32,
    }
}

static SOURCE: Source = Source {
    path: "gemm/gemm.cu",
    text: include_str!("gemm.cu"),
    assertions: || assertions() + &TILES.map(Tile::assertions).concat(),
};

/// C++ assertions that epilogues.cuh means the same.
pub(super) fn assertions() -> String {
    let columns = format!("static_assert(SQUARES_COLUMNS == {SQUARES_COLUMNS}, \"squares\");\n");
    GemmParams::assertions() + &columns
}

const KERNEL: &str = "gemm";

/// What a block computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    name: &'static str,
    /// Rows and columns of `d`.
    block: usize,
    threads: u32,
    shared_bytes: u32,
    blocks_per_sm: u32,
}

const TILE128: Tile =
    Tile { name: "Tile128", block: 128, threads: 256, shared_bytes: 64 << 10, blocks_per_sm: 2 };
const TILE64: Tile =
    Tile { name: "Tile64", block: 64, threads: 128, shared_bytes: 80 << 10, blocks_per_sm: 2 };
const TILES: [Tile; 2] = [TILE128, TILE64];

/// The epilogues of epilogues.cuh.
pub(super) const EPILOGUES: [&str; 10] = [
    "None",
    "Bias",
    "BiasGeluErf",
    "BiasTanh",
    "GeluTanhGated",
    "GeluErfGated",
    "SiluGated",
    "AddResidual",
    "AddResidualDeferred",
    "Rope",
];

impl Tile {
    /// The one to cut `[m, n]` into: the large one, which reads half as much for the same products, once
    /// there is one for every multiprocessor. Either gives the same bits.
    fn choose(m: usize, n: usize, num_sms: u32) -> Self {
        if TILE128.count(m, n) >= num_sms as usize { TILE128 } else { TILE64 }
    }

    /// Tiles that cover `[m, n]`.
    fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.block) * n.div_ceil(self.block)
    }

    /// C++ assertions that gemm.cu means the same by the name.
    fn assertions(self) -> String {
        let Self { name, block, threads, shared_bytes, blocks_per_sm } = self;
        format!(
            "static_assert({name}::BLOCK_M == {block} && {name}::BLOCK_N == {block}, \"{name}: block\");\n\
             static_assert(THREADS<{name}> == {threads}, \"{name}: threads\");\n\
             static_assert(SHARED_BYTES<{name}> == {shared_bytes}, \"{name}: shared memory\");\n\
             static_assert({name}::MIN_BLOCKS == {blocks_per_sm}, \"{name}: blocks\");\n"
        )
    }
}

fn instance(operand_type: ElementType, tile: Tile, epilogue: &str) -> Instance {
    Instance {
        source: &SOURCE,
        name: format!("gemm<{}, {}, {epilogue}>", cpp_name(operand_type), tile.name),
        threads: tile.threads,
        cluster: 1,
        shared_bytes: tile.shared_bytes,
        blocks_per_sm: tile.blocks_per_sm,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    let mut instances = hopper::instances();
    for operand_type in OPERAND_TYPES {
        for tile in TILES {
            instances.extend(EPILOGUES.map(|epilogue| instance(operand_type, tile, epilogue)));
        }
    }
    instances
}

/// The epilogue's name in epilogues.cuh.
fn name_of(epilogue: &Epilogue<'_>) -> &'static str {
    match epilogue {
        Epilogue::None => "None",
        Epilogue::Bias(_) => "Bias",
        Epilogue::BiasGeluErf(_) => "BiasGeluErf",
        Epilogue::BiasTanh(_) => "BiasTanh",
        Epilogue::AddScaled(_, None) => "AddResidual",
        Epilogue::AddScaled(_, Some(_)) => "AddResidualDeferred",
        Epilogue::Gated(Activation::GeluTanh, _) => "GeluTanhGated",
        Epilogue::Gated(Activation::GeluErf, _) => "GeluErfGated",
        Epilogue::Gated(Activation::Silu, _) => "SiluGated",
        Epilogue::Rope(..) => "Rope",
    }
}

pub(super) fn gemm(
    stream: &CudaStream,
    d: &mut Buffer,
    a: &Buffer,
    b: &Matrix,
    parts: Range<usize>,
    m: Size,
    epilogue: Epilogue<'_>,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: KERNEL };
    let (first_row, outputs) = (b.first_row_of(parts.start), b.outputs_of(parts.clone()));
    // Packing has made sure of k.
    on.check_width("n", outputs)?;

    let weights = on.matrix("b", b)?;
    // Of a gated matrix two rows make an output.
    let n = if b.is_gated() { 2 * outputs } else { outputs };
    let mut params = GemmParams {
        m: m.on_device(),
        n: narrow(n),
        k: narrow(b.k()),
        scale: 0.0,
        head_dim: 0,
        rotary_columns: 0,
        eps: 0.0,
    };
    // Null where the epilogue has no such operand.
    let (mut copy, mut squares, mut bias, mut rope) = (0, 0, 0, [0; 3]);
    match &epilogue {
        Epilogue::None | Epilogue::Gated(..) => {}
        Epilogue::Bias(values) | Epilogue::BiasGeluErf(values) | Epilogue::BiasTanh(values) => {
            bias = on.full("bias", values)? + 4 * first_row as u64;
        }
        Epilogue::AddScaled(scale, deferred) => {
            params.scale = *scale;
            if let Some(DeferredRows { rows, squares: sums }) = deferred {
                (copy, squares) = (on.operand("rows", rows)?, on.full("squares", sums)?);
            }
        }
        Epilogue::Rope(table, position_ids, _) => {
            let head_dim = table.head_dim();
            if !head_dim.is_power_of_two() {
                let (parameter, expected) = ("table.head_dim", "a power of two");
                return Err(Error::Parameter { kernel: KERNEL, parameter, expected, found: head_dim });
            }
            params.head_dim = narrow(head_dim);
            params.rotary_columns = narrow(b.rotary_columns_of(parts).0);
            rope = [
                on.full("cos", table.cos())?,
                on.full("sin", table.sin())?,
                on.indices("position_ids", *position_ids)?,
            ];
        }
    }
    if let Epilogue::Gated(_, Some(norm)) | Epilogue::Rope(_, _, Some(norm)) = epilogue {
        (squares, params.eps) = (on.full("squares", norm.squares)?, norm.eps);
    }
    let d_address = match epilogue {
        Epilogue::AddScaled(..) => on.full("d", d)?,
        _ => on.operand("d", d)?,
    };
    let a_address = on.operand("a", a)?;
    let b_address = weights.address_of(first_row * b.k());
    let (device, epilogue) = (stream.device(), name_of(&epilogue));
    if device.is_hopper() {
        let operands = hopper::Operands {
            d: d_address,
            d_rows: d.len() / outputs,
            a: a_address,
            a_rows: a.len() / b.k(),
            b: b_address,
        };
        let rest = [copy, squares, bias, rope[0], rope[1], rope[2]];
        return hopper::launch(device, stream.operand_type(), &operands, &rest, m, &params, epilogue);
    }
    let tile = Tile::choose(m.bound(), n, device.properties().num_sms);
    let pointers = [d_address, copy, squares, a_address, b_address, bias, rope[0], rope[1], rope[2]];
    let items = tile.count(m.bound(), n);
    instance(stream.operand_type(), tile, epilogue).launch(device, items, &pointers, &params)
}
