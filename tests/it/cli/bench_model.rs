//! `outcrop bench model`: what it prints and refuses. Its figures are no matter of tests.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{Made, Ran, made, outcrop, outcrop_with_input};
use crate::fixtures::required;

/// Calls that take no time, once each.
const QUICK: [&str; 9] =
    ["--passages", "2", "--lengths", "fixed:40", "--query-tokens", "6", "--seconds", "0.001", "--rounds=1"];

fn encoder() -> &'static str {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| made("xlmr")).model.to_str().unwrap()
}

fn decoder() -> &'static str {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| made("gemma2")).model.to_str().unwrap()
}

fn bench(model: &str, more: &[&str]) -> Ran {
    outcrop(["bench", "model", model].iter().chain(more))
}

/// The same on the quick texts.
fn quick(model: &str, more: &[&str]) -> Ran {
    bench(model, &[&QUICK, more].concat())
}

fn record(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}\n{}", ran.stdout, ran.stderr))
}

fn names(record: &Value) -> Vec<&str> {
    record["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn tables_for_people() {
    let ran = quick(encoder(), &["--profile"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("model, ") && lines[0].contains("threads"), "{}", ran.stdout);
    assert!(lines[1].starts_with("ceilings of this run: ") && lines[1].contains("FLOP/s"), "{}", ran.stdout);
    assert!(lines[3].starts_with("texts") && lines[3].ends_with("ceiling"), "{}", ran.stdout);
    assert!(lines[4].starts_with("1x2/fixed:40 ") && lines[4].ends_with(" %"), "{}", ran.stdout);
    // Columns end under their names.
    assert_eq!(lines[3].len(), lines[4].len(), "{}", ran.stdout);
    assert!(lines[6].contains("kernel calls, one by one"), "{}", ran.stdout);
    for start in ["gemm 192 x 64", "attention full", "embedding ", "layer 0 ", "layer 1 ", "head "] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "no {start:?} in {}", ran.stdout);
    }
}

