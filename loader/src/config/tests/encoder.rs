//! `config.json` of the published encoders, and what is said about files that differ from them.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The `config.json` of bge-reranker-v2-m3, without the fields that concern training only.
fn reranker() -> Value {
    json!({
        "_name_or_path": "BAAI/bge-m3",
        "architectures": ["XLMRobertaForSequenceClassification"],
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": null,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "id2label": {"0": "LABEL_0"},
        "intermediate_size": 4096,
        "label2id": {"LABEL_0": 0},
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 8194,
        "model_type": "xlm-roberta",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 1,
        "use_cache": true,
        "vocab_size": 250002
    })
}

fn parse(value: &Value) -> Result<EncoderConfig, Error> {
    match Config::parse(Path::new("config.json"), value.to_string().as_bytes())? {
        Config::Encoder(config) => Ok(config),
        Config::Decoder(config) => panic!("{config:?}"),
    }
}

/// The reranker's configuration with one field replaced.
fn with(field: &str, value: Value) -> Value {
    let mut config = reranker();
    config[field] = value;
    config
}

fn without(field: &str) -> Value {
    let mut config = reranker();
    config.as_object_mut().unwrap().remove(field);
    config
}

#[test]
fn the_published_reranker() {
    let config = parse(&reranker()).unwrap();
    assert_eq!(
        config,
        EncoderConfig {
            architecture: Architecture::XlmRobertaForSequenceClassification,
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            vocab_size: 250_002,
            max_position_embeddings: 8194,
            type_vocab_size: 1,
            layer_norm_eps: 1e-5,
            pad_token_id: 1,
        }
    );
    assert_eq!(config.head_dim(), 64);
    assert_eq!(config.max_tokens(), 8192);
}

#[test]
fn the_older_published_rerankers() {
    for (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads) in
        [(768, 3072, 12, 12), (1024, 4096, 24, 16)]
    {
        let mut config = reranker();
        config["hidden_size"] = json!(hidden_size);
        config["intermediate_size"] = json!(intermediate_size);
        config["num_hidden_layers"] = json!(num_hidden_layers);
        config["num_attention_heads"] = json!(num_attention_heads);
        config["max_position_embeddings"] = json!(514);
        let config = parse(&config).unwrap();
        assert_eq!((config.hidden_size, config.intermediate_size), (hidden_size, intermediate_size));
        assert_eq!((config.num_hidden_layers, config.head_dim()), (num_hidden_layers, 64));
        assert_eq!(config.max_tokens(), 512);
    }
}

