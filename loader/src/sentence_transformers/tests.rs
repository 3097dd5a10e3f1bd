//! The files of published embedders, in the layouts of old and new versions, and unsupported ones.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;

const OLD: &str = "sentence_transformers.models.";

/// A `modules.json` with these class names and directories.
fn modules(prefix: &str, modules: &[(&str, &str)]) -> Value {
    let entry = |(i, (class, path)): (usize, &(&str, &str))| json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("{prefix}{class}")});
    modules.iter().enumerate().map(entry).collect()
}

fn usual_modules() -> Value {
    modules(OLD, &[("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")])
}

/// A model directory with these modules and this pooling configuration.
fn model_dir(modules: &Value, pooling: &Value) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(MODULES), modules.to_string()).unwrap();
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    fs::write(dir.path().join("1_Pooling").join(POOLING_CONFIG), pooling.to_string()).unwrap();
    dir
}

fn open(modules: &Value, pooling: &Value) -> Result<Option<SentenceTransformers>, Error> {
    SentenceTransformers::open(model_dir(modules, pooling).path())
}

/// The older pooling configuration, with the one given mode on.
fn switches(on: &[&str]) -> Value {
    let mut config = json!({"word_embedding_dimension": 384});
    for mode in ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"] {
        config[format!("pooling_mode_{mode}")] = json!(on.contains(&mode));
    }
    config
}

#[test]
fn nothing_recorded() {
    assert_eq!(SentenceTransformers::open(TempDir::new().unwrap().path()).unwrap(), None);
}

#[test]
fn mean_pooling_with_normalisation_and_a_limit() {
    let dir = model_dir(&usual_modules(), &switches(&["mean_tokens"]));
    let without_limit =
        SentenceTransformers { pooling: Pooling::Mean, normalize: true, max_seq_length: None };
    assert_eq!(SentenceTransformers::open(dir.path()).unwrap(), Some(without_limit.clone()));
    let limit = dir.path().join(TRANSFORMER_CONFIG);
    fs::write(&limit, r#"{"max_seq_length": 256, "do_lower_case": false}"#).unwrap();
    let with_limit = SentenceTransformers { max_seq_length: Some(256), ..without_limit };
    assert_eq!(SentenceTransformers::open(dir.path()).unwrap(), Some(with_limit));

    fs::write(&limit, r#"{"max_seq_length": 256, "do_lower_case": true}"#).unwrap();
    assert!(matches!(SentenceTransformers::open(dir.path()), Err(Error::Field { .. })));
    fs::write(&limit, r#"{"max_seq_length": 0}"#).unwrap();
    assert!(matches!(SentenceTransformers::open(dir.path()), Err(Error::Field { .. })));
}

#[test]
fn first_token_pooling_in_old_and_new_layouts() {
    let new = "sentence_transformers.sentence_transformer.modules.";
    for prefix in [OLD, new, ""] {
        let two = modules(prefix, &[("Transformer", ""), ("Pooling", "1_Pooling")]);
        for pooling in [switches(&["cls_token"]), json!({"pooling_mode": "cls", "embedding_dimension": 384})]
        {
            let found = open(&two, &pooling).unwrap().unwrap();
            assert_eq!((found.pooling, found.normalize), (Pooling::Cls, false));
        }
        let found = open(&two, &json!({"pooling_mode": "mean"})).unwrap().unwrap();
        assert_eq!(found.pooling, Pooling::Mean);
    }
}

#[test]
fn unsupported_pooling_is_named() {
    for (pooling, name) in [
        (switches(&["max_tokens"]), "max_tokens"),
        (switches(&["mean_sqrt_len_tokens"]), "mean_sqrt_len_tokens"),
        (switches(&["cls_token", "mean_tokens"]), "cls_token and mean_tokens"),
        (json!({"pooling_mode_weightedmean_tokens": true}), "weightedmean_tokens"),
        (json!({"pooling_mode": "lasttoken"}), "lasttoken"),
    ] {
        let message = open(&usual_modules(), &pooling).unwrap_err().to_string();
        assert!(message.contains(&format!("pooling {name} is not supported")), "{message}");
    }
    assert!(matches!(open(&usual_modules(), &switches(&[])), Err(Error::Field { .. })));
    assert!(matches!(
        open(&usual_modules(), &json!({"pooling_mode_cls_token": 1})),
        Err(Error::Field { .. })
    ));
}

#[test]
fn unsupported_modules_are_named() {
    let transformer = ("Transformer", "");
    let pooling = ("Pooling", "1_Pooling");
    for (list, name) in [
        (vec![transformer, pooling, ("Dense", "2_Dense")], "Dense (in 2_Dense)"),
        (vec![("Transformer", "0_Transformer"), pooling], "Transformer (in 0_Transformer)"),
        (vec![pooling, transformer], "Pooling (in 1_Pooling), Transformer"),
        (vec![transformer], "the modules Transformer are"),
        (vec![transformer, pooling, ("Normalize", "2"), ("Normalize", "3")], "Normalize (in 3)"),
    ] {
        let message = open(&modules(OLD, &list), &switches(&["cls_token"])).unwrap_err().to_string();
        assert!(message.contains(name), "{name} is not in {message}");
        assert!(message.contains("modules.json"), "{message}");
    }
}

#[test]
fn damaged_files_are_errors() {
    for list in [json!({}), json!([1]), json!([{"type": "a.Transformer"}]), json!([{"type": 1, "path": ""}])]
    {
        assert!(matches!(open(&list, &switches(&["cls_token"])), Err(Error::Field { .. })), "{list}");
    }
    let outside = modules(OLD, &[("Transformer", ""), ("Pooling", "../1_Pooling")]);
    assert!(matches!(open(&outside, &switches(&["cls_token"])), Err(Error::UnsafePath { .. })));
    let elsewhere = modules(OLD, &[("Transformer", ""), ("Pooling", "9_Pooling")]);
    assert!(matches!(open(&elsewhere, &switches(&["cls_token"])), Err(Error::Read { .. })));
}
