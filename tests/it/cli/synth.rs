//! `outcrop synth`: what it writes is a model for every other command.

use std::fs;

use serde_json::Value;

use super::{answers, made, outcrop};

#[test]
fn a_made_reranker_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("made").to_str().unwrap().to_owned();
    let ran = outcrop(["synth", "--family", "xlmr", "--size", "tiny", &model]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let passages = ["The giant panda is a bear.", "Paris is the capital of France.", "open files", "hi"];
    let ran = outcrop(["rerank", "--json", "--model", &model, "what is a panda?"].iter().chain(&passages));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let ranked: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    let scores: Vec<f64> = ranked.iter().map(|place| place["score"].as_f64().unwrap()).collect();
    // Different texts have clearly different scores, of the size a trained model gives.
    assert!(scores.is_sorted_by(|a, b| a - b > 1e-3) && scores.iter().all(|s| s.abs() < 30.0), "{scores:?}");
}

#[test]
fn a_made_embedder_embeds() {
    for args in [["--family", "bert", "--dtype", "f16"], ["--family", "xlmr", "--task", "embed"]] {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().to_str().unwrap();
        let made = outcrop(["synth", "--size", "tiny", model].iter().chain(&args));
        assert_eq!(made.status, Some(0), "{}", made.stderr);
        let ran = outcrop(["rerank", "--json", "--model", model, "panda", "hello world", "panda"]);
        let ranked: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(ranked[0]["passage"], "panda", "{}", ran.stdout);
    }
}

/// Scores of made decoders differ between pairs and between layers, and stay clear of the final soft-cap.
#[test]
fn a_made_decoder_tells_pairs_and_layers_apart() {
    for family in ["gemma", "minicpm", "gemma2"] {
        let made = made(family);
        let args: &[&str] = match family {
            "gemma" => &[],
            _ => &["--cutoff-layers", "2,3,4,5,6,7,8", "--heads", "by-layer"],
        };
        // Of each pair the scores of all layers, shallow ones first.
        let pairs: Vec<Vec<f64>> = answers(&made.model, args)
            .iter()
            .map(|answer| match answer.get("scores") {
                Some(scores) => scores.as_object().unwrap().values().map(|x| x.as_f64().unwrap()).collect(),
                None => vec![answer["score"].as_f64().unwrap()],
            })
            .collect();
        let layers: Vec<Vec<f64>> =
            (0..pairs[0].len()).map(|layer| pairs.iter().map(|scores| scores[layer]).collect()).collect();
        let spread = |scores: &[f64]| {
            scores.iter().copied().fold(f64::MIN, f64::max) - scores.iter().copied().fold(f64::MAX, f64::min)
        };
        assert!(pairs.iter().flatten().all(|score| score.abs() < 20.0), "{family}: {pairs:?}");
        assert!(layers.iter().all(|scores| spread(scores) > 0.5), "{family}: {layers:?}");
        if family != "gemma" {
            assert!(pairs.iter().all(|scores| spread(scores) > 1.0), "{family}: {pairs:?}");
        }
    }
}

#[test]
fn a_seed_always_gives_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let make = |family: &str, name: &str, seed: &str| {
        let model = dir.path().join(family).join(name);
        let path = model.to_str().unwrap();
        let ran = outcrop(["synth", "--quiet", "--family", family, "--size", "tiny", "--seed", seed, path]);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
        let read = |file: &str| fs::read(model.join(file)).unwrap();
        (read("model.safetensors"), read("tokenizer.json"))
    };
    for family in ["xlmr", "gemma", "minicpm", "gemma2"] {
        let first = make(family, "first", "1");
        assert!(first == make(family, "again", "1"));
        let other = make(family, "other", "2");
        assert!(first.0 != other.0 && first.1 == other.1);
    }
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let path = dir.path().to_str().unwrap();
    outcrop(["synth", "--family", "xlmr", "--size", "tiny", path]).refused(&[
        path,
        "is not empty",
        "--force",
    ]);
    let forced = outcrop(["synth", "--force", "--family", "xlmr", "--size", "tiny", path]);
    assert_eq!(forced.status, Some(0), "{}", forced.stderr);
    assert_eq!(fs::read_to_string(dir.path().join("notes.txt")).unwrap(), "mine");
    outcrop(["synth", "--family", "bert", "--size", "m3", "no-such"]).refused(&["bert", "m3"]);
}
