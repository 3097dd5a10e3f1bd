//! The options of the decoders: cutoff layers, compression, heads, activations, prompts, adapters.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::{Made, Ran, answers, made, outcrop, outcrop_with_input, scores};

fn score(model: &Path, extra: &[&str]) -> Ran {
    let line = "{\"query\": \"what is a panda?\", \"passage\": \"The giant panda is a bear.\"}\n";
    let args = ["score", "--model", model.to_str().unwrap(), "--input", "-"];
    outcrop_with_input(args.iter().chain(extra), line.repeat(3).as_bytes())
}

fn fields(answer: &Value) -> Vec<&str> {
    answer.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn several_cutoffs_give_a_score_each() {
    for family in ["minicpm", "gemma2"] {
        let made = made(family);
        let alone = |cutoff: &str| scores(&made.model, &["--cutoff-layers", cutoff, "--heads", "by-layer"]);
        let (at_3, at_8) = (alone("3"), alone("8"));
        let answers = answers(&made.model, &["--cutoff-layers", "3,8", "--heads", "by-layer"]);
        for (i, answer) in answers.iter().enumerate() {
            assert_eq!(fields(answer), ["line", "score", "tokens", "truncated", "scores"]);
            assert_eq!(answer["scores"], json!({ "3": at_3[i], "8": at_8[i] }));
            assert_eq!(answer["scores"].as_object().unwrap().keys().collect::<Vec<_>>(), ["3", "8"]);
            assert_eq!(answer["score"], at_8[i]);
        }
        let one = super::answers(&made.model, &["--cutoff-layers", "3"]);
        assert_eq!(fields(&one[0]), ["line", "score", "tokens", "truncated"]);
    }
}

#[test]
fn rerank_gives_the_same_fields() {
    let made = made("gemma2");
    let args = [
        "rerank",
        "--json",
        "--model",
        made.model.to_str().unwrap(),
        "panda",
        "a bear",
        "The giant panda is a bear.",
    ];
    let ranked = |extra: &[&str]| -> Vec<Value> {
        let ran = outcrop(args.iter().chain(extra));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    };
    assert_eq!(fields(&ranked(&[])[0]), ["index", "score", "passage"]);
    let several = ranked(&["--cutoff-layers", "2,4,8", "--compress-ratio", "2", "--compress-layers", "3"]);
    for place in &several {
        assert_eq!(fields(place), ["index", "score", "passage", "scores", "tokens_after"]);
        assert_eq!(place["scores"].as_object().unwrap().keys().collect::<Vec<_>>(), ["2", "4", "8"]);
        assert_eq!(place["score"], place["scores"]["8"]);
    }
    assert!(several[0]["score"].as_f64() >= several[1]["score"].as_f64());
    assert_eq!(ranked(&["--no-prefix-sharing"]), ranked(&[]));
}

#[test]
fn compression_says_how_many_tokens_are_left() {
    let made = made("gemma2");
    let plain = answers(&made.model, &[]);
    let compressed = answers(&made.model, &["--compress-ratio", "4", "--compress-layers", "2"]);
    for (plain, compressed) in plain.iter().zip(&compressed) {
        assert_eq!(fields(compressed), ["line", "score", "tokens", "truncated", "tokens_after"]);
        assert_eq!(compressed["tokens"], plain["tokens"]);
        let (before, after) =
            (plain["tokens"].as_u64().unwrap(), compressed["tokens_after"].as_u64().unwrap());
        assert!(after < before, "{after} of {before}");
        assert_ne!(compressed["score"], plain["score"]);
    }
    // A ratio of 1 leaves everything.
    let ratio_one = answers(&made.model, &["--compress-ratio", "1"]);
    for (plain, one) in plain.iter().zip(&ratio_one) {
        assert_eq!(one["score"], plain["score"]);
    }
}

/// A compression layer that is never reached is accepted, with one line for the whole command.
#[test]
fn a_warning_is_printed_once() {
    let made = made("gemma2");
    let args = ["--cutoff-layers", "4", "--compress-ratio", "2", "--compress-layers", "2,6"];
    let ran = score(&made.model, &args);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("warning: ").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains('6'), "{}", ran.stderr);
    assert!(score(&made.model, &args[..4]).stderr.contains("warning: "));
    assert!(
        !score(&made.model, &["--compress-ratio", "2", "--compress-layers", "2"]).stderr.contains("warning")
    );
    assert!(score(&made.model, &[&args[..], &["--quiet"]].concat()).stderr.is_empty());
}

