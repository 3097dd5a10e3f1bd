//! The layer scheduler: what a run does not need is not read, and what a model does not have is refused.

#[cfg(target_os = "linux")]
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use outcrop::loader::Dtype as StoredType;
#[cfg(target_os = "linux")]
use outcrop::loader::{Checkpoint, TensorData};
use outcrop::{
    AllowedCutoffs, Compression, Cutoffs, Dtype, Engine, EngineOptions, Gelu, HeadRule, ScoreOptions, Warning,
};
use serde_json::{Value, json};

use crate::fixtures::{copy_model, on_cpu, path};
use crate::random_network::RandomNetwork;

/// Eight layers, heads behind layers 2 to 8.
fn config() -> Value {
    json!({
        "architectures": ["CostWiseGemmaForCausalLM"], "vocab_size": 1100, "layer_wise": true,
        "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64,
        "start_layer": 2, "layer_sep": 1,
    })
}

fn network(max_shard_bytes: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let network = RandomNetwork { config: &config(), stored_type: StoredType::F32, seed: 5 };
    network.write(dir.path(), "gemma", max_shard_bytes);
    dir
}

fn open(dir: impl AsRef<Path>) -> Engine {
    Engine::open(dir, &EngineOptions { threads: Some(2), ..on_cpu() }).unwrap()
}

fn at(engine: &Engine, layers: &[usize]) -> ScoreOptions {
    ScoreOptions { cutoff_layers: Some(engine.cutoffs(layers).unwrap()), ..Default::default() }
}

fn score(engine: &Engine, options: &ScoreOptions) -> Result<Vec<f64>, outcrop::Error> {
    let scores = engine.score(&[("what is a panda?", "a bear"), ("what is a panda?", "")], options)?;
    Ok(scores.into_iter().map(|score| score.unwrap().score).collect())
}

/// Every tensor has a file of its own, and those that a run does not need are deleted.
#[test]
fn a_shallow_cutoff_needs_no_file_of_deeper_layers_and_of_other_heads() {
    let dir = network(1);
    let index = crate::fixtures::json(dir.path().join("model.safetensors.index.json"));
    let whole = open(dir.path());
    let expected = score(&whole, &at(&whole, &[3])).unwrap();
    let mut deleted = 0;
    for (tensor, file) in index["weight_map"].as_object().unwrap() {
        let layer = tensor.strip_prefix("model.layers.").map(|rest| rest.split('.').next().unwrap());
        let is_deep = layer.is_some_and(|n| n.parse::<usize>().unwrap() >= 3);
        let is_other_head = tensor.starts_with("lm_head.") && tensor != "lm_head.0.linear_head.weight";
        if is_deep || is_other_head {
            std::fs::remove_file(dir.path().join(file.as_str().unwrap())).unwrap();
            deleted += 1;
        }
    }
    assert_eq!(deleted, 5 * 11 + 6);
    let engine = open(dir.path());
    assert_eq!(score(&engine, &at(&engine, &[3])).unwrap(), expected);
    assert_eq!(engine.layers_loaded(), 3);
    for (layers, tensor) in [(&[4][..], "model.layers.3."), (&[2, 3], "lm_head.1.linear_head")] {
        let error = score(&engine, &at(&engine, layers)).unwrap_err().to_string();
        assert!(error.contains(tensor) && error.contains("model-000"), "{error}");
    }
    // A failed call leaves the engine as it was.
    assert_eq!(score(&engine, &at(&engine, &[3])).unwrap(), expected);
}

