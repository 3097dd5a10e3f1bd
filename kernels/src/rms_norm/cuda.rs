//! Launch of rms_norm.cu.

use super::RmsNorm;
use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::row::Norm;
use crate::stream::CudaStream;
use crate::{Buffer, Error, Size, row};

parameter_block! {
    /// Of every instance.
    RmsNormParams {
        num_rows: DeviceSize,
        hidden_size: u32,
        eps: f32,
    }
}

static SOURCE: Source = Source {
    path: "rms_norm/rms_norm.cu",
    text: include_str!("rms_norm.cu"),
    assertions: || RmsNormParams::assertions() + &row::assertions(),
};

const KERNEL: &str = "rms_norm";
const NORM: Norm = Norm { source: &SOURCE, kernel: KERNEL, shapes: row::DECODERS };

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    NORM.instances()
}

pub(super) fn rms_norm(
    stream: &CudaStream,
    out: &mut Buffer,
    x: &Buffer,
    norm: RmsNorm<'_>,
    num_rows: Size,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    let on = Operands { stream, kernel: KERNEL };
    let pointers = [on.operand("out", out)?, on.full("x", x)?, on.full("weight", norm.weight)?];
    let params =
        RmsNormParams { num_rows: num_rows.on_device(), hidden_size: narrow(hidden_size), eps: norm.eps };
    NORM.instance(stream.operand_type(), hidden_size)?.launch(
        stream.device(),
        num_rows.bound(),
        &pointers,
        &params,
    )
}
