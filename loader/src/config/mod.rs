//! `config.json`: what the network is, with every field that is used checked.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::json::{self, Fields};

#[cfg(test)]
mod tests;

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
}

/// The shape of a bidirectional encoder. The fields have the names that they have in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// The class that the weights were saved from.
    pub architecture: Architecture,
    /// Model width; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Width between the two matrices of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Rows of the word embedding table.
    pub vocab_size: usize,
    /// Rows of the position embedding table; see [`EncoderConfig::max_tokens`] for the longest text.
    pub max_position_embeddings: usize,
    /// Rows of the token type table; only the first is used.
    pub type_vocab_size: usize,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_eps: f32,
    /// The id of the padding token, less than `vocab_size`. In XLM-RoBERTa positions count from the next number.
    pub pad_token_id: u32,
}

impl Config {
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
        EncoderConfig::parse(architecture, fields).map(Config::Encoder)
    }
}

impl Architecture {
    /// All of them, in the order in which messages list them.
    pub const ALL: [Architecture; 3] = [
        Architecture::XlmRobertaForSequenceClassification,
        Architecture::XlmRobertaModel,
        Architecture::BertModel,
    ];

    /// The class name.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::XlmRobertaForSequenceClassification => "XLMRobertaForSequenceClassification",
            Architecture::XlmRobertaModel => "XLMRobertaModel",
            Architecture::BertModel => "BertModel",
        }
    }

    /// Whether the model is of the XLM-RoBERTa family, which counts positions from `pad_token_id + 1`.
    pub fn is_xlm_roberta(self) -> bool {
        match self {
            Architecture::XlmRobertaForSequenceClassification | Architecture::XlmRobertaModel => true,
            Architecture::BertModel => false,
        }
    }

    /// The one entry of `architectures` decides. Without that field `model_type` does, and the model is taken for a
    /// plain embedder: a configuration that was never saved with a model knows of no head.
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

impl EncoderConfig {
    /// The width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The longest input in tokens, special tokens included, for which the position table has a row per token.
    pub fn max_tokens(&self) -> usize {
        if self.architecture.is_xlm_roberta() {
            self.max_position_embeddings - self.pad_token_id as usize - 1
        } else {
            self.max_position_embeddings
        }
    }

    fn parse(architecture: Architecture, fields: Fields<'_>) -> Result<EncoderConfig, Error> {
        refuse_variants(fields)?;
        if architecture == Architecture::XlmRobertaForSequenceClassification {
            check_num_labels(fields)?;
        }
        let hidden_size = fields.required_count("hidden_size", 1..=MAX_WIDTH)?;
        let num_attention_heads = fields.required_count("num_attention_heads", 1..=MAX_WIDTH)?;
        check_head_dim(fields, hidden_size, num_attention_heads)?;

        let vocab_size = fields.required_count("vocab_size", 1..=MAX_ROWS)?;
        let default_pad = if architecture.is_xlm_roberta() { 1 } else { 0 };
        let pad_token_id = fields.count("pad_token_id", 0..=vocab_size - 1)?.unwrap_or(default_pad);
        // The first position is the pad id's successor: below that the table has no row for any token.
        let min_positions = if architecture.is_xlm_roberta() { pad_token_id + 2 } else { 1 };

        Ok(EncoderConfig {
            architecture,
            hidden_size,
            intermediate_size: fields.required_count("intermediate_size", 1..=MAX_WIDTH)?,
            num_hidden_layers: fields.required_count("num_hidden_layers", 1..=MAX_LAYERS)?,
            num_attention_heads,
            vocab_size,
            max_position_embeddings: fields
                .required_count("max_position_embeddings", min_positions..=MAX_ROWS)?,
            type_vocab_size: fields.count("type_vocab_size", 1..=MAX_ROWS)?.unwrap_or(2),
            layer_norm_eps: layer_norm_eps(fields)?,
            pad_token_id: u32::try_from(pad_token_id)
                .map_err(|_| fields.error("pad_token_id", "a 32-bit number"))?,
        })
    }
}

/// Refuses options under which the same weights are another network.
fn refuse_variants(fields: Fields<'_>) -> Result<(), Error> {
    for (field, only) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
        if fields.str(field)?.is_some_and(|found| found != only) {
            return Err(fields.error(field, format!("\"{only}\"")));
        }
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if fields.bool(field)? == Some(true) {
            return Err(fields.error(field, "false"));
        }
    }
    Ok(())
}

/// A reranker has one label. As in transformers, `id2label` wins over `num_labels`; if neither is stated, the shape
/// of the last head matrix decides when the model is built.
fn check_num_labels(fields: Fields<'_>) -> Result<(), Error> {
    let num_labels = match fields.get("id2label") {
        Some(Value::Object(labels)) => Some(labels.len()),
        Some(_) => return Err(fields.error("id2label", "an object with one label")),
        None => fields.count("num_labels", 0..=MAX_ROWS)?,
    };
    match num_labels {
        None | Some(1) => Ok(()),
        Some(num_labels) => Err(Error::NotAReranker { path: fields.path().to_owned(), num_labels }),
    }
}

fn check_head_dim(fields: Fields<'_>, hidden_size: usize, num_attention_heads: usize) -> Result<(), Error> {
    let head_dim = hidden_size / num_attention_heads;
    let divides = hidden_size.is_multiple_of(num_attention_heads);
    if divides && HEAD_DIMS.contains(&head_dim) && head_dim.is_multiple_of(HEAD_DIM_STEP) {
        return Ok(());
    }
    let expected = format!(
        "num_attention_heads ({num_attention_heads}) times a multiple of {HEAD_DIM_STEP} from {} to {}",
        HEAD_DIMS.start(),
        HEAD_DIMS.end()
    );
    Err(fields.error("hidden_size", expected))
}

fn layer_norm_eps(fields: Fields<'_>) -> Result<f32, Error> {
    // The default of BertConfig and XLMRobertaConfig in transformers.
    let Some(value) = fields.get("layer_norm_eps") else { return Ok(1e-12) };
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type that LayerNorm computes in")]
    let eps = value.as_f64().map(|eps| eps as f32);
    eps.filter(|eps| *eps > 0.0 && *eps < 1.0)
        .ok_or_else(|| fields.error("layer_norm_eps", "a number between 0 and 1"))
}
