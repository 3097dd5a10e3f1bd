//! The decoder families against the reference implementation: ids, scores behind every cutoff, states layer by layer.
//!
//! Tolerances are those of SPEC 15: 2e-4 for Gemma, 5e-4 for MiniCPM, 1.5e-3 for Gemma 2. Ids must be equal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outcrop::{Engine, EngineOptions, ScoreOptions};
use outcrop_kernels::layout::{Before, Bounds, Layout, LayoutBuffer, ScoredRow, Segment, Segments};
use outcrop_kernels::token_compress::{Compress, token_compress};
use outcrop_kernels::{Buffer, Role};
use outcrop_loader::{Checkpoint, Config};
use outcrop_models::decoder::{Activations, Batch, Decoder, DecoderOptions, Group, Pass, Step};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::fixtures::{PairCase, cpu, json, models, on_cpu, pair_cases, path};

/// What the reference answers with a mix-up, a silent drop or a crash, and what is said here instead.
const REFUSED: &[(&str, &str)] = &[
    ("cutoff_unsorted_6_2", "2 after 6"),
    ("cutoff_unsorted_8_3_5", "3 after 8"),
    ("cutoff_duplicate_4_4", "4 after 4"),
    ("cutoff_duplicate_5_5", "5 after 5"),
    ("cutoff_some_invalid_1_4_99", "cutoff layer 1 does not exist in this model; allowed are 2 to 6"),
    ("cutoff_some_invalid_1_5_99", "cutoff layer 1 does not exist in this model; allowed are 2 to 8"),
    ("cutoff_all_invalid", "cutoff layer 1 does not exist"),
    ("cutoff_empty_list", "no cutoff layers"),
    ("cutoff_3_4_6", "cutoff layer 3 does not exist in this model; allowed are 2 to 8 in steps of 2"),
    ("cutoff_only_odd", "cutoff layer 3"),
    ("ratio_0", "compress_ratio 0"),
    ("ratio_2_layer_0", "layer 0"),
    ("ratio_2_layer_0_3", "layer 0"),
];

/// Cases that fail in the reference for want of something that does not exist here: an empty list is no error, and there is
/// no padding that could be on the left; the case named gives the scores.
const REFERENCE_FAILS: &[(&str, Option<&str>)] =
    &[("empty_list", None), ("left_padding_ratio_2", Some("ratio_2_layer_4"))];

pub(crate) fn tolerance(dir: &Path) -> f64 {
    let name = dir.file_name().unwrap().to_string_lossy();
    match name.split('_').next().unwrap() {
        "gemma" => 2e-4,
        "minicpm" => 5e-4,
        "gemma2" => 1.5e-3,
        other => panic!("no tolerance for {other}"),
    }
}

