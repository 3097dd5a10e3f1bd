//! Residual addition and the RMSNorm that the next block begins with, in one pass: `x += y_scale * y`, `out = RMSNorm(x)`.
//!
//! | operand   | shape                       | dtype | layout                       |
//! |-----------|-----------------------------|-------|------------------------------|
//! | `x`       | `[num_rows, hidden_size]`   | f32   | row-major, read and replaced |
//! | `out`     | `[num_rows, hidden_size]`   | f32   | row-major, overwritten       |
//! | `y`       | `[num_rows, hidden_size]`   | f32   | row-major                    |
//! | `y_scale` | scalar                      | f32   |                              |
//! | `weight`  | `[hidden_size]`             | f32   | inside [`RmsNorm`]           |
//!
//! `x` is the residual stream and `y` a block's output. `y_scale` is 1 for Gemma and `scale_depth / sqrt(num_hidden_layers)`
//! for MiniCPM.
//!
//! Rounding: f32; one fused multiply-add per element of `x`, then as [`rms_norm`](crate::rms_norm), whose bits `out` has.
//! Error bound: `2^-24 * |x|`, and `(hidden_size / 32 + 10) * 2^-24 * |out|`: the norm's own, one for the element's rounding
//! and one for the mean's. Tests use them.
//! Cost: `16 * num_rows * hidden_size` bytes, memory-bound. `num_rows == 0` is a no-op.
//! Errors: [`Error::Length`].
//! Source: Zhang and Sennrich 2019, eq. 4; SPEC 5 and 6.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::rms_norm::RmsNorm;
use crate::{Buffer, Cost, Error, Stream};

/// `x += y_scale * y`, `out = RMSNorm(x)` over the first `num_rows` rows; `hidden_size` is the norm's length.
pub fn add_rms_norm(
    stream: &Stream,
    x: &mut Buffer,
    out: &mut Buffer,
    y: &Buffer,
    y_scale: f32,
    norm: RmsNorm<'_>,
    num_rows: usize,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    check_length("add_rms_norm", "x", x.len(), num_rows * hidden_size)?;
    check_length("add_rms_norm", "out", out.len(), num_rows * hidden_size)?;
    check_length("add_rms_norm", "y", y.len(), num_rows * hidden_size)?;
    if hidden_size > 0 {
        let (x, out) = (x.as_mut_slice(), out.as_mut_slice());
        cpu::add_rms_norm(stream, x, out, y.as_slice(), y_scale, norm, num_rows);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(6 * num_rows * hidden_size, 16 * num_rows * hidden_size + 4 * hidden_size)
}
