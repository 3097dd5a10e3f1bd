//! A model held open for a benchmark that drives it from outside.
//!
//! `score-loop MODEL_DIR PAIRS.jsonl [--batch-tokens N] [--threads N]` opens the model, prints `{"ready": true}`, and then for
//! each line `run` on stdin scores every pair, texts to scores, and prints `{"seconds": s, "scores": [...]}`. `quit` or the end
//! of the input ends it. What it measures is [`outcrop::Engine::score`]; start-up is not in the figure.

#![allow(clippy::print_stdout)]

use std::io::BufRead;
use std::time::Instant;

use outcrop::{Engine, EngineOptions, ScoreOptions};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut positional = Vec::new();
    let mut options = EngineOptions::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<usize, Error> {
            Ok(arguments.next().ok_or_else(|| format!("{argument} needs a number"))?.parse()?)
        };
        match argument.as_str() {
            "--batch-tokens" => options.batch_tokens = Some(number()?),
            "--threads" => options.threads = Some(number()?),
            _ => positional.push(argument),
        }
    }
    let [model, pairs] = positional.as_slice() else {
        return Err("usage: score-loop MODEL_DIR PAIRS.jsonl [--batch-tokens N] [--threads N]".into());
    };
    let engine = Engine::open(model, &options)?;
    let pairs = read_pairs(pairs)?;
    println!("{}", json!({"ready": true}));
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                let start = Instant::now();
                let results = engine.score(&pairs, &ScoreOptions::default())?;
                let seconds = start.elapsed().as_secs_f64();
                let scores: Vec<f64> = results
                    .into_iter()
                    .map(|result| result.map(|score| score.score))
                    .collect::<Result<_, _>>()?;
                println!("{}", json!({"seconds": seconds, "scores": scores}));
            }
            "quit" => break,
            other => return Err(format!("unknown command {other:?}: expected run or quit").into()),
        }
    }
    Ok(())
}

fn read_pairs(path: &str) -> Result<Vec<(String, String)>, Error> {
    let mut pairs = Vec::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let pair: Value = serde_json::from_str(line)?;
        let text = |name| {
            pair[name].as_str().map(str::to_owned).ok_or_else(|| format!("{path}: no {name} in {line}"))
        };
        pairs.push((text("query")?, text("passage")?));
    }
    Ok(pairs)
}
