//! A read-only mapping of a whole file. The only unsafe code of this crate.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use crate::Error;

/// A file mapped read-only. Opening reads nothing; pages come in when they are touched.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`, which must not be empty.
    ///
    /// The file must not be changed or truncated while it is mapped: readers would see the change, or be killed by
    /// the operating system. Downloads and conversions replace files by renaming, which leaves a mapping intact.
    pub(crate) fn open(path: &Path) -> Result<MappedFile, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.len() == 0 {
            return Err(Error::EmptyFile { path: path.to_owned() });
        }
        // SAFETY: the mapping is private to this type and only lent out as shared slices of plain bytes. That no
        // other process changes the file is the documented duty of the caller; nothing can check it.
        let map =
            unsafe { Mmap::map(&file) }.map_err(|source| Error::Map { path: path.to_owned(), source })?;
        Ok(MappedFile { path: path.to_owned(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Takes the pages that hold `range` out of the resident set. A later read brings them back from the file.
    ///
    /// The range is widened to whole pages: a neighbour on a shared page is read again too, which costs a page fault
    /// and changes nothing. Ranges outside the file are cut. The call is advice: a refusal is not an error.
    pub(crate) fn release(&self, range: Range<usize>) {
        let end = range.end.min(self.map.len());
        if range.start >= end {
            return;
        }
        // SAFETY: the mapping is shared, read-only and backed by a file, so dropped pages come back with the same
        // content, also under slices that are still borrowed; the range was cut to the mapping above.
        let advised = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, end - range.start)
        };
        // A kernel that does not take the advice keeps the pages, which is correct, only larger.
        let _ = advised;
    }
}
