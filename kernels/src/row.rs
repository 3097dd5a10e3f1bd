//! Instances of the norms of row.cuh, which hold a row in the registers of one block.

use crate::device::cpp_name;
use crate::operands::OPERAND_TYPES;
use crate::params::{Instance, Source};
use crate::{ElementType, Error};

/// Elements of a row that a warp holds.
const ELEMENTS_PER_WARP: usize = 1024;
/// Warps of a row that there are instances for.
const WARPS: [u32; 4] = [1, 2, 4, 8];
/// Blocks of one warp that a multiprocessor holds; with more warps proportionally fewer.
const BLOCKS: u32 = 16;

/// C++ assertions that row.cuh holds as much of a row in a warp, and asks for as many blocks.
pub(crate) fn assertions() -> String {
    format!(
        "static_assert(QUADS * 4 * 32 == {ELEMENTS_PER_WARP}, \"elements of a warp\");\n\
         static_assert(ROW_BLOCKS == {BLOCKS}, \"blocks\");\n"
    )
}

/// The instance for rows of `hidden_size`. It follows from the width alone, and with it the order in which a
/// row is summed: a row has the same bits in any batch.
pub(crate) fn instance(
    source: &'static Source,
    kernel: &'static str,
    operand_type: ElementType,
    hidden_size: usize,
) -> Result<Instance, Error> {
    let warps = WARPS.into_iter().find(|warps| hidden_size <= ELEMENTS_PER_WARP * *warps as usize);
    match warps {
        Some(warps) if hidden_size.is_multiple_of(8) => Ok(with_warps(source, kernel, operand_type, warps)),
        _ => Err(Error::Parameter {
            kernel,
            parameter: "hidden_size",
            expected: "a multiple of 8, at most 8192",
            found: hidden_size,
        }),
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances(source: &'static Source, kernel: &'static str) -> Vec<Instance> {
    let of_type = |operand_type| WARPS.map(|warps| with_warps(source, kernel, operand_type, warps));
    OPERAND_TYPES.into_iter().flat_map(of_type).collect()
}

fn with_warps(source: &'static Source, kernel: &str, operand_type: ElementType, warps: u32) -> Instance {
    Instance {
        source,
        name: format!("{kernel}<{}, {warps}>", cpp_name(operand_type)),
        threads: 32 * warps,
        cluster: 1,
        // Two sums' slots of a float per warp; a warp alone sums without.
        shared_bytes: if warps == 1 { 0 } else { 8 * warps },
        blocks_per_sm: BLOCKS / warps,
    }
}
