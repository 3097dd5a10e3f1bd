//! Scores of pairs, and rankings.

use outcrop_models::decoder::MAX_TOKENS;
use outcrop_models::encoder::{self, Encoder};
use outcrop_models::input::{
    PairLimits, PairSequence, Prompt, Sequence, SpecialIds, encode_pair, encode_prompted_pair,
};

use super::decoder::DecoderModel;
use super::encoder::{EncoderModel, Texts};
use super::replica::Replica;
use super::{Embedding, Engine, LayerScore, Mode, Model, Output, Ranked, Ranking, Score, Terms};
use crate::options::Instruction;
use crate::schedule::Schedule;
use crate::{Cutoffs, EmbedOptions, Error, ScoreOptions, Warning};

/// The reference's limit of a pair, in tokens.
pub(super) const MAX_LENGTH_DEFAULT: usize = 512;

/// The options of a call, checked against the model once.
pub(super) struct Plan<'a> {
    pub(super) query: Instruction<'a>,
    pub(super) passage: Instruction<'a>,
    limits: PairLimits,
    truncate: bool,
    pub(super) frame: Frame<'a>,
    normalize: bool,
}

/// What stands around query and passage, and the model that reads it.
pub(super) enum Frame<'a> {
    Encoder { model: &'a EncoderModel, special: SpecialIds<'a> },
    Decoder { model: &'a DecoderModel, prompt: Vec<u32>, schedule: Schedule },
}

impl Engine {
    /// Scores each (query, passage) pair; one result per pair, in order.
    ///
    /// The outer error refuses the call: a model without a scoring head, an option that the model does not have, a malformed
    /// instruction format, a missing tensor. An inner error is that pair's alone: too long, or a score that is not finite.
    ///
    /// A decoder computes the query part of pairs that share it once for all of them.
    pub fn score<Q: AsRef<str> + Sync, P: AsRef<str> + Sync>(
        &self,
        pairs: &[(Q, P)],
        options: &ScoreOptions,
    ) -> Result<Vec<Result<Score, Error>>, Error> {
        let plan = self.plan(options)?;
        let len = |i: usize| pairs[i].0.as_ref().len() + pairs[i].1.as_ref().len();
        self.score_texts(&plan, Texts { count: pairs.len(), len, encode: |i| self.encode(&plan, &pairs[i]) })
    }

    /// The sequence of a pair, as the model reads it.
    fn encode<Q: AsRef<str> + Sync, P: AsRef<str> + Sync>(
        &self,
        plan: &Plan<'_>,
        (query, passage): &(Q, P),
    ) -> Result<PairSequence, Error> {
        plan.join(&self.query_ids(plan, query.as_ref())?, &self.passage_ids(plan, passage.as_ref())?)
    }

    /// The ids of a query, as many as are kept and one more.
    pub(super) fn query_ids(&self, plan: &Plan<'_>, query: &str) -> Result<Vec<u32>, Error> {
        Ok(self.tokenizer.encode_start(&plan.query.apply(query), plan.limits.query_max_length)?)
    }

    /// The ids of a passage, as many as are kept and one more.
    pub(super) fn passage_ids(&self, plan: &Plan<'_>, passage: &str) -> Result<Vec<u32>, Error> {
        Ok(self.tokenizer.encode_start(&plan.passage.apply(passage), plan.limits.max_length)?)
    }

    /// Checks `options` against the model without running it: the error that [`Engine::score`] would refuse them with, or what
    /// they ask for in vain.
    pub fn check(&self, options: &ScoreOptions) -> Result<Vec<Warning>, Error> {
        Ok(match self.plan(options)?.frame {
            Frame::Encoder { .. } => Vec::new(),
            Frame::Decoder { schedule, .. } => schedule.warnings(),
        })
    }

    /// Reads the weights that calls with these options need, so that the first of them does not wait: the layers of a decoder up to
    /// the largest cutoff. An encoder's are read when it is opened.
    pub fn prepare(&self, options: &ScoreOptions) -> Result<(), Error> {
        if let Frame::Decoder { model, schedule, .. } = self.plan(options)?.frame {
            for replica in &model.replicas {
                let _turn = replica.turn();
                let Replica { stream, model: decoder, .. } = replica;
                decoder.stack(stream, &self.host, &schedule.cutoffs, 1)?;
            }
        }
        Ok(())
    }

