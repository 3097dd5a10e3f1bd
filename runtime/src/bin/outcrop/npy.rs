//! NumPy's .npy format, version 1.0, for one growing float32 matrix.
//!
//! Layout: the magic string, a version, the length of the header, the header as a Python dictionary, the rows.
//! Source: the "NPY format" page of NumPy's reference.

use std::io::{self, Seek, SeekFrom, Write};

/// Length of the preamble with the header; long enough for any shape, and a multiple of 64 as the format asks.
const HEADER_BYTES: u16 = 128;
const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// Writes rows behind a header that always states the number of rows flushed so far.
pub(crate) struct NpyWriter<W> {
    writer: W,
    columns: usize,
    rows: usize,
}

impl<W: Write + Seek> NpyWriter<W> {
    /// Starts an array `[0, columns]`.
    pub(crate) fn new(mut writer: W, columns: usize) -> io::Result<NpyWriter<W>> {
        writer.write_all(&header(0, columns))?;
        Ok(NpyWriter { writer, columns, rows: 0 })
    }

    /// The length of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Appends a row.
    ///
    /// # Errors
    ///
    /// A row of another length than `columns`; a failed write.
    pub(crate) fn row(&mut self, row: &[f32]) -> io::Result<()> {
        if row.len() != self.columns {
            let found = format!("a row of {} numbers in an array of {} columns", row.len(), self.columns);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, found));
        }
        for value in row {
            self.writer.write_all(&value.to_le_bytes())?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Writes the number of rows into the header: from here on the file is a whole array.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.seek(SeekFrom::Start(0))?;
        self.writer.write_all(&header(self.rows, self.columns))?;
        self.writer.seek(SeekFrom::End(0))?;
        self.writer.flush()
    }
}

fn header(rows: usize, columns: usize) -> Vec<u8> {
    let dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let before = MAGIC.len() + 2;
    let width = usize::from(HEADER_BYTES) - before - 1;
    let mut bytes = Vec::with_capacity(usize::from(HEADER_BYTES));
    bytes.extend_from_slice(MAGIC);
    // The length counts what follows it: 118.
    bytes.extend_from_slice(&(HEADER_BYTES - 10).to_le_bytes());
    bytes.extend_from_slice(format!("{dictionary:<width$}\n").as_bytes());
    bytes
}
