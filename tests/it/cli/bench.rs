//! `outcrop bench kernels`: what it prints and refuses. Its figures are no matter of tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::device::Machine;
use super::{Ran, outcrop, outcrop_with_input};
use crate::fixtures::required;

/// Two rows that take no time.
const QUICK: [&str; 6] = ["bench", "kernels", "row_dot/base", "gather_rows/base", "--seconds", "0.001"];

/// Runs the quick rows with more arguments.
fn quick(more: &[&str]) -> Ran {
    outcrop(QUICK.iter().chain(more))
}

/// The record that a run prints.
fn record(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}\n{}", ran.stdout, ran.stderr))
}

fn names(record: &Value) -> Vec<&str> {
    record["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn a_table_for_people() {
    let ran = quick(&[]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].contains("threads, weights in f32; operands rotated over"), "{}", ran.stdout);
    assert!(lines[1].starts_with("ceilings of this run: ") && lines[1].contains("GB/s"), "{}", ran.stdout);
    let [head, gather, between, dot] = lines[3..] else { panic!("{}", ran.stdout) };
    assert!(head.contains("median us") && head.ends_with("kernel"), "{head}");
    assert!(gather.starts_with("gather_rows/base/64/len64 ") && gather.contains("GB/s"), "{gather}");
    assert!(dot.starts_with("row_dot/base/64/len64 ") && dot.ends_with("  -"), "{dot}");
    assert_eq!(between, "");
    // Columns stand under their names.
    assert_eq!(head.find("kernel"), dot.rfind('-'), "{}", ran.stdout);
}

#[test]
fn a_record_for_machines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("record.json");
    let ran = quick(&["--tokens", "64,256", "--json", "--commit", "abc", "--output", file.to_str().unwrap()]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let found = record(&ran);
    assert_eq!(record(&Ran { stdout: fs::read_to_string(&file).unwrap(), ..ran }), found);
    assert_eq!(
        names(&found),
        [
            "gather_rows/base/64/len64",
            "gather_rows/base/256/len128",
            "row_dot/base/64/len64",
            "row_dot/base/256/len128"
        ]
    );
    assert_eq!(
        (&found["commit"], &found["dtype"], &found["device"]["device"]),
        (&json!("abc"), &json!("f32"), &json!("cpu"))
    );
    let command = found["command"].as_str().unwrap();
    assert!(command.starts_with("outcrop bench kernels row_dot/base gather_rows/base"), "{command}");
    assert!(found["date"].as_str().unwrap().ends_with('Z'));
    let row = &found["rows"][3];
    assert_eq!((&row["kernel"], &row["shape"]), (&json!("row_dot"), &json!({ "rows": 2, "width": 768 })));
    assert_eq!((&row["flops"], &row["kernels"]), (&json!(2 * 2 * 768), &json!([])));
    let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"));
    assert!(number("p10_us") <= number("median_us") && number("median_us") <= number("p90_us"), "{row}");
    // The rates are the counts over the median.
    let gbs = number("bytes") / number("median_us") / 1e3;
    assert!((number("gbs") / gbs - 1.0).abs() < 1e-9, "{row}");
    let ceiling = found["ceilings"]["gbs"].as_f64().unwrap();
    assert_eq!(row["bound"], "bandwidth");
    assert!((number("of_ceiling") / (gbs / ceiling) - 1.0).abs() < 1e-9, "{row}");
}

