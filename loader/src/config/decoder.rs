//! The decoders: Gemma, MiniCPM with layerwise heads, Gemma 2 with layerwise heads and compression (SPEC 5, 6, 7).

use std::fmt;

use super::{
    Architecture, MAX_LAYERS, MAX_ROWS, MAX_WIDTH, divided_head_dim, head_dims, is_head_dim, norm_eps,
    token_id, token_id_or,
};
use crate::Error;
use crate::json::Fields;

/// The shape of a causal decoder. The fields have the names that they have in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The class that the weights were saved from.
    pub architecture: Architecture,
    /// Model width.
    pub hidden_size: usize,
    /// Width between the matrices of the gated MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads; a multiple of `num_key_value_heads`.
    pub num_attention_heads: usize,
    /// Key and value heads; query head `h` reads number `h / (num_attention_heads / num_key_value_heads)`.
    pub num_key_value_heads: usize,
    /// Width of a head, a multiple of 16 up to 256. The heads together need not be as wide as the model.
    pub head_dim: usize,
    /// Rows of the word embedding table.
    pub vocab_size: usize,
    /// The longest sequence that the model was trained for. Rotary positions have no table, so it is no limit.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// The base of the rotary angles.
    pub rope_theta: f64,
    /// The id of the token that begins a sequence, less than `vocab_size`.
    pub bos_token_id: Option<u32>,
    /// The id of the padding token, less than `vocab_size`.
    pub pad_token_id: Option<u32>,
    /// What only this family has.
    pub family: DecoderFamily,
}

/// What is particular to a family of decoders.
#[derive(Debug, Clone, PartialEq)]
pub enum DecoderFamily {
    /// Gemma: one head, the vocabulary (SPEC 5).
    Gemma(GemmaConfig),
    /// MiniCPM with scalar heads behind its layers (SPEC 6).
    MiniCpm(MiniCpmConfig),
    /// Gemma 2 with scalar heads behind its layers (SPEC 7).
    Gemma2(Gemma2Config),
}

/// The form of GELU between the matrices of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// The approximation by a hyperbolic tangent.
    Tanh,
    /// The definition, by the error function.
    Exact,
}

/// What Gemma has beyond [`DecoderConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct GemmaConfig {
    /// The activation: what `hidden_activation` names, and tanh without that field.
    pub gelu: Gelu,
    /// Whether the word embeddings are the head's rows as well; if not, there is an `lm_head.weight`.
    pub tie_word_embeddings: bool,
}

/// What MiniCPM with layerwise heads has beyond [`DecoderConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct MiniCpmConfig {
    /// Factor on the word embeddings.
    pub scale_emb: f64,
    /// Attention and MLP are added times this over the square root of `num_hidden_layers`.
    pub scale_depth: f64,
    /// The smallest cutoff.
    pub start_layer: usize,
    /// Whether every cutoff has its own head; if not, one head serves all.
    pub head_multi: bool,
}

/// What Gemma 2 with layerwise heads has beyond [`DecoderConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct Gemma2Config {
    /// The activation: what `hidden_activation` names, and tanh without that field.
    pub gelu: Gelu,
    /// Attention scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    /// The bound of the attention scores, which the reference does not apply (SPEC 7.1).
    pub attn_logit_softcapping: Option<f64>,
    /// The bound of the head's output.
    pub final_logit_softcapping: Option<f64>,
    /// In layers of even index, the keys that a token sees, itself included; `None` for all before it.
    pub sliding_window: Option<usize>,
    /// The smallest cutoff.
    pub start_layer: usize,
    /// The distance between cutoffs.
    pub layer_sep: usize,
}

/// The layers behind which a layerwise model has a head: `start`, `start + step`, and so on up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedCutoffs {
    /// The smallest cutoff, at least 1.
    pub start: usize,
    /// The distance between cutoffs, at least 1.
    pub step: usize,
    /// The largest cutoff.
    pub last: usize,
}

impl DecoderConfig {
    /// The layers behind which a score can be read; `None` for a model that has one head behind its last layer.
    pub fn allowed_cutoffs(&self) -> Option<AllowedCutoffs> {
        let (start, step) = match &self.family {
            DecoderFamily::Gemma(_) => return None,
            DecoderFamily::MiniCpm(minicpm) => (minicpm.start_layer, 1),
            DecoderFamily::Gemma2(gemma2) => (gemma2.start_layer, gemma2.layer_sep),
        };
        let last = self.num_hidden_layers - (self.num_hidden_layers - start) % step;
        Some(AllowedCutoffs { start, step, last })
    }

