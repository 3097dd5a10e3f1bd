//! `adapter_config.json`: the rank and the scale, and a check that PEFT would compute nothing else.

use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::json::{self, Fields};

/// No matrix of a real model is wider; the same limit as for the sizes of a model.
const MAX_RANK: usize = 1 << 20;

/// Options under which an adapter is more than `W + scale * B A`: `false` or missing.
const OFF: [&str; 5] = ["use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "use_bdlora"];

/// The same, `null` or empty.
const EMPTY: [&str; 8] = [
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
];

/// Initial values that leave the base model as it was. Others, such as PiSSA's, take from it what they put into A and
/// B, so that the adapter belongs to a base model that is stored nowhere.
const INITIAL: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// What the weights of an adapter are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AdapterConfig {
    /// The rows of every A and the columns of every B.
    pub(super) rank: usize,
    /// The factor on every product of B and A.
    pub(super) scale: f32,
}

/// Reads and checks the configuration of the adapter in `dir`.
pub(super) fn read(dir: &Path) -> Result<AdapterConfig, Error> {
    let path = dir.join(super::CONFIG);
    match json::read_value_if_present(&path)? {
        Some(value) => parse(Fields::new(&path, &value)?),
        None => Err(Error::NoAdapterConfig { dir: dir.to_owned() }),
    }
}

fn parse(fields: Fields<'_>) -> Result<AdapterConfig, Error> {
    if fields.required_str("peft_type")? != "LORA" {
        return Err(fields.error("peft_type", "\"LORA\""));
    }
    if fields.str("bias")?.is_some_and(|bias| bias != "none") {
        return Err(fields.error("bias", "\"none\""));
    }
    for field in OFF {
        if fields.get(field).is_some_and(|value| *value != false) {
            return Err(fields.error(field, "false"));
        }
    }
    for field in EMPTY {
        if fields.get(field).is_some_and(|value| !is_empty(value)) {
            return Err(fields.error(field, "null or empty"));
        }
    }
    let is_initial = |value: &Value| match value {
        Value::Bool(_) => true,
        Value::String(name) => INITIAL.contains(&name.as_str()),
        _ => false,
    };
    if fields.get("init_lora_weights").is_some_and(|value| !is_initial(value)) {
        let expected = format!("true, false or one of {}", INITIAL.join(", "));
        return Err(fields.error("init_lora_weights", expected));
    }
    let rank = fields.required_count("r", 1..=MAX_RANK)?;
    let alpha =
        fields.positive("lora_alpha")?.ok_or_else(|| fields.error("lora_alpha", "a positive number"))?;
    let divisor = match fields.bool("use_rslora")? {
        Some(true) => (rank as f64).sqrt(),
        _ => rank as f64,
    };
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the type that weights are merged in")]
    let scale = (alpha / divisor) as f32;
    Ok(AdapterConfig { rank, scale })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
