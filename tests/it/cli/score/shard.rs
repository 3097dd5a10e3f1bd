//! `--shard`.

use std::fs;

use serde_json::{Value, json};

use super::{Files, args, outcrop, outcrop_with_input, score_file};
use crate::cli::model;

/// The outputs of the shards, one after the other, are the output of the whole: names by number, blank lines, all kinds of ends.
#[test]
fn the_shards_of_a_file_are_the_file() {
    let files = Files::new();
    let mut text = "\u{feff}".to_owned();
    for n in 0..70 {
        let words = "panda ".repeat(n * 7 % 30);
        let end = ["\n", "\r\n", "\n\n"][n % 3];
        match n % 5 {
            0 => text.push_str(&format!("{{\"query\": \"q {n}\", \"passage\": \"{words}\"}}{end}")),
            1 => text.push_str(&format!("not JSON {n}{end}")),
            _ => text.push_str(&format!("{{\"id\": {n}, \"query\": \"q\", \"passage\": \"{words}\"}}{end}")),
        }
    }
    text.push_str("{\"query\": \"the last line\", \"passage\": \"has no line break\"}");
    let input = files.write("in.jsonl", &text);
    let whole = files.path("whole.jsonl");
    let ran = outcrop(args(&input, &whole, &[]));
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let whole = fs::read(&whole).unwrap();
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 71);
    for count in [1, 2, 3, 5, 100] {
        let mut joined = Vec::new();
        let mut alone = 0;
        for index in 0..count {
            let part = files.path(&format!("{index}-of-{count}"));
            let shard = format!("{index}/{count}");
            let ran = outcrop(args(&input, &part, &["--shard", &shard]));
            assert!(matches!(ran.status, Some(0 | 1)), "{}", ran.stderr);
            let part = fs::read(part).unwrap();
            alone += usize::from(!part.is_empty());
            joined.extend(part);
        }
        assert!(joined == whole, "{count} shards");
        assert!(alone >= count.min(30), "{alone} of {count} shards have any line");
    }
}

#[test]
fn shards_that_cannot_be() {
    let files = Files::new();
    let input = files.write("in.jsonl", "{\"query\": \"q\", \"passage\": \"p\"}\n");
    let output = files.path("out.jsonl");
    for (shard, words) in [
        ("4/4", "of 4 there are 0/4 to 3/4"),
        ("1", "0/4 is the first of four"),
        ("-1/4", "0/4 is the first of four"),
        ("0/0", "n of i/n is 1 or more"),
    ] {
        let ran = outcrop(args(&input, &output, &[&format!("--shard={shard}")]));
        assert_eq!(ran.status, Some(2));
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    let model = model("xlmr_base");
    let args = ["score", "--model", &model, "--input", "-", "--shard", "0/2"];
    outcrop_with_input(args, b"").refused(&["--shard 0/2 needs an input file", "standard input"]);
    assert_eq!(files.names(), ["in.jsonl"]);
}

/// A file with fewer lines than shards: some have nothing to do, and say so by an empty file.
#[test]
fn an_empty_shard_is_an_empty_file() {
    let files = Files::new();
    let input = files.write("in.jsonl", "{\"query\": \"q\", \"passage\": \"p\"}\n");
    let output = files.path("out.jsonl");
    score_file(&input, &output, &["--shard", "1/2"]);
    assert_eq!(fs::read(&output).unwrap(), b"");
}

/// What the run says at the end, for a program that adds up shards.
#[test]
fn a_summary_counts_what_was_done() {
    let files = Files::new();
    let long = "panda ".repeat(600);
    let lines = format!(
        "{{\"query\": \"q\", \"passages\": [\"panda\", \"{long}\"]}}\n\n{{\"query\": 7}}\n{{\"query\": \"q\", \"passage\": \"p\"}}\n"
    );
    let input = files.write("in.jsonl", lines);
    let output = files.path("out.jsonl");
    let summary = files.path("summary.json");
    let ran = outcrop(args(&input, &output, &["--summary", summary.to_str().unwrap()]));
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let told: Value = serde_json::from_slice(&fs::read(&summary).unwrap()).unwrap();
    let answers = fs::read_to_string(&output).unwrap();
    let tokens: u64 = answers
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].as_u64())
        .sum();
    let counts = json!({"pairs": 3, "tokens": tokens, "truncated": 1, "failed": 1, "blank_lines": 1, "resumed_pairs": 0});
    for (name, count) in counts.as_object().unwrap() {
        assert_eq!(&told[name], count, "{name}");
    }
    let seconds = told["seconds"].as_f64().unwrap();
    assert!((told["pairs_per_second"].as_f64().unwrap() * seconds - 3.0).abs() < 1e-6);
    assert!((told["tokens_per_second"].as_f64().unwrap() * seconds - tokens as f64).abs() < 1e-3);
    // Not over the input.
    let ran = outcrop(args(&input, &output, &["--summary", input.to_str().unwrap()]));
    ran.refused(&["is the input; writing the output there would destroy it"]);
}
