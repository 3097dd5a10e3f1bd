//! Decoders: from pairs to runs of the layer scheduler and back to the caller's order.

use std::collections::HashMap;

use outcrop_loader::{DecoderConfig, DecoderFamily, Tokenizer};
use outcrop_models::CpuStream;
use outcrop_models::decoder::{Activations, Batch, Decoder, Group, check_sequence};
use outcrop_models::input::PairSequence;

use super::replica::{InFlight, Replica, distribute};
use super::{Engine, Output};
use crate::Error;
use crate::packing::{Part, PrefixGroup, pack_groups};
use crate::schedule::{PendingBatch, Schedule};

/// A decoder with what its calls share.
pub(super) struct DecoderModel {
    /// At least one.
    pub(super) replicas: Vec<Replica<Decoder, Activations>>,
    /// The token that begins a sequence.
    pub(super) bos: Option<u32>,
    /// A line break, tokenised alone.
    pub(super) separator: Vec<u32>,
    pub(super) prefix_sharing: bool,
    record_graphs: bool,
}

impl DecoderModel {
    pub(super) fn new(
        replicas: Vec<Replica<Decoder, Activations>>,
        tokenizer: &Tokenizer,
        prefix_sharing: bool,
        record_graphs: bool,
    ) -> Result<Self, Error> {
        let separator = tokenizer.encode("\n")?;
        if separator.is_empty() {
            return Err(Error::NoTokens { text: "\n" });
        }
        let config = replicas[0].model.config();
        // Gemma's class leaves it out where it is the padding token; the other two always put it first (SPEC 4.1).
        let is_gemma = matches!(config.family, DecoderFamily::Gemma(_));
        let bos = config.bos_token_id.filter(|id| !is_gemma || config.pad_token_id != Some(*id));
        Ok(Self { bos, separator, prefix_sharing, record_graphs, replicas })
    }

    /// Memory for batches of `batch_tokens` tokens on every GPU.
    pub(super) fn reserve(&self, batch_tokens: usize) -> Result<(), Error> {
        let make = |stream| Ok(Activations::new(stream, self.config(), batch_tokens, self.record_graphs)?);
        self.replicas.iter().try_for_each(|replica| replica.reserve(|| make(&replica.stream)))
    }

    pub(super) fn config(&self) -> &DecoderConfig {
        self.decoder().config()
    }

    /// The model on the first device; the others are like it.
    pub(super) fn decoder(&self) -> &Decoder {
        &self.replicas[0].model
    }

    /// The question asked unless the caller has another (SPEC 4.1).
    pub(super) fn default_prompt(&self) -> &'static str {
        match self.config().family {
            DecoderFamily::Gemma(_) | DecoderFamily::MiniCpm(_) => {
                "Given a query A and a passage B, determine whether the passage contains an answer to the query by \
                 providing a prediction of either 'Yes' or 'No'."
            }
            DecoderFamily::Gemma2(_) => "Predict whether passage B contains an answer to query A.",
        }
    }
}

/// The token whose logit is the score of a model whose head is the vocabulary (SPEC 5).
pub(super) fn yes_token(tokenizer: &Tokenizer) -> Result<u32, Error> {
    tokenizer.encode("Yes")?.first().copied().ok_or(Error::NoTokens { text: "Yes" })
}

impl Engine {
    /// Runs `schedule` over packed batches of the pairs, on `replicas` of the model, and returns one output per pair, in order: its values
    /// are one score per cutoff.
    ///
    /// All pairs are tokenised first: those that share a query belong together, and beside a decoder's layers it takes no time.
    /// A pair that the model cannot hold fails alone.
    pub(super) fn run_decoder(
        &self,
        model: &DecoderModel,
        replicas: &[Replica<Decoder, Activations>],
        pairs: Vec<Result<PairSequence, Error>>,
        schedule: &Schedule,
    ) -> Result<Vec<Result<Output, Error>>, Error> {
        let fitting = |pair: PairSequence| {
            check_sequence(model.config(), &pair.sequence.input_ids)?;
            Ok(pair)
        };
        let pairs: Vec<_> = pairs.into_iter().map(|pair| pair.and_then(fitting)).collect();
        let inputs: HashMap<usize, &PairSequence> =
            pairs.iter().enumerate().filter_map(|(i, pair)| Some((i, pair.as_ref().ok()?))).collect();
        let longest = inputs.values().map(|pair| pair.sequence.input_ids.len()).max().unwrap_or(0);
        let found = match inputs.is_empty() {
            true => Vec::new(),
            false => self.within_memory(&longest.into(), |batch_tokens| {
                let capacity = longest.max(batch_tokens);
                let chains = chains(pack_groups(groups(&pairs, model.prefix_sharing), batch_tokens));
                distribute(replicas, &mut chains.into_iter(), |replica, chains| {
                    let run = Run { host: &self.host, schedule, longest, capacity, inputs: &inputs };
                    let keep = capacity == batch_tokens;
                    run.chains(replica, chains, keep, model.record_graphs)
                })
            })?,
        };
        let mut results: Vec<(Vec<f32>, usize)> = pairs.iter().map(|_| Default::default()).collect();
        for (i, result) in found {
            results[i] = result;
        }
        let output = |PairSequence { sequence, .. }, (values, tokens_after)| Output {
            values,
            tokens: sequence.input_ids.len(),
            truncated: sequence.truncated,
            tokens_after,
        };
        Ok(pairs
            .into_iter()
            .zip(results)
            .map(|(pair, result)| pair.map(|pair| output(pair, result)))
            .collect())
    }
}

