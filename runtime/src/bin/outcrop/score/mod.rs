//! `outcrop score`: a file of pairs to a file of scores.

mod checkpoint;
mod fingerprint;
pub(crate) mod parquet;
pub(crate) mod run_batch;
pub(crate) mod shard;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::time::Duration;
use std::vec;

use arrow_schema::DataType;
use outcrop::{Compression, Engine, LayerScore, Score, ScoreOptions};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::{LayersArgs, PairArgs, ScoreArgs};
use crate::error::Error;
use crate::lines::read_ahead;
use crate::output::{Output, check_distinct};
use crate::progress::Progress;
use crate::record::{Answer, Key, LineError, Record, Task};
use crate::{Status, model, report};
use checkpoint::{Checkpoints, remove_if_there};
use fingerprint::Fingerprint;
use parquet::Columns;
use run_batch::{Overrides, Refusal};
use sink::{Part, Sink, Target, is_table};
use source::{Position, Source};

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
#[derive(Debug, Serialize)]
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
        Layers::each(if scores.len() > 1 { scores } else { &[] }, tokens_after)
    }

    /// The layer is named even if there is one alone.
    pub(crate) fn each(scores: &[LayerScore], tokens_after: Option<usize>) -> Layers {
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
    let source = Source::open(&args.lines.input, args.shard)?;
    check_distinct(&args.lines.input, output_path)?;
    check_distinct(&args.lines.input, args.summary.as_deref())?;
    let target = Target::of(output_path)?;
    let start = source.start();
    if args.resume && (start.is_none() || target.file().is_none()) {
        return Err(Error::ResumeNeedsFiles);
    }
    let dir = model::locate(&args.model.model, args.model.revision.as_deref(), quiet)?;
    let engine = model::open_dir(&dir, &args.engine, &args.network, quiet)?;
    let options = options(&engine, &args.pair, &args.layers)?;
    warn(&engine, &options, quiet)?;
    // A call that cannot work is refused before an existing output is replaced: this reads every weight that is needed.
    engine.prepare(&options)?;

    let columns = columns(&source, &options);
    let mut progress = Progress::new(source.length(), output_path, "pairs", quiet);
    let fingerprint = || Fingerprint::new(args, &engine, &dir);
    let Some(begun) = begin(args, &target, start, fingerprint, &mut progress)? else {
        return finish(args, progress);
    };
    let Begun { mut sink, mut checkpoints, mut position } = begun;
    let mut scorer = Scorer {
        engine: &engine,
        options: &options,
        model: &args.model.model,
        into_table: target.file().is_some_and(is_table),
        quiet,
        told_of_model: false,
    };
    let name = source.name.clone();
    let unreadable = |source| Error::Read { from: name.clone(), source };
    let batches = source.batches(position, args.lines.max_line_bytes).map_err(unreadable)?;
    read_ahead(batches, |batch| {
        let batch = batch.map_err(unreadable)?;
        scorer.score(&batch.records, &mut sink, &mut progress)?;
        sink.flush()?;
        progress.counts.blank += batch.blank;
        progress.advance(batch.length);
        model::warn(&engine, quiet);
        position = Some(batch.end);
        match (&mut checkpoints, &mut sink) {
            (Some(checkpoints), Sink::Part(part)) if checkpoints.due() => {
                checkpoints.write(batch.end, part.sync()?, false, &progress.counts)
            }
            _ => Ok(()),
        }
    })?;
    if let Sink::Part(mut part) = sink {
        let bytes = part.sync()?;
        if let (Some(checkpoints), Some(position)) = (&mut checkpoints, position) {
            checkpoints.write(position, bytes, true, &progress.counts)?;
        }
        part.finish(&columns)?;
        if let Some(checkpoints) = checkpoints {
            checkpoints.remove()?;
        }
    }
    finish(args, progress)
}

/// Says what has been done, once the output is complete.
fn finish(args: &ScoreArgs, progress: Progress) -> Result<Status, Error> {
    if let Some(path) = &args.summary {
        let mut summary = Output::create(Some(path))?;
        summary.json_line(&progress.summary_of_pairs())?;
        summary.flush()?;
    }
    Ok(progress.finish())
}

/// A run that has its output, and where in the input it begins.
struct Begun {
    sink: Sink,
    /// Of a run that can be gone on from.
    checkpoints: Option<Checkpoints>,
    /// `None` for an input that is read once.
    position: Option<Position>,
}

