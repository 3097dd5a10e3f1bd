//! `outcrop synth`: a checkpoint of a published shape with random weights, and a tokenizer that works.
//!
//! It costs what the published model costs, in time and in memory, and its scores mean nothing.

mod bpe;
mod decoder;
mod shape;
mod tokenizer;
pub(crate) mod vocabulary;
mod weights;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::args::SynthArgs;
use crate::error::Error;
use crate::output::{prepare_dir, write_json};
use crate::{Status, report};
use shape::Shape;
use weights::Random;

/// A family of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// XLM-RoBERTa: bge-reranker-base, -large, -v2-m3; bge-m3.
    Xlmr,
    /// BERT: bge-base-en-v1.5, bge-large-en-v1.5.
    Bert,
    /// Gemma: bge-reranker-v2-gemma.
    Gemma,
    /// MiniCPM: bge-reranker-v2-minicpm-layerwise.
    Minicpm,
    /// Gemma 2: bge-reranker-v2.5-gemma2-lightweight.
    Gemma2,
}

/// What the model answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// A score for a pair.
    Rerank,
    /// A vector for a text.
    Embed,
}

/// A published size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// 2 layers, of a decoder 8, of width 64, and 8192 tokens: for trying things out.
    Tiny,
    /// 12 layers of width 768.
    Base,
    /// 24 layers of width 1024.
    Large,
    /// As large, with 8192 positions.
    M3,
    /// The one size in which a decoder was published.
    Published,
}

/// What is to be written.
pub(crate) struct Plan {
    pub(crate) config: Value,
    tensors: Vec<Random>,
    hidden_size: usize,
    vocab_size: usize,
    max_tokens: usize,
}

/// Writes the checkpoint.
///
/// # Errors
///
/// [`Error::NoSuchShape`], [`Error::NotEmpty`], [`Error::Write`]; a weight file cannot be written.
pub(crate) fn run(args: &SynthArgs, quiet: bool) -> Result<Status, Error> {
    let started = Instant::now();
    let task = args.task.unwrap_or(match args.family {
        Family::Bert => Task::Embed,
        _ => Task::Rerank,
    });
    let no_such_shape = Error::NoSuchShape { family: args.family, size: args.size, task };
    let plan = plan(args, task).ok_or(no_such_shape)?;
    prepare_dir(&args.dir, args.force)?;

    write_json(&args.dir, "tokenizer.json", &tokenizer::tokenizer(args.family, plan.vocab_size))?;
    let tokenizer_config = tokenizer::tokenizer_config(args.family, plan.max_tokens);
    write_json(&args.dir, "tokenizer_config.json", &tokenizer_config)?;
    if task == Task::Embed {
        write_sentence_transformers(&args.dir, plan.hidden_size, plan.max_tokens)?;
    }
    let written = weights::write(&args.dir, &plan.tensors, args.dtype, args.seed, args.max_shard_bytes)?;
    write_json(&args.dir, "config.json", &plan.config)?;
    if !quiet {
        let parameters: usize = plan.tensors.iter().map(Random::elems).sum();
        report::line(&format!(
            "{}: {parameters} random parameters, {} bytes of weights, {:.1} s",
            args.dir.display(),
            written.bytes,
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(Status::Done)
}

/// The model that is asked for, or `None` where nothing like it was published.
pub(crate) fn plan(args: &SynthArgs, task: Task) -> Option<Plan> {
    let layers = args.layers.map(Into::into);
    if let Some(config) = decoder::config(args.family, args.size, layers) {
        return (task == Task::Rerank).then(|| Plan {
            config: decoder::config_json(&config, args.dtype),
            tensors: decoder::tensors(&config),
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            max_tokens: config.max_position_embeddings,
        });
    }
    if (args.family, task) == (Family::Bert, Task::Rerank) {
        return None;
    }
    let mut shape = Shape::of(args.family, args.size)?;
    shape.num_hidden_layers = layers.unwrap_or(shape.num_hidden_layers);
    Some(Plan {
        config: shape.config(args.family, task, args.dtype),
        tensors: shape.tensors(args.family, task),
        hidden_size: shape.hidden_size,
        vocab_size: shape.vocab_size,
        max_tokens: shape.max_tokens(args.family),
    })
}

/// Adds `fields` to a JSON object.
fn merge(into: &mut Value, fields: Value) {
    if let (Value::Object(into), Value::Object(fields)) = (into, fields) {
        into.extend(fields);
    }
}

/// The files by which an embedder says how token vectors become one: the first token's, normalised.
fn write_sentence_transformers(dir: &Path, hidden_size: usize, max_tokens: usize) -> Result<(), Error> {
    let module = |idx: usize, path: &str, class: &str| {
        let class = format!("sentence_transformers.models.{class}");
        json!({ "idx": idx, "name": idx.to_string(), "path": path, "type": class })
    };
    let modules = [
        module(0, "", "Transformer"),
        module(1, "1_Pooling", "Pooling"),
        module(2, "2_Normalize", "Normalize"),
    ];
    write_json(dir, "modules.json", &json!(modules))?;
    let pooling = dir.join("1_Pooling");
    fs::create_dir_all(&pooling)
        .map_err(|source| Error::Write { to: pooling.display().to_string(), source })?;
    let pooling_config = json!({
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": true,
        "pooling_mode_mean_tokens": false,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
    });
    write_json(&pooling, "config.json", &pooling_config)?;
    write_json(
        dir,
        "sentence_bert_config.json",
        &json!({ "max_seq_length": max_tokens, "do_lower_case": false }),
    )
}