#[test]
fn defaults_are_those_of_transformers() {
    let sizes = json!({"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512});
    for (model_type, architecture, pad_token_id, max_tokens) in
        [("bert", Architecture::BertModel, 0, 512), ("xlm-roberta", Architecture::XlmRobertaModel, 1, 510)]
    {
        let mut config = sizes.clone();
        config["model_type"] = json!(model_type);
        let config = parse(&config).unwrap();
        assert_eq!(config.architecture, architecture);
        assert_eq!(config.layer_norm_eps, 1e-12);
        assert_eq!(config.type_vocab_size, 2);
        assert_eq!(config.pad_token_id, pad_token_id);
        assert_eq!(config.max_tokens(), max_tokens);
    }
    assert!(
        parse(&sizes).unwrap_err().to_string().contains("architectures must be a list of one class name")
    );
}

#[test]
fn null_counts_as_missing() {
    let config = parse(&with("pad_token_id", Value::Null)).unwrap();
    assert_eq!(config.pad_token_id, 1);
    assert!(parse(&with("hidden_size", Value::Null)).is_err());
}

#[test]
fn architectures_decides_and_messages_list_what_is_supported() {
    let bert = parse(&with("architectures", json!(["BertModel"]))).unwrap();
    assert_eq!(bert.architecture, Architecture::BertModel);

    let message = parse(&with("architectures", json!(["LlamaForCausalLM"]))).unwrap_err().to_string();
    for part in
        ["config.json", "LlamaForCausalLM", "XLMRobertaForSequenceClassification", "BertModel", "CostWise"]
    {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    for wrong in [json!([]), json!(["BertModel", "BertModel"]), json!("BertModel"), json!([1])] {
        assert!(matches!(parse(&with("architectures", wrong)), Err(Error::Field { .. })));
    }
}

#[test]
fn a_classifier_is_not_a_reranker() {
    let two = json!({"0": "no", "1": "yes"});
    for config in [with("id2label", two), with_num_labels(3)] {
        let error = parse(&config).unwrap_err();
        assert!(matches!(error, Error::NotAReranker { num_labels: 2 | 3, .. }), "{error}");
        assert!(error.to_string().contains("a classifier and not a reranker"));
    }
    // As in transformers, the map wins over the count; an embedder's labels do not matter.
    assert!(parse(&with("num_labels", json!(2))).is_ok());
    assert!(parse(&without("id2label")).is_ok());
    let mut embedder = with_num_labels(2);
    embedder["architectures"] = json!(["XLMRobertaModel"]);
    assert!(parse(&embedder).is_ok());
}

fn with_num_labels(num_labels: usize) -> Value {
    let mut config = without("id2label");
    config["num_labels"] = json!(num_labels);
    config
}

#[test]
fn variants_of_the_network_are_refused() {
    for (field, value, expected) in [
        ("hidden_act", json!("gelu_new"), "\"gelu\""),
        ("hidden_act", json!("relu"), "\"gelu\""),
        ("hidden_act", json!(1), "a string"),
        ("position_embedding_type", json!("relative_key"), "\"absolute\""),
        ("is_decoder", json!(true), "false"),
        ("add_cross_attention", json!(true), "false"),
        ("is_decoder", json!("no"), "true or false"),
    ] {
        let message = parse(&with(field, value.clone())).unwrap_err().to_string();
        assert_eq!(message, format!("config.json: {field} must be {expected}, found {value}"));
    }
    assert!(parse(&with("is_decoder", json!(false))).is_ok());
}

#[test]
fn sizes_are_required_and_checked() {
    for field in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ] {
        let message = parse(&without(field)).unwrap_err().to_string();
        assert!(message.contains(&format!("{field} must be a whole number")), "{message}");
        assert!(message.ends_with("found nothing"), "{message}");
        for wrong in [json!(0), json!(-1), json!(1.5), json!("1024"), json!(u64::MAX), json!([1024])] {
            let message = parse(&with(field, wrong)).unwrap_err().to_string();
            assert!(message.contains(&format!("{field} must be a whole number")), "{message}");
        }
    }
}

#[test]
fn head_widths_that_no_kernel_has_are_refused() {
    // Not a divisor; 8; 512; 40, which is no multiple of 16.
    for (hidden_size, num_attention_heads) in [(1024, 15), (128, 16), (1024, 2), (640, 16)] {
        let mut config = with("hidden_size", json!(hidden_size));
        config["num_attention_heads"] = json!(num_attention_heads);
        let message = parse(&config).unwrap_err().to_string();
        assert!(message.contains("hidden_size must be num_attention_heads"), "{message}");
        assert!(message.contains(&format!("({num_attention_heads})")), "{message}");
    }
}

#[test]
fn padding_and_positions_fit_together() {
    assert!(parse(&with("pad_token_id", json!(250_002))).is_err());
    // The default, 1, is an id of the vocabulary too.
    let mut one_word = without("pad_token_id");
    one_word["vocab_size"] = json!(1);
    assert!(parse(&one_word).unwrap_err().to_string().contains("pad_token_id must be a whole number less"));
    // Position `pad_token_id + 1` is the first one, so row 2 of the table must exist.
    assert!(parse(&with("max_position_embeddings", json!(2))).is_err());
    assert_eq!(parse(&with("max_position_embeddings", json!(3))).unwrap().max_tokens(), 1);
    assert!(parse(&with("pad_token_id", json!(8193))).is_err());
}

#[test]
fn layer_norm_eps_is_read_and_checked() {
    assert_eq!(parse(&with("layer_norm_eps", json!(0.05))).unwrap().layer_norm_eps, 0.05);
    // The last one is zero once rounded to 32 bits.
    for wrong in [json!(0), json!(-1e-5), json!(1), json!("1e-5"), json!(1e-60)] {
        assert!(parse(&with("layer_norm_eps", wrong)).is_err());
    }
}

#[test]
fn long_values_are_shortened_in_messages() {
    let message = parse(&with("hidden_act", json!("ü".repeat(1000)))).unwrap_err().to_string();
    assert!(message.chars().count() < 150, "{message}");
    let message = parse(&with("hidden_size", json!(vec![1; 1000]))).unwrap_err().to_string();
    assert!(message.ends_with("found a list of 1000"), "{message}");
}

proptest! {
    #[test]
    fn replaced_fields_never_panic(field in any::<prop::sample::Index>(), value in any_json()) {
        let mut config = reranker();
        let fields = config.as_object_mut().unwrap();
        let name = fields.keys().nth(field.index(fields.len())).unwrap().clone();
        fields.insert(name, value);
        if let Ok(config) = parse(&config) {
            prop_assert_eq!(config.head_dim() * config.num_attention_heads, config.hidden_size);
            prop_assert!(config.max_tokens() >= 1);
        }
    }
}
