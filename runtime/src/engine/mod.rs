//! One model and everything needed to run it, behind three calls.

mod decoder;
mod embed;
mod encoded;
mod encoder;
mod measure;
mod replica;
mod score;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use outcrop_loader::{Adapter, AllowedCutoffs, Checkpoint, Config, DecoderFamily, Tokenizer};
use outcrop_models::decoder::{Decoder, DecoderOptions};
use outcrop_models::encoder::Encoder;
use outcrop_models::kernels::LoadedKernel;
use outcrop_models::{CpuStream, ElementType, Stream};
use rayon::prelude::*;

use self::decoder::DecoderModel;
pub(crate) use self::encoded::{Encoded, Mode, Terms};
use self::encoder::EncoderModel;
pub use self::measure::Timings;
use self::replica::Replica;
use crate::device::{self, DeviceChoice};
use crate::{Cutoffs, Device, Dtype, EngineOptions, Error, Warning};

/// Tokens per forward pass on the CPU unless told otherwise: enough rows for the matrix products to reach their full rate, few
/// enough that a batch's activations stay in cache.
const CPU_BATCH_TOKENS_DEFAULT: usize = 1024;
/// The same on a GPU: enough tiles for several rounds of all multiprocessors, little beside the weights.
const GPU_BATCH_TOKENS_DEFAULT: usize = 16 << 10;

/// A GPU that has no room for batches of this many tokens is of no use.
const BATCH_TOKENS_MIN: usize = 256;

/// A model, ready to score.
///
/// `Send` and `Sync`; calls from several threads run at the same time on the same compute threads, and on a GPU one after the other,
/// without a pause between them.
pub struct Engine {
    /// Tokenises, and merges adapters.
    host: Arc<CpuStream>,
    choice: DeviceChoice,
    /// The type of matrices on the CPU.
    held_type: ElementType,
    config: Config,
    model: Model,
    tokenizer: Tokenizer,
    batch_tokens: AtomicUsize,
    warnings: Mutex<Vec<Warning>>,
    /// The answer to "which weight is not finite", looked for once, when a result is not.
    non_finite: OnceLock<Option<String>>,
    /// Time that calls have spent on tokenisation so far.
    tokenizing_ns: AtomicU64,
    /// One measurement at a time.
    measuring: Mutex<()>,
}

enum Model {
    Encoder(EncoderModel),
    Decoder(DecoderModel),
}

impl Model {
    /// The first device's; the others are like it.
    fn stream(&self) -> &Stream {
        match self {
            Self::Encoder(model) => &model.replicas[0].stream,
            Self::Decoder(model) => &model.replicas[0].stream,
        }
    }
}

