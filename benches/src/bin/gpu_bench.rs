//! Times the kernels and the models on a GPU: part of `tests/gpu`.
//!
//! `gpu-bench kernels [--device D]` and `gpu-bench model DIR [--device D] [--cutoff-layers N] [--compress-ratio N]
//! [--compress-layers A,B]` print one JSON object each on stdout, and a table for people on stderr. Kernel times are medians by the
//! device's own clock over many launches; a model's are medians of whole calls of [`outcrop::Engine::score`], texts to scores,
//! tokenisation included.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Instant;

use outcrop::{Compression, Device, Engine, EngineOptions, Gpus, ScoreOptions};
use outcrop_kernels::add_layer_norm::{LayerNorm, add_layer_norm};
use outcrop_kernels::attention::{AttentionParams, Mask, Rows, attention};
use outcrop_kernels::gemm::{Activation, Epilogue, Matrix, Part, gemm};
use outcrop_kernels::layout::{Bounds, Layout, LayoutBuffer, ScoredRow, Segments};
use outcrop_kernels::rms_norm::{RmsNorm, rms_norm};
use outcrop_kernels::{Buffer, Cost, ElementType, Elements, EmulatorOptions, Role, Stream};
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
        ["kernels"] => kernels(&device)?,
        ["model", dir] => {
            let compression = ratio.map(|ratio| Compression::new(ratio, &layers)).transpose()?;
            model(dir, device, cutoffs, compression)?
        }
        _ => return Err("usage: gpu-bench kernels | gpu-bench model DIR [options]".into()),
    };
    println!("{found}");
    Ok(())
}

/// Matrix products of the published models: name, n, k, and what comes after.
const PRODUCTS: &[(&str, usize, usize, After)] = &[
    ("base qkv", 2304, 768, After::Bias),
    ("base up", 3072, 768, After::Gelu),
    ("base down", 768, 3072, After::Bias),
    ("large qkv", 3072, 1024, After::Bias),
    ("large up", 4096, 1024, After::Gelu),
    ("large down", 1024, 4096, After::Bias),
    ("minicpm qkv", 6912, 2304, After::Nothing),
    ("minicpm gate, up", 5760, 2304, After::Gate),
    ("minicpm down", 2304, 5760, After::Residual),
    ("gemma gate, up", 16384, 2048, After::Gate),
    ("gemma down", 2048, 16384, After::Residual),
    ("gemma2 gate, up", 14336, 3584, After::Gate),
    ("gemma2 down", 3584, 14336, After::Nothing),
];

#[derive(Clone, Copy, PartialEq)]
enum After {
    Nothing,
    Bias,
    Gelu,
    Gate,
    Residual,
}

fn stream(device: &Device) -> Result<Stream, Error> {
    Ok(match device {
        Device::Cpu | Device::Auto => Stream::cpu(None)?,
        Device::Cuda(Gpus::Some(ordinals)) => Stream::cuda(ordinals[0], ElementType::F16)?,
        Device::Cuda(Gpus::All) => Stream::cuda(0, ElementType::F16)?,
        Device::Emulator(options) => {
            let options: EmulatorOptions = options.clone();
            Stream::emulator(options, ElementType::F16)?
        }
    })
}

/// Every kernel that matters for time, at the shapes of the published models.
fn kernels(device: &Device) -> Result<Value, Error> {
    let stream = stream(device)?;
    // The emulator and the CPU are for trying this program, not for its figures.
    let tokens: &[usize] =
        if stream.properties().is_some_and(|p| p.driver_version.0 > 0) { &[512, 4096, 16384] } else { &[64] };
    let mut rows = Vec::new();
    for &(name, n, k, after) in PRODUCTS {
        for &m in tokens {
            let (ms, cost) = product(&stream, m, n, k, after)?;
            rows.push(row(&format!("gemm {name}"), &format!("{m} tokens"), ms, cost));
        }
    }
    for (name, heads, kv_heads, head_dim, mask) in [
        ("d64 full", 16, 16, 64, Mask::Full),
        ("d64 causal", 36, 36, 64, Mask::Causal),
        ("d256 causal", 8, 1, 256, Mask::Causal),
    ] {
        for len in [128, 512] {
            let batch = (tokens[tokens.len() - 1] / len).max(1);
            let (ms, cost) = attend(&stream, batch, len, (heads, kv_heads, head_dim), mask)?;
            rows.push(row(&format!("attention {name}"), &format!("{batch} x {len}"), ms, cost));
        }
    }
    for (name, width) in [("base", 768), ("large", 1024), ("gemma", 2048), ("gemma2", 3584)] {
        let m = tokens[tokens.len() - 1];
        let (ms, cost) = norm(&stream, m, width)?;
        rows.push(row(&format!("norm {name}"), &format!("{m} tokens"), ms, cost));
    }
    Ok(json!({ "device": stream.properties().map(|p| p.name.clone()), "kernels": rows }))
}

/// One line of the table, and the same for machines.
fn row(name: &str, size: &str, ms: f32, cost: Cost) -> Value {
    let (tflops, gbs) = (cost.flops as f64 / f64::from(ms) / 1e9, cost.bytes as f64 / f64::from(ms) / 1e6);
    eprintln!("{name:28} {size:14} {:10.1} us {tflops:8.1} TFLOP/s {gbs:8.0} GB/s", ms * 1e3);
    json!({ "kernel": name, "size": size, "us": ms * 1e3, "tflops": tflops, "gbs": gbs })
}

