//! A layer of Gemma (bge-reranker-v2-gemma), SPEC 5. `rms` multiplies by one plus the stored weight.
//!
//! ```text
//! x += o_proj(attention(rms(x; input_layernorm)))
//! x += down_proj(gelu(gate_proj n) * up_proj n)        n = rms(x; post_attention_layernorm)
//! ```

use outcrop_kernels::attention::{AttentionParams, Mask};
use outcrop_loader::{DecoderConfig, GemmaConfig};

use super::DecoderOptions;
use super::attention::SelfAttention;
use super::gated_mlp::{GatedMlp, geglu};
use super::pass::{Output, Pass};
use crate::Error;
use crate::weights::{Reader, RmsConvention, RootMeanSquare};

pub(super) struct Layer {
    pub(super) input_layernorm: RootMeanSquare,
    attention: SelfAttention,
    post_attention_layernorm: RootMeanSquare,
    mlp: GatedMlp,
}

impl Layer {
    pub(super) fn load(
        reader: &Reader<'_>,
        config: &DecoderConfig,
        gemma: &GemmaConfig,
        options: &DecoderOptions,
        n: usize,
    ) -> Result<Self, Error> {
        let layer = format!("model.layers.{n}");
        let norm = |module: &str| {
            let name = format!("{layer}.{module}");
            reader.input_norm(&name, config.hidden_size, config.rms_norm_eps, RmsConvention::FactorMinusOne)
        };
        let params = AttentionParams {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            softmax_scale: (config.head_dim as f32).powf(-0.5),
            mask: Mask::Causal,
            softcap: None,
        };
        let activation = geglu(options.gelu.unwrap_or(gemma.gelu));
        let input_layernorm = norm("input_layernorm")?;
        let post_attention_layernorm = norm("post_attention_layernorm")?;
        Ok(Self {
            attention: SelfAttention::load(reader, config, &layer, &input_layernorm, params)?,
            mlp: GatedMlp::load(reader, config, &layer, &post_attention_layernorm, activation)?,
            input_layernorm,
            post_attention_layernorm,
        })
    }

    /// `normed` is this layer's input under its norm, and afterwards its output under the norm `next`.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, next: &RootMeanSquare) -> Result<(), Error> {
        self.attention.forward(pass, Output::Residual(1.0, &self.post_attention_layernorm))?;
        self.mlp.forward(pass, Output::Residual(1.0, next))
    }
}
