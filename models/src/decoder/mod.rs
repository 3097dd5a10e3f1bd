//! Gemma, MiniCPM and Gemma 2: causal decoders that score a pair at its last token, behind any of several layers.
//!
//! Every family is a residual stream `x` with attention and a gated MLP added to it, layer by layer:
//!
//! ```text
//! x = embed_tokens[id] * scale
//! layer:  x += mix(attention(norm(x)));  x += mix(mlp(norm(x)))                gemma.rs, minicpm.rs, gemma2.rs
//! score = head · norm(x of the last token), behind every requested cutoff     pass.rs
//! ```
//!
//! [`Decoder`] is the model on disk. [`Decoder::stack`] makes ready the part of it that a run needs: layers below the largest
//! cutoff, the heads read. [`Pass`] is one forward pass of a stack over a batch, step by step; which step comes when is the
//! caller's to decide.

mod activations;
mod attention;
mod batch;
mod gated_mlp;
mod gemma;
mod gemma2;
mod manifest;
mod minicpm;
mod pass;
mod prefixes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outcrop_kernels::rope::RopeTable;
use outcrop_kernels::{Buffer, CpuStream, ElementType, Stream};
use outcrop_loader::{Adapter, Change, Checkpoint, DecoderConfig, DecoderFamily, Gelu, Tensor};

pub use activations::{Activations, Step};
pub use batch::{Batch, Group};
pub use manifest::{WeightInfo, WeightPart, manifest};
pub use pass::{Pass, PendingScores};

use crate::Error;
use crate::weights::{EmbeddingTable, Reader, RmsConvention, RootMeanSquare, check_folding, elements};

const EMBED_TOKENS: &str = "model.embed_tokens.weight";

/// Longest sequence: rotary positions have no table, so this bounds memory, not the model (SPEC 6).
pub const MAX_TOKENS: usize = 32_768;

/// Which head reads the state behind a cutoff (SPEC 1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadRule {
    /// As the reference: MiniCPM by layer; Gemma 2 by the place of the cutoff among those asked for, so that a single cutoff is
    /// always read by the first head.
    #[default]
    Reference,
    /// The head of the layer.
    ByLayer,
}

/// How a decoder is read and run. The defaults are the reference's.
#[derive(Default)]
pub struct DecoderOptions {
    /// The type matrices are held in; `None` for the stored one.
    pub element_type: Option<ElementType>,
    /// Merged in this order.
    pub adapters: Vec<Adapter>,
    /// Which head reads which cutoff.
    pub heads: HeadRule,
    /// Whether Gemma 2 bounds its attention scores, as its configuration says and the reference does not (SPEC 1.3).
    pub attention_softcap: bool,
    /// The GELU of the Gemma families; `None` for that of the configuration.
    pub gelu: Option<Gelu>,
    /// Whether the norms before attention and MLP are folded into their matrices: of Gemma and MiniCPM, on a GPU, from weights in f32.
    pub fold_norms: bool,
}

/// A decoder: its files, and the layers that have been asked for so far.
pub struct Decoder {
    config: DecoderConfig,
    checkpoint: Arc<Checkpoint>,
    options: DecoderOptions,
    /// Row of the head, for the family whose head is the vocabulary: the token "Yes" (SPEC 5).
    yes_token_id: Option<u32>,
    loaded: Mutex<Loaded>,
}

/// What runs so far have needed. It stays where it is: recorded launches point to it.
#[derive(Default)]
struct Loaded {
    embedding_table: Option<Arc<EmbeddingTable>>,
    /// Layers `0 ..` as far as any run went.
    layers: Vec<Arc<Layer>>,
    norm: Option<Arc<RootMeanSquare>>,
    /// By the name of their tensor.
    heads: HashMap<String, Arc<Buffer>>,
    rope: Option<Arc<RopeTable>>,
}

/// A layer of any family.
enum Layer {
    Gemma(gemma::Layer),
    MiniCpm(minicpm::Layer),
    Gemma2(gemma2::Layer),
}

/// The part of a decoder that runs to a set of cutoffs need.
pub struct Stack<'a> {
    decoder: &'a Decoder,
    layers: Vec<Arc<Layer>>,
    embedding_table: Arc<EmbeddingTable>,
    norm: Arc<RootMeanSquare>,
    /// `[hidden_size]` each, one per cutoff.
    heads: Vec<Arc<Buffer>>,
    rope: Arc<RopeTable>,
}

