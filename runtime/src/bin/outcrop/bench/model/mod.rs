//! `outcrop bench model`: a model on texts of chosen lengths, from texts to scores, and where the time goes.

mod first;
mod parts;
mod seen;
mod settings;
mod svg;
mod table;
#[cfg(test)]
mod tests;
mod texts;

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use outcrop::bench::{Bench, Ceilings};
use outcrop::profile::Profile;
use outcrop::{Dtype, ElementType, Engine};
use serde_json::{Map, Value, json};

use self::seen::Seen;
use self::settings::Setting;
pub(crate) use self::texts::Lengths;
use self::texts::{Maker, Workload};
use super::baseline::{Baseline, slower};
use super::record::{self, Place};
use crate::args::{DtypeArg, ModelBenchArgs};
use crate::error::Error;
use crate::output::Output;
use crate::{Status, model, report};

/// Most seconds that each of the two ceilings is measured for.
const CEILING_SECONDS: f64 = 0.3;
/// Calls before any counts: the first loads layers and kernels, the second replays what the first has recorded.
const WARM_UP_CALLS: usize = 2;
/// Profiles of a call, of which the fastest is shown.
const PROFILES: usize = 3;

/// Times every setting that the arguments name, in turns.
///
/// # Errors
///
/// The model, the device, the texts, the options or the baseline cannot be used; the output cannot be written.
pub(crate) fn run(args: &ModelBenchArgs, quiet: bool) -> Result<Status, Error> {
    let dir = model::locate(&args.model, args.revision.as_deref(), quiet)?;
    if args.fresh {
        return first::score(args, &dir);
    }
    let (place, ceilings) = surroundings(args, quiet)?;
    let baseline = match &args.baseline {
        Some(path) => {
            let baseline = Baseline::read(path, &place, args.any_device, ("model", "p50_ms"))?;
            let (there, now) = (baseline.model.clone().unwrap_or_default(), name_of(&dir));
            if there != now {
                return Err(Error::OtherModel { path: path.clone(), baseline: there, now });
            }
            Some(baseline)
        }
        None => None,
    };
    let kinds = settings::kinds(args);
    let engines: Vec<Engine> =
        kinds.iter().map(|kind| Engine::open(&dir, &kind.options)).collect::<Result<_, _>>()?;
    let maker = Maker::new(&engines[0])?;
    let mut workloads = Vec::new();
    for lengths in &args.lengths {
        for passages in &args.passages {
            let (queries, passages, query) = (args.queries.get(), passages.get(), args.query_tokens.get());
            workloads.push(maker.workload(queries, passages, query, lengths)?);
            if matches!(lengths, Lengths::File(_)) {
                // It says itself how many passages a query has.
                break;
            }
        }
    }
    if let Some(path) = &args.texts_out {
        texts::write(&workloads[0], path)?;
    }
    let settings = settings::settings(args, &kinds, &engines[0], &workloads)?;
    for setting in &settings {
        let warnings = engines[setting.engine].check(&setting.options)?;
        warnings.iter().filter(|_| !quiet).for_each(|warning| report::line(&format!("warning: {warning}")));
    }
    let run = Run { args, place, ceilings, baseline, engines, workloads, settings };
    if args.lines { run.lines() } else { run.table(&dir, quiet) }
}

/// The device, and what it gives at best.
fn surroundings(args: &ModelBenchArgs, quiet: bool) -> Result<(Place, Ceilings), Error> {
    let [dtype, ..] = args.dtype[..] else { unreachable!("clap asks for a value") };
    let (stream, choice) = args.device.open(Dtype::from(dtype), args.threads.map(Into::into))?;
    if let Some(because) = &choice.because
        && !quiet
    {
        report::line(&format!("running on cpu: {because}"));
    }
    let weight_type = match dtype {
        DtypeArg::F16 => ElementType::F16,
        DtypeArg::Bf16 => ElementType::BF16,
        DtypeArg::Auto | DtypeArg::F32 => ElementType::F32,
    };
    let device = choice.devices.first().and_then(|device| device.split(' ').next()).unwrap_or_default();
    let mut ceilings = Bench::new(&stream, weight_type)
        .and_then(|bench| bench.ceilings(args.seconds.min(CEILING_SECONDS)))
        .map_err(outcrop::Error::from)?;
    if let Some(tflops) = args.ceiling {
        ceilings.flops_per_second = 1e12 * tflops;
    }
    Ok((Place::of(&stream, device, dtype.name()), ceilings))
}

/// What records of one model have in common.
fn name_of(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What came of a setting.
struct Row<'a> {
    setting: &'a Setting,
    seen: Seen,
    /// To the baseline.
    ratio: Option<f64>,
    profiled: Option<Profiled>,
}

/// Where the time of a setting's first call goes.
struct Profiled {
    profile: Profile,
    /// Milliseconds that the device is busy with the call when no kernel is timed.
    device_ms: f64,
}

/// A run under way.
struct Run<'a> {
    args: &'a ModelBenchArgs,
    place: Place,
    ceilings: Ceilings,
    baseline: Option<Baseline>,
    /// One of each kind.
    engines: Vec<Engine>,
    workloads: Vec<Workload>,
    settings: Vec<Setting>,
}

