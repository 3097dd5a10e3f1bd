//! What of a checkpoint is kept, in which type, and the config.json that says so.

use std::fs;
use std::path::Path;

use outcrop::loader::writer::TensorSpec;
use outcrop::loader::{self, Checkpoint, Config, DecoderConfig, DecoderFamily};
use outcrop::manifest;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::dtype::Dtype;
use crate::error::Error;

/// A conversion, checked before anything is written.
pub(crate) struct Plan {
    /// What is written, in the order of the names with their numbers counted: layer 2 before layer 10.
    pub(crate) tensors: Vec<TensorSpec>,
    /// The new config.json.
    pub(crate) config: Value,
    /// Integer tensors. No network reads them: they hold what can be computed.
    buffers: Vec<String>,
    /// Layers and heads that were left out, in words.
    cut: Option<String>,
}

impl Plan {
    /// Decides what is kept. Without a type each tensor keeps its own; without a cutoff every layer stays.
    ///
    /// # Errors
    ///
    /// The model has no cutoffs, or not this one; a tensor that is kept is not there or of an unknown type.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        dtype: Option<Dtype>,
        cutoff: Option<usize>,
    ) -> Result<Plan, Error> {
        let cut = cutoff.map(|layers| Cut::new(checkpoint.config(), layers)).transpose()?;
        check_present(checkpoint, cut.as_ref())?;
        let mut plan = Plan {
            tensors: Vec::new(),
            config: config(checkpoint, dtype, cut.as_ref())?,
            buffers: Vec::new(),
            cut: cut.as_ref().map(Cut::note),
        };
        for tensor in checkpoint.tensors() {
            if cut.as_ref().is_some_and(|cut| !cut.keeps(tensor.name)) {
                continue;
            }
            match tensor.dtype {
                loader::Dtype::F32 | loader::Dtype::F16 | loader::Dtype::BF16 => {
                    plan.tensors.push(TensorSpec {
                        name: tensor.name.to_owned(),
                        dtype: dtype.map_or(tensor.dtype, Dtype::stored),
                        shape: tensor.shape.to_owned(),
                    });
                }
                found if is_integer(found) => plan.buffers.push(tensor.name.to_owned()),
                _ => {
                    // Says which types can be read.
                    checkpoint.tensor(tensor.name)?;
                }
            }
        }
        plan.tensors.sort_by_cached_key(|tensor| natural_order(&tensor.name));
        Ok(plan)
    }

    /// What was left out of the weights, one line each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.cut.iter().cloned().collect();
        if !self.buffers.is_empty() {
            notes.push(format!("left out, because integers are no weights: {}", self.buffers.join(", ")));
        }
        notes
    }
}

/// A cutoff that the model allows.
struct Cut<'a> {
    config: &'a DecoderConfig,
    layers: usize,
    /// Scoring heads that a run to a cutoff up to this one can read, by either rule: one per allowed cutoff.
    heads: usize,
}

impl<'a> Cut<'a> {
    fn new(config: &'a Config, layers: usize) -> Result<Cut<'a>, Error> {
        let architecture = config.architecture().name();
        let Config::Decoder(config) = config else { return Err(Error::NoCutoffs { architecture }) };
        let Some(allowed) = config.allowed_cutoffs() else { return Err(Error::NoCutoffs { architecture }) };
        if !allowed.contains(layers) {
            return Err(Error::Cutoff { layers, allowed });
        }
        let heads = allowed.iter().filter(|cutoff| *cutoff <= layers).count();
        Ok(Cut { config, layers, heads })
    }

    fn keeps(&self, name: &str) -> bool {
        let number_behind = |prefix: &str| name.strip_prefix(prefix)?.split('.').next()?.parse().ok();
        let kept = |number: Option<usize>, limit: usize| number.is_none_or(|number| number < limit);
        kept(number_behind("model.layers."), self.layers) && kept(number_behind("lm_head."), self.heads)
    }

    fn note(&self) -> String {
        format!("kept the first {} of {} layers and their heads", self.layers, self.config.num_hidden_layers)
    }
}

/// Checks that everything that is kept is there. Shards may be missing if all that lies in them is cut off.
fn check_present(checkpoint: &Checkpoint, cut: Option<&Cut>) -> Result<(), Error> {
    match cut {
        Some(cut) => {
            let stored: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name).collect();
            for weight in manifest(cut.config) {
                if cut.keeps(&weight.name) && stored.binary_search(&weight.name.as_str()).is_err() {
                    // Says which shard is missing, or that the tensor is in none.
                    checkpoint.tensor(&weight.name)?;
                }
            }
            Ok(())
        }
        None => match checkpoint.missing_shards().first() {
            Some(shard) => Err(Error::MissingFile { path: (*shard).to_owned() }),
            None => Ok(()),
        },
    }
}

/// The model's config.json with what has changed.
fn config(checkpoint: &Checkpoint, dtype: Option<Dtype>, cut: Option<&Cut>) -> Result<Value, Error> {
    let mut fields: Map<String, Value> = read_json(&checkpoint.dir().join("config.json"))?;
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    if let Some(dtype) = dtype {
        set("torch_dtype", json!(dtype.torch_name()));
    }
    if let Some(Cut { config, layers, .. }) = cut {
        set("num_hidden_layers", json!(layers));
        if let DecoderFamily::MiniCpm(minicpm) = &config.family
            && *layers != config.num_hidden_layers
        {
            // What a layer adds is multiplied by scale_depth / sqrt(num_hidden_layers) (SPEC 6). The layers were trained
            // with the quotient of the whole model: it must not change, or every score would.
            let factor = minicpm.scale_depth / (config.num_hidden_layers as f64).sqrt();
            set("scale_depth", json!(factor * (*layers as f64).sqrt()));
        }
    }
    // The name of torch_dtype in newer configurations.
    if let (Some(dtype), Some(newer)) = (dtype, fields.get_mut("dtype")) {
        *newer = json!(dtype.torch_name());
    }
    Ok(Value::Object(fields))
}

/// Reads a JSON file of the model.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let failed = |source| Error::Read { from: path.display().to_string(), source };
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn is_integer(dtype: loader::Dtype) -> bool {
    use loader::Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}

/// A key by which names sort with the numbers in them as numbers.
fn natural_order(name: &str) -> Vec<(Option<u64>, String)> {
    name.split('.').map(|part| (part.parse().ok(), part.to_owned())).collect()
}