#[test]
fn a_record_for_machines() {
    let dir = tempfile::tempdir().unwrap();
    let [file, svg] = ["record.json", "picture.svg"].map(|name| dir.path().join(name));
    let more = [
        "--json",
        "--passages",
        "1,3",
        "--dtype",
        "f32,bf16",
        "--batch-tokens",
        "64",
        "--profile",
        "--commit",
        "abc",
        "--output",
        file.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
        "--ceiling",
        "0.001",
    ];
    // The later --passages counts.
    let more = [&QUICK[2..], &more].concat();
    let ran = bench(encoder(), &more);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let found = record(&ran);
    assert_eq!(record(&Ran { stdout: fs::read_to_string(&file).unwrap(), ..ran }), found);
    assert_eq!(
        names(&found),
        [
            "1x1/fixed:40/f32/batch:64",
            "1x1/fixed:40/bf16/batch:64",
            "1x3/fixed:40/f32/batch:64",
            "1x3/fixed:40/bf16/batch:64"
        ]
    );
    assert_eq!((&found["model"], &found["commit"]), (&json!("model"), &json!("abc")));
    assert_eq!(found["ceilings"]["tflops"], 0.001);
    let row = &found["rows"][3];
    assert_eq!(
        (&row["dtype"], &row["batch_tokens"], &row["graphs"]),
        (&json!("bf16"), &json!(64), &json!(true))
    );
    let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"));
    // Texts have the lengths asked for, to the token.
    assert_eq!((number("pairs_per_call"), number("tokens_per_pair")), (3.0, 40.0));
    assert!(number("p50_ms") <= number("p95_ms") && number("p95_ms") <= number("p99_ms"), "{row}");
    assert!(number("device_ms") + number("tokenize_ms") <= number("p99_ms"), "{row}");
    assert!((number("of_ceiling") - number("tflops") / 0.001).abs() < 1e-9, "{row}");
    assert!((number("tokens_per_s") / number("pairs_per_s") - 40.0).abs() < 1e-6, "{row}");
    // The profile's parts are its whole, in the record and in the picture.
    let kernels = row["profile"]["kernels"].as_array().unwrap();
    let total: f64 = kernels.iter().map(|kernel| kernel["ms"].as_f64().unwrap()).sum();
    assert!((total / row["profile"]["ms"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{row}");
    // Every product of the two layers, and those of the head besides.
    let in_layers = |kernel: &&Value| kernel["part"] == "layer";
    let flops = |of: &str| -> f64 {
        let of = kernels.iter().filter(in_layers).filter(|kernel| kernel["kernel"] == of);
        of.map(|kernel| kernel["flops"].as_f64().unwrap()).sum()
    };
    assert!((flops("gemm") + flops("attention") - number("flops_per_call")).abs() < 1.0, "{row}");
    let picture = fs::read_to_string(&svg).unwrap();
    for name in names(&found) {
        assert!(picture.contains(&format!(">{name}: ")), "no {name} in {picture}");
    }
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
}

/// Depths are compared in one run: every combination has a row, and less is computed where less was asked for.
#[test]
fn cutoffs_and_compression() {
    let depths = [
        "--lengths",
        "fixed:90",
        "--passages",
        "2",
        "--query-tokens",
        "4",
        "--seconds",
        "0.001",
        "--rounds",
        "2",
        "--cutoff-layers",
        "2",
        "--cutoff-layers",
        "2,5",
        "--compress-ratio",
        "1,2",
        "--compress-layers",
        "1",
        "--json",
    ];
    let found = record(&bench(crate::fixtures::path("gemma2_lightweight").to_str().unwrap(), &depths));
    assert_eq!(
        names(&found),
        [
            "1x2/fixed:90/cutoff:2/ratio:1@1",
            "1x2/fixed:90/cutoff:2/ratio:2@1",
            "1x2/fixed:90/cutoff:2,5/ratio:1@1",
            "1x2/fixed:90/cutoff:2,5/ratio:2@1"
        ]
    );
    let flops = |row: usize| found["rows"][row]["flops_per_call"].as_f64().unwrap();
    assert!(flops(1) < flops(0) && flops(0) < flops(3) && flops(3) < flops(2), "{found}");
    assert_eq!(found["rows"][2]["pairs_per_s_of_rounds"].as_array().unwrap().len(), 2);
    let compared = [&QUICK[..], &["--compare", "prefix-sharing,programmatic-launch"]];
    let compared = [compared.concat(), vec!["--json", "--cutoff-layers", "8"]].concat();
    let lengths = compared.iter().position(|word| *word == "fixed:40").unwrap();
    let compared = [&compared[..lengths], &["fixed:80"], &compared[lengths + 1..]].concat();
    let found = record(&bench(decoder(), &compared));
    let suffixes =
        ["", "/prefix-sharing:off", "/programmatic-launch:on", "/programmatic-launch:on/prefix-sharing:off"];
    assert_eq!(names(&found), suffixes.map(|suffix| format!("1x2/fixed:80/cutoff:8{suffix}")));
    let flops = |row: usize| found["rows"][row]["flops_per_call"].as_f64().unwrap();
    assert!(flops(0) < flops(1), "{found}");
}

#[test]
fn texts_from_a_file_and_to_one() {
    let dir = tempfile::tempdir().unwrap();
    let [made, pairs] = ["made.jsonl", "pairs.tsv"].map(|name| dir.path().join(name));
    let lognormal = ["--lengths", "lognormal:30:0.4", "--passages", "40", "--query-tokens", "5", "--json"];
    let short = ["--seconds", "0.001", "--rounds", "1"];
    let written = ["--texts-out", made.to_str().unwrap()];
    let first = record(&bench(encoder(), &[&lognormal[..], &short, &written].concat()));
    assert_eq!(names(&first), ["1x40/lognormal:30:0.4"]);
    let mean = first["rows"][0]["tokens_per_pair"].as_f64().unwrap();
    assert!((26.0..34.0).contains(&mean), "{first}");
    // The same texts again, in every run, and from the file.
    let again = dir.path().join("again.jsonl");
    bench(encoder(), &[&lognormal[..], &short, &["--texts-out", again.to_str().unwrap()]].concat());
    let text = fs::read_to_string(&made).unwrap();
    assert_eq!(text, fs::read_to_string(&again).unwrap());
    // Seven calls of forty pairs are spread over the distribution.
    assert_eq!((text.lines().count(), first["rows"][0]["calls"].as_u64()), (7, Some(7)));
    let from_file = format!("file:{}", made.display());
    let read = record(&bench(encoder(), &[&["--lengths", &from_file, "--json"], &short[..]].concat()));
    assert_eq!(names(&read), ["file:made.jsonl"]);
    assert_eq!(read["rows"][0]["calls"], 7);
    assert_eq!(read["rows"][0]["flops_per_call"], first["rows"][0]["flops_per_call"]);

    fs::write(&pairs, "a query\ta passage\n\nanother\tone more passage\n").unwrap();
    let from_file = format!("file:{}", pairs.display());
    let args = [&["bench", "model", encoder(), "--lengths", &from_file, "--lines"], &short[..]].concat();
    let ran = outcrop_with_input(&args, b"file:pairs.tsv\nfile:pairs\n");
    assert_eq!(ran.status, Some(1));
    let [head, answer, unknown] = &ran.json_lines()[..] else { panic!("{}", ran.stdout) };
    assert_eq!(head, &json!({ "name": "file:pairs.tsv", "pairs": 2 }));
    assert!(answer["seconds"].as_f64() > answer["device_s"].as_f64(), "{answer}");
    assert!(unknown["error"].is_string(), "{unknown}");
    // Scores are those of `score`, in the order of the file.
    let scored = outcrop(["score", "--model", encoder(), "--input", pairs.to_str().unwrap()]);
    let scores: Vec<Value> = scored.json_lines().iter().map(|line| line["score"].clone()).collect();
    assert_eq!(answer["scores"], json!(scores));

    let bad = |text: &str, words: &[&str]| {
        fs::write(&pairs, text).unwrap();
        bench(encoder(), &["--lengths", &from_file]).refused(words);
    };
    bad("a\tb\nno tab\n", &["pairs.tsv, line 2", "no tab", "query<TAB>passage"]);
    bad("{\"query\": \"a\"}\n", &["line 1", "passage"]);
    bad("{\"query\": \"a\", \"passages\": []}\n", &["line 1", "empty"]);
    bad("\n", &["holds no pair"]);
    bench(encoder(), &["--lengths", "file:none.jsonl"]).refused(&["cannot read none.jsonl"]);
}

#[test]
fn wrong_calls() {
    for args in [
        &["--lengths", "512"][..],
        &["--lengths", "lognormal:0"],
        &["--passages", "0"],
        &["--queries", "0"],
        &["--seconds", "0"],
        &["--rounds", "0"],
        &["--cutoff-layers", "8,x"],
        &["--compress-layers", "8"],
        &["--compare", "everything"],
        &["--fail-below", "1"],
        &["--lines", "--json"],
    ] {
        let ran = bench("nowhere", args);
        assert_eq!(ran.status, Some(2), "{args:?}: {}", ran.stdout);
        assert!(ran.stdout.is_empty() && ran.stderr.contains("--help"), "{args:?}: {}", ran.stderr);
    }
    quick(encoder(), &["--cutoff-layers", "1"]).refused(&["cutoff_layers"]);
    quick(encoder(), &["--compress-ratio", "2"]).refused(&["compress_ratio"]);
    quick(encoder(), &["--compare", "prefix-sharing"]).refused(&["prefix_sharing"]);
    bench(encoder(), &["--lengths", "fixed:9"]).refused(&[
        "cannot have 9 tokens",
        "query of 32",
        "--query-tokens",
    ]);
    quick("nowhere/at/all", &[]).refused(&["nowhere/at/all"]);
}

/// The record of the quick texts, changed.
fn baseline(dir: &Path, change: impl Fn(&mut Value)) -> String {
    static MEASURED: OnceLock<Value> = OnceLock::new();
    let mut found = MEASURED.get_or_init(|| record(&quick(encoder(), &["--json"]))).clone();
    change(&mut found);
    let file = dir.join("baseline.json");
    fs::write(&file, found.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn faster_and_slower_than_a_baseline() {
    let dir = tempfile::tempdir().unwrap();
    let file = baseline(dir.path(), |record| record["rows"][0]["p50_ms"] = json!(1e9));
    let ran = quick(encoder(), &["--baseline", &file, "--fail-below", "0.98"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(
        ran.stdout.contains("  baseline\n") && ran.stdout.contains("1 rows beside those of"),
        "{}",
        ran.stdout
    );
    let file = baseline(dir.path(), |record| record["rows"][0]["p50_ms"] = json!(1e-6));
    assert_eq!(quick(encoder(), &["--baseline", &file]).status, Some(0));
    let ran = quick(encoder(), &["--baseline", &file, "--fail-below", "0.98", "--json"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.ends_with("below 0.98 of the baseline: 1x2/fixed:40\n"), "{}", ran.stderr);
    let found = record(&ran);
    let (ratio, median) = (&found["rows"][0]["ratio"], &found["rows"][0]["p50_ms"]);
    assert!((ratio.as_f64().unwrap() * median.as_f64().unwrap() / 1e-6 - 1.0).abs() < 1e-9, "{found}");
    // A row that is not in the baseline is new; one that is there alone is named.
    let file = baseline(dir.path(), |record| record["rows"][0]["name"] = json!("1x9/fixed:40"));
    let ran = quick(encoder(), &["--baseline", &file, "--fail-below", "0.98"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("new\n") && ran.stdout.ends_with("in the baseline alone: 1x9/fixed:40\n"),
        "{}",
        ran.stdout
    );

    let file = baseline(dir.path(), |record| record["device"]["name"] = json!("NVIDIA H200"));
    quick(encoder(), &["--baseline", &file]).refused(&["NVIDIA H200", "--any-device"]);
    let file = baseline(dir.path(), |record| record["model"] = json!("bge-reranker-base"));
    quick(encoder(), &["--baseline", &file]).refused(&["of the model bge-reranker-base, and this is model"]);
    fs::write(&file, "{}").unwrap();
    quick(encoder(), &["--baseline", &file])
        .refused(&["no record of `outcrop bench model --output`", "no `rows`"]);
}

#[test]
fn the_first_score_of_a_fresh_process() {
    let found = record(&quick(encoder(), &["--first", "2", "--json"]));
    let first = &found["first_score"];
    let seconds: Vec<f64> =
        first["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    assert_eq!((seconds.len(), first["open_s"].as_array().unwrap().len()), (2, 2));
    // Opening is a part of it.
    assert!(seconds.iter().zip(0..).all(|(s, i)| *s > first["open_s"][i].as_f64().unwrap()), "{first}");
    assert_eq!(first["median_s"].as_f64().unwrap(), seconds[0].min(seconds[1]));
    // What keeps the process from scoring is said, once by it and once by us.
    let ran = quick(crate::fixtures::path("embed_m3").to_str().unwrap(), &["--first", "1"]);
    assert_eq!(ran.status, Some(2), "{}", ran.stdout);
}

#[test]
fn on_the_emulator() {
    let Some(library) = std::env::var_os("OUTCROP_EMULATOR") else {
        assert!(!required("emulator"), "REQUIRE asks for the emulator, but OUTCROP_EMULATOR is not set");
        eprintln!("SKIPPED: OUTCROP_EMULATOR is not set");
        return;
    };
    let device = format!("emulator:{}", library.to_string_lossy());
    let more = ["--device", &device, "--json", "--dtype", "bf16", "--profile", "--compare", "graphs"];
    let found = record(&quick(encoder(), &more));
    assert_eq!(names(&found), ["1x2/fixed:40/bf16", "1x2/fixed:40/bf16/graphs:off"]);
    for row in found["rows"].as_array().unwrap() {
        let kernels = row["profile"]["kernels"].as_array().unwrap();
        let first = &kernels[0];
        assert_eq!(
            (&first["part"], &first["kernel"], &first["index"]),
            (&json!("embedding"), &json!("layout"), &Value::Null)
        );
        let launched = |kernel: &Value| !kernel["instances"].as_array().unwrap().is_empty();
        assert!(kernels.iter().all(launched), "{row}");
        assert!(row["device_ms"].as_f64() > Some(0.0), "{row}");
    }
    // The prompt of a decoder leaves less room.
    let gemma = crate::fixtures::path("gemma");
    let texts = QUICK.map(|word| if word == "fixed:40" { "fixed:80" } else { word });
    let more = ["--device", &device, "--json", "--dtype", "bf16", "--compare", "fold-norms"];
    let found = record(&bench(gemma.to_str().unwrap(), &[&texts[..], &more].concat()));
    assert_eq!(names(&found), ["1x2/fixed:80/bf16", "1x2/fixed:80/bf16/fold-norms:on"]);
}
