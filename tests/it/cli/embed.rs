//! `outcrop embed`.

use std::fs;

use serde_json::{Value, json};

use super::{Ran, model, outcrop_with_input};

const TEXTS: &str =
    "{\"id\": \"a\", \"text\": \"the giant panda\"}\n\n{\"text\": \"\"}\n{\"text\": \"bamboo forest\"}\n";

fn embed(extra: &[&str], input: &str) -> Ran {
    let model = model("embed_minilm");
    outcrop_with_input(["embed", "--model", &model, "--input", "-"].iter().chain(extra), input.as_bytes())
}

fn vector(answer: &Value) -> Vec<f32> {
    serde_json::from_value(answer["embedding"].clone()).unwrap()
}

fn norm(answer: &Value) -> f32 {
    vector(answer).iter().map(|x| x * x).sum::<f32>().sqrt()
}

#[test]
fn lines_become_vectors() {
    let ran = embed(&[], TEXTS);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("outcrop: 3 texts and "), "{}", ran.stderr);
    let answers = ran.json_lines();
    assert_eq!(answers.len(), 3);
    assert_eq!(
        (&answers[0]["id"], &answers[1]["line"], &answers[2]["line"]),
        (&json!("a"), &json!(3), &json!(4))
    );
    for answer in &answers {
        let fields: Vec<&String> = answer.as_object().unwrap().keys().skip(1).collect();
        assert_eq!(fields, ["embedding", "tokens", "truncated"]);
        assert_eq!(vector(answer).len(), 64);
        assert!((norm(answer) - 1.0).abs() < 1e-5, "{}", norm(answer));
    }
}

#[test]
fn options_reach_the_model() {
    let plain = &embed(&[], TEXTS).json_lines()[0];
    let unscaled = &embed(&["--no-normalize"], TEXTS).json_lines()[0];
    assert!((norm(unscaled) - 1.0).abs() > 1e-3, "{}", norm(unscaled));
    assert_eq!(&embed(&["--no-normalize", "--normalize"], TEXTS).json_lines()[0], plain);
    let mean = &embed(&["--pooling", "mean"], TEXTS).json_lines()[0];
    let cls = &embed(&["--pooling", "cls"], TEXTS).json_lines()[0];
    assert_eq!(mean, plain);
    assert_ne!(cls["embedding"], plain["embedding"]);
    let rounded = &embed(&["--dtype", "bf16"], TEXTS).json_lines()[0];
    let distance: f32 = vector(plain).iter().zip(vector(rounded)).map(|(a, b)| (a - b).powi(2)).sum();
    assert!(distance > 0.0 && distance.sqrt() < 0.05, "{}", distance.sqrt());
    let cut = &embed(&["--max-length", "3"], TEXTS).json_lines()[0];
    assert_eq!((&cut["tokens"], &cut["truncated"]), (&json!(3), &json!(true)));
    let instructed =
        &embed(&["--instruction", "the ", "--instruction-format", "{}giant {}"], "{\"text\": \"panda\"}");
    assert_eq!(instructed.json_lines()[0]["embedding"], plain["embedding"]);
}

/// The format as NumPy documents it: magic, version, length, dictionary, rows.
#[test]
fn npy_holds_the_same_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vectors.npy");
    let ran = embed(&["--format", "npy", "--output", path.to_str().unwrap()], TEXTS);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.is_empty());
    let (rows, columns, values) = read_npy(&path);
    assert_eq!((rows, columns), (3, 64));
    let expected: Vec<f32> = embed(&[], TEXTS).json_lines().iter().flat_map(vector).collect();
    assert_eq!(values, expected);
}

#[test]
fn a_failed_line_has_a_row_of_nan() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vectors.npy");
    let input = format!("{TEXTS}{{\"id\": 5}}\n");
    let ran = embed(&["--quiet", "--format", "npy", "--output", path.to_str().unwrap()], &input);
    assert_eq!(ran.status, Some(1));
    assert_eq!(ran.stderr, "outcrop: line 5: field \"text\" is missing\n");
    let (rows, columns, values) = read_npy(&path);
    assert_eq!(rows, 4);
    assert!(values[..3 * columns].iter().all(|x| x.is_finite()));
    assert!(values[3 * columns..].iter().all(|x| x.is_nan()));
    let lines = embed(&["--quiet"], &input).json_lines();
    assert_eq!(lines[3], json!({ "id": 5, "error": "field \"text\" is missing" }));
}

#[test]
fn wrong_calls_are_refused() {
    embed(&["--format", "npy"], TEXTS).refused(&["--format npy needs --output FILE"]);
    let reranker = model("xlmr_base");
    outcrop_with_input(["embed", "--model", &reranker, "--input", "-"], TEXTS.as_bytes())
        .refused(&["XLMRobertaForSequenceClassification", "is a reranker"]);
}

/// Rows, columns and elements of a float32 matrix.
fn read_npy(path: &std::path::Path) -> (usize, usize, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00");
    let header_bytes = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + header_bytes) % 64, 0);
    let header = str::from_utf8(&bytes[10..10 + header_bytes]).unwrap();
    assert!(
        header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (") && header.ends_with('\n')
    );
    let shape = header.split(['(', ')']).nth(1).unwrap();
    let (rows, columns) = shape.split_once(", ").unwrap();
    let (rows, columns) = (rows.parse().unwrap(), columns.parse().unwrap());
    let values: Vec<f32> =
        bytes[10 + header_bytes..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(values.len(), rows * columns);
    (rows, columns, values)
}
