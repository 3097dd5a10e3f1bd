//! A scalar head: `out[i] = x[i] · weight + bias`.
//!
//! | operand  | shape                       | dtype | layout      |
//! |----------|-----------------------------|-------|-------------|
//! | `out`    | `[num_rows]`                | f32   | overwritten |
//! | `x`      | `[num_rows, hidden_size]`   | f32   | row-major   |
//! | `weight` | `[hidden_size]`             | f32   |             |
//! | `bias`   | scalar                      | f32   |             |
//!
//! Rounding: f32 with fused multiply-adds, 16 interleaved partial sums added in a fixed tree.
//! Error bound: `(hidden_size / 16 + 6) * 2^-24 * sum |x * weight| + 2^-24 |out|`; tests use it.
//! Cost: `2 * num_rows * hidden_size` flops. Errors: [`Error::Length`].

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// One score per row; `hidden_size` is the weight's length, the number of rows that of `out`.
pub fn row_dot(stream: &Stream, out: &mut [f32], x: &Buffer, weight: &[f32], bias: f32) -> Result<(), Error> {
    check_length("row_dot", "x", x.len(), out.len() * weight.len())?;
    cpu::row_dot(stream, out, x.as_slice(), weight, bias);
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(2 * num_rows * hidden_size, 4 * (num_rows * hidden_size + hidden_size + num_rows))
}
