//! Known wrong variants (SPEC 15): each must move a score far beyond the tolerance of the reference comparison.
//!
//! A tolerance that would let a mistake through proves nothing, so the likeliest mistakes of this family are made on purpose:
//! in the model's files where they can be made there, in the ids otherwise.

use std::path::Path;

use outcrop::{Engine, ScoreOptions};

use crate::fixtures::{copy_model, engine, pair_cases, path};
use crate::reference::SCORE_TOLERANCE;

/// The largest difference between the scores of the case `name` and the reference's.
fn worst_difference(engine: &Engine, fixture: &str, name: &str, options: Option<ScoreOptions>) -> f64 {
    let case = pair_cases(&path(fixture)).into_iter().find(|case| case.name == name).unwrap();
    let scores = engine.score(&case.pairs, &options.unwrap_or(case.options)).unwrap();
    let expected = case.scores.unwrap().remove(0);
    scores.iter().zip(&expected).map(|(got, e)| (got.as_ref().unwrap().score - e).abs()).fold(0.0, f64::max)
}

fn edit_config(dir: &Path, key: &str, value: serde_json::Value) {
    let file = dir.join("config.json");
    let mut config = crate::fixtures::json(&file);
    assert!(config.get(key).is_some(), "config.json has no {key}");
    config[key] = value;
    std::fs::write(file, config.to_string()).unwrap();
}

/// Applies `edit` to the f32 elements of one tensor of a single-file checkpoint.
fn edit_tensor(dir: &Path, name: &str, edit: impl Fn(&mut Vec<f32>)) {
    let file = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offset = |i: usize| 8 + header_len + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    let range = offset(0)..offset(1);
    let mut values: Vec<f32> =
        bytes[range.clone()].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    edit(&mut values);
    let edited: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    bytes[range].copy_from_slice(&edited);
    std::fs::write(file, bytes).unwrap();
}

#[track_caller]
fn assert_caught(difference: f64, at_least: f64) {
    assert!(
        difference > at_least && difference > 100.0 * SCORE_TOLERANCE,
        "the mutant moves scores by {difference:e} only, expected more than {at_least}"
    );
}

#[test]
fn the_unchanged_model_is_within_the_tolerance() {
    assert!(worst_difference(&engine(path("xlmr_base")), "xlmr_base", "default", None) <= SCORE_TOLERANCE);
}

#[test]
fn an_epsilon_not_read_from_the_config() {
    let dir = copy_model("xlmr_eps");
    edit_config(dir.path(), "layer_norm_eps", 1e-5.into());
    assert_caught(worst_difference(&engine(dir.path()), "xlmr_eps", "default", None), 0.1);
}

#[test]
fn positions_that_start_at_zero() {
    // Rotating the table by two rows gives a token the row that a count from 0 would give it.
    let dir = copy_model("xlmr_base");
    let hidden =
        crate::fixtures::json(dir.path().join("config.json"))["hidden_size"].as_u64().unwrap() as usize;
    edit_tensor(dir.path(), "roberta.embeddings.position_embeddings.weight", |table| {
        table.rotate_right(2 * hidden)
    });
    assert_caught(worst_difference(&engine(dir.path()), "xlmr_base", "default", None), 1.0);
}

#[test]
fn a_token_type_row_left_out() {
    let dir = copy_model("xlmr_base");
    edit_tensor(dir.path(), "roberta.embeddings.token_type_embeddings.weight", |row| row.fill(0.0));
    assert_caught(worst_difference(&engine(dir.path()), "xlmr_base", "default", None), 1.0);
}

#[test]
fn a_head_without_its_bias() {
    let dir = copy_model("xlmr_base");
    edit_tensor(dir.path(), "classifier.dense.bias", |bias| bias.fill(0.0));
    assert_caught(worst_difference(&engine(dir.path()), "xlmr_base", "default", None), 0.01);
}

#[test]
fn a_query_that_may_take_all_of_the_length() {
    // What the usual pair call of a tokenizer does: no limit of three quarters for the query.
    let options = ScoreOptions { max_length: Some(64), query_max_length: Some(64), ..Default::default() };
    let difference =
        worst_difference(&engine(path("xlmr_base")), "xlmr_base", "max_length_64", Some(options));
    assert_caught(difference, 0.1);
}

#[test]
fn one_separator_instead_of_two() {
    // "q </s> p" in one text is `<s> q </s> p </s> </s> </s>`: the same ids but for one separator moved to the end.
    let engine = engine(path("xlmr_base"));
    let case = pair_cases(&path("xlmr_base")).into_iter().find(|case| case.name == "default").unwrap();
    let (query, passage) = &case.pairs[1];
    let joined = engine.score(&[(format!("{query}</s>{passage}"), "")], &case.options).unwrap();
    let expected = case.scores.unwrap()[0][1];
    assert_caught((joined[0].as_ref().unwrap().score - expected).abs(), 0.1);
}
