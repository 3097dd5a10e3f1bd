//! Adapters good and bad, written by this crate's own writer, and what is said about the bad ones.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::writer::{self, TensorSpec};
use crate::{Dtype, TensorData};

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";
const HEAD: &str = "lm_head.2.linear_head";

const BASE_CONFIG: &str = r#"{"architectures": ["BertModel"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 16}"#;

/// The configuration of an adapter of FlagEmbedding's fine-tuning with rank 4, as PEFT writes it.
fn config() -> Value {
    json!({"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "base_model_name_or_path": "..", "bias": "none", "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "layer_replication": null, "layers_to_transform": null, "loftq_config": {},
        "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.1, "modules_to_save": null, "peft_type": "LORA",
        "r": 4, "rank_pattern": {}, "target_modules": ["q_proj"], "target_parameters": null,
        "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
        "use_qalora": false, "use_rslora": false})
}

/// Writes F32 tensors to `dir/file`; every element of a tensor is its index among them.
fn write(dir: &Path, file: &str, tensors: &[(&str, &[usize])]) {
    let spec = |(name, shape): &(&str, &[usize])| TensorSpec {
        name: (*name).to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let written: Result<_, Error> = writer::write(dir, &specs, u64::MAX, |tensor_idx, _, piece| {
        for element in piece.chunks_exact_mut(4) {
            element.copy_from_slice(&(tensor_idx as f32).to_le_bytes());
        }
        Ok(())
    });
    fs::rename(&written.unwrap().files[0], dir.join(file)).unwrap();
}

/// An adapter directory with this configuration and these tensors, named without the leading `base_model.model.`.
fn adapter_dir(config: &Value, tensors: &[(&str, &[usize])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(CONFIG), config.to_string()).unwrap();
    let names: Vec<String> = tensors.iter().map(|(name, _)| format!("{PREFIX}{name}")).collect();
    let shapes = tensors.iter().map(|(_, shape)| *shape);
    let prefixed: Vec<(&str, &[usize])> = names.iter().map(String::as_str).zip(shapes).collect();
    write(dir.path(), WEIGHTS, &prefixed);
    dir
}

fn open(config: &Value, tensors: &[(&str, &[usize])]) -> Result<Adapter, Error> {
    // The mapping outlives the directory's name.
    Adapter::open(adapter_dir(config, tensors).path())
}

/// A base model with a matrix `[6, 8]`, a norm `[8]` and a head `[1, 8]`.
fn base() -> Checkpoint {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), BASE_CONFIG).unwrap();
    let (q_proj, head) = (format!("{Q_PROJ}.weight"), format!("{HEAD}.weight"));
    write(
        dir.path(),
        "model.safetensors",
        &[(&q_proj, &[6, 8]), ("model.norm.weight", &[8]), (&head, &[1, 8])],
    );
    Checkpoint::open(dir.path()).unwrap()
}

fn with(field: &str, value: Value) -> Value {
    let mut config = config();
    config[field] = value;
    config
}

/// The tensors of a low-rank change of `module`, of rank 4 and shape `[out, in]`, with these endings.
fn open_low_rank(
    config: &Value,
    endings: [&str; 2],
    module: &str,
    shape: [usize; 2],
) -> Result<Adapter, Error> {
    let [a, b] = endings.map(|ending| format!("{module}.{ending}"));
    open(config, &[(&a, &[4, shape[1]]), (&b, &[shape[0], 4])])
}

const SAVED: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn low_rank_changes_are_found_under_the_base_model_s_names() {
    for endings in [SAVED, ["lora_A.default.weight", "lora_B.default.weight"]] {
        let adapter = open_low_rank(&config(), endings, Q_PROJ, [6, 8]).unwrap();
        adapter.check(&base()).unwrap();
        let Some(Change::LowRank { a, b, scale }) = adapter.change(&format!("{Q_PROJ}.weight")).unwrap()
        else {
            panic!("no low-rank change")
        };
        assert_eq!((a.shape, b.shape, scale), (&[4, 8][..], &[6, 4][..], 4.0));
        assert!(matches!(a.data, TensorData::F32(data) if data == [0.0; 32]));
        assert!(matches!(b.data, TensorData::F32(data) if data == [1.0; 24]));
        for other in [Q_PROJ, "model.norm.weight", "", "model.layers.1.self_attn.q_proj.weight"] {
            assert!(adapter.change(other).unwrap().is_none(), "{other}");
        }
    }
}

