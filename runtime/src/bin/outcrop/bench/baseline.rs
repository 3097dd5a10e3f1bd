//! An earlier record, and how today's rows compare with its own.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::record::Place;
use crate::error::Error;

/// An earlier record.
pub(super) struct Baseline {
    pub(super) date: String,
    pub(super) commit: Option<String>,
    /// The model, of `bench model`.
    pub(super) model: Option<String>,
    path: PathBuf,
    /// Rows that were timed and their medians, in their order.
    medians: Vec<(String, f64)>,
}

impl Baseline {
    /// Reads a record of `outcrop bench {what}` of this very device and type, or with `--any-device` of any. Rows have their median
    /// in the field `median`.
    pub(super) fn read(
        path: &Path,
        place: &Place,
        any_device: bool,
        (what, median): (&'static str, &str),
    ) -> Result<Baseline, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::Read { from: path.display().to_string(), source })?;
        let refused =
            |reason: &str| Error::Baseline { path: path.to_owned(), what, reason: reason.to_owned() };
        let record: Value = serde_json::from_str(&text).map_err(|error| refused(&error.to_string()))?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let rows = record["rows"].as_array().ok_or_else(|| refused("it has no `rows`"))?;
        let device = text(&record["device"]["name"]).ok_or_else(|| refused("it names no device"))?;
        let dtype = text(&record["dtype"]).ok_or_else(|| refused("it names no dtype"))?;
        let (threads, now) = (&record["device"]["threads"], &place.json["threads"]);
        if !any_device && (device != place.name || dtype != place.dtype || threads != now) {
            let of = |name: &str, dtype: &str, threads: &Value| match threads {
                Value::Null => format!("{name} in {dtype}"),
                threads => format!("{name} in {dtype} with {threads} threads"),
            };
            return Err(Error::OtherDevice {
                path: path.to_owned(),
                baseline: of(&device, &dtype, threads),
                now: of(&place.name, place.dtype, now),
            });
        }
        // Rows that failed have no time.
        let timed = |row: &Value| Some((text(&row["name"])?, row[median].as_f64()?));
        Ok(Baseline {
            date: text(&record["date"]).unwrap_or_default(),
            commit: text(&record["commit"]),
            model: text(&record["model"]),
            path: path.to_owned(),
            medians: rows.iter().filter_map(timed).collect(),
        })
    }

    /// How many times faster a row is now than it was; `None` if it was not timed then.
    pub(super) fn ratio(&self, name: &str, median_now: f64) -> Option<f64> {
        let (_, median) = self.medians.iter().find(|(there, _)| there == name)?;
        Some(median / median_now)
    }

    /// What the ratios come to, as JSON and in words; `is_missed` says of a row of the baseline that it was asked for and is not there.
    pub(super) fn summary(
        &self,
        ratios: &[(&str, f64)],
        is_missed: impl Fn(&str) -> bool,
    ) -> (Value, String) {
        let values: Vec<f64> = ratios.iter().map(|(_, ratio)| *ratio).collect();
        let mean = geometric_mean(&values);
        let names = self.medians.iter().map(|(name, _)| name.as_str());
        let only_there: Vec<&str> = names.filter(|name| is_missed(name)).collect();
        let of = format!("{}, commit {}", self.date, self.commit.as_deref().unwrap_or("unknown"));
        let mut text = match ratios {
            [] => format!("\nnone of these rows is in the baseline of {of}\n"),
            _ => format!(
                "\n{} rows beside those of {of}: geometric mean of the ratios {mean:.3} (above 1: faster now)\n",
                ratios.len()
            ),
        };
        if !only_there.is_empty() {
            text += &format!("in the baseline alone: {}\n", only_there.join(", "));
        }
        let object = json!({
            "file": self.path.display().to_string(),
            "date": self.date,
            "commit": self.commit,
            "rows": ratios.len(),
            "geometric_mean": mean,
            "in_baseline_alone": only_there,
        });
        (object, text)
    }
}

/// The rows that are not as fast as `limit` asks for.
pub(super) fn slower<'a>(ratios: &[(&'a str, f64)], limit: Option<f64>) -> Vec<&'a str> {
    let limit = limit.unwrap_or(0.0);
    let is_slower = |ratio: f64| ratio < limit || ratio.is_nan();
    ratios.iter().filter(|(_, ratio)| is_slower(*ratio)).map(|(name, _)| *name).collect()
}

/// The geometric mean, the one mean that ratios have.
pub(super) fn geometric_mean(ratios: &[f64]) -> f64 {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}
