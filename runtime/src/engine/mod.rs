//! One model and everything needed to run it, behind three calls.

mod decoder;
mod embed;
mod encoder;
mod pool;
mod score;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use outcrop_loader::{Adapter, AllowedCutoffs, Checkpoint, Config, DecoderFamily, Tokenizer};
use outcrop_models::Stream;
use outcrop_models::decoder::{Decoder, DecoderOptions};
use outcrop_models::encoder::Encoder;
use rayon::prelude::*;

use self::decoder::DecoderModel;
use self::encoder::EncoderModel;
use self::pool::Pool;
use crate::{Cutoffs, EngineOptions, Error};

/// Tokens per forward pass unless told otherwise: enough rows for the matrix products to reach their full rate on the CPU,
/// few enough that a batch's activations stay in cache.
const BATCH_TOKENS_DEFAULT: usize = 1024;

/// A model, ready to score.
///
/// `Send` and `Sync`; calls from several threads run at the same time on the same compute threads.
pub struct Engine {
    stream: Stream,
    config: Config,
    model: Model,
    tokenizer: Tokenizer,
    batch_tokens: usize,
    /// The answer to "which weight is not finite", looked for once, when a result is not.
    non_finite: OnceLock<Option<String>>,
}

enum Model {
    Encoder(EncoderModel),
    Decoder(DecoderModel),
}

/// The score of one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The model's raw output, or its sigmoid if asked for; of several cutoffs the deepest.
    pub score: f64,
    /// Tokens of the sequence scored, special ones included.
    pub tokens: usize,
    /// Whether query or passage lost tokens to a limit.
    pub truncated: bool,
    /// The score behind every cutoff, ascending; empty for a model without cutoffs.
    pub layer_scores: Vec<LayerScore>,
    /// Tokens left behind the last layer run, if a compression was asked for.
    pub tokens_after: Option<usize>,
}

/// The score behind one cutoff.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerScore {
    /// The cutoff: layers run.
    pub layer: usize,
    /// As [`Score::score`].
    pub score: f64,
}

