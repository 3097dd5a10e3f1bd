//! Launch of embed_layer_norm.cu.

use super::EmbeddingTables;
use crate::add_layer_norm::LayerNorm;
use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::row::Norm;
use crate::stream::CudaStream;
use crate::{Buffer, Error, Indices, row};

parameter_block! {
    /// Of every instance.
    EmbedLayerNormParams {
        num_tokens: DeviceSize,
        hidden_size: u32,
        eps: f32,
    }
}

static SOURCE: Source = Source {
    path: "embed_layer_norm/embed_layer_norm.cu",
    text: include_str!("embed_layer_norm.cu"),
    assertions: || EmbedLayerNormParams::assertions() + &row::assertions(),
};

const KERNEL: &str = "embed_layer_norm";
const NORM: Norm = Norm { source: &SOURCE, kernel: KERNEL, shapes: row::ENCODERS };

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    NORM.instances()
}

pub(super) fn embed_layer_norm(
    stream: &CudaStream,
    out: &mut Buffer,
    tables: EmbeddingTables<'_>,
    input_ids: Indices<'_>,
    position_ids: Indices<'_>,
    norm: LayerNorm<'_>,
) -> Result<(), Error> {
    let (hidden_size, num_tokens) = (norm.weight.len(), input_ids.len());
    let on = Operands { stream, kernel: KERNEL };
    let pointers = [
        on.operand("out", out)?,
        on.operand_table("word", tables.word)?,
        on.full("token_type", tables.token_type)?,
        on.operand_table("position", tables.position)?,
        on.indices("input_ids", input_ids)?,
        on.indices("position_ids", position_ids)?,
        on.full("weight", norm.weight)?,
        on.full("bias", norm.bias)?,
    ];
    let params = EmbedLayerNormParams {
        num_tokens: num_tokens.on_device(),
        hidden_size: narrow(hidden_size),
        eps: norm.eps,
    };
    NORM.instance(stream.operand_type(), hidden_size)?.launch(
        stream.device(),
        num_tokens.bound(),
        &pointers,
        &params,
    )
}
