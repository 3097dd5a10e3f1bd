//! Vectors of texts.

use outcrop_models::Pooling;
use outcrop_models::encoder::{Activations, Encoder};
use outcrop_models::input::{Sequence, encode_text};

use super::encoder::{EncoderModel, Texts};
use super::replica::Replica;
use super::{Embedding, Engine, Model, Output};
use crate::options::Instruction;
use crate::{EmbedOptions, Error};

/// FlagEmbedding's limit of a text, in tokens, where the model's files state none.
const MAX_LENGTH_DEFAULT: usize = 512;

impl Engine {
    /// One vector per text, in order.
    ///
    /// The outer error refuses the call: a reranker, a malformed instruction format. An inner error is that text's alone:
    /// too long for the model's positions, or a vector that is not finite.
    pub fn embed<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        options: &EmbedOptions,
    ) -> Result<Vec<Result<Embedding, Error>>, Error> {
        let model = self.embedder()?;
        let encode = self.encode_text(model, options)?;
        let len = |i: usize| texts[i].as_ref().len();
        let texts = Texts { count: texts.len(), len, encode: |i: usize| encode(texts[i].as_ref()) };
        let outputs = self.run_embeddings(model, &model.replicas, &texts, model.vector_of(options))?;
        Ok(outputs.into_iter().map(|output| self.embedding_of(output?)).collect())
    }

    /// Runs the texts to vectors, on `replicas` of the model.
    pub(super) fn run_embeddings(
        &self,
        model: &EncoderModel,
        replicas: &[Replica<Encoder, Activations>],
        texts: &Texts<impl Fn(usize) -> usize, impl Fn(usize) -> Result<Sequence, Error> + Sync + Send>,
        (pooling, normalize): (Pooling, bool),
    ) -> Result<Vec<Result<Output, Error>>, Error> {
        self.run_encoder(model, replicas, texts, |encoder, stream, act, batch| {
            Ok(encoder.embeddings(stream, act, batch, pooling, normalize)?)
        })
    }

    /// A text's output as the caller wants it.
    pub(crate) fn embedding_of(&self, output: Output) -> Result<Embedding, Error> {
        let Output { values: vector, tokens, truncated, .. } = output;
        if vector.iter().all(|x| x.is_finite()) {
            Ok(Embedding { vector, tokens, truncated })
        } else {
            Err(self.non_finite())
        }
    }

    /// The sequence that [`Engine::embed`] would run for a text.
    pub fn text_sequence(&self, text: &str, options: &EmbedOptions) -> Result<Sequence, Error> {
        let model = self.embedder()?;
        self.encode_text(model, options)?(text)
    }

    /// What makes the sequence of a text.
    pub(super) fn encode_text<'a>(
        &'a self,
        model: &EncoderModel,
        options: &'a EmbedOptions,
    ) -> Result<impl Fn(&str) -> Result<Sequence, Error> + use<'a>, Error> {
        let instruction = Instruction::parse(options.instruction.as_deref(), &options.instruction_format)?;
        let max_length = options.max_length.unwrap_or_else(|| model.max_length());
        Ok(move |text: &str| {
            let ids = self.tokenizer.encode_start(&instruction.apply(text), max_length)?;
            let sequence = encode_text(&ids, self.special_ids(), max_length);
            if sequence.truncated && !options.truncate {
                return Err(Error::Truncated { max_length });
            }
            Ok(sequence)
        })
    }

    pub(super) fn embedder(&self) -> Result<&EncoderModel, Error> {
        match &self.model {
            Model::Encoder(model) if !model.encoder().is_reranker() => Ok(model),
            Model::Encoder(_) | Model::Decoder(_) => {
                Err(Error::NotAnEmbedder { architecture: self.config.architecture().name() })
            }
        }
    }
}

impl Engine {
    /// Tokens of a pair, or of a text for an embedding model, unless the caller says otherwise.
    pub fn max_length(&self) -> usize {
        self.embedder().map_or(super::score::MAX_LENGTH_DEFAULT, EncoderModel::max_length)
    }

    /// How an embedding model's vectors are pooled unless the caller says otherwise; `None` for a reranker.
    pub fn default_pooling(&self) -> Option<Pooling> {
        self.embedder().ok().map(EncoderModel::pooling)
    }
}

impl EncoderModel {
    /// Tokens of a text unless the caller says otherwise.
    fn max_length(&self) -> usize {
        let stated = self.sentence_transformers.as_ref().and_then(|s| s.max_seq_length);
        stated.unwrap_or_else(|| MAX_LENGTH_DEFAULT.min(self.config().max_tokens()))
    }

    /// How vectors are made: pooled, and whether scaled to length 1.
    pub(super) fn vector_of(&self, options: &EmbedOptions) -> (Pooling, bool) {
        let stated = self.sentence_transformers.as_ref().is_none_or(|stated| stated.normalize);
        (options.pooling.unwrap_or_else(|| self.pooling()), options.normalize.unwrap_or(stated))
    }

    /// How the model's vectors are pooled: as its files say, else by the first token.
    fn pooling(&self) -> Pooling {
        match self.sentence_transformers.as_ref().map(|s| s.pooling) {
            Some(outcrop_loader::Pooling::Mean) => Pooling::Mean,
            Some(outcrop_loader::Pooling::Cls) | None => Pooling::Cls,
        }
    }
}
