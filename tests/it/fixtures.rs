//! Where fixtures are and how they read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outcrop::{Compression, Device, EmbedOptions, Engine, EngineOptions, Pooling, ScoreOptions};
use outcrop_models::{CpuStream, Stream};
use serde_json::Value;

/// `tests/fixtures/<name>`; `OUTCROP_FIXTURES` names another folder, for a machine that has the test program without the sources.
pub(crate) fn path(name: &str) -> PathBuf {
    let fixtures = std::env::var_os("OUTCROP_FIXTURES").map(PathBuf::from);
    fixtures.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")).join(name)
}

/// The model directories whose names begin with `prefix`: the fixtures, and those of a full oracle when `OUTCROP_ORACLE`
/// names its directory.
pub(crate) fn models(prefix: &str) -> Vec<PathBuf> {
    let mut roots = vec![path("")];
    roots.extend(std::env::var_os("OUTCROP_ORACLE").map(PathBuf::from));
    let mut found = Vec::new();
    for root in roots {
        for entry in std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with(prefix) && path.join("expected.json").exists() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn json(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn engine(dir: impl AsRef<Path>) -> Engine {
    Engine::open(dir, &EngineOptions { threads: Some(2), ..on_cpu() }).unwrap()
}

/// A case of an `expected.json` of a reranker.
pub(crate) struct PairCase {
    pub(crate) name: String,
    pub(crate) pairs: Vec<(String, String)>,
    /// Without cutoffs and compression: those are checked types, and the model has a say in them.
    pub(crate) options: ScoreOptions,
    pub(crate) cutoff_layers: Option<Vec<usize>>,
    pub(crate) compress_ratio: Option<usize>,
    pub(crate) compress_layers: Option<Vec<usize>>,
    /// Adapter directories, in order.
    pub(crate) adapters: Vec<PathBuf>,
    /// Token ids of each pair, where the oracle recorded them.
    pub(crate) input_ids: Option<Vec<Vec<u32>>>,
    /// Tokens of the query part and of the prompt part of each pair, where recorded.
    pub(crate) parts: Option<Vec<(usize, usize)>>,
    /// The scores, one list per cutoff, or `None` where the reference fails.
    pub(crate) scores: Option<Vec<Vec<f64>>>,
}

impl PairCase {
    /// The options with what the model checks, or its refusal.
    pub(crate) fn options_for(&self, engine: &Engine) -> Result<ScoreOptions, outcrop::Error> {
        let cutoff_layers = self.cutoff_layers.as_deref().map(|layers| engine.cutoffs(layers)).transpose()?;
        let layers = self.compress_layers.as_deref().unwrap_or(Compression::DEFAULT_LAYERS);
        let compression = self.compress_ratio.map(|ratio| Compression::new(ratio, layers)).transpose()?;
        Ok(ScoreOptions { cutoff_layers, compression, ..self.options.clone() })
    }
}

/// The cases of a reranker's `expected.json`.
pub(crate) fn pair_cases(dir: &Path) -> Vec<PairCase> {
    let expected = json(dir.join("expected.json"));
    // A full oracle does not record the constructor's arguments; the same case of the fixture of the same name does.
    let recorded = json(path(&dir.file_name().unwrap().to_string_lossy()).join("expected.json"));
    let cases = expected["cases"].as_array().unwrap().iter();
    cases
        .filter(|case| !NOT_OURS.contains(&case["name"].as_str().unwrap()))
        .map(|case| {
            let same_case = recorded["cases"].as_array().unwrap().iter().find(|c| c["name"] == case["name"]);
            pair_case(dir, &expected, case, same_case.map_or(&Value::Null, |case| &case["constructor"]))
        })
        .collect()
}

/// Cases of the full oracle about the reference's own types and options: scores in bf16, a loader of data.
const NOT_OURS: &[&str] = &["bf16_cpu", "use_dataloader"];

fn pair_case(dir: &Path, expected: &Value, case: &Value, constructor: &Value) -> PairCase {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let pairs = match case.get("pairs") {
        Some(pairs) => {
            pairs.as_array().unwrap().iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
        }
        None => case["pair_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| &expected["pairs"][id.as_str().unwrap()])
            .map(|pair| (text(&pair["query"]), text(&pair["passage"])))
            .collect(),
    };
    let given = &case["options"];
    let option = |name: &str| given.get(name).or_else(|| constructor.get(name));
    let count = |name: &str| option(name).and_then(Value::as_u64).map(|x| x as usize);
    let texts = |name: &str| match option(name) {
        None => Vec::new(),
        Some(Value::Array(texts)) => texts.iter().map(text).collect(),
        Some(one) => vec![text(one)],
    };
    let string = |name: &str| texts(name).pop();
    let layers = |name: &str| match option(name)? {
        Value::Array(layers) => Some(layers.iter().map(|x| x.as_u64().unwrap() as usize).collect()),
        one => Some(vec![one.as_u64().unwrap() as usize]),
    };
    let defaults = ScoreOptions::default();
    let scores = case.get("scores").and_then(Value::as_array);
    PairCase {
        name: text(&case["name"]),
        pairs,
        options: ScoreOptions {
            max_length: count("max_length"),
            truncate: true,
            query_max_length: count("query_max_length"),
            normalize: given.get("normalize").is_some_and(|x| x == true),
            query_instruction: string("query_instruction_for_rerank"),
            passage_instruction: string("passage_instruction_for_rerank"),
            query_instruction_format: string("query_instruction_format")
                .unwrap_or(defaults.query_instruction_format),
            passage_instruction_format: string("passage_instruction_format")
                .unwrap_or(defaults.passage_instruction_format),
            prompt: string("prompt"),
            cutoff_layers: None,
            compression: None,
        },
        cutoff_layers: layers("cutoff_layers"),
        compress_ratio: count("compress_ratio"),
        compress_layers: layers("compress_layer").or_else(|| layers("compress_layers")),
        adapters: texts("peft_path").into_iter().map(|name| dir.join(name)).collect(),
        input_ids: case.get("input_ids").map(id_lists),
        parts: case.get("query_and_prompt_lengths").map(|lengths| {
            let length = |pair: &Value, i: usize| pair[i].as_u64().unwrap() as usize;
            lengths.as_array().unwrap().iter().map(|pair| (length(pair, 0), length(pair, 1))).collect()
        }),
        scores: scores.map(|scores| match scores.first() {
            Some(Value::Array(_)) => scores.iter().map(numbers).collect(),
            _ => vec![scores.iter().map(|x| x.as_f64().unwrap()).collect()],
        }),
    }
}

/// A case of an `expected.json` of an embedder.
pub(crate) struct TextCase {
    pub(crate) name: String,
    pub(crate) texts: Vec<String>,
    pub(crate) options: EmbedOptions,
    pub(crate) input_ids: Vec<Vec<u32>>,
    pub(crate) vectors: Vec<Vec<f64>>,
}

/// The cases of an embedder's `expected.json`.
pub(crate) fn text_cases(dir: &Path) -> Vec<TextCase> {
    let expected = json(dir.join("expected.json"));
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let cases = expected["cases"].as_array().unwrap().iter();
    cases
        .map(|case| {
            let constructor = |name: &str| case.get("constructor").and_then(|c| c.get(name));
            let is_query = case.get("method").is_some_and(|m| m == "encode_queries");
            let max_length = case["options"].get("max_length").and_then(Value::as_u64).map(|x| x as usize);
            TextCase {
                name: text(&case["name"]),
                texts: case["text_ids"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|id| text(&expected["texts"][id.as_str().unwrap()]))
                    .collect(),
                options: EmbedOptions {
                    max_length,
                    normalize: constructor("normalize_embeddings").and_then(Value::as_bool),
                    pooling: constructor("pooling_method").map(|p| match p.as_str() {
                        Some("mean") => Pooling::Mean,
                        other => panic!("pooling {other:?}"),
                    }),
                    instruction: constructor("query_instruction_for_retrieval")
                        .filter(|_| is_query)
                        .map(text),
                    ..Default::default()
                },
                input_ids: id_lists(&case["input_ids"]),
                vectors: case["vectors"].as_array().unwrap().iter().map(numbers).collect(),
            }
        })
        .collect()
}

fn id_lists(lists: &Value) -> Vec<Vec<u32>> {
    let ids = |list: &Value| list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    lists.as_array().unwrap().iter().map(ids).collect()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Every tensor of a safetensors file with the range of its bytes.
pub(crate) fn safetensors_header(file: &Path) -> Vec<(String, (usize, usize))> {
    let bytes = std::fs::read(file).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, tensor)| {
            let offset = |i: usize| 8 + header_len + tensor["data_offsets"][i].as_u64().unwrap() as usize;
            (name.clone(), (offset(0), offset(1)))
        })
        .collect()
}

/// Whether `name` is one of the comma-separated words of `REQUIRE`: things a test may not skip for want of.
pub(crate) fn required(name: &str) -> bool {
    std::env::var("REQUIRE").is_ok_and(|list| list.split(',').any(|word| word == name))
}

/// Copies a model directory, following links, so that a test can break the copy.
pub(crate) fn copy_model(name: &str) -> tempfile::TempDir {
    let target = tempfile::tempdir().unwrap();
    copy_dir(&path(name), target.path());
    target
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The default options on the CPU, whatever else the machine has: what the references are compared with.
pub(crate) fn on_cpu() -> EngineOptions {
    EngineOptions { device: Device::Cpu, ..EngineOptions::default() }
}

/// A CPU stream of two threads, and the same as a pool.
pub(crate) fn cpu() -> (Stream, Arc<CpuStream>) {
    let host = CpuStream::new(Some(2)).unwrap();
    (Stream::Cpu(Arc::clone(&host)), host)
}
