//! The tables for people.

use outcrop::bench::Ceilings;

use super::super::table::rate;
use super::parts::{kernels, names, parts, total_ms};
use super::{Profiled, Row};

/// All settings.
pub(super) fn settings(rows: &[Row<'_>], ceiling: f64, has_baseline: bool) -> String {
    let width = rows.iter().map(|row| row.setting.name.len()).max().unwrap_or(0).max(5);
    let baseline = if has_baseline { "  baseline" } else { "" };
    let mut text = format!(
        "\n{:width$}{:>10}{:>10}{:>10}{:>10}{:>10}{:>11}{:>10}{:>9}{:>16}{:>9}{baseline}\n",
        "texts",
        "pairs/s",
        "tokens/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "device ms",
        "tokenise",
        "host",
        "rate",
        "ceiling"
    );
    for Row { setting, seen, ratio, .. } in rows {
        let name = &setting.name;
        text += &format!(
            "{name:width$}{:10}{:10.0}{:10.3}{:10.3}{:10.3}{:11.3}{:10.3}{:9.3}{:>16}{:7.0} %",
            number(seen.pairs_per_second()),
            seen.tokens_per_second(),
            seen.wall_ms(0.5),
            seen.wall_ms(0.95),
            seen.wall_ms(0.99),
            seen.device_ms(),
            seen.tokenize_ms(),
            seen.host_ms(),
            rate(seen.flops_per_second(), false),
            100.0 * seen.flops_per_second() / ceiling
        );
        text += &match ratio {
            Some(ratio) => format!("{ratio:10.3}\n"),
            None if has_baseline => format!("{:>10}\n", "new"),
            None => "\n".to_owned(),
        };
    }
    text
}

/// Whole where it is large.
fn number(number: f64) -> String {
    if number >= 100.0 { format!("{number:10.0}") } else { format!("{number:10.2}") }
}

/// A profile, if there is one: kernel by kernel, then layer by layer.
pub(super) fn profile(row: &Row<'_>, ceilings: Ceilings) -> String {
    let Some(Profiled { profile, device_ms }) = &row.profiled else { return String::new() };
    let total = total_ms(profile);
    let cells = kernels(profile);
    let width = cells.iter().map(|cell| cell.name().len()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "\n{}: {total:.3} ms in {} kernel calls, one by one; unprofiled the call takes {device_ms:.3} ms on the device\n\n\
         {:width$}{:>7}{:>11}{:>9}{:>17}{:>9}  instances\n",
        row.setting.name,
        profile.kernels.len(),
        "kernel",
        "calls",
        "ms",
        "share",
        "rate",
        "ceiling"
    );
    for cell in &cells {
        let (least, is_bandwidth) = ceilings.least_seconds(cell.cost);
        let amount = if is_bandwidth { cell.cost.bytes } else { cell.cost.flops };
        text += &format!(
            "{:width$}{:7}{:11.3}{:7.1} %{:>17}{:7.0} %  {}\n",
            cell.name(),
            cell.calls,
            cell.ms,
            100.0 * cell.ms / total,
            rate(1e3 * amount as f64 / cell.ms, is_bandwidth),
            1e5 * least / cell.ms,
            if cell.instances.is_empty() { "-".to_owned() } else { cell.instances.join(", ") }
        );
    }
    let names = names(profile);
    let width_of = |name: &str| (name.len() + 2).max(9);
    text += &format!("\n{:12}", "ms");
    names.iter().for_each(|name| text += &format!("{name:>width$}", width = width_of(name)));
    text += &format!("{:>10}{:>9}\n", "together", "share");
    for part in parts(profile) {
        text += &format!("{:12}", part.label.to_string());
        for name in &names {
            let ms: f64 = part.cells.iter().filter(|cell| cell.kernel == *name).map(|cell| cell.ms).sum();
            let shown = if ms == 0.0 { String::new() } else { format!("{ms:.3}") };
            text += &format!("{shown:>width$}", width = width_of(name));
        }
        text += &format!("{:10.3}{:7.1} %\n", part.ms(), 100.0 * part.ms() / total);
    }
    text
}
