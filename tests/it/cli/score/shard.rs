//! `--shard`.

use std::fs;

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
