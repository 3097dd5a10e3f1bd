//! RMSNorm: every row divided by its root mean square, then scaled.
//!
//! `out[t, i] = x[t, i] / sqrt(mean_j x[t, j]² + eps) * weight[i]`
//!
//! | operand  | shape                       | dtype | layout                 |
//! |----------|-----------------------------|-------|------------------------|
//! | `out`    | `[num_rows, hidden_size]`   | f32   | row-major, overwritten |
//! | `x`      | `[num_rows, hidden_size]`   | f32   | row-major              |
//! | `weight` | `[hidden_size]`             | f32   | inside [`RmsNorm`]     |
//!
//! `weight` is always the factor itself. Checkpoints follow two conventions: MiniCPM stores the factor, Gemma the factor
//! less one. A Gemma model adds the one when it loads the norm, in f32; the reference does the same addition in every call,
//! so the arithmetic is equal.
//!
//! Rounding: f32; the squares are summed with fused multiply-adds in 16 interleaved partial sums, the same for a row wherever
//! it stands; the row is multiplied by the inverse root first, by `weight` second, as in the reference.
//! Error bound: `(hidden_size / 32 + 8) * 2^-24 * |out|`, relative because no square cancels another; one `2^-24 * |out|`
//! more where one was added to the weight. Tests use it.
//! Cost: `8 * num_rows * hidden_size` bytes, memory-bound. `num_rows == 0` is a no-op.
//! Errors: [`Error::Length`].
//! Source: Zhang and Sennrich 2019, eq. 4; SPEC 5 and 6.

mod cpu;
#[cfg(test)]
mod tests;

pub(crate) use cpu::rms_norm_row;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// Scale of an RMSNorm and its epsilon.
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Factor on the normalised row, `[hidden_size]`; with Gemma's checkpoints, 1 + the stored weight.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
}

/// `out = RMSNorm(x)` over the first `num_rows` rows; `hidden_size` is the norm's length.
pub fn rms_norm(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    norm: RmsNorm<'_>,
    num_rows: usize,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    check_length("rms_norm", "out", out.len(), num_rows * hidden_size)?;
    check_length("rms_norm", "x", x.len(), num_rows * hidden_size)?;
    if hidden_size > 0 {
        cpu::rms_norm(stream, out.as_mut_slice(), x.as_slice(), norm, num_rows);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(4 * num_rows * hidden_size, 8 * num_rows * hidden_size + 4 * hidden_size)
}