/// A published checkpoint in miniature: several layers to a file. The later files are missing but for the last, which holds the
/// final norm and the heads.
#[test]
fn a_checkpoint_without_its_later_shards_scores_at_a_shallow_cutoff() {
    let dir = copy_model("gemma2_lightweight");
    let whole = open(dir.path());
    let expected = score(&whole, &at(&whole, &[2])).unwrap();
    let index = crate::fixtures::json(dir.path().join("model.safetensors.index.json"));
    let needed: Vec<&str> = index["weight_map"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(tensor, _)| {
            !tensor.starts_with("model.layers.")
                || tensor.starts_with("model.layers.0.")
                || tensor.starts_with("model.layers.1.")
        })
        .map(|(_, file)| file.as_str().unwrap())
        .collect();
    let mut deleted = 0;
    for file in index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap()) {
        if !needed.contains(&file) && std::fs::remove_file(dir.path().join(file)).is_ok() {
            deleted += 1;
        }
    }
    assert!(deleted >= 1, "every shard is needed: {index}");
    let engine = open(dir.path());
    assert_eq!(score(&engine, &at(&engine, &[2])).unwrap(), expected);
    assert!(score(&engine, &ScoreOptions::default()).is_err());
}

/// A page fault maps the pages around it too, at most those of one folio of the page cache.
#[cfg(target_os = "linux")]
const FOLIO_BYTES: usize = 2 << 20;

/// Kilobytes of the mapped file's layers that are in this process's memory, by layer, less a folio at both ends of each layer.
#[cfg(target_os = "linux")]
fn resident_kib_of_layers(file: &Path) -> BTreeMap<usize, usize> {
    let resident = resident_pages(file);
    let header = crate::fixtures::safetensors_header(file);
    let mut ranges: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (tensor, (start, end)) in header {
        let Some(layer) = tensor.strip_prefix("model.layers.") else { continue };
        let range = ranges.entry(layer.split('.').next().unwrap().parse().unwrap()).or_insert((start, end));
        *range = (range.0.min(start), range.1.max(end));
    }
    let count = |(start, end): (usize, usize)| {
        let pages = (start + FOLIO_BYTES).div_ceil(4096)..(end - FOLIO_BYTES) / 4096;
        pages.filter(|page| resident[*page]).count() * 4
    };
    ranges.into_iter().map(|(layer, range)| (layer, count(range))).collect()
}

/// Which pages of a mapped file are in this process's memory, as the kernel says.
#[cfg(target_os = "linux")]
fn resident_pages(file: &Path) -> Vec<bool> {
    use std::io::{Read, Seek, SeekFrom};
    let file = std::fs::canonicalize(file).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let mut resident = vec![false; std::fs::metadata(&file).unwrap().len().div_ceil(4096) as usize];
    for line in maps.lines().filter(|line| line.ends_with(file.to_str().unwrap())) {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|x| u64::from_str_radix(x, 16).unwrap());
        let offset = u64::from_str_radix(fields.nth(1).unwrap(), 16).unwrap();
        let mut entries = vec![0; ((end - start) / 4096 * 8) as usize];
        pagemap.seek(SeekFrom::Start(start / 4096 * 8)).unwrap();
        pagemap.read_exact(&mut entries).unwrap();
        for (i, entry) in entries.chunks_exact(8).enumerate() {
            let is_present = u64::from_le_bytes(entry.try_into().unwrap()) >> 63 == 1;
            resident[(offset / 4096) as usize + i] |= is_present;
        }
    }
    resident
}

#[test]
#[cfg(target_os = "linux")]
fn pages_of_deeper_layers_are_never_resident() {
    // Five layers of 13 MiB, far larger than what a page fault drags in.
    let mut config = config();
    config["hidden_size"] = 512.into();
    config["intermediate_size"] = 2048.into();
    config["num_hidden_layers"] = 5.into();
    let dir = tempfile::tempdir().unwrap();
    RandomNetwork { config: &config, stored_type: StoredType::F32, seed: 5 }.write(
        dir.path(),
        "gemma",
        u64::MAX,
    );
    let file = dir.path().join("model.safetensors");
    let engine = open(dir.path());
    // Opening checks names and shapes and reads no weight.
    assert_eq!(engine.layers_loaded(), 0);
    let resident = resident_kib_of_layers(&file);
    assert!(resident.len() == 5 && resident.values().all(|kib| *kib == 0), "{resident:?}");
    engine.prepare(&at(&engine, &[2])).unwrap();
    assert_eq!(engine.layers_loaded(), 2);
    score(&engine, &at(&engine, &[2])).unwrap();
    assert_eq!(engine.layers_loaded(), 2);
    let resident = resident_kib_of_layers(&file);
    assert!((2..5).all(|layer| resident[&layer] == 0), "{resident:?}");
    // A deeper call reads what is missing, and no more.
    score(&engine, &at(&engine, &[3])).unwrap();
    assert_eq!(engine.layers_loaded(), 3);
    let resident = resident_kib_of_layers(&file);
    assert!((3..5).all(|layer| resident[&layer] == 0), "{resident:?}");
    // That the count sees a tensor that is read: through a mapping of our own.
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let TensorData::F32(weights) = checkpoint.tensor("model.layers.3.mlp.up_proj.weight").unwrap().data
    else {
        panic!("not f32");
    };
    assert!(weights.iter().sum::<f32>().is_finite());
    let resident = resident_kib_of_layers(&file);
    assert!(resident[&3] >= 4000 && resident[&4] == 0, "{resident:?}");
}

