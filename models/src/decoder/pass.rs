//! One forward pass of a stack over a batch, step by step.

use outcrop_kernels::Stream;
use outcrop_kernels::embed::embed;
use outcrop_kernels::gather_rows::gather_rows;
use outcrop_kernels::rms_norm::rms_norm;
use outcrop_kernels::row_dot::row_dot;
use outcrop_kernels::token_compress::token_compress;

use super::activations::{Activations, Widths};
use super::batch::Batch;
use super::{Layer, Stack};
use crate::Error;
use crate::weights::{RootMeanSquare, elements};

/// A forward pass under way: the residual stream of a batch behind some number of layers.
///
/// Layers are run in order, the last of the stack by [`Pass::last_layer`]. In between, states can be scored and passages
/// compressed.
pub struct Pass<'a> {
    pub(super) stream: &'a Stream,
    pub(super) stack: &'a Stack<'a>,
    pub(super) act: &'a mut Activations,
    pub(super) batch: &'a mut Batch,
    /// Layers run so far.
    pub(super) layer: usize,
    pub(super) scored_rows: ScoredRows,
}

/// Which rows the residual stream holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ScoredRows {
    /// Every token's.
    AmongAll,
    /// The last row of each sequence only.
    Alone,
}

impl<'a> Pass<'a> {
    /// Embeds the tokens of `batch`, for which `act` must have room.
    pub fn start(
        stream: &'a Stream,
        stack: &'a Stack<'a>,
        act: &'a mut Activations,
        batch: &'a mut Batch,
    ) -> Result<Self, Error> {
        let (decoder, hidden_size) = (stack.decoder, stack.decoder.config.hidden_size);
        act.prefixes.reserve(batch, stack.layers_run(), 2 * Widths::of(&decoder.config).kv);
        let table = decoder.embedding_table()?;
        let scale = decoder.embedding_scale();
        embed(stream, &mut act.hidden, elements(&table), &batch.input_ids, hidden_size, scale)?;
        if let Some(first) = stack.layers.first() {
            let norm = first.input_layernorm().get();
            rms_norm(stream, &mut act.normed, &act.hidden, norm, batch.num_tokens())?;
        }
        Ok(Self { stream, stack, act, batch, layer: 0, scored_rows: ScoredRows::AmongAll })
    }

    /// Runs the next layer, which must not be the last of the stack.
    pub fn layer(&mut self) -> Result<(), Error> {
        let stack = self.stack;
        stack.layers[self.layer].forward(self, stack.layers[self.layer + 1].input_layernorm())?;
        self.layer += 1;
        Ok(())
    }

    /// Runs the last layer of the stack, for the scored rows alone: of the others only keys and values are computed.
    pub fn last_layer(&mut self) -> Result<(), Error> {
        let stack = self.stack;
        self.scored_rows = ScoredRows::Alone;
        stack.layers[self.layer].forward(self, &stack.norm)?;
        self.layer += 1;
        self.act.prefixes.hand_over(self.batch);
        Ok(())
    }

    /// Merges every `ratio` passage rows of each sequence into their mean (SPEC 7.3), before the next layer.
    pub fn compress(&mut self, ratio: usize) -> Result<(), Error> {
        let Self { stream, stack, act, batch, .. } = self;
        let Activations { hidden, normed, spare, .. } = &mut **act;
        let hidden_size = stack.decoder.config.hidden_size;
        token_compress(stream, spare, hidden, &batch.layout.parts, ratio, hidden_size)?;
        std::mem::swap(hidden, spare);
        batch.compress(ratio);
        let norm = stack.layers[self.layer].input_layernorm().get();
        Ok(rms_norm(stream, normed, hidden, norm, batch.num_tokens())?)
    }

    /// One score per sequence: the state behind the layers run so far, read by the head of the `nth` cutoff.
    pub fn scores(&mut self, nth: usize) -> Result<Vec<f32>, Error> {
        let Self { stream, stack, act, batch, .. } = self;
        let Activations { hidden, normed, projected, spare, .. } = &mut **act;
        let head = &stack.heads[nth];
        let states = match self.scored_rows {
            // Behind the last layer the states have been normalised already.
            ScoredRows::Alone => normed,
            ScoredRows::AmongAll => {
                gather_rows(stream, spare, hidden, &batch.layout.last_rows, head.len())?;
                rms_norm(stream, projected, spare, stack.norm.get(), batch.num_seqs())?;
                projected
            }
        };
        let mut scores = vec![0.0; batch.num_seqs()];
        row_dot(stream, &mut scores, states, head, 0.0, stack.decoder.final_softcap())?;
        Ok(scores)
    }

    /// The residual stream, `[num_tokens, hidden_size]`, and behind the last layer `[num_seqs, hidden_size]`: for looking into
    /// a model.
    pub fn hidden(&self) -> &[f32] {
        &self.act.hidden.as_slice()[..self.num_rows() * self.stack.decoder.config.hidden_size]
    }

    /// Rows of the residual stream.
    pub(super) fn num_rows(&self) -> usize {
        match self.scored_rows {
            ScoredRows::AmongAll => self.batch.num_tokens(),
            ScoredRows::Alone => self.batch.num_seqs(),
        }
    }

    /// In the last layer, once keys and values are computed, leaves the scored rows of the residual stream alone.
    pub(super) fn drop_unscored_rows(&mut self) -> Result<(), Error> {
        if self.scored_rows == ScoredRows::Alone {
            let Activations { hidden, spare, .. } = &mut *self.act;
            let hidden_size = self.stack.decoder.config.hidden_size;
            gather_rows(self.stream, spare, hidden, &self.batch.layout.last_rows, hidden_size)?;
            std::mem::swap(hidden, spare);
        }
        Ok(())
    }
}

impl Layer {
    fn input_layernorm(&self) -> &RootMeanSquare {
        match self {
            Self::Gemma(layer) => &layer.input_layernorm,
            Self::MiniCpm(layer) => &layer.input_layernorm,
            Self::Gemma2(layer) => &layer.input_layernorm,
        }
    }

    fn forward(&self, pass: &mut Pass<'_>, next: &RootMeanSquare) -> Result<(), Error> {
        match self {
            Self::Gemma(layer) => layer.forward(pass, next.get()),
            Self::MiniCpm(layer) => layer.forward(pass, next.get()),
            Self::Gemma2(layer) => layer.forward(pass, next.get()),
        }
    }
}