#[test]
fn the_scale_is_alpha_over_the_rank_or_its_root() {
    let scale = |config: Value| {
        let adapter = open_low_rank(&config, SAVED, Q_PROJ, [6, 8]).unwrap();
        match adapter.change(&format!("{Q_PROJ}.weight")).unwrap() {
            Some(Change::LowRank { scale, .. }) => scale,
            _ => panic!("no low-rank change"),
        }
    };
    assert_eq!(scale(config()), 4.0);
    assert_eq!(scale(with("use_rslora", json!(true))), 8.0);
    assert_eq!(scale(with("lora_alpha", json!(0.4))), 0.1);
    assert_eq!(scale(with("lora_alpha", json!(1))), 0.25);
}

#[test]
fn saved_modules_replace_the_base_model_s() {
    for name in [
        format!("{HEAD}.weight"),
        format!("{HEAD}.modules_to_save.default.weight"),
        "lm_head.modules_to_save.default.2.linear_head.weight".to_owned(),
    ] {
        let original = format!("{HEAD}.original_module.weight");
        let adapter = open(&config(), &[(&original, &[1, 8]), (&name, &[1, 8])]).unwrap();
        adapter.check(&base()).unwrap();
        let Some(Change::Replacement(tensor)) = adapter.change(&format!("{HEAD}.weight")).unwrap() else {
            panic!("no replacement")
        };
        assert!(matches!(tensor.data, TensorData::F32(data) if data == [1.0; 8]), "{name}");
    }
}

#[test]
fn options_that_change_the_arithmetic_are_refused() {
    for (field, value, expected) in [
        ("peft_type", json!("LOHA"), "\"LORA\""),
        ("peft_type", json!(null), "a string"),
        ("bias", json!("all"), "\"none\""),
        ("bias", json!("lora_only"), "\"none\""),
        ("use_dora", json!(true), "false"),
        ("use_qalora", json!(true), "false"),
        ("use_bdlora", json!({"match_strict": true}), "false"),
        ("fan_in_fan_out", json!(true), "false"),
        ("lora_bias", json!(true), "false"),
        ("rank_pattern", json!({"q_proj": 8}), "null or empty"),
        ("alpha_pattern", json!({"q_proj": 8}), "null or empty"),
        ("layer_replication", json!([[0, 4]]), "null or empty"),
        ("target_parameters", json!(["w"]), "null or empty"),
        ("trainable_token_indices", json!([1]), "null or empty"),
        ("alora_invocation_tokens", json!([1]), "null or empty"),
        ("arrow_config", json!({"top_k": 3}), "null or empty"),
        ("kasa_config", json!({"beta": 1e-4}), "null or empty"),
        ("init_lora_weights", json!("pissa"), "true, false or one of gaussian, orthogonal, eva"),
        ("r", json!(0), "a whole number from 1 to 1048576"),
        ("r", json!(null), "a whole number from 1 to 1048576"),
        ("lora_alpha", json!(0), "a positive number"),
        ("lora_alpha", json!(null), "a positive number"),
        ("use_rslora", json!("yes"), "true or false"),
    ] {
        let error = open_low_rank(&with(field, value), SAVED, Q_PROJ, [6, 8]).unwrap_err();
        assert_contains(&error.to_string(), &[CONFIG, &format!(": {field} must be {expected}, found ")]);
    }
    // What old versions of PEFT did not write yet is off.
    let old = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 16});
    assert!(open_low_rank(&old, SAVED, Q_PROJ, [6, 8]).is_ok());
    assert!(open_low_rank(&with("init_lora_weights", json!("gaussian")), SAVED, Q_PROJ, [6, 8]).is_ok());
}

#[test]
fn tensors_of_other_kinds_are_refused_by_name() {
    for name in [
        "model.embed_tokens.lora_embedding_A",
        "model.q.lora_embedding_A.weight",
        "model.q.lora_magnitude_vector",
        "model.q.lora_magnitude_vector.default.weight",
        "model.q.lora_A.bias",
        "model.q.lora_A.other.weight",
        "model.q.bias",
        "model.q.base_layer.weight",
        "lm_head.modules_to_save.other.weight",
        "lm_head.modules_to_save.default.bias",
    ] {
        let error = open(&config(), &[(name, &[4, 4])]).unwrap_err();
        assert!(matches!(error, Error::AdapterTensor { .. }), "{name}: {error}");
        assert_contains(&error.to_string(), &[WEIGHTS, name, "lora_A.weight with <module>.lora_B.weight"]);
    }
    let dir = adapter_dir(&config(), &[]);
    write(dir.path(), WEIGHTS, &[("model.q_proj.lora_A.weight", &[4, 8])]);
    let message = Adapter::open(dir.path()).unwrap_err().to_string();
    assert_contains(&message, &["tensor model.q_proj.lora_A.weight is not supported", "base_model.model."]);
}