#[test]
fn several_cutoffs_come_from_one_call_and_the_score_is_the_deepest() {
    let engine = open(path("minicpm_layerwise"));
    let scores = engine.score(&[("a", "b")], &at(&engine, &[2, 4, 6])).unwrap();
    let score = scores[0].as_ref().unwrap();
    assert_eq!(score.layer_scores.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [2, 4, 6]);
    assert_eq!(score.score, score.layer_scores[2].score);
    assert_eq!(score.tokens_after, None);
    // Unless told otherwise, the last layer.
    let scores = engine.score(&[("a", "b")], &ScoreOptions::default()).unwrap();
    assert_eq!(scores[0].as_ref().unwrap().layer_scores, score.layer_scores[2..]);
    let engine = open(path("gemma"));
    assert!(
        engine.score(&[("a", "b")], &ScoreOptions::default()).unwrap()[0]
            .as_ref()
            .unwrap()
            .layer_scores
            .is_empty()
    );
}

#[test]
fn compression_reports_the_tokens_that_are_left() {
    let engine = open(path("gemma2_lightweight"));
    let pair = ("what is a panda?", "The giant panda is a bear species endemic to China.");
    let sequence = engine.pair_sequence(pair.0, pair.1, &ScoreOptions::default()).unwrap();
    let passage = sequence.rest().len() - sequence.prompt_tokens;
    let kept = sequence.query_tokens + sequence.prompt_tokens;
    let mut options = at(&engine, &[5, 8]);
    for (ratio, layers, expected) in [
        (2, &[4][..], kept + passage.div_ceil(2)),
        (2, &[4, 6], kept + passage.div_ceil(2).div_ceil(2)),
        (1000, &[1], kept + 1),
        (1, &[4], kept + passage),
        (2, &[8], kept + passage),
    ] {
        options.compression = Some(Compression::new(ratio, layers).unwrap());
        let scores = engine.score(&[pair], &options).unwrap();
        let score = scores[0].as_ref().unwrap();
        assert_eq!(score.tokens_after, Some(expected), "ratio {ratio}, layers {layers:?}");
        assert_eq!(score.tokens, sequence.sequence.input_ids.len());
    }
    let warnings = engine.check(&options).unwrap();
    assert_eq!(warnings, [Warning::CompressionWithoutEffect { layers: vec![8], deepest: 8 }]);
}

