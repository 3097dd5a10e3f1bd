//! Scores of pairs, and rankings.

use outcrop_models::input::{PairLimits, Sequence, encode_pair};

use super::run::Output;
use super::{Engine, Ranked, Ranking, Score};
use crate::options::Instruction;
use crate::{EmbedOptions, Error, ScoreOptions};

/// The reference's limit of a pair, in tokens.
const MAX_LENGTH_DEFAULT: usize = 512;

impl Engine {
    /// Scores each (query, passage) pair; one result per pair, in order.
    ///
    /// The outer error refuses the call: a model without a scoring head, a malformed instruction format. An inner error is
    /// that pair's alone: too long for the model's positions, or a score that is not finite.
    pub fn score<Q: AsRef<str> + Sync, P: AsRef<str> + Sync>(
        &self,
        pairs: &[(Q, P)],
        options: &ScoreOptions,
    ) -> Result<Vec<Result<Score, Error>>, Error> {
        self.require_reranker()?;
        let rules = PairRules::new(options)?;
        let sequences = self.encode_all(pairs.len(), |i| {
            let query = self.tokenizer.encode(&rules.query.apply(pairs[i].0.as_ref()))?;
            let passage = self.tokenizer.encode(&rules.passage.apply(pairs[i].1.as_ref()))?;
            Ok(encode_pair(&query, &passage, self.special_ids(), rules.limits))
        });
        self.score_sequences(sequences, options)
    }

    /// The sequence that [`Engine::score`] would run for a pair: for debugging, and for comparing with other implementations.
    pub fn pair_sequence(
        &self,
        query: &str,
        passage: &str,
        options: &ScoreOptions,
    ) -> Result<Sequence, Error> {
        self.require_reranker()?;
        let rules = PairRules::new(options)?;
        let query = self.tokenizer.encode(&rules.query.apply(query))?;
        let passage = self.tokenizer.encode(&rules.passage.apply(passage))?;
        Ok(encode_pair(&query, &passage, self.special_ids(), rules.limits))
    }

    /// Scores every passage against one query and orders them, best first. The query is tokenised once.
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
        let rules = PairRules::new(options)?;
        let query = self.tokenizer.encode(&rules.query.apply(query))?;
        let sequences = self.encode_all(passages.len(), |i| {
            let passage = self.tokenizer.encode(&rules.passage.apply(passages[i].as_ref()))?;
            Ok(encode_pair(&query, &passage, self.special_ids(), rules.limits))
        });
        Ok(Ranking::from_scores(self.score_sequences(sequences, options)?))
    }

    fn rerank_by_cosine<P: AsRef<str> + Sync>(
        &self,
        query: &str,
        passages: &[P],
        options: &ScoreOptions,
    ) -> Result<Ranking, Error> {
        let embed_options = |instruction: &Option<String>, format: &String| EmbedOptions {
            max_length: options.max_length,
            normalize: Some(true),
            pooling: None,
            instruction: instruction.clone(),
            instruction_format: format.clone(),
        };
        let for_query = embed_options(&options.query_instruction, &options.query_instruction_format);
        let for_passages = embed_options(&options.passage_instruction, &options.passage_instruction_format);
        // One text in, one result out; the fallback cannot be reached.
        let query = self.embed(&[query], &for_query)?.pop().unwrap_or_else(|| Err(self.non_finite()))?;
        let scores = self.embed(passages, &for_passages)?.into_iter().map(|passage| {
            let passage = passage?;
            let products =
                query.vector.iter().zip(&passage.vector).map(|(q, p)| f64::from(*q) * f64::from(*p));
            Ok(Score { score: products.sum(), tokens: passage.tokens, truncated: passage.truncated })
        });
        Ok(Ranking::from_scores(scores.collect()))
    }

    fn score_sequences(
        &self,
        sequences: Vec<Result<Sequence, Error>>,
        options: &ScoreOptions,
    ) -> Result<Vec<Result<Score, Error>>, Error> {
        let outputs = self.run(sequences, |act, batch| {
            self.encoder.scores(&self.stream, act, batch)?.ok_or_else(|| self.not_a_reranker())
        })?;
        let score = |Output { value, tokens, truncated }: Output<f32>| {
            if !value.is_finite() {
                return Err(self.non_finite());
            }
            let raw = f64::from(value);
            let score = if options.normalize { 1.0 / (1.0 + (-raw).exp()) } else { raw };
            Ok(Score { score, tokens, truncated })
        };
        Ok(outputs.into_iter().map(|output| output.and_then(score)).collect())
    }

    fn require_reranker(&self) -> Result<(), Error> {
        if self.is_reranker() { Ok(()) } else { Err(self.not_a_reranker()) }
    }

    fn not_a_reranker(&self) -> Error {
        Error::NotAReranker { architecture: self.config().architecture.name() }
    }
}

/// What turns the texts of a pair into its sequence, checked once per call.
struct PairRules<'a> {
    query: Instruction<'a>,
    passage: Instruction<'a>,
    limits: PairLimits,
}

impl<'a> PairRules<'a> {
    fn new(options: &'a ScoreOptions) -> Result<Self, Error> {
        let max_length = options.max_length.unwrap_or(MAX_LENGTH_DEFAULT);
        Ok(Self {
            query: Instruction::parse(
                options.query_instruction.as_deref(),
                &options.query_instruction_format,
            )?,
            passage: Instruction::parse(
                options.passage_instruction.as_deref(),
                &options.passage_instruction_format,
            )?,
            limits: PairLimits::new(max_length, options.query_max_length),
        })
    }
}

impl Ranking {
    fn from_scores(scores: Vec<Result<Score, Error>>) -> Self {
        let mut ranking = Self::default();
        for (index, score) in scores.into_iter().enumerate() {
            match score {
                Ok(Score { score, tokens, truncated }) => {
                    ranking.results.push(Ranked { index, score, tokens, truncated });
                }
                Err(error) => ranking.failed.push((index, error)),
            }
        }
        // Scores are finite; the sort is stable.
        ranking.results.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranking
    }
}
