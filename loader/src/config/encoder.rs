//! The encoders: XLM-RoBERTa and BERT (SPEC 3, 8).

use serde_json::Value;

use super::{Architecture, MAX_LAYERS, MAX_ROWS, MAX_WIDTH, divided_head_dim, norm_eps, token_id_or};
use crate::Error;
use crate::json::Fields;

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

    pub(super) fn parse(architecture: Architecture, fields: Fields<'_>) -> Result<EncoderConfig, Error> {
        refuse_variants(fields)?;
        if architecture == Architecture::XlmRobertaForSequenceClassification {
            check_num_labels(fields)?;
        }
        let hidden_size = fields.required_count("hidden_size", 1..=MAX_WIDTH)?;
        let num_attention_heads = fields.required_count("num_attention_heads", 1..=MAX_WIDTH)?;
        divided_head_dim(fields, hidden_size, num_attention_heads)?;

        let vocab_size = fields.required_count("vocab_size", 1..=MAX_ROWS)?;
        let default_pad = if architecture.is_xlm_roberta() { 1 } else { 0 };
        let pad_token_id = token_id_or(fields, "pad_token_id", default_pad, vocab_size)?;
        // The first position is the pad id's successor: below that the table has no row for any token.
        let min_positions = if architecture.is_xlm_roberta() { pad_token_id as usize + 2 } else { 1 };

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
            // The default of BertConfig and XLMRobertaConfig in transformers.
            layer_norm_eps: norm_eps(fields, "layer_norm_eps")?.unwrap_or(1e-12),
            pad_token_id,
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
