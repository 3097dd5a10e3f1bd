//! `outcrop bench kernels`: every kernel timed alone, at the shapes of the published models or at others. `outcrop bench model` is in
//! `model`.

pub(crate) mod args;
mod baseline;
pub(crate) mod model;
mod record;
mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::io::BufRead;
use std::path::Path;
use std::{fs, io};

use outcrop::bench::{Bench, Prepared, Variant, kernel_files};
use outcrop::{Dtype, ElementType, KernelError, Stream};
use serde_json::{Value, json};

use self::baseline::Baseline;
use self::record::{Place, Seen};
use self::rows::Row;
use self::table::Table;
use crate::args::{DtypeArg, KernelsArgs};
use crate::error::Error;
use crate::output::Output;
use crate::{Status, report};

/// Tokens of a GPU's rows if nothing is said: pairs alone, and batches up to a hundred pairs of 512.
const GPU_TOKENS: [usize; 5] = [64, 512, 4096, 16384, 51200];
/// Of the CPU's, where all of them take as long as they may: about a minute.
const CPU_TOKENS: [usize; 1] = [64];

/// Times the rows that are asked for.
///
/// # Errors
///
/// No row has the name asked for; the device, the baseline or the variant cannot be used; the output cannot be written.
pub(crate) fn run(args: &KernelsArgs, quiet: bool) -> Result<Status, Error> {
    let (stream, choice) = args.device.open(Dtype::from(args.dtype), args.threads.map(Into::into))?;
    if let Some(because) = &choice.because
        && !quiet
    {
        report::line(&format!("running on cpu: {because}"));
    }
    let default_tokens = match stream.properties() {
        Some(properties) if !properties.is_emulated() => &GPU_TOKENS[..],
        _ => &CPU_TOKENS[..],
    };
    let rows = rows::selected(args, default_tokens, matches!(stream, Stream::Cpu(_)))?;
    if args.list {
        return list(args, &rows);
    }
    let weight_type = match (&stream, args.dtype) {
        (Stream::Cpu(_), DtypeArg::F16) => ElementType::F16,
        (Stream::Cpu(_), DtypeArg::Bf16) => ElementType::BF16,
        (Stream::Cpu(_), _) => ElementType::F32,
        (Stream::Cuda(_), _) => stream.operand_type(),
    };
    let name = match weight_type {
        ElementType::F32 => "f32",
        ElementType::F16 => "f16",
        ElementType::BF16 => "bf16",
    };
    let device = choice.devices.first().and_then(|device| device.split(' ').next()).unwrap_or_default();
    let place = Place::of(&stream, device, name);
    let mut run = Run {
        args,
        baseline: match &args.baseline {
            Some(path) => Some(Baseline::read(path, &place, args.any_device, ("kernels", "median_us"))?),
            None => None,
        },
        variant: match &args.variant {
            Some(path) => Some(variant(path, args.variant_of.as_deref(), &stream)?),
            None => None,
        },
        bench: Bench::new(&stream, weight_type).map_err(outcrop::Error::from)?,
        place,
    };
    if args.lines { run.lines(&rows) } else { run.table(&rows, quiet) }
}

/// Names, or names and shapes as JSON, of what would be timed.
fn list(args: &KernelsArgs, rows: &[Row]) -> Result<Status, Error> {
    let mut output = Output::create(None)?;
    for row in rows {
        if args.json {
            output.json_line(&record::named(row))?;
        } else {
            output.text(&format!("{}\n", row.name))?;
        }
    }
    output.flush()?;
    Ok(Status::Done)
}

/// Reads a kernel file that stands for the built-in one that is named, or has the same file name.
fn variant(path: &Path, of: Option<&str>, stream: &Stream) -> Result<Variant, Error> {
    if stream.properties().is_none_or(|properties| properties.is_emulated()) {
        return Err(Error::VariantNeedsGpu);
    }
    let files = kernel_files();
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_meant = |file: &&&str| match of {
        Some(of) => **file == of,
        None => file.rsplit('/').next() == Some(&file_name),
    };
    let Some(built_in) = files.iter().find(is_meant) else {
        let name = of.map_or_else(|| file_name.clone().into_owned(), str::to_owned);
        return Err(Error::NoBuiltIn { name, files });
    };
    let text = fs::read_to_string(path)
        .map_err(|source| Error::Read { from: path.display().to_string(), source })?;
    Ok(Variant::new(path, text, built_in))
}

/// A run under way.
struct Run<'a> {
    args: &'a KernelsArgs,
    place: Place,
    bench: Bench<'a>,
    baseline: Option<Baseline>,
    variant: Option<Variant>,
}