/// A kernel that a forward pass launches has rows. Somebody who adds one finds out here.
#[test]
fn every_kernel_has_rows() {
    let ran = outcrop(["bench", "kernels", "--list"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src");
    let mut checked = 0;
    for entry in fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        let kernel = path.file_name().unwrap().to_string_lossy().into_owned();
        // Not those that run while a model is loaded, nor a part of the matrix product.
        if !path.join("cpu.rs").exists() || ["add_low_rank", "rope"].contains(&kernel.as_str()) {
            continue;
        }
        assert!(ran.stdout.lines().any(|name| name.starts_with(&format!("{kernel}/"))), "no row of {kernel}");
        checked += 1;
    }
    assert!(checked >= 14, "{checked} kernels");
    // Everything that is listed can be asked for, with its shape.
    let list = outcrop(["bench", "kernels", "gemm/gemma/gate", "--list", "--json", "--tokens", "4096"]);
    let shape = json!({ "m": 4096, "n": 16384, "k": 2048, "epilogue": "gated-gelu-tanh" });
    let expected = json!({ "name": "gemm/gemma/gate-up/4096", "kernel": "gemm", "shape": shape });
    assert_eq!(list.json_lines(), [expected]);
}

#[test]
fn shapes_by_hand() {
    let shape = ["--m", "3,5", "--n", "24", "--k", "17", "--epilogue", "bias-gelu-erf", "--dtype", "bf16"];
    let ran = outcrop([&["bench", "kernels", "--json", "--seconds", "0.001"][..], &shape].concat());
    let found = record(&ran);
    assert_eq!(names(&found), ["gemm/3x24x17/bias-gelu-erf", "gemm/5x24x17/bias-gelu-erf"]);
    let row = &found["rows"][1];
    assert_eq!(row["flops"], 2 * 5 * 24 * 17);
    // Weights of 16 bits, all else f32.
    assert_eq!(row["bytes"], 4 * 5 * (17 + 24) + 2 * 24 * 17);
}

#[test]
fn wrong_calls() {
    for args in [
        &["--m", "0", "--n", "8", "--k", "8"][..],
        &["--m", "x", "--n", "8", "--k", "8"],
        &["--m", "8"],
        &["--n", "8"],
        &["--m", "8", "--n", "8", "--k", "8", "gemm"],
        &["--m", "8", "--n", "8", "--k", "8", "--epilogue", "sigmoid"],
        &["--tokens", "0"],
        &["--seconds", "0"],
        &["--seconds", "nan"],
        &["--fail-below", "1"],
        &["--variant-of", "gemm/gemm.cu"],
        &["--lines", "--json"],
    ] {
        let ran = outcrop([&["bench", "kernels"], args].concat());
        assert_eq!(ran.status, Some(2), "{args:?}: {}", ran.stdout);
        assert!(ran.stdout.is_empty() && ran.stderr.contains("--help"), "{args:?}: {}", ran.stderr);
    }
    outcrop(["bench", "kernels", "gem/base/up"]).refused(&[
        "\"gem/base/up\"",
        "nearest",
        "gemm/base/up",
        "--list",
    ]);
    // One pattern of several that matches nothing is an error too: it is a slip.
    outcrop(["bench", "kernels", "row_dot", "rms/gemma"]).refused(&["rms/gemma", "rms_norm/gemma"]);
}

#[test]
fn a_row_that_fails_fails_alone() {
    // A rotation in heads of 64 columns of which there are 100.
    let args = [
        "bench",
        "kernels",
        "--m",
        "4",
        "--n",
        "100,128",
        "--k",
        "16",
        "--epilogue",
        "rope",
        "--seconds",
        "0.001",
    ];
    let ran = outcrop(args);
    assert_eq!(ran.status, Some(1), "{}", ran.stdout);
    let rows: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("gemm/")).collect();
    assert!(rows[0].contains("failed: gemm: rotary_head_dim"), "{}", ran.stdout);
    assert!(rows[1].contains("FLOP/s") || rows[1].contains("GB/s"), "{}", ran.stdout);
    let found = record(&outcrop([&args[..], &["--json"]].concat()));
    assert!(found["rows"][0]["error"].is_string() && found["rows"][0]["median_us"].is_null(), "{found}");
}

/// A record with its medians changed: `factor` times as long, or of rows that are not there.
fn baseline(dir: &Path, change: impl Fn(&mut Value)) -> PathBuf {
    static MEASURED: OnceLock<Value> = OnceLock::new();
    let mut found = MEASURED.get_or_init(|| record(&quick(&["--json"]))).clone();
    change(&mut found);
    let file = dir.join("baseline.json");
    fs::write(&file, found.to_string()).unwrap();
    file
}