/// Opens the output, at its start or where the run before stopped. `None` if that was all but complete, and now is.
fn begin(
    args: &ScoreArgs,
    target: &Target,
    start: Option<Position>,
    fingerprint: impl FnOnce() -> Result<Fingerprint, Error>,
    progress: &mut Progress,
) -> Result<Option<Begun>, Error> {
    let Some(path) = target.file() else {
        let output = Output::create(args.lines.output.as_deref())?;
        return Ok(Some(Begun { sink: Sink::Stream(output), checkpoints: None, position: start }));
    };
    let Some(start) = start else {
        let mut part = Part::open(path)?;
        // One of an earlier run would count on lines that are not there.
        remove_if_there(&Checkpoints::path(path))?;
        part.go_on_from(0)?;
        return Ok(Some(Begun { sink: Sink::Part(part), checkpoints: None, position: None }));
    };
    let every = Duration::from_secs(args.checkpoint_seconds);
    let checkpoints = Checkpoints::new(path, fingerprint()?, every);
    let before = if args.resume { checkpoints.read()? } else { None };
    if let Some(before) = &before {
        progress.resume(&before.counts, before.input.offset - start.offset);
        if before.complete && path.exists() && !Part::path(path).exists() {
            checkpoints.remove()?;
            return Ok(None);
        }
    }
    let mut part = Part::open(path)?;
    let position = match before {
        Some(before) => {
            part.go_on_from(before.output_bytes)?;
            before.input
        }
        None => {
            checkpoints.remove()?;
            part.go_on_from(0)?;
            start
        }
    };
    Ok(Some(Begun { sink: Sink::Part(part), checkpoints: Some(checkpoints), position: Some(position) }))
}

/// The columns of a table of these scores.
fn columns(source: &Source, options: &ScoreOptions) -> Columns {
    let layers = options.cutoff_layers.as_ref().map_or(&[][..], |cutoffs| cutoffs.layers());
    let table = source.table();
    Columns {
        // Lines of JSON may have ids and lists or not.
        id: table.map_or(Some(DataType::Utf8), |table| table.id().cloned()),
        number: if table.is_some() { "row" } else { "line" },
        index: table.is_none_or(|table| table.has_lists()),
        // One alone is the score itself.
        layers: if layers.len() > 1 { layers.to_vec() } else { Vec::new() },
        tokens_after: options.compression.is_some(),
    }
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

/// Answers records, in their order.
struct Scorer<'a> {
    engine: &'a Engine,
    /// The options of the command line.
    options: &'a ScoreOptions,
    /// The model's name on the command line.
    model: &'a str,
    /// Whether the answers become rows of a table.
    into_table: bool,
    quiet: bool,
    /// Whether it has been said that lines name another model.
    told_of_model: bool,
}

/// Pairs that are scored with the same options.
struct Group<'a> {
    /// `None` for the options of the command line.
    overrides: Option<&'a Overrides>,
    options: Result<ScoreOptions, Refusal>,
    pairs: Vec<(&'a str, &'a str)>,
}

type Scores = vec::IntoIter<Result<Score, outcrop::Error>>;

