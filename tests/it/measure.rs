//! What `Engine::time` and `Engine::profile` say of calls. Their figures are no matter of tests, what they count is.

use std::time::Duration;

use outcrop::profile::{KernelTime, Profile};
use outcrop::{Compression, Device, EmulatorOptions, Engine, EngineOptions, ScoreOptions};

use crate::fixtures::{path, required};

const PAIRS: [(&str, &str); 3] = [
    ("what is a panda?", "The giant panda is a bear species endemic to China."),
    ("what is a panda?", "hi"),
    ("capital of France", "Paris is the capital and the most populous city of France."),
];

fn on(device: Device, model: &str) -> Engine {
    let options = EngineOptions { device, threads: Some(2), ..EngineOptions::default() };
    Engine::open(path(model), &options).unwrap()
}

fn emulator() -> Option<Device> {
    let Some(library) = std::env::var_os("OUTCROP_EMULATOR") else {
        assert!(!required("emulator"), "REQUIRE asks for the emulator, but OUTCROP_EMULATOR is not set");
        eprintln!("SKIPPED: OUTCROP_EMULATOR is not set");
        return None;
    };
    Some(Device::Emulator(EmulatorOptions::new(std::path::Path::new(&library))))
}

fn scores(engine: &Engine, options: &ScoreOptions) -> Result<Vec<f64>, outcrop::Error> {
    engine.score(&PAIRS, options)?.into_iter().map(|score| Ok(score?.score)).collect()
}

/// A profile of the pairs, with scores as they are without one.
fn profiled(engine: &Engine, options: &ScoreOptions) -> Profile {
    let plain = scores(engine, options).unwrap();
    let (found, profile) = engine.profile(|| scores(engine, options)).unwrap();
    assert_eq!(found, plain);
    // It has ended: nothing is noted that nobody asked for.
    assert_eq!(engine.profile(|| Ok(())).unwrap().1.kernels.len(), 0);
    assert_eq!(scores(engine, options).unwrap(), plain);
    profile
}

fn labels(profile: &Profile) -> Vec<String> {
    let mut labels: Vec<String> = profile.kernels.iter().map(|call| call.label.to_string()).collect();
    labels.dedup();
    labels
}

/// Operations of the products within layers: what `Engine::flops` counts without running anything.
fn flops_of_layers(profile: &Profile) -> u64 {
    let is_product =
        |call: &&KernelTime| call.label.name == "layer" && ["gemm", "attention"].contains(&call.kernel);
    profile.kernels.iter().filter(is_product).map(|call| call.cost.flops).sum()
}

/// An encoder of two layers: every kernel of the straight-line forward, in order, for the layer that it is in.
fn an_encoder(device: Device) {
    let is_cpu = matches!(device, Device::Cpu);
    let engine = on(device, "xlmr_base");
    let options = ScoreOptions::default();
    let profile = profiled(&engine, &options);
    let layers = engine.layers_loaded();
    let expected: Vec<String> = ["embedding".to_owned()]
        .into_iter()
        .chain((0..layers).map(|n| format!("layer {n}")))
        .chain(["head".to_owned()])
        .collect();
    assert_eq!(labels(&profile), expected);
    let first: Vec<&str> =
        profile.kernels.iter().filter(|call| call.label.index == Some(0)).map(|call| call.kernel).collect();
    let layer = ["gemm", "attention", "gemm", "add_layer_norm", "gemm", "gemm", "add_layer_norm"];
    assert_eq!(first, layer);
    assert_eq!(flops_of_layers(&profile), engine.flops(&PAIRS, &options).unwrap());
    assert_eq!(profile.spans_ms.len(), 1);
    for call in &profile.kernels {
        assert_eq!(call.instances.len(), usize::from(!is_cpu), "{call:?}");
        assert!(call.ms >= 0.0 && call.cost.bytes > 0, "{call:?}");
    }
    // The kernels are what the span consists of.
    let kernels: f64 = profile.kernels.iter().map(|call| call.ms).sum();
    assert!(kernels > 0.0 && kernels <= profile.spans_ms[0], "{kernels} of {:?}", profile.spans_ms);
}

/// A decoder that scores and compresses on the way.
fn a_decoder(device: Device) {
    let engine = on(device, "gemma2_lightweight");
    let options = ScoreOptions {
        cutoff_layers: Some(engine.cutoffs(&[2, 5]).unwrap()),
        compression: Some(Compression::new(2, &[3]).unwrap()),
        ..ScoreOptions::default()
    };
    let profile = profiled(&engine, &options);
    let expected = [
        "embedding",
        "layer 0",
        "layer 1",
        "score 0",
        "layer 2",
        "compress 3",
        "layer 3",
        "layer 4",
        "score 1",
    ];
    assert_eq!(labels(&profile), expected);
    assert_eq!(flops_of_layers(&profile), engine.flops(&PAIRS, &options).unwrap());
    // Where rows have been merged, fewer are computed.
    let mlp = |layer| -> u64 {
        let of_layer = profile
            .kernels
            .iter()
            .filter(|call| call.label.index == Some(layer) && call.kernel == "sandwich_norm");
        of_layer.map(|call| call.cost.bytes).sum()
    };
    assert!(mlp(0) == mlp(2) && mlp(3) < mlp(2), "{} {} {}", mlp(0), mlp(2), mlp(3));
}

#[test]
fn an_encoder_on_the_cpu() {
    an_encoder(Device::Cpu);
}

#[test]
fn a_decoder_on_the_cpu() {
    a_decoder(Device::Cpu);
}

#[test]
fn an_encoder_on_the_emulator() {
    if let Some(device) = emulator() {
        an_encoder(device);
    }
}

#[test]
fn a_decoder_on_the_emulator() {
    if let Some(device) = emulator() {
        a_decoder(device);
    }
}

/// The parts of a call's time are parts of it, batch by batch.
#[test]
fn times_of_calls() {
    let options = EngineOptions {
        device: Device::Cpu,
        batch_tokens: Some(1),
        threads: Some(1),
        ..EngineOptions::default()
    };
    let engine = Engine::open(path("xlmr_base"), &options).unwrap();
    let (found, timings) = engine.time(|| scores(&engine, &ScoreOptions::default())).unwrap();
    assert_eq!(found, scores(&engine, &ScoreOptions::default()).unwrap());
    assert!(timings.tokenize > Duration::ZERO && timings.device > Duration::ZERO, "{timings:?}");
    assert_eq!(timings.tokenize + timings.device + timings.host(), timings.wall);
    // A budget of one token makes a batch of every pair, and a span of every batch.
    let (_, profile) = engine.profile(|| scores(&engine, &ScoreOptions::default())).unwrap();
    assert_eq!(profile.spans_ms.len(), PAIRS.len());
    // Nothing ran on the device, and an error is passed on and leaves nothing on.
    let (_, idle) = engine.time(|| Ok(())).unwrap();
    assert_eq!((idle.device, idle.tokenize), (Duration::ZERO, Duration::ZERO));
    let cutoffs = on(Device::Cpu, "gemma2_lightweight").cutoffs(&[2]).unwrap();
    let wrong = ScoreOptions { cutoff_layers: Some(cutoffs), ..ScoreOptions::default() };
    assert!(engine.profile(|| scores(&engine, &wrong)).is_err());
    let (_, timings) = engine.time(|| scores(&engine, &ScoreOptions::default())).unwrap();
    assert!(timings.device > Duration::ZERO);
}