/// A passage's place in a ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Index among the passages given.
    pub index: usize,
    /// As [`Score::score`]; the cosine for an embedding model.
    pub score: f64,
    /// As [`Score::tokens`]; of the passage alone for an embedding model.
    pub tokens: usize,
    /// As [`Score::truncated`].
    pub truncated: bool,
    /// As [`Score::layer_scores`].
    pub layer_scores: Vec<LayerScore>,
    /// As [`Score::tokens_after`].
    pub tokens_after: Option<usize>,
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
    /// An encoder's weights are packed for the CPU at once, on all threads; a decoder's layer by layer when a call first runs
    /// that deep. Embedding tables stay in the mapped file. Options that the model does not have are refused by name.
    pub fn open(dir: impl AsRef<Path>, options: &EngineOptions) -> Result<Self, Error> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let config = checkpoint.config().clone();
        check_options(&config, options)?;
        let tokenizer = checkpoint.tokenizer()?;
        let stream = Stream::cpu(options.threads)?;
        let element_type = options.dtype.element_type();
        let model = match &config {
            Config::Encoder(config) => Model::Encoder(EncoderModel {
                sentence_transformers: checkpoint.sentence_transformers()?,
                encoder: Encoder::load(&stream, checkpoint, config, element_type)?,
                idle: Pool::default(),
            }),
            Config::Decoder(config) => {
                let adapters = options.adapters.iter().map(Adapter::open).collect::<Result<_, _>>()?;
                let decoder_options = DecoderOptions {
                    element_type,
                    adapters,
                    heads: options.heads.unwrap_or_default(),
                    attention_softcap: options.attention_softcap,
                    gelu: options.gelu,
                };
                let yes = match config.family {
                    DecoderFamily::Gemma(_) => Some(decoder::yes_token(&tokenizer)?),
                    DecoderFamily::MiniCpm(_) | DecoderFamily::Gemma2(_) => None,
                };
                let decoder = Decoder::open(checkpoint, config, yes, decoder_options)?;
                Model::Decoder(DecoderModel::new(decoder, &tokenizer, options.prefix_sharing)?)
            }
        };
        Ok(Self {
            stream,
            config,
            model,
            tokenizer,
            batch_tokens: options.batch_tokens.unwrap_or(BATCH_TOKENS_DEFAULT),
            non_finite: OnceLock::new(),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the model has a scoring head. Without one it embeds, and ranks by cosine.
    pub fn is_reranker(&self) -> bool {
        match &self.model {
            Model::Encoder(model) => model.encoder.is_reranker(),
            Model::Decoder(_) => true,
        }
    }

    /// Compute threads in use.
    pub fn threads(&self) -> usize {
        self.stream.num_threads()
    }

    /// The cutoffs that the model allows; `None` for a model with one head behind its last layer.
    pub fn allowed_cutoffs(&self) -> Option<AllowedCutoffs> {
        match &self.config {
            Config::Encoder(_) => None,
            Config::Decoder(config) => config.allowed_cutoffs(),
        }
    }

    /// [`Cutoffs::new`] against what this model allows; refused for a model without cutoffs.
    pub fn cutoffs(&self, layers: &[usize]) -> Result<Cutoffs, Error> {
        let allowed = self.allowed_cutoffs().ok_or_else(|| self.no_such_option("cutoff_layers"))?;
        Cutoffs::new(layers, allowed)
    }

    /// Layers whose weights are in memory. An encoder has all; a decoder those below the largest cutoff of any call so far.
    pub fn layers_loaded(&self) -> usize {
        match (&self.model, &self.config) {
            (Model::Decoder(model), _) => model.decoder.layers_loaded(),
            (Model::Encoder(_), Config::Encoder(config)) => config.num_hidden_layers,
            (Model::Encoder(_), Config::Decoder(_)) => 0,
        }
    }

    /// `encode(i)` for every `i < num_items`, on all threads, in order: tokenisation.
    fn encode_all<T: Send>(
        &self,
        num_items: usize,
        encode: impl Fn(usize) -> Result<T, Error> + Sync + Send,
    ) -> Vec<Result<T, Error>> {
        self.stream.run(|| (0..num_items).into_par_iter().map(encode).collect())
    }

    /// The error for a result that is not a number. Looks for the weight to blame once in the engine's life.
    fn non_finite(&self) -> Error {
        let find = || match &self.model {
            Model::Encoder(model) => model.encoder.non_finite_tensor(),
            Model::Decoder(model) => model.decoder.non_finite_tensor(),
        };
        Error::NonFinite { tensor: self.non_finite.get_or_init(find).clone() }
    }

    fn no_such_option(&self, option: &'static str) -> Error {
        Error::NoSuchOption { option, architecture: self.config.architecture().name() }
    }
}

/// Refuses what the model has no use for.
fn check_options(config: &Config, options: &EngineOptions) -> Result<(), Error> {
    let (has_gelu, has_softcap, has_cutoffs, is_decoder) = match config {
        Config::Encoder(_) => (false, false, false, false),
        Config::Decoder(config) => match &config.family {
            DecoderFamily::Gemma(_) => (true, false, false, true),
            DecoderFamily::MiniCpm(_) => (false, false, true, true),
            DecoderFamily::Gemma2(gemma2) => (true, gemma2.attn_logit_softcapping.is_some(), true, true),
        },
    };
    let refused = [
        ("gelu", options.gelu.is_some() && !has_gelu),
        ("attention_softcap", options.attention_softcap && !has_softcap),
        ("heads", options.heads.is_some() && !has_cutoffs),
        ("prefix_sharing", !options.prefix_sharing && !is_decoder),
        ("adapters", !options.adapters.is_empty() && !is_decoder),
    ];
    match refused.into_iter().find(|(_, is_refused)| *is_refused) {
        Some((option, _)) => Err(Error::NoSuchOption { option, architecture: config.architecture().name() }),
        None => Ok(()),
    }
}
