//! The published decoders: their shapes, the distributions of their weights, and their config.json.

use outcrop::loader::{
    Architecture, DecoderConfig, DecoderFamily, Gelu, Gemma2Config, GemmaConfig, MiniCpmConfig,
};
use outcrop::{WeightInfo, manifest};
use serde_json::{Value, json};

use super::weights::Random;
use super::{Family, Size, merge};
use crate::dtype::Dtype;

/// Layers of a tiny model, and the first of them that can be the last one run.
const TINY_LAYERS: usize = 8;
const TINY_START_LAYER: usize = 2;

/// MiniCPM's factor on word embeddings.
const SCALE_EMB: f32 = 12.0;

/// The configuration of a decoder in a size, or `None` where nothing of that size was published. `num_hidden_layers`
/// stands for the published number; the first cutoff is lowered to it.
pub(crate) fn config(family: Family, size: Size, num_hidden_layers: Option<usize>) -> Option<DecoderConfig> {
    let published = match family {
        Family::Gemma => gemma(),
        Family::Minicpm => minicpm(),
        Family::Gemma2 => gemma2(),
        Family::Xlmr | Family::Bert => return None,
    };
    let mut config = match size {
        Size::Published => published,
        Size::Tiny => tiny(published),
        Size::Base | Size::Large | Size::M3 => return None,
    };
    config.num_hidden_layers = num_hidden_layers.unwrap_or(config.num_hidden_layers);
    match &mut config.family {
        DecoderFamily::Gemma(_) => {}
        DecoderFamily::MiniCpm(MiniCpmConfig { start_layer, .. })
        | DecoderFamily::Gemma2(Gemma2Config { start_layer, .. }) => {
            *start_layer = config.num_hidden_layers.min(*start_layer);
        }
    }
    Some(config)
}

/// bge-reranker-v2-gemma.
fn gemma() -> DecoderConfig {
    DecoderConfig {
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
    }
}

/// bge-reranker-v2-minicpm-layerwise.
fn minicpm() -> DecoderConfig {
    DecoderConfig {
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
            scale_emb: f64::from(SCALE_EMB),
            scale_depth: 1.4,
            start_layer: 8,
            head_multi: true,
        }),
    }
}

/// bge-reranker-v2.5-gemma2-lightweight.
fn gemma2() -> DecoderConfig {
    DecoderConfig {
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
        family: DecoderFamily::Gemma2(Gemma2Config {
            gelu: Gelu::Tanh,
            query_pre_attn_scalar: 256.0,
            attn_logit_softcapping: Some(50.0),
            final_logit_softcapping: Some(30.0),
            sliding_window: Some(4096),
            start_layer: 8,
            layer_sep: 1,
        }),
    }
}

/// The same network, small: the proportion of query to key heads is kept as far as four heads allow.
fn tiny(published: DecoderConfig) -> DecoderConfig {
    let mut config = DecoderConfig {
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: TINY_LAYERS,
        num_attention_heads: 4,
        num_key_value_heads: (4 * published.num_key_value_heads / published.num_attention_heads).max(1),
        head_dim: 16,
        vocab_size: 8192,
        ..published
    };
    match &mut config.family {
        DecoderFamily::Gemma(_) => {}
        DecoderFamily::MiniCpm(minicpm) => minicpm.start_layer = TINY_START_LAYER,
        DecoderFamily::Gemma2(gemma2) => {
            gemma2.start_layer = TINY_START_LAYER;
            gemma2.query_pre_attn_scalar = 16.0;
        }
    }
    config
}

/// Every tensor of the checkpoint, in the order of the network, with its distribution.
pub(crate) fn tensors(config: &DecoderConfig) -> Vec<Random> {
    let random = |WeightInfo { name, shape, .. }: WeightInfo| {
        let (mean, std) = distribution(config, &name, &shape);
        Random { name, shape, mean, std }
    };
    manifest(config).into_iter().map(random).collect()
}