/// Median milliseconds of one of `work`'s launches: after a few to warm up, in ten groups.
fn median(stream: &Stream, mut work: impl FnMut() -> Result<(), Error>) -> Result<f32, Error> {
    let mut once = || {
        let mut failed = None;
        let ms = stream.time_ms(|| {
            failed = work().err();
            Ok(())
        })?;
        failed.map_or(Ok(ms), Err)
    };
    let first = once()?.max(once()?);
    let per_group = if first > 50.0 { 1 } else { 10 };
    let mut group = || -> Result<f32, Error> {
        let mut sum = 0.0;
        for _ in 0..per_group {
            sum += once()?;
        }
        Ok(sum / per_group as f32)
    };
    let mut groups =
        (0..if first > 50.0 { 1 } else { 10 }).map(|_| group()).collect::<Result<Vec<_>, _>>()?;
    groups.sort_by(f32::total_cmp);
    Ok(groups[groups.len() / 2])
}

/// Values between -1 and 1 without a pattern that a product could profit from.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

fn product(stream: &Stream, m: usize, n: usize, k: usize, after: After) -> Result<(f32, Cost), Error> {
    let weights = noise(n * k);
    let rows = Part { weights: Elements::F32(&weights), rows: n, rotary_head_dim: None };
    let role = if after == After::Residual { Role::Full } else { Role::Operand };
    let [mut d, mut a] = Buffer::allocate(stream, [(role, m * n), (Role::Operand, m * k)])?;
    a.write(&noise(m * k))?;
    let bias = Buffer::upload(stream, &noise(n))?;
    let (matrix, epilogue) = match after {
        After::Gate => {
            let elements = Elements::F32(&weights);
            let matrix = Matrix::pack_gated(stream, elements, elements, n, k, None)?;
            (matrix, Epilogue::Gated(Activation::GeluTanh))
        }
        _ => {
            let epilogue = match after {
                After::Bias => Epilogue::Bias(&bias),
                After::Gelu => Epilogue::BiasGeluErf(&bias),
                After::Residual => Epilogue::AddScaled(1.0),
                After::Nothing | After::Gate => Epilogue::None,
            };
            (Matrix::pack(stream, &[rows], k, None)?, epilogue)
        }
    };
    let ms = median(stream, || Ok(gemm(stream, &mut d, &a, &matrix, 0..1, m.into(), epilogue)?))?;
    // Bytes as below: those that a GPU moves, operands of 16 bits, the residual stream read and written in f32.
    let weights = if after == After::Gate { 2 * n * k } else { n * k };
    let element_bytes = if after == After::Residual { 8 } else { 2 };
    let bytes = 2 * (m * k + weights) + element_bytes * m * n;
    Ok((ms, Cost { flops: (2 * m * weights) as u64, bytes: bytes as u64 }))
}

fn attend(
    stream: &Stream,
    batch: usize,
    len: usize,
    (num_heads, num_kv_heads, head_dim): (usize, usize, usize),
    mask: Mask,
) -> Result<(f32, Cost), Error> {
    let layout = Layout::new(Segments::of_sequences(vec![len; batch], ScoredRow::First));
    let tokens = layout.num_tokens();
    let mut buffer = LayoutBuffer::new(stream, tokens)?;
    let spans = layout.spans.clone();
    buffer.load(layout, Bounds { tokens, seqs: batch })?;
    buffer.lay_out(stream)?;
    let (q, kv) = (num_heads * head_dim, num_kv_heads * head_dim);
    let stride = q + 2 * kv;
    let [mut out, mut qkv] =
        Buffer::allocate(stream, [(Role::Operand, tokens * q), (Role::Operand, tokens * stride)])?;
    qkv.write(&noise(tokens * stride))?;
    let softmax_scale = (head_dim as f32).powf(-0.5);
    let params = AttentionParams { num_heads, num_kv_heads, head_dim, softmax_scale, mask, softcap: None };
    let ms = median(stream, || {
        let [q, k, v] = [0, q, q + kv].map(|column| Rows { buffer: &qkv, stride, column });
        Ok(attention(stream, &mut out, q, k, v, buffer.spans(), params)?)
    })?;
    // Counted in f32.
    let Cost { flops, bytes } = outcrop_kernels::attention::cost(&spans, params);
    Ok((ms, Cost { flops, bytes: bytes / 2 }))
}

/// The encoders' norm for widths up to 1024, the decoders' above. Bytes are those that a GPU moves, operands of 16 bits.
fn norm(stream: &Stream, m: usize, width: usize) -> Result<(f32, Cost), Error> {
    let weight = Buffer::upload(stream, &noise(width))?;
    let wanted = [(Role::Operand, m * width), (Role::Operand, m * width), (Role::Full, m * width)];
    let [mut x, mut y, mut residual] = Buffer::allocate(stream, wanted)?;
    for buffer in [&mut x, &mut y, &mut residual] {
        buffer.write(&noise(m * width))?;
    }
    if width <= 1024 {
        let norm = LayerNorm { weight: &weight, bias: &weight, eps: 1e-5 };
        let ms = median(stream, || Ok(add_layer_norm(stream, &mut x, &y, norm, m.into())?))?;
        return Ok((ms, Cost { flops: 0, bytes: (6 * m * width) as u64 }));
    }
    let norm = RmsNorm { weight: &weight, eps: 1e-6 };
    let ms = median(stream, || Ok(rms_norm(stream, &mut x, &residual, norm, m.into())?))?;
    Ok((ms, Cost { flops: 0, bytes: (6 * m * width) as u64 }))
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
