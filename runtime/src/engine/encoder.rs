//! Encoders: from token sequences to forward passes and back to the caller's order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use outcrop_loader::{EncoderConfig, SentenceTransformers};
use outcrop_models::encoder::{Activations, Batch, Encoder, check_sequence};
use outcrop_models::input::{PairSequence, Sequence};
use outcrop_models::{Reading, Stream};

use super::replica::{InFlight, Replica, distribute};
use super::{Engine, Output};
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

/// The texts of a call.
pub(super) struct Texts<L, E> {
    pub(super) count: usize,
    /// Bytes of the `i`-th.
    pub(super) len: L,
    /// The sequence of the `i`-th.
    pub(super) encode: E,
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
    /// Runs `forward` over packed batches of the texts, on `replicas` of the model, and returns one output per text, in order.
    ///
    /// `forward` gives equally many values for each sequence of its batch. A text whose sequence the model cannot hold fails alone.
    pub(super) fn run_encoder(
        &self,
        model: &EncoderModel,
        replicas: &[Replica<Encoder, Activations>],
        texts: &Texts<impl Fn(usize) -> usize, impl Fn(usize) -> Result<Sequence, Error> + Sync + Send>,
        forward: impl Fn(&Encoder, &Stream, &mut Activations, &Batch) -> Result<Reading, Error> + Sync,
    ) -> Result<Vec<Result<Output, Error>>, Error> {
        let longest = AtomicUsize::new(0);
        let mut outputs = self.within_memory(&longest, |batch_tokens| {
            let mut batches = Batches::new(self, model, replicas.len(), texts, batch_tokens, &longest);
            let found = distribute(replicas, &mut batches, |replica, batches| {
                run_batches(model, replica, batches, batch_tokens, &forward)
            })?;
            let found = found.into_iter().map(|(i, output)| (i, Ok(output)));
            Ok(found.chain(batches.failed.into_iter().map(|(i, error)| (i, Err(error)))).collect::<Vec<_>>())
        })?;
        // Every text is in one batch, or has failed.
        outputs.sort_by_key(|(i, _)| *i);
        Ok(outputs.into_iter().map(|(_, output)| output).collect())
    }
}

/// Sequences of a batch with the numbers of their texts.
type Members = Vec<(usize, Sequence)>;

/// Runs batch after batch on a replica.
fn run_batches(
    model: &EncoderModel,
    replica: &Replica<Encoder, Activations>,
    batches: &mut dyn Iterator<Item = Members>,
    batch_tokens: usize,
    forward: impl Fn(&Encoder, &Stream, &mut Activations, &Batch) -> Result<Reading, Error> + Sync,
) -> Result<Vec<(usize, Output)>, Error> {
    // Tokenised before it is our turn, under the batches of other calls.
    let Some(first) = batches.next() else { return Ok(Vec::new()) };
    let turn = replica.turn();
    let Replica { stream, model: encoder, .. } = replica;
    let config = model.config();
    let mut held = None;
    let mut in_flight = InFlight::new();
    for members in std::iter::once(first).chain(batches) {
        let batch = Batch::new(config, members.iter().map(|(_, sequence)| sequence.input_ids.as_slice()));
        let capacity = batch.num_tokens().max(batch_tokens);
        let mut act = replica.take(
            held.take(),
            |act| act.capacity() >= capacity,
            || Ok(Activations::new(stream, config, capacity, model.record_graphs)?),
        )?;
        let reading = stream.span(|| stream.run(|| forward(encoder, stream, &mut act, &batch)))?;
        held = Some(act);
        in_flight.push((members, reading), outputs)?;
    }
    // Kept for the next call, unless one long sequence made it larger than usual.
    held.into_iter().filter(|act| act.capacity() == batch_tokens).for_each(|act| replica.keep(act));
    drop(turn);
    in_flight.finish(outputs)
}

/// Waits for the values of a batch and shares them out among its members.
fn outputs((members, reading): (Members, Reading)) -> Result<Vec<(usize, Output)>, Error> {
    let values = reading.wait()?;
    let of_each = values.chunks_exact((values.len() / members.len().max(1)).max(1));
    let output = |((i, sequence), values): ((usize, Sequence), &[f32])| {
        let (tokens, truncated) = (sequence.input_ids.len(), sequence.truncated);
        (i, Output { values: values.to_vec(), tokens, truncated, tokens_after: tokens })
    };
    Ok(members.into_iter().zip(of_each).map(output).collect())
}

/// Bytes of text that are taken for a token, to know about how much there is to do: fewer than there are in most languages.
const TOKEN_BYTES: usize = 4;
/// Texts are tokenised in windows of about this many batches, so that none of them is awaited for long.
const WINDOW_BATCHES: usize = 2;

