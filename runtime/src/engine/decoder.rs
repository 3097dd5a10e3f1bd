//! Decoders: from pairs to runs of the layer scheduler and back to the caller's order.

use std::collections::HashMap;

use outcrop_loader::{DecoderConfig, DecoderFamily, Tokenizer};
use outcrop_models::decoder::{Activations, Batch, Decoder, Group, check_sequence};
use outcrop_models::input::PairSequence;

use super::Engine;
use super::pool::Pool;
use crate::Error;
use crate::packing::{Part, PrefixGroup, pack_groups};
use crate::schedule::Schedule;

/// A decoder with what its calls share.
pub(super) struct DecoderModel {
    pub(super) decoder: Decoder,
    /// The token that begins a sequence.
    pub(super) bos: Option<u32>,
    /// A line break, tokenised alone.
    pub(super) separator: Vec<u32>,
    prefix_sharing: bool,
    idle: Pool<Activations>,
}

/// What came of one pair.
pub(super) struct Output {
    pub(super) pair: PairSequence,
    /// One per cutoff.
    pub(super) scores: Vec<f32>,
    pub(super) tokens_after: usize,
}

impl DecoderModel {
    pub(super) fn new(decoder: Decoder, tokenizer: &Tokenizer, prefix_sharing: bool) -> Result<Self, Error> {
        let separator = tokenizer.encode("\n")?;
        if separator.is_empty() {
            return Err(Error::NoTokens { text: "\n" });
        }
        let config = decoder.config();
        // Gemma's class leaves it out where it is the padding token; the other two always put it first (SPEC 4.1).
        let is_gemma = matches!(config.family, DecoderFamily::Gemma(_));
        let bos = config.bos_token_id.filter(|id| !is_gemma || config.pad_token_id != Some(*id));
        Ok(Self { bos, separator, prefix_sharing, idle: Pool::default(), decoder })
    }

    pub(super) fn config(&self) -> &DecoderConfig {
        self.decoder.config()
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
    /// Runs `schedule` over packed batches of the pairs and returns one output per pair, in order.
    ///
    /// A pair that the model cannot hold fails alone.
    pub(super) fn run_decoder(
        &self,
        model: &DecoderModel,
        pairs: Vec<Result<PairSequence, Error>>,
        schedule: &Schedule,
    ) -> Result<Vec<Result<Output, Error>>, Error> {
        let fitting = |pair: PairSequence| {
            check_sequence(model.config(), &pair.sequence.input_ids)?;
            Ok(pair)
        };
        let pairs: Vec<_> = pairs.into_iter().map(|pair| pair.and_then(fitting)).collect();
        let mut results: Vec<(Vec<f32>, usize)> = pairs.iter().map(|_| Default::default()).collect();
        let inputs: HashMap<usize, &PairSequence> =
            pairs.iter().enumerate().filter_map(|(i, pair)| Some((i, pair.as_ref().ok()?))).collect();
        let longest = inputs.values().map(|pair| pair.sequence.input_ids.len()).max().unwrap_or(0);
        let capacity = longest.max(self.batch_tokens);
        if !inputs.is_empty() {
            // Layers are read here, on the caller's thread: the compute threads never wait for one another.
            let stack = model.decoder.stack(&self.stream, &schedule.cutoffs, longest)?;
            let mut act = model
                .idle
                .take(|act| act.capacity() >= capacity, || Activations::new(model.config(), capacity));
            for parts in pack_groups(groups(&pairs, model.prefix_sharing), self.batch_tokens) {
                let mut batch =
                    Batch::new(&parts.iter().map(|part| group(part, &inputs)).collect::<Vec<_>>());
                let run = || schedule.run(&self.stream, &stack, &mut act, &mut batch);
                let scores = self.stream.run(run)?;
                let members = parts.iter().flat_map(|part| &part.members);
                for (nth, i) in members.enumerate() {
                    results[*i] =
                        (scores.scores.iter().map(|scores| scores[nth]).collect(), scores.tokens_after[nth]);
                }
            }
            // Kept for the next call, unless one long sequence made it larger than usual.
            if capacity == self.batch_tokens {
                model.idle.keep(act);
            }
        }
        let output = |pair, (scores, tokens_after)| Output { pair, scores, tokens_after };
        Ok(pairs
            .into_iter()
            .zip(results)
            .map(|(pair, result)| pair.map(|pair| output(pair, result)))
            .collect())
    }
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
