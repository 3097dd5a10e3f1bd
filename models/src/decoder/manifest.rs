//! Every weight of a decoder by name and shape, and what needs it.

use outcrop_loader::{DecoderConfig, DecoderFamily};

/// A tensor that a checkpoint of this configuration holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// `[out, in]` of a matrix, `[n]` of a vector.
    pub shape: Vec<usize>,
    /// When it is needed.
    pub part: WeightPart,
}

/// What a weight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPart {
    /// Embeddings and final norm: every run.
    Always,
    /// A layer: runs to a deeper cutoff than its index.
    Layer(usize),
    /// A scalar head, by its number: runs that read it.
    Head(usize),
}

impl WeightInfo {
    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it is a matrix of a layer that reads rows under a norm.
    pub(super) fn reads_norm(&self) -> bool {
        let modules = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];
        modules.iter().any(|module| self.name.ends_with(&format!(".{module}.weight")))
    }
}

/// The weights of a model with this configuration, in the order of the network (SPEC 9.2).
pub fn manifest(config: &DecoderConfig) -> Vec<WeightInfo> {
    let hidden = config.hidden_size;
    let mut list = List(Vec::new());
    list.push(super::EMBED_TOKENS, &[config.vocab_size, hidden], WeightPart::Always);
    for n in 0..config.num_hidden_layers {
        list.layer(config, n);
    }
    list.push("model.norm.weight", &[hidden], WeightPart::Always);
    match &config.family {
        DecoderFamily::Gemma(gemma) if gemma.tie_word_embeddings => {}
        DecoderFamily::Gemma(_) => {
            list.push("lm_head.weight", &[config.vocab_size, hidden], WeightPart::Always);
        }
        DecoderFamily::MiniCpm(minicpm) if !minicpm.head_multi => {
            list.push("lm_head.linear_head.weight", &[1, hidden], WeightPart::Head(0));
        }
        DecoderFamily::MiniCpm(_) | DecoderFamily::Gemma2(_) => {
            for k in 0..config.allowed_cutoffs().map_or(0, |allowed| allowed.len()) {
                list.push(&format!("lm_head.{k}.linear_head.weight"), &[1, hidden], WeightPart::Head(k));
            }
        }
    }
    list.0
}

struct List(Vec<WeightInfo>);

impl List {
    fn push(&mut self, name: &str, shape: &[usize], part: WeightPart) {
        self.0.push(WeightInfo { name: name.to_owned(), shape: shape.to_owned(), part });
    }

    fn layer(&mut self, config: &DecoderConfig, n: usize) {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let mut push = |module: &str, shape: &[usize]| {
            self.push(&format!("model.layers.{n}.{module}.weight"), shape, WeightPart::Layer(n));
        };
        push("self_attn.q_proj", &[q, hidden]);
        push("self_attn.k_proj", &[kv, hidden]);
        push("self_attn.v_proj", &[kv, hidden]);
        push("self_attn.o_proj", &[hidden, q]);
        push("mlp.gate_proj", &[intermediate, hidden]);
        push("mlp.up_proj", &[intermediate, hidden]);
        push("mlp.down_proj", &[hidden, intermediate]);
        push("input_layernorm", &[hidden]);
        push("post_attention_layernorm", &[hidden]);
        if matches!(config.family, DecoderFamily::Gemma2(_)) {
            push("pre_feedforward_layernorm", &[hidden]);
            push("post_feedforward_layernorm", &[hidden]);
        }
    }
}
