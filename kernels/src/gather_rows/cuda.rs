//! Launch of gather_rows.cu.

use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, Error, Indices, row};

parameter_block! {
    /// Of the one instance.
    GatherRowsParams {
        num_rows: DeviceSize,
        units: u32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "gather_rows/gather_rows.cu",
    text: include_str!("gather_rows.cu"),
    assertions: || GatherRowsParams::assertions() + &row::move_assertions(),
};

/// Bytes that the kernel moves at a time, whatever they are.
const UNIT_BYTES: usize = 16;

fn instance() -> Instance {
    row::moving(&SOURCE, "gather_rows".to_owned())
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    vec![instance()]
}

pub(super) fn gather_rows(
    stream: &CudaStream,
    out: &mut Buffer,
    x: &Buffer,
    rows: Indices<'_>,
    row_len: usize,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "gather_rows" };
    on.check_width("row_len", row_len)?;
    let (out, x) = (on.any("out", out)?, on.any("x", x)?);
    on.check_type("out", out, x.element_type())?;
    let params = GatherRowsParams {
        num_rows: rows.len().on_device(),
        units: narrow(row_len * x.element_type().bytes() / UNIT_BYTES),
        unused: 0,
    };
    let pointers = [out.address(), x.address(), on.indices("rows", rows)?];
    let blocks = row::moving_blocks("gather_rows", rows.len().bound(), params.units as usize)?;
    instance().launch(stream.device(), blocks, &pointers, &params)
}