/// Mean and standard deviation of a tensor.
///
/// The aim is a residual stream whose elements stay near 1 to 10 through all layers, to which the layers together add
/// more than the embedding brought, so that scores tell pairs and layers apart.
fn distribution(config: &DecoderConfig, name: &str, shape: &[usize]) -> (f32, f32) {
    let inputs = shape.last().copied().unwrap_or(1) as f32;
    let module = name.trim_end_matches(".weight").rsplit('.').next().unwrap_or(name);
    // What keeps the variance of a product with this matrix.
    let unit = 1.0 / inputs.sqrt();
    match (module, &config.family) {
        // Gemma multiplies by 1 + w.
        ("norm" | "input_layernorm", DecoderFamily::MiniCpm(_)) => (1.0, 0.05),
        ("post_attention_layernorm", DecoderFamily::MiniCpm(_)) => (1.0, 0.05),
        (norm, _) if norm.ends_with("norm") => (0.0, 0.05),
        // Rows that the model's own factor, scale_emb or sqrt(hidden_size), brings to length sqrt(hidden_size). Gemma's
        // score is a product with such a row: three times that length gives scores of the size of trained ones.
        ("embed_tokens", DecoderFamily::MiniCpm(_)) => (0.0, 1.0 / SCALE_EMB),
        ("embed_tokens", DecoderFamily::Gemma(_)) => (0.0, 3.0 * unit),
        ("embed_tokens", DecoderFamily::Gemma2(_)) => (0.0, unit),
        // Attention that tells tokens apart.
        ("q_proj" | "k_proj", _) => (0.0, 1.3 * unit),
        // MiniCPM adds scale_depth / sqrt(layers) of what these give, Gemma 2 normalises it.
        ("o_proj" | "down_proj", DecoderFamily::Gemma(_)) => (0.0, 2.0 * unit),
        ("o_proj" | "down_proj", DecoderFamily::MiniCpm(_)) => (0.0, 3.0 * unit),
        // Scores of a few units: far below the final soft-cap of 30.
        ("linear_head", _) => (0.0, 4.0 * unit),
        _ => (0.0, unit),
    }
}

/// `config.json` in the published form.
pub(crate) fn config_json(config: &DecoderConfig, dtype: Dtype) -> Value {
    let mut value = json!({
        "architectures": [config.architecture.name()],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rope_theta": config.rope_theta,
        "torch_dtype": dtype.torch_name(),
        "vocab_size": config.vocab_size,
    });
    let family_fields = match &config.family {
        DecoderFamily::Gemma(_) => json!({
            "model_type": "gemma", "eos_token_id": 1, "pad_token_id": config.pad_token_id,
            "head_dim": config.head_dim, "hidden_act": "gelu", "initializer_range": 0.02,
            "rms_norm_eps": 1e-6, "rope_scaling": null, "transformers_version": "4.38.1", "use_cache": true,
        }),
        DecoderFamily::MiniCpm(minicpm) => json!({
            "model_type": "minicpm", "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.1,
            "rms_norm_eps": 1e-5, "rope_scaling": null, "transformers_version": "4.38.1", "use_cache": false,
            "scale_emb": minicpm.scale_emb, "scale_depth": minicpm.scale_depth, "dim_model_base": 256,
            "start_layer": minicpm.start_layer, "head_multi": minicpm.head_multi, "head_type": "simple",
            "pretraining_tp": 1,
            "auto_map": auto_map(
                "BAAI/bge-reranker-v2-minicpm-layerwise",
                "configuration_minicpm_reranker.LayerWiseMiniCPM",
                "modeling_minicpm_reranker.LayerWiseMiniCPM",
            ),
        }),
        DecoderFamily::Gemma2(gemma2) => json!({
            "model_type": "cost_wise_gemma", "eos_token_id": 1, "pad_token_id": config.pad_token_id,
            "head_dim": config.head_dim, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "rms_norm_eps": 1e-6,
            "transformers_version": "4.42.2", "use_cache": true, "cache_implementation": "hybrid",
            "start_layer": gemma2.start_layer, "layer_sep": gemma2.layer_sep, "layer_wise": true,
            "query_pre_attn_scalar": gemma2.query_pre_attn_scalar,
            "attn_logit_softcapping": gemma2.attn_logit_softcapping,
            "final_logit_softcapping": gemma2.final_logit_softcapping,
            "sliding_window": gemma2.sliding_window, "sliding_window_size": gemma2.sliding_window,
            "auto_map": auto_map(
                "BAAI/bge-reranker-v2.5-gemma2-lightweight",
                "gemma_config.CostWiseGemma",
                "gemma_model.CostWiseGemma",
            ),
        }),
    };
    merge(&mut value, family_fields);
    value
}

/// Where other runtimes find the model's classes; `config` and `model` are module and class without its last part.
fn auto_map(repository: &str, config: &str, model: &str) -> Value {
    json!({
        "AutoConfig": format!("{repository}--{config}Config"),
        "AutoModel": format!("{repository}--{model}Model"),
        "AutoModelForCausalLM": format!("{repository}--{model}ForCausalLM"),
    })
}