    /// Floating-point operations of the matrix products that [`Engine::score`] would run for these pairs: what cutoffs,
    /// compression and shared queries save can be read off before it is measured. Embeddings and heads are left out.
    pub fn flops<Q: AsRef<str> + Sync, P: AsRef<str> + Sync>(
        &self,
        pairs: &[(Q, P)],
        options: &ScoreOptions,
    ) -> Result<u64, Error> {
        let plan = self.plan(options)?;
        Ok(match &plan.frame {
            Frame::Encoder { model, .. } => {
                model.flops(&self.encode_all(pairs.len(), |i| self.encode(&plan, &pairs[i])))
            }
            Frame::Decoder { model, schedule, .. } => {
                model.flops(&self.encode_all(pairs.len(), |i| self.encode(&plan, &pairs[i])), schedule)
            }
        })
    }

    /// The sequence that [`Engine::score`] would run for a pair: for debugging, and for comparing with other implementations.
    pub fn pair_sequence(
        &self,
        query: &str,
        passage: &str,
        options: &ScoreOptions,
    ) -> Result<PairSequence, Error> {
        self.encode(&self.plan(options)?, &(query, passage))
    }

    /// Scores every passage against one query and orders them, best first. The query is tokenised once, and a decoder computes
    /// BOS, query and separator once for all passages.
    ///
    /// An embedding model ranks by the cosine of query and passage vectors; query and passage instructions apply to it too,
    /// `query_max_length` and `normalize` do not.
    ///
    /// The error refuses the call; passages that fail alone are listed in [`Ranking::failed`].
    pub fn rerank<P: AsRef<str> + Sync>(
        &self,
        query: &str,
        passages: &[P],
        options: &ScoreOptions,
    ) -> Result<Ranking, Error> {
        if !self.is_reranker() {
            return self.rerank_by_cosine(query, passages, options);
        }
        let plan = self.plan(options)?;
        let query = self.tokenizing(|| self.query_ids(&plan, query))?;
        let encode = |i: usize| plan.join(&query, &self.passage_ids(&plan, passages[i].as_ref())?);
        let texts = Texts { count: passages.len(), len: |i: usize| passages[i].as_ref().len(), encode };
        Ok(self.score_texts(&plan, texts)?.into())
    }

    fn rerank_by_cosine<P: AsRef<str> + Sync>(
        &self,
        query: &str,
        passages: &[P],
        options: &ScoreOptions,
    ) -> Result<Ranking, Error> {
        let [for_query, for_passages] = self.cosine_options(options)?;
        // One text in, one result out; the fallback cannot be reached.
        let query = self.embed(&[query], &for_query)?.pop().unwrap_or_else(|| Err(self.non_finite()))?;
        let passages = self.embed(passages, &for_passages)?;
        let scores = passages.into_iter().map(|passage| Ok(passage?.cosine(&query)));
        Ok(scores.collect::<Vec<_>>().into())
    }

    /// How query and passages are embedded to be ranked by cosine.
    pub(crate) fn cosine_options(&self, options: &ScoreOptions) -> Result<[EmbedOptions; 2], Error> {
        self.refuse_decoder_options(options)?;
        let embed_options = |instruction: &Option<String>, format: &String| EmbedOptions {
            max_length: options.max_length,
            truncate: options.truncate,
            normalize: Some(true),
            pooling: None,
            instruction: instruction.clone(),
            instruction_format: format.clone(),
        };
        Ok([
            embed_options(&options.query_instruction, &options.query_instruction_format),
            embed_options(&options.passage_instruction, &options.passage_instruction_format),
        ])
    }

    fn score_texts(
        &self,
        plan: &Plan<'_>,
        texts: Texts<impl Fn(usize) -> usize, impl Fn(usize) -> Result<PairSequence, Error> + Sync + Send>,
    ) -> Result<Vec<Result<Score, Error>>, Error> {
        let Texts { count, len, encode } = texts;
        let outputs = match &plan.frame {
            Frame::Encoder { model, .. } => {
                let texts = Texts { count, len, encode: |i| Ok(encode(i)?.sequence) };
                self.run_scores(model, &model.replicas, &texts)?
            }
            Frame::Decoder { model, schedule, .. } => {
                self.run_decoder(model, &model.replicas, self.encode_all(count, encode), schedule)?
            }
        };
        let terms = plan.terms(self);
        Ok(outputs.into_iter().map(|output| self.score_of(output?, &terms)).collect())
    }

