//! One model and everything needed to run it, behind three calls.

mod embed;
mod run;
mod score;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use outcrop_loader::{Checkpoint, Config, EncoderConfig, SentenceTransformers, Tokenizer};
use outcrop_models::input::SpecialIds;
use outcrop_models::{Activations, Encoder, Stream};

use crate::{EngineOptions, Error};

/// Tokens per forward pass unless told otherwise: enough rows for the matrix products to reach their full rate on the CPU,
/// few enough that a batch's activations stay in cache.
const BATCH_TOKENS_DEFAULT: usize = 1024;

/// A model, ready to score.
///
/// `Send` and `Sync`; calls from several threads run at the same time on the same compute threads.
pub struct Engine {
    stream: Stream,
    encoder: Encoder,
    tokenizer: Tokenizer,
    /// Pooling and limits of an embedding model, where its files state them.
    sentence_transformers: Option<SentenceTransformers>,
    batch_tokens: usize,
    /// Memory for forward passes that no call is using; as many as calls have run at the same time.
    idle: Mutex<Vec<Activations>>,
    /// The answer to "which weight is not finite", looked for once, when a result is not.
    non_finite: OnceLock<Option<String>>,
}

/// The score of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The model's raw output, or its sigmoid if asked for.
    pub score: f64,
    /// Tokens of the sequence scored, special ones included.
    pub tokens: usize,
    /// Whether query or passage lost tokens to a limit.
    pub truncated: bool,
}

/// A passage's place in a ranking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Index among the passages given.
    pub index: usize,
    /// As [`Score::score`]; the cosine for an embedding model.
    pub score: f64,
    /// As [`Score::tokens`]; of the passage alone for an embedding model.
    pub tokens: usize,
    /// As [`Score::truncated`].
    pub truncated: bool,
}

/// Passages ordered by score.
#[derive(Debug, Default)]
pub struct Ranking {
    /// Best first; equal scores in the order given.
    pub results: Vec<Ranked>,
    /// Passages that could not be scored, by index, in the order given.
    pub failed: Vec<(usize, Error)>,
}

/// The vector of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `hidden_size` elements.
    pub vector: Vec<f32>,
    /// Tokens of the text, special ones included.
    pub tokens: usize,
    /// Whether the text lost tokens to the limit.
    pub truncated: bool,
}

impl Engine {
    /// Opens the model in directory `dir`: config.json, tokenizer.json, and safetensors weights, single or sharded.
    ///
    /// Weights are packed for the CPU once, on all threads; the embedding tables stay in the mapped file.
    pub fn open(dir: impl AsRef<Path>, options: &EngineOptions) -> Result<Self, Error> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let Config::Encoder(config) = checkpoint.config().clone();
        let tokenizer = checkpoint.tokenizer()?;
        let sentence_transformers = checkpoint.sentence_transformers()?;
        let stream = Stream::cpu(options.threads)?;
        let encoder = Encoder::load(&stream, checkpoint, &config)?;
        Ok(Self {
            stream,
            encoder,
            tokenizer,
            sentence_transformers,
            batch_tokens: options.batch_tokens.unwrap_or(BATCH_TOKENS_DEFAULT),
            idle: Mutex::default(),
            non_finite: OnceLock::new(),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &EncoderConfig {
        self.encoder.config()
    }

    /// Whether the model has a scoring head. Without one it embeds, and ranks by cosine.
    pub fn is_reranker(&self) -> bool {
        self.encoder.is_reranker()
    }

    /// Compute threads in use.
    pub fn threads(&self) -> usize {
        self.stream.num_threads()
    }

    fn special_ids(&self) -> SpecialIds<'_> {
        let (before, after) = self.tokenizer.special_ids();
        SpecialIds { before, after }
    }
}
