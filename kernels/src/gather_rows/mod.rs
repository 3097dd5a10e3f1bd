//! Row gather: `out[i] = x[rows[i]]`.
//!
//! | operand | shape                     | dtype                      | layout                 |
//! |---------|---------------------------|----------------------------|------------------------|
//! | `out`   | `[rows.len(), row_len]`   | that of `x`                | row-major, overwritten |
//! | `x`     | `[n, row_len]`            | f32; CUDA: or operand type | row-major              |
//! | `rows`  | `[rows.len()]`            | u32                        |                        |
//!
//! Used to leave all but the scored rows behind in the last executed layer. Exact.
//! Cost: `8 * rows.len() * row_len` bytes. Errors: [`Error::Length`], [`Error::IndexOutOfRange`]; on CUDA
//! [`Error::Parameter`] unless `row_len` is a multiple of 8 and both types are one.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::{check_indices, check_length};
use crate::{Buffer, Cost, Error, Indices, Stream};

/// Copies the rows `rows` of `x`, each of `row_len` elements, to `out`.
pub fn gather_rows(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    rows: Indices<'_>,
    row_len: usize,
) -> Result<(), Error> {
    check_length("gather_rows", "out", out.len(), rows.len().get() * row_len)?;
    if row_len == 0 {
        return Ok(());
    }
    check_indices("gather_rows", "x", rows.host(), x.len() / row_len)?;
    let _timed =
        stream.timed("gather_rows", || (String::new(), cost(rows.len().get(), row_len, x.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            cpu::gather_rows(cpu, out.host_mut()?, x.host()?, rows.host(), row_len);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::gather_rows(cuda, out, x, rows, row_len),
    }
}

/// Work of one call on elements of `element_bytes`.
pub fn cost(num_rows: usize, row_len: usize, element_bytes: usize) -> Cost {
    Cost::new(0, 2 * element_bytes * num_rows * row_len)
}