impl Run<'_> {
    /// Times every row: a table, or a record as JSON.
    fn table(&mut self, rows: &[Row], quiet: bool) -> Result<Status, Error> {
        let mut output = Output::create(None)?;
        // Now, so that what cannot be written is not found out at the end.
        let mut file = self.args.output.as_deref().map(|path| Output::create(Some(path))).transpose()?;
        // Of built-in and variant only the ratio is asked for.
        let ceilings = match &self.variant {
            None => Some(self.bench.ceilings(self.args.seconds).map_err(outcrop::Error::from)?),
            Some(_) => None,
        };
        let Place { name, details, .. } = &self.place;
        let rotation = self.bench.rotation_bytes() >> 20;
        let about = format!("{name}: {details}; operands rotated over more than {rotation} MiB");
        let mut table = Table::new(&about, rows, self.baseline.is_some(), ceilings);
        let (mut lines, mut ratios, mut num_failed) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            let seen = match self.time(row) {
                Ok(None) => continue,
                Ok(Some(seen)) => Ok(seen),
                // No other row will fare better.
                Err(error) if self.variant.is_some() && error.is_refused_source() => {
                    return Err(outcrop::Error::from(error).into());
                }
                Err(error) => Err(report::chain(&error)),
            };
            let ratio = match (&self.baseline, &seen) {
                (Some(baseline), Ok(seen)) => baseline.ratio(&row.name, seen.times.median_us()),
                _ => None,
            };
            ratios.extend(ratio.map(|ratio| (row.name.as_str(), ratio)));
            let mut line = match &seen {
                Ok(seen) => record::seen(row, seen, ceilings),
                Err(error) => {
                    num_failed += 1;
                    if self.args.json || error.contains('\n') {
                        report::line(&format!("{}: {error}", row.name));
                    }
                    record::failed(row, error)
                }
            };
            if self.baseline.is_some() {
                line.insert("ratio".to_owned(), json!(ratio));
            }
            if !self.args.json {
                table.row(&mut output, row, &seen, ratio)?;
            }
            lines.push(Value::Object(line));
        }
        if lines.is_empty() {
            let of = self.variant.as_ref().map_or("", Variant::of);
            return Err(Error::VariantNotLaunched { of });
        }
        let mut record = record::head(self.args.commit.as_deref(), &self.place);
        record.insert("seconds_per_row".to_owned(), json!(self.args.seconds));
        record.insert("rotation_bytes".to_owned(), json!(self.bench.rotation_bytes()));
        record.insert("ceilings".to_owned(), json!(ceilings.map(record::ceilings)));
        let is_missed =
            |name: &str| rows::is_chosen(self.args, name) && !rows.iter().any(|row| row.name == name);
        let summary = self.baseline.as_ref().map(|baseline| baseline.summary(&ratios, is_missed));
        if let Some((object, text)) = &summary {
            record.insert("baseline".to_owned(), object.clone());
            if !self.args.json {
                output.text(text)?;
            }
        }
        record.insert("rows".to_owned(), lines.into());
        if self.args.json {
            output.json_line(&record)?;
        }
        output.flush()?;
        if let Some(file) = &mut file {
            let text = serde_json::to_string_pretty(&record).unwrap_or_default();
            file.text(&(text + "\n"))?;
            file.flush()?;
        }
        let slower = baseline::slower(&ratios, self.args.fail_below);
        if !slower.is_empty() && !quiet {
            let limit = self.args.fail_below.unwrap_or_default();
            report::line(&format!("below {limit} of the baseline: {}", slower.join(", ")));
        }
        Ok(Status::of(num_failed + slower.len() as u64))
    }

    /// Times a row; `None` if it does not launch the file that the variant stands for.
    fn time(&mut self, row: &Row) -> Result<Option<Seen>, KernelError> {
        if self
            .variant
            .as_ref()
            .is_some_and(|variant| !variant.of().starts_with(&format!("{}/", row.call.kernel())))
        {
            return Ok(None);
        }
        let mut prepared = self.bench.prepare(row.call)?;
        let kernels = self.bench.kernels(&mut prepared)?;
        let (cost, copies) = (prepared.cost(), prepared.copies());
        let (times, comparison) = match &mut self.variant {
            None => (self.bench.time(&mut prepared, self.args.seconds)?, None),
            Some(variant) => match self.bench.compare(&mut prepared, variant, self.args.seconds)? {
                None => return Ok(None),
                Some(comparison) => (comparison.built_in.clone(), Some(comparison)),
            },
        };
        Ok(Some(Seen { cost, copies, times, kernels, comparison }))
    }

    /// Times the rows whose names come on standard input, a JSON line for each: for whoever drives the rounds of a comparison. The
    /// operands of a row are kept until another one is asked for.
    fn lines(&mut self, rows: &[Row]) -> Result<Status, Error> {
        let mut output = Output::create(None)?;
        let mut held: Option<(&Row, Prepared)> = None;
        let mut num_failed = 0;
        for line in io::stdin().lock().lines() {
            let line = line.map_err(|source| Error::Read { from: "standard input".to_owned(), source })?;
            let Some(row) = rows.iter().find(|row| row.name == line.trim()) else {
                num_failed += 1;
                output
                    .json_line(&json!({ "name": line.trim(), "error": "no such row: --list shows them" }))?;
                output.flush()?;
                continue;
            };
            if held.as_ref().is_none_or(|(there, _)| there.name != row.name) {
                // The memory of the one before is free first.
                held = None;
            }
            let seen = self.time_held(row, &mut held);
            num_failed += u64::from(seen.is_err());
            output.json_line(&match &seen {
                Ok(seen) => record::seen(row, seen, None),
                Err(error) => record::failed(row, &report::chain(error)),
            })?;
            output.flush()?;
        }
        Ok(Status::of(num_failed))
    }

    fn time_held<'r>(
        &self,
        row: &'r Row,
        held: &mut Option<(&'r Row, Prepared)>,
    ) -> Result<Seen, KernelError> {
        let prepared = match held {
            Some((_, prepared)) => prepared,
            None => &mut held.insert((row, self.bench.prepare(row.call)?)).1,
        };
        let kernels = self.bench.kernels(prepared)?;
        let times = self.bench.time(prepared, self.args.seconds)?;
        Ok(Seen { cost: prepared.cost(), copies: prepared.copies(), times, kernels, comparison: None })
    }
}
