//! Models that cannot be used: one clear message that names the file or the tensor, and never a panic.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Ran, outcrop, outcrop_with_input};
use crate::fixtures;

/// Runs `rerank` on a copy of the tiny reranker after `damage`.
fn rerank_damaged(damage: impl FnOnce(&Path)) -> Ran {
    let dir = fixtures::copy_model("xlmr_base");
    damage(dir.path());
    outcrop(["rerank", "--model", dir.path().to_str().unwrap(), "query", "passage", "other"])
}

/// Changes the header of the weight file and leaves its data.
fn edit_header(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header_bytes = usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
    let (header, data) = bytes[8..].split_at(header_bytes);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    edit(&mut header);
    let mut header = header.to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], header.as_bytes(), data].concat()).unwrap();
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = fixtures::json(&path);
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn remove(dir: &Path, name: &str) {
    fs::remove_file(dir.join(name)).unwrap();
}

#[test]
fn no_model() {
    outcrop(["rerank", "--model", "./no-such-directory", "q", "p"]).refused(&["no-such-directory"]);
    let file = fixtures::path("xlmr_base").join("config.json");
    outcrop(["inspect", file.to_str().unwrap()]).refused(&["config.json"]);
    let empty = tempfile::tempdir().unwrap();
    outcrop(["inspect", empty.path().to_str().unwrap()])
        .refused(&["config.json", empty.path().to_str().unwrap()]);
}

#[test]
fn bad_config() {
    rerank_damaged(|dir| remove(dir, "config.json")).refused(&["no config.json"]);
    rerank_damaged(|dir| fs::write(dir.join("config.json"), "{\"hidden_size\":").unwrap())
        .refused(&["config.json", "not valid JSON"]);
    rerank_damaged(|dir| edit_config(dir, |config| config["hidden_size"] = json!("wide"))).refused(&[
        "config.json",
        "hidden_size",
        "wide",
    ]);
    rerank_damaged(|dir| edit_config(dir, |config| config["architectures"] = json!(["T5Model"]))).refused(&[
        "config.json",
        "T5Model",
        "XLMRobertaForSequenceClassification",
    ]);
    let two_labels = json!({ "0": "LABEL_0", "1": "LABEL_1" });
    rerank_damaged(|dir| edit_config(dir, |config| config["id2label"] = two_labels)).refused(&[
        "config.json",
        "2 labels",
        "classifier",
    ]);
}

#[test]
fn no_weights() {
    rerank_damaged(|dir| remove(dir, "model.safetensors")).refused(&["no weights", "model.safetensors"]);
    rerank_damaged(|dir| {
        fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
    })
    .refused(&["pytorch_model.bin", "convert", "python"]);
    rerank_damaged(|dir| {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2179404\n";
        fs::write(dir.join("model.safetensors"), pointer).unwrap();
    })
    .refused(&["model.safetensors", "Git LFS pointer", "git lfs pull"]);
}

#[test]
fn damaged_weights() {
    let cut = |length: u64| {
        move |dir: &Path| {
            let file = fs::OpenOptions::new().write(true).open(dir.join("model.safetensors")).unwrap();
            file.set_len(length).unwrap();
        }
    };
    for length in [0, 3, 8, 100, 1_000_000] {
        rerank_damaged(cut(length)).refused(&["model.safetensors"]);
    }
    let hostile: [&[u8]; 4] = [
        &[0xff; 8],
        b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\":1}         ",
        b"\x02\x00\x00\x00\x00\x00\x00\x00{\"",
        b"PK\x03\x04 a zip archive, not a safetensors file, of some length",
    ];
    for bytes in hostile {
        rerank_damaged(|dir| fs::write(dir.join("model.safetensors"), bytes).unwrap())
            .refused(&["model.safetensors"]);
    }
}

#[test]
fn wrong_tensors() {
    rerank_damaged(|dir| {
        edit_header(dir, |header| {
            let header = header.as_object_mut().unwrap();
            let tensor = header.remove("classifier.dense.weight").unwrap();
            header.insert("classifier.dense.wait".to_owned(), tensor);
        });
    })
    .refused(&["no tensor classifier.dense.weight", "classifier.dense.wait"]);
    rerank_damaged(|dir| {
        edit_header(dir, |header| header["classifier.dense.bias"]["shape"] = json!([2, 64]))
    })
    .refused(&["model.safetensors", "classifier.dense.bias", "[128]", "[2, 64]"]);
    rerank_damaged(|dir| edit_header(dir, |header| header["classifier.dense.bias"]["dtype"] = json!("I32")))
        .refused(&["classifier.dense.bias", "I32"]);
    rerank_damaged(|dir| {
        let far = json!([1_u64 << 60, (1_u64 << 60) + 512]);
        edit_header(dir, |header| header["classifier.dense.bias"]["data_offsets"] = far);
    })
    .refused(&["model.safetensors"]);
}

#[test]
fn no_tokenizer() {
    rerank_damaged(|dir| remove(dir, "tokenizer.json")).refused(&["tokenizer.json"]);
    rerank_damaged(|dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap()).refused(&["tokenizer.json"]);
}

/// A weight that is not a number spoils every score: none is given, and the message names the tensor.
#[test]
fn weights_that_are_not_numbers() {
    let ran = rerank_damaged(|dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header_bytes = usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
        let begin = header["classifier.out_proj.bias"]["data_offsets"][0].as_u64().unwrap();
        let begin = 8 + header_bytes + usize::try_from(begin).unwrap();
        bytes[begin..begin + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(path, bytes).unwrap();
    });
    assert_eq!(ran.status, Some(1));
    let messages: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(messages.len(), 2, "{}", ran.stderr);
    for (i, message) in messages.iter().enumerate() {
        assert!(message.starts_with(&format!("outcrop: passage {i}: ")), "{message}");
        assert!(message.contains("not finite") && message.contains("classifier.out_proj.bias"), "{message}");
    }
}

/// A pair longer than the position table fails alone.
#[test]
fn a_pair_longer_than_the_position_table() {
    let long = format!("{{\"id\": \"long\", \"query\": \"q\", \"passage\": \"{}\"}}\n", "panda ".repeat(700));
    let short = "{\"id\": \"short\", \"query\": \"q\", \"passage\": \"p\"}\n";
    let model = fixtures::path("xlmr_base").to_str().unwrap().to_owned();
    let args = ["score", "--quiet", "--model", &model, "--input", "-", "--max-length", "600"];
    let ran = outcrop_with_input(args, format!("{long}{short}").as_bytes());
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let answers = ran.json_lines();
    let message = answers[0]["error"].as_str().unwrap();
    assert!(message.contains("600") && message.contains("512"), "{message}");
    assert_eq!(answers[1]["id"], "short");
    assert!(answers[1]["score"].is_number());
}
