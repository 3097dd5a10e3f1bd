//! Times a model on a GPU: part of `tests/gpu`. (Kernels alone: `outcrop bench kernels`.)
//!
//! `gpu-bench model DIR [--device D] [--cutoff-layers N] [--compress-ratio N] [--compress-layers A,B]` prints a JSON object on stdout
//! and a table for people on stderr. Times are medians of whole calls of [`outcrop::Engine::score`], texts to scores, tokenisation
//! included.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Instant;

use outcrop::{Compression, Device, Engine, EngineOptions, Gpus, ScoreOptions};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (mut device, mut positional) = (Device::Cuda(Gpus::Some(vec![0])), Vec::new());
    let (mut cutoffs, mut ratio, mut layers) = (None, None, Compression::DEFAULT_LAYERS.to_vec());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--device" => device = value()?.parse()?,
            "--cutoff-layers" => cutoffs = Some(value()?.parse()?),
            "--compress-ratio" => ratio = Some(value()?.parse()?),
            "--compress-layers" => {
                layers = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            other if other.starts_with("--") => return Err(format!("no option {other}").into()),
            _ => positional.push(argument),
        }
    }
    let positional: Vec<&str> = positional.iter().map(String::as_str).collect();
    let found = match positional[..] {
        ["model", dir] => {
            let compression = ratio.map(|ratio| Compression::new(ratio, &layers)).transpose()?;
            model(dir, device, cutoffs, compression)?
        }
        _ => return Err("usage: gpu-bench model DIR [options]".into()),
    };
    println!("{found}");
    Ok(())
}

/// Passages of a call.
const PASSAGES: usize = 100;

/// A model at the two shapes of KERNELS 1.4, and one pair alone.
fn model(
    dir: &str,
    device: Device,
    cutoff: Option<usize>,
    compression: Option<Compression>,
) -> Result<Value, Error> {
    let start = Instant::now();
    let engine = Engine::open(dir, &EngineOptions { device, ..EngineOptions::default() })?;
    let cutoff_layers = cutoff.map(|cutoff| engine.cutoffs(&[cutoff])).transpose()?;
    let options = |max_length, query_max_length| ScoreOptions {
        max_length: Some(max_length),
        query_max_length: Some(query_max_length),
        cutoff_layers: cutoff_layers.clone(),
        compression: compression.clone(),
        ..ScoreOptions::default()
    };
    engine.prepare(&options(512, 32))?;
    let opened = start.elapsed().as_secs_f64();
    eprintln!("{dir}, cutoff {cutoff:?}: opened in {opened:.1} s, on {}", engine.device());
    let passages: Vec<String> = (0..PASSAGES).map(|i| words(600, i)).collect();
    let query = words(60, 1000);
    let mut rows = Vec::new();
    for (name, count, max_length) in
        [("100 x 512", PASSAGES, 512), ("100 x (32 + 128)", PASSAGES, 160), ("1 x 512", 1, 512)]
    {
        let options = options(max_length, 32);
        let run = || -> Result<(f64, usize), Error> {
            let start = Instant::now();
            let ranking = engine.rerank(&query, &passages[..count], &options)?;
            if let Some((index, error)) = ranking.failed.first() {
                return Err(format!("passage {index}: {error}").into());
            }
            Ok((start.elapsed().as_secs_f64(), ranking.results.iter().map(|ranked| ranked.tokens).sum()))
        };
        let (first, tokens) = run()?;
        // The second run records the launches that the others replay.
        let rounds = if first > 20.0 { 1 } else { 7 };
        let mut seconds = (0..rounds).map(|_| Ok(run()?.0)).collect::<Result<Vec<f64>, Error>>()?;
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        let (pairs, mean) = (count as f64 / median, tokens as f64 / count as f64);
        eprintln!(
            "  {name:18} {:9.2} ms {pairs:9.0} pairs/s, {mean:.0} tokens a pair, first {:.0} ms",
            median * 1e3,
            first * 1e3
        );
        rows.push(json!({ "shape": name, "ms": median * 1e3, "pairs_per_s": pairs, "tokens_per_pair": mean, "first_ms": first * 1e3 }));
    }
    let name = std::path::Path::new(dir).file_name().map(|name| name.to_string_lossy());
    Ok(
        json!({ "model": name, "cutoff": cutoff, "open_s": opened, "device": engine.device().devices, "shapes": rows }),
    )
}

/// Words without end, different for every seed.
fn words(count: usize, seed: usize) -> String {
    const WORDS: [&str; 12] = [
        "stone", "river", "light", "paper", "small", "north", "glass", "field", "under", "green", "house",
        "water",
    ];
    (0..count).map(|i| WORDS[(i * 7 + i * i / 5 + seed * 11) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}