#[test]
fn incomplete_and_contradictory_modules_are_refused() {
    let (a, b, saved) = ("m.lora_A.weight", "m.lora_B.weight", "m.weight");
    let message = |tensors: &[(&str, &[usize])]| open(&config(), tensors).unwrap_err().to_string();
    assert_contains(&message(&[(a, &[4, 8])]), &[WEIGHTS, "module m has a lora_A, but no lora_B"]);
    assert_contains(&message(&[(b, &[8, 4])]), &[WEIGHTS, "module m has a lora_B, but no lora_A"]);
    for tensors in [
        &[(a, &[4, 8][..]), (b, &[8, 4]), (saved, &[8, 8])][..],
        &[(a, &[4, 8]), (saved, &[8, 8])],
        &[(a, &[4, 8]), (b, &[8, 4]), ("m.lora_A.default.weight", &[4, 8])],
        &[(saved, &[8]), ("m.modules_to_save.default.weight", &[8])],
    ] {
        assert_contains(&message(tensors), &[WEIGHTS, "module m is changed by two tensors"]);
    }
    assert_contains(&message(&[]), &[WEIGHTS, "changes nothing"]);
    assert_contains(&message(&[("m.original_module.weight", &[8])]), &["changes nothing"]);
}

#[test]
fn matrices_of_another_rank_are_refused() {
    for (a_shape, b_shape, expected) in [
        (&[8, 8][..], &[6, 4][..], "lora_A.weight must have shape [4, in] by r"),
        (&[4, 8], &[6, 8], "lora_B.weight must have shape [out, 4] by r"),
        (&[4], &[6, 4], "lora_A.weight must have shape [4, in] by r"),
        (&[4, 8, 1], &[6, 4], "lora_A.weight must have shape [4, in] by r"),
        (&[4, 8], &[], "lora_B.weight must have shape [out, 4] by r"),
    ] {
        let error =
            open(&config(), &[("m.lora_A.weight", a_shape), ("m.lora_B.weight", b_shape)]).unwrap_err();
        assert_contains(&error.to_string(), &[WEIGHTS, expected, ", found ["]);
    }
}

#[test]
fn an_adapter_of_another_model_does_not_fit() {
    let base = base();
    let check = |adapter: Result<Adapter, Error>| adapter.unwrap().check(&base).unwrap_err().to_string();

    let unknown = check(open_low_rank(&config(), SAVED, "model.layers.1.self_attn.q_proj", [6, 8]));
    let nearest = format!("(the nearest name is {Q_PROJ}.weight)");
    assert_contains(&unknown, &[WEIGHTS, "model.layers.1.self_attn.q_proj.weight, which", &nearest]);
    for shape in [[6, 9], [7, 8], [8, 6]] {
        let message = check(open_low_rank(&config(), SAVED, Q_PROJ, shape));
        assert_contains(
            &message,
            &[WEIGHTS, Q_PROJ, &format!("{shape:?}"), "model.safetensors it has shape [6, 8]"],
        );
    }
    // A vector is no matrix of one row, and a replacement does not broadcast.
    let norm = check(open_low_rank(&config(), SAVED, "model.norm", [1, 8]));
    assert_contains(&norm, &["model.norm.weight as one of shape [1, 8]", "has shape [8]"]);
    let head = format!("{HEAD}.weight");
    assert_contains(&check(open(&config(), &[(&head, &[8])])), &[&head, "has shape [1, 8]"]);
}

#[test]
fn of_a_missing_shard_only_the_names_are_checked() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), BASE_CONFIG).unwrap();
    let index = json!({"weight_map": {format!("{Q_PROJ}.weight"): "model-2.safetensors"}});
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let base = Checkpoint::open(dir.path()).unwrap();
    open_low_rank(&config(), SAVED, Q_PROJ, [60, 80]).unwrap().check(&base).unwrap();
    let other = open_low_rank(&config(), SAVED, "model.layers.9.mlp.up_proj", [6, 8]).unwrap();
    assert!(matches!(other.check(&base), Err(Error::AdapterTarget { .. })));
}

