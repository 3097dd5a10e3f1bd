//! Vectors of texts.

use outcrop_models::Pooling;
use outcrop_models::input::{Sequence, encode_text};

use super::encoder::{EncoderModel, Output, Texts};
use super::{Embedding, Engine, Model};
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
        let instruction = Instruction::parse(options.instruction.as_deref(), &options.instruction_format)?;
        let max_length = options.max_length.unwrap_or_else(|| model.max_length());
        let texts = Texts {
            count: texts.len(),
            len: |i: usize| texts[i].as_ref().len(),
            encode: |i: usize| {
                let ids = self.tokenizer.encode(&instruction.apply(texts[i].as_ref()))?;
                Ok(encode_text(&ids, self.special_ids(), max_length))
            },
        };
        let pooling = options.pooling.unwrap_or_else(|| model.pooling());
        let normalize = options.normalize.unwrap_or_else(|| {
            model
                .sentence_transformers
                .as_ref()
                .is_none_or(|sentence_transformers| sentence_transformers.normalize)
        });
        let outputs = self.run_encoder(model, &texts, |encoder, stream, act, batch| {
            Ok(encoder.embeddings(stream, act, batch, pooling, normalize)?)
        })?;
        let embedding = |Output { values: vector, tokens, truncated }| {
            if vector.iter().all(|x| x.is_finite()) {
                Ok(Embedding { vector, tokens, truncated })
            } else {
                Err(self.non_finite())
            }
        };
        Ok(outputs.into_iter().map(|output| output.and_then(embedding)).collect())
    }

    /// The sequence that [`Engine::embed`] would run for a text.
    pub fn text_sequence(&self, text: &str, options: &EmbedOptions) -> Result<Sequence, Error> {
        let model = self.embedder()?;
        let instruction = Instruction::parse(options.instruction.as_deref(), &options.instruction_format)?;
        let max_length = options.max_length.unwrap_or_else(|| model.max_length());
        let ids = self.tokenizer.encode(&instruction.apply(text))?;
        Ok(encode_text(&ids, self.special_ids(), max_length))
    }

    fn embedder(&self) -> Result<&EncoderModel, Error> {
        match &self.model {
            Model::Encoder(model) if !model.encoder().is_reranker() => Ok(model),
            Model::Encoder(_) | Model::Decoder(_) => {
                Err(Error::NotAnEmbedder { architecture: self.config.architecture().name() })
            }
        }
    }
}

impl EncoderModel {
    /// Tokens of a text unless the caller says otherwise.
    fn max_length(&self) -> usize {
        let stated = self.sentence_transformers.as_ref().and_then(|s| s.max_seq_length);
        stated.unwrap_or_else(|| MAX_LENGTH_DEFAULT.min(self.config().max_tokens()))
    }

    /// How the model's vectors are pooled: as its files say, else by the first token.
    fn pooling(&self) -> Pooling {
        match self.sentence_transformers.as_ref().map(|s| s.pooling) {
            Some(outcrop_loader::Pooling::Mean) => Pooling::Mean,
            Some(outcrop_loader::Pooling::Cls) | None => Pooling::Cls,
        }
    }
}
