//! The first score of a fresh process: opening the model, loading kernels, one pair.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use outcrop::{Engine, ScoreOptions};
use serde_json::{Value, json};

use super::seen::quantile;
use super::settings::kinds;
use crate::Status;
use crate::args::ModelBenchArgs;
use crate::error::Error;
use crate::output::Output;
use crate::synth::vocabulary;

/// The argument by which a process learns that it is the fresh one.
const ARGUMENT: &str = "--fresh";

/// Starts `count` processes one after the other, and before them one that does not count: it fills the caches of kernels and of files.
/// Seconds from the start of a process to its score.
pub(super) fn measure(count: usize) -> Result<Value, Error> {
    let mut times = Vec::with_capacity(count);
    let mut open_seconds = Vec::with_capacity(count);
    for i in 0..=count {
        let start = Instant::now();
        let read = |source| Error::Read { from: "the fresh process".to_owned(), source };
        let program = std::env::current_exe().map_err(read)?;
        let mut process = Command::new(program)
            .args(std::env::args_os().skip(1))
            .arg(ARGUMENT)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(read)?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(read)?;
        }
        let elapsed = start.elapsed();
        let status = process.wait().map_err(read)?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| Error::Fresh { status })?;
        if i > 0 {
            times.push(elapsed);
            open_seconds.push(answer["open_s"].clone());
        }
    }
    Ok(json!({
        "median_s": quantile(times.iter().copied(), 0.5) / 1e3,
        "seconds": times.iter().map(std::time::Duration::as_secs_f64).collect::<Vec<_>>(),
        "open_s": open_seconds,
    }))
}

/// The fresh process: opens the model, scores a pair and says so.
pub(super) fn score(args: &ModelBenchArgs, dir: &Path) -> Result<Status, Error> {
    let start = Instant::now();
    // Of several the first.
    let options = kinds(args).into_iter().next().map(|kind| kind.options).unwrap_or_default();
    let engine = Engine::open(dir, &options)?;
    let open = start.elapsed().as_secs_f64();
    let cutoff_layers = args.cutoff_layers.first().map(|layers| engine.cutoffs(&layers.0)).transpose()?;
    let options = ScoreOptions { cutoff_layers, ..ScoreOptions::default() };
    let passage: Vec<&str> = vocabulary::words().take(600).collect();
    let scores = engine.score(&[("what is a panda", passage.join(" "))], &options)?;
    for score in scores {
        let mut output = Output::create(None)?;
        output.json_line(&json!({ "open_s": open, "score": score?.score }))?;
        output.flush()?;
    }
    Ok(Status::Done)
}