    /// Runs the pairs to scores, on `replicas` of an encoder.
    pub(super) fn run_scores(
        &self,
        model: &EncoderModel,
        replicas: &[Replica<Encoder, encoder::Activations>],
        texts: &Texts<impl Fn(usize) -> usize, impl Fn(usize) -> Result<Sequence, Error> + Sync + Send>,
    ) -> Result<Vec<Result<Output, Error>>, Error> {
        self.run_encoder(model, replicas, texts, |encoder, stream, act, batch| {
            encoder.scores(stream, act, batch)?.ok_or_else(|| self.not_a_reranker())
        })
    }

    /// A pair's output as the caller wants it: its values are those of the cutoffs of `terms`.
    pub(crate) fn score_of(&self, output: Output, terms: &Terms) -> Result<Score, Error> {
        let Output { values, tokens, truncated, tokens_after } = output;
        let scores: Vec<f64> =
            values.into_iter().map(|raw| self.finish(raw, terms.normalize)).collect::<Result<_, _>>()?;
        let layers = terms.cutoffs.iter().zip(&scores).filter(|_| terms.reports_layers);
        Ok(Score {
            // There is at least one.
            score: scores.last().copied().unwrap_or(f64::NAN),
            tokens,
            truncated,
            layer_scores: layers.map(|(layer, score)| LayerScore { layer: *layer, score: *score }).collect(),
            tokens_after: terms.compresses.then_some(tokens_after),
        })
    }

    /// A raw score as the caller wants it.
    fn finish(&self, raw: f32, normalize: bool) -> Result<f64, Error> {
        if !raw.is_finite() {
            return Err(self.non_finite());
        }
        let raw = f64::from(raw);
        Ok(if normalize { 1.0 / (1.0 + (-raw).exp()) } else { raw })
    }

    pub(super) fn plan<'a>(&'a self, options: &'a ScoreOptions) -> Result<Plan<'a>, Error> {
        let (frame, default_query, default_passage) = match &self.model {
            Model::Encoder(model) => {
                if !model.encoder().is_reranker() {
                    return Err(self.not_a_reranker());
                }
                self.refuse_decoder_options(options)?;
                (Frame::Encoder { model, special: self.special_ids() }, None, None)
            }
            Model::Decoder(model) => {
                let prompt = self.prompt(model, options)?;
                let schedule = self.schedule(options)?;
                (Frame::Decoder { model, prompt, schedule }, Some("A: "), Some("B: "))
            }
        };
        let max_length = options.max_length.unwrap_or(MAX_LENGTH_DEFAULT);
        let query = options.query_instruction.as_deref().or(default_query);
        let passage = options.passage_instruction.as_deref().or(default_passage);
        Ok(Plan {
            query: Instruction::parse(query, &options.query_instruction_format)?,
            passage: Instruction::parse(passage, &options.passage_instruction_format)?,
            limits: PairLimits::new(max_length, options.query_max_length),
            truncate: options.truncate,
            frame,
            normalize: options.normalize,
        })
    }

    /// The ids of the prompt, tokenised alone (SPEC 1.6).
    fn prompt(&self, model: &DecoderModel, options: &ScoreOptions) -> Result<Vec<u32>, Error> {
        let prompt = self.tokenizer.encode(options.prompt.as_deref().unwrap_or(model.default_prompt()))?;
        let limit = model.config().max_position_embeddings.min(MAX_TOKENS);
        if prompt.len() > limit {
            return Err(Error::PromptTooLong { tokens: prompt.len(), limit });
        }
        Ok(prompt)
    }

