//! Launch of add_layer_norm.cu.

use super::LayerNorm;
use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::row::Norm;
use crate::stream::CudaStream;
use crate::{Buffer, Error, Size, row};

parameter_block! {
    /// Of every instance.
    AddLayerNormParams {
        num_rows: DeviceSize,
        hidden_size: u32,
        eps: f32,
    }
}

static SOURCE: Source = Source {
    path: "add_layer_norm/add_layer_norm.cu",
    text: include_str!("add_layer_norm.cu"),
    assertions: || AddLayerNormParams::assertions() + &row::assertions(),
};

const KERNEL: &str = "add_layer_norm";
const NORM: Norm = Norm { source: &SOURCE, kernel: KERNEL, shapes: row::ENCODERS };

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    NORM.instances()
}

pub(super) fn add_layer_norm(
    stream: &CudaStream,
    x: &mut Buffer,
    y: &Buffer,
    norm: LayerNorm<'_>,
    num_rows: Size,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    let on = Operands { stream, kernel: KERNEL };
    let pointers = [
        on.operand("x", x)?,
        on.operand("y", y)?,
        on.full("weight", norm.weight)?,
        on.full("bias", norm.bias)?,
    ];
    let params = AddLayerNormParams {
        num_rows: num_rows.on_device(),
        hidden_size: narrow(hidden_size),
        eps: norm.eps,
    };
    NORM.instance(stream.operand_type(), hidden_size)?.launch(
        stream.device(),
        num_rows.bound(),
        &pointers,
        &params,
    )
}
