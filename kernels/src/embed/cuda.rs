//! Launch of embed.cu.

use crate::device::cpp_name;
use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, ElementType, Error, Indices, Table, row};

parameter_block! {
    /// Of every instance.
    EmbedParams {
        num_tokens: DeviceSize,
        hidden_size: u32,
        scale: f32,
    }
}

static SOURCE: Source = Source {
    path: "embed/embed.cu",
    text: include_str!("embed.cu"),
    assertions: || EmbedParams::assertions() + &row::move_assertions(),
};

/// Elements that the kernel moves at a time.
const QUAD: usize = 4;

fn instance(table_type: ElementType) -> Instance {
    row::moving(&SOURCE, format!("embed<{}>", cpp_name(table_type)))
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    [ElementType::F32, ElementType::F16, ElementType::BF16].map(instance).to_vec()
}

pub(super) fn embed(
    stream: &CudaStream,
    out: &mut Buffer,
    table: Table<'_>,
    input_ids: Indices<'_>,
    hidden_size: usize,
    scale: f32,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "embed" };
    on.check_width("hidden_size", hidden_size)?;
    let table = on.table("table", table)?;
    let pointers = [on.full("out", out)?, table.address(), on.indices("input_ids", input_ids)?];
    let num_tokens = input_ids.len();
    let params = EmbedParams { num_tokens: num_tokens.on_device(), hidden_size: narrow(hidden_size), scale };
    let blocks = row::moving_blocks("embed", num_tokens.bound(), hidden_size / QUAD)?;
    instance(table.element_type()).launch(stream.device(), blocks, &pointers, &params)
}
