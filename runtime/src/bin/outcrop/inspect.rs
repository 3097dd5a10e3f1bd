//! `outcrop inspect`: what a model's files say about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use outcrop::loader::{
    Architecture, Checkpoint, Config, DecoderConfig, DecoderFamily, EncoderConfig, Gelu, Pooling,
    SentenceTransformers, TokenizerKind,
};
use outcrop::{Compression, WeightPart, manifest};
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
            for (name, value) in rows(name, value) {
                output.text(&format!("{:<24}{value}\n", name.replace('_', " ")))?;
            }
        }
    }
    output.flush()?;
    Ok(Status::Done)
}

/// What is printed, in this order.
fn facts(checkpoint: &Checkpoint) -> Result<Map<String, Value>, Error> {
    let mut facts = Map::new();
    facts.insert("directory".to_owned(), json!(checkpoint.dir().display().to_string()));
    let is_reranker = match checkpoint.config() {
        Config::Encoder(config) => encoder_facts(config, &mut facts),
        Config::Decoder(config) => {
            decoder_facts(config, &mut facts);
            true
        }
    };
    let mut fact = |name: &str, value: Value| facts.insert(name.to_owned(), value);
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
    if let Config::Decoder(config) = checkpoint.config()
        && let Some(memory) = memory_per_cutoff(checkpoint, config)
    {
        fact(MEMORY_PER_CUTOFF, Value::Object(memory));
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

/// What config.json says of an encoder; whether it is a reranker.
fn encoder_facts(config: &EncoderConfig, facts: &mut Map<String, Value>) -> bool {
    let mut fact = |name: &str, value: Value| facts.insert(name.to_owned(), value);
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

/// What config.json says of a decoder, and what follows from it.
fn decoder_facts(config: &DecoderConfig, facts: &mut Map<String, Value>) {
    let mut fact = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    fact("task", json!("rerank"));
    fact("architecture", json!(config.architecture.name()));
    fact(
        "family",
        json!(match &config.family {
            DecoderFamily::Gemma(_) => "gemma",
            DecoderFamily::MiniCpm(_) => "minicpm",
            DecoderFamily::Gemma2(_) => "gemma2",
        }),
    );
    fact("num_hidden_layers", json!(config.num_hidden_layers));
    fact("hidden_size", json!(config.hidden_size));
    fact("num_attention_heads", json!(config.num_attention_heads));
    fact("num_key_value_heads", json!(config.num_key_value_heads));
    fact("head_dim", json!(config.head_dim));
    fact("intermediate_size", json!(config.intermediate_size));
    fact("vocab_size", json!(config.vocab_size));
    fact("max_position_embeddings", json!(config.max_position_embeddings));
    fact("rms_norm_eps", number(config.rms_norm_eps));
    fact("rope_theta", json!(config.rope_theta));
    match &config.family {
        DecoderFamily::Gemma(gemma) => {
            fact("activation", json!(gelu_name(gemma.gelu)));
            fact("tie_word_embeddings", json!(gemma.tie_word_embeddings));
        }
        DecoderFamily::MiniCpm(minicpm) => {
            fact("activation", json!("silu"));
            fact("scale_emb", json!(minicpm.scale_emb));
            fact("scale_depth", json!(minicpm.scale_depth));
        }
        DecoderFamily::Gemma2(gemma2) => {
            fact("activation", json!(gelu_name(gemma2.gelu)));
            fact("query_pre_attn_scalar", json!(gemma2.query_pre_attn_scalar));
            fact("attn_logit_softcapping", json!(gemma2.attn_logit_softcapping));
            fact("final_logit_softcapping", json!(gemma2.final_logit_softcapping));
            fact("sliding_window", json!(gemma2.sliding_window));
        }
    }
    let cutoffs = config.allowed_cutoffs();
    fact("allowed_cutoffs", json!(cutoffs.map(|cutoffs| cutoffs.to_string())));
    let (heads, rule) = heads(config);
    fact("heads", json!(heads));
    fact("head_rule", json!(rule));
    let compresses = matches!(config.family, DecoderFamily::Gemma2(_));
    fact("compression", json!(compresses));
    if compresses {
        fact("compress_layers", json!(Compression::DEFAULT_LAYERS));
    }
}

/// The number of scoring heads, and which of them a score is read from.
fn heads(config: &DecoderConfig) -> (usize, &'static str) {
    let all = config.allowed_cutoffs().map_or(1, |cutoffs| cutoffs.len());
    match &config.family {
        DecoderFamily::Gemma(_) => (1, "the logit of Yes"),
        DecoderFamily::MiniCpm(minicpm) if !minicpm.head_multi => (1, "one for all cutoffs"),
        DecoderFamily::MiniCpm(_) => (all, "each cutoff its own"),
        DecoderFamily::Gemma2(_) => {
            (all, "the k-th cutoff asked for takes head k; --heads by-layer: its own")
        }
    }
}

const MEMORY_PER_CUTOFF: &str = "memory_per_cutoff";

/// The bytes of the weights that a run to each allowed cutoff needs, in their stored types: the embedding table, the
/// layers up to there, the last norm, and one head. `None` for a model without cutoffs.
///
/// The shapes come from the configuration. A tensor whose file is missing counts in the type of those that are there.
fn memory_per_cutoff(checkpoint: &Checkpoint, config: &DecoderConfig) -> Option<Map<String, Value>> {
    let cutoffs = config.allowed_cutoffs()?;
    let bits: BTreeMap<&str, usize> =
        checkpoint.tensors().map(|tensor| (tensor.name, tensor.dtype.bitsize())).collect();
    let usual_bits = bits.values().next().copied()?;
    let mut common = 0;
    let mut layers = vec![0; config.num_hidden_layers];
    for weight in manifest(config) {
        let bits = bits.get(weight.name.as_str()).copied().unwrap_or(usual_bits);
        let bytes = weight.elems() as u64 * bits as u64 / 8;
        match weight.part {
            WeightPart::Layer(layer) => layers[layer] += bytes,
            WeightPart::Head(0) | WeightPart::Always => common += bytes,
            WeightPart::Head(_) => {}
        }
    }
    let bytes = |cutoff: usize| common + layers[..cutoff].iter().sum::<u64>();
    Some(cutoffs.iter().map(|cutoff| (cutoff.to_string(), json!(bytes(cutoff)))).collect())
}

/// The lines of the table for one fact. Of the memory per cutoff these are the smallest cutoff, each quarter, and the
/// largest.
fn rows(name: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(cutoffs) if name == MEMORY_PER_CUTOFF => {
            let last = cutoffs.len().saturating_sub(1);
            let mut shown: Vec<usize> = (0..=4).map(|quarter| quarter * last / 4).collect();
            shown.dedup();
            let row =
                |(cutoff, bytes): (&String, &Value)| (format!("memory at cutoff {cutoff}"), plain(bytes));
            shown.into_iter().filter_map(|i| cutoffs.iter().nth(i)).map(row).collect()
        }
        _ => vec![(name.to_owned(), plain(value))],
    }
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

fn gelu_name(gelu: Gelu) -> &'static str {
    match gelu {
        Gelu::Tanh => "gelu tanh",
        Gelu::Exact => "gelu exact",
    }
}

/// The number as it was written: `1e-6`, and not the nearest f32 with all its digits.
fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, |x| json!(x))
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
