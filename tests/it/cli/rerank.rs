//! `outcrop rerank`.

use std::fs;

use serde_json::Value;

use super::{model, outcrop, outcrop_with_input};

const QUERY: &str = "what is panda?";
const PASSAGES: [&str; 4] =
    ["hi", "The giant panda is a bear.", "Paris is the capital of France.", "a panda\teats   bamboo"];

fn json(extra: &[&str]) -> Vec<Value> {
    let model = model("xlmr_base");
    let ran = outcrop(["rerank", "--model", &model, "--json", QUERY].iter().chain(&PASSAGES).chain(extra));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn scores(ranked: &[Value]) -> Vec<f64> {
    ranked.iter().map(|place| place["score"].as_f64().unwrap()).collect()
}

#[test]
fn json_is_an_array_best_first() {
    let ranked = json(&[]);
    assert_eq!(ranked.len(), PASSAGES.len());
    for place in &ranked {
        let fields: Vec<&String> = place.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["index", "score", "passage"]);
        let index = usize::try_from(place["index"].as_u64().unwrap()).unwrap();
        assert_eq!(place["passage"], PASSAGES[index]);
    }
    assert!(scores(&ranked).is_sorted_by(|a, b| a > b), "{:?}", scores(&ranked));
    assert_eq!(json(&["--top-n", "2"]), ranked[..2]);
    assert_eq!(json(&["--top-n", "100", "--threads", "1", "--batch-tokens", "1"]), ranked);
    for (normalized, score) in scores(&json(&["--normalize"])).iter().zip(scores(&ranked)) {
        let expected = 1.0 / (1.0 + (-score).exp());
        assert!((normalized - expected).abs() < 1e-15, "{normalized}, expected {expected}");
    }
}

#[test]
fn the_table_says_the_same() {
    let ranked = json(&[]);
    let model = model("xlmr_base");
    let ran = outcrop(["rerank", "--model", &model, QUERY].iter().chain(&PASSAGES));
    let mut lines = ran.stdout.lines();
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["rank", "score", "passage"]);
    for (i, place) in ranked.iter().enumerate() {
        let line: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        let passage: Vec<&str> = place["passage"].as_str().unwrap().split_whitespace().collect();
        assert_eq!(line[0], (i + 1).to_string());
        assert_eq!(line[1], format!("{:.4}", place["score"].as_f64().unwrap()));
        assert_eq!(line[2..], passage);
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn passages_come_from_a_file_or_a_pipe() {
    let model = model("xlmr_base");
    let text = format!("{}\r\n\n{}\n  \n{}\n{}", PASSAGES[0], PASSAGES[1], PASSAGES[2], PASSAGES[3]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &text).unwrap();
    let from_file =
        outcrop(["rerank", "--model", &model, "--json", QUERY, "--passages", file.path().to_str().unwrap()]);
    let from_pipe = outcrop_with_input(
        ["rerank", "--model", &model, "--json", QUERY, "--passages", "-"],
        text.as_bytes(),
    );
    assert_eq!(from_file.status, Some(0), "{}", from_file.stderr);
    assert_eq!(from_file.stdout, from_pipe.stdout);
    let ranked: Vec<Value> = serde_json::from_str(&from_file.stdout).unwrap();
    assert_eq!(scores(&ranked), scores(&json(&[])));
    // The index is the line's, counted from 0, blank lines included.
    let lines: Vec<&str> = text.lines().collect();
    for place in ranked {
        let index = usize::try_from(place["index"].as_u64().unwrap()).unwrap();
        assert_eq!(place["passage"], lines[index]);
    }
}

#[test]
fn an_embedder_ranks_by_cosine() {
    let model = model("embed_minilm");
    let ran = outcrop(["rerank", "--model", &model, "--json", QUERY, "hi", QUERY, "bamboo"]);
    let ranked: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ranked[0]["index"], 1);
    assert!((scores(&ranked)[0] - 1.0).abs() < 1e-6, "{:?}", scores(&ranked));
}

#[test]
fn no_passages_are_an_error_that_says_so() {
    let model = model("xlmr_base");
    outcrop(["rerank", "--model", &model, QUERY]).refused(&["no passages to rank", "--passages FILE"]);
    outcrop_with_input(["rerank", "--model", &model, QUERY, "--passages", "-"], b"\n \n")
        .refused(&["no passages to rank"]);
    outcrop(["rerank", "--model", &model, QUERY, "--passages", "no-such-file"])
        .refused(&["cannot read no-such-file", "No such file"]);
}

#[test]
fn a_passage_that_cannot_be_read_does_not_stop_the_others() {
    let model = model("xlmr_base");
    let ran = outcrop_with_input(
        ["rerank", "--model", &model, "--json", QUERY, "--passages", "-"],
        b"hi\n\xff\nThe giant panda is a bear.\n",
    );
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("line 2: not valid UTF-8 at byte 1"), "{}", ran.stderr);
    let ranked: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ranked.len(), 2);
}

#[test]
fn what_was_cut_off_is_said() {
    let model = model("xlmr_base");
    let long = "panda ".repeat(600);
    let ran = outcrop(["rerank", "--model", &model, QUERY, "hi", &long]);
    assert_eq!(ran.status, Some(0));
    assert_eq!(ran.stderr, "outcrop: 1 of 2 passages were too long and scored without their ends\n");
    assert!(outcrop(["rerank", "--quiet", "--model", &model, QUERY, "hi", &long]).stderr.is_empty());
}
