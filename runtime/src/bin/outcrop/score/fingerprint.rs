//! What the results of a run depend on, so that another run goes on from it only if its results would be the same.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use outcrop::Engine;
use outcrop::loader::{Checkpoint, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::args::ScoreArgs;
use crate::error::Error;

/// A file up to this size is read whole, of a larger one samples.
const WHOLE_FILE_BYTES: u64 = 1 << 20;
/// Samples of a larger file, and the length of each.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 4 << 10;
/// Elements that are read at the start, in the middle and at the end of a tensor.
const SAMPLE_ELEMENTS: usize = 256;

/// Each thing that results depend on, by the name of the option that says it.
///
/// Models and inputs are known by what they hold, not by name or date: a copy on another machine is the same. Of large files it is
/// samples: of a model's weights some of every tensor, of an input blocks throughout. What changes no score (threads, batch sizes)
/// is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fingerprint(Map<String, Value>);

impl Fingerprint {
    /// The fingerprint of a run on the model in `model`.
    pub(crate) fn new(args: &ScoreArgs, engine: &Engine, model: &Path) -> Result<Fingerprint, Error> {
        let mut adapters = Vec::new();
        for adapter in &args.network.adapter {
            adapters.push(hex(small_files(adapter, &["json", "safetensors"])
                .map_err(|source| unreadable(adapter, source))?));
        }
        let input = &args.lines.input;
        let input_digest =
            File::open(input).and_then(|file| sampled(&file)).map_err(|source| unreadable(input, source))?;
        let (pair, layers, network) = (&args.pair, &args.layers, &args.network);
        let all = json!({
            "outcrop": env!("CARGO_PKG_VERSION"),
            "--model": hex(model_digest(model)?),
            "--device": device(engine),
            "--dtype": args.engine.dtype.name(),
            "--adapter": adapters,
            "--heads": network.heads.map(|heads| format!("{heads:?}")),
            "--attention-softcap": network.attention_softcap,
            "--gelu": network.gelu.map(|gelu| format!("{gelu:?}")),
            "--input": hex(input_digest),
            "--shard": args.shard.map(|shard| shard.to_string()),
            "--max-line-bytes": args.lines.max_line_bytes,
            "--max-length": pair.max_length,
            "--query-max-length": pair.query_max_length,
            "--normalize": pair.normalize,
            "--query-instruction": pair.query_instruction,
            "--passage-instruction": pair.passage_instruction,
            "--query-instruction-format": pair.query_instruction_format,
            "--passage-instruction-format": pair.passage_instruction_format,
            "--prompt": pair.prompt,
            "--cutoff-layers": layers.cutoff_layers,
            "--compress-ratio": layers.compress_ratio,
            "--compress-layers": layers.compress_layers,
        });
        match all {
            Value::Object(all) => Ok(Fingerprint(all)),
            _ => Ok(Fingerprint(Map::new())),
        }
    }

    /// What is different now: each with its value before and now.
    pub(crate) fn differences(&self, before: &Fingerprint) -> Vec<String> {
        let names = self.0.keys().chain(before.0.keys().filter(|name| !self.0.contains_key(*name)));
        names
            .filter(|name| self.0.get(*name) != before.0.get(*name))
            .map(|name| match name.as_str() {
                "--model" => "the model's files have changed, or it is another model".to_owned(),
                "--input" => "the input has changed, or it is another file".to_owned(),
                "--adapter" => "the adapters have changed, or they are others".to_owned(),
                name => {
                    let show = |value: Option<&Value>| match value {
                        None | Some(Value::Null) => "not given".to_owned(),
                        Some(value) => value.to_string(),
                    };
                    format!("{name} was {} and is {}", show(before.0.get(name)), show(self.0.get(name)))
                }
            })
            .collect()
    }
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::Read { from: path.display().to_string(), source }
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What computes: scores differ in their last bits between kinds of devices.
fn device(engine: &Engine) -> String {
    let devices = engine.device().devices.iter();
    // `cuda:0 (NVIDIA H200)`: which one of several of a kind does not matter.
    let mut kinds: Vec<&str> =
        devices.map(|name| name.split_once(" (").map_or(name.as_str(), |(_, kind)| kind)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    format!("{} on {}", kinds.join(", ").trim_end_matches(')'), instruction_set())
}

/// The vector instructions that the CPU's kernels would use.
fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "x86-64 with AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "x86-64 with AVX2";
        }
    }
    std::env::consts::ARCH
}

/// The small files of a model, and samples of every tensor that is there.
fn model_digest(dir: &Path) -> Result<Sha256, Error> {
    let mut digest = small_files(dir, &["json"]).map_err(|source| unreadable(dir, source))?;
    let checkpoint = Checkpoint::open(dir)?;
    for info in checkpoint.tensors() {
        digest.update(format!("{} {:?} {:?}\n", info.name, info.dtype, info.shape));
        // Tensors of other types are no weights: positions, for one.
        if let Ok(Tensor { data, .. }) = checkpoint.tensor(info.name) {
            match data {
                TensorData::F32(elements) => sample(&mut digest, elements, |x| x.to_bits()),
                TensorData::F16(elements) => sample(&mut digest, elements, |x| x.to_bits().into()),
                TensorData::BF16(elements) => sample(&mut digest, elements, |x| x.to_bits().into()),
            }
        }
    }
    Ok(digest)
}

fn sample<T>(digest: &mut Sha256, elements: &[T], bits: impl Fn(&T) -> u32) {
    let count = SAMPLE_ELEMENTS.min(elements.len());
    let last = elements.len() - count;
    for start in [0, last / 2, last] {
        elements[start..start + count].iter().for_each(|element| digest.update(bits(element).to_le_bytes()));
    }
}

/// The files of a directory with one of these extensions: names and contents.
fn small_files(dir: &Path, extensions: &[&str]) -> io::Result<Sha256> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if extensions.contains(&extension.as_str()) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut digest = Sha256::new();
    for path in paths {
        digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        digest.update([0]);
        let content = fs::read(&path)?;
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    Ok(digest)
}

/// The length of a file and its content, or blocks of it from the first to the last.
fn sampled(mut file: &File) -> io::Result<Sha256> {
    let length = file.metadata()?.len();
    let mut digest = Sha256::new();
    digest.update(length.to_le_bytes());
    if length <= WHOLE_FILE_BYTES {
        io::copy(&mut file.take(WHOLE_FILE_BYTES), &mut HashWriter(&mut digest))?;
        return Ok(digest);
    }
    for i in 0..SAMPLES {
        let start = (length - SAMPLE_BYTES) / (SAMPLES - 1) * i;
        let start = if i == SAMPLES - 1 { length - SAMPLE_BYTES } else { start };
        file.seek(SeekFrom::Start(start))?;
        io::copy(&mut file.take(SAMPLE_BYTES), &mut HashWriter(&mut digest))?;
    }
    Ok(digest)
}

/// Bytes written into a digest.
struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
