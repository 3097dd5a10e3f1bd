//! Rows scaled to unit length: `x = x / max(‖x‖₂, 1e-12)`.
//!
//! | operand | shape                       | dtype | layout                       |
//! |---------|-----------------------------|-------|------------------------------|
//! | `x`     | `[num_rows, hidden_size]`   | f32   | row-major, read and replaced |
//!
//! Rounding: f32, 16 interleaved partial sums. Error bound: `(hidden_size / 16 + 8) * 2^-24 * |x / ‖x‖|`; tests use it.
//! On CUDA `hidden_size` is a multiple of 8, sums are those of [`row_dot`](crate::row_dot), and the error bound is
//! `(hidden_size / 1024 + 10) * 2^-24 * |x / ‖x‖|`.
//! Cost: `8 * num_rows * hidden_size` bytes. Errors: [`Error::Length`]; on CUDA [`Error::Parameter`].
//! Source: `torch.nn.functional.normalize`, whose epsilon this is.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Size, Stream};

/// Normalises the first `num_rows` rows of `hidden_size` elements.
pub fn l2_normalize(
    stream: &Stream,
    x: &mut Buffer,
    num_rows: Size,
    hidden_size: usize,
) -> Result<(), Error> {
    check_length("l2_normalize", "x", x.len(), num_rows.get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let _timed = stream.timed("l2_normalize", || (String::new(), cost(num_rows.get(), hidden_size)));
    match stream {
        Stream::Cpu(cpu) => {
            cpu::l2_normalize(cpu, x.host_mut()?, num_rows.get(), hidden_size);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::l2_normalize(cuda, x, num_rows, hidden_size),
    }
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(3 * num_rows * hidden_size, 8 * num_rows * hidden_size)
}
