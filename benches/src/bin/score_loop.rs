//! A model held open for a benchmark that drives it from outside.
//!
//! `score-loop MODEL_DIR PAIRS.jsonl [options]` opens the model, prints `{"ready": true, "tokens": n, "flops": n}`, and then for each
//! line `run` on stdin scores every pair, texts to scores, and prints `{"seconds": s, "scores": [...]}`. `quit` or the end of the
//! input ends it. What it measures is [`outcrop::Engine::score`]; opening and reading weights are not in the figure. `tokens` are
//! those of the sequences, a shared query counted for each.
//!
//! Options: `--device D` (the CPU if not given), `--batch-tokens N`, `--threads N`, `--cutoff-layers A,B`, `--compress-ratio N`, `--compress-layers A,B`,
//! `--no-prefix-sharing`, `--dtype f16|bf16|f32`.

#![allow(clippy::print_stdout)]

use std::io::BufRead;
use std::time::Instant;

use outcrop::{Compression, Device, Dtype, Engine, EngineOptions, Score, ScoreOptions};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    positional: Vec<String>,
    engine: EngineOptions,
    cutoff_layers: Option<Vec<usize>>,
    compress_ratio: Option<usize>,
    compress_layers: Option<Vec<usize>>,
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let [model, pairs] = arguments.positional.as_slice() else {
        return Err("usage: score-loop MODEL_DIR PAIRS.jsonl [options]".into());
    };
    let engine = Engine::open(model, &arguments.engine)?;
    let layers = arguments.compress_layers.as_deref().unwrap_or(Compression::DEFAULT_LAYERS);
    let options = ScoreOptions {
        cutoff_layers: arguments.cutoff_layers.map(|layers| engine.cutoffs(&layers)).transpose()?,
        compression: arguments.compress_ratio.map(|ratio| Compression::new(ratio, layers)).transpose()?,
        ..Default::default()
    };
    let pairs = read_pairs(pairs)?;
    let scores = |pairs: &[(String, String)]| -> Result<Vec<Score>, Error> {
        Ok(engine.score(pairs, &options)?.into_iter().collect::<Result<_, _>>()?)
    };
    engine.prepare(&options)?;
    let mut tokens = 0;
    for (query, passage) in &pairs {
        tokens += engine.pair_sequence(query, passage, &options)?.sequence.input_ids.len();
    }
    println!("{}", json!({"ready": true, "tokens": tokens, "flops": engine.flops(&pairs, &options)?}));
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                let start = Instant::now();
                let results = scores(&pairs)?;
                let seconds = start.elapsed().as_secs_f64();
                let scores: Vec<f64> = results.iter().map(|score| score.score).collect();
                println!("{}", json!({"seconds": seconds, "scores": scores}));
            }
            "quit" => break,
            other => return Err(format!("unknown command {other:?}: expected run or quit").into()),
        }
    }
    Ok(())
}

fn arguments() -> Result<Arguments, Error> {
    let mut found = Arguments::default();
    found.engine.device = Device::Cpu;
    let mut rest = std::env::args().skip(1);
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{argument} needs a value"));
        let numbers = |list: String| -> Result<Vec<usize>, Error> {
            Ok(list.split(',').map(str::parse).collect::<Result<_, _>>()?)
        };
        match argument.as_str() {
            "--batch-tokens" => found.engine.batch_tokens = Some(value()?.parse()?),
            "--threads" => found.engine.threads = Some(value()?.parse()?),
            "--device" => found.engine.device = value()?.parse()?,
            "--no-prefix-sharing" => found.engine.prefix_sharing = false,
            "--dtype" => {
                found.engine.dtype = match value()?.as_str() {
                    "f16" => Dtype::F16,
                    "bf16" => Dtype::BF16,
                    "f32" => Dtype::F32,
                    other => return Err(format!("no dtype {other}").into()),
                }
            }
            "--cutoff-layers" => found.cutoff_layers = Some(numbers(value()?)?),
            "--compress-ratio" => found.compress_ratio = Some(value()?.parse()?),
            "--compress-layers" => found.compress_layers = Some(numbers(value()?)?),
            other if other.starts_with("--") => return Err(format!("no option {other}").into()),
            _ => found.positional.push(argument),
        }
    }
    Ok(found)
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