#[test]
fn options_that_a_model_does_not_have_are_refused_by_name() {
    let cutoffs = Cutoffs::new(&[2], AllowedCutoffs { start: 1, step: 1, last: 9 }).unwrap();
    let with_cutoffs = || ScoreOptions { cutoff_layers: Some(cutoffs.clone()), ..Default::default() };
    let compression = Compression::new(2, &[1]).unwrap();
    let with_compression = || ScoreOptions { compression: Some(compression.clone()), ..Default::default() };
    let with_prompt = || ScoreOptions { prompt: Some("?".to_owned()), ..Default::default() };
    for (model, options, named) in [
        ("xlmr_base", with_cutoffs(), "cutoff_layers"),
        ("xlmr_base", with_compression(), "compress_ratio"),
        ("xlmr_base", with_prompt(), "prompt"),
        ("gemma", with_cutoffs(), "cutoff_layers"),
        ("gemma", with_compression(), "compress_ratio"),
        ("minicpm_layerwise", with_compression(), "compress_ratio"),
    ] {
        let engine = open(path(model));
        for error in [engine.check(&options).unwrap_err(), engine.score(&[("a", "b")], &options).unwrap_err()]
        {
            let error = error.to_string();
            assert!(error.contains(named) && error.contains("has no option"), "{model}: {error}");
        }
    }
    // An embedder ranks by cosine, without any of these.
    let error = open(path("embed_minilm")).rerank("a", &["b"], &with_prompt()).unwrap_err();
    assert!(error.to_string().contains("prompt"), "{error}");

    let refused =
        |model: &str, options: EngineOptions| Engine::open(path(model), &options).err().unwrap().to_string();
    let default = on_cpu;
    for (model, options, named) in [
        ("xlmr_base", EngineOptions { gelu: Some(Gelu::Exact), ..default() }, "gelu"),
        ("xlmr_base", EngineOptions { prefix_sharing: false, ..default() }, "prefix_sharing"),
        ("xlmr_base", EngineOptions { adapters: vec![path("gemma/lora_adapter")], ..default() }, "adapters"),
        ("gemma", EngineOptions { heads: Some(HeadRule::ByLayer), ..default() }, "heads"),
        ("gemma", EngineOptions { attention_softcap: true, ..default() }, "attention_softcap"),
        ("minicpm_layerwise", EngineOptions { gelu: Some(Gelu::Tanh), ..default() }, "gelu"),
        ("minicpm_layerwise", EngineOptions { attention_softcap: true, ..default() }, "attention_softcap"),
    ] {
        let error = refused(model, options);
        assert!(error.contains(&format!("has no option {named}")), "{model}: {error}");
    }
}

#[test]
fn bad_values_are_clear_errors() {
    let engine = open(path("minicpm_layerwise"));
    // Cutoffs that were checked against a deeper model.
    let deeper = Cutoffs::new(&[4, 40], AllowedCutoffs { start: 1, step: 1, last: 40 }).unwrap();
    let options = ScoreOptions { cutoff_layers: Some(deeper), ..Default::default() };
    let error = score(&engine, &options).unwrap_err().to_string();
    assert_eq!(error, "cutoff layer 40 does not exist in this model; allowed are 2 to 6");
    for (layers, named) in
        [(&[0][..], "layer 0"), (&[7], "layer 7"), (&[1], "layer 1"), (&[], "no cutoff layers")]
    {
        let error = engine.cutoffs(layers).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("2 to 6"), "{error}");
    }
    let prompt = Some("Is it so? ".repeat(3000));
    let error = score(&engine, &ScoreOptions { prompt, ..Default::default() }).unwrap_err().to_string();
    assert!(error.contains("the prompt has") && error.contains("2048"), "{error}");
    // A query beyond any limit fails alone.
    let long = "panda ".repeat(40_000);
    let options = ScoreOptions { query_max_length: Some(usize::MAX), ..Default::default() };
    let scores = engine.score(&[(long.as_str(), "b"), ("a", "b")], &options).unwrap();
    let error = scores[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("32768"), "{error}");
    assert!(scores[1].is_ok());
    // Empty texts, an empty prompt, no room at all: all of these run, as in the reference.
    for options in [
        ScoreOptions { prompt: Some(String::new()), ..Default::default() },
        ScoreOptions { max_length: Some(0), query_max_length: Some(0), ..Default::default() },
        ScoreOptions {
            query_instruction: Some(String::new()),
            passage_instruction: Some(String::new()),
            ..Default::default()
        },
    ] {
        assert!(engine.score(&[("", "")], &options).unwrap()[0].is_ok());
    }
    assert!(engine.score::<&str, &str>(&[], &ScoreOptions::default()).unwrap().is_empty());
    assert!(engine.embed(&["a"], &Default::default()).unwrap_err().to_string().contains("reranker"));
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let open = |model: &str, adapter: PathBuf| {
        Engine::open(path(model), &EngineOptions { adapters: vec![adapter], ..on_cpu() })
    };
    assert!(open("gemma", path("gemma/lora_adapter")).is_ok());
    // Another model's: names that do not exist, or shapes that differ.
    let error = open("minicpm_layerwise", path("gemma/lora_adapter")).err().unwrap().to_string();
    assert!(error.contains("adapter_model.safetensors") && error.contains("model.layers.0"), "{error}");
    let error =
        open("minicpm_single_head", path("minicpm_layerwise/lora_adapter")).err().unwrap().to_string();
    assert!(error.contains("lm_head") || error.contains("shape"), "{error}");
    let error = open("gemma", path("xlmr_base")).err().unwrap().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}

