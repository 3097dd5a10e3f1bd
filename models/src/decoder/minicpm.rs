//! A layer of MiniCPM (bge-reranker-v2-minicpm-layerwise), SPEC 6. `rms` multiplies by the stored weight, and what is added to the
//! residual stream is scaled by `r = scale_depth / sqrt(num_hidden_layers)`.
//!
//! ```text
//! x += r * o_proj(attention(rms(x; input_layernorm)))
//! x += r * down_proj(silu(gate_proj n) * up_proj n)        n = rms(x; post_attention_layernorm)
//! ```

use outcrop_kernels::attention::{AttentionParams, Mask};
use outcrop_kernels::gemm::Activation;
use outcrop_loader::{DecoderConfig, MiniCpmConfig};

use super::attention::SelfAttention;
use super::gated_mlp::GatedMlp;
use super::pass::{Output, Pass};
use crate::Error;
use crate::weights::{Reader, RmsConvention, RootMeanSquare};

pub(super) struct Layer {
    pub(super) input_layernorm: RootMeanSquare,
    attention: SelfAttention,
    post_attention_layernorm: RootMeanSquare,
    mlp: GatedMlp,
    /// `r`
    residual_scale: f32,
}

impl Layer {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type of the activations")]
    pub(super) fn load(
        reader: &Reader<'_>,
        config: &DecoderConfig,
        minicpm: &MiniCpmConfig,
        n: usize,
    ) -> Result<Self, Error> {
        let layer = format!("model.layers.{n}");
        let norm = |module: &str| {
            let name = format!("{layer}.{module}");
            reader.input_norm(&name, config.hidden_size, config.rms_norm_eps, RmsConvention::Factor)
        };
        let params = AttentionParams {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            softmax_scale: (config.head_dim as f32).powf(-0.5),
            mask: Mask::Causal,
            softcap: None,
        };
        let input_layernorm = norm("input_layernorm")?;
        let post_attention_layernorm = norm("post_attention_layernorm")?;
        Ok(Self {
            attention: SelfAttention::load(reader, config, &layer, &input_layernorm, params)?,
            mlp: GatedMlp::load(reader, config, &layer, &post_attention_layernorm, Activation::Silu)?,
            input_layernorm,
            post_attention_layernorm,
            residual_scale: (minicpm.scale_depth / (config.num_hidden_layers as f64).sqrt()) as f32,
        })
    }

    /// `normed` is this layer's input under its norm, and afterwards its output under the norm `next`.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, next: &RootMeanSquare) -> Result<(), Error> {
        self.attention
            .forward(pass, Output::Residual(self.residual_scale, &self.post_attention_layernorm))?;
        self.mlp.forward(pass, Output::Residual(self.residual_scale, next))
    }
}
