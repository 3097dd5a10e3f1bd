//! Ratchets on the source tree. A line here only ever becomes stricter, or changes with a reason in its commit.

use std::fs;
use std::path::{Path, PathBuf};

/// Direct dependencies of each crate, tests aside. A new one is a decision: it is added here by hand.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    (
        "loader",
        &[
            "bytemuck",
            "half",
            "hf-hub",
            "memmap2",
            "safetensors",
            "serde",
            "serde_json",
            "thiserror",
            "tokenizers",
            "ureq",
        ],
    ),
    (
        "kernels",
        &[
            "bytemuck",
            "cudarc",
            "gemm",
            "half",
            "libloading",
            "pulp",
            "rayon",
            "sha2",
            "tempfile",
            "thiserror",
        ],
    ),
    ("models", &["outcrop-kernels", "outcrop-loader", "thiserror"]),
    (
        "runtime",
        &[
            "arrow-array",
            "arrow-schema",
            "axum",
            "base64",
            "bytes",
            "clap",
            "console",
            "futures-util",
            "half",
            "http-body-util",
            "hyper-util",
            "indicatif",
            "metrics",
            "metrics-exporter-prometheus",
            "opentelemetry",
            "opentelemetry-http",
            "opentelemetry-otlp",
            "opentelemetry_sdk",
            "outcrop-kernels",
            "outcrop-loader",
            "outcrop-models",
            "parquet",
            "prost",
            "quick_cache",
            "rayon",
            "serde",
            "serde_json",
            "serde_path_to_error",
            "sha2",
            "subtle",
            "thiserror",
            "tokio",
            "tonic",
            "tonic-health",
            "tonic-prost",
            "tonic-reflection",
            "tonic-types",
            "tower-http",
            "tracing",
            "tracing-subscriber",
            "unicode-segmentation",
            "uuid",
        ],
    ),
];

/// Lines of Rust per crate, tests included.
const LINES_MAX: &[(&str, usize)] = &[
    ("loader", 6200),
    // Two thirds for CUDA: the device layer, launches, and tests on the emulator.
    ("kernels", 19200),
    ("models", 2800),
    // A fifth for `outcrop bench`, a quarter for the server with its queue and gRPC, a seventh for `outcrop score`: Parquet, shards, checkpoints, run-batch.
    ("runtime", 18700),
    ("benches", 500),
    ("tests", 10400),
];

/// Folders of kernels/src that hold no kernel.
const NOT_KERNELS: &[&str] = &["bench", "driver"];
/// Kernels of the CPU alone: run while a model is loaded, or part of another kernel on CUDA.
const CPU_ONLY: &[&str] = &["add_low_rank", "rope"];
/// Kernels of CUDA alone.
const CUDA_ONLY: &[&str] = &["pack_weights"];

/// Files that may hold unsafe code, beside all of `kernels`.
const UNSAFE_ALLOWED: &[&str] = &["loader/src/mmap.rs", "tests/it/memory.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All files below `dir` with this extension, except build output.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                found.extend(files(&path, extension));
            }
        } else if name.ends_with(&format!(".{extension}")) {
            found.push(path);
        }
    }
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

#[test]
fn direct_dependencies_are_those_decided() {
    for (krate, expected) in DEPENDENCIES {
        let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        let mut found = Vec::new();
        let mut inside = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                inside = line == "[dependencies]";
            } else if inside && !line.starts_with('#') && !line.trim().is_empty() {
                found.push(line.split(['.', ' ', '=']).next().unwrap().to_owned());
            }
        }
        found.sort();
        assert_eq!(&found, expected, "{krate}/Cargo.toml");
    }
}

#[test]
fn crates_and_files_stay_small() {
    for (krate, max) in LINES_MAX {
        let mut total = 0;
        for file in files(&root().join(krate), "rs") {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= 600, "{}: {lines} lines; move the second idea out", relative(&file));
            total += lines;
        }
        assert!(total <= *max, "{krate}: {total} lines, budget {max}");
        assert!(total * 2 >= *max, "{krate}: {total} lines; lower its budget of {max}");
    }
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(architecture <= 200, "ARCHITECTURE.md: {architecture} lines");
}

#[test]
fn unsafe_code_stays_where_it_is_allowed() {
    // Written apart so that this file does not find itself.
    let word = concat!("un", "safe");
    for file in files(root(), "rs") {
        let name = relative(&file);
        if name.starts_with("kernels/") || UNSAFE_ALLOWED.contains(&name.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for form in [" {", " fn", " impl", " trait"] {
            assert!(!text.contains(&format!("{word}{form}")), "{name} holds {word}{form}");
        }
    }
}

#[test]
fn every_kernel_is_a_whole_folder() {
    let kernels = root().join("kernels/src");
    let lib = fs::read_to_string(kernels.join("lib.rs")).unwrap();
    let mut folders = 0;
    for entry in fs::read_dir(&kernels).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !path.is_dir() || NOT_KERNELS.contains(&name.as_str()) {
            continue;
        }
        folders += 1;
        let mut wanted = vec!["mod.rs".to_owned()];
        if !CUDA_ONLY.contains(&name.as_str()) {
            wanted.extend(["cpu.rs", "tests.rs"].map(str::to_owned));
        }
        if !CPU_ONLY.contains(&name.as_str()) {
            wanted.extend([format!("{name}.cu"), "cuda.rs".to_owned(), "cuda_tests.rs".to_owned()]);
        }
        for file in wanted {
            assert!(path.join(&file).exists(), "kernels/src/{name} has no {file}");
        }
        assert!(lib.contains(&format!("pub mod {name};")), "{name} is not in kernels/src/lib.rs");
        let contract = fs::read_to_string(path.join("mod.rs")).unwrap();
        assert!(contract.starts_with("//!"), "{name} has no contract");
        assert!(contract.contains("pub fn cost("), "{name} does not state its cost");
    }
    assert!(folders >= 8, "only {folders} kernels found");
}

#[test]
fn tests_are_not_hidden_and_nothing_is_left_open() {
    let forbidden = [
        concat!("#[ig", "nore"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
    ];
    for file in files(root(), "rs") {
        let text = fs::read_to_string(&file).unwrap();
        for word in forbidden {
            assert!(!text.contains(word), "{} holds {word}", relative(&file));
        }
    }
}

#[test]
fn paths_in_documents_exist() {
    let folders = ["loader", "kernels", "models", "runtime", "benches", "tests"];
    let mut checked = 0;
    for file in files(root(), "md") {
        let text = fs::read_to_string(&file).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = folders.iter().any(|folder| quoted.starts_with(&format!("{folder}/")));
            if is_path && !quoted.contains([' ', '<', '*', '{']) {
                assert!(
                    root().join(quoted).exists(),
                    "{} names {quoted}, which is not there",
                    relative(&file)
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= 5, "only {checked} paths found in documents");
}

#[test]
fn the_changelog_is_kept() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains("\n## Unreleased\n\n- "), "CHANGELOG.md has no entries under Unreleased");
}