#[test]
fn a_type_changes_memory_and_little_else() {
    let pairs = [("what is a panda?", "The giant panda is a bear."), ("hi", "Paris is in France.")];
    for model in ["gemma", "minicpm_layerwise", "gemma2_lightweight", "xlmr_base"] {
        let scores = |dtype| -> Vec<f64> {
            let engine = Engine::open(path(model), &EngineOptions { dtype, ..on_cpu() }).unwrap();
            let scores = engine.score(&pairs, &ScoreOptions::default()).unwrap();
            scores.into_iter().map(|score| score.unwrap().score).collect()
        };
        let stored = scores(Dtype::Auto);
        assert_eq!(scores(Dtype::F32), stored, "{model}: widening is exact");
        for (dtype, bound) in [(Dtype::F16, 0.05), (Dtype::BF16, 0.5)] {
            for (got, expected) in scores(dtype).iter().zip(&stored) {
                assert!((got - expected).abs() < bound, "{model} in {dtype:?}: {got}, stored {expected}");
            }
        }
    }
}

/// Against the sum written out by hand, for one pair of one sequence.
#[test]
fn flops_are_those_of_the_layers_run() {
    let engine = open(path("gemma2_lightweight"));
    let config = crate::fixtures::json(path("gemma2_lightweight").join("config.json"));
    let size = |name: &str| config[name].as_u64().unwrap();
    let (h, i) = (size("hidden_size"), size("intermediate_size"));
    let (q, kv) =
        (size("num_attention_heads") * size("head_dim"), size("num_key_value_heads") * size("head_dim"));
    let pair = [("what is a panda?", "The giant panda is a bear species endemic to China.")];
    let sequence = engine.pair_sequence(pair[0].0, pair[0].1, &ScoreOptions::default()).unwrap();
    let n = sequence.sequence.input_ids.len() as u64;
    let full = |n: u64| 2 * n * (h * (q + 2 * kv) + q * h + 3 * h * i) + 4 * q * (1..=n).sum::<u64>();
    let last = |n: u64| 2 * n * h * 2 * kv + 2 * (h * q + q * h + 3 * h * i) + 4 * q * n;
    let flops = |pairs: &[(&str, &str)], options: &ScoreOptions| engine.flops(pairs, options).unwrap();
    let plain = flops(&pair, &at(&engine, &[5]));
    assert_eq!(plain, 4 * full(n) + last(n));
    // Cutoffs on the way cost nothing but their heads.
    assert_eq!(flops(&pair, &at(&engine, &[2, 3, 5])), plain);
    let mut compressed = at(&engine, &[5]);
    compressed.compression = Some(Compression::new(2, &[3]).unwrap());
    let rest = sequence.rest().len() - sequence.prompt_tokens;
    let fewer = n - (rest / 2) as u64;
    assert_eq!(flops(&pair, &compressed), 3 * full(n) + full(fewer) + last(fewer));
    // A second passage adds its own rows only; with sharing switched off, those of the query too.
    let two = [pair[0], (pair[0].0, "Paris")];
    let options = EngineOptions { prefix_sharing: false, ..on_cpu() };
    let apart = Engine::open(path("gemma2_lightweight"), &options).unwrap();
    let saved = apart.flops(&two, &at(&engine, &[5])).unwrap() - flops(&two, &at(&engine, &[5]));
    let p = sequence.query_tokens as u64;
    assert_eq!(saved, 4 * full(p) + 2 * p * h * 2 * kv);
}
