//! Encoders: from token sequences to forward passes and back to the caller's order.

use outcrop_loader::{EncoderConfig, SentenceTransformers};
use outcrop_models::Stream;
use outcrop_models::encoder::{Activations, Batch, Encoder, check_sequence};
use outcrop_models::input::{PairSequence, Sequence};

use super::Engine;
use super::replica::{Replica, distribute};
use crate::Error;
use crate::packing::pack;

/// An encoder with what its calls share.
pub(super) struct EncoderModel {
    /// At least one.
    pub(super) replicas: Vec<Replica<Encoder, Activations>>,
    /// Pooling and limits of an embedding model, where its files state them.
    pub(super) sentence_transformers: Option<SentenceTransformers>,
    pub(super) record_graphs: bool,
}

/// What came of one sequence.
pub(super) struct Output<T> {
    pub(super) value: T,
    pub(super) tokens: usize,
    pub(super) truncated: bool,
}

impl EncoderModel {
    /// The model on the first device; the others are like it.
    pub(super) fn encoder(&self) -> &Encoder {
        &self.replicas[0].model
    }

    /// Memory for batches of `batch_tokens` tokens on every GPU.
    pub(super) fn reserve(&self, batch_tokens: usize) -> Result<(), Error> {
        let make = |stream| Ok(Activations::new(stream, self.config(), batch_tokens, self.record_graphs)?);
        self.replicas.iter().try_for_each(|replica| replica.reserve(|| make(&replica.stream)))
    }

    /// Floating-point operations of scoring the pairs, however they are packed.
    pub(super) fn flops(&self, pairs: &[Result<PairSequence, Error>]) -> u64 {
        let fits = |ids: &&[u32]| check_sequence(self.config(), ids).is_ok();
        let sequences = pairs.iter().flatten().map(|pair| pair.sequence.input_ids.as_slice()).filter(fits);
        Batch::new(self.config(), sequences).flops(self.config())
    }

    pub(super) fn config(&self) -> &EncoderConfig {
        self.encoder().config()
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
        forward: impl Fn(&Encoder, &Stream, &mut Activations, &Batch) -> Result<Vec<T>, Error> + Sync,
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
        let longest = lengths.iter().copied().max().unwrap_or(0);

        let results = self.within_memory(longest, |batch_tokens| {
            let capacity = longest.max(batch_tokens);
            distribute(&model.replicas, pack(&lengths, batch_tokens), |replica, batches| {
                let _turn = replica.turn();
                let Replica { stream, model: encoder, .. } = replica;
                let mut act = replica.take(
                    |act| act.capacity() >= capacity,
                    || Ok(Activations::new(stream, config, capacity, model.record_graphs)?),
                )?;
                let mut results = Vec::new();
                for members in batches {
                    let batch = Batch::new(config, members.iter().map(|i| inputs[*i]));
                    let values = stream.span(|| stream.run(|| forward(encoder, stream, &mut act, &batch)))?;
                    results.extend(members.into_iter().zip(values));
                }
                // Kept for the next call, unless one long sequence made it larger than usual.
                if capacity == batch_tokens {
                    replica.keep(act);
                }
                Ok(results)
            })
        })?;
        let mut values: Vec<T> = sequences.iter().map(|_| T::default()).collect();
        for (i, value) in results {
            values[indices[i]] = value;
        }
        let output = |sequence: Sequence, value| Output {
            value,
            tokens: sequence.input_ids.len(),
            truncated: sequence.truncated,
        };
        Ok(sequences.into_iter().zip(values).map(|(s, value)| s.map(|s| output(s, value))).collect())
    }
}
