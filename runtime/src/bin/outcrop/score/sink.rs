//! Where scores go: to a reader as they are computed, or into a file that gets its name when it is complete.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkpoint::{beside, remove_if_there, sync_dir};
use super::parquet::{Columns, convert};
use crate::error::Error;
use crate::output::Output;

/// What `--output` names.
pub(crate) enum Target {
    /// Standard output, a pipe or a device: written in place.
    Stream,
    /// A regular file, there or to be made.
    File(PathBuf),
}

impl Target {
    /// Looks at what is there. A link is followed: the file that it names is replaced, and the link stays.
    pub(crate) fn of(path: Option<&Path>) -> Result<Target, Error> {
        let Some(path) = path else { return Ok(Target::Stream) };
        match fs::metadata(path) {
            Ok(found) if found.is_file() => {
                Ok(Target::File(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())))
            }
            // A directory is refused when it is written.
            Ok(_) if is_table(path) => Err(Error::TableNeedsFile { path: path.to_owned() }),
            Ok(_) => Ok(Target::Stream),
            Err(_) => Ok(Target::File(path.to_owned())),
        }
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Target::Stream => None,
            Target::File(path) => Some(path),
        }
    }
}

/// Whether a name is that of a Parquet file.
pub(crate) fn is_table(path: &Path) -> bool {
    path.extension().and_then(OsStr::to_str) == Some("parquet")
}

/// An opened output.
pub(crate) enum Sink {
    Stream(Output),
    Part(Part),
}

impl Sink {
    /// Writes one line.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        match self {
            Sink::Stream(output) => output.json_line(value),
            Sink::Part(part) => part.output.json_line(value).map_err(resumable),
        }
    }

    /// Hands everything written so far to the operating system, where it outlives this process.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        match self {
            Sink::Stream(output) => output.flush(),
            Sink::Part(part) => part.output.flush().map_err(resumable),
        }
    }
}

/// The lines of an output that is not complete, in a file beside its place. It is locked: two runs that make the same file would
/// write over each other.
pub(crate) struct Part {
    target: PathBuf,
    path: PathBuf,
    file: File,
    output: Output,
}

impl Part {
    /// Where the lines of an output are kept.
    pub(crate) fn path(target: &Path) -> PathBuf {
        beside(target, "part")
    }

    /// Opens or makes the file, as it is.
    pub(crate) fn open(target: &Path) -> Result<Part, Error> {
        let path = Part::path(target);
        let name = path.display().to_string();
        let open = || -> io::Result<(File, File)> {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
                // Some network file systems have no locks.
                Err(TryLockError::Error(_)) | Ok(()) => {}
            }
            // Who may not read the file that is replaced may not read the new one.
            if let Ok(replaced) = fs::metadata(target) {
                file.set_permissions(replaced.permissions())?;
            }
            Ok((file.try_clone()?, file))
        };
        match open() {
            Ok((writer, file)) => {
                let output = Output::new(name, Box::new(writer));
                Ok(Part { target: target.to_owned(), path, file, output })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Locked { path }),
            Err(source) => Err(Error::Write { to: name, source }),
        }
    }

    /// Drops everything behind the first `bytes`, and goes on there.
    pub(crate) fn go_on_from(&mut self, bytes: u64) -> Result<(), Error> {
        let mut go_on = || -> io::Result<u64> {
            let found = self.file.metadata()?.len();
            if found >= bytes {
                self.file.set_len(bytes)?;
                self.file.seek(SeekFrom::Start(bytes))?;
            }
            Ok(found)
        };
        match go_on() {
            Ok(found) if found < bytes => Err(Error::PartTooShort { path: self.path.clone(), found, bytes }),
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Write { to: self.path.display().to_string(), source }),
        }
    }

    /// Brings everything written so far to the disk; its length.
    pub(crate) fn sync(&mut self) -> Result<u64, Error> {
        self.output.flush().map_err(resumable)?;
        let mut sync = || -> io::Result<u64> {
            self.file.sync_all()?;
            self.file.stream_position()
        };
        sync().map_err(|source| Error::WritePart { to: self.path.display().to_string(), source })
    }

    /// Gives the output its name; a Parquet file is made now. Everything has been brought to the disk before.
    pub(crate) fn finish(self, columns: &Columns) -> Result<(), Error> {
        let Part { target, path, file, output } = self;
        if !is_table(&target) {
            let finish = fs::rename(&path, &target).and_then(|()| sync_dir(&target));
            // Only now may another run lock it.
            drop((file, output));
            return finish.map_err(|source| Error::WritePart { to: target.display().to_string(), source });
        }
        let new = beside(&target, "new");
        let make = || -> io::Result<()> {
            let mut table = File::create(&new)?;
            table.set_permissions(file.metadata()?.permissions())?;
            convert(&path, &mut table, columns)?;
            table.sync_all()?;
            fs::rename(&new, &target)?;
            sync_dir(&target)
        };
        make().map_err(|source| {
            let _ = fs::remove_file(&new);
            Error::WritePart { to: new.display().to_string(), source }
        })?;
        remove_if_there(&path)
    }
}

/// The same error with what can be done about it: the lines that are there are kept.
fn resumable(error: Error) -> Error {
    match error {
        Error::Write { to, source } => Error::WritePart { to, source },
        error => error,
    }
}
