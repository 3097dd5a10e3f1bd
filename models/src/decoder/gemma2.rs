//! A layer of Gemma 2 with layerwise heads (bge-reranker-v2.5-gemma2-lightweight), SPEC 7.1. `rms` multiplies by one plus the
//! stored weight; what attention and MLP give is normalised once more before it is added.
//!
//! ```text
//! x += rms(o_proj(attention(rms(x; input_layernorm))); post_attention_layernorm)
//! x += rms(down_proj(gelu(gate_proj n) * up_proj n); post_feedforward_layernorm)        n = rms(x; pre_feedforward_layernorm)
//! ```
//!
//! Layers of even index see a sliding window only.

use outcrop_kernels::attention::{AttentionParams, Mask};
use outcrop_kernels::rms_norm::RmsNorm;
use outcrop_kernels::sandwich_norm::sandwich_norm;
use outcrop_loader::{DecoderConfig, Gemma2Config};

use super::DecoderOptions;
use super::activations::Tensors;
use super::attention::SelfAttention;
use super::gated_mlp::{GatedMlp, geglu};
use super::pass::{Output, Pass};
use crate::Error;
use crate::weights::{Reader, RmsConvention, RootMeanSquare};

pub(super) struct Layer {
    pub(super) input_layernorm: RootMeanSquare,
    attention: SelfAttention,
    post_attention_layernorm: RootMeanSquare,
    pre_feedforward_layernorm: RootMeanSquare,
    mlp: GatedMlp,
    post_feedforward_layernorm: RootMeanSquare,
}

impl Layer {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type of the activations")]
    pub(super) fn load(
        reader: &Reader<'_>,
        config: &DecoderConfig,
        gemma2: &Gemma2Config,
        options: &DecoderOptions,
        n: usize,
    ) -> Result<Self, Error> {
        let layer = format!("model.layers.{n}");
        let norm = |module: &str| {
            let name = format!("{layer}.{module}");
            reader.rms_norm(&name, config.hidden_size, config.rms_norm_eps, RmsConvention::FactorMinusOne)
        };
        let softcap = gemma2.attn_logit_softcapping.filter(|_| options.attention_softcap);
        let params = AttentionParams {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            softmax_scale: gemma2.query_pre_attn_scalar.powf(-0.5) as f32,
            mask: match gemma2.sliding_window {
                Some(window) if n.is_multiple_of(2) => Mask::Window(window),
                _ => Mask::Causal,
            },
            softcap: softcap.map(|cap| cap as f32),
        };
        let activation = geglu(options.gelu.unwrap_or(gemma2.gelu));
        let input_layernorm = norm("input_layernorm")?;
        let pre_feedforward_layernorm = norm("pre_feedforward_layernorm")?;
        Ok(Self {
            attention: SelfAttention::load(reader, config, &layer, &input_layernorm, params)?,
            mlp: GatedMlp::load(reader, config, &layer, &pre_feedforward_layernorm, activation)?,
            input_layernorm,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    /// `normed` is this layer's input under its norm, and afterwards its output under the norm `next`.
    pub(super) fn forward(&self, pass: &mut Pass<'_>, next: &RootMeanSquare) -> Result<(), Error> {
        let add = |pass: &mut Pass<'_>, post: RmsNorm<'_>, pre: RmsNorm<'_>| {
            let rows = pass.num_rows();
            let Tensors { hidden, normed, projected, .. } = &mut *pass.tensors;
            sandwich_norm(pass.stream, hidden, &mut normed.rows, projected, post, pre, rows)
        };
        self.attention.forward(pass, Output::Projected)?;
        add(pass, self.post_attention_layernorm.get(), self.pre_feedforward_layernorm.get())?;
        self.mlp.forward(pass, Output::Projected)?;
        Ok(add(pass, self.post_feedforward_layernorm.get(), next.get())?)
    }
}
