//! The published shapes of the encoders, and the tensors and config.json that belong to them.

use serde_json::{Value, json};

use super::weights::Random;
use super::{Family, Size, Task, merge};
use crate::dtype::Dtype;

/// The sizes of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) num_hidden_layers: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) vocab_size: usize,
}

impl Shape {
    /// The shape of an encoder in a size, or `None` where nothing of that size was published.
    pub(crate) fn of(family: Family, size: Size) -> Option<Shape> {
        let (num_hidden_layers, hidden_size, num_attention_heads, intermediate_size) = match size {
            Size::Tiny => (2, 64, 2, 128),
            Size::Base => (12, 768, 12, 3072),
            Size::Large | Size::M3 => (24, 1024, 16, 4096),
            Size::Published => return None,
        };
        let (max_position_embeddings, vocab_size) = match (family, size) {
            (Family::Xlmr, Size::Tiny) => (514, 8192),
            (Family::Xlmr, Size::Base | Size::Large) => (514, 250_002),
            (Family::Xlmr, Size::M3) => (8194, 250_002),
            (Family::Bert, Size::Tiny) => (512, 8192),
            (Family::Bert, Size::Base | Size::Large) => (512, 30_522),
            _ => return None,
        };
        Some(Shape {
            num_hidden_layers,
            hidden_size,
            num_attention_heads,
            intermediate_size,
            max_position_embeddings,
            vocab_size,
        })
    }

    /// The longest input in tokens. XLM-R's positions start behind the padding id 1, which leaves two rows unused.
    pub(crate) fn max_tokens(&self, family: Family) -> usize {
        let unused = if family == Family::Xlmr { 2 } else { 0 };
        self.max_position_embeddings - unused
    }

    /// Every tensor of the checkpoint, in the order of the network.
    ///
    /// Matrices have a standard deviation near `1 / sqrt(columns)`, so that activations keep their size through
    /// any number of layers, and query and key somewhat more, so that attention tells tokens apart.
    pub(crate) fn tensors(&self, family: Family, task: Task) -> Vec<Random> {
        let prefix = if task == Task::Rerank { "roberta." } else { "" };
        let token_types = if family == Family::Xlmr { 1 } else { 2 };
        let h = self.hidden_size;
        let mut list = List(Vec::new());
        let embeddings = format!("{prefix}embeddings");
        list.table(&format!("{embeddings}.word_embeddings"), self.vocab_size, h, 0.05);
        list.table(&format!("{embeddings}.position_embeddings"), self.max_position_embeddings, h, 0.02);
        list.table(&format!("{embeddings}.token_type_embeddings"), token_types, h, 0.02);
        list.layer_norm(&format!("{embeddings}.LayerNorm"), h);
        for n in 0..self.num_hidden_layers {
            self.layer(&mut list, &format!("{prefix}encoder.layer.{n}"));
        }
        match task {
            Task::Rerank => {
                list.linear("classifier.dense", h, h, 1.5);
                list.linear("classifier.out_proj", 1, h, 4.0);
            }
            // Published embedders carry a pooler; a dense embedding does not read it.
            Task::Embed => list.linear("pooler.dense", h, h, 1.0),
        }
        list.0
    }

    fn layer(&self, list: &mut List, layer: &str) {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        list.linear(&format!("{layer}.attention.self.query"), h, h, 1.3);
        list.linear(&format!("{layer}.attention.self.key"), h, h, 1.3);
        list.linear(&format!("{layer}.attention.self.value"), h, h, 1.0);
        list.linear(&format!("{layer}.attention.output.dense"), h, h, 1.0);
        list.layer_norm(&format!("{layer}.attention.output.LayerNorm"), h);
        list.linear(&format!("{layer}.intermediate.dense"), i, h, 1.0);
        list.linear(&format!("{layer}.output.dense"), h, i, 1.0);
        list.layer_norm(&format!("{layer}.output.LayerNorm"), h);
    }

    /// `config.json` in the published form.
    pub(crate) fn config(&self, family: Family, task: Task, dtype: Dtype) -> Value {
        let mut config = json!({
            "architectures": [architecture(family, task)],
            "attention_probs_dropout_prob": 0.1,
            "classifier_dropout": null,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "position_embedding_type": "absolute",
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        let family_fields = if family == Family::Xlmr {
            json!({
                "model_type": "xlm-roberta", "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
                "layer_norm_eps": 1e-5, "type_vocab_size": 1,
            })
        } else {
            json!({
                "model_type": "bert", "pad_token_id": 0, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
            })
        };
        merge(&mut config, family_fields);
        if task == Task::Rerank {
            merge(&mut config, json!({ "id2label": { "0": "LABEL_0" }, "label2id": { "LABEL_0": 0 } }));
        }
        config
    }
}

/// The class name that `architectures` states.
fn architecture(family: Family, task: Task) -> &'static str {
    match (family, task) {
        (Family::Xlmr, Task::Rerank) => "XLMRobertaForSequenceClassification",
        (Family::Xlmr, Task::Embed) => "XLMRobertaModel",
        _ => "BertModel",
    }
}

/// A growing list of tensors.
struct List(Vec<Random>);

impl List {
    fn push(&mut self, name: String, shape: Vec<usize>, mean: f32, std: f32) {
        self.0.push(Random { name, shape, mean, std });
    }

    /// An embedding table `[rows, columns]`.
    fn table(&mut self, name: &str, rows: usize, columns: usize, std: f32) {
        self.push(format!("{name}.weight"), vec![rows, columns], 0.0, std);
    }

    /// A linear layer `[outputs, inputs]` with bias; `gain` times the variance-keeping standard deviation.
    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, gain: f32) {
        let std = gain / (inputs as f32).sqrt();
        self.push(format!("{name}.weight"), vec![outputs, inputs], 0.0, std);
        self.push(format!("{name}.bias"), vec![outputs], 0.0, 0.02);
    }

    fn layer_norm(&mut self, name: &str, hidden_size: usize) {
        self.push(format!("{name}.weight"), vec![hidden_size], 1.0, 0.05);
        self.push(format!("{name}.bias"), vec![hidden_size], 0.0, 0.05);
    }
}