    /// The fields that all decoders have, around what `family` already holds.
    pub(super) fn parse(
        architecture: Architecture,
        family: DecoderFamily,
        fields: Fields<'_>,
    ) -> Result<DecoderConfig, Error> {
        if fields.bool("attention_bias")? == Some(true) {
            return Err(fields.error("attention_bias", "false"));
        }
        let is_minicpm = matches!(family, DecoderFamily::MiniCpm(_));
        let hidden_size = fields.required_count("hidden_size", 1..=MAX_WIDTH)?;
        let num_attention_heads = fields.required_count("num_attention_heads", 1..=MAX_WIDTH)?;
        let head_dim = if is_minicpm {
            divided_head_dim(fields, hidden_size, num_attention_heads)?
        } else {
            stated_head_dim(fields)?
        };
        let vocab_size = fields.required_count("vocab_size", 1..=MAX_ROWS)?;
        let default_bos = if is_minicpm { 1 } else { 2 };
        let pad_token_id = match token_id(fields, "pad_token_id", vocab_size)? {
            None if !is_minicpm => Some(0),
            id => id,
        };
        Ok(DecoderConfig {
            architecture,
            hidden_size,
            intermediate_size: fields.required_count("intermediate_size", 1..=MAX_WIDTH)?,
            num_hidden_layers: num_hidden_layers(fields)?,
            num_attention_heads,
            num_key_value_heads: num_key_value_heads(fields, num_attention_heads, is_minicpm)?,
            head_dim,
            vocab_size,
            max_position_embeddings: fields.required_count("max_position_embeddings", 1..=MAX_ROWS)?,
            rms_norm_eps: norm_eps(fields, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: rope_theta(fields)?,
            bos_token_id: Some(token_id_or(fields, "bos_token_id", default_bos, vocab_size)?),
            pad_token_id,
            family,
        })
    }
}

impl GemmaConfig {
    pub(super) fn parse(fields: Fields<'_>) -> Result<GemmaConfig, Error> {
        Ok(GemmaConfig {
            gelu: gelu(fields)?,
            tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(true),
        })
    }
}

impl MiniCpmConfig {
    pub(super) fn parse(fields: Fields<'_>) -> Result<MiniCpmConfig, Error> {
        for (field, only) in [("hidden_act", "silu"), ("head_type", "simple")] {
            if fields.str(field)?.is_some_and(|found| found != only) {
                return Err(fields.error(field, format!("\"{only}\"")));
            }
        }
        if fields.get("pretraining_tp").is_some_and(|found| *found != 1) {
            return Err(fields.error("pretraining_tp", "1"));
        }
        Ok(MiniCpmConfig {
            scale_emb: fields.positive("scale_emb")?.unwrap_or(1.0),
            scale_depth: fields.positive("scale_depth")?.unwrap_or(1.0),
            start_layer: start_layer(fields, 8)?,
            head_multi: fields.bool("head_multi")?.unwrap_or(true),
        })
    }
}

impl Gemma2Config {
    pub(super) fn parse(fields: Fields<'_>) -> Result<Gemma2Config, Error> {
        // Without it, which the class takes for the default, the model has one head, the vocabulary.
        if fields.bool("layer_wise")? != Some(true) {
            return Err(fields.error("layer_wise", "true"));
        }
        let sliding_window = if fields.is_null("sliding_window") {
            None
        } else {
            Some(fields.count("sliding_window", 1..=MAX_ROWS)?.unwrap_or(4096))
        };
        Ok(Gemma2Config {
            gelu: gelu(fields)?,
            query_pre_attn_scalar: fields.positive("query_pre_attn_scalar")?.unwrap_or(224.0),
            attn_logit_softcapping: softcap(fields, "attn_logit_softcapping", 50.0)?,
            final_logit_softcapping: softcap(fields, "final_logit_softcapping", 30.0)?,
            sliding_window,
            start_layer: start_layer(fields, 28)?,
            layer_sep: fields.count("layer_sep", 1..=MAX_LAYERS)?.unwrap_or(28),
        })
    }
}

impl AllowedCutoffs {
    /// Whether a score can be read behind `layer` layers.
    pub fn contains(self, layer: usize) -> bool {
        self.iter().any(|allowed| allowed == layer)
    }

