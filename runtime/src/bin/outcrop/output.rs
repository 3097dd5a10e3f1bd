//! Where results go: standard output, a file, or the directory of a model that is made.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

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
        Ok(Output::new(name, writer))
    }

    /// Writes to `writer`, which messages call `name`.
    pub(crate) fn new(name: String, writer: Box<dyn Write>) -> Output {
        Output { name, writer: BufWriter::new(writer) }
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

/// Makes the directory of a model. One with something in it is refused unless `force`; then its weight files are
/// taken away, because a reader would prefer them to those that are written now.
pub(crate) fn prepare_dir(dir: &Path, force: bool) -> Result<(), Error> {
    let failed = |source| Error::Write { to: dir.display().to_string(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !force {
            return Err(Error::NotEmpty { dir: dir.to_owned() });
        }
        if is_weights(&path) {
            fs::remove_file(&path)
                .map_err(|source| Error::Write { to: path.display().to_string(), source })?;
        }
    }
    Ok(())
}

/// Whether a file holds weights in the safetensors format, or says where they are.
fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let single_or_shard = name.starts_with("model-") || name == "model.safetensors";
    single_or_shard && name.ends_with(".safetensors") || name == "model.safetensors.index.json"
}

/// Writes a JSON file into the directory of a model.
pub(crate) fn write_json(dir: &Path, name: &str, value: &Value) -> Result<(), Error> {
    write_file(dir, name, |file| {
        // The tokenizer has a quarter of a million entries; the others are for reading.
        match name {
            "tokenizer.json" => serde_json::to_writer(&mut *file, value)?,
            _ => serde_json::to_writer_pretty(&mut *file, value)?,
        }
        file.write_all(b"\n")
    })
}

/// Writes a file into the directory of a model. It gets its name when it is complete, and a link of that name is
/// replaced, not followed.
pub(crate) fn write_file(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Error> {
    let path = dir.join(name);
    let part = dir.join(format!("{name}.part"));
    let write = || -> io::Result<()> {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = BufWriter::new(File::create_new(&part)?);
        write(&mut file)?;
        file.flush()?;
        drop(file);
        fs::rename(&part, &path)
    };
    write().map_err(|source| Error::Write { to: path.display().to_string(), source })
}
