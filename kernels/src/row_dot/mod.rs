//! A scalar head: `z[i] = x[i] · weight + bias`, and `out[i] = z[i]` or, with a soft-cap, `softcap * tanh(z[i] / softcap)`.
//!
//! | operand   | shape                       | dtype | layout      |
//! |-----------|-----------------------------|-------|-------------|
//! | `out`     | `[num_rows]`                | f32   | overwritten |
//! | `x`       | `[num_rows, hidden_size]`   | f32   | row-major   |
//! | `weight`  | `[hidden_size]`             | f32   |             |
//! | `bias`    | scalar                      | f32   |             |
//! | `softcap` | scalar or none              | f32   | positive    |
//!
//! Serves every head that gives one number per row: the classifier of an encoder, a cutoff layer's head with its final
//! soft-cap, and a single logit of a vocabulary, where `weight` is the row of the embedding table that belongs to the token.
//!
//! Rounding: f32 with fused multiply-adds, 16 interleaved partial sums added in a fixed tree; the standard library's tanh.
//! Error bound: `(hidden_size / 16 + 6) * 2^-24 * sum |x * weight| + 2^-24 |z|`; a soft-cap, whose slope is at most 1, adds
//! `6 * 2^-24 |z|` for its division, tanh and product. Tests use both.
//! Cost: `2 * num_rows * hidden_size` flops. Errors: [`Error::Length`].
//! Source: SPEC 3.3, 5, 6; the soft-cap 7.1.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// One score per row; `hidden_size` is the weight's length, the number of rows that of `out`.
pub fn row_dot(
    stream: &Stream,
    out: &mut [f32],
    x: &Buffer,
    weight: &[f32],
    bias: f32,
    softcap: Option<f32>,
) -> Result<(), Error> {
    check_length("row_dot", "x", x.len(), out.len() * weight.len())?;
    cpu::row_dot(stream, out, x.as_slice(), weight, bias, softcap);
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(2 * num_rows * hidden_size, 4 * (num_rows * hidden_size + hidden_size + num_rows))
}