    fn schedule(&self, options: &ScoreOptions) -> Result<Schedule, Error> {
        let outcrop_loader::Config::Decoder(config) = &self.config else {
            return Err(self.not_a_reranker());
        };
        let cutoffs = match (&options.cutoff_layers, config.allowed_cutoffs()) {
            (Some(_), None) => return Err(self.no_such_option("cutoff_layers")),
            // Cutoffs may have been checked against another model.
            (Some(cutoffs), Some(allowed)) => Cutoffs::new(cutoffs.layers(), allowed)?.layers().to_vec(),
            (None, Some(allowed)) => vec![allowed.last],
            (None, None) => vec![config.num_hidden_layers],
        };
        if options.compression.is_some() && !self.can_compress() {
            return Err(self.no_such_option("compress_ratio"));
        }
        Ok(Schedule::new(cutoffs, options.compression.clone()))
    }

    /// An encoder has neither layers to stop at nor a prompt.
    fn refuse_decoder_options(&self, options: &ScoreOptions) -> Result<(), Error> {
        let asked = [
            ("cutoff_layers", options.cutoff_layers.is_some()),
            ("compress_ratio", options.compression.is_some()),
            ("prompt", options.prompt.is_some()),
        ];
        match asked.into_iter().find(|(_, is_asked)| *is_asked) {
            Some((option, _)) => Err(self.no_such_option(option)),
            None => Ok(()),
        }
    }

    pub(super) fn not_a_reranker(&self) -> Error {
        Error::NotAReranker { architecture: self.config.architecture().name() }
    }

    pub(super) fn special_ids(&self) -> SpecialIds<'_> {
        let (before, after) = self.tokenizer.special_ids();
        SpecialIds { before, after }
    }
}

impl Plan<'_> {
    /// What is to be computed of its pairs, and reported.
    pub(super) fn terms(&self, engine: &Engine) -> Terms {
        let (mode, cutoffs, compresses) = match &self.frame {
            Frame::Encoder { .. } => (Mode::Score, Vec::new(), false),
            Frame::Decoder { schedule, .. } => (
                Mode::Layers(schedule.effective_compression()),
                schedule.cutoffs.clone(),
                schedule.has_compression(),
            ),
        };
        let reports_layers = engine.allowed_cutoffs().is_some();
        Terms { mode, cutoffs, normalize: self.normalize, reports_layers, compresses }
    }

    /// The sequence of a pair from the ids of its texts.
    pub(super) fn join(&self, query: &[u32], passage: &[u32]) -> Result<PairSequence, Error> {
        let pair = match &self.frame {
            Frame::Encoder { special, .. } => encode_pair(query, passage, *special, self.limits),
            Frame::Decoder { model, prompt, .. } => {
                let prompt = Prompt { bos: model.bos, separator: &model.separator, prompt };
                encode_prompted_pair(query, passage, prompt, self.limits)
            }
        };
        if pair.sequence.truncated && !self.truncate {
            return Err(Error::Truncated { max_length: self.limits.max_length });
        }
        Ok(pair)
    }
}

impl Embedding {
    /// The cosine of a passage's vector and a query's, both of length 1.
    pub(crate) fn cosine(self, query: &Self) -> Score {
        let products = query.vector.iter().zip(&self.vector).map(|(q, p)| f64::from(*q) * f64::from(*p));
        Score {
            score: products.sum(),
            tokens: self.tokens,
            truncated: self.truncated,
            layer_scores: Vec::new(),
            tokens_after: None,
        }
    }
}

impl From<Ranked> for Score {
    fn from(ranked: Ranked) -> Self {
        let Ranked { score, tokens, truncated, layer_scores, tokens_after, .. } = ranked;
        Self { score, tokens, truncated, layer_scores, tokens_after }
    }
}

impl From<Vec<Result<Score, Error>>> for Ranking {
    /// The scores of passages, in the order of the passages.
    fn from(scores: Vec<Result<Score, Error>>) -> Self {
        let mut ranking = Self::default();
        for (index, score) in scores.into_iter().enumerate() {
            match score {
                Ok(Score { score, tokens, truncated, layer_scores, tokens_after }) => {
                    ranking.results.push(Ranked {
                        index,
                        score,
                        tokens,
                        truncated,
                        layer_scores,
                        tokens_after,
                    });
                }
                Err(error) => ranking.failed.push((index, error)),
            }
        }
        // Scores are finite; the sort is stable.
        ranking.results.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranking
    }
}
