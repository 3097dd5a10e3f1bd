//! `outcrop score`.

mod parquet;
mod resume;
mod run_batch;
mod shard;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Ran, model, outcrop, outcrop_with_input};
use crate::fixtures;

/// Files of a test, which go away with it.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file; its path.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The names that are there, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The score of a line as it is written: a reader of JSON may round its last bit.
fn score_text(line: &str) -> String {
    let (_, rest) = line.split_once("\"score\":").unwrap_or_else(|| panic!("no score in {line}"));
    rest[..rest.find([',', '}']).unwrap()].to_owned()
}

/// The arguments that score one file into another.
fn args(input: &Path, output: &Path, extra: &[&str]) -> Vec<String> {
    let model = model("xlmr_base");
    let fixed = ["score", "--quiet", "--model", &model, "--input", input.to_str().unwrap()];
    let output = ["--output", output.to_str().unwrap()];
    fixed.iter().chain(&output).chain(extra).map(|arg| (*arg).to_owned()).collect()
}

/// Scores one file into another, which must succeed.
fn score_file(input: &Path, output: &Path, extra: &[&str]) -> Ran {
    let ran = outcrop(args(input, output, extra));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    ran
}

/// Runs `score` on lines of text; the answers, after checking the exit status.
fn score(extra: &[&str], input: &str, status: i32) -> Vec<Value> {
    let model = model("xlmr_base");
    let ran = outcrop_with_input(
        ["score", "--quiet", "--model", &model, "--input", "-"].iter().chain(extra),
        input.as_bytes(),
    );
    assert_eq!(ran.status, Some(status), "{}", ran.stderr);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    ran.json_lines()
}

/// The pairs of the first oracle case as input lines, with ids, and the reference's scores.
fn reference() -> (String, Vec<f64>) {
    let case = fixtures::pair_cases(&fixtures::path("xlmr_base"))
        .into_iter()
        .find(|case| case.scores.is_some() && case.options.max_length.is_none())
        .unwrap();
    let lines = case.pairs.iter().enumerate().map(|(i, (query, passage))| {
        format!("{}\n", json!({ "id": format!("pair-{i}"), "query": query, "passage": passage }))
    });
    (lines.collect(), case.scores.unwrap().remove(0))
}

#[test]
fn scores_are_the_references_in_the_order_of_the_input() {
    let (input, expected) = reference();
    let answers = score(&[], &input, 0);
    assert_eq!(answers.len(), expected.len());
    for (i, (answer, expected)) in answers.iter().zip(expected).enumerate() {
        let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "score", "tokens", "truncated"]);
        assert_eq!(answer["id"], format!("pair-{i}"));
        let difference = (answer["score"].as_f64().unwrap() - expected).abs();
        assert!(difference <= 5e-5, "pair {i}: {difference}");
    }
}

#[test]
fn files_in_and_out() {
    let (input, _) = reference();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("in.jsonl"), &input).unwrap();
    fs::write(path("out.jsonl"), "an older result").unwrap();
    let model = model("xlmr_base");
    let ran =
        outcrop(["score", "--model", &model, "--input", &path("in.jsonl"), "--output", &path("out.jsonl")]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.is_empty());
    let written = fs::read_to_string(path("out.jsonl")).unwrap();
    let answers: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers, score(&[], &input, 0));
    // The summary: pairs, tokens, seconds, rates, truncated.
    let tokens: u64 = answers.iter().map(|answer| answer["tokens"].as_u64().unwrap()).sum();
    let truncated = answers.iter().filter(|answer| answer["truncated"] == true).count();
    let summary = format!("outcrop: {} pairs and {tokens} tokens in ", answers.len());
    assert!(ran.stderr.starts_with(&summary), "{}", ran.stderr);
    assert!(ran.stderr.contains(" pairs/s, ") && ran.stderr.contains(" tokens/s), "), "{}", ran.stderr);
    assert!(ran.stderr.ends_with(&format!(", {truncated} truncated\n")), "{}", ran.stderr);
}

#[test]
fn many_lines_keep_their_order() {
    let lines =
        |n: usize| format!("{{\"query\": \"query {n}\", \"passage\": \"{}\"}}\n", "word ".repeat(n % 7));
    let input: String = (0..700).map(lines).collect();
    let answers = score(&["--batch-tokens", "64", "--threads", "2"], &input, 0);
    assert_eq!(answers.len(), 700);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer["line"], n + 1);
    }
    // Lines from several blocks, alone: the same bits.
    for n in [0, 63, 64, 699] {
        let alone = score(&["--threads", "1"], &lines(n), 0);
        assert_eq!(alone[0]["score"], answers[n]["score"]);
    }
}

