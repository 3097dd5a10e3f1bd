//! Encoders: from token sequences to forward passes and back to the caller's order.

use outcrop_loader::{EncoderConfig, SentenceTransformers};
use outcrop_models::encoder::{Activations, Batch, Encoder, check_sequence};
use outcrop_models::input::Sequence;

use super::Engine;
use super::pool::Pool;
use crate::Error;
use crate::packing::pack;

/// An encoder with what its calls share.
pub(super) struct EncoderModel {
    pub(super) encoder: Encoder,
    /// Pooling and limits of an embedding model, where its files state them.
    pub(super) sentence_transformers: Option<SentenceTransformers>,
    pub(super) idle: Pool<Activations>,
}

/// What came of one sequence.
pub(super) struct Output<T> {
    pub(super) value: T,
    pub(super) tokens: usize,
    pub(super) truncated: bool,
}

impl EncoderModel {
    pub(super) fn config(&self) -> &EncoderConfig {
        self.encoder.config()
    }
}

impl Engine {
    /// Runs `forward` over packed batches of the sequences and returns one output per sequence, in order.
    ///
    /// `forward` gives one value per sequence of its batch. A sequence that the model cannot hold fails alone.
    pub(super) fn run_encoder<T: Default + Send>(
        &self,
        model: &EncoderModel,
        sequences: Vec<Result<Sequence, Error>>,
        forward: impl Fn(&mut Activations, &Batch) -> Result<Vec<T>, Error> + Sync,
    ) -> Result<Vec<Result<Output<T>, Error>>, Error> {
        let config = model.config();
        let fitting = |sequence: Sequence| {
            check_sequence(config, &sequence.input_ids)?;
            Ok(sequence)
        };
        let sequences: Vec<_> = sequences.into_iter().map(|sequence| sequence.and_then(fitting)).collect();
        let (indices, inputs): (Vec<usize>, Vec<&[u32]>) = sequences
            .iter()
            .enumerate()
            .filter_map(|(i, sequence)| Some((i, sequence.as_ref().ok()?.input_ids.as_slice())))
            .unzip();
        let lengths: Vec<usize> = inputs.iter().map(|ids| ids.len()).collect();
        let capacity = lengths.iter().copied().max().unwrap_or(0).max(self.batch_tokens);

        let mut values: Vec<T> = sequences.iter().map(|_| T::default()).collect();
        let mut act =
            model.idle.take(|act| act.capacity() >= capacity, || Activations::new(config, capacity));
        for members in pack(&lengths, self.batch_tokens) {
            let batch = Batch::new(config, members.iter().map(|i| inputs[*i]));
            let batch_values = self.stream.run(|| forward(&mut act, &batch))?;
            for (i, value) in members.into_iter().zip(batch_values) {
                values[indices[i]] = value;
            }
        }
        // Kept for the next call, unless one long sequence made it larger than usual.
        if capacity == self.batch_tokens {
            model.idle.keep(act);
        }

        let output = |sequence: Sequence, value| Output {
            value,
            tokens: sequence.input_ids.len(),
            truncated: sequence.truncated,
        };
        Ok(sequences.into_iter().zip(values).map(|(s, value)| s.map(|s| output(s, value))).collect())
    }
}
