//! Progress and summary of the commands that work through a file.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::{Status, report};

/// How the bars look: a file of known size, a pipe, a download.
pub(crate) const TEMPLATES: [&str; 3] = [
    "{wide_bar} {percent}% {msg}, {eta} left",
    "{spinner} {msg}",
    "{msg} {wide_bar} {bytes}/{total_bytes}, {eta} left",
];

/// What has been done so far.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) tokens: u64,
    pub(crate) truncated: u64,
    pub(crate) failed: u64,
    pub(crate) blank: u64,
}

/// The summary for programs. What an earlier run had done is in the counts of an output that this one went on with, and not in
/// time and rates.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pairs: u64,
    tokens: u64,
    truncated: u64,
    failed: u64,
    blank_lines: u64,
    /// Pairs that were there before this run.
    resumed_pairs: u64,
    seconds: f64,
    pairs_per_second: f64,
    tokens_per_second: f64,
}

/// What has been done so far, shown as a bar and at the end as a summary.
pub(crate) struct Progress {
    bar: ProgressBar,
    quiet: bool,
    started: Instant,
    /// What is counted, in the plural.
    noun: &'static str,
    pub(crate) counts: Counts,
    /// What an earlier run had done that this one goes on from.
    before: Counts,
}

impl Progress {
    /// A bar over the length of the input, on standard error if that is a terminal. `output` is where the results go:
    /// no bar is drawn between results on a terminal.
    pub(crate) fn new(
        length: Option<u64>,
        output: Option<&Path>,
        noun: &'static str,
        quiet: bool,
    ) -> Progress {
        let hidden = quiet || output.is_none() && io::stdout().is_terminal();
        let bar = match (hidden, length) {
            (true, _) => ProgressBar::hidden(),
            (false, Some(length)) => styled(ProgressBar::new(length), TEMPLATES[0]),
            (false, None) => styled(ProgressBar::no_length(), TEMPLATES[1]),
        };
        bar.set_message(format!("0 {noun}"));
        bar.enable_steady_tick(Duration::from_millis(200));
        let counts = Counts::default();
        Progress { bar, quiet, started: Instant::now(), noun, before: counts.clone(), counts }
    }

    /// Goes on from what an earlier run had done when it was `position` into the input.
    pub(crate) fn resume(&mut self, counts: &Counts, position: u64) {
        (self.before, self.counts) = (counts.clone(), counts.clone());
        self.bar.set_position(position);
        // What is left is estimated from this run alone.
        self.bar.reset_eta();
    }

    /// Counts a result.
    pub(crate) fn result(&mut self, tokens: usize, truncated: bool) {
        self.counts.done += 1;
        self.counts.tokens += tokens as u64;
        self.counts.truncated += u64::from(truncated);
    }

    /// Moves the bar on by a part of the input.
    pub(crate) fn advance(&self, length: u64) {
        self.bar.inc(length);
        let tokens = self.rate(self.counts.tokens - self.before.tokens);
        self.bar.set_message(format!("{} {}, {tokens:.0} tokens/s", self.counts.done, self.noun));
    }

    /// Prints a line without disturbing the bar.
    pub(crate) fn report(&self, text: &str) {
        self.bar.suspend(|| report::line(text));
    }

    /// Takes the bar away and prints the summary.
    pub(crate) fn finish(self) -> Status {
        self.bar.finish_and_clear();
        if !self.quiet {
            report::line(&self.summary());
        }
        Status::of(self.counts.failed)
    }

    /// The summary for programs, of a run that scores pairs.
    pub(crate) fn summary_of_pairs(&self) -> Summary {
        let Counts { done, tokens, truncated, failed, blank } = self.counts;
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        Summary {
            pairs: done,
            tokens,
            truncated,
            failed,
            blank_lines: blank,
            resumed_pairs: self.before.done,
            seconds,
            pairs_per_second: (done - self.before.done) as f64 / seconds,
            tokens_per_second: (tokens - self.before.tokens) as f64 / seconds,
        }
    }

    fn summary(&self) -> String {
        let Counts { done, tokens, truncated, failed, blank } = self.counts;
        let (new, new_tokens) = (done - self.before.done, tokens - self.before.tokens);
        let mut text = format!("{done} {} and {tokens} tokens", self.noun);
        if self.before != Counts::default() {
            text.push_str(&format!(", {new} and {new_tokens} of them now"));
        }
        text.push_str(&format!(
            " in {:.1} s ({:.1} {}/s, {:.0} tokens/s), {truncated} truncated",
            self.started.elapsed().as_secs_f64(),
            self.rate(new),
            self.noun,
            self.rate(new_tokens),
        ));
        if failed > 0 {
            text.push_str(&format!(", {failed} failed"));
        }
        if blank > 0 {
            text.push_str(&format!(", {blank} blank lines skipped"));
        }
        text
    }

    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// A bar that shows one file of a download after the other.
pub(crate) fn download_bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    styled(ProgressBar::no_length(), TEMPLATES[2])
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    // A template that does not parse would leave the default style; a test parses all of them.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