#[test]
fn ratios_to_a_baseline() {
    let dir = tempfile::tempdir().unwrap();
    // The first row took a thousand seconds then; the second was not there, and two others were, one of them not asked for now.
    let file = baseline(dir.path(), |record| {
        let rows = record["rows"].as_array_mut().unwrap();
        rows[0]["median_us"] = json!(1e9);
        rows[1]["name"] = json!("row_dot/base/9/len9");
        rows.push(json!({ "name": "gemm/base/qkv/64", "median_us": 1.0 }));
    });
    let file = file.to_str().unwrap();
    let ran = quick(&["--baseline", file, "--fail-below", "0.98"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("baseline") && ran.stdout.contains("      new "), "{}", ran.stdout);
    assert!(ran.stdout.contains("1 rows beside those of"), "{}", ran.stdout);
    let last = ran.stdout.lines().last().unwrap();
    assert_eq!(last, "in the baseline alone: row_dot/base/9/len9");

    let found = record(&quick(&["--baseline", file, "--json"]));
    let row = &found["rows"][0];
    let (ratio, median) = (row["ratio"].as_f64().unwrap(), row["median_us"].as_f64().unwrap());
    assert!((ratio / (1e9 / median) - 1.0).abs() < 1e-9, "{row}");
    assert_eq!(found["rows"][1]["ratio"], Value::Null);
    let mean = found["baseline"]["geometric_mean"].as_f64().unwrap();
    assert!((mean / ratio - 1.0).abs() < 1e-9, "{found}");
    assert_eq!(found["baseline"]["in_baseline_alone"], json!(["row_dot/base/9/len9"]));
}

#[test]
fn slower_than_a_baseline() {
    let dir = tempfile::tempdir().unwrap();
    let file = baseline(dir.path(), |record| {
        for row in record["rows"].as_array_mut().unwrap() {
            row["median_us"] = json!(1e-6);
        }
    });
    let file = file.to_str().unwrap();
    // Slower is worth an exit status only if it was asked for.
    assert_eq!(quick(&["--baseline", file]).status, Some(0));
    let ran = quick(&["--baseline", file, "--fail-below", "0.98"]);
    assert_eq!(ran.status, Some(1), "{}", ran.stdout);
    let names = "below 0.98 of the baseline: gather_rows/base/64/len64, row_dot/base/64/len64\n";
    assert!(ran.stderr.ends_with(names), "{}", ran.stderr);
}

#[test]
fn baselines_of_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = baseline(dir.path(), |record| record["device"]["name"] = json!("NVIDIA H200"));
    let file = file.to_str().unwrap();
    quick(&["--baseline", file]).refused(&["baseline.json", "NVIDIA H200 in f32", "--any-device"]);
    assert_eq!(quick(&["--baseline", file, "--any-device"]).status, Some(0));
    let other_type = baseline(dir.path(), |record| record["dtype"] = json!("bf16"));
    quick(&["--baseline", other_type.to_str().unwrap()]).refused(&["in bf16", "in f32"]);
    let other_threads = baseline(dir.path(), |record| record["device"]["threads"] = json!(999));
    quick(&["--baseline", other_threads.to_str().unwrap()]).refused(&["999 threads"]);
    for (text, reason) in [("{", "EOF"), ("{}", "no `rows`"), ("{\"rows\": []}", "names no device")] {
        fs::write(dir.path().join("baseline.json"), text).unwrap();
        quick(&["--baseline", file]).refused(&["no record of", reason]);
    }
    quick(&["--baseline", "none.json"]).refused(&["cannot read none.json"]);
}

#[test]
fn rows_by_their_names_on_standard_input() {
    let args = ["bench", "kernels", "--lines", "--seconds", "0.001"];
    let ran = outcrop_with_input(args, b"row_dot/base/64/len64\nrow_dot/base/64/len64\nlayout/64/len64\n");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let answers = ran.json_lines();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[2]["name"], "layout/64/len64");
    assert!(answers.iter().all(|answer| answer["median_us"].as_f64().unwrap() > 0.0), "{answers:?}");
    let ran = outcrop_with_input(args, b"row_dot\n");
    assert_eq!(ran.status, Some(1));
    assert!(ran.json_lines()[0]["error"].as_str().unwrap().contains("--list"), "{}", ran.stdout);
}

#[test]
fn on_the_emulator() {
    let Some(library) = std::env::var_os("OUTCROP_EMULATOR") else {
        assert!(!required("emulator"), "REQUIRE asks for the emulator, but OUTCROP_EMULATOR is not set");
        eprintln!("SKIPPED: OUTCROP_EMULATOR is not set");
        return;
    };
    let device = format!("emulator:{}", library.to_string_lossy());
    let more = ["--device", &device, "--json", "--dtype", "bf16"];
    let found = record(&quick(&more));
    let kernel = &found["rows"][1]["kernels"][0];
    assert_eq!((&kernel["name"], &kernel["path"]), (&json!("row_dot<bf16>"), &json!("row_dot/row_dot.cu")));
    assert_eq!((&found["dtype"], &found["device"]["name"]), (&json!("bf16"), &json!("emulator")));
    // 16-bit operands: a row of 768 at two bytes, weights and score at four.
    assert_eq!(found["rows"][1]["bytes"], 768 * 2 + 768 * 4 + 4);
    quick(&["--device", &device, "--variant", "row_dot.cu"]).refused(&["--device cuda"]);
}

/// The built-in files as they are in the tree.
fn built_in(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src").join(path)).unwrap()
}

