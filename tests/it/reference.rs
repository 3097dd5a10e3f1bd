//! Token ids, scores and vectors against the reference implementation, for every recorded case.
//!
//! Tolerances are those of SPEC 15: 5e-5 for a reranker's score, 1e-5 for an element of a vector. Ids must be equal.

use std::path::Path;

use outcrop::loader::Tokenizer;
use outcrop::{EmbedOptions, Pooling};
use serde_json::Value;

use crate::fixtures::{PairCase, copy_model, engine, json, models, pair_cases, path, text_cases};

pub(crate) const SCORE_TOLERANCE: f64 = 5e-5;
pub(crate) const VECTOR_TOLERANCE: f64 = 1e-5;

#[test]
fn rerankers_give_the_reference_ids_and_scores() {
    let models = models("xlmr_");
    assert!(models.len() >= 3, "fixtures are missing: {models:?}");
    for dir in models {
        let engine = engine(&dir);
        let mut compared = 0;
        for case in pair_cases(&dir) {
            let what = format!("{} {}", dir.display(), case.name);
            if let Some(expected) = &case.input_ids {
                for (pair, expected) in case.pairs.iter().zip(expected) {
                    let sequence = engine.pair_sequence(&pair.0, &pair.1, &case.options).unwrap();
                    assert_eq!(&sequence.sequence.input_ids, expected, "{what}: ids of {pair:?}");
                }
            }
            let scores = engine.score(&case.pairs, &case.options).unwrap();
            let Some([expected]) = case.scores.as_deref() else {
                expect_refusal(&what, &case, &scores);
                continue;
            };
            assert_eq!(scores.len(), expected.len(), "{what}");
            for (i, (score, expected)) in scores.iter().zip(expected).enumerate() {
                let got = score.as_ref().unwrap_or_else(|e| panic!("{what}: pair {i}: {e}")).score;
                assert!(
                    (got - expected).abs() <= SCORE_TOLERANCE,
                    "{what}: pair {i}: {got}, expected {expected}"
                );
                compared += 1;
            }
        }
        assert!(compared >= 100, "{}: only {compared} scores compared", dir.display());
    }
}

/// The reference fails on these cases: an empty list, and pairs beyond the position table. An empty list is no error here;
/// each pair that is too long says so.
fn expect_refusal(what: &str, case: &PairCase, scores: &[Result<outcrop::Score, outcrop::Error>]) {
    assert_eq!(scores.len(), case.pairs.len(), "{what}");
    for score in scores {
        let error = score.as_ref().expect_err(what).to_string();
        assert!(error.contains("512 positions") && error.contains("max_length"), "{what}: {error}");
    }
}

#[test]
fn rerank_orders_the_scores_of_the_same_pairs() {
    let dir = path("xlmr_base");
    let engine = engine(&dir);
    let case = pair_cases(&dir).into_iter().find(|case| case.name == "default").unwrap();
    let passages: Vec<&str> = case.pairs.iter().map(|(_, passage)| passage.as_str()).collect();
    let query = &case.pairs[1].0;
    let ranking = engine.rerank(query, &passages, &case.options).unwrap();
    assert!(ranking.failed.is_empty());
    let pairs: Vec<_> = passages.iter().map(|passage| (query, passage)).collect();
    let scores = engine.score(&pairs, &case.options).unwrap();
    let mut expected: Vec<_> = scores.into_iter().map(Result::unwrap).enumerate().collect();
    expected.sort_by(|a, b| b.1.score.total_cmp(&a.1.score));
    let got: Vec<_> =
        ranking.results.iter().map(|r| (r.index, r.score.to_bits(), r.tokens, r.truncated)).collect();
    let expected: Vec<_> =
        expected.iter().map(|(i, s)| (*i, s.score.to_bits(), s.tokens, s.truncated)).collect();
    assert_eq!(got, expected);
}

