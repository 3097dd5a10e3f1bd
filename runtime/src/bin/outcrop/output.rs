//! Where results go: standard output or a file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::error::Error;

/// An opened output.
pub(crate) struct Output {
    name: String,
    writer: BufWriter<Box<dyn Write>>,
}

impl Output {
    /// Makes or replaces a file; `None` is standard output.
    pub(crate) fn create(path: Option<&Path>) -> Result<Output, Error> {
        let (name, writer): (String, Box<dyn Write>) = match path {
            None => ("standard output".to_owned(), Box::new(io::stdout().lock())),
            Some(path) => (path.display().to_string(), Box::new(create_file(path)?)),
        };
        Ok(Output { name, writer: BufWriter::new(writer) })
    }

    /// Writes a value as JSON without a line break.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        serde_json::to_writer(&mut self.writer, value).map_err(|error| self.failed(error.into()))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        self.json(value)?;
        self.text("\n")
    }

    /// Writes text as it is.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.writer.write_all(text.as_bytes()).map_err(|source| self.failed(source))
    }

    /// Hands everything written so far to the operating system, where it outlives this process.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.writer.flush().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Write { to: self.name.clone(), source }
    }
}

/// Makes or replaces a file.
pub(crate) fn create_file(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|source| Error::Write { to: path.display().to_string(), source })
}

/// Refuses an output that is the input under any name.
pub(crate) fn check_distinct(input: &Path, output: Option<&Path>) -> Result<(), Error> {
    let Some(output) = output else { return Ok(()) };
    match (fs::canonicalize(input), fs::canonicalize(output)) {
        (Ok(a), Ok(b)) if a == b && a.is_file() => Err(Error::OutputIsInput { path: output.to_owned() }),
        _ => Ok(()),
    }
}
