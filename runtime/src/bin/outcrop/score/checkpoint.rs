//! How far a run has come, on disk: what `--resume` goes on from.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::source::Position;
use crate::error::Error;
use crate::progress::Counts;

/// A state of a run. The results up to `output_bytes` are on disk before it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// The next byte or row of the input.
    pub(crate) input: Position,
    /// The length of the results of what comes before.
    pub(crate) output_bytes: u64,
    /// Whether that is all.
    pub(crate) complete: bool,
    pub(crate) counts: Counts,
    fingerprint: Fingerprint,
}

/// The file that holds the latest state of a run.
pub(crate) struct Checkpoints {
    path: PathBuf,
    fingerprint: Fingerprint,
    every: Duration,
    latest: Instant,
}

impl Checkpoints {
    /// Checkpoints of the run that makes `output`, one in `every` so much time.
    pub(crate) fn new(output: &Path, fingerprint: Fingerprint, every: Duration) -> Checkpoints {
        Checkpoints { path: Checkpoints::path(output), fingerprint, every, latest: Instant::now() }
    }

    /// Where the checkpoint of an output is.
    pub(crate) fn path(output: &Path) -> PathBuf {
        beside(output, "checkpoint")
    }

    /// The state to go on from; `None` if there is no checkpoint. That of another run is refused.
    pub(crate) fn read(&self) -> Result<Option<Checkpoint>, Error> {
        let path = || self.path.display().to_string();
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { from: path(), source }),
            Ok(text) => text,
        };
        let checkpoint: Checkpoint = serde_json::from_slice(&text)
            .map_err(|error| Error::NoCheckpoint { path: path(), reason: error.to_string() })?;
        let differences = self.fingerprint.differences(&checkpoint.fingerprint);
        if !differences.is_empty() {
            return Err(Error::OtherRun { path: path(), differences });
        }
        Ok(Some(checkpoint))
    }

    /// Whether it is time for the next one.
    pub(crate) fn due(&self) -> bool {
        self.latest.elapsed() >= self.every
    }

    /// Replaces the checkpoint: a reader finds the old one or the new one, whatever happens.
    pub(crate) fn write(
        &mut self,
        input: Position,
        output_bytes: u64,
        complete: bool,
        counts: &Counts,
    ) -> Result<(), Error> {
        let (counts, fingerprint) = (counts.clone(), self.fingerprint.clone());
        let checkpoint = Checkpoint { input, output_bytes, complete, counts, fingerprint };
        let new = beside(&self.path, "new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(&checkpoint)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            sync_dir(&self.path)
        };
        write().map_err(|source| {
            // What is left of it takes room that may be short.
            let _ = fs::remove_file(&new);
            Error::WritePart { to: self.path.display().to_string(), source }
        })?;
        self.latest = Instant::now();
        Ok(())
    }

    /// Takes the checkpoint away.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_if_there(&self.path)
    }
}

/// A file's name with one more extension.
pub(crate) fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// Takes a file away for good, if there is one.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path).and_then(|()| sync_dir(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::Write { to: path.display().to_string(), source }),
    }
}

/// Makes the names in a file's directory outlive a loss of power, where directories can be opened.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