fn engine(dir: &Path, adapters: &[PathBuf]) -> Engine {
    let options = EngineOptions {
        threads: Some(2),
        adapters: adapters.to_vec(),
        // The reference applies the soft-cap with eager attention only (SPEC 1.3).
        attention_softcap: dir.ends_with("gemma2_lightweight_eager"),
        ..on_cpu()
    };
    Engine::open(dir, &options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

fn decoders() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = ["gemma", "minicpm"].iter().flat_map(|prefix| models(prefix)).collect();
    assert!(found.len() >= 9, "fixtures are missing: {found:?}");
    found
}

#[test]
fn every_case_gives_the_reference_ids_and_scores() {
    let mut worst: BTreeMap<String, (f64, String)> = BTreeMap::new();
    let mut refused = 0;
    for dir in decoders() {
        let cases = pair_cases(&dir);
        for case in &cases {
            let what = format!("{} {}", dir.display(), case.name);
            let engine = engine(&dir, &case.adapters);
            let options = match (case.options_for(&engine), REFUSED.iter().find(|r| r.0 == case.name)) {
                (Ok(options), None) => options,
                (Err(error), Some((_, words))) => {
                    assert!(error.to_string().contains(words), "{what}: {error}");
                    refused += 1;
                    continue;
                }
                (Ok(_), Some(_)) => panic!("{what}: not refused"),
                (Err(error), None) => panic!("{what}: {error}"),
            };
            check_ids(&what, &engine, case, &options);
            let Some(expected) = expected_scores(&what, case, &cases) else { continue };
            let scores = engine.score(&case.pairs, &options).unwrap();
            for (i, score) in scores.iter().enumerate() {
                let score = score.as_ref().unwrap_or_else(|e| panic!("{what}: pair {i}: {e}"));
                let got: Vec<f64> = match engine.allowed_cutoffs() {
                    Some(_) => score.layer_scores.iter().map(|layer| layer.score).collect(),
                    None => vec![score.score],
                };
                assert_eq!(got.len(), expected.len(), "{what}: cutoffs");
                assert_eq!(Some(&score.score), got.last(), "{what}: the deepest");
                for (got, expected) in got.iter().zip(expected) {
                    let difference = (got - expected[i]).abs();
                    assert!(
                        difference <= tolerance(&dir),
                        "{what}: pair {i}: {got}, expected {}",
                        expected[i]
                    );
                    let entry = worst.entry(dir.display().to_string()).or_default();
                    if difference >= entry.0 {
                        *entry = (difference, case.name.clone());
                    }
                }
            }
        }
    }
    assert!(refused >= 12, "only {refused} refusals");
    for (model, (difference, case)) in worst {
        println!("{model}: worst difference {difference:.1e} in {case}");
    }
}

fn check_ids(what: &str, engine: &Engine, case: &PairCase, options: &ScoreOptions) {
    for (i, (query, passage)) in case.pairs.iter().enumerate() {
        let pair = engine.pair_sequence(query, passage, options).unwrap();
        if let Some(expected) = &case.input_ids {
            assert_eq!(pair.sequence.input_ids, expected[i], "{what}: ids of pair {i}");
        }
        if let Some(expected) = &case.parts {
            assert_eq!((pair.query_tokens, pair.prompt_tokens), expected[i], "{what}: parts of pair {i}");
        }
    }
}

fn expected_scores<'a>(what: &str, case: &'a PairCase, cases: &'a [PairCase]) -> Option<&'a [Vec<f64>]> {
    if case.scores.is_some() {
        return case.scores.as_deref();
    }
    let known = REFERENCE_FAILS.iter().find(|known| known.0 == case.name);
    let (_, like) = known.unwrap_or_else(|| panic!("{what}: fails in the reference, and nothing says why"));
    let like = (*like)?;
    cases.iter().find(|case| case.name == like).unwrap_or_else(|| panic!("no case {like}")).scores.as_deref()
}

#[test]
fn the_fixtures_hold_the_cases() {
    let names = |model: &str| pair_cases(&path(model)).len();
    for (model, at_least) in [("gemma", 18), ("minicpm_layerwise", 17), ("gemma2_lightweight", 38)] {
        assert!(names(model) >= at_least, "{model} has {} cases", names(model));
    }
    let expected = json(path("gemma2_lightweight_eager").join("expected.json"));
    assert_eq!(expected["attn_softcap_applied"], true);
}

/// The residual stream before and behind every layer, for one pair of each family. Behind the last layer only the scored row is
/// computed. Gemma 2 is compressed on the way.
#[test]
fn every_layer_gives_the_reference_states() {
    for (model, cutoffs, compress_layers) in [
        ("gemma", vec![], vec![]),
        ("minicpm_layerwise", vec![2, 4, 6], vec![]),
        ("gemma2_lightweight", vec![3, 5, 8], vec![4, 6]),
    ] {
        let dir = path(model);
        let bytes = std::fs::read(dir.join("trace.safetensors")).unwrap();
        let trace = SafeTensors::deserialize(&bytes).unwrap();
        let expected = json(dir.join("expected.json"));
        let pair = &expected["pairs"][expected["trace_pair"].as_str().unwrap()];
        let (query, passage) = (pair["query"].as_str().unwrap(), pair["passage"].as_str().unwrap());
        let pair = engine(&dir, &[]).pair_sequence(query, passage, &ScoreOptions::default()).unwrap();
        let ids: Vec<u32> =
            integers(&trace.tensor("input_ids").unwrap()).iter().map(|id| *id as u32).collect();
        assert_eq!(pair.sequence.input_ids, ids, "{model}");

        let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
        let Config::Decoder(config) = checkpoint.config().clone() else { panic!("{model} is no decoder") };
        let yes = expected["yes_token_id"].as_u64().map(|id| id as u32);
        let decoder = Decoder::open(checkpoint, &config, yes, DecoderOptions::default()).unwrap();
        let (stream, host) = cpu();
        let layers = config.num_hidden_layers;
        let cutoffs = if cutoffs.is_empty() { vec![layers] } else { cutoffs };
        let stack = decoder.stack(&stream, &host, &cutoffs, ids.len()).unwrap();
        let mut act = Activations::new(&stream, &config, ids.len(), false).unwrap();
        let batch = Batch::new(&[Group { pairs: vec![&pair], is_carried: false, is_kept: false }]);
        let mut pass = Pass::start(&stream, &stack, &mut act, &batch).unwrap();
        let mut scored = 0;
        for layer in 0..layers {
            if cutoffs.contains(&layer) {
                pass.step(Step::Score(scored)).unwrap();
                scored += 1;
            }
            if compress_layers.contains(&layer) {
                pass.step(Step::Compress(2)).unwrap();
            }
            let what = format!("{model}, layer {layer}");
            let state = floats(&trace.tensor(&format!("layer_{layer:02}_in")).unwrap());
            assert_states(&format!("{what}, before"), &pass.hidden().unwrap(), &state);
            let state = floats(&trace.tensor(&format!("layer_{layer:02}_out")).unwrap());
            if layer + 1 < layers {
                pass.step(Step::Layer).unwrap();
                assert_states(&format!("{what}, behind"), &pass.hidden().unwrap(), &state);
            } else {
                pass.step(Step::LastLayer).unwrap();
                let last_row = &state[state.len() - config.hidden_size..];
                assert_states(&format!("{what}, behind"), &pass.hidden().unwrap(), last_row);
            }
        }
        pass.step(Step::Score(scored)).unwrap();
        let scores: Vec<f32> = (0..=scored).flat_map(|nth| pass.scores(nth).unwrap()).collect();
        let expected = floats(&trace.tensor("scores").unwrap());
        assert_eq!(scores.len(), expected.len(), "{model}");
        for (got, expected) in scores.iter().zip(expected) {
            assert!(
                f64::from((got - expected).abs()) <= tolerance(&dir),
                "{model}: {got}, expected {expected}"
            );
        }
    }
}

/// Within 5e-5 of the largest element: f32 rounding after some layers, and nothing else.
fn assert_states(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = 5e-5 * largest;
        assert!((got - expected).abs() <= bound, "{what}: element {i}: {got}, expected {expected}");
    }
}

