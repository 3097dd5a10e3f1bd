//! What the sentence-transformers library writes beside an embedder: how to pool, whether to normalise, how long a
//! text may be.

use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::json::{self, Fields};

#[cfg(test)]
mod tests;

const MODULES: &str = "modules.json";
const POOLING_CONFIG: &str = "config.json";
const TRANSFORMER_CONFIG: &str = "sentence_bert_config.json";

/// Above any real limit; no configuration has a longer position table.
const MAX_TOKENS: usize = 1 << 24;

/// How sentence-transformers turns the last hidden state into one vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentenceTransformers {
    /// Which tokens the vector is made from.
    pub pooling: Pooling,
    /// Whether the vector is divided by its Euclidean length.
    pub normalize: bool,
    /// The longest input in tokens, special ones included, if the model states one.
    pub max_seq_length: Option<usize>,
}

/// Which tokens an embedding is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's state.
    Cls,
    /// The mean over all tokens, special ones included.
    Mean,
}

impl SentenceTransformers {
    /// Reads `modules.json`, the pooling module's `config.json` and `sentence_bert_config.json` in the model
    /// directory `dir`. `None` if there is no `modules.json`.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedModules`] for anything but Transformer, Pooling and perhaps Normalize, in this order;
    /// [`Error::UnsupportedPooling`]; and the errors of missing and damaged files.
    pub fn open(dir: &Path) -> Result<Option<SentenceTransformers>, Error> {
        let path = dir.join(MODULES);
        let Some(value) = json::read_value_if_present(&path)? else { return Ok(None) };
        let modules = Module::list(&path, &value)?;

        let (pooling_dir, normalize) = match modules.as_slice() {
            [first, pooling] if first.is_transformer() && pooling.is("Pooling") => (pooling.dir, false),
            [first, pooling, last]
                if first.is_transformer() && pooling.is("Pooling") && last.is("Normalize") =>
            {
                (pooling.dir, true)
            }
            _ => {
                let found = modules.iter().map(Module::to_string).collect::<Vec<_>>().join(", ");
                return Err(Error::UnsupportedModules { path, found });
            }
        };
        let pooling_path = json::join_inside(dir, pooling_dir, &path)?.join(POOLING_CONFIG);
        Ok(Some(SentenceTransformers {
            pooling: Pooling::open(&pooling_path)?,
            normalize,
            max_seq_length: max_seq_length(&dir.join(TRANSFORMER_CONFIG))?,
        }))
    }
}

/// One entry of `modules.json`.
struct Module<'a> {
    /// The last component of the Python class path. The components before it differ between versions.
    class: &'a str,
    dir: &'a str,
}

impl Module<'_> {
    fn list<'a>(path: &'a Path, value: &'a Value) -> Result<Vec<Module<'a>>, Error> {
        let Value::Array(entries) = value else {
            return Err(json::field_error(path, "the top level", "a list of modules", Some(value)));
        };
        let module = |entry| {
            let fields = Fields::new(path, entry)?;
            let class_path = fields.required_str("type")?;
            let class = class_path.rsplit_once('.').map_or(class_path, |(_, class)| class);
            Ok(Module { class, dir: fields.required_str("path")? })
        };
        entries.iter().map(module).collect()
    }

    fn is(&self, class: &str) -> bool {
        self.class == class
    }

    /// The weights are looked for in the model directory itself, so that is where this module must be.
    fn is_transformer(&self) -> bool {
        self.is("Transformer") && self.dir.is_empty()
    }
}

impl std::fmt::Display for Module<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.dir {
            "" => f.write_str(self.class),
            dir => write!(f, "{} (in {dir})", self.class),
        }
    }
}

impl Pooling {
    /// Reads the `config.json` of a pooling module. Newer files name one mode, older ones have a switch for each.
    fn open(path: &Path) -> Result<Pooling, Error> {
        const SWITCH: &str = "pooling_mode_";
        let Some(value) = json::read_value_if_present(path)? else {
            return Err(Error::Read { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() });
        };
        let fields = Fields::new(path, &value)?;
        let mut modes = Vec::new();
        if let Some(mode) = fields.str("pooling_mode")? {
            modes.push(mode);
        } else {
            for (field, _) in fields.iter().filter(|(field, _)| field.starts_with(SWITCH)) {
                if fields.bool(field)? == Some(true) {
                    modes.push(&field[SWITCH.len()..]);
                }
            }
        }
        match modes.as_slice() {
            ["cls" | "cls_token"] => Ok(Pooling::Cls),
            ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
            [] => Err(fields.error("pooling_mode", "a pooling mode")),
            _ => Err(Error::UnsupportedPooling { path: path.to_owned(), found: modes.join(" and ") }),
        }
    }
}

/// The limit in `sentence_bert_config.json`, if there is that file and it states one.
fn max_seq_length(path: &Path) -> Result<Option<usize>, Error> {
    let Some(value) = json::read_value_if_present(path)? else { return Ok(None) };
    let fields = Fields::new(path, &value)?;
    // Lower-casing before the tokenizer; published models leave that to the tokenizer's own normaliser.
    if fields.bool("do_lower_case")? == Some(true) {
        return Err(fields.error("do_lower_case", "false"));
    }
    fields.count("max_seq_length", 1..=MAX_TOKENS)
}