/// What came of one sequence.
pub(crate) struct Output {
    /// A score for every cutoff, one for a model without cutoffs, or a vector.
    pub(crate) values: Vec<f32>,
    pub(crate) tokens: usize,
    pub(crate) truncated: bool,
    /// Tokens left behind the last layer run.
    pub(crate) tokens_after: usize,
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
    /// An encoder's weights are put where it runs at once; a decoder's layer by layer when a call first runs that deep. On the CPU
    /// embedding tables stay in the mapped file. The memory of a GPU's forward passes is allocated here, all of it. Options that the
    /// model does not have are refused by name.
    pub fn open(dir: impl AsRef<Path>, options: &EngineOptions) -> Result<Self, Error> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let config = checkpoint.config().clone();
        check_options(&config, options)?;
        let host = CpuStream::new(options.threads)?;
        // A vocabulary of 250 000 pieces takes about as long to read as a GPU to start and to take in an encoder's weights.
        let (choice, model, tokenizer) = std::thread::scope(|scope| {
            let tokenizer = Tokenizing(scope.spawn(|| checkpoint.tokenizer()));
            let (streams, choice) = open_streams(&config, &checkpoint, options, &host)?;
            let (model, tokenizer) = open_model(&config, &checkpoint, options, &host, streams, tokenizer)?;
            Ok::<_, Error>((choice, model, tokenizer))
        })?;
        let batch_tokens_default = match model.stream() {
            Stream::Cpu(_) => CPU_BATCH_TOKENS_DEFAULT,
            Stream::Cuda(_) => GPU_BATCH_TOKENS_DEFAULT,
        };
        let engine = Self {
            host,
            choice,
            held_type: options.dtype.element_type().unwrap_or(stored_type(&checkpoint)),
            config,
            model,
            tokenizer,
            batch_tokens: options.batch_tokens.unwrap_or(batch_tokens_default).into(),
            warnings: Mutex::default(),
            non_finite: OnceLock::new(),
            tokenizing_ns: AtomicU64::default(),
            measuring: Mutex::default(),
        };
        engine.within_memory(&BATCH_TOKENS_MIN.into(), |batch_tokens| match &engine.model {
            Model::Encoder(model) => model.reserve(batch_tokens),
            Model::Decoder(model) => model.reserve(batch_tokens),
        })?;
        Ok(engine)
    }

    /// Where the model runs.
    pub fn device(&self) -> &DeviceChoice {
        &self.choice
    }

    /// What has been noticed since this was last asked, that changes how calls are run but not what they return.
    pub fn take_warnings(&self) -> Vec<Warning> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kernels that the first GPU has loaded so far; none on the CPU.
    pub fn loaded_kernels(&self) -> Vec<LoadedKernel> {
        self.model.stream().loaded_kernels()
    }

    /// The type in which matrices are held; on a GPU also the type in which they are multiplied.
    pub fn element_type(&self) -> ElementType {
        match self.model.stream() {
            Stream::Cpu(_) => self.held_type,
            Stream::Cuda(stream) => stream.operand_type(),
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Elements of a state, and of a vector.
    pub fn hidden_size(&self) -> usize {
        match &self.config {
            Config::Encoder(config) => config.hidden_size,
            Config::Decoder(config) => config.hidden_size,
        }
    }

    /// Whether passages can be compressed.
    pub fn can_compress(&self) -> bool {
        matches!(&self.config, Config::Decoder(config) if matches!(config.family, DecoderFamily::Gemma2(_)))
    }

    /// Whether the model has a scoring head. Without one it embeds, and ranks by cosine.
    pub fn is_reranker(&self) -> bool {
        match &self.model {
            Model::Encoder(model) => model.encoder().is_reranker(),
            Model::Decoder(_) => true,
        }
    }

    /// Compute threads in use.
    pub fn threads(&self) -> usize {
        self.host.num_threads()
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
            (Model::Decoder(model), _) => model.decoder().layers_loaded(),
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
        self.tokenizing(|| self.host.run(|| (0..num_items).into_par_iter().map(encode).collect()))
    }

    /// Calls `run` with the token budget of a batch; again with half of it as long as a GPU has too little memory and the budget
    /// exceeds the longest sequence, as far as `run` has found it out.
    fn within_memory<T>(
        &self,
        longest: &AtomicUsize,
        run: impl Fn(usize) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            let budget = self.batch_tokens.load(Ordering::Relaxed);
            match run(budget) {
                Err(error)
                    if error.is_out_of_memory() && budget / 2 >= longest.load(Ordering::Relaxed).max(1) =>
                {
                    let smaller = budget / 2;
                    self.release_memory();
                    // Another call may have lowered it already, and has said so.
                    let order = Ordering::Relaxed;
                    if self.batch_tokens.compare_exchange(budget, smaller, order, order).is_ok() {
                        self.warn(Warning::BatchTokensLowered { from: budget, to: smaller });
                    }
                }
                result => return result,
            }
        }
    }

    /// Gives back the memory of forward passes that no call is using.
    fn release_memory(&self) {
        match &self.model {
            Model::Encoder(model) => model.replicas.iter().for_each(Replica::release),
            Model::Decoder(model) => model.replicas.iter().for_each(Replica::release),
        }
    }

    fn warn(&self, warning: Warning) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        // Halved several times in a row, it is one thing that has happened.
        if let (Some(Warning::BatchTokensLowered { to, .. }), Warning::BatchTokensLowered { to: lower, .. }) =
            (warnings.last_mut(), &warning)
        {
            *to = *lower;
        } else {
            warnings.push(warning);
        }
    }

    /// The error for a result that is not a number. Looks for the weight to blame once in the engine's life.
    fn non_finite(&self) -> Error {
        let find = || match &self.model {
            Model::Encoder(model) => model.encoder().non_finite_tensor(),
            Model::Decoder(model) => model.decoder().non_finite_tensor(),
        };
        Error::NonFinite { tensor: self.non_finite.get_or_init(find).clone() }
    }

    fn no_such_option(&self, option: &'static str) -> Error {
        Error::NoSuchOption { option, architecture: self.config.architecture().name() }
    }
}

/// The tokenizer, while it is being read.
struct Tokenizing<'scope>(std::thread::ScopedJoinHandle<'scope, Result<Tokenizer, outcrop_loader::Error>>);

