//! A packed batch: the sequences of one forward pass, concatenated.

use outcrop_kernels::attention::{self, AttentionParams, Mask, Span};
use outcrop_kernels::gemm;
use outcrop_kernels::layout::{Layout, ScoredRow, Segments};
use outcrop_loader::{Architecture, EncoderConfig};

use crate::Error;

/// Token and position ids of a packed batch and where each sequence lies.
pub struct Batch {
    pub(crate) input_ids: Vec<u32>,
    /// Not those of the layout: literal padding tokens do not count.
    pub(crate) position_ids: Vec<u32>,
    /// Every sequence attends to itself, and its first row is what the CLS-type heads read.
    pub(crate) layout: Layout,
}

impl Batch {
    /// Packs sequences in the order given. Each must have passed [`check_sequence`] and hold at least one token.
    pub fn new<'a>(config: &EncoderConfig, sequences: impl Iterator<Item = &'a [u32]> + Clone) -> Self {
        let segments = Segments::of_sequences(sequences.clone().map(<[u32]>::len), ScoredRow::First);
        let mut input_ids = Vec::with_capacity(segments.num_tokens());
        let mut position_ids = Vec::with_capacity(segments.num_tokens());
        for sequence in sequences {
            input_ids.extend_from_slice(sequence);
            position_ids.extend(positions(config, sequence));
        }
        Self { input_ids, position_ids, layout: Layout::new(segments) }
    }

    /// Sequences in the batch.
    pub fn num_seqs(&self) -> usize {
        self.layout.num_seqs()
    }

    /// Tokens in the batch.
    pub fn num_tokens(&self) -> usize {
        self.layout.num_tokens()
    }

    /// Floating-point operations of the matrix products of a run to the scores, the head aside; of the last layer keys and values are
    /// those of all rows, and the rest is the scored rows' alone. A fused multiply-add counts two.
    pub fn flops(&self, config: &EncoderConfig) -> u64 {
        let (tokens, hidden) = (self.num_tokens(), config.hidden_size);
        let params = AttentionParams {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_attention_heads,
            head_dim: config.head_dim(),
            softmax_scale: 1.0,
            mask: Mask::Full,
            softcap: None,
        };
        let product = |m: usize, n: usize| gemm::cost(m, n, hidden, [0, 0], 0).flops;
        let layer = |rows: usize, spans: &[Span]| {
            // Key and value; query and output; up and down.
            product(tokens, 2 * hidden)
                + product(rows, 2 * hidden)
                + product(rows, 2 * config.intermediate_size)
                + attention::cost(spans, params, 0).flops
        };
        let Some(before) = config.num_hidden_layers.checked_sub(1) else { return 0 };
        before as u64 * layer(tokens, &self.layout.spans) + layer(self.num_seqs(), &self.layout.scored_spans)
    }
}

/// Refuses a sequence that the model's tables cannot hold.
pub fn check_sequence(config: &EncoderConfig, input_ids: &[u32]) -> Result<(), Error> {
    if let Some(id) = input_ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(Error::UnknownToken { id: *id, vocab_size: config.vocab_size });
    }
    let rows = config.max_position_embeddings;
    // A sequence with literal padding tokens counts fewer positions than tokens, but the reference allows no more tokens
    // than the table has rows (SPEC 12).
    let fits =
        input_ids.len() <= rows && positions(config, input_ids).all(|position| (position as usize) < rows);
    if fits {
        Ok(())
    } else {
        Err(Error::TooLong { tokens: input_ids.len(), max_tokens: config.max_tokens() })
    }
}

/// Position ids of one sequence.
///
/// BERT counts from 0. XLM-R counts the tokens that are not padding, from `pad_token_id + 1`; a literal padding token stands
/// at `pad_token_id` and does not advance the count (SPEC 3.2).
fn positions<'a>(config: &EncoderConfig, input_ids: &'a [u32]) -> impl Iterator<Item = u32> + use<'a> {
    let pad = config.pad_token_id;
    let from_zero = config.architecture == Architecture::BertModel;
    let mut count = 0;
    input_ids.iter().map(move |id| {
        if from_zero {
            count += 1;
            count - 1
        } else if *id == pad {
            pad
        } else {
            count += 1;
            pad + count
        }
    })
}
