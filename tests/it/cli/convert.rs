//! `outcrop convert`: a smaller checkpoint gives the scores of the larger one.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use super::{made, outcrop, scores};

/// The tensors of a model that is one file: name, type, shape, bytes.
fn tensors(model: &Path) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// Writes such tensors.
fn write_tensors(model: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &model.join("model.safetensors")).unwrap();
}

fn json(model: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(model.join(name)).unwrap()).unwrap()
}

/// Converts into a directory beside the model.
fn convert(model: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let out = model.with_file_name(name);
    let ran = outcrop(["convert", model.to_str().unwrap(), out.to_str().unwrap()].iter().chain(extra));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.is_empty());
    out
}

/// Checks that a conversion is refused and leaves no model behind.
fn refused(model: &Path, extra: &[&str], words: &[&str]) {
    let out = model.with_file_name("refused");
    outcrop(["convert", model.to_str().unwrap(), out.to_str().unwrap()].iter().chain(extra)).refused(words);
    assert!(!out.join("config.json").exists() && !out.join("model.safetensors").exists());
}

#[test]
fn a_cut_model_scores_as_the_whole_one_does_there() {
    for family in ["minicpm", "gemma2"] {
        let whole = made(family);
        let cut = convert(&whole.model, "cut", &["--cutoff", "5"]);
        for (cutoff, of_cut) in
            [("5", &[][..]), ("5", &["--cutoff-layers", "5"]), ("3", &["--cutoff-layers", "3"])]
        {
            let expected = scores(&whole.model, &["--cutoff-layers", cutoff]);
            assert_eq!(scores(&cut, of_cut), expected, "{family} at {cutoff}");
        }
        let facts: Value =
            serde_json::from_str(&outcrop(["inspect", "--json", cut.to_str().unwrap()]).stdout).unwrap();
        assert_eq!(facts["num_hidden_layers"], 5);
        assert_eq!((&facts["allowed_cutoffs"], &facts["heads"]), (&json!("2 to 5"), &json!(4)));
        let (before, after) = (tensors(&whole.model), tensors(&cut));
        assert!(after.iter().all(|tensor| before.contains(tensor)), "{family}");
        let left_out: Vec<&str> =
            before.iter().filter(|tensor| !after.contains(tensor)).map(|tensor| tensor.0.as_str()).collect();
        let beyond = |name: &str| {
            [
                "model.layers.5.",
                "model.layers.6.",
                "model.layers.7.",
                "lm_head.4.",
                "lm_head.5.",
                "lm_head.6.",
            ]
            .iter()
            .any(|start| name.starts_with(start))
        };
        assert!(left_out.iter().all(|name| beyond(name)), "{left_out:?}");
        assert!(after.iter().all(|tensor| !beyond(&tensor.0)));
        assert_eq!(json(&cut, "tokenizer.json"), json(&whole.model, "tokenizer.json"));
        assert_eq!(json(&cut, "config.json")["torch_dtype"], "float32");
    }
}

/// A rounded weight is off by at most 2^-11 of itself in f16 and 2^-8 in bf16. The errors of 8 layers with some 6 products
/// each add up like independent ones, to sqrt(48) times that, of scores that reach 8.
#[test]
fn shorter_types_round_every_weight_once() {
    for family in ["gemma", "minicpm", "gemma2"] {
        let whole = made(family);
        let expected = scores(&whole.model, &["--dtype", "f32"]);
        for (dtype, relative) in [("f16", 2_f32.powi(-11)), ("bf16", 2_f32.powi(-8))] {
            let short = convert(&whole.model, dtype, &["--dtype", dtype]);
            let (long, short_tensors) = (tensors(&whole.model), tensors(&short));
            assert_eq!(long.len(), short_tensors.len());
            for (long, short) in long.iter().zip(&short_tensors) {
                assert_eq!((&long.0, &long.2), (&short.0, &short.2));
                let values = long.3.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                for (x, bytes) in values.zip(short.3.as_chunks::<2>().0) {
                    let rounded = match dtype {
                        "f16" => f16::from_le_bytes(*bytes).to_f32(),
                        _ => bf16::from_le_bytes(*bytes).to_f32(),
                    };
                    // Below 2^-14 f16 is subnormal, with a step of 2^-24.
                    let error = (x - rounded).abs();
                    assert!(
                        error <= relative * x.abs() + 2_f32.powi(-25),
                        "{}: {x} became {rounded}",
                        long.0
                    );
                }
            }
            let torch_dtype = if dtype == "f16" { "float16" } else { "bfloat16" };
            assert_eq!(json(&short, "config.json")["torch_dtype"], torch_dtype);
            for (score, expected) in scores(&short, &["--dtype", "f32"]).iter().zip(&expected) {
                let difference = (score - expected).abs();
                let bound = 48_f64.sqrt() * f64::from(relative) * 8.0;
                assert!(difference <= bound, "{family} {dtype}: {score}, expected {expected}");
            }
        }
        // Back to f32 nothing more is lost, and f32 to f32 nothing at all.
        let back = convert(&whole.model.with_file_name("bf16"), "back", &["--dtype", "f32"]);
        let from_short = scores(&whole.model.with_file_name("bf16"), &["--dtype", "f32"]);
        assert_eq!(scores(&back, &["--dtype", "f32"]), from_short);
        assert_eq!(scores(&convert(&whole.model, "same", &[]), &["--dtype", "f32"]), expected);
    }
}

