//! A model directory: its configuration, its weights, and the way to its other files.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::weights::{self, Weights};
use crate::{Config, Error, SentenceTransformers, Tensor, TensorInfo, Tokenizer, json};

#[cfg(test)]
mod tests;

const CONFIG: &str = "config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const PICKLED_WEIGHTS: &str = "pytorch_model.bin";

/// A model directory: its configuration, and its weights mapped into memory.
///
/// Opening reads `config.json` and the headers of the weight files, no weights. The files must not be changed while
/// the checkpoint is open; replacing them by renaming is safe.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Config,
    pub(crate) weights: Weights,
}

impl Checkpoint {
    /// Opens the model directory `dir`: checks `config.json`, maps `model.safetensors` or, if there is none, the
    /// shards that `model.safetensors.index.json` names.
    ///
    /// A shard that is not there is an error only when one of its tensors is asked for, so that a model of which
    /// only the lower layers are wanted needs only their shards.
    ///
    /// # Errors
    ///
    /// The directory, the configuration or the weights are missing, damaged, or of a kind that is not supported;
    /// every such case has its own [`Error`], which names the file.
    pub fn open(dir: impl AsRef<Path>) -> Result<Checkpoint, Error> {
        let dir = dir.as_ref();
        match std::fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::NotADirectory { path: dir.to_owned() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::NoDirectory { path: dir.to_owned() });
            }
            Err(source) => return Err(Error::Read { path: dir.to_owned(), source }),
        }
        let config_path = dir.join(CONFIG);
        let Some(bytes) = json::read_if_present(&config_path, json::MAX_JSON_BYTES)? else {
            return Err(Error::NoConfig { dir: dir.to_owned() });
        };
        let config = Config::parse(&config_path, &bytes)?;

        let weights = match Weights::open_single(dir, WEIGHTS)? {
            Some(weights) => Some(weights),
            None => Weights::open_sharded(dir, INDEX)?,
        };
        let Some(weights) = weights else {
            weights::refuse_pickle(dir, PICKLED_WEIGHTS, WEIGHTS)?;
            let expected = "model.safetensors or model.safetensors.index.json";
            return Err(Error::NoWeights { dir: dir.to_owned(), expected });
        };
        Ok(Checkpoint { dir: dir.to_owned(), config, weights })
    }

    /// The model directory, as given to [`Checkpoint::open`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The checked configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the checkpoint lists a tensor of this name, whatever its type and whether or not its shard is there.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    /// The tensor `name`, borrowed from the mapped file.
    ///
    /// The format does not promise alignment. A tensor whose bytes do not start at a multiple of its element size is
    /// copied to an aligned place at its first use, and the copy is kept as long as the checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::MissingShard`], [`Error::UnsupportedDtype`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.weights.tensor(name)
    }

    /// All tensors whose shard is there, of any type, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.weights.infos()
    }

    /// The shards that the index names and the directory does not have, sorted by path.
    pub fn missing_shards(&self) -> Vec<&Path> {
        self.weights.missing_shards()
    }

    /// The model's tokenizer, read anew at each call.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::open`].
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::open(&self.dir)
    }

    /// What sentence-transformers recorded about the model; `None` without a `modules.json`.
    ///
    /// # Errors
    ///
    /// As [`SentenceTransformers::open`].
    pub fn sentence_transformers(&self) -> Result<Option<SentenceTransformers>, Error> {
        SentenceTransformers::open(&self.dir)
    }
}
