//! Launch of row_dot.cu.

use crate::device::cpp_name;
use crate::operands::{OPERAND_TYPES, Operands};
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, ElementType, Error, Size};

parameter_block! {
    /// Of every instance.
    RowDotParams {
        num_rows: DeviceSize,
        hidden_size: u32,
        bias: f32,
        /// 0: none.
        softcap: f32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "row_dot/row_dot.cu",
    text: include_str!("row_dot.cu"),
    assertions: RowDotParams::assertions,
};

fn instance(operand_type: ElementType) -> Instance {
    Instance {
        source: &SOURCE,
        name: format!("row_dot<{}>", cpp_name(operand_type)),
        threads: 128,
        cluster: 1,
        shared_bytes: 32,
        blocks_per_sm: 16,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    OPERAND_TYPES.map(instance).to_vec()
}

#[allow(clippy::too_many_arguments)]
pub(super) fn row_dot(
    stream: &CudaStream,
    out: &mut Buffer,
    offset: usize,
    x: &Buffer,
    weight: &Buffer,
    bias: f32,
    softcap: Option<f32>,
    num_rows: Size,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "row_dot" };
    let hidden_size = weight.len();
    on.check_width("hidden_size", hidden_size)?;
    let out = on.full("out", out)? + 4 * offset as u64;
    let pointers = [out, on.operand("x", x)?, on.full("weight", weight)?];
    let params = RowDotParams {
        num_rows: num_rows.on_device(),
        hidden_size: narrow(hidden_size),
        bias,
        softcap: softcap.unwrap_or(0.0),
        unused: 0,
    };
    instance(stream.operand_type()).launch(stream.device(), num_rows.bound(), &pointers, &params)
}