#[test]
fn a_weight_that_does_not_fit_is_named() {
    let model = made("gemma2");
    let mut changed = tensors(&model.model);
    let tensor = changed.iter_mut().find(|tensor| tensor.0 == "model.layers.3.mlp.up_proj.weight").unwrap();
    tensor.3[40..44].copy_from_slice(&70_000_f32.to_le_bytes());
    write_tensors(&model.model, &changed);
    refused(
        &model.model,
        &["--dtype", "f16"],
        &["model.layers.3.mlp.up_proj.weight", "70000", "F16", "bf16"],
    );
    refused(&model.model, &["--dtype", "f16", "--cutoff", "4", "--force"], &["70000"]);
    convert(&model.model, "shallow", &["--dtype", "f16", "--cutoff", "3"]);
    convert(&model.model, "bf16", &["--dtype", "bf16"]);
}

/// Published XLM-R files may hold the positions as 64-bit integers.
#[test]
fn integer_buffers_are_left_out_with_a_note() {
    let model = made("xlmr");
    let before = tensors(&model.model);
    let mut changed = before.clone();
    let positions: Vec<u8> = (0_i64..514).flat_map(i64::to_le_bytes).collect();
    changed.push(("roberta.embeddings.position_ids".to_owned(), Dtype::I64, vec![1, 514], positions));
    write_tensors(&model.model, &changed);
    let out = model.model.with_file_name("out");
    let ran = outcrop(["convert", model.model.to_str().unwrap(), out.to_str().unwrap()]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("roberta.embeddings.position_ids"), "{}", ran.stderr);
    assert!(tensors(&out) == before);
    let quiet = ["convert", "--quiet", "--force", model.model.to_str().unwrap(), out.to_str().unwrap()];
    assert!(outcrop(quiet).stderr.is_empty());
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let minicpm = made("minicpm");
    refused(&minicpm.model, &["--cutoff", "1"], &["cut off at 1 ", "2 to 8"]);
    refused(&minicpm.model, &["--cutoff", "9"], &["cut off at 9 ", "2 to 8"]);
    refused(&made("gemma").model, &["--cutoff", "4"], &["GemmaForCausalLM", "no cutoff layers"]);
    refused(&made("xlmr").model, &["--cutoff", "2"], &["XLMRoberta", "no cutoff layers"]);

    let model = minicpm.model.to_str().unwrap();
    let before = fs::read_dir(&minicpm.model).unwrap().count();
    outcrop(["convert", model, model, "--force"]).refused(&["is the model's directory"]);
    let inside = minicpm.model.join("half/size");
    outcrop(["convert", model, inside.to_str().unwrap()]).refused(&["lies in it"]);
    assert_eq!(fs::read_dir(&minicpm.model).unwrap().count(), before);
    let used = tempfile::tempdir().unwrap();
    fs::write(used.path().join("notes.txt"), "mine").unwrap();
    outcrop(["convert", model, used.path().to_str().unwrap()]).refused(&["is not empty", "--force"]);
    assert_eq!(fs::read_dir(used.path()).unwrap().count(), 1);
}

/// Weights of an earlier conversion do not stay beside the new ones, where a reader would prefer them.
#[test]
fn shards_and_a_single_file_replace_each_other() {
    let model = made("gemma");
    let out = convert(&model.model, "out", &[]);
    let names = || {
        let mut names: Vec<String> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("model"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["model.safetensors"]);
    convert(&model.model, "out", &["--force", "--max-shard-bytes", "1000000"]);
    assert_eq!(
        names(),
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json"
        ]
    );
    assert_eq!(scores(&out, &[]), scores(&model.model, &[]));
    convert(&model.model, "out", &["--force"]);
    assert_eq!(names(), ["model.safetensors"]);
}

/// Of a model that is cut off, only the files of what is kept are needed.
#[test]
fn later_shards_may_be_missing_where_they_are_not_needed() {
    for family in ["minicpm", "gemma2"] {
        let whole = made(family);
        let expected = scores(&whole.model, &["--cutoff-layers", "3"]);
        let sharded = convert(&whole.model, "sharded", &["--max-shard-bytes", "100000"]);
        let weight_map = json(&sharded, "model.safetensors.index.json")["weight_map"].clone();
        let shard_of = |name: &str| sharded.join(weight_map[name].as_str().unwrap());
        let needed = |name: &str| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
            layer.is_none_or(|layer| layer.parse::<usize>().unwrap() < 3)
        };
        let kept: Vec<PathBuf> = weight_map
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| needed(name))
            .map(|name| shard_of(name))
            .collect();
        let mut missing = 0;
        for name in weight_map.as_object().unwrap().keys() {
            if !kept.contains(&shard_of(name)) && fs::remove_file(shard_of(name)).is_ok() {
                missing += 1;
            }
        }
        assert!(missing >= 2, "{family}: {missing}");
        assert_eq!(scores(&sharded, &["--cutoff-layers", "3"]), expected);
        let cut = convert(&sharded, "cut", &["--cutoff", "3"]);
        assert_eq!(scores(&cut, &[]), expected);
        refused(&sharded, &[], &["is not there", "--cutoff"]);
        refused(&sharded, &["--cutoff", "8", "--force"], &["model.layers.", "model-000"]);
        let line = "{\"query\": \"q\", \"passage\": \"p\"}";
        let args = ["score", "--model", sharded.to_str().unwrap(), "--input", "-"];
        super::outcrop_with_input(args, line.as_bytes()).refused(&["model.layers.", "model-000"]);
    }
}