impl Run<'_> {
    /// Times every setting: a table, or a record as JSON.
    fn table(&self, dir: &Path, quiet: bool) -> Result<Status, Error> {
        let args = self.args;
        let mut output = Output::create(None)?;
        // Now, so that what cannot be written is not found out at the end.
        let mut file = args.output.as_deref().map(|path| Output::create(Some(path))).transpose()?;
        let mut picture = args.svg.as_deref().map(|path| Output::create(Some(path))).transpose()?;
        let first = args.first.map(|count| first::measure(count.get())).transpose()?;
        let mut rows = Vec::with_capacity(self.settings.len());
        for (setting, seen) in self.settings.iter().zip(self.time()?) {
            let profiled = (args.profile || args.svg.is_some()).then(|| self.profile(setting)).transpose()?;
            let ratio = self.baseline.as_ref().and_then(|old| old.ratio(&setting.name, seen.wall_ms(0.5)));
            rows.push(Row { setting, seen, ratio, profiled });
        }
        for engine in &self.engines {
            model::warn(engine, quiet);
        }

        let ratios: Vec<(&str, f64)> =
            rows.iter().filter_map(|row| Some((row.setting.name.as_str(), row.ratio?))).collect();
        let is_missed = |name: &str| !self.settings.iter().any(|setting| setting.name == name);
        let summary = self.baseline.as_ref().map(|baseline| baseline.summary(&ratios, is_missed));
        let record = self.record(dir, &rows, first.as_ref(), summary.as_ref().map(|(object, _)| object));
        if args.json {
            output.json_line(&record)?;
        } else {
            output.text(&self.about(dir, first.as_ref()))?;
            output.text(&table::settings(&rows, self.ceilings.flops_per_second, self.baseline.is_some()))?;
            output.text(summary.as_ref().map_or("", |(_, text)| text))?;
            for row in rows.iter().filter(|_| args.profile) {
                output.text(&table::profile(row, self.ceilings))?;
            }
        }
        output.flush()?;
        if let Some(file) = &mut file {
            file.text(&(serde_json::to_string_pretty(&record).unwrap_or_default() + "\n"))?;
            file.flush()?;
        }
        if let Some(picture) = &mut picture {
            let named = |row: &Row<'_>| -> Option<(String, Profile)> {
                Some((row.setting.name.clone(), row.profiled.as_ref()?.profile.clone()))
            };
            let profiles: Vec<(String, Profile)> = rows.iter().filter_map(named).collect();
            picture.text(&svg::picture(&profiles, self.ceilings))?;
            picture.flush()?;
        }
        let slower = slower(&ratios, args.fail_below);
        if !slower.is_empty() && !quiet {
            let limit = args.fail_below.unwrap_or_default();
            report::line(&format!("below {limit} of the baseline: {}", slower.join(", ")));
        }
        Ok(Status::of(slower.len() as u64))
    }

    /// Everything that was measured.
    fn record(
        &self,
        dir: &Path,
        rows: &[Row<'_>],
        first: Option<&Value>,
        summary: Option<&Value>,
    ) -> Map<String, Value> {
        let mut record = record::head(self.args.commit.as_deref(), &self.place);
        let mut fact = |name: &str, value: Value| record.insert(name.to_owned(), value);
        fact("model", json!(name_of(dir)));
        fact("architecture", json!(self.engines[0].config().architecture().name()));
        fact("seconds_per_row", json!(self.args.seconds));
        fact("rounds", json!(self.args.rounds));
        fact("ceilings", record::ceilings(self.ceilings));
        fact("first_score", json!(first));
        let line = |row: &Row<'_>| {
            let mut line = Map::from_iter([("name".to_owned(), json!(row.setting.name))]);
            line.extend(row.setting.facts.clone());
            line.extend(row.seen.facts(self.ceilings.flops_per_second));
            if self.baseline.is_some() {
                line.insert("ratio".to_owned(), json!(row.ratio));
            }
            if let Some(profiled) = &row.profiled {
                line.insert("profile".to_owned(), kernels(profiled, self.ceilings));
            }
            Value::Object(line)
        };
        if let Some(summary) = summary {
            fact("baseline", summary.clone());
        }
        fact("rows", rows.iter().map(line).collect());
        record
    }

    /// What stands above the table.
    fn about(&self, dir: &Path, first: Option<&Value>) -> String {
        let Place { name, details, .. } = &self.place;
        let (product, copy) = (self.ceilings.flops_per_second, self.ceilings.bytes_per_second);
        let mut text = format!(
            "{}, {name}: {details}\nceilings of this run: {}, {}\n",
            name_of(dir),
            super::table::rate(product, false),
            super::table::rate(copy, true)
        );
        if let Some(first) = first {
            let seconds = first["median_s"].as_f64().unwrap_or(f64::NAN);
            text += &format!("first score of a fresh process: {seconds:.3} s\n");
        }
        text
    }

    /// Calls of every setting for its share of the seconds, in rounds that each start with another setting.
    fn time(&self) -> Result<Vec<Seen>, Error> {
        let mut flops = Vec::with_capacity(self.settings.len());
        for setting in &self.settings {
            let (engine, workload) = self.of(setting);
            let of_call = |call: &texts::Call| engine.flops(&call.pairs(), &setting.options);
            flops.push(workload.calls.iter().map(of_call).collect::<Result<Vec<u64>, _>>()?);
            for call in &workload.calls {
                for _ in 0..WARM_UP_CALLS {
                    call.run(engine, &setting.options)?;
                }
            }
        }
        let mut all_seen: Vec<Seen> = self.settings.iter().map(|_| Seen::default()).collect();
        let rounds = self.args.rounds.get();
        for round in 0..rounds {
            for turn in 0..self.settings.len() {
                let index = (round + turn) % self.settings.len();
                let (setting, seen) = (&self.settings[index], &mut all_seen[index]);
                let (engine, workload) = self.of(setting);
                seen.begin_round();
                let start = Instant::now();
                // Every text counts as often as the others.
                for (call, flops) in workload.calls.iter().zip(&flops[index]).cycle() {
                    let (scores, timings) = engine.time(|| call.run(engine, &setting.options))?;
                    seen.push(timings, scores.len(), scores.iter().map(|(tokens, _)| tokens).sum(), *flops);
                    if start.elapsed().as_secs_f64() >= self.args.seconds / rounds as f64 {
                        break;
                    }
                }
            }
        }
        Ok(all_seen)
    }

    /// The fastest of a few.
    fn profile(&self, setting: &Setting) -> Result<Profiled, Error> {
        let (engine, workload) = self.of(setting);
        let run = || workload.calls[0].run(engine, &setting.options);
        let (mut fastest, mut device) = (engine.profile(run)?.1, engine.time(run)?.1.device);
        for _ in 1..PROFILES {
            let profile = engine.profile(run)?.1;
            if parts::total_ms(&profile) < parts::total_ms(&fastest) {
                fastest = profile;
            }
            device = device.min(engine.time(run)?.1.device);
        }
        Ok(Profiled { profile: fastest, device_ms: 1e3 * device.as_secs_f64() })
    }

    /// Runs all calls of the setting whose name comes on standard input, a JSON line for each: for whoever drives the rounds of a
    /// comparison.
    fn lines(&self) -> Result<Status, Error> {
        let mut output = Output::create(None)?;
        for setting in &self.settings {
            let (engine, workload) = self.of(setting);
            engine.prepare(&setting.options)?;
            let pairs: usize = workload.calls.iter().map(|call| call.pairs().len()).sum();
            output.json_line(&json!({ "name": setting.name, "pairs": pairs }))?;
        }
        output.flush()?;
        let mut num_failed = 0;
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|source| Error::Read { from: "standard input".to_owned(), source })?;
            let answer = match self.settings.iter().find(|setting| setting.name == line.trim()) {
                None => {
                    num_failed += 1;
                    json!({ "name": line.trim(), "error": "no such setting: the first lines name them" })
                }
                Some(setting) => {
                    let (engine, workload) = self.of(setting);
                    let (scores, timings) = engine.time(|| {
                        let of_call = |call: &texts::Call| call.run(engine, &setting.options);
                        Ok(workload.calls.iter().map(of_call).collect::<Result<Vec<_>, _>>()?.concat())
                    })?;
                    json!({
                        "name": setting.name,
                        "seconds": timings.wall.as_secs_f64(),
                        "device_s": timings.device.as_secs_f64(),
                        "tokenize_s": timings.tokenize.as_secs_f64(),
                        "tokens": scores.iter().map(|(tokens, _)| tokens).sum::<usize>(),
                        "scores": scores.iter().map(|(_, score)| score).collect::<Vec<_>>(),
                    })
                }
            };
            output.json_line(&answer)?;
            output.flush()?;
        }
        Ok(Status::of(num_failed))
    }

    fn of(&self, setting: &Setting) -> (&Engine, &Workload) {
        (&self.engines[setting.engine], &self.workloads[setting.workload])
    }
}

/// A profile for the record: calls of a kernel at a shape, part by part.
fn kernels(profiled: &Profiled, ceilings: Ceilings) -> Value {
    let of_part = |part: parts::Part| {
        let label = part.label;
        part.cells.into_iter().map(move |cell| {
            json!({
                "part": label.name,
                "index": label.index,
                "kernel": cell.kernel,
                "shape": cell.shape,
                "calls": cell.calls,
                "ms": cell.ms,
                "flops": cell.cost.flops,
                "bytes": cell.cost.bytes,
                "of_ceiling": 1e3 * ceilings.least_seconds(cell.cost).0 / cell.ms,
                "instances": cell.instances,
            })
        })
    };
    json!({
        "ms": parts::total_ms(&profiled.profile),
        "unprofiled_device_ms": profiled.device_ms,
        "kernels": parts::parts(&profiled.profile).into_iter().flat_map(of_part).collect::<Vec<_>>(),
    })
}
