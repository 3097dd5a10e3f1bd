//! `config.json`: what the network is, with every field that is used checked.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::json::{self, Fields};

mod decoder;
mod encoder;
#[cfg(test)]
mod tests;

pub use decoder::{
    AllowedCutoffs, DecoderConfig, DecoderFamily, Gelu, Gemma2Config, GemmaConfig, MiniCpmConfig,
};
pub use encoder::EncoderConfig;

/// The widths of attention heads that are supported. A head's width is also a multiple of [`HEAD_DIM_STEP`].
const HEAD_DIMS: RangeInclusive<usize> = 16..=256;
const HEAD_DIM_STEP: usize = 16;

// Far above any real model, low enough that products of two of them fit 64 bits with room to spare.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_ROWS: usize = 1 << 24;

/// The configuration of a model, by family.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    /// A bidirectional encoder: XLM-RoBERTa or BERT.
    Encoder(EncoderConfig),
    /// A causal decoder: Gemma, MiniCPM or Gemma 2.
    Decoder(DecoderConfig),
}

/// A class name of transformers, as `config.json` gives it in `architectures`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// A cross-encoder that gives a pair one score.
    XlmRobertaForSequenceClassification,
    /// An embedder.
    XlmRobertaModel,
    /// An embedder.
    BertModel,
    /// A reranker whose score is the logit of one word.
    GemmaForCausalLM,
    /// A reranker with a head behind every layer from a certain one on.
    LayerWiseMiniCPMForCausalLM,
    /// A reranker with heads behind the layers, which can also compress the passage on its way through them.
    CostWiseGemmaForCausalLM,
}

impl Config {
    /// The class that the weights were saved from.
    pub fn architecture(&self) -> Architecture {
        match self {
            Config::Encoder(config) => config.architecture,
            Config::Decoder(config) => config.architecture,
        }
    }

    /// Parses and checks the bytes of the `config.json` at `path`.
    ///
    /// Fields that no supported family uses are ignored. A field that is missing or `null` takes the default of the
    /// class in transformers, except for the sizes: those are required.
    ///
    /// # Errors
    ///
    /// [`Error::Json`], [`Error::Field`], [`Error::UnsupportedArchitecture`], [`Error::NotAReranker`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Config, Error> {
        let value = json::parse(path, bytes)?;
        let fields = Fields::new(path, &value)?;
        let architecture = Architecture::find(fields)?;
        let family = match architecture {
            Architecture::XlmRobertaForSequenceClassification
            | Architecture::XlmRobertaModel
            | Architecture::BertModel => {
                return EncoderConfig::parse(architecture, fields).map(Config::Encoder);
            }
            Architecture::GemmaForCausalLM => DecoderFamily::Gemma(GemmaConfig::parse(fields)?),
            Architecture::LayerWiseMiniCPMForCausalLM => {
                DecoderFamily::MiniCpm(MiniCpmConfig::parse(fields)?)
            }
            Architecture::CostWiseGemmaForCausalLM => DecoderFamily::Gemma2(Gemma2Config::parse(fields)?),
        };
        DecoderConfig::parse(architecture, family, fields).map(Config::Decoder)
    }
}

impl Architecture {
    /// All of them, in the order in which messages list them.
    pub const ALL: [Architecture; 6] = [
        Architecture::XlmRobertaForSequenceClassification,
        Architecture::XlmRobertaModel,
        Architecture::BertModel,
        Architecture::GemmaForCausalLM,
        Architecture::LayerWiseMiniCPMForCausalLM,
        Architecture::CostWiseGemmaForCausalLM,
    ];