/// A machine whose driver is not real, but whose compiler is.
fn machine_with_nvrtc() -> Option<Machine> {
    let Some(nvrtc) = std::env::var_os("OUTCROP_NVRTC") else {
        assert!(!required("nvrtc"), "REQUIRE asks for nvrtc, but OUTCROP_NVRTC is not set");
        eprintln!("SKIPPED: OUTCROP_NVRTC is not set");
        return None;
    };
    Some(Machine::new().set("OUTCROP_NVRTC", nvrtc))
}

#[test]
fn variants() {
    let Some(machine) = machine_with_nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("row_dot.cu");
    let path = file.to_str().unwrap();
    let args =
        ["bench", "kernels", "row_dot", "embed", "--device", "cuda", "--tokens", "64", "--seconds", "0.001"];
    let run = |text: &str, more: &[&str]| {
        fs::write(&file, text).unwrap();
        machine.outcrop(&[&args[..], &["--variant", path], more].concat())
    };
    let text = built_in("row_dot/row_dot.cu");

    // What lies beside it goes before what is built in.
    fs::write(dir.path().join("mine.cuh"), "#define MINE 1\n").unwrap();
    let ran = run(&format!("#include \"mine.cuh\"\nstatic_assert(MINE == 1, \"\");\n{text}"), &[]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    // Rows of other files are not there; the fake device computes nothing, in equal times.
    let rows: Vec<&str> = ran.stdout.lines().skip(3).collect();
    assert_eq!(rows.len(), 5, "{}", ran.stdout);
    assert!(rows.iter().all(|row| row.starts_with("row_dot/")), "{}", ran.stdout);
    assert!(rows.iter().all(|row| row.contains("   1.000   1.000  1.000  bits equal")), "{}", ran.stdout);
    let found = record(&run(&text, &["--json"]));
    let variant = &found["rows"][0]["variant"];
    assert_eq!((&variant["ratio"], &variant["difference"]["different"]), (&json!(1.0), &json!(0)));
    assert_eq!(variant["kernels"][0]["name"], "row_dot<f16>");

    // An error is shown with the variant's own name and line, and ends the run.
    let line = text.lines().count() + 1;
    run(&format!("{text}\nnot_a_type x;\n"), &[]).refused(&[
        "row_dot<f16>",
        &format!("{path}({})", line + 1),
        "not_a_type",
    ]);
    // Another parameter block is found out.
    let renamed = text.replace("bias;", "offset;");
    assert_ne!(renamed, text);
    run(&renamed.replace("p.bias", "p.offset"), &[]).refused(&["RowDotParams", "bias"]);
}

#[test]
fn variants_of_what() {
    let machine = Machine::new();
    let run = |more: &[&str]| machine.outcrop(&[&["bench", "kernels", "--device", "cuda"], more].concat());
    run(&["--variant", "mine.cu"]).refused(&[
        "no built-in kernel file is called mine.cu",
        "--variant-of",
        "gemm/gemm.cu",
    ]);
    run(&["--variant", "mine.cu", "--variant-of", "gemm.cu"]).refused(&["called gemm.cu", "gemm/gemm.cu"]);
    run(&["--variant", "none/gemm.cu"]).refused(&["cannot read none/gemm.cu"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    run(&["rms_norm", "--variant", path, "--variant-of", "gemm/gemm.cu"])
        .refused(&["none of these rows", "gemm/gemm.cu"]);
    quick(&["--variant", path, "--variant-of", "gemm/gemm.cu"]).refused(&["--device cuda"]);
}

/// Kernels are named in the table with what they take; operands are as many as two caches hold.
#[test]
fn on_a_gpu() {
    let args =
        ["bench", "kernels", "row_dot/base", "--device", "cuda", "--tokens", "64", "--seconds", "0.001"];
    let ran = Machine::new().outcrop(&args);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.starts_with("Fake 0: CUDA 12.8, driver "), "{}", ran.stdout);
    assert!(ran.stdout.contains("gemm, 8192 cubed"), "{}", ran.stdout);
    assert!(
        ran.stdout.lines().last().unwrap().ends_with("0    0.0 K      0  row_dot<f16>"),
        "{}",
        ran.stdout
    );
    let found = record(&Machine::new().outcrop(&[&args[..], &["--json"]].concat()));
    assert_eq!(found["device"]["l2_bytes"], 1 << 20);
    let row = &found["rows"][0];
    let (copies, bytes) = (row["copies"].as_u64().unwrap(), row["bytes"].as_u64().unwrap());
    assert!((copies - 1) * bytes >= 2 << 20 || copies == 512, "{row}");
}