#[test]
fn documents_and_tsv_are_the_same_pairs() {
    let answers = score(&[], "{\"id\": 1.50, \"query\": \"a b\", \"passage\": \"c d\"}\n", 0);
    let document = score(&[], "{\"id\": 1.50, \"document\": \"c d\", \"query\": \"a b\"}", 0);
    assert_eq!(document, answers);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.tsv");
    fs::write(&path, "a b\tc d\n\nbroken\n").unwrap();
    let model = model("xlmr_base");
    let ran = outcrop(["score", "--model", &model, "--input", path.to_str().unwrap()]);
    assert_eq!(ran.status, Some(1));
    let lines = ran.json_lines();
    assert_eq!(
        lines[0],
        json!({ "line": 1, "score": answers[0]["score"], "tokens": answers[0]["tokens"], "truncated": false })
    );
    assert_eq!(lines[1], json!({ "line": 3, "error": "expected query<TAB>passage, found 1 columns" }));
    assert!(ran.stderr.contains("1 failed, 1 blank lines skipped"), "{}", ran.stderr);
}

#[test]
fn options_reach_the_model() {
    let long = format!("{{\"query\": \"what is panda\", \"passage\": \"{}\"}}\n", "panda ".repeat(600));
    let plain = &score(&[], &long, 0)[0];
    assert_eq!((&plain["tokens"], &plain["truncated"]), (&json!(512), &json!(true)));
    let short = &score(&["--max-length", "40", "--query-max-length", "2"], &long, 0)[0];
    assert_eq!((&short["tokens"], &short["truncated"]), (&json!(40), &json!(true)));
    let normalized = score(&["--normalize"], &long, 0)[0]["score"].as_f64().unwrap();
    let expected = 1.0 / (1.0 + (-plain["score"].as_f64().unwrap()).exp());
    assert!((normalized - expected).abs() < 1e-15, "{normalized}, expected {expected}");

    let pair = "{\"query\": \"panda\", \"passage\": \"bear\"}\n";
    let instructed = score(
        &[
            "--query-instruction",
            "Q",
            "--query-instruction-format",
            "{1} {0}",
            "--passage-instruction",
            "the ",
        ],
        pair,
        0,
    );
    let written_out = score(&[], "{\"query\": \"panda Q\", \"passage\": \"the bear\"}\n", 0);
    assert_eq!(instructed, written_out);
    assert_ne!(instructed, score(&[], pair, 0));

    let model = model("xlmr_base");
    let args = ["score", "--model", &model, "--input", "-", "--query-instruction", "Q"];
    outcrop_with_input(args.iter().chain(&["--query-instruction-format", "{x}"]), pair.as_bytes())
        .refused(&["{x}"]);
}

/// Each kind of bad line has its error in its place, and the lines around it are scored as if it were not there.
#[test]
fn bad_lines_do_not_stop_the_others() {
    let good = "{\"query\": \"panda\", \"passage\": \"bear\"}";
    let too_long = format!("{{\"query\": \"{}\", \"passage\": \"p\"}}", "x".repeat(300));
    let bad: [(&[u8], &str); 11] = [
        (b"not JSON", "not valid JSON at column 2"),
        (b"{\"query\": \"q\", \"passage\": \"p\"", "not valid JSON"),
        (b"[1, 2]", "expected a JSON object, found an array"),
        (b"{\"query\": \"q\"}", "field \"passage\" is missing"),
        (b"{\"passage\": \"p\"}", "field \"query\" is missing"),
        (b"{\"query\": 3, \"passage\": \"p\"}", "field \"query\" must be a string, found a number"),
        (b"{\"query\": \"q\", \"document\": [\"p\"]}", "field \"document\" must be a string, found an array"),
        (
            b"{\"id\": true, \"query\": \"q\", \"passage\": \"p\"}",
            "field \"id\" must be a string or a number",
        ),
        (b"{\"query\": \"\xff\", \"passage\": \"p\"}", "not valid UTF-8 at byte 12"),
        (b"{\"query\": \"q\", \"passage\": \"p\", \"document\": \"p\"}", "are both given"),
        (too_long.as_bytes(), "more than the 200 that --max-line-bytes allows"),
    ];
    let mut input = Vec::new();
    for (line, _) in bad {
        input.extend_from_slice(good.as_bytes());
        input.push(b'\n');
        input.extend_from_slice(line);
        input.extend_from_slice(b"\n\n");
    }
    let model = model("xlmr_base");
    let args = ["score", "--model", &model, "--input", "-", "--max-line-bytes", "200"];
    let ran = outcrop_with_input(args, &input);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains(", 11 failed, 11 blank lines skipped"), "{}", ran.stderr);
    let alone = &score(&[], good, 0)[0];
    let answers = ran.json_lines();
    assert_eq!(answers.len(), 2 * bad.len());
    for (i, (_, message)) in bad.iter().enumerate() {
        let (scored, failed) = (&answers[2 * i], &answers[2 * i + 1]);
        assert_eq!((&scored["line"], &scored["score"]), (&json!(3 * i + 1), &alone["score"]));
        assert_eq!(failed["line"], 3 * i + 2);
        assert_eq!(failed.as_object().unwrap().len(), 2);
        assert!(failed["error"].as_str().unwrap().contains(message), "{failed}");
    }
}