    /// The class name.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::XlmRobertaForSequenceClassification => "XLMRobertaForSequenceClassification",
            Architecture::XlmRobertaModel => "XLMRobertaModel",
            Architecture::BertModel => "BertModel",
            Architecture::GemmaForCausalLM => "GemmaForCausalLM",
            Architecture::LayerWiseMiniCPMForCausalLM => "LayerWiseMiniCPMForCausalLM",
            Architecture::CostWiseGemmaForCausalLM => "CostWiseGemmaForCausalLM",
        }
    }

    /// Whether the model is of the XLM-RoBERTa family, which counts positions from `pad_token_id + 1`.
    pub fn is_xlm_roberta(self) -> bool {
        matches!(self, Architecture::XlmRobertaForSequenceClassification | Architecture::XlmRobertaModel)
    }

    /// The one entry of `architectures` decides. Without that field `model_type` does, and the model is taken for a
    /// plain embedder: a configuration that was never saved with a model knows of no head. For a decoder there is no
    /// such rule, because the layerwise reranker and an ordinary language model share `model_type` minicpm.
    fn find(fields: Fields<'_>) -> Result<Architecture, Error> {
        let found = match fields.get("architectures") {
            Some(Value::Array(names)) => match names.as_slice() {
                [Value::String(name)] => name.as_str(),
                _ => return Err(fields.error("architectures", "a list of one class name")),
            },
            Some(_) => return Err(fields.error("architectures", "a list of one class name")),
            None => match fields.str("model_type")? {
                Some("bert") => return Ok(Architecture::BertModel),
                Some("xlm-roberta") => return Ok(Architecture::XlmRobertaModel),
                _ => return Err(fields.error("architectures", "a list of one class name")),
            },
        };
        let known = Architecture::ALL.into_iter().find(|architecture| architecture.name() == found);
        known.ok_or_else(|| Error::UnsupportedArchitecture {
            path: fields.path().to_owned(),
            found: found.to_owned(),
            supported: Architecture::ALL.map(Architecture::name).join(", "),
        })
    }
}

/// The width of a head where the heads divide `hidden_size` among them.
fn divided_head_dim(
    fields: Fields<'_>,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<usize, Error> {
    let head_dim = hidden_size / num_attention_heads;
    if hidden_size.is_multiple_of(num_attention_heads) && is_head_dim(head_dim) {
        return Ok(head_dim);
    }
    let expected = format!("num_attention_heads ({num_attention_heads}) times {}", head_dims());
    Err(fields.error("hidden_size", expected))
}

/// Whether the kernels have this width of a head.
fn is_head_dim(head_dim: usize) -> bool {
    HEAD_DIMS.contains(&head_dim) && head_dim.is_multiple_of(HEAD_DIM_STEP)
}

/// What [`is_head_dim`] accepts, in words.
fn head_dims() -> String {
    format!("a multiple of {HEAD_DIM_STEP} from {} to {}", HEAD_DIMS.start(), HEAD_DIMS.end())
}

/// What a norm adds to the variance or the mean square.
fn norm_eps(fields: Fields<'_>, field: &str) -> Result<Option<f32>, Error> {
    let Some(value) = fields.get(field) else { return Ok(None) };
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type that norms are computed in")]
    let eps = value.as_f64().map(|eps| eps as f32);
    match eps.filter(|eps| *eps > 0.0 && *eps < 1.0) {
        Some(eps) => Ok(Some(eps)),
        None => Err(fields.error(field, "a number between 0 and 1")),
    }
}

/// The id of a special token, less than `vocab_size`.
fn token_id(fields: Fields<'_>, field: &str, vocab_size: usize) -> Result<Option<u32>, Error> {
    let Some(id) = fields.count(field, 0..=vocab_size - 1)? else { return Ok(None) };
    u32::try_from(id).map(Some).map_err(|_| fields.error(field, "a 32-bit number"))
}

/// The id of a special token that has a default, which must be less than `vocab_size` too.
fn token_id_or(fields: Fields<'_>, field: &str, default: u32, vocab_size: usize) -> Result<u32, Error> {
    let id = token_id(fields, field, vocab_size)?.unwrap_or(default);
    if id as usize >= vocab_size {
        // Only the default can be: it was not in the file.
        return Err(fields.error(field, format!("a whole number less than vocab_size ({vocab_size})")));
    }
    Ok(id)
}
