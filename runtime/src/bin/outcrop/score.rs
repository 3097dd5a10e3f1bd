//! `outcrop score`: a file of pairs to a file of scores.

use std::ffi::OsStr;

use outcrop::{Compression, Engine, LayerScore, ScoreOptions};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::{LayersArgs, PairArgs, ScoreArgs};
use crate::error::Error;
use crate::lines::{Block, Input, Line};
use crate::output::{Output, check_distinct};
use crate::progress::Progress;
use crate::record::{Answer, Pair, Record, json_pair, tsv_pair};
use crate::{Status, model, report};

/// The fields of a result, beside the key.
#[derive(Serialize)]
struct Scored {
    score: f64,
    tokens: usize,
    truncated: bool,
    #[serde(flatten)]
    layers: Layers,
}

/// What a score has besides when only some layers were run, or the passage was compressed.
#[derive(Serialize)]
pub(crate) struct Layers {
    /// The score of each cutoff layer, if there are several.
    #[serde(skip_serializing_if = "Map::is_empty")]
    scores: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_after: Option<usize>,
}

impl Layers {
    pub(crate) fn new(scores: &[LayerScore], tokens_after: Option<usize>) -> Layers {
        // One alone is the score itself.
        let scores = if scores.len() > 1 { scores } else { &[] };
        let scores = scores.iter().map(|layer| (layer.layer.to_string(), layer.score.into())).collect();
        Layers { scores, tokens_after }
    }
}

/// Scores every line of the input.
///
/// # Errors
///
/// The input, the model or the options cannot be used, or the output cannot be written. A bad line is no error: it
/// has its own line of output, and shows in the status.
pub(crate) fn run(args: &ScoreArgs, quiet: bool) -> Result<Status, Error> {
    let output_path = args.lines.output.as_deref();
    let input = Input::open(&args.lines.input)?;
    check_distinct(&args.lines.input, output_path)?;
    let engine = model::open(&args.model, &args.engine, &args.network, quiet)?;
    let options = options(&engine, &args.pair, &args.layers)?;
    warn(&engine, &options, quiet)?;
    // A call that cannot work is refused before an existing output is replaced: this reads every weight that is needed.
    engine.prepare(&options)?;
    let mut output = Output::create(output_path)?;
    let mut progress = Progress::new(&input, output_path, "pairs", quiet);

    let max_line_bytes = args.lines.max_line_bytes;
    let read = match args.lines.input.extension().and_then(OsStr::to_str) {
        Some("tsv") => tsv_pair,
        _ => json_pair,
    };
    input.for_each_block(max_line_bytes, |block| {
        let read = |line: &Line| read(line, max_line_bytes);
        let done = score_block(&engine, &options, &block, read, &mut output, &mut progress);
        model::warn(&engine, quiet);
        done
    })?;
    Ok(progress.finish())
}

/// The library's options from the command line's.
pub(crate) fn options(engine: &Engine, pair: &PairArgs, layers: &LayersArgs) -> Result<ScoreOptions, Error> {
    let cutoff_layers = match &layers.cutoff_layers {
        None => None,
        Some(layers) => Some(engine.cutoffs(layers)?),
    };
    let compression = match layers.compress_ratio {
        None => None,
        Some(ratio) => {
            let layers = layers.compress_layers.as_deref().unwrap_or(Compression::DEFAULT_LAYERS);
            Some(Compression::new(ratio, layers)?)
        }
    };
    Ok(ScoreOptions {
        max_length: pair.max_length,
        truncate: true,
        query_max_length: pair.query_max_length,
        normalize: pair.normalize,
        query_instruction: pair.query_instruction.clone(),
        passage_instruction: pair.passage_instruction.clone(),
        query_instruction_format: pair.query_instruction_format.clone(),
        passage_instruction_format: pair.passage_instruction_format.clone(),
        prompt: pair.prompt.clone(),
        cutoff_layers,
        compression,
    })
}

/// Refuses options that the reranker does not have, and prints which of the others have no effect.
pub(crate) fn warn(engine: &Engine, options: &ScoreOptions, quiet: bool) -> Result<(), Error> {
    let warnings = engine.check(options)?;
    if !quiet {
        warnings.iter().for_each(|warning| report::line(&format!("warning: {warning}")));
    }
    Ok(())
}

fn score_block(
    engine: &Engine,
    options: &ScoreOptions,
    block: &Block,
    read: impl Fn(&Line) -> Option<Record<Pair>>,
    output: &mut Output,
    progress: &mut Progress,
) -> Result<(), Error> {
    let records: Vec<Record<Pair>> = block.lines.iter().filter_map(read).collect();
    progress.blank += (block.lines.len() - records.len()) as u64;
    let pairs: Vec<(&str, &str)> = records
        .iter()
        .filter_map(|record| record.body.as_ref().ok())
        .map(|pair| (pair.query.as_str(), pair.passage.as_str()))
        .collect();
    let mut scores = engine.score(&pairs, options)?.into_iter();
    for record in &records {
        let result = match &record.body {
            Err(error) => Err(report::chain(error)),
            Ok(_) => match scores.next().expect("the engine answers every pair") {
                Ok(score) => {
                    progress.result(score.tokens, score.truncated);
                    let layers = Layers::new(&score.layer_scores, score.tokens_after);
                    let (tokens, truncated) = (score.tokens, score.truncated);
                    Ok(Scored { score: score.score, tokens, truncated, layers })
                }
                Err(error) => Err(report::chain(&error)),
            },
        };
        progress.failed += u64::from(result.is_err());
        output.json_line(&Answer::new(&record.key, result))?;
    }
    output.flush()?;
    progress.advance(block.bytes);
    Ok(())
}