/// The reference's own function on padded batches; here the same rows packed.
#[test]
fn token_compression_gives_the_reference_rows() {
    let dir = path("gemma2_lightweight");
    let bytes = std::fs::read(dir.join("token_compress.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (stream, _) = cpu();
    let cases = json(dir.join("token_compress.json"));
    for unit in cases.as_array().unwrap() {
        let case = unit["case"].as_u64().unwrap();
        let ratio = unit["ratio"].as_u64().unwrap() as usize;
        let [input, output] = ["in", "out"].map(|side| tensors.tensor(&format!("c{case}_{side}")).unwrap());
        let mask = integers(&tensors.tensor(&format!("c{case}_out_mask")).unwrap());
        let (width, out_width, hidden) = (input.shape()[1], output.shape()[1], input.shape()[2]);
        let (input, output) = (floats(&input), floats(&output));
        let sequences: Vec<Compress> = unit["rows_query_passage_prompt"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rows| [0, 1, 2].map(|i| rows[i].as_u64().unwrap() as usize))
            .map(|[query, passage, prompt]| Compress { query, passage, prompt })
            .collect();
        let (mut packed, mut expected) = (Vec::new(), Vec::new());
        for (i, sequence) in sequences.iter().enumerate() {
            packed.extend_from_slice(&input[i * width * hidden..][..sequence.len() * hidden]);
            let out_rows = mask[i * out_width..(i + 1) * out_width].iter().sum::<i64>() as usize;
            assert_eq!(sequence.compressed(ratio).len(), out_rows, "case {case}, sequence {i}");
            expected.extend_from_slice(&output[i * out_width * hidden..][..out_rows * hidden]);
        }
        let segment = |parts| Segment { parts, before: Before::Nothing, is_scored: true };
        let segments = Segments {
            segments: sequences.into_iter().map(segment).collect(),
            ..Segments::of_sequences([], ScoredRow::Last)
        };
        let layout = Layout::new(segments);
        let bounds = Bounds { tokens: layout.num_tokens(), seqs: layout.num_seqs() };
        let [mut before, mut after] = [0, 1].map(|_| LayoutBuffer::new(&stream, bounds.tokens).unwrap());
        before.load(layout, bounds).unwrap();
        after.compress(&stream, &before, ratio).unwrap();
        let [mut out] = Buffer::allocate(&stream, [(Role::Full, expected.len())]).unwrap();
        let packed = Buffer::upload(&stream, &packed).unwrap();
        token_compress(&stream, &mut out, &packed, &before, &after, ratio, hidden).unwrap();
        for (i, (got, expected)) in out.read(expected.len()).unwrap().iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() <= 1e-6, "case {case}, element {i}: {got}, expected {expected}");
        }
    }
    assert!(cases.as_array().unwrap().len() >= 5);
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn integers(tensor: &TensorView<'_>) -> Vec<i64> {
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}