#[test]
fn integers_are_no_weights() {
    let dir = adapter_dir(&config(), &[]);
    let name = format!("{PREFIX}{HEAD}.weight");
    let specs = [TensorSpec { name, dtype: Dtype::I32, shape: vec![1, 8] }];
    writer::write::<Error>(dir.path(), &specs, 100, |_, _, _| Ok(())).unwrap();
    fs::rename(dir.path().join("model.safetensors"), dir.path().join(WEIGHTS)).unwrap();
    let adapter = Adapter::open(dir.path()).unwrap();
    let message = adapter.check(&base()).unwrap_err().to_string();
    assert_contains(&message, &[WEIGHTS, HEAD, "I32", "F32, F16 and BF16"]);
    assert!(adapter.change(&format!("{HEAD}.weight")).is_err());
}

#[test]
fn every_kind_of_missing_file_has_its_own_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    assert!(matches!(Adapter::open(path.join("none")), Err(Error::NoAdapterConfig { .. })));
    assert!(matches!(Adapter::open(path), Err(Error::NoAdapterConfig { .. })));
    fs::write(path.join(CONFIG), "{").unwrap();
    assert!(matches!(Adapter::open(path), Err(Error::Json { .. })));
    fs::write(path.join(CONFIG), config().to_string()).unwrap();
    assert_contains(&Adapter::open(path).unwrap_err().to_string(), &["no weights in", WEIGHTS]);
    fs::write(path.join(PICKLED_WEIGHTS), "pickle").unwrap();
    let message = Adapter::open(path).unwrap_err().to_string();
    assert_contains(&message, &[PICKLED_WEIGHTS, "python3 -c", "save_file", WEIGHTS, path.to_str().unwrap()]);
    fs::write(path.join(WEIGHTS), "").unwrap();
    assert!(matches!(Adapter::open(path), Err(Error::EmptyFile { .. })));
}

/// A name of which parts are those that adapters have.
fn any_name() -> impl Strategy<Value = String> {
    const PARTS: [&str; 11] = [
        "base_model",
        "model",
        "m",
        "lora_A",
        "lora_B",
        "default",
        "weight",
        "modules_to_save",
        "original_module",
        "bias",
        "",
    ];
    let common = prop::collection::vec(prop::sample::select(&PARTS[..]), 0..6);
    prop_oneof![
        common.clone().prop_map(|parts| parts.join(".")),
        common.prop_map(|parts| format!("{PREFIX}{}", parts.join("."))),
        "\\PC{0,20}",
    ]
}

proptest! {
    #[test]
    fn arbitrary_tensors_never_panic(
        tensors in prop::collection::btree_map(any_name(), prop::collection::vec(3..6_usize, 0..4), 0..6),
    ) {
        let dir = adapter_dir(&config(), &[]);
        let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        write(dir.path(), WEIGHTS, &tensors);
        if let Ok(adapter) = Adapter::open(dir.path()) {
            prop_assert!(adapter.changes.keys().all(|name| adapter.change(name).unwrap().is_some()));
            prop_assert!(adapter.check(&base()).is_err());
        }
    }

    #[test]
    fn arbitrary_files_never_panic(
        config in "\\PC{0,60}",
        weights in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let dir = adapter_dir(&self::config(), &[]);
        fs::write(dir.path().join(WEIGHTS), weights).unwrap();
        prop_assert!(Adapter::open(dir.path()).is_err());
        fs::write(dir.path().join(CONFIG), config).unwrap();
        prop_assert!(Adapter::open(dir.path()).is_err());
    }

    #[test]
    fn replaced_options_never_panic(
        field in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "\\PC{0,10}".prop_map(Value::from),
            Just(json!([1])),
            Just(json!({"a": 1})),
        ],
    ) {
        let mut config = config();
        let fields = config.as_object_mut().unwrap();
        let name = fields.keys().nth(field.index(fields.len())).unwrap().clone();
        fields.insert(name, value);
        if let Ok(adapter) = open_low_rank(&config, SAVED, Q_PROJ, [6, 8]) {
            prop_assert!(adapter.scale > 0.0 && adapter.scale.is_finite());
        }
    }
}