    /// The cutoffs, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (self.start..=self.last).step_by(self.step.max(1))
    }

    /// How many cutoffs there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a layerwise model has a cutoff, `start`")]
    pub fn len(self) -> usize {
        self.iter().count()
    }
}

impl fmt::Display for AllowedCutoffs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AllowedCutoffs { start, last, .. } if start == last => write!(f, "{start}"),
            AllowedCutoffs { start, step: 1, last } => write!(f, "{start} to {last}"),
            AllowedCutoffs { start, step, last } => write!(f, "{start} to {last} in steps of {step}"),
        }
    }
}

fn num_hidden_layers(fields: Fields<'_>) -> Result<usize, Error> {
    fields.required_count("num_hidden_layers", 1..=MAX_LAYERS)
}

/// The width of a head in the Gemma families, which does not follow from the other widths.
fn stated_head_dim(fields: Fields<'_>) -> Result<usize, Error> {
    let head_dim = fields.count("head_dim", 0..=MAX_WIDTH)?.unwrap_or(256);
    if !is_head_dim(head_dim) {
        return Err(fields.error("head_dim", head_dims()));
    }
    Ok(head_dim)
}

/// The key and value heads. Their number is a size, which is required, except in MiniCPM, where it is by default
/// that of the query heads.
fn num_key_value_heads(
    fields: Fields<'_>,
    num_attention_heads: usize,
    is_minicpm: bool,
) -> Result<usize, Error> {
    const FIELD: &str = "num_key_value_heads";
    let heads = match fields.count(FIELD, 1..=num_attention_heads)? {
        None if is_minicpm => num_attention_heads,
        _ => fields.required_count(FIELD, 1..=num_attention_heads)?,
    };
    if !num_attention_heads.is_multiple_of(heads) {
        return Err(fields.error(FIELD, format!("a divisor of num_attention_heads ({num_attention_heads})")));
    }
    Ok(heads)
}

/// The activation of the Gemma families. `hidden_activation` decides. Without it transformers 4.44 computes the
/// approximation by tanh, whichever GELU `hidden_act` names (SPEC 5).
fn gelu(fields: Fields<'_>) -> Result<Gelu, Error> {
    match fields.str("hidden_activation")? {
        Some("gelu_pytorch_tanh") => Ok(Gelu::Tanh),
        Some("gelu") => Ok(Gelu::Exact),
        Some(_) => Err(fields.error("hidden_activation", "\"gelu_pytorch_tanh\" or \"gelu\"")),
        None => match fields.str("hidden_act")? {
            None | Some("gelu" | "gelu_pytorch_tanh" | "gelu_new") => Ok(Gelu::Tanh),
            Some(_) => Err(fields.error("hidden_act", "\"gelu\", \"gelu_pytorch_tanh\" or \"gelu_new\"")),
        },
    }
}

/// The base of the rotary angles: a field of its own, or since transformers 5 a field of `rope_parameters`. Only plain
/// rotary positions are supported.
fn rope_theta(fields: Fields<'_>) -> Result<f64, Error> {
    if fields.get("rope_scaling").is_some() {
        return Err(fields.error("rope_scaling", "null"));
    }
    let rope = match fields.get("rope_parameters") {
        Some(_) => fields.object("rope_parameters")?,
        None => fields,
    };
    if rope.str("rope_type")?.is_some_and(|found| found != "default") {
        return Err(rope.error("rope_type", "\"default\""));
    }
    Ok(rope.positive("rope_theta")?.unwrap_or(10_000.0))
}

/// The smallest cutoff. A model that has fewer layers than the default must state it.
fn start_layer(fields: Fields<'_>, default: usize) -> Result<usize, Error> {
    let layers = num_hidden_layers(fields)?;
    match fields.count("start_layer", 1..=layers)? {
        None if default <= layers => Ok(default),
        _ => fields.required_count("start_layer", 1..=layers),
    }
}

/// The bound of a soft-cap. `null` switches it off, as in transformers.
fn softcap(fields: Fields<'_>, field: &str, default: f64) -> Result<Option<f64>, Error> {
    if fields.is_null(field) {
        return Ok(None);
    }
    Ok(Some(fields.positive(field)?.unwrap_or(default)))
}
