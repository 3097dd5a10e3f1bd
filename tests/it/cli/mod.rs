//! The command line as a user runs it: arguments in; output, messages and exit status out.

mod bad_models;
mod bench;
mod bench_model;
mod convert;
mod decoders;
mod device;
mod embed;
mod hub;
mod inspect;
mod launches;
mod rerank;
mod score;
mod streams;
mod synth;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures;

/// How a run of the program came out.
struct Ran {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The output lines as JSON.
    fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Checks that the program refused with one clear message that holds every one of `words`.
    fn refused(&self, words: &[&str]) {
        assert_eq!(self.status, Some(2), "{}", self.stderr);
        assert!(self.stdout.is_empty(), "{}", self.stdout);
        assert_eq!(self.stderr.matches("outcrop: ").count(), 1, "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
    }
}

/// Runs the program to its end.
fn outcrop<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    outcrop_with_input(args, b"")
}

/// Runs the program to its end with `input` as its standard input.
fn outcrop_with_input<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, input: &[u8]) -> Ran {
    run(&mut command(args), input)
}

/// Runs a command to its end.
fn run(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        // The program may end without reading all of it.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap()
    });
    let ran = Ran {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

/// Starts the program with all three streams as pipes, and without a network.
pub(crate) fn spawn<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Child {
    command(args).spawn().unwrap()
}

/// The program with all three streams as pipes, and without a network.
pub(crate) fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program());
    // What these tests expect to the last digit is what the CPU computes.
    command.args(args).env("HF_HUB_OFFLINE", "1").env("OUTCROP_DEVICE", "cpu");
    for variable in ["HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The program, built with the profile of the tests if it is not up to date. Cargo tells a test where the programs of
/// its own package are, and this one belongs to another.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = match test.ancestors().nth(2).and_then(Path::file_name).and_then(OsStr::to_str).unwrap()
        {
            "debug" => "test",
            profile => profile,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--package", "outcrop", "--bin", "outcrop", "--message-format", "json"])
            .args(["--profile", profile, "--manifest-path"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("Cargo.toml"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the program does not build");
        let messages = String::from_utf8(built.stdout).unwrap();
        let messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let executable =
            messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next();
        executable.expect("cargo names the program it built")
    })
}

/// A model that `synth` made, in a directory of its own with room for others beside it.
struct Made {
    model: PathBuf,
    _dir: TempDir,
}

/// A tiny model of a family with random weights, as `synth` makes it.
fn made(family: &str) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let path = model.to_str().unwrap();
    let ran = outcrop(["synth", "--family", family, "--size", "tiny", path]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    Made { model, _dir: dir }
}

/// The answers of `score` for pairs of several lengths.
fn answers(model: &Path, extra: &[&str]) -> Vec<Value> {
    let long =
        "Bamboo makes up more than nine tenths of its diet, with an occasional egg or rodent. ".repeat(6);
    let pairs = [
        ("what is a panda?", "The giant panda is a bear species endemic to China."),
        ("what is a panda?", "hi"),
        ("capital of France", "Paris is the capital and the most populous city of France."),
        ("what does a panda eat", &long),
    ];
    let input: String = pairs
        .iter()
        .map(|(query, passage)| format!("{}\n", json!({ "query": query, "passage": passage })))
        .collect();
    let args = ["score", "--model", model.to_str().unwrap(), "--input", "-"];
    let ran = outcrop_with_input(args.iter().chain(extra), input.as_bytes());
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    ran.json_lines()
}

/// The scores among the answers.
fn scores(model: &Path, extra: &[&str]) -> Vec<f64> {
    answers(model, extra).iter().map(|answer| answer["score"].as_f64().unwrap()).collect()
}

/// The path of a fixture model as an argument.
fn model(name: &str) -> String {
    fixtures::path(name).to_str().unwrap().to_owned()
}

#[test]
fn help_has_examples() {
    let help = outcrop(["--help"]);
    assert_eq!(help.status, Some(0));
    for command in ["rerank", "score", "embed", "inspect", "convert", "synth", "doctor", "bench"] {
        assert!(help.stdout.contains(command), "{}", help.stdout);
        let help = outcrop([command, "--help"]);
        assert_eq!(help.status, Some(0));
        assert!(help.stdout.contains("Examples:"), "{}", help.stdout);
        assert!(help.stdout.contains(&format!("  outcrop {command} ")), "{}", help.stdout);
    }
}

#[test]
fn wrong_calls_are_refused() {
    for args in [
        &[][..],
        &["rank"],
        &["score", "--model", "m"],
        &["rerank", "--model", "m", "q", "p", "--top-n", "0"],
        &["rerank", "--model", "m", "q", "p", "--threads", "0"],
        &["rerank", "--model", "m", "q", "p", "--passages", "-"],
        &["synth", "--family", "xlmr", "--size", "huge", "dir"],
    ] {
        let ran = outcrop(args);
        assert_eq!(ran.status, Some(2), "{args:?}");
        assert!(ran.stdout.is_empty() && ran.stderr.contains("--help"), "{args:?}: {}", ran.stderr);
    }
}