impl Tokenizing<'_> {
    fn wait(self) -> Result<Tokenizer, Error> {
        match self.0.join() {
            Ok(tokenizer) => Ok(tokenizer?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Where the model runs.
fn open_streams(
    config: &Config,
    checkpoint: &Checkpoint,
    options: &EngineOptions,
    host: &Arc<CpuStream>,
) -> Result<(Vec<Stream>, DeviceChoice), Error> {
    let (streams, choice) = match (options.dtype, &options.device) {
        (Dtype::F32, Device::Auto) => device::streams(&Device::Cpu, ElementType::F32, host)?,
        _ => device::streams(&options.device, operand_type(config, checkpoint, options.dtype), host)?,
    };
    if options.fold_norms
        && let Some(reason) = streams.iter().find_map(|stream| objection_to_folding(config, stream))
    {
        return Err(Error::CannotFoldNorms { reason });
    }
    streams.iter().for_each(|stream| stream.set_programmatic_launch(options.programmatic_launch));
    Ok((streams, choice))
}

/// Why the norms of a model that has such norms cannot be folded where it runs.
fn objection_to_folding(config: &Config, stream: &Stream) -> Option<&'static str> {
    let is_gemma =
        matches!(config, Config::Decoder(config) if matches!(config.family, DecoderFamily::Gemma(_)));
    match stream {
        Stream::Cpu(_) => Some(
            "the CPU computes in f32 and would save nothing; run on a GPU (--device cuda), or leave it out",
        ),
        Stream::Cuda(_) if is_gemma && stream.operand_type() == ElementType::F16 => Some(
            "Gemma's residual stream exceeds the range of f16, in which products would read it; take bf16 (--dtype bf16), or leave it out",
        ),
        Stream::Cuda(_) => None,
    }
}

/// A replica of the model on every stream.
fn open_model(
    config: &Config,
    checkpoint: &Arc<Checkpoint>,
    options: &EngineOptions,
    host: &CpuStream,
    streams: Vec<Stream>,
    tokenizer: Tokenizing<'_>,
) -> Result<(Model, Tokenizer), Error> {
    let record_graphs = options.graphs;
    let element_type = |stream: &Stream| match stream {
        Stream::Cpu(_) => options.dtype.element_type(),
        Stream::Cuda(_) => Some(operand_type(config, checkpoint, options.dtype)),
    };
    match config {
        Config::Encoder(encoder_config) => {
            let load = |stream: Stream| {
                let element_type = element_type(&stream);
                let encoder =
                    Encoder::load(&stream, host, Arc::clone(checkpoint), encoder_config, element_type)?;
                Ok(Replica::new(stream, encoder))
            };
            let model = EncoderModel {
                sentence_transformers: checkpoint.sentence_transformers()?,
                replicas: streams.into_iter().map(load).collect::<Result<_, Error>>()?,
                record_graphs,
            };
            Ok((Model::Encoder(model), tokenizer.wait()?))
        }
        Config::Decoder(decoder_config) => {
            let tokenizer = tokenizer.wait()?;
            let yes = match decoder_config.family {
                DecoderFamily::Gemma(_) => Some(decoder::yes_token(&tokenizer)?),
                DecoderFamily::MiniCpm(_) | DecoderFamily::Gemma2(_) => None,
            };
            let open = |stream: Stream| {
                let adapters = options.adapters.iter().map(Adapter::open).collect::<Result<_, _>>()?;
                let decoder_options = DecoderOptions {
                    element_type: element_type(&stream),
                    adapters,
                    heads: options.heads.unwrap_or_default(),
                    attention_softcap: options.attention_softcap,
                    gelu: options.gelu,
                    fold_norms: options.fold_norms,
                };
                let decoder = Decoder::open(Arc::clone(checkpoint), decoder_config, yes, decoder_options)?;
                Ok(Replica::new(stream, decoder))
            };
            let replicas = streams.into_iter().map(open).collect::<Result<_, Error>>()?;
            let model = DecoderModel::new(replicas, &tokenizer, options.prefix_sharing, record_graphs)?;
            Ok((Model::Decoder(model), tokenizer))
        }
    }
}

/// The type in which a GPU multiplies: as asked for or stored, and for weights stored in f32 the type that has room for the family's
/// activations: Gemma's exceed the range of f16.
fn operand_type(config: &Config, checkpoint: &Checkpoint, dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::BF16,
        Dtype::F32 => ElementType::F32,
        Dtype::Auto => match stored_type(checkpoint) {
            ElementType::F32 if matches!(config, Config::Decoder(_)) => ElementType::BF16,
            ElementType::F32 => ElementType::F16,
            stored => stored,
        },
    }
}

/// The type of the weights in the files: the first one's.
fn stored_type(checkpoint: &Checkpoint) -> ElementType {
    match checkpoint.tensors().next().map(|tensor| tensor.dtype) {
        Some(outcrop_loader::Dtype::F16) => ElementType::F16,
        Some(outcrop_loader::Dtype::BF16) => ElementType::BF16,
        _ => ElementType::F32,
    }
}

/// Refuses what the model has no use for.
fn check_options(config: &Config, options: &EngineOptions) -> Result<(), Error> {
    let (has_gelu, has_softcap, has_cutoffs, is_decoder, folds) = match config {
        Config::Encoder(_) => (false, false, false, false, false),
        Config::Decoder(config) => match &config.family {
            DecoderFamily::Gemma(_) => (true, false, false, true, true),
            DecoderFamily::MiniCpm(_) => (false, false, true, true, true),
            DecoderFamily::Gemma2(gemma2) => {
                (true, gemma2.attn_logit_softcapping.is_some(), true, true, false)
            }
        },
    };
    let refused = [
        ("gelu", options.gelu.is_some() && !has_gelu),
        ("attention_softcap", options.attention_softcap && !has_softcap),
        ("heads", options.heads.is_some() && !has_cutoffs),
        ("prefix_sharing", !options.prefix_sharing && !is_decoder),
        ("adapters", !options.adapters.is_empty() && !is_decoder),
        // Gemma 2 has norms behind its blocks too, which cannot be folded.
        ("fold_norms", options.fold_norms && !folds),
    ];
    match refused.into_iter().find(|(_, is_refused)| *is_refused) {
        Some((option, _)) => Err(Error::NoSuchOption { option, architecture: config.architecture().name() }),
        None => Ok(()),
    }
}
