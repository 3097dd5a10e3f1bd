//! `outcrop rerank`: one query, a list of passages, best first.

use std::path::Path;

use console::{Term, measure_text_width};
use outcrop::Ranked;
use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use crate::args::RerankArgs;
use crate::error::Error;
use crate::lines::Input;
use crate::output::Output;
use crate::score::{Layers, options, warn};
use crate::{Status, model, record, report};

/// Longest line of a file of passages.
const MAX_PASSAGE_BYTES: usize = 16 << 20;

/// A passage with the index by which the caller knows it.
struct Passage {
    index: usize,
    text: String,
}

/// A passage that has a place in the ranking.
#[derive(Serialize)]
struct Placed<'a> {
    index: usize,
    score: f64,
    passage: &'a str,
    #[serde(flatten)]
    layers: Layers,
}

/// Ranks the passages and prints them.
///
/// # Errors
///
/// There are no passages; the file, the model or the options cannot be used; the output cannot be written. A passage
/// that fails is reported with its index, and shows in the status.
pub(crate) fn run(args: &RerankArgs, quiet: bool) -> Result<Status, Error> {
    let mut failed = 0;
    let passages = match &args.passages {
        Some(path) => read_passages(path, &mut failed)?,
        None => {
            args.passage.iter().cloned().enumerate().map(|(index, text)| Passage { index, text }).collect()
        }
    };
    if passages.is_empty() {
        return Err(Error::NoPassages);
    }
    let engine = model::open(&args.model, &args.engine, &args.network, quiet)?;
    let options = options(&engine, &args.pair, &args.layers)?;
    if engine.is_reranker() {
        warn(&engine, &options, quiet)?;
    }
    let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let ranking = engine.rerank(&args.query, &texts, &options)?;
    model::warn(&engine, quiet);
    for (place, error) in &ranking.failed {
        report::line(&format!("passage {}: {}", passages[*place].index, report::chain(error)));
    }
    failed += ranking.failed.len() as u64;
    let truncated = ranking.results.iter().filter(|ranked| ranked.truncated).count();
    if truncated > 0 && !quiet {
        report::line(&format!(
            "{truncated} of {} passages were too long and scored without their ends",
            texts.len()
        ));
    }

    let shown = args.top_n.map_or(ranking.results.len(), |top_n| top_n.get().min(ranking.results.len()));
    let placed = ranking.results[..shown].iter().map(|ranked: &Ranked| {
        let passage = &passages[ranked.index];
        let layers = Layers::new(&ranked.layer_scores, ranked.tokens_after);
        Placed { index: passage.index, score: ranked.score, passage: &passage.text, layers }
    });
    let mut output = Output::create(None)?;
    if args.json {
        print_json(&mut output, placed)?;
    } else {
        print_table(&mut output, placed)?;
    }
    output.flush()?;
    Ok(Status::of(failed))
}

/// The lines of a file that are not blank. A line that cannot be used is reported and counted in `failed`.
fn read_passages(path: &Path, failed: &mut u64) -> Result<Vec<Passage>, Error> {
    let mut passages = Vec::new();
    Input::open(path)?.for_each_block(MAX_PASSAGE_BYTES, |block| {
        for line in &block.lines {
            match record::text(line, MAX_PASSAGE_BYTES) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => {
                    // Lines are numbered from 1 and fit in memory, passages from 0.
                    let index = usize::try_from(line.number - 1).unwrap_or(usize::MAX);
                    passages.push(Passage { index, text: text.to_owned() });
                }
                Err(error) => {
                    report::line(&format!("{}, line {}: {error}", path.display(), line.number));
                    *failed += 1;
                }
            }
        }
        Ok(())
    })?;
    Ok(passages)
}

/// A JSON array with one element per line.
fn print_json<'a>(output: &mut Output, placed: impl Iterator<Item = Placed<'a>>) -> Result<(), Error> {
    let mut before = "[\n  ";
    for passage in placed {
        output.text(before)?;
        output.json(&passage)?;
        before = ",\n  ";
    }
    output.text(if before == "[\n  " { "[]\n" } else { "\n]\n" })
}

/// Rank, score, and as much of the passage as the terminal has room for; the whole passage into a file or a pipe.
fn print_table<'a>(output: &mut Output, placed: impl Iterator<Item = Placed<'a>>) -> Result<(), Error> {
    let width = Term::stdout().size_checked().map(|(_rows, columns)| usize::from(columns));
    output.text("rank     score  passage\n")?;
    for (i, passage) in placed.enumerate() {
        output.text(&row(i + 1, &passage, width))?;
    }
    Ok(())
}

fn row(rank: usize, passage: &Placed, width: Option<usize>) -> String {
    let start = format!("{rank:>4}  {:>8.4}  ", passage.score);
    let text = one_line(passage.passage);
    let text = match width {
        Some(width) => cut(&text, width.saturating_sub(measure_text_width(&start))),
        None => text,
    };
    format!("{start}{text}\n")
}

/// The text, or as many of its characters as fit into `columns` with an ellipsis behind them. Characters are what a
/// reader takes for one: a letter stays with its accents, an emoji with its modifiers.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if measure_text_width(text) <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut room = columns.saturating_sub(1);
    for character in text.graphemes(true) {
        let Some(left) = room.checked_sub(measure_text_width(character)) else { break };
        room = left;
        cut.push_str(character);
    }
    cut.push('…');
    cut
}

/// The text without line breaks, tabs and control characters: none of it can move the cursor.
pub(crate) fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