impl Decoder {
    /// A decoder over `checkpoint`. Names and shapes of all weights are checked; none is read.
    ///
    /// Tensors in shards that are not there are no error until a run needs them. `yes_token_id` is the token whose logit is the
    /// score of [`DecoderFamily::Gemma`]; the other families do without.
    pub fn open(
        checkpoint: Arc<Checkpoint>,
        config: &DecoderConfig,
        yes_token_id: Option<u32>,
        options: DecoderOptions,
    ) -> Result<Self, Error> {
        for weight in manifest(config) {
            match checkpoint.tensor(&weight.name) {
                Ok(tensor) => drop(tensor.expect_shape(&weight.shape)?),
                Err(outcrop_loader::Error::MissingShard { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for adapter in &options.adapters {
            adapter.check(&checkpoint)?;
            if let Some(Change::LowRank { .. }) = adapter.change(EMBED_TOKENS)? {
                return Err(Error::LowRankEmbedding { dir: adapter.dir().to_owned() });
            }
        }
        if options.fold_norms {
            for weight in manifest(config).iter().filter(|weight| weight.reads_norm()) {
                let name = &weight.name;
                let is_changed =
                    |adapter: &Adapter| adapter.change(name).is_ok_and(|change| change.is_some());
                if let Ok(tensor) = checkpoint.tensor(name)
                    && !options.adapters.iter().any(is_changed)
                {
                    check_folding(name, elements(&tensor).element_type())?;
                }
            }
        }
        if let Some(id) = yes_token_id.filter(|id| *id as usize >= config.vocab_size) {
            return Err(Error::UnknownToken { id, vocab_size: config.vocab_size });
        }
        Ok(Self { config: config.clone(), checkpoint, options, yes_token_id, loaded: Mutex::default() })
    }

    /// The model's configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Layers in memory: those below the largest cutoff of any run so far.
    pub fn layers_loaded(&self) -> usize {
        self.loaded().layers.len()
    }

    /// Makes ready what runs to `cutoffs` over sequences of up to `max_tokens` tokens need. Reads layers that no earlier run needed
    /// and puts them where `stream` runs; nothing above the last cutoff is touched.
    ///
    /// A decoder serves one stream, the same in every call. `cutoffs` ascend, and each is between 1 and the number of layers and
    /// allowed by the configuration; a model without cutoffs takes the number of its layers. Not to be called from a compute thread.
    pub fn stack(
        &self,
        stream: &Stream,
        host: &CpuStream,
        cutoffs: &[usize],
        max_tokens: usize,
    ) -> Result<Stack<'_>, Error> {
        let reader = self.reader(stream, host);
        // Held while weights are read: a second caller that needs them waits instead of reading them as well.
        let mut loaded = self.loaded();
        let embedding_table = get_or_load(&mut loaded.embedding_table, || {
            EmbeddingTable::as_stored(stream, &self.embedding_tensor()?)
        })?;
        let norm = get_or_load(&mut loaded.norm, || self.rms_norm(&reader, "model.norm"))?;
        let mut heads = Vec::with_capacity(cutoffs.len());
        for (nth, cutoff) in cutoffs.iter().enumerate() {
            heads.push(self.head(&reader, &mut loaded.heads, nth, *cutoff)?);
        }
        let layers_run = cutoffs.last().copied().unwrap_or(0);
        while loaded.layers.len() < layers_run {
            let layer = self.load_layer(&reader, loaded.layers.len())?;
            loaded.layers.push(Arc::new(layer));
        }
        loaded.rope = loaded.rope.take().filter(|table| table.num_positions() >= max_tokens);
        let rope = get_or_load(&mut loaded.rope, || {
            // Doubled, so that a stream of ever longer texts does not make a table for each.
            let num_positions = max_tokens.next_power_of_two().max(512);
            Ok(RopeTable::new(stream, self.config.rope_theta, self.config.head_dim, num_positions)?)
        })?;
        let layers = loaded.layers[..layers_run].to_vec();
        Ok(Stack { decoder: self, layers, embedding_table, norm, heads, rope })
    }

    /// The first tensor, among those that the runs so far have read, that holds a NaN or an infinity.
    ///
    /// Reads all of them, so it is for explaining a failure only.
    pub fn non_finite_tensor(&self) -> Option<String> {
        let loaded = self.layers_loaded();
        let is_read = |weight: &WeightInfo| match weight.part {
            WeightPart::Layer(n) => n < loaded,
            WeightPart::Always | WeightPart::Head(_) => true,
        };
        let found = manifest(&self.config).into_iter().filter(is_read).find(|weight| {
            let tensor = self.checkpoint.tensor(&weight.name);
            tensor.is_ok_and(|tensor| {
                let is_finite = elements(&tensor).all_finite();
                tensor.release();
                !is_finite
            })
        });
        found.map(|weight| weight.name)
    }

    /// The word embeddings: the stored table, or the one that the last adapter with a table of its own brings.
    fn embedding_tensor(&self) -> Result<Tensor<'_>, Error> {
        let mut table = self.checkpoint.tensor(EMBED_TOKENS)?;
        for adapter in &self.options.adapters {
            if let Some(Change::Replacement(replacement)) = adapter.change(EMBED_TOKENS)? {
                table = replacement;
            }
        }
        Ok(table)
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        // A layer is pushed once it is whole: a panic leaves nothing half-done.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader<'a>(&'a self, stream: &'a Stream, host: &'a CpuStream) -> Reader<'a> {
        Reader {
            stream,
            host,
            checkpoint: &self.checkpoint,
            adapters: &self.options.adapters,
            element_type: self.options.element_type,
            fold_norms: self.options.fold_norms,
        }
    }

    fn load_layer(&self, reader: &Reader<'_>, n: usize) -> Result<Layer, Error> {
        let (config, options) = (&self.config, &self.options);
        Ok(match &config.family {
            DecoderFamily::Gemma(gemma) => {
                Layer::Gemma(gemma::Layer::load(reader, config, gemma, options, n)?)
            }
            DecoderFamily::MiniCpm(minicpm) => {
                Layer::MiniCpm(minicpm::Layer::load(reader, config, minicpm, n)?)
            }
            DecoderFamily::Gemma2(gemma2) => {
                Layer::Gemma2(gemma2::Layer::load(reader, config, gemma2, options, n)?)
            }
        })
    }

    fn rms_norm(&self, reader: &Reader<'_>, name: &str) -> Result<RootMeanSquare, Error> {
        let convention = match self.config.family {
            DecoderFamily::MiniCpm(_) => RmsConvention::Factor,
            DecoderFamily::Gemma(_) | DecoderFamily::Gemma2(_) => RmsConvention::FactorMinusOne,
        };
        reader.rms_norm(name, self.config.hidden_size, self.config.rms_norm_eps, convention)
    }

    /// Whether a cutoff's head is chosen by its place in the list of cutoffs: then its score depends on the others asked for.
    pub fn heads_by_place(&self) -> bool {
        matches!(self.config.family, DecoderFamily::Gemma2(_)) && self.options.heads == HeadRule::Reference
    }

    /// The head that reads the state behind `cutoff`, the `nth` of those asked for.
    fn head(
        &self,
        reader: &Reader<'_>,
        heads: &mut HashMap<String, Arc<Buffer>>,
        nth: usize,
        cutoff: usize,
    ) -> Result<Arc<Buffer>, Error> {
        let config = &self.config;
        // Name of the tensor, the row of it, and how many it has.
        let (name, row, rows) = match &config.family {
            DecoderFamily::Gemma(gemma) => {
                let name = if gemma.tie_word_embeddings { EMBED_TOKENS } else { "lm_head.weight" };
                (name.to_owned(), self.yes_token_id.unwrap_or(0) as usize, config.vocab_size)
            }
            DecoderFamily::MiniCpm(minicpm) if !minicpm.head_multi => {
                ("lm_head.linear_head.weight".to_owned(), 0, 1)
            }
            DecoderFamily::MiniCpm(minicpm) => {
                (format!("lm_head.{}.linear_head.weight", cutoff - minicpm.start_layer), 0, 1)
            }
            DecoderFamily::Gemma2(gemma2) => {
                let k = match self.options.heads {
                    HeadRule::Reference => nth,
                    HeadRule::ByLayer => (cutoff - gemma2.start_layer) / gemma2.layer_sep,
                };
                (format!("lm_head.{k}.linear_head.weight"), 0, 1)
            }
        };
        if let Some(head) = heads.get(&name) {
            return Ok(Arc::clone(head));
        }
        let head = reader.upload(&reader.row(&name, row, rows, config.hidden_size)?)?;
        Ok(Arc::clone(heads.entry(name).or_insert(Arc::new(head))))
    }

    /// The factor on the word embeddings; in f32, to which the reference rounds it.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type of the activations")]
    fn embedding_scale(&self) -> f32 {
        match &self.config.family {
            DecoderFamily::MiniCpm(minicpm) => minicpm.scale_emb as f32,
            DecoderFamily::Gemma(_) | DecoderFamily::Gemma2(_) => {
                (self.config.hidden_size as f64).sqrt() as f32
            }
        }
    }

    /// The bound of the heads' output.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type of the scores")]
    fn final_softcap(&self) -> Option<f32> {
        match &self.config.family {
            DecoderFamily::Gemma2(gemma2) => gemma2.final_logit_softcapping.map(|cap| cap as f32),
            DecoderFamily::Gemma(_) | DecoderFamily::MiniCpm(_) => None,
        }
    }
}

/// What stands in `place`, put there first if it is empty.
fn get_or_load<T>(
    place: &mut Option<Arc<T>>,
    load: impl FnOnce() -> Result<T, Error>,
) -> Result<Arc<T>, Error> {
    if let Some(loaded) = place {
        return Ok(Arc::clone(loaded));
    }
    Ok(Arc::clone(place.insert(Arc::new(load()?))))
}

impl Stack<'_> {
    /// Layers from the first to the last cutoff.
    pub fn layers_run(&self) -> usize {
        self.layers.len()
    }
}

/// Refuses a sequence that the model cannot hold.
pub fn check_sequence(config: &DecoderConfig, input_ids: &[u32]) -> Result<(), Error> {
    if let Some(id) = input_ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(Error::UnknownToken { id: *id, vocab_size: config.vocab_size });
    }
    if input_ids.len() > MAX_TOKENS {
        return Err(Error::TooLong { tokens: input_ids.len(), max_tokens: MAX_TOKENS });
    }
    Ok(())
}