#[test]
fn embedders_give_the_reference_ids_and_vectors() {
    let models = models("embed_");
    assert!(models.len() >= 3, "fixtures are missing: {models:?}");
    for dir in models {
        let engine = engine(&dir);
        for case in text_cases(&dir) {
            let what = format!("{} {}", dir.display(), case.name);
            for (text, expected) in case.texts.iter().zip(&case.input_ids) {
                let sequence = engine.text_sequence(text, &case.options).unwrap();
                assert_eq!(&sequence.input_ids, expected, "{what}: ids of {text:?}");
            }
            let vectors = engine.embed(&case.texts, &case.options).unwrap();
            assert_eq!(vectors.len(), case.vectors.len(), "{what}");
            for (i, (got, expected)) in vectors.into_iter().zip(&case.vectors).enumerate() {
                let got = got.unwrap().vector;
                assert_eq!(got.len(), expected.len(), "{what}: text {i}");
                for (j, (got, expected)) in got.iter().zip(expected).enumerate() {
                    let difference = (f64::from(*got) - expected).abs();
                    assert!(
                        difference <= VECTOR_TOLERANCE,
                        "{what}: text {i} element {j}: {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// The states after every layer, not only the last: the first row and the mean of all rows of each.
#[test]
fn every_layer_gives_the_reference_states() {
    let bytes = std::fs::read(path("xlmr_base/trace.safetensors")).unwrap();
    let trace = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<u32> = trace
        .tensor("input_ids")
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
        .collect();
    let expected = json(path("xlmr_base/expected.json"));
    let pair = &expected["pairs"][expected["trace_pair"].as_str().unwrap()];
    // A literal special token in a text is that token: one text can spell the whole pair.
    let text = format!("{}</s></s>{}", pair["query"].as_str().unwrap(), pair["passage"].as_str().unwrap());
    for layers_run in 1..=3 {
        let dir = copy_model("xlmr_base");
        let mut config = json(dir.path().join("config.json"));
        config["architectures"] = serde_json::json!(["XLMRobertaModel"]);
        config["num_hidden_layers"] = layers_run.into();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let engine = engine(dir.path());

        let state = trace.tensor(&format!("hidden_{layers_run}")).unwrap();
        let hidden_size = *state.shape().last().unwrap();
        let state: Vec<f32> =
            state.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(state.len(), ids.len() * hidden_size);
        let mean = |i: usize| state[i..].iter().step_by(hidden_size).sum::<f32>() / ids.len() as f32;
        for (pooling, expected) in [
            (Pooling::Cls, state[..hidden_size].to_vec()),
            (Pooling::Mean, (0..hidden_size).map(mean).collect()),
        ] {
            let options =
                EmbedOptions { pooling: Some(pooling), normalize: Some(false), ..Default::default() };
            assert_eq!(engine.text_sequence(&text, &options).unwrap().input_ids, ids);
            let got = engine.embed(&[&text], &options).unwrap().remove(0).unwrap().vector;
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert!(
                    f64::from((got - expected).abs()) <= VECTOR_TOLERANCE,
                    "{layers_run} layers, {pooling:?}, element {i}: {got}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn embedding_models_rank_by_cosine() {
    let dir = path("embed_minilm");
    let engine = engine(&dir);
    let case = text_cases(&dir).remove(0);
    let ranking = engine.rerank(&case.texts[0], &case.texts, &outcrop::ScoreOptions::default()).unwrap();
    assert_eq!(ranking.results[0].index, 0, "a text is nearest to itself");
    assert!((ranking.results[0].score - 1.0).abs() < 1e-6);
    for ranked in &ranking.results {
        let (a, b) = (&case.vectors[0], &case.vectors[ranked.index]);
        let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        assert!((ranked.score - dot).abs() < 1e-5, "text {}: {}, expected {dot}", ranked.index, ranked.score);
    }
    assert!(ranking.results.is_sorted_by(|a, b| a.score >= b.score));
}

/// Both layouts of each tokenizer, of the families to come too.
#[test]
fn tokenizers_give_the_reference_ids() {
    let mut files = 0;
    for kind in ["xlmr", "bert", "gemma", "minicpm"] {
        for layout in ["tokenizer", "tokenizer.old_layout"] {
            let file = path("tokenizers").join(kind).join(format!("{layout}.json"));
            if file.exists() {
                check_tokenizer(&file, &json(file.with_file_name(format!("{layout}.cases.json"))));
                files += 1;
            }
        }
    }
    assert!(files >= 6, "only {files} tokenizers checked");
}

fn check_tokenizer(file: &Path, cases: &Value) {
    let tokenizer = Tokenizer::from_file(file).unwrap();
    let (before, after) = tokenizer.special_ids();
    let ids =
        |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let strings = cases["strings"].as_array().unwrap();
    assert!(strings.len() >= 80, "{}: {} strings", file.display(), strings.len());
    for case in strings {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text).unwrap();
        assert_eq!(got, ids(&case["ids"]), "{}: {text:?}", file.display());
        assert_eq!([before, &got, after].concat(), ids(&case["ids_special"]), "{}: {text:?}", file.display());
    }
}

#[test]
fn the_older_tokenizer_layout_gives_the_same_scores() {
    let dir = copy_model("xlmr_base");
    std::fs::copy(path("xlmr_base/tokenizer.old_layout.json"), dir.path().join("tokenizer.json")).unwrap();
    let case = pair_cases(&path("xlmr_base")).into_iter().find(|case| case.name == "default").unwrap();
    let (new, old) = (engine(path("xlmr_base")), engine(dir.path()));
    let bits = |engine: &outcrop::Engine| -> Vec<u64> {
        engine
            .score(&case.pairs, &case.options)
            .unwrap()
            .into_iter()
            .map(|s| s.unwrap().score.to_bits())
            .collect()
    };
    assert_eq!(bits(&new), bits(&old));
}
