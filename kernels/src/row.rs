//! What launch code has in common of the kernels of row.cuh: norms, which hold a row in the registers of one block, and
//! kernels that only move rows.

use crate::device::cpp_name;
use crate::operands::OPERAND_TYPES;
use crate::params::{Instance, Source};
use crate::{ElementType, Error};

/// Warps of a row, and groups of four elements that a thread holds of it.
type Shape = (u32, u32);

/// For the widths that published encoders have, 384, 512, 768 and 1024: no barrier, and no thread without work.
pub(crate) const ENCODERS: &[Shape] = &[(1, 3), (1, 4), (1, 6), (1, 8)];
/// For those of the decoders, 2048, 2304 and 3584.
pub(crate) const DECODERS: &[Shape] = &[(2, 8), (3, 6), (4, 7)];
/// For all others up to 8192.
const OTHERS: &[Shape] = &[(16, 1), (16, 2), (16, 3), (16, 4)];

/// A norm's instances: those for the widths of the models that use it, and for all others.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) source: &'static Source,
    pub(crate) kernel: &'static str,
    pub(crate) shapes: &'static [Shape],
}

/// C++ assertions that row.cuh asks for as many blocks.
pub(crate) fn assertions() -> String {
    let assertion = |(warps, quads)| {
        let blocks = blocks_per_sm((warps, quads));
        format!("static_assert(row_blocks({warps}, {quads}) == {blocks}, \"blocks\");\n")
    };
    [ENCODERS, DECODERS, OTHERS].concat().into_iter().map(assertion).collect()
}

fn blocks_per_sm((warps, quads): Shape) -> u32 {
    96 / quads.max(6) / warps
}

impl Norm {
    /// The instance for rows of `hidden_size`. It follows from the width alone, and with it the order in which a
    /// row is summed: a row has the same bits in any batch.
    pub(crate) fn instance(self, operand_type: ElementType, hidden_size: usize) -> Result<Instance, Error> {
        // All but the last group of a thread must lie within the row.
        let is_for = |(warps, quads): &Shape| {
            let round = 4 * 32 * *warps as usize;
            (round * (*quads as usize - 1) + 1..=round * *quads as usize).contains(&hidden_size)
        };
        match self.shapes().find(is_for) {
            Some(shape) if hidden_size.is_multiple_of(8) => Ok(self.of_shape(operand_type, shape)),
            _ => Err(Error::Parameter {
                kernel: self.kernel,
                parameter: "hidden_size",
                expected: "a multiple of 8, at most 8192",
                found: hidden_size,
            }),
        }
    }

    /// Every instance, for the catalog.
    pub(crate) fn instances(self) -> Vec<Instance> {
        let of_type = |operand_type| self.shapes().map(move |shape| self.of_shape(operand_type, shape));
        OPERAND_TYPES.into_iter().flat_map(of_type).collect()
    }

    fn shapes(self) -> impl Iterator<Item = Shape> {
        self.shapes.iter().chain(OTHERS).copied()
    }

    fn of_shape(self, operand_type: ElementType, (warps, quads): Shape) -> Instance {
        Instance {
            source: self.source,
            name: format!("{}<{}, {warps}, {quads}>", self.kernel, cpp_name(operand_type)),
            threads: 32 * warps,
            cluster: 1,
            // Two sums' slots of a float per warp; a warp alone sums without.
            shared_bytes: if warps == 1 { 0 } else { 8 * warps },
            blocks_per_sm: blocks_per_sm((warps, quads)),
        }
    }
}

/// Threads of a block that moves rows.
const MOVE_THREADS: u32 = 128;
/// Units that a thread of it has under way.
const MOVES: u32 = 4;
/// Such blocks on a multiprocessor.
const MOVE_BLOCKS: u32 = 10;

/// C++ assertions that row.cuh moves as many units, in blocks of as many threads.
pub(crate) fn move_assertions() -> String {
    format!(
        "static_assert(MOVE_THREADS == {MOVE_THREADS} && MOVES == {MOVES}, \"units of a block\");\n\
         static_assert(MOVE_BLOCKS == {MOVE_BLOCKS}, \"blocks\");\n"
    )
}

/// An instance of a kernel that moves rows.
pub(crate) fn moving(source: &'static Source, name: String) -> Instance {
    Instance { source, name, threads: MOVE_THREADS, cluster: 1, shared_bytes: 0, blocks_per_sm: MOVE_BLOCKS }
}

/// Blocks that `num_rows` rows of `units` ask for.
pub(crate) fn moving_blocks(kernel: &'static str, num_rows: usize, units: usize) -> Result<usize, Error> {
    let all = num_rows.saturating_mul(units);
    // A kernel counts in 32 bits, and up to a grid's units beyond the end.
    if all > 1 << 31 {
        let expected = "units of 4 elements or 16 bytes, at most 2^31";
        return Err(Error::Parameter { kernel, parameter: "num_rows", expected, found: all });
    }
    Ok(all.div_ceil((MOVE_THREADS * MOVES) as usize))
}
