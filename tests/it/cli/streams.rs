//! Pipes, interruptions and memory: what happens while the program runs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{model, outcrop, spawn};

const PAIR: &str = "{\"query\": \"panda\", \"passage\": \"bear\"}\n";

fn start(extra: &[&str]) -> Child {
    let model = model("xlmr_base");
    spawn(["score", "--quiet", "--model", &model, "--input", "-"].iter().chain(extra))
}

/// Lets the program end, and returns what it said on standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
    drop(child.stdin.take());
    let mut messages = String::new();
    child.stderr.take().unwrap().read_to_string(&mut messages).unwrap();
    (child.wait().unwrap().code(), messages)
}

#[test]
fn a_line_is_answered_before_the_next_one_is_sent() {
    let mut child = start(&[]);
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 1..=3 {
        stdin.write_all(PAIR.as_bytes()).unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["line"], number);
    }
    drop(stdin);
    assert_eq!(end(child), (Some(0), String::new()));
}

/// A line of 100 MB becomes an error, and is never held: the peak of resident memory stays below its length.
#[test]
fn a_line_of_100_mb_is_not_held() {
    let mut child = start(&[]);
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        stdin.write_all(&chunk).unwrap();
    }
    stdin.write_all(format!("\n{PAIR}").as_bytes()).unwrap();
    let mut answer = || serde_json::from_str::<Value>(&answers.next().unwrap().unwrap()).unwrap();
    let failed = answer();
    let message = failed["error"].as_str().unwrap();
    assert_eq!(failed["line"], 1);
    assert!(message.contains("104857600 bytes") && message.contains("16777216"), "{message}");
    assert!(answer()["score"].is_number());
    if let Some(peak) = peak_bytes(&child) {
        assert!(peak < 80 << 20, "peak of resident memory: {peak} bytes");
    }
    drop(stdin);
    assert_eq!(end(child), (Some(1), String::new()));
}

/// Resident memory stays within 15 % of the weights and the activations of one batch: packed weights are not held next to
/// their pages of the file, and the embedding tables are read row by row.
#[test]
fn the_process_takes_little_more_than_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let made =
        outcrop(["synth", "--family", "bert", "--size", "base", "--quiet", dir.path().to_str().unwrap()]);
    assert_eq!(made.status, Some(0), "{}", made.stderr);
    let weights = fs::metadata(dir.path().join("model.safetensors")).unwrap().len();
    // 1024 tokens of 7 * 768 floats.
    let activations = 1024 * 7 * 768 * 4;

    let mut child = spawn(["embed", "--quiet", "--input", "-", "--model", dir.path().to_str().unwrap()]);
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let text = format!("{{\"text\": \"{}\"}}\n", "the river runs past the old bridge ".repeat(60));
    stdin.write_all(text.repeat(6).as_bytes()).unwrap();
    for _ in 0..6 {
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["embedding"].as_array().unwrap().len(), 768, "{answer}");
        assert!(answer["tokens"].as_u64().unwrap() > 400, "{answer}");
    }
    if let Some(peak) = peak_bytes(&child) {
        let limit = (weights + activations) * 115 / 100;
        assert!(peak < limit, "peak of resident memory: {peak} bytes, limit {limit}");
    }
    drop(stdin);
    assert_eq!(end(child), (Some(0), String::new()));
}

/// The most memory the program has had resident, where the system tells.
fn peak_bytes(child: &Child) -> Option<u64> {
    match fs::read_to_string(format!("/proc/{}/status", child.id())) {
        Ok(status) => {
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            Some(peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10)
        }
        Err(error) => {
            eprintln!("SKIPPED the peak of memory: no /proc: {error}");
            None
        }
    }
}

/// `outcrop score ... | head -1`
#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let mut child = start(&[]);
    let mut stdin = child.stdin.take().unwrap();
    // Endless input, until the program goes away.
    let writer = thread::spawn(move || while stdin.write_all(PAIR.repeat(100).as_bytes()).is_ok() {});
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    assert!(first.starts_with("{\"line\":1,"), "{first}");
    drop(stdout);
    assert_eq!(end(child), (Some(0), String::new()));
    writer.join().unwrap();
}

/// What has been computed is in a file beside the output when the program is killed, and the output has not its name.
#[test]
fn an_interruption_keeps_what_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    let mut child = start(&["--output", output.to_str().unwrap()]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(PAIR.repeat(5).as_bytes()).unwrap();
    let started = Instant::now();
    let part = dir.path().join("out.jsonl.part");
    let written = || fs::read_to_string(&part).unwrap_or_default();
    while written().lines().count() < 5 {
        assert!(started.elapsed() < Duration::from_secs(60), "no results: {}", written());
        thread::sleep(Duration::from_millis(20));
    }
    // The input is still open: the program waits for more.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!output.exists());
    for line in written().lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["score"].is_number());
    }
}
