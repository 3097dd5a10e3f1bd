//! `outcrop synth`: a checkpoint of a published shape with random weights, and a tokenizer that works.
//!
//! It costs what the published model costs, in time and in memory, and its scores mean nothing.

mod shape;
mod tokenizer;
mod vocabulary;
mod weights;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::args::SynthArgs;
use crate::error::Error;
use crate::{Status, report};
use shape::Shape;
pub(crate) use weights::Dtype;

/// A family of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// XLM-RoBERTa: bge-reranker-base, -large, -v2-m3; bge-m3.
    Xlmr,
    /// BERT: bge-base-en-v1.5, bge-large-en-v1.5.
    Bert,
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
    /// 2 layers of width 64 and 8192 tokens: for trying things out.
    Tiny,
    /// 12 layers of width 768.
    Base,
    /// 24 layers of width 1024.
    Large,
    /// As large, with 8192 positions.
    M3,
}

/// Writes the checkpoint.
///
/// # Errors
///
/// [`Error::NoSuchShape`], [`Error::NotEmpty`], [`Error::Write`].
pub(crate) fn run(args: &SynthArgs, quiet: bool) -> Result<Status, Error> {
    let started = Instant::now();
    let task = args.task.unwrap_or(match args.family {
        Family::Xlmr => Task::Rerank,
        Family::Bert => Task::Embed,
    });
    let no_such_shape = Error::NoSuchShape { family: args.family, size: args.size, task };
    if (args.family, task) == (Family::Bert, Task::Rerank) {
        return Err(no_such_shape);
    }
    let shape = Shape::of(args.family, args.size).ok_or(no_such_shape)?;
    prepare(&args.dir, args.force)?;

    write_json(&args.dir, "config.json", &shape.config(args.family, task, args.dtype))?;
    write_json(&args.dir, "tokenizer.json", &tokenizer::tokenizer(args.family, shape.vocab_size))?;
    let max_tokens = shape.max_tokens(args.family);
    write_json(&args.dir, "tokenizer_config.json", &tokenizer::tokenizer_config(args.family, max_tokens))?;
    if task == Task::Embed {
        write_sentence_transformers(&args.dir, &shape, max_tokens)?;
    }
    let tensors = shape.tensors(args.family, task);
    let path = args.dir.join("model.safetensors");
    let bytes = weights::write(&path, &tensors, args.dtype, args.seed)
        .map_err(|source| Error::Write { to: path.display().to_string(), source })?;
    if !quiet {
        let parameters: usize = tensors.iter().map(weights::TensorSpec::elems).sum();
        report::line(&format!(
            "{}: {parameters} random parameters, {bytes} bytes of weights, {:.1} s",
            args.dir.display(),
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(Status::Done)
}

/// Makes the directory, and refuses one with something in it unless `force`.
fn prepare(dir: &Path, force: bool) -> Result<(), Error> {
    let failed = |source| Error::Write { to: dir.display().to_string(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    if !force && fs::read_dir(dir).map_err(failed)?.next().is_some() {
        return Err(Error::NotEmpty { dir: dir.to_owned() });
    }
    Ok(())
}

/// The files by which an embedder says how token vectors become one: the first token's, normalised.
fn write_sentence_transformers(dir: &Path, shape: &Shape, max_tokens: usize) -> Result<(), Error> {
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
        "word_embedding_dimension": shape.hidden_size,
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

fn write_json(dir: &Path, name: &str, value: &Value) -> Result<(), Error> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(fs::File::create(&path)?);
        // The tokenizer has a quarter of a million entries; the others are for reading.
        match name {
            "tokenizer.json" => serde_json::to_writer(&mut file, value)?,
            _ => serde_json::to_writer_pretty(&mut file, value)?,
        }
        file.write_all(b"\n")?;
        file.flush()
    };
    write().map_err(|source| Error::Write { to: path.display().to_string(), source })
}
