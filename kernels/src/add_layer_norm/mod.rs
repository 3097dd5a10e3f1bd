//! Residual addition followed by LayerNorm, in one pass: `x = LayerNorm(x + y) * weight + bias`.
//!
//! `LayerNorm(z)[t, i] = (z[t, i] - mean_j z[t, j]) / sqrt(mean_j (z[t, j] - mean)² + eps)`
//!
//! | operand         | shape                       | dtype | layout                       |
//! |-----------------|-----------------------------|-------|------------------------------|
//! | `x`             | `[num_rows, hidden_size]`   | f32   | row-major, read and replaced |
//! | `y`             | `[num_rows, hidden_size]`   | f32   | row-major                    |
//! | `weight` `bias` | `[hidden_size]`             | f32   |                              |
//!
//! Rounding: f32; sums in 16 interleaved partial sums, the same for a row wherever it stands.
//! Error bound: `1e-6 * (sqrt(hidden_size) + max|z| / sigma) * |weight| + 2^-23 |bias|`; tests use it.
//! Cost: `12 * num_rows * hidden_size` bytes, memory-bound. `num_rows == 0` is a no-op.
//! Errors: [`Error::Length`].
//! Source: Ba et al. 2016, eq. 4; post-norm as in Devlin et al. 2018.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// Scale and shift of a LayerNorm and its epsilon.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Scale, `[hidden_size]`.
    pub weight: &'a [f32],
    /// Shift, `[hidden_size]`.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// `x = LayerNorm(x + y)` over the first `num_rows` rows; `hidden_size` is the norm's length.
pub fn add_layer_norm(
    stream: &Stream,
    x: &mut Buffer,
    y: &Buffer,
    norm: LayerNorm<'_>,
    num_rows: usize,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    check_length("add_layer_norm", "bias", norm.bias.len(), hidden_size)?;
    check_length("add_layer_norm", "x", x.len(), num_rows * hidden_size)?;
    check_length("add_layer_norm", "y", y.len(), num_rows * hidden_size)?;
    if hidden_size > 0 {
        cpu::add_layer_norm(stream, x.as_mut_slice(), y.as_slice(), norm, num_rows);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(9 * num_rows * hidden_size, 12 * num_rows * hidden_size + 8 * hidden_size)
}
