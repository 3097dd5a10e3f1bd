//! The files of a model beside its weights.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::plan::read_json;
use crate::error::Error;
use crate::output::write_file;

/// What tokenizers, configurations, model code and descriptions are called.
const EXTENSIONS: [&str; 6] = ["json", "model", "txt", "md", "py", "jinja"];

/// Larger files are neither of these. The largest published tokenizers have 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// The files of a model directory, as `convert` treats them.
pub(crate) struct Files {
    dir: PathBuf,
    /// Relative paths.
    copied: Vec<PathBuf>,
    /// Names of files and folders that stay behind; those of the weights are not among them.
    left: Vec<String>,
}

impl Files {
    /// Looks through the directory, and through the folders that its modules.json names.
    ///
    /// # Errors
    ///
    /// A directory or modules.json cannot be read.
    pub(crate) fn of(dir: &Path) -> Result<Files, Error> {
        let mut files = Files { dir: dir.to_owned(), copied: Vec::new(), left: Vec::new() };
        let modules = dir.join("modules.json");
        let modules = if modules.exists() { read_json(&modules)? } else { Value::Null };
        let modules: Vec<&str> =
            modules.as_array().into_iter().flatten().filter_map(|module| module["path"].as_str()).collect();
        for (name, is_dir) in entries(dir)? {
            if is_dir && modules.contains(&name.as_str()) {
                for (inner, is_dir) in entries(&dir.join(&name))? {
                    files.sort(Path::new(&name).join(inner), is_dir);
                }
            } else if !is_replaced(&name) {
                files.sort(PathBuf::from(name), is_dir);
            }
        }
        Ok(files)
    }

    /// Copies them into `out`.
    ///
    /// # Errors
    ///
    /// A file cannot be read or written.
    pub(crate) fn copy(&self, out: &Path) -> Result<(), Error> {
        for path in &self.copied {
            let from = self.dir.join(path);
            let source = File::open(&from)
                .map_err(|source| Error::Read { from: from.display().to_string(), source })?;
            let to = out.join(path);
            let (Some(dir), Some(name)) = (to.parent(), to.file_name()) else { continue };
            fs::create_dir_all(dir)
                .map_err(|source| Error::Write { to: dir.display().to_string(), source })?;
            write_file(dir, &name.to_string_lossy(), |file| {
                io::copy(&mut io::BufReader::new(source), file).map(|_| ())
            })?;
        }
        Ok(())
    }

    /// What was copied and what was not, one line each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let copied: Vec<String> = self.copied.iter().map(|path| path.display().to_string()).collect();
        let mut notes = Vec::new();
        if !copied.is_empty() {
            notes.push(format!("copied: {}", copied.join(", ")));
        }
        if !self.left.is_empty() {
            notes.push(format!("not copied: {}", self.left.join(", ")));
        }
        notes
    }

    fn sort(&mut self, path: PathBuf, is_dir: bool) {
        let known = path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known));
        let licence = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("LICENSE"));
        let bytes = fs::metadata(self.dir.join(&path)).map_or(u64::MAX, |metadata| metadata.len());
        if !is_dir && (known || licence) && bytes <= MAX_BYTES {
            self.copied.push(path);
        } else {
            self.left.push(path.display().to_string());
        }
    }
}

/// Names in a directory, sorted, and whether each is a directory itself; links are followed.
fn entries(dir: &Path) -> Result<Vec<(String, bool)>, Error> {
    let read = || -> io::Result<Vec<(String, bool)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path().is_dir()));
        }
        entries.sort();
        Ok(entries)
    };
    read().map_err(|source| Error::Read { from: dir.display().to_string(), source })
}

/// Whether the conversion writes its own: the configuration, the weights, and the index of their files.
fn is_replaced(name: &str) -> bool {
    name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}
