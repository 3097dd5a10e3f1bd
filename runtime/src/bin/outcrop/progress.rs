//! Progress and summary of the commands that work through a file.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::lines::Input;
use crate::{Status, report};

/// How the bars look: a file of known size, a pipe, a download.
pub(crate) const TEMPLATES: [&str; 3] = [
    "{wide_bar} {percent}% {msg}, {eta} left",
    "{spinner} {msg}",
    "{msg} {wide_bar} {bytes}/{total_bytes}, {eta} left",
];

/// What has been done so far.
pub(crate) struct Progress {
    bar: ProgressBar,
    quiet: bool,
    started: Instant,
    /// What is counted, in the plural.
    noun: &'static str,
    pub(crate) done: u64,
    pub(crate) tokens: u64,
    pub(crate) truncated: u64,
    pub(crate) failed: u64,
    pub(crate) blank: u64,
}

impl Progress {
    /// A bar over the bytes of the input, on standard error if that is a terminal. `output` is where the results go:
    /// no bar is drawn between results on a terminal.
    pub(crate) fn new(input: &Input, output: Option<&Path>, noun: &'static str, quiet: bool) -> Progress {
        let hidden = quiet || output.is_none() && io::stdout().is_terminal();
        let bar = match (hidden, input.bytes) {
            (true, _) => ProgressBar::hidden(),
            (false, Some(bytes)) => styled(ProgressBar::new(bytes), TEMPLATES[0]),
            (false, None) => styled(ProgressBar::no_length(), TEMPLATES[1]),
        };
        bar.set_message(format!("0 {noun}"));
        bar.enable_steady_tick(Duration::from_millis(200));
        let started = Instant::now();
        Progress { bar, quiet, started, noun, done: 0, tokens: 0, truncated: 0, failed: 0, blank: 0 }
    }

    /// Counts a result.
    pub(crate) fn result(&mut self, tokens: usize, truncated: bool) {
        self.done += 1;
        self.tokens += tokens as u64;
        self.truncated += u64::from(truncated);
    }

    /// Moves the bar on by the input of a block.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.bar.set_message(format!("{} {}, {:.0} tokens/s", self.done, self.noun, self.rate(self.tokens)));
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
        Status::of(self.failed)
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "{} {} and {} tokens in {:.1} s ({:.1} {}/s, {:.0} tokens/s), {} truncated",
            self.done,
            self.noun,
            self.tokens,
            self.started.elapsed().as_secs_f64(),
            self.rate(self.done),
            self.noun,
            self.rate(self.tokens),
            self.truncated,
        );
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", self.failed));
        }
        if self.blank > 0 {
            text.push_str(&format!(", {} blank lines skipped", self.blank));
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
