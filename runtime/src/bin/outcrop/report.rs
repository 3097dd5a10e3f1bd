//! What is said on standard error, one line at a time.

use std::error::Error;
use std::io::{self, Write};

/// Prints a line with the program's name in front. A closed standard error is no reason to stop.
pub(crate) fn line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "outcrop: {text}");
}

/// Prints an error with everything that caused it, the outermost first.
pub(crate) fn error(error: &dyn Error) {
    line(&chain(error));
}

/// An error and its causes in one text, separated by colons. Some libraries put the cause into their own text as well:
/// it is not said twice.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}