/// The batches of a call, made as they are asked for: while a GPU runs some, the texts of the next are tokenised. The longest texts come
/// first, as in a batch of all; what does not fill a batch goes on with the next window's.
///
/// The CPU runs batches on the threads that tokenise, which gain nothing by turns: there is one window.
struct Batches<'a, E> {
    engine: &'a Engine,
    model: &'a EncoderModel,
    encode: &'a E,
    batch_tokens: usize,
    /// Texts not tokenised yet, window by window.
    windows: VecDeque<Vec<usize>>,
    /// Tokenised, and in no batch.
    waiting: Members,
    ready: VecDeque<Members>,
    failed: Vec<(usize, Error)>,
    /// Tokens of the longest sequence so far.
    longest: &'a AtomicUsize,
}

impl<'a, E: Fn(usize) -> Result<Sequence, Error> + Sync + Send> Batches<'a, E> {
    fn new(
        engine: &'a Engine,
        model: &'a EncoderModel,
        num_replicas: usize,
        texts: &'a Texts<impl Fn(usize) -> usize, E>,
        batch_tokens: usize,
        longest: &'a AtomicUsize,
    ) -> Self {
        let mut order: Vec<usize> = (0..texts.count).collect();
        let windows = match model.replicas[0].stream {
            Stream::Cpu(_) => VecDeque::from([order]),
            Stream::Cuda(_) => {
                order.sort_by_key(|i| std::cmp::Reverse((texts.len)(*i)));
                let tokens_max = model.config().max_tokens();
                let tokens = |i: usize| ((texts.len)(i) / TOKEN_BYTES).min(tokens_max);
                windows(order, tokens, batch_tokens * num_replicas)
            }
        };
        let (waiting, ready, failed) = Default::default();
        Self { engine, model, encode: &texts.encode, batch_tokens, windows, waiting, ready, failed, longest }
    }

    /// Tokenises the next window, and packs it with what is left of those before.
    fn refill(&mut self, window: &[usize]) {
        let encoded = self.engine.encode_all(window.len(), |nth| {
            let sequence = (self.encode)(window[nth])?;
            check_sequence(self.model.config(), &sequence.input_ids)?;
            Ok(sequence)
        });
        for (i, sequence) in window.iter().zip(encoded) {
            match sequence {
                Ok(sequence) => self.waiting.push((*i, sequence)),
                Err(error) => self.failed.push((*i, error)),
            }
        }
        let lengths: Vec<usize> = self.waiting.iter().map(|(_, s)| s.input_ids.len()).collect();
        self.longest.fetch_max(lengths.iter().copied().max().unwrap_or(0), Ordering::Relaxed);
        let mut sequences: Vec<_> = std::mem::take(&mut self.waiting).into_iter().map(Some).collect();
        let members = |batch: Vec<usize>| batch.into_iter().filter_map(|i| sequences[i].take()).collect();
        self.ready = pack(&lengths, self.batch_tokens).into_iter().map(members).collect();
        if !self.windows.is_empty() {
            self.waiting = self.ready.pop_back().unwrap_or_default();
        }
    }
}

impl<E: Fn(usize) -> Result<Sequence, Error> + Sync + Send> Iterator for Batches<'_, E> {
    type Item = Members;

    fn next(&mut self) -> Option<Members> {
        while self.ready.is_empty() {
            let window = self.windows.pop_front()?;
            self.refill(&window);
        }
        self.ready.pop_front()
    }
}

/// Cuts `order` into windows: of the tokens of a batch the first, so that a GPU soon has work, the others of more.
fn windows(order: Vec<usize>, tokens: impl Fn(usize) -> usize, batch_tokens: usize) -> VecDeque<Vec<usize>> {
    let mut windows: VecDeque<Vec<usize>> = VecDeque::new();
    let mut room = 0;
    for i in order {
        if room == 0 {
            room = batch_tokens * if windows.is_empty() { 1 } else { WINDOW_BATCHES };
            windows.push_back(Vec::new());
        }
        if let Some(window) = windows.back_mut() {
            window.push(i);
        }
        room = room.saturating_sub(tokens(i).max(1));
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_small_at_first_and_hold_every_text_once() {
        let order: Vec<usize> = (0..20).rev().collect();
        let found = windows(order.clone(), |i| i, 30);
        assert_eq!(found[0], [19, 18]);
        assert_eq!(found[1], [17, 16, 15, 14]);
        assert_eq!(Vec::from(found).concat(), order);
        // Without a budget, one by one; texts without tokens as well.
        assert_eq!(windows(vec![2, 0, 1], |_| 0, 1), [vec![2], vec![0, 1]]);
        assert_eq!(windows(Vec::new(), |i| i, 30), VecDeque::<Vec<usize>>::new());
    }
}
