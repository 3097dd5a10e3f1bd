//! What the queue needs of an engine: the texts of several callers are tokenised apart and run together.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use outcrop_loader::Config;
use outcrop_models::input::{PairSequence, Sequence};
use outcrop_models::{Pooling, Stream, decoder, encoder};

use super::encoder::Texts;
use super::score::Frame;
use super::{Engine, Model, Output};
use crate::queue::Saved;
use crate::schedule::Schedule;
use crate::{Compression, EmbedOptions, Error, ScoreOptions};

/// What is computed of a sequence. Sequences of one mode can share a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mode {
    /// A cross-encoder's score.
    Score,
    /// A decoder's scores behind some of its layers, its passages compressed on the way where that has an effect.
    Layers(Option<Compression>),
    /// A vector.
    Embed { pooling: Pooling, normalize: bool },
}

/// What a caller wants of the outputs of its texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Terms {
    pub(crate) mode: Mode,
    /// Ascending; of a decoder at least one, of an encoder none.
    pub(crate) cutoffs: Vec<usize>,
    /// Of scores.
    pub(crate) normalize: bool,
    /// Whether the model has cutoffs to speak of.
    pub(crate) reports_layers: bool,
    /// Whether compression was asked for, though it may have no effect.
    pub(crate) compresses: bool,
}

/// A text or a pair as the model reads it, which the model can hold.
#[derive(Clone, Debug)]
pub(crate) enum Encoded {
    /// Of an encoder.
    Sequence(Sequence),
    /// Of a decoder.
    Pair(PairSequence),
}

impl Encoded {
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Sequence(sequence) | Self::Pair(PairSequence { sequence, .. }) => sequence.input_ids.len(),
        }
    }
}

impl Output {
    /// The same for fewer cutoffs: its values are those of `run`, of which `wanted` are some.
    pub(crate) fn at(mut self, run: &[usize], wanted: &[usize]) -> Self {
        if run != wanted {
            let of_wanted = run.iter().zip(&self.values).filter(|(cutoff, _)| wanted.contains(cutoff));
            self.values = of_wanted.map(|(_, value)| *value).collect();
        }
        self
    }
}

impl Engine {
    /// Devices that the model is on, each with a copy.
    pub(crate) fn num_replicas(&self) -> usize {
        match &self.model {
            Model::Encoder(model) => model.replicas.len(),
            Model::Decoder(model) => model.replicas.len(),
        }
    }

    /// Whether the model runs on a GPU.
    pub fn is_on_gpu(&self) -> bool {
        matches!(self.model.stream(), Stream::Cuda(_))
    }

    /// Tokens of a forward pass, as far as memory allows.
    pub fn batch_tokens(&self) -> usize {
        self.batch_tokens.load(Ordering::Relaxed)
    }

    /// Layers of the model.
    fn num_layers(&self) -> usize {
        match &self.config {
            Config::Encoder(config) => config.num_hidden_layers,
            Config::Decoder(config) => config.num_hidden_layers,
        }
    }

    /// Layers that are run for these cutoffs.
    pub(crate) fn depth(&self, cutoffs: &[usize]) -> usize {
        cutoffs.last().copied().unwrap_or(self.num_layers())
    }

    /// What a run of these sequences spares.
    pub(crate) fn saved(&self, mode: &Mode, cutoffs: &[usize], encoded: &[Encoded]) -> Saved {
        let (layers, depth) = (self.num_layers(), self.depth(cutoffs));
        let mut saved = Saved::default();
        let mut prefixes = HashSet::new();
        for sequence in encoded {
            let tokens = sequence.tokens();
            saved.plain += (tokens * layers) as u64;
            saved.cutoff += (tokens * (layers - depth)) as u64;
            let Encoded::Pair(pair) = sequence else { continue };
            if let Mode::Layers(Some(compression)) = mode {
                let around = pair.query_tokens + pair.prompt_tokens;
                let mut passage = tokens - around;
                for layer in (0..depth).filter(|layer| compression.layers().contains(layer)) {
                    let left = passage.div_ceil(compression.ratio());
                    saved.compression += ((passage - left) * (depth - layer)) as u64;
                    passage = left;
                }
            }
            if self.shares_prefixes() && !prefixes.insert(pair.prefix()) {
                saved.prefix_sharing += (pair.query_tokens * depth) as u64;
            }
        }
        saved
    }

