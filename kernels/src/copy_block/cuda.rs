//! Launch of copy_block.cu.

use super::Block;
use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, Error, Size, row};

parameter_block! {
    /// Of the one instance.
    CopyBlockParams {
        num_rows: DeviceSize,
        out_row: DeviceSize,
        x_row: DeviceSize,
        out_stride: u32,
        out_column: u32,
        x_stride: u32,
        x_column: u32,
        units: u32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "copy_block/copy_block.cu",
    text: include_str!("copy_block.cu"),
    assertions: || CopyBlockParams::assertions() + &row::move_assertions(),
};

/// Bytes that the kernel moves at a time, whatever they are.
const UNIT_BYTES: usize = 16;

fn instance() -> Instance {
    row::moving(&SOURCE, "copy_block".to_owned())
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    vec![instance()]
}

pub(super) fn copy_block(
    stream: &CudaStream,
    out: &mut Buffer,
    to: Block,
    x: &Buffer,
    from: Block,
    num_rows: Size,
    num_cols: usize,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "copy_block" };
    for (parameter, width) in [
        ("to.stride", to.stride),
        ("to.column", to.column),
        ("from.stride", from.stride),
        ("from.column", from.column),
        ("num_cols", num_cols),
    ] {
        on.check_width(parameter, width)?;
    }
    let (out, x) = (on.any("out", out)?, on.any("x", x)?);
    on.check_type("out", out, x.element_type())?;
    let units = |elements: usize| narrow(elements * x.element_type().bytes() / UNIT_BYTES);
    let params = CopyBlockParams {
        num_rows: num_rows.on_device(),
        out_row: to.row.on_device(),
        x_row: from.row.on_device(),
        out_stride: units(to.stride),
        out_column: units(to.column),
        x_stride: units(from.stride),
        x_column: units(from.column),
        units: units(num_cols),
        unused: 0,
    };
    let blocks = row::moving_blocks("copy_block", num_rows.bound(), params.units as usize)?;
    instance().launch(stream.device(), blocks, &[out.address(), x.address()], &params)
}