impl Scorer<'_> {
    fn score(
        &mut self,
        records: &[Record<Task>],
        sink: &mut Sink,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let mut groups: Vec<Group> = Vec::new();
        let mut group_of = Vec::with_capacity(records.len());
        for record in records {
            group_of.push(self.collect(record, &mut groups));
        }
        let mut scores: Vec<Result<Scores, Refusal>> = Vec::with_capacity(groups.len());
        for group in groups {
            scores.push(match group.options {
                Ok(options) => Ok(self.engine.score(&group.pairs, &options)?.into_iter()),
                Err(refusal) => Err(refusal),
            });
        }
        for (record, group) in records.iter().zip(group_of) {
            self.answer(record, group.map(|group| &mut scores[group]), sink, progress)?;
        }
        Ok(())
    }

    /// Puts the pairs of a record into the group of its options; the group's place, if there is anything to score.
    fn collect<'r>(&self, record: &'r Record<Task>, groups: &mut Vec<Group<'r>>) -> Option<usize> {
        let (overrides, pairs): (_, Vec<(&str, &str)>) = match record.body.as_ref().ok()? {
            Task::Pair(pair) => (None, vec![(&pair.query, &pair.passage)]),
            Task::List { query, passages } => {
                let passages = passages.iter().flatten();
                (None, passages.map(|passage| (query.as_str(), passage.as_str())).collect())
            }
            Task::Request(_) if self.into_table => return None,
            Task::Request(request) => {
                let work = request.work.as_ref().ok()?;
                (Some(&work.overrides), work.pairs().collect())
            }
        };
        let found = groups.iter().position(|group| group.overrides == overrides);
        let place = found.unwrap_or_else(|| {
            let options = match overrides {
                None => Ok(self.options.clone()),
                Some(overrides) => overrides.options(self.engine, self.options),
            };
            groups.push(Group { overrides, options, pairs: Vec::new() });
            groups.len() - 1
        });
        if groups[place].options.is_ok() {
            groups[place].pairs.extend(pairs);
        }
        Some(place)
    }

    /// Writes what answers a record; `scores` are those of its group, the record's own first.
    fn answer(
        &mut self,
        record: &Record<Task>,
        scores: Option<&mut Result<Scores, Refusal>>,
        sink: &mut Sink,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let key = &record.key;
        let task = match &record.body {
            Err(error) => return write_result(key, None, Err(report::chain(error)), sink, progress),
            Ok(task) => task,
        };
        match (task, scores) {
            (Task::Pair(_), Some(Ok(scores))) => write_result(key, None, scored(scores), sink, progress),
            (Task::List { passages, .. }, Some(Ok(scores))) => {
                for (index, passage) in passages.iter().enumerate() {
                    let result = match passage {
                        Ok(_) => scored(scores),
                        Err(error) => Err(report::chain(error)),
                    };
                    write_result(key, Some(index), result, sink, progress)?;
                }
                Ok(())
            }
            (Task::Request(_), None) if self.into_table => {
                let error = report::chain(&LineError::RequestIntoTable);
                write_result(key, None, Err(error), sink, progress)
            }
            (Task::Request(request), scores) => self.answer_request(request, scores, sink, progress),
            (Task::Pair(_) | Task::List { .. }, _) => {
                unreachable!("the options of the command line are not refused here")
            }
        }
    }

    fn answer_request(
        &mut self,
        request: &run_batch::Request,
        scores: Option<&mut Result<Scores, Refusal>>,
        sink: &mut Sink,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let run_batch::Request { custom_id, work } = request;
        let response = match (work, scores) {
            (Err(refusal), _) => Err(refusal.clone()),
            (Ok(_), Some(Err(refusal))) => Err(refusal.clone()),
            (Ok(work), Some(Ok(scores))) => {
                self.tell_of_model(work.model.as_deref(), progress);
                let own: Vec<_> = scores.by_ref().take(work.pairs().count()).collect();
                own.iter().flatten().for_each(|score| progress.result(score.tokens, score.truncated));
                run_batch::respond(custom_id, work, own, self.model)
            }
            (Ok(_), None) => unreachable!("work has a group"),
        };
        progress.counts.failed += u64::from(response.is_err());
        sink.json_line(&run_batch::line(custom_id, response.as_ref()))
    }

    /// Says once that the model of the command line answers for others.
    fn tell_of_model(&mut self, asked: Option<&str>, progress: &Progress) {
        match asked {
            Some(asked) if asked != self.model && !self.told_of_model && !self.quiet => {
                self.told_of_model = true;
                progress.report(&format!(
                    "warning: lines ask for the model {asked}; {} answers them",
                    self.model
                ));
            }
            _ => {}
        }
    }
}

/// The next score as a result.
fn scored(scores: &mut Scores) -> Result<Score, String> {
    let score = scores.next().expect("the engine answers every pair");
    score.map_err(|error| report::chain(&error))
}

fn write_result(
    key: &Key,
    index: Option<usize>,
    result: Result<Score, String>,
    sink: &mut Sink,
    progress: &mut Progress,
) -> Result<(), Error> {
    match &result {
        Ok(score) => progress.result(score.tokens, score.truncated),
        Err(_) => progress.counts.failed += 1,
    }
    let result = result.map(|score| {
        let layers = Layers::new(&score.layer_scores, score.tokens_after);
        Scored { score: score.score, tokens: score.tokens, truncated: score.truncated, layers }
    });
    sink.json_line(&Answer::new(key, result).of_passage(index))
}