/// A call's part of a replica's work.
struct Run<'a> {
    host: &'a CpuStream,
    schedule: &'a Schedule,
    /// Tokens of the longest sequence.
    longest: usize,
    /// Tokens of a batch.
    capacity: usize,
    inputs: &'a HashMap<usize, &'a PairSequence>,
}

/// The scores of every cutoff, and the tokens left behind the last layer, by the index of their pair.
type Found = Vec<(usize, (Vec<f32>, usize))>;

/// Waits for the scores of a batch and gives each pair its own.
fn found((members, pending): (Vec<usize>, PendingBatch)) -> Result<Found, Error> {
    let results = pending.wait()?;
    let of_nth = |nth: usize| results.scores.iter().map(|scores| scores[nth]).collect();
    let found = |(nth, i)| (i, (of_nth(nth), results.tokens_after[nth]));
    Ok(members.into_iter().enumerate().map(found).collect())
}

impl Run<'_> {
    /// Runs batch after batch; memory for them is kept for the next call unless one long sequence made it larger than usual.
    fn chains(
        &self,
        replica: &Replica<Decoder, Activations>,
        chains: &mut dyn Iterator<Item = Vec<Vec<Part>>>,
        keep: bool,
        record_graphs: bool,
    ) -> Result<Found, Error> {
        let turn = replica.turn();
        let Replica { stream, model: decoder, .. } = replica;
        // Layers are read here, on the caller's thread: the compute threads never wait for one another.
        let stack = decoder.stack(stream, self.host, &self.schedule.cutoffs, self.longest)?;
        let mut act = replica.take(
            None,
            |act| act.capacity() >= self.capacity,
            || Ok(Activations::new(stream, decoder.config(), self.capacity, record_graphs)?),
        )?;
        let mut in_flight = InFlight::new();
        for parts in chains.flatten() {
            let batch = Batch::new(&parts.iter().map(|part| group(part, self.inputs)).collect::<Vec<_>>());
            let pending =
                stream.span(|| stream.run(|| self.schedule.run(stream, &stack, &mut act, &batch)))?;
            let members = parts.into_iter().flat_map(|part| part.members).collect();
            in_flight.push((members, pending), found)?;
        }
        if keep {
            replica.keep(act);
        }
        drop(turn);
        in_flight.finish(found)
    }
}

/// Batches that hand a prefix on from one to the next stay together, in their order: they run on one device.
fn chains(batches: Vec<Vec<Part>>) -> Vec<Vec<Vec<Part>>> {
    let mut chains: Vec<Vec<Vec<Part>>> = Vec::new();
    for batch in batches {
        match chains.last_mut() {
            Some(chain) if batch.first().is_some_and(|part| part.is_carried) => chain.push(batch),
            _ => chains.push(vec![batch]),
        }
    }
    chains
}

impl DecoderModel {
    /// Floating-point operations of running `schedule` over the pairs, however they are packed: a prefix counts once.
    pub(super) fn flops(&self, pairs: &[Result<PairSequence, Error>], schedule: &Schedule) -> u64 {
        let inputs: HashMap<usize, &PairSequence> =
            pairs.iter().enumerate().filter_map(|(i, pair)| Some((i, pair.as_ref().ok()?))).collect();
        let parts = pack_groups(groups(pairs, self.prefix_sharing), usize::MAX);
        let all: Vec<Group<'_>> = parts.iter().flatten().map(|part| group(part, &inputs)).collect();
        schedule.flops(self.config(), &mut Batch::new(&all))
    }
}

/// The pairs by what stands before the passage; each alone if prefixes are not to be shared.
fn groups(pairs: &[Result<PairSequence, Error>], prefix_sharing: bool) -> Vec<PrefixGroup> {
    let mut groups: Vec<PrefixGroup> = Vec::new();
    let mut group_of: HashMap<&[u32], usize> = HashMap::new();
    for (i, pair) in pairs.iter().enumerate() {
        let Ok(pair) = pair else { continue };
        let found = group_of.get(pair.prefix()).copied().filter(|_| prefix_sharing);
        let group = found.unwrap_or_else(|| {
            groups.push(PrefixGroup { prefix: pair.query_tokens, rests: Vec::new() });
            groups.len() - 1
        });
        group_of.insert(pair.prefix(), group);
        groups[group].rests.push((i, pair.rest().len()));
    }
    groups
}

fn group<'a>(part: &Part, inputs: &HashMap<usize, &'a PairSequence>) -> Group<'a> {
    Group {
        pairs: part.members.iter().map(|i| inputs[i]).collect(),
        is_carried: part.is_carried,
        is_kept: part.is_kept,
    }
}
