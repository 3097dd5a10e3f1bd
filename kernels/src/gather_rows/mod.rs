//! Row gather: `out[i] = x[rows[i]]`.
//!
//! | operand | shape                     | dtype | layout                 |
//! |---------|---------------------------|-------|------------------------|
//! | `out`   | `[rows.len(), row_len]`   | f32   | row-major, overwritten |
//! | `x`     | `[n, row_len]`            | f32   | row-major              |
//! | `rows`  | `[rows.len()]`            | usize |                        |
//!
//! Used to leave all but the scored rows behind in the last executed layer. Exact.
//! Cost: `8 * rows.len() * row_len` bytes. Errors: [`Error::Length`], [`Error::IndexOutOfRange`].

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// Copies the rows `rows` of `x`, each of `row_len` elements, to `out`.
pub fn gather_rows(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    rows: &[usize],
    row_len: usize,
) -> Result<(), Error> {
    check_length("gather_rows", "out", out.len(), rows.len() * row_len)?;
    if row_len == 0 {
        return Ok(());
    }
    let num_rows = x.len() / row_len;
    if let Some(position) = rows.iter().position(|row| *row >= num_rows) {
        return Err(Error::IndexOutOfRange {
            kernel: "gather_rows",
            table: "x",
            index: u32::try_from(rows[position]).unwrap_or(u32::MAX),
            position,
            rows: num_rows,
        });
    }
    cpu::gather_rows(stream, out.as_mut_slice(), x.as_slice(), rows, row_len);
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, row_len: usize) -> Cost {
    Cost::new(0, 8 * num_rows * row_len)
}
