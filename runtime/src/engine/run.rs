//! From token sequences to forward passes and back to the caller's order.

use std::sync::PoisonError;

use outcrop_models::input::Sequence;
use outcrop_models::{Activations, Batch, check_sequence};
use rayon::prelude::*;

use super::Engine;
use crate::Error;
use crate::packing::pack;

/// What came of one sequence.
pub(super) struct Output<T> {
    pub(super) value: T,
    pub(super) tokens: usize,
    pub(super) truncated: bool,
}

impl Engine {
    /// `encode(i)` for every `i < num_items`, on all threads, in order: tokenisation.
    pub(super) fn encode_all(
        &self,
        num_items: usize,
        encode: impl Fn(usize) -> Result<Sequence, Error> + Sync + Send,
    ) -> Vec<Result<Sequence, Error>> {
        self.stream.run(|| (0..num_items).into_par_iter().map(encode).collect())
    }

    /// Runs `forward` over packed batches of the sequences and returns one output per sequence, in order.
    ///
    /// `forward` gives one value per sequence of its batch. A sequence that the model cannot hold fails alone.
    pub(super) fn run<T: Default + Send>(
        &self,
        sequences: Vec<Result<Sequence, Error>>,
        forward: impl Fn(&mut Activations, &Batch) -> Result<Vec<T>, Error> + Sync,
    ) -> Result<Vec<Result<Output<T>, Error>>, Error> {
        let config = self.config();
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
        let longest = lengths.iter().copied().max().unwrap_or(0);

        let mut values: Vec<T> = sequences.iter().map(|_| T::default()).collect();
        let mut act = self.take_activations(longest.max(self.batch_tokens));
        for members in pack(&lengths, self.batch_tokens) {
            let batch = Batch::new(config, members.iter().map(|i| inputs[*i]));
            let batch_values = self.stream.run(|| forward(&mut act, &batch))?;
            for (i, value) in members.into_iter().zip(batch_values) {
                values[indices[i]] = value;
            }
        }
        self.keep_activations(act);

        let output = |sequence: Sequence, value| Output {
            value,
            tokens: sequence.input_ids.len(),
            truncated: sequence.truncated,
        };
        Ok(sequences.into_iter().zip(values).map(|(s, value)| s.map(|s| output(s, value))).collect())
    }

    /// The error for a result that is not a number. Looks for the weight to blame once in the engine's life.
    pub(super) fn non_finite(&self) -> Error {
        Error::NonFinite { tensor: self.non_finite.get_or_init(|| self.encoder.non_finite_tensor()).clone() }
    }

    fn take_activations(&self, num_tokens: usize) -> Activations {
        // A poisoned lock guards nothing half-done: the list is only pushed to and popped from.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.iter().position(|act| act.capacity() >= num_tokens) {
            Some(i) => idle.swap_remove(i),
            None => Activations::new(self.config(), num_tokens),
        }
    }

    /// Keeps the memory for the next call, unless one long sequence made it larger than usual.
    fn keep_activations(&self, act: Activations) {
        if act.capacity() <= self.batch_tokens {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(act);
        }
    }
}
