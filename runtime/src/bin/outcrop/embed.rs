//! `outcrop embed`: a file of texts to a file of vectors.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use outcrop::loader::Config;
use outcrop::{EmbedOptions, Embedding, Engine, Pooling};
use serde::Serialize;

use crate::args::{EmbedArgs, EmbedFormat, NetworkArgs, PoolingArg};
use crate::error::Error;
use crate::lines::{Block, Input};
use crate::npy::NpyWriter;
use crate::output::{Output, check_distinct, create_file};
use crate::progress::Progress;
use crate::record::{Answer, Record, json_text};
use crate::{Status, model, report};

/// The fields of a result, beside the key.
#[derive(Serialize)]
struct Embedded {
    embedding: Vec<f32>,
    tokens: usize,
    truncated: bool,
}

/// Where vectors go.
enum Vectors {
    Jsonl(Output),
    Npy(Npy),
}

/// An .npy file and its name for messages.
struct Npy {
    name: String,
    writer: NpyWriter<BufWriter<File>>,
}

/// Embeds every line of the input.
///
/// # Errors
///
/// The input, the model or the options cannot be used, or the output cannot be written. A bad line is no error: it
/// has its own line of output or row of NaN, and shows in the status.
pub(crate) fn run(args: &EmbedArgs, quiet: bool) -> Result<Status, Error> {
    let output = args.lines.output.as_deref();
    if args.format == EmbedFormat::Npy && output.is_none() {
        return Err(Error::NpyNeedsOutput);
    }
    let input = Input::open(&args.lines.input)?;
    check_distinct(&args.lines.input, output)?;
    let engine = model::open(&args.model, &args.engine, &NetworkArgs::default(), quiet)?;
    let options = options(args);
    // A call that cannot work is refused before an existing output is replaced.
    engine.embed::<&str>(&[], &options)?;
    let hidden_size = match engine.config() {
        Config::Encoder(config) => config.hidden_size,
        Config::Decoder(config) => config.hidden_size,
    };
    let mut vectors = Vectors::create(args.format, output, hidden_size)?;
    let mut progress = Progress::new(input.bytes, output, "texts", quiet);
    let max_line_bytes = args.lines.max_line_bytes;
    input.for_each_block(max_line_bytes, |block| {
        let done = embed_block(&engine, &options, &block, max_line_bytes, &mut vectors, &mut progress);
        model::warn(&engine, quiet);
        done
    })?;
    Ok(progress.finish())
}

fn options(args: &EmbedArgs) -> EmbedOptions {
    EmbedOptions {
        max_length: args.max_length,
        truncate: true,
        normalize: match (args.normalize, args.no_normalize) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        },
        instruction: args.instruction.clone(),
        instruction_format: args.instruction_format.clone(),
        pooling: args.pooling.map(|pooling| match pooling {
            PoolingArg::Cls => Pooling::Cls,
            PoolingArg::Mean => Pooling::Mean,
        }),
    }
}

fn embed_block(
    engine: &Engine,
    options: &EmbedOptions,
    block: &Block,
    max_line_bytes: usize,
    vectors: &mut Vectors,
    progress: &mut Progress,
) -> Result<(), Error> {
    let records: Vec<Record<String>> =
        block.lines.iter().filter_map(|line| json_text(line, max_line_bytes)).collect();
    progress.counts.blank += (block.lines.len() - records.len()) as u64;
    let texts: Vec<&str> =
        records.iter().filter_map(|record| record.body.as_ref().ok()).map(String::as_str).collect();
    let mut embeddings = engine.embed(&texts, options)?.into_iter();
    for record in &records {
        let result = match &record.body {
            Err(error) => Err(report::chain(error)),
            Ok(_) => {
                let embedding = embeddings.next().expect("the engine answers every text");
                embedding.map_err(|error| report::chain(&error))
            }
        };
        match &result {
            Ok(embedding) => progress.result(embedding.tokens, embedding.truncated),
            Err(_) => progress.counts.failed += 1,
        }
        vectors.write(record, result, progress)?;
    }
    vectors.flush()?;
    progress.advance(block.bytes);
    Ok(())
}

impl Vectors {
    fn create(format: EmbedFormat, path: Option<&Path>, hidden_size: usize) -> Result<Vectors, Error> {
        match (format, path) {
            (EmbedFormat::Jsonl, path) => Ok(Vectors::Jsonl(Output::create(path)?)),
            (EmbedFormat::Npy, None) => Err(Error::NpyNeedsOutput),
            (EmbedFormat::Npy, Some(path)) => {
                let name = path.display().to_string();
                match NpyWriter::new(BufWriter::new(create_file(path)?), hidden_size) {
                    Ok(writer) => Ok(Vectors::Npy(Npy { name, writer })),
                    Err(source) => Err(Error::Write { to: name, source }),
                }
            }
        }
    }

    fn write(
        &mut self,
        record: &Record<String>,
        result: Result<Embedding, String>,
        progress: &Progress,
    ) -> Result<(), Error> {
        match self {
            Vectors::Jsonl(output) => {
                let result = result.map(|embedding| Embedded {
                    embedding: embedding.vector,
                    tokens: embedding.tokens,
                    truncated: embedding.truncated,
                });
                output.json_line(&Answer::new(&record.key, result))
            }
            Vectors::Npy(npy) => match result {
                Ok(embedding) => npy.try_write(|writer| writer.row(&embedding.vector)),
                Err(error) => {
                    progress.report(&format!("line {}: {error}", record.number));
                    npy.try_write(|writer| writer.row(&vec![f32::NAN; writer.columns()]))
                }
            },
        }
    }

    /// Leaves a whole file behind, whatever happens next.
    fn flush(&mut self) -> Result<(), Error> {
        match self {
            Vectors::Jsonl(output) => output.flush(),
            Vectors::Npy(npy) => npy.try_write(NpyWriter::flush),
        }
    }
}

impl Npy {
    fn try_write(
        &mut self,
        write: impl FnOnce(&mut NpyWriter<BufWriter<File>>) -> io::Result<()>,
    ) -> Result<(), Error> {
        write(&mut self.writer).map_err(|source| Error::Write { to: self.name.clone(), source })
    }
}
