//! Rows scaled to unit length: `x = x / max(‖x‖₂, 1e-12)`.
//!
//! | operand | shape                       | dtype | layout                       |
//! |---------|-----------------------------|-------|------------------------------|
//! | `x`     | `[num_rows, hidden_size]`   | f32   | row-major, read and replaced |
//!
//! Rounding: f32, 16 interleaved partial sums. Error bound: `(hidden_size / 16 + 8) * 2^-24 * |x / ‖x‖|`; tests use it.
//! Cost: `8 * num_rows * hidden_size` bytes. Errors: [`Error::Length`].
//! Source: `torch.nn.functional.normalize`, whose epsilon this is.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// Normalises the first `num_rows` rows of `hidden_size` elements.
pub fn l2_normalize(
    stream: &Stream,
    x: &mut Buffer,
    num_rows: usize,
    hidden_size: usize,
) -> Result<(), Error> {
    check_length("l2_normalize", "x", x.len(), num_rows * hidden_size)?;
    if hidden_size > 0 {
        cpu::l2_normalize(stream, x.as_mut_slice(), num_rows, hidden_size);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(3 * num_rows * hidden_size, 8 * num_rows * hidden_size)
}
