//! `outcrop score`: a file of pairs to a file of scores.

use std::ffi::OsStr;

use outcrop::{Engine, ScoreOptions};
use serde::Serialize;

use crate::args::{PairArgs, ScoreArgs};
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
    let engine = model::open(&args.model, &args.engine, quiet)?;
    let options = options(&args.pair);
    // A call that cannot work is refused before an existing output is replaced.
    engine.score::<&str, &str>(&[], &options)?;
    let mut output = Output::create(output_path)?;
    let mut progress = Progress::new(&input, output_path, "pairs", quiet);

    let max_line_bytes = args.lines.max_line_bytes;
    let read = match args.lines.input.extension().and_then(OsStr::to_str) {
        Some("tsv") => tsv_pair,
        _ => json_pair,
    };
    input.for_each_block(max_line_bytes, |block| {
        let read = |line: &Line| read(line, max_line_bytes);
        score_block(&engine, &options, &block, read, &mut output, &mut progress)
    })?;
    Ok(progress.finish())
}

/// The library's options from the command line's.
pub(crate) fn options(args: &PairArgs) -> ScoreOptions {
    ScoreOptions {
        max_length: args.max_length,
        query_max_length: args.query_max_length,
        normalize: args.normalize,
        query_instruction: args.query_instruction.clone(),
        passage_instruction: args.passage_instruction.clone(),
        query_instruction_format: args.query_instruction_format.clone(),
        passage_instruction_format: args.passage_instruction_format.clone(),
        ..ScoreOptions::default()
    }
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
                    Ok(Scored { score: score.score, tokens: score.tokens, truncated: score.truncated })
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