#[test]
fn options_that_a_model_does_not_have_are_refused_by_name() {
    let models: HashMap<&str, Made> =
        ["xlmr", "gemma", "minicpm", "gemma2"].map(|family| (family, made(family))).into_iter().collect();
    for (family, architecture, args, option) in [
        ("xlmr", "XLMRobertaForSequenceClassification", &["--cutoff-layers", "1"][..], "cutoff"),
        ("xlmr", "XLMRobertaForSequenceClassification", &["--compress-ratio", "2"], "compress"),
        ("xlmr", "XLMRobertaForSequenceClassification", &["--prompt", "Yes?"], "prompt"),
        ("xlmr", "XLMRobertaForSequenceClassification", &["--heads", "by-layer"], "heads"),
        ("xlmr", "XLMRobertaForSequenceClassification", &["--attention-softcap"], "softcap"),
        ("xlmr", "XLMRobertaForSequenceClassification", &["--gelu", "tanh"], "gelu"),
        ("gemma", "GemmaForCausalLM", &["--cutoff-layers", "4"], "cutoff"),
        ("gemma", "GemmaForCausalLM", &["--compress-ratio", "2"], "compress"),
        ("gemma", "GemmaForCausalLM", &["--heads", "reference"], "heads"),
        ("gemma", "GemmaForCausalLM", &["--attention-softcap"], "softcap"),
        ("minicpm", "LayerWiseMiniCPMForCausalLM", &["--compress-ratio", "2"], "compress"),
        ("minicpm", "LayerWiseMiniCPMForCausalLM", &["--attention-softcap"], "softcap"),
        ("minicpm", "LayerWiseMiniCPMForCausalLM", &["--gelu", "exact"], "gelu"),
    ] {
        let ran = score(&models[family].model, args);
        ran.refused(&[architecture, option]);
    }
    for (args, words) in [
        (&["--cutoff-layers", "9"][..], &["9", "2 to 8"][..]),
        (&["--cutoff-layers", "1,4"], &["1", "2 to 8"]),
        (&["--cutoff-layers", "8,3"], &["3 after 8", "ascend"]),
        (&["--compress-ratio", "0"], &["ratio"]),
        (&["--compress-ratio", "2", "--compress-layers", "0"], &["layer"]),
    ] {
        score(&models["gemma2"].model, args).refused(words);
    }
    let ran = score(&models["gemma2"].model, &["--compress-layers", "4"]);
    assert_eq!(ran.status, Some(2));
    assert!(ran.stderr.contains("--compress-ratio"), "{}", ran.stderr);
}

/// Each of the options reaches the model: it changes scores, or is what is done anyway.
#[test]
fn options_change_scores() {
    let gemma2 = made("gemma2");
    let plain = scores(&gemma2.model, &[]);
    for args in [
        &["--prompt", "Is it so?"][..],
        &["--prompt", ""],
        &["--query-instruction", ""],
        &["--gelu", "exact"],
        &["--attention-softcap"],
        &["--heads", "by-layer"],
        &["--cutoff-layers", "7"],
        &["--dtype", "bf16"],
    ] {
        assert_ne!(scores(&gemma2.model, args), plain, "{args:?}");
    }
    for args in [
        &["--query-instruction", "A: "][..],
        &["--prompt", "Predict whether passage B contains an answer to query A."],
        &["--gelu", "tanh"],
        &["--heads", "reference"],
        &["--cutoff-layers", "8"],
    ] {
        assert_eq!(scores(&gemma2.model, args), plain, "{args:?}");
    }
}

/// Writes a LoRA adapter of rank 2 for one matrix of a tiny model, `[64, 64]`; `sign` is on all that it adds.
fn adapter(dir: &Path, name: &str, sign: f32) -> String {
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    let config =
        json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none" });
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let values = |seed: u32, sign: f32| -> Vec<u8> {
        let value = |i: u32| sign * (((i * 37 + seed) % 19) as f32 / 19.0 - 0.5);
        (0..128).flat_map(|i| value(i).to_le_bytes()).collect()
    };
    let (a, b) = (values(1, 1.0), values(5, sign));
    let module = "base_model.model.model.layers.1.self_attn.q_proj";
    let views = [
        (format!("{module}.lora_A.weight"), TensorView::new(Dtype::F32, vec![2, 64], &a).unwrap()),
        (format!("{module}.lora_B.weight"), TensorView::new(Dtype::F32, vec![64, 2], &b).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn adapters_are_added_in_order() {
    for family in ["gemma", "minicpm", "gemma2"] {
        let made = made(family);
        let dir = tempfile::tempdir().unwrap();
        let forth = adapter(dir.path(), "forth", 1.0);
        let back = adapter(dir.path(), "back", -1.0);
        let with = |adapters: &[&str]| {
            let args: Vec<&str> =
                adapters.iter().flat_map(|dir| ["--adapter", dir]).chain(["--dtype", "f32"]).collect();
            scores(&made.model, &args)
        };
        let plain = with(&[]);
        let differs = |scores: &[f64]| {
            scores.iter().zip(&plain).map(|(score, plain)| (score - plain).abs()).fold(0.0, f64::max)
        };
        assert!(differs(&with(&[&forth])) > 1e-2, "{family}: {}", differs(&with(&[&forth])));
        // The second takes away what the first added, but for the rounding of both.
        assert!(differs(&with(&[&forth, &back])) < 1e-3, "{family}: {}", differs(&with(&[&forth, &back])));
    }
    let gemma = made("gemma");
    score(&gemma.model, &["--adapter", "no-such-adapter"]).refused(&["no-such-adapter"]);
    let other = tempfile::tempdir().unwrap();
    let misfit = adapter(other.path(), "misfit", 1.0);
    let xlmr = made("xlmr");
    assert_eq!(score(&xlmr.model, &["--adapter", &misfit]).status, Some(2));
}