    /// Whether a cutoff's score depends on which others are asked for with it: [`HeadRule::Reference`](crate::HeadRule) of a lightweight model.
    pub fn heads_by_place(&self) -> bool {
        matches!(&self.model, Model::Decoder(model) if model.decoder().heads_by_place())
    }

    fn shares_prefixes(&self) -> bool {
        matches!(&self.model, Model::Decoder(model) if model.prefix_sharing)
    }

    /// What scoring with these options means.
    pub(crate) fn score_terms(&self, options: &ScoreOptions) -> Result<Terms, Error> {
        Ok(self.plan(options)?.terms(self))
    }

    /// What embedding with these options means.
    pub(crate) fn embed_terms(&self, options: &EmbedOptions) -> Result<Terms, Error> {
        let (pooling, normalize) = self.embedder()?.vector_of(options);
        let mode = Mode::Embed { pooling, normalize };
        Ok(Terms { mode, cutoffs: Vec::new(), normalize: false, reports_layers: false, compresses: false })
    }

    /// Tokenises pairs on the calling thread. A query that is the one of the pair before is tokenised once.
    pub(crate) fn encode_pairs<'t>(
        &self,
        pairs: impl Iterator<Item = (&'t str, &'t str)>,
        options: &ScoreOptions,
    ) -> Result<Vec<Result<Encoded, Error>>, Error> {
        let plan = self.plan(options)?;
        let mut before: Option<(&str, Vec<u32>)> = None;
        let encode = |(query, passage): (&'t str, &'t str)| {
            let ids = match before.take() {
                Some((same, ids)) if same == query => ids,
                _ => self.query_ids(&plan, query)?,
            };
            let (_, ids) = before.insert((query, ids));
            let pair = plan.join(ids, &self.passage_ids(&plan, passage)?)?;
            Ok(match &plan.frame {
                Frame::Encoder { model, .. } => {
                    encoder::check_sequence(model.config(), &pair.sequence.input_ids)?;
                    Encoded::Sequence(pair.sequence)
                }
                Frame::Decoder { model, .. } => {
                    decoder::check_sequence(model.config(), &pair.sequence.input_ids)?;
                    Encoded::Pair(pair)
                }
            })
        };
        Ok(pairs.map(encode).collect())
    }

    /// Tokenises texts on the calling thread.
    pub(crate) fn encode_texts<'t>(
        &self,
        texts: impl Iterator<Item = &'t str>,
        options: &EmbedOptions,
    ) -> Result<Vec<Result<Encoded, Error>>, Error> {
        let model = self.embedder()?;
        let encode_text = self.encode_text(model, options)?;
        let encode = |text| {
            let sequence = encode_text(text)?;
            encoder::check_sequence(model.config(), &sequence.input_ids)?;
            Ok(Encoded::Sequence(sequence))
        };
        Ok(texts.map(encode).collect())
    }

    /// Runs sequences on one of the devices; one output per sequence, in order, with a value for each of `cutoffs`.
    pub(crate) fn run_encoded(
        &self,
        replica: usize,
        mode: &Mode,
        cutoffs: &[usize],
        encoded: &[Encoded],
    ) -> Result<Vec<Result<Output, Error>>, Error> {
        let sequence = |i: usize| match &encoded[i] {
            Encoded::Sequence(sequence) | Encoded::Pair(PairSequence { sequence, .. }) => {
                Ok(sequence.clone())
            }
        };
        let texts = Texts { count: encoded.len(), len: |i: usize| encoded[i].tokens(), encode: sequence };
        match (&self.model, mode) {
            (Model::Encoder(model), Mode::Embed { pooling, normalize }) => {
                self.run_embeddings(model, &model.replicas[replica..=replica], &texts, (*pooling, *normalize))
            }
            (Model::Encoder(model), Mode::Score | Mode::Layers(_)) => {
                self.run_scores(model, &model.replicas[replica..=replica], &texts)
            }
            (Model::Decoder(model), mode) => {
                let compression = match mode {
                    Mode::Layers(compression) => compression.clone(),
                    Mode::Score | Mode::Embed { .. } => None,
                };
                let schedule = Schedule::new(cutoffs.to_vec(), compression);
                let pair = |encoded: &Encoded| match encoded {
                    Encoded::Pair(pair) => Ok(pair.clone()),
                    Encoded::Sequence(_) => Err(self.not_a_reranker()),
                };
                let pairs = encoded.iter().map(pair).collect();
                self.run_decoder(model, &model.replicas[replica..=replica], pairs, &schedule)
            }
        }
    }
}
