//! Known wrong variants of the decoder families (SPEC 15): each must move a score beyond the tolerance of its family.
//!
//! A tolerance that would let a mistake through proves nothing. Mistakes are made in the model's files, options or token ids, so
//! that what is tested is the comparison and not a second implementation.

use std::path::Path;

use half::{bf16, f16};
use outcrop::loader::writer::{TensorSpec, write};
use outcrop::loader::{Checkpoint, Dtype, TensorData};
use outcrop::{Engine, EngineOptions, Gelu, HeadRule, PairSequence, ScoreOptions};
use outcrop_loader::Config;
use outcrop_models::decoder::{Activations, Batch, Decoder, DecoderOptions, Group, Step};
use serde_json::Value;

use crate::decoders::tolerance;
use crate::fixtures::{PairCase, copy_model, cpu, json, on_cpu, pair_cases, path};

fn case(model: &str, name: &str) -> PairCase {
    pair_cases(&path(model)).into_iter().find(|case| case.name == name).unwrap()
}

/// The largest difference between the scores of a case and the reference's, with `dir` and `options` in place of what is right.
fn worst_difference(dir: &Path, options: EngineOptions, case: &PairCase) -> f64 {
    let engine = Engine::open(dir, &EngineOptions { threads: Some(2), ..options }).unwrap();
    let scores = engine.score(&case.pairs, &case.options_for(&engine).unwrap()).unwrap();
    let expected = case.scores.as_ref().unwrap();
    let mut worst: f64 = 0.0;
    for (i, score) in scores.into_iter().enumerate() {
        let score = score.unwrap();
        let layers: Vec<f64> = match score.layer_scores.is_empty() {
            true => vec![score.score],
            false => score.layer_scores.iter().map(|layer| layer.score).collect(),
        };
        for (got, expected) in layers.iter().zip(expected) {
            worst = worst.max((got - expected[i]).abs());
        }
    }
    worst
}

#[track_caller]
fn assert_caught(model: &str, difference: f64, at_least: f64) {
    assert!(
        difference > at_least && difference > 2.0 * tolerance(&path(model)),
        "the mutant moves scores by {difference:e} only, expected more than {at_least}"
    );
}

