//! `outcrop inspect`: what a model's files say about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use outcrop::loader::{Architecture, Checkpoint, Config, Pooling, SentenceTransformers, TokenizerKind};
use serde_json::{Map, Value, json};

use crate::args::InspectArgs;
use crate::error::Error;
use crate::output::Output;
use crate::{Status, model};

/// Prints what is known without reading a weight.
///
/// # Errors
///
/// The model's files are missing or damaged; the output cannot be written.
pub(crate) fn run(args: &InspectArgs, quiet: bool) -> Result<Status, Error> {
    let dir = model::locate(&args.model, args.revision.as_deref(), quiet)?;
    let checkpoint = Checkpoint::open(&dir)?;
    let facts = facts(&checkpoint)?;
    let mut output = Output::create(None)?;
    if args.json {
        output.json_line(&facts)?;
    } else {
        for (name, value) in &facts {
            output.text(&format!("{:<24}{}\n", name.replace('_', " "), plain(value)))?;
        }
    }
    output.flush()?;
    Ok(Status::Done)
}

/// What is printed, in this order.
fn facts(checkpoint: &Checkpoint) -> Result<Map<String, Value>, Error> {
    let mut facts = Map::new();
    let mut fact = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    fact("directory", json!(checkpoint.dir().display().to_string()));
    let is_reranker = match checkpoint.config() {
        Config::Decoder(_) => true,
        Config::Encoder(config) => {
            let is_reranker = config.architecture == Architecture::XlmRobertaForSequenceClassification;
            fact("task", json!(if is_reranker { "rerank" } else { "embed" }));
            fact("architecture", json!(config.architecture.name()));
            fact("family", json!(if config.architecture.is_xlm_roberta() { "xlm-roberta" } else { "bert" }));
            fact("num_hidden_layers", json!(config.num_hidden_layers));
            fact("hidden_size", json!(config.hidden_size));
            fact("num_attention_heads", json!(config.num_attention_heads));
            fact("head_dim", json!(config.head_dim()));
            fact("intermediate_size", json!(config.intermediate_size));
            fact("vocab_size", json!(config.vocab_size));
            fact("max_tokens", json!(config.max_tokens()));
            is_reranker
        }
    };
    let weights = Weights::of(checkpoint);
    fact("parameters", json!(weights.parameters));
    fact("stored_types", json!(weights.types));
    fact("weight_bytes", json!(weights.bytes));
    fact("files", json!(weights.files));
    let missing = checkpoint.missing_shards().into_iter().map(file_name).collect::<Vec<_>>();
    if !missing.is_empty() {
        // What is counted above is the rest.
        fact("missing_files", json!(missing));
    }
    let tokenizer = checkpoint.tokenizer()?;
    fact("tokenizer", json!(tokenizer_name(tokenizer.kind())));
    fact("tokenizer_vocab_size", json!(tokenizer.vocab_size()));
    if !is_reranker {
        // Without sentence-transformers files the runtime takes the first token's vector and scales it to length 1.
        let unstated = SentenceTransformers { pooling: Pooling::Cls, normalize: true, max_seq_length: None };
        let embedder = checkpoint.sentence_transformers()?.unwrap_or(unstated);
        fact("pooling", json!(pooling_name(embedder.pooling)));
        fact("normalize", json!(embedder.normalize));
        fact("max_seq_length", json!(embedder.max_seq_length));
    }
    Ok(facts)
}

/// Sums over the headers of the weight files.
#[derive(Default)]
struct Weights {
    /// Elements of the floating-point tensors; integer tensors are buffers.
    parameters: u64,
    bytes: u64,
    /// Tensors of each stored type.
    types: BTreeMap<String, u64>,
    files: BTreeSet<String>,
}

impl Weights {
    fn of(checkpoint: &Checkpoint) -> Weights {
        let mut weights = Weights::default();
        for tensor in checkpoint.tensors() {
            let stored_type = format!("{:?}", tensor.dtype);
            if stored_type.contains('F') {
                weights.parameters += tensor.shape.iter().map(|n| *n as u64).product::<u64>();
            }
            weights.bytes += tensor.bytes as u64;
            *weights.types.entry(stored_type).or_default() += 1;
            weights.files.insert(file_name(tensor.file));
        }
        weights
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(Path::new).unwrap_or(path).display().to_string()
}

fn tokenizer_name(kind: TokenizerKind) -> &'static str {
    match kind {
        TokenizerKind::Unigram => "Unigram",
        TokenizerKind::Bpe => "BPE",
        TokenizerKind::WordPiece => "WordPiece",
    }
}

fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Cls => "cls",
        Pooling::Mean => "mean",
    }
}

/// A value as a person would write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(counts) => counts
            .iter()
            .map(|(name, count)| format!("{name} ({count} tensors)"))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}
