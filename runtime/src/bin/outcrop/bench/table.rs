//! The table for people: a line a row, as it is measured.

use outcrop::LoadedKernel;
use outcrop::bench::{Ceilings, Difference};

use super::record::Seen;
use super::rows::Row;
use crate::error::Error;
use crate::output::Output;

/// A table under way.
pub(super) struct Table {
    name_width: usize,
    has_baseline: bool,
    /// None where built-in and variant are compared, for which they do not matter.
    ceilings: Option<Ceilings>,
    /// What stands above the first row.
    head: Option<String>,
    /// The kernel of the row before: another one's begin behind a blank line.
    group: Option<&'static str>,
}

impl Table {
    /// `about` says where the rows are timed.
    pub(super) fn new(about: &str, rows: &[Row], has_baseline: bool, ceilings: Option<Ceilings>) -> Table {
        let name_width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(3);
        let mut table = Table { name_width, has_baseline, ceilings, head: None, group: None };
        table.head = Some(format!("{about}\n{}", table.columns()));
        table
    }

    /// The ceilings, and the names of the columns.
    fn columns(&self) -> String {
        let (ceilings, columns) = match self.ceilings {
            Some(ceilings) => {
                let product = rate(ceilings.flops_per_second, false);
                let copy = rate(ceilings.bytes_per_second, true);
                let side = ceilings.product.shape()[0].1;
                let baseline = if self.has_baseline { format!("{:>10}", "baseline") } else { String::new() };
                (
                    format!(
                        "ceilings of this run: {product} (gemm, {side} cubed), {copy} (copy_block, read and written)\n"
                    ),
                    format!(
                        "{:>12}{:>17}{:>16}{:>9}{baseline}{:>6}{:>9}{:>7}  kernel",
                        "median us", "p10, p90 %", "rate", "ceiling", "regs", "shared", "local"
                    ),
                )
            }
            None => (
                String::new(),
                format!(
                    "{:>14}{:>14}{:>9}{:>15}  {:30}kernel",
                    "built-in us", "variant us", "ratio", "p10, p90", "results"
                ),
            ),
        };
        format!("{ceilings}\n{:width$}{columns}\n", "row", width = self.name_width)
    }

    /// A row; `ratio` to its baseline if it has one.
    pub(super) fn row(
        &mut self,
        output: &mut Output,
        row: &Row,
        seen: &Result<Seen, String>,
        ratio: Option<f64>,
    ) -> Result<(), Error> {
        if let Some(head) = self.head.take() {
            output.text(&head)?;
        }
        let kernel = row.call.kernel();
        if self.group.replace(kernel).is_some_and(|before| before != kernel) {
            output.text("\n")?;
        }
        let cells = match (seen, self.ceilings) {
            // The record has the rest of it.
            (Err(error), _) => format!("  failed: {}", error.lines().next().unwrap_or_default()),
            (Ok(seen), None) => variant_cells(seen),
            (Ok(seen), Some(ceilings)) => self.cells(seen, ceilings, ratio),
        };
        output.text(&format!("{:width$}{cells}\n", row.name, width = self.name_width))?;
        // Whoever watches sees it now.
        output.flush()
    }

    fn cells(&self, seen: &Seen, ceilings: Ceilings, ratio: Option<f64>) -> String {
        let (median, times) = (seen.times.median_us(), &seen.times);
        let (least, is_bandwidth) = ceilings.least_seconds(seen.cost);
        let amount = if is_bandwidth { seen.cost.bytes } else { seen.cost.flops };
        let percent = |value: f64| format!("{:+.1}", 100.0 * (value / median - 1.0));
        let baseline = match ratio {
            Some(ratio) => format!("{ratio:10.3}"),
            None if self.has_baseline => format!("{:>10}", "new"),
            None => String::new(),
        };
        format!(
            "{median:12.2}{:>10}{:>7}{:>16}{:>7.0} %{baseline}{}",
            percent(times.quantile(0.1)),
            percent(times.quantile(0.9)),
            rate(1e6 * amount as f64 / median, is_bandwidth),
            1e8 * least / median,
            kernel_cells(&seen.kernels)
        )
    }
}

fn variant_cells(seen: &Seen) -> String {
    let Some(comparison) = &seen.comparison else { return String::new() };
    let (ratios, difference) = (&comparison.ratios, comparison.difference);
    format!(
        "{:14.2}{:14.2}{:9.3}{:8.3}{:7.3}  {:30}{}",
        comparison.built_in.median_us(),
        comparison.variant.median_us(),
        ratios.quantile(0.5),
        ratios.quantile(0.1),
        ratios.quantile(0.9),
        results(difference),
        comparison.kernels.iter().map(described).collect::<Vec<_>>().join(", ")
    )
}

/// How the results compare, in a few words.
fn results(difference: Difference) -> String {
    let Difference { different, elements, largest, magnitude } = difference;
    if different == 0 {
        return "bits equal".to_owned();
    }
    let share = 100.0 * different as f64 / elements as f64;
    if largest.is_infinite() {
        return format!("NOT FINITE, {share:.2} % differ");
    }
    format!("{largest:.1e} of {magnitude:.1e}, {share:.2} %")
}

/// Registers, shared and local memory, and the name; on the CPU there are none.
fn kernel_cells(kernels: &[LoadedKernel]) -> String {
    let [first, others @ ..] = kernels else { return format!("{:>6}{:>9}{:>7}  -", "-", "-", "-") };
    let shared = format!("{:.1} K", f64::from(first.shared_bytes) / 1024.0);
    let names = others.iter().fold(first.name.clone(), |names, kernel| names + ", " + &described(kernel));
    format!("{:6}{shared:>9}{:7}  {names}", first.resources.registers, first.resources.local_bytes)
}

fn described(kernel: &LoadedKernel) -> String {
    format!(
        "{} ({} registers, {} bytes local)",
        kernel.name, kernel.resources.registers, kernel.resources.local_bytes
    )
}

/// Operations or bytes a second in the unit that suits.
pub(super) fn rate(per_second: f64, is_bytes: bool) -> String {
    match (is_bytes, per_second >= 1e12) {
        (true, _) => format!("{:.1} GB/s", per_second / 1e9),
        (false, true) => format!("{:.1} TFLOP/s", per_second / 1e12),
        (false, false) => format!("{:.1} GFLOP/s", per_second / 1e9),
    }
}