#[test]
fn a_bad_line_with_an_id_keeps_it() {
    let answers = score(&[], "{\"id\": \"a\", \"query\": \"q\"}\n{\"query\": \"q\", \"passage\": \"p\"}", 1);
    assert_eq!(answers[0], json!({ "id": "a", "error": "field \"passage\" is missing" }));
}

#[test]
fn nothing_in_is_nothing_out_and_only_bad_lines_is_status_one() {
    assert!(score(&[], "", 0).is_empty());
    assert!(score(&[], "\n\n", 0).is_empty());
    assert_eq!(score(&[], "bad\nworse\n", 1).len(), 2);
}

#[test]
fn a_wrong_call_leaves_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl").to_str().unwrap().to_owned();
    fs::write(&path, "{\"query\": \"q\", \"passage\": \"p\"}\n").unwrap();
    let before = fs::read(&path).unwrap();
    let reranker = model("xlmr_base");
    outcrop(["score", "--model", &reranker, "--input", &path, "--output", &path]).refused(&["is the input"]);
    let output = dir.path().join("out.jsonl").to_str().unwrap().to_owned();
    fs::write(&output, "precious").unwrap();
    let embedder = model("embed_minilm");
    outcrop(["score", "--model", &embedder, "--input", &path, "--output", &output])
        .refused(&["BertModel", "without a scoring head"]);
    outcrop(["score", "--model", &reranker, "--input", "no-such-file", "--output", &output])
        .refused(&["cannot read no-such-file"]);
    outcrop(["score", "--model", &reranker, "--input", &path, "--output", "no-such-dir/out.jsonl"])
        .refused(&["cannot write no-such-dir/out.jsonl"]);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_to_string(&output).unwrap(), "precious");
}

/// One line for each passage of a list, with the bits that it has alone; a bad one fails alone.
#[test]
fn lists_of_passages() {
    let alone = score(&[], "{\"query\": \"panda\", \"passage\": \"bear\"}\n", 0);
    let input = concat!(
        "{\"id\": \"a\", \"query\": \"panda\", \"passages\": [\"city\", 5, \"bear\"]}\n",
        "{\"query\": \"panda\", \"documents\": [\"bear\"]}\n",
        "{\"query\": \"panda\", \"passages\": []}\n",
        "{\"query\": \"panda\", \"passages\": \"bear\"}\n",
        "{\"query\": \"panda\", \"passages\": [\"bear\"], \"document\": \"bear\"}\n",
    );
    let answers = score(&[], input, 1);
    assert_eq!(answers.len(), 7);
    assert_eq!((&answers[0]["id"], &answers[0]["index"]), (&json!("a"), &json!(0)));
    assert!(answers[0]["score"].is_number());
    assert_eq!(
        answers[1],
        json!({ "id": "a", "index": 1, "error": "the passage must be a string, found a number" })
    );
    assert_eq!((&answers[2]["index"], &answers[2]["score"]), (&json!(2), &alone[0]["score"]));
    assert_eq!(
        answers[3],
        json!({ "line": 2, "index": 0, "score": alone[0]["score"], "tokens": alone[0]["tokens"], "truncated": false })
    );
    let errors =
        ["\"passages\" is an empty list", "must be a list of strings, found a string", "are both given"];
    for (i, error) in errors.into_iter().enumerate() {
        assert_eq!(answers[4 + i]["line"], 3 + i);
        assert!(answers[4 + i]["error"].as_str().unwrap().contains(error), "{}", answers[4 + i]);
    }
}
