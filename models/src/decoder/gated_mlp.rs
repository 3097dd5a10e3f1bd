//! The gated MLP of a decoder layer, shared by the families: `down_proj(activation(gate_proj(n)) * up_proj(n))`.

use outcrop_kernels::gemm::{Activation, Epilogue, Matrix, gemm};
use outcrop_loader::{DecoderConfig, Gelu};

use super::activations::Tensors;
use super::pass::{Output, Pass};
use crate::Error;
use crate::weights::{Reader, RootMeanSquare};

pub(super) struct GatedMlp {
    /// `[I, H]` twice, interleaved.
    gate_up_proj: Matrix,
    /// `[H, I]`
    down_proj: Matrix,
    activation: Activation,
}

impl GatedMlp {
    pub(super) fn load(
        reader: &Reader<'_>,
        config: &DecoderConfig,
        layer: &str,
        norm: &RootMeanSquare,
        activation: Activation,
    ) -> Result<Self, Error> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let name = |module: &str| format!("{layer}.mlp.{module}");
        Ok(Self {
            gate_up_proj: reader.gated_matrix(
                [&name("gate_proj"), &name("up_proj")],
                intermediate,
                hidden,
                norm,
            )?,
            down_proj: reader.matrix(&[(name("down_proj"), hidden)], intermediate)?,
            activation,
        })
    }

    /// Reads `normed`.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, output: Output<'_>) -> Result<(), Error> {
        let (stream, rows) = (pass.stream, pass.num_rows());
        let Tensors { hidden, normed, wide, projected, .. } = &mut *pass.tensors;
        let gated = Epilogue::Gated(self.activation, normed.deferred());
        gemm(stream, wide, &normed.rows, &self.gate_up_proj, 0..1, rows, gated)?;
        output.write(stream, (projected, hidden, normed), wide, &self.down_proj, rows)
    }
}

/// The kernel's name for a GELU.
pub(super) fn geglu(gelu: Gelu) -> Activation {
    match gelu {
        Gelu::Tanh => Activation::GeluTanh,
        Gelu::Exact => Activation::GeluErf,
    }
}
