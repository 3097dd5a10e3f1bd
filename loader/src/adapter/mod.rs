//! LoRA adapters: which weights of a base model they change, and by what (SPEC 9.4; Hu et al. 2021).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::weights::{self, Weights};
use crate::{Checkpoint, Error, Tensor};

mod config;
#[cfg(test)]
mod tests;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLED_WEIGHTS: &str = "adapter_model.bin";

/// What PEFT puts before the name that a module has in the base model.
const PREFIX: &str = "base_model.model.";

/// The directory of a LoRA adapter in the layout of PEFT, its weights mapped into memory.
///
/// Opening reads `adapter_config.json` and the header of `adapter_model.safetensors`. The files must not be changed
/// while the adapter is open.
#[derive(Debug)]
pub struct Adapter {
    dir: PathBuf,
    weights: Weights,
    scale: f32,
    /// By the name of the tensor in the base model.
    changes: BTreeMap<String, Stored>,
}

/// The names of a change's tensors in the file.
#[derive(Debug)]
enum Stored {
    LowRank { a: String, b: String },
    Replacement(String),
}

/// What an adapter does to one tensor of the base model.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// The matrix `W [out, in]` becomes `W + scale * B A`.
    LowRank {
        /// `A [r, in]`.
        a: Tensor<'a>,
        /// `B [out, r]`.
        b: Tensor<'a>,
        /// `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
        scale: f32,
    },
    /// The tensor is replaced by this one, of the same shape.
    Replacement(Tensor<'a>),
}

impl Adapter {
    /// Opens the adapter directory `dir`.
    ///
    /// An adapter is accepted only if all that it does can be told by [`Adapter::change`]: options of PEFT that give
    /// the same tensors another meaning are refused, and so are tensors of any other kind.
    ///
    /// # Errors
    ///
    /// The configuration or the weights are missing, damaged, or of a kind that is not supported; every such case has
    /// its own [`Error`], which names the file.
    pub fn open(dir: impl AsRef<Path>) -> Result<Adapter, Error> {
        let dir = dir.as_ref();
        let config = config::read(dir)?;
        let Some(weights) = Weights::open_single(dir, WEIGHTS)? else {
            weights::refuse_pickle(dir, PICKLED_WEIGHTS, WEIGHTS)?;
            return Err(Error::NoWeights { dir: dir.to_owned(), expected: WEIGHTS });
        };
        let path = dir.join(WEIGHTS);
        let mut changes = BTreeMap::new();
        for (module, parts) in modules(&path, &weights)? {
            let stored = parts.stored(&path, &module)?;
            if let Stored::LowRank { a, b } = &stored {
                check_rank(&weights, a, 0, config.rank)?;
                check_rank(&weights, b, 1, config.rank)?;
            }
            changes.insert(format!("{module}.weight"), stored);
        }
        if changes.is_empty() {
            return Err(Error::EmptyAdapter { path });
        }
        Ok(Adapter { dir: dir.to_owned(), weights, scale: config.scale, changes })
    }

    /// The adapter directory, as given to [`Adapter::open`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses an adapter whose names, shapes or types do not fit the checkpoint.
    ///
    /// Of a tensor whose shard is not there only the name is checked.
    ///
    /// # Errors
    ///
    /// [`Error::AdapterTarget`], [`Error::AdapterShape`], [`Error::UnsupportedDtype`].
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        for (name, stored) in &self.changes {
            if !checkpoint.contains(name) {
                return Err(Error::AdapterTarget {
                    path: self.dir.join(WEIGHTS),
                    tensor: name.clone(),
                    dir: checkpoint.dir().to_owned(),
                    nearest: checkpoint.weights.nearest(name),
                });
            }
            let found = match self.load(stored)? {
                // Both have two dimensions, checked by `check_rank`.
                Change::LowRank { a, b, .. } => vec![b.shape[0], a.shape[1]],
                Change::Replacement(tensor) => tensor.shape.to_owned(),
            };
            let Some(target) = checkpoint.weights.info(name) else { continue };
            if target.shape != found {
                return Err(Error::AdapterShape {
                    path: self.dir.join(WEIGHTS),
                    tensor: name.clone(),
                    file: target.file.to_owned(),
                    expected: target.shape.into(),
                    found: found.into(),
                });
            }
        }
        Ok(())
    }

    /// What the adapter does to the tensor `name` of the base model, for example
    /// `model.layers.0.self_attn.q_proj.weight`; `None` if nothing.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedDtype`].
    pub fn change(&self, name: &str) -> Result<Option<Change<'_>>, Error> {
        self.changes.get(name).map(|stored| self.load(stored)).transpose()
    }

    fn load(&self, stored: &Stored) -> Result<Change<'_>, Error> {
        Ok(match stored {
            Stored::LowRank { a, b } => {
                Change::LowRank { a: self.weights.tensor(a)?, b: self.weights.tensor(b)?, scale: self.scale }
            }
            Stored::Replacement(name) => Change::Replacement(self.weights.tensor(name)?),
        })
    }
}