/// A copy of a fixture with changes to its configuration.
fn with_config(model: &str, changes: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = copy_model(model);
    let mut config = json(dir.path().join("config.json"));
    for (key, value) in changes {
        assert!(config.get(key).is_some(), "config.json has no {key}");
        config[*key] = value.clone();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// A copy of a fixture in one f32 file, every tensor passed through `edit` on the way.
fn with_weights(model: &str, edit: impl Fn(&str, &mut Vec<f32>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(path(model).join(file), dir.path().join(file)).unwrap();
    }
    let checkpoint = Checkpoint::open(path(model)).unwrap();
    let mut tensors = Vec::new();
    let mut values: Vec<Vec<f32>> = Vec::new();
    for info in checkpoint.tensors() {
        let mut elements: Vec<f32> = match checkpoint.tensor(info.name).unwrap().data {
            TensorData::F32(x) => x.to_vec(),
            TensorData::F16(x) => x.iter().copied().map(f16::to_f32).collect(),
            TensorData::BF16(x) => x.iter().copied().map(bf16::to_f32).collect(),
        };
        edit(info.name, &mut elements);
        tensors.push(TensorSpec {
            name: info.name.to_owned(),
            dtype: Dtype::F32,
            shape: info.shape.to_vec(),
        });
        values.push(elements);
    }
    write::<outcrop::loader::Error>(dir.path(), &tensors, u64::MAX, |tensor, start, out| {
        for (bytes, x) in out.chunks_exact_mut(4).zip(&values[tensor][start / 4..]) {
            bytes.copy_from_slice(&x.to_le_bytes());
        }
        Ok(())
    })
    .unwrap();
    dir
}

#[test]
fn unchanged_copies_are_within_the_tolerance() {
    for (model, name) in [
        ("gemma", "default"),
        ("minicpm_layerwise", "cutoff_2_3_4_5_6"),
        ("gemma2_lightweight", "cutoff_3_5_8"),
    ] {
        let copy = with_weights(model, |_, _| {});
        let difference = worst_difference(copy.path(), on_cpu(), &case(model, name));
        assert!(difference <= tolerance(&path(model)), "{model}: {difference:e}");
    }
}

#[test]
fn gemma_norms_that_multiply_by_the_stored_weight() {
    let dir = with_weights("gemma", |name, x| {
        if name.contains("norm") {
            x.iter_mut().for_each(|x| *x -= 1.0);
        }
    });
    assert_caught("gemma", worst_difference(dir.path(), on_cpu(), &case("gemma", "default")), 0.3);
}

#[test]
fn gemma_with_the_exact_gelu() {
    let options = EngineOptions { gelu: Some(Gelu::Exact), ..on_cpu() };
    assert_caught("gemma", worst_difference(&path("gemma"), options, &case("gemma", "default")), 4e-4);
}

#[test]
fn exact_gelu_by_option_is_the_exact_gelu_of_the_config() {
    let options = EngineOptions { gelu: Some(Gelu::Tanh), ..on_cpu() };
    let exact = case("gemma_exact_gelu", "default");
    assert_caught("gemma_exact_gelu", worst_difference(&path("gemma_exact_gelu"), options, &exact), 4e-4);
    // The same weights, with a configuration that leaves the choice open, as the published one does.
    let open = with_config("gemma_exact_gelu", &[("hidden_activation", Value::Null)]);
    let options = EngineOptions { gelu: Some(Gelu::Exact), ..on_cpu() };
    assert!(worst_difference(open.path(), options, &exact) <= tolerance(&path("gemma_exact_gelu")));
    assert_caught("gemma_exact_gelu", worst_difference(open.path(), on_cpu(), &exact), 4e-4);
}

#[test]
fn a_limit_without_the_tokens_of_separator_and_prompt() {
    let mut cut = case("gemma", "max_length_64");
    let engine = Engine::open(path("gemma"), &on_cpu()).unwrap();
    let pair = engine.pair_sequence("a", "b", &ScoreOptions::default()).unwrap();
    cut.options.max_length = Some(64 - pair.prompt_tokens);
    cut.options.query_max_length = Some(48);
    assert_caught("gemma", worst_difference(&path("gemma"), on_cpu(), &cut), 0.1);
}

#[test]
fn pairs_without_their_prefixes() {
    let mut bare = case("gemma", "default");
    bare.options.query_instruction = Some(String::new());
    assert_caught("gemma", worst_difference(&path("gemma"), on_cpu(), &bare), 0.1);
}

#[test]
fn minicpm_without_scale_depth() {
    let layers: f64 = 6.0;
    let dir = with_config("minicpm_layerwise", &[("scale_depth", layers.sqrt().into())]);
    let case = case("minicpm_layerwise", "cutoff_2_3_4_5_6");
    assert_caught("minicpm_layerwise", worst_difference(dir.path(), on_cpu(), &case), 0.5);
}

#[test]
fn minicpm_without_scale_emb() {
    let dir = with_config("minicpm_layerwise", &[("scale_emb", 1.into())]);
    let case = case("minicpm_layerwise", "cutoff_2_3_4_5_6");
    assert_caught("minicpm_layerwise", worst_difference(dir.path(), on_cpu(), &case), 0.5);
}

#[test]
fn minicpm_states_divided_before_the_head() {
    let config = json(path("minicpm_layerwise").join("config.json"));
    let divisor = config["hidden_size"].as_f64().unwrap() / config["dim_model_base"].as_f64().unwrap();
    assert!((divisor - 1.0).abs() > 0.1);
    let dir = with_weights("minicpm_layerwise", |name, x| {
        if name == "model.norm.weight" {
            x.iter_mut().for_each(|x| *x /= divisor as f32);
        }
    });
    let case = case("minicpm_layerwise", "cutoff_2_3_4_5_6");
    assert_caught("minicpm_layerwise", worst_difference(dir.path(), on_cpu(), &case), 0.5);
}

#[test]
fn epsilon_and_theta_not_read_from_the_config() {
    for (model, name) in
        [("minicpm_single_head", "cutoff_2_3_4_5_6"), ("gemma2_lightweight_sep2", "cutoff_2_4_6_8")]
    {
        for (key, value) in [("rms_norm_eps", Value::from(1e-6)), ("rope_theta", Value::from(10_000.0))] {
            let dir = with_config(model, &[(key, value)]);
            assert_caught(model, worst_difference(dir.path(), on_cpu(), &case(model, name)), 3e-3);
        }
    }
}

#[test]
fn gemma2_with_the_attention_softcap_and_eager_without() {
    let softcap = EngineOptions { attention_softcap: true, ..on_cpu() };
    let plain = case("gemma2_lightweight", "cutoff_none_ratio_1");
    assert_caught("gemma2_lightweight", worst_difference(&path("gemma2_lightweight"), softcap, &plain), 3e-3);
    let eager = case("gemma2_lightweight_eager", "cutoff_none_ratio_1");
    let without = on_cpu();
    let difference = worst_difference(&path("gemma2_lightweight_eager"), without, &eager);
    assert_caught("gemma2_lightweight_eager", difference, 3e-3);
}

#[test]
fn gemma2_without_the_final_softcap() {
    let dir = with_config("gemma2_lightweight", &[("final_logit_softcapping", Value::Null)]);
    let case = case("gemma2_lightweight", "cutoff_3_5_8");
    assert_caught("gemma2_lightweight", worst_difference(dir.path(), on_cpu(), &case), 0.1);
}

#[test]
fn gemma2_scaled_by_the_head_dim() {
    let head_dim = json(path("gemma2_lightweight").join("config.json"))["head_dim"].clone();
    let dir = with_config("gemma2_lightweight", &[("query_pre_attn_scalar", head_dim)]);
    let case = case("gemma2_lightweight", "cutoff_3_5_8");
    assert_caught("gemma2_lightweight", worst_difference(dir.path(), on_cpu(), &case), 0.1);
}

#[test]
fn gemma2_with_the_exact_gelu() {
    let options = EngineOptions { gelu: Some(Gelu::Exact), ..on_cpu() };
    let case = case("gemma2_lightweight", "cutoff_3_5_8");
    assert_caught("gemma2_lightweight", worst_difference(&path("gemma2_lightweight"), options, &case), 3e-3);
}

#[test]
fn gemma2_with_the_head_of_the_layer() {
    let by_layer = || EngineOptions { heads: Some(HeadRule::ByLayer), ..on_cpu() };
    let dir = path("gemma2_lightweight");
    let one = case("gemma2_lightweight", "cutoff_none_ratio_1");
    assert_caught("gemma2_lightweight", worst_difference(&dir, by_layer(), &one), 1.0);
    // Where every layer is asked for, both rules agree.
    let all = case("gemma2_lightweight", "cutoff_2_to_8");
    assert!(worst_difference(&dir, by_layer(), &all) <= tolerance(&dir));
}

#[test]
fn gemma2_with_a_window_one_longer() {
    let model = "gemma2_lightweight_window";
    let window = json(path(model).join("config.json"))["sliding_window"].as_u64().unwrap();
    for wrong in [window + 1, window - 1] {
        let dir = with_config(model, &[("sliding_window", wrong.into())]);
        let case = case(model, "cutoff_none_ratio_1");
        assert_caught(model, worst_difference(dir.path(), on_cpu(), &case), 0.1);
    }
}

#[test]
fn a_separator_counted_as_passage() {
    let model = "gemma2_lightweight";
    let case = case(model, "ratio_2_layer_4");
    let right = compressed_scores(model, &case, |pair| pair);
    let first =
        compressed_scores(model, &case, |pair| PairSequence { query_tokens: pair.query_tokens - 1, ..pair });
    let second = compressed_scores(model, &case, |pair| PairSequence {
        prompt_tokens: pair.prompt_tokens - 1,
        ..pair
    });
    let worst = |got: &[f64]| -> f64 {
        got.iter().zip(&case.scores.as_ref().unwrap()[0]).map(|(got, e)| (got - e).abs()).fold(0.0, f64::max)
    };
    assert!(worst(&right) <= tolerance(&path(model)));
    assert_caught(model, worst(&first), 0.1);
    assert_caught(model, worst(&second), 0.1);
}

/// Scores at layer 8, compressed by 2 before layer 4, of pairs whose parts are `edit`ed.
fn compressed_scores(model: &str, case: &PairCase, edit: impl Fn(PairSequence) -> PairSequence) -> Vec<f64> {
    let engine = Engine::open(path(model), &on_cpu()).unwrap();
    let checkpoint = std::sync::Arc::new(Checkpoint::open(path(model)).unwrap());
    let Config::Decoder(config) = checkpoint.config().clone() else { panic!("{model} is no decoder") };
    let decoder = Decoder::open(checkpoint, &config, None, DecoderOptions::default()).unwrap();
    let (stream, host) = cpu();
    let stack = decoder.stack(&stream, &host, &[8], 600).unwrap();
    let mut act = Activations::new(&stream, &config, 600, false).unwrap();
    let mut steps = vec![Step::Layer; 7];
    steps.insert(4, Step::Compress(2));
    steps.extend([Step::LastLayer, Step::Score(0)]);
    let score = |(query, passage): &(String, String)| {
        let pair = edit(engine.pair_sequence(query, passage, &case.options).unwrap());
        let batch = Batch::new(&[Group { pairs: vec![&pair], is_carried: false, is_kept: false }]);
        f64::from(stack.run(&stream, &mut act, &batch, &steps).unwrap().wait().unwrap()[0][0])
    };
    case.pairs.iter().map(score).collect()
}
