//! Launch of sandwich_norm.cu.

use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::rms_norm::RmsNorm;
use crate::row::Norm;
use crate::stream::CudaStream;
use crate::{Buffer, Error, Size, row};

parameter_block! {
    /// Of every instance.
    SandwichNormParams {
        num_rows: DeviceSize,
        hidden_size: u32,
        post_eps: f32,
        pre_eps: f32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "sandwich_norm/sandwich_norm.cu",
    text: include_str!("sandwich_norm.cu"),
    assertions: || SandwichNormParams::assertions() + &row::assertions(),
};

const KERNEL: &str = "sandwich_norm";
const NORM: Norm = Norm { source: &SOURCE, kernel: KERNEL, shapes: row::DECODERS };

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    NORM.instances()
}

pub(super) fn sandwich_norm(
    stream: &CudaStream,
    x: &mut Buffer,
    out: &mut Buffer,
    y: &Buffer,
    post: RmsNorm<'_>,
    pre: RmsNorm<'_>,
    num_rows: Size,
) -> Result<(), Error> {
    let hidden_size = pre.weight.len();
    let on = Operands { stream, kernel: KERNEL };
    let pointers = [
        on.full("x", x)?,
        on.operand("out", out)?,
        on.operand("y", y)?,
        on.full("post.weight", post.weight)?,
        on.full("pre.weight", pre.weight)?,
    ];
    let params = SandwichNormParams {
        num_rows: num_rows.on_device(),
        hidden_size: narrow(hidden_size),
        post_eps: post.eps,
        pre_eps: pre.eps,
        unused: 0,
    };
    NORM.instance(stream.operand_type(), hidden_size)?.launch(
        stream.device(),
        num_rows.bound(),
        &pointers,
        &params,
    )
}