/// What a tensor of the file is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    A,
    B,
    Saved,
}

/// The names of the tensors that the file has for one module.
#[derive(Default)]
struct Parts {
    a: Option<String>,
    b: Option<String>,
    saved: Option<String>,
}

impl Parts {
    fn stored(self, path: &Path, module: &str) -> Result<Stored, Error> {
        let half = |found, missing| {
            Err(Error::AdapterHalf { path: path.to_owned(), module: module.to_owned(), found, missing })
        };
        match self {
            Parts { a: Some(a), b: Some(b), saved: None } => Ok(Stored::LowRank { a, b }),
            Parts { a: None, b: None, saved: Some(saved) } => Ok(Stored::Replacement(saved)),
            Parts { a: Some(_), b: None, saved: None } => half("lora_A", "lora_B"),
            Parts { a: None, b: _, saved: None } => half("lora_B", "lora_A"),
            Parts { saved: Some(_), .. } => {
                Err(Error::AdapterTwice { path: path.to_owned(), module: module.to_owned() })
            }
        }
    }
}

/// The tensors of the file by the modules of the base model that they change.
fn modules(path: &Path, weights: &Weights) -> Result<BTreeMap<String, Parts>, Error> {
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    for info in weights.infos() {
        // The module as it was before training, which PEFT keeps beside the one to be saved.
        if info.name.contains(".original_module.") {
            continue;
        }
        let Some((module, role)) = role(info.name) else {
            return Err(Error::AdapterTensor { path: path.to_owned(), tensor: info.name.to_owned() });
        };
        let parts = modules.entry(module.clone()).or_default();
        let part = match role {
            Role::A => &mut parts.a,
            Role::B => &mut parts.b,
            Role::Saved => &mut parts.saved,
        };
        // The same part with and without the adapter's name.
        if part.replace(info.name.to_owned()).is_some() {
            return Err(Error::AdapterTwice { path: path.to_owned(), module });
        }
    }
    Ok(modules)
}

/// The module that the tensor `name` of an adapter belongs to, and its role there; `None` if it has no known one.
///
/// PEFT writes names without the adapter's own name, `default`, and has it in its models in memory; files of both
/// kinds are met.
fn role(name: &str) -> Option<(String, Role)> {
    const ENDINGS: [(&str, Role); 4] = [
        (".lora_A.weight", Role::A),
        (".lora_A.default.weight", Role::A),
        (".lora_B.weight", Role::B),
        (".lora_B.default.weight", Role::B),
    ];
    let name = name.strip_prefix(PREFIX)?;
    for (ending, role) in ENDINGS {
        if let Some(module) = name.strip_suffix(ending) {
            return Some((module.to_owned(), role));
        }
    }
    // A saved module may be a container, so that the rest of a tensor's name comes after the adapter's.
    let name = name.replacen(".modules_to_save.default.", ".", 1);
    let of_peft = |part: &str| part.starts_with("lora_") || matches!(part, "modules_to_save" | "base_layer");
    if name.split('.').any(of_peft) {
        return None;
    }
    name.strip_suffix(".weight").map(|module| (module.to_owned(), Role::Saved))
}

/// Checks that the tensor `name` is a matrix whose dimension `dim` is the rank.
fn check_rank(weights: &Weights, name: &str, dim: usize, rank: usize) -> Result<(), Error> {
    match weights.info(name) {
        Some(info) if info.shape.len() != 2 || info.shape[dim] != rank => Err(Error::AdapterRank {
            path: info.file.to_owned(),
            tensor: name.to_owned(),
            expected: if dim == 0 { format!("[{rank}, in]") } else { format!("[out, {rank}]") },
            found: info.shape.to_owned(),
        }),
        _ => Ok(()),
    }
}
