//! `config.json` of the published decoders, and what is said about files that differ from them.

use super::*;

// The fields that concern generation and training are left out, except where they could be mistaken for others.

fn gemma() -> Value {
    json!({"_name_or_path": "google/gemma-2b", "architectures": ["GemmaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 16384,
        "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 10000.0, "torch_dtype": "float32", "vocab_size": 256000})
}

fn minicpm() -> Value {
    json!({"architectures": ["LayerWiseMiniCPMForCausalLM"], "attention_bias": false, "bos_token_id": 1,
        "dim_model_base": 256, "eos_token_id": 2, "head_multi": true, "head_type": "simple", "hidden_act": "silu",
        "hidden_size": 2304, "initializer_range": 0.1, "intermediate_size": 5760,
        "max_position_embeddings": 2048, "model_type": "minicpm", "num_attention_heads": 36,
        "num_hidden_layers": 40, "num_key_value_heads": 36, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "scale_depth": 1.4, "scale_emb": 12, "start_layer": 8,
        "torch_dtype": "bfloat16", "use_cache": false, "vocab_size": 122753})
}

fn gemma2() -> Value {
    json!({"architectures": ["CostWiseGemmaForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
        "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584, "intermediate_size": 14336, "layer_sep": 1, "layer_wise": true,
        "max_position_embeddings": 8192, "model_type": "cost_wise_gemma", "num_attention_heads": 16,
        "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        "start_layer": 8, "torch_dtype": "float32", "vocab_size": 256000})
}

fn parse(value: &Value) -> Result<DecoderConfig, Error> {
    match Config::parse(Path::new("config.json"), value.to_string().as_bytes())? {
        Config::Decoder(config) => Ok(config),
        Config::Encoder(config) => panic!("{config:?}"),
    }
}

/// `config` with the given fields replaced or added.
fn with(mut config: Value, fields: &Value) -> Value {
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

/// The configuration without every field that is no size and does not name the class.
fn sizes_only(mut config: Value) -> Value {
    const KEPT: [&str; 8] = [
        "architectures",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
    ];
    config.as_object_mut().unwrap().retain(|field, _| KEPT.contains(&field.as_str()));
    config
}

#[test]
fn the_published_gemma() {
    let expected = DecoderConfig {
        architecture: Architecture::GemmaForCausalLM,
        hidden_size: 2048,
        intermediate_size: 16384,
        num_hidden_layers: 18,
        num_attention_heads: 8,
        num_key_value_heads: 1,
        head_dim: 256,
        vocab_size: 256_000,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        bos_token_id: Some(2),
        pad_token_id: Some(0),
        family: DecoderFamily::Gemma(GemmaConfig { gelu: Gelu::Tanh, tie_word_embeddings: true }),
    };
    assert_eq!(parse(&gemma()).unwrap(), expected);
    assert_eq!(expected.allowed_cutoffs(), None);
    // All that it states beyond the sizes is what its class takes for the default.
    assert_eq!(parse(&sizes_only(gemma())).unwrap(), expected);
}

#[test]
fn the_published_minicpm() {
    let config = parse(&minicpm()).unwrap();
    let expected = DecoderConfig {
        architecture: Architecture::LayerWiseMiniCPMForCausalLM,
        hidden_size: 2304,
        intermediate_size: 5760,
        num_hidden_layers: 40,
        num_attention_heads: 36,
        num_key_value_heads: 36,
        head_dim: 64,
        vocab_size: 122_753,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        bos_token_id: Some(1),
        pad_token_id: None,
        family: DecoderFamily::MiniCpm(MiniCpmConfig {
            scale_emb: 12.0,
            scale_depth: 1.4,
            start_layer: 8,
            head_multi: true,
        }),
    };
    assert_eq!(config, expected);

    let mut defaults = sizes_only(minicpm());
    defaults.as_object_mut().unwrap().remove("num_key_value_heads");
    let family = DecoderFamily::MiniCpm(MiniCpmConfig {
        scale_emb: 1.0,
        scale_depth: 1.0,
        start_layer: 8,
        head_multi: true,
    });
    assert_eq!(parse(&defaults).unwrap(), DecoderConfig { rms_norm_eps: 1e-6, family, ..expected });
}

#[test]
fn the_published_gemma2() {
    let config = parse(&gemma2()).unwrap();
    let family = Gemma2Config {
        gelu: Gelu::Tanh,
        query_pre_attn_scalar: 256.0,
        attn_logit_softcapping: Some(50.0),
        final_logit_softcapping: Some(30.0),
        sliding_window: Some(4096),
        start_layer: 8,
        layer_sep: 1,
    };
    let expected = DecoderConfig {
        architecture: Architecture::CostWiseGemmaForCausalLM,
        hidden_size: 3584,
        intermediate_size: 14336,
        num_hidden_layers: 42,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        head_dim: 256,
        vocab_size: 256_000,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        bos_token_id: Some(2),
        pad_token_id: Some(0),
        family: DecoderFamily::Gemma2(family.clone()),
    };
    assert_eq!(config, expected);

    let defaults = parse(&with(sizes_only(gemma2()), &json!({"layer_wise": true}))).unwrap();
    let family = Gemma2Config { query_pre_attn_scalar: 224.0, start_layer: 28, layer_sep: 28, ..family };
    assert_eq!(defaults, DecoderConfig { family: DecoderFamily::Gemma2(family), ..expected });
    assert_eq!(defaults.allowed_cutoffs().unwrap().to_string(), "28");
}

#[test]
fn cutoffs_are_counted_from_the_first_layer_with_a_head() {
    let minicpm = parse(&minicpm()).unwrap().allowed_cutoffs().unwrap();
    assert_eq!(minicpm, AllowedCutoffs { start: 8, step: 1, last: 40 });
    assert_eq!((minicpm.len(), minicpm.to_string().as_str()), (33, "8 to 40"));
    assert!(minicpm.contains(8) && minicpm.contains(40) && !minicpm.contains(7) && !minicpm.contains(41));

    let gemma2_with = |fields| parse(&with(gemma2(), &fields)).unwrap().allowed_cutoffs().unwrap();
    assert_eq!(gemma2_with(json!({})).len(), 35);
    let steps = gemma2_with(json!({"layer_sep": 10}));
    assert_eq!(steps.iter().collect::<Vec<_>>(), [8, 18, 28, 38]);
    assert_eq!(steps.to_string(), "8 to 38 in steps of 10");
    assert!(steps.contains(28) && !steps.contains(29) && !steps.contains(42));
    assert_eq!(gemma2_with(json!({"start_layer": 42, "layer_sep": 1})).iter().collect::<Vec<_>>(), [42]);
    assert_eq!(gemma2_with(json!({"layer_sep": 4096})).last, 8);
}

#[test]
fn the_activation_of_gemma_is_read_as_the_reference_reads_it() {
    for (fields, expected) in [
        (json!({"hidden_act": null}), Gelu::Tanh),
        (json!({"hidden_act": "gelu"}), Gelu::Tanh),
        (json!({"hidden_act": "gelu_new"}), Gelu::Tanh),
        (json!({"hidden_act": "gelu_pytorch_tanh"}), Gelu::Tanh),
        (json!({"hidden_activation": "gelu_pytorch_tanh"}), Gelu::Tanh),
        (json!({"hidden_activation": "gelu"}), Gelu::Exact),
        (json!({"hidden_activation": "gelu", "hidden_act": "silu"}), Gelu::Exact),
    ] {
        let config = parse(&with(gemma(), &fields)).unwrap();
        assert!(matches!(config.family, DecoderFamily::Gemma(GemmaConfig { gelu, .. }) if gelu == expected));
    }
    let exact = parse(&with(gemma2(), &json!({"hidden_activation": "gelu"}))).unwrap();
    assert!(matches!(exact.family, DecoderFamily::Gemma2(Gemma2Config { gelu: Gelu::Exact, .. })));
}

#[test]
fn null_switches_caps_and_window_off() {
    let off =
        json!({"attn_logit_softcapping": null, "final_logit_softcapping": null, "sliding_window": null});
    let DecoderFamily::Gemma2(config) = parse(&with(gemma2(), &off)).unwrap().family else { panic!() };
    assert_eq!(
        (config.attn_logit_softcapping, config.final_logit_softcapping, config.sliding_window),
        (None, None, None)
    );
}

#[test]
fn the_base_of_the_rotary_angles_is_found_in_either_place() {
    let theta = |fields| parse(&with(gemma(), &fields)).map(|config| config.rope_theta);
    assert_eq!(theta(json!({"rope_theta": 500})).unwrap(), 500.0);
    // As transformers 5 writes it.
    let parameters = json!({"rope_theta": 500.0, "rope_type": "default"});
    assert_eq!(theta(json!({"rope_theta": null, "rope_parameters": parameters})).unwrap(), 500.0);
    for parameters in [json!({"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}), json!(500.0)] {
        let message = theta(json!({"rope_parameters": parameters})).unwrap_err().to_string();
        assert!(message.contains("config.json: rope_"), "{message}");
    }
}

#[test]
fn a_minicpm_without_architectures_is_not_taken_for_a_reranker() {
    let message = parse(&with(minicpm(), &json!({"architectures": null}))).unwrap_err().to_string();
    assert!(message.contains("architectures must be a list of one class name"), "{message}");
    let plain = parse(&with(minicpm(), &json!({"architectures": ["MiniCPMForCausalLM"]})));
    assert!(matches!(plain, Err(Error::UnsupportedArchitecture { .. })));
}

#[test]
fn variants_of_the_network_are_refused() {
    let scaling = json!({"type": "linear", "factor": 2.0});
    for (config, field, value, expected) in [
        (gemma(), "hidden_activation", json!("relu"), "\"gelu_pytorch_tanh\" or \"gelu\""),
        (gemma(), "hidden_act", json!("silu"), "\"gelu\", \"gelu_pytorch_tanh\" or \"gelu_new\""),
        (gemma(), "attention_bias", json!(true), "false"),
        (gemma(), "rope_scaling", scaling.clone(), "null"),
        (gemma(), "head_dim", json!(512), "a multiple of 16 from 16 to 256"),
        (gemma(), "head_dim", json!(40), "a multiple of 16 from 16 to 256"),
        (gemma(), "head_dim", json!(0), "a multiple of 16 from 16 to 256"),
        (gemma(), "num_key_value_heads", json!(3), "a divisor of num_attention_heads (8)"),
        (gemma(), "num_key_value_heads", json!(9), "a whole number from 1 to 8"),
        (gemma(), "num_key_value_heads", json!(null), "a whole number from 1 to 8"),
        (gemma(), "bos_token_id", json!(256_000), "a whole number from 0 to 255999"),
        (gemma(), "pad_token_id", json!(256_000), "a whole number from 0 to 255999"),
        (gemma(), "tie_word_embeddings", json!("yes"), "true or false"),
        (gemma(), "rope_theta", json!(0), "a positive number"),
        (gemma(), "rms_norm_eps", json!(1), "a number between 0 and 1"),
        (minicpm(), "hidden_act", json!("gelu"), "\"silu\""),
        (minicpm(), "head_type", json!("raw"), "\"simple\""),
        (minicpm(), "head_type", json!("complex"), "\"simple\""),
        (minicpm(), "head_multi", json!(1), "true or false"),
        (minicpm(), "attention_bias", json!(true), "false"),
        (minicpm(), "rope_scaling", scaling, "null"),
        (minicpm(), "pretraining_tp", json!(2), "1"),
        (minicpm(), "start_layer", json!(0), "a whole number from 1 to 40"),
        (minicpm(), "start_layer", json!(41), "a whole number from 1 to 40"),
        (minicpm(), "scale_emb", json!(0), "a positive number"),
        (minicpm(), "scale_depth", json!(-1.4), "a positive number"),
        (minicpm(), "scale_depth", json!(1e300), "a positive number"),
        (gemma2(), "layer_wise", json!(false), "true"),
        (gemma2(), "layer_wise", json!(null), "true"),
        (gemma2(), "layer_sep", json!(0), "a whole number from 1 to 4096"),
        (gemma2(), "start_layer", json!(0), "a whole number from 1 to 42"),
        (gemma2(), "start_layer", json!(43), "a whole number from 1 to 42"),
        (gemma2(), "query_pre_attn_scalar", json!(0), "a positive number"),
        (gemma2(), "attn_logit_softcapping", json!(-50), "a positive number"),
        (gemma2(), "final_logit_softcapping", json!("30"), "a positive number"),
        (gemma2(), "sliding_window", json!(0), "a whole number from 1 to 16777216"),
    ] {
        let message = parse(&with(config, &json!({field: value}))).unwrap_err().to_string();
        let parts = ["config.json: ", field, " must be ", expected, ", found "];
        assert!(message.starts_with(&parts.concat()), "{message} does not begin {}", parts.concat());
    }
}

#[test]
fn sizes_are_required() {
    for config in [gemma(), minicpm(), gemma2()] {
        for field in [
            "hidden_size",
            "intermediate_size",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
        ] {
            for wrong in [json!(null), json!(0), json!(-1), json!(1.5), json!(u64::MAX)] {
                let message = parse(&with(config.clone(), &json!({field: wrong}))).unwrap_err().to_string();
                assert!(message.contains(&format!("{field} must be a whole number")), "{message}");
            }
        }
    }
}

#[test]
fn defaults_must_fit_the_rest() {
    for (config, fields, expected) in [
        (sizes_only(gemma()), json!({"vocab_size": 2}), "bos_token_id must be a whole number less than"),
        (
            sizes_only(minicpm()),
            json!({"num_hidden_layers": 7}),
            "start_layer must be a whole number from 1 to 7",
        ),
        (
            sizes_only(gemma2()),
            json!({"layer_wise": true, "num_hidden_layers": 27}),
            "start_layer must be a whole number from 1 to 27",
        ),
        (minicpm(), json!({"hidden_size": 2300}), "hidden_size must be num_attention_heads (36) times"),
    ] {
        let message = parse(&with(config, &fields)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

proptest! {
    #[test]
    fn replaced_fields_never_panic(
        config in prop_oneof![Just(gemma()), Just(minicpm()), Just(gemma2())],
        field in any::<prop::sample::Index>(),
        value in any_json(),
    ) {
        let mut config = config;
        let fields = config.as_object_mut().unwrap();
        let name = fields.keys().nth(field.index(fields.len())).unwrap().clone();
        fields.insert(name, value);
        if let Ok(config) = parse(&config) {
            prop_assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
            prop_assert!(config.bos_token_id.is_none_or(|id| (id as usize) < config.vocab_size));
            if let Some(cutoffs) = config.allowed_cutoffs() {
                prop_assert!(cutoffs.len() >= 1 && cutoffs.contains(cutoffs.last));
                prop_assert!(cutoffs.last <= config.num_hidden_layers);
            }
        }
    }

    #[test]
    fn cutoffs_contain_what_they_list(start in 1..50_usize, step in 1..50_usize, layers in 0..50_usize) {
        let allowed = AllowedCutoffs { start, step, last: start + layers / step * step };
        let listed = allowed.iter().collect::<Vec<_>>();
        prop_assert_eq!(listed.len(), allowed.len());
        prop_assert_eq!(listed.last(), Some(&allowed.last));
        for layer in 0..=allowed.last + 1 {
            let expected = (0..=layers / step).any(|k| layer == start + k * step);
            prop_assert_eq!(allowed.contains(layer), expected);
        }
    }
}
