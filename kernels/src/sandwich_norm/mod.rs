//! The norms on both sides of a residual addition, in one pass: `x += RMSNorm(y; post)`, `out = RMSNorm(x; pre)`.
//!
//! | operand       | shape                       | dtype | layout                       |
//! |---------------|-----------------------------|-------|------------------------------|
//! | `x`           | `[num_rows, hidden_size]`   | f32   | row-major, read and replaced |
//! | `out`         | `[num_rows, hidden_size]`   | f32   | row-major, overwritten       |
//! | `y`           | `[num_rows, hidden_size]`   | f32   | row-major                    |
//! | `post.weight` | `[hidden_size]`             | f32   | inside [`RmsNorm`]           |
//! | `pre.weight`  | `[hidden_size]`             | f32   | inside [`RmsNorm`]           |
//!
//! `x` is the residual stream, `y` a block's output, `post` the norm after that block, `pre` the norm before the next one.
//!
//! Rounding: f32; the bits of [`rms_norm`](crate::rms_norm), an addition, and `rms_norm` again.
//! Error bound, with `u = 2^-24`, `k = hidden_size / 32 + 8` and `rms` the root that divides `x`: of `x[i]`,
//! `e[i] = u * (k * |RMSNorm(y; post)[i]| + |x[i]|)`; of `out[i]`,
//! `k * u * |out[i]| + |pre.weight[i]| / rms * (e[i] + |x[i]| / rms * max_j e[j])`. Tests use them.
//! Cost: `16 * num_rows * hidden_size` bytes, memory-bound. `num_rows == 0` is a no-op.
//! Errors: [`Error::Length`].
//! Source: Ding et al. 2021 ("Sandwich-LN"); Gemma 2; SPEC 7.1.

mod cpu;
#[cfg(test)]
mod tests;

use crate::error::check_length;
use crate::rms_norm::RmsNorm;
use crate::{Buffer, Cost, Error, Stream};

/// `x += RMSNorm(y; post)`, `out = RMSNorm(x; pre)` over the first `num_rows` rows; `hidden_size` is the length of `pre`.
pub fn sandwich_norm(
    stream: &Stream,
    x: &mut Buffer,
    out: &mut Buffer,
    y: &Buffer,
    post: RmsNorm<'_>,
    pre: RmsNorm<'_>,
    num_rows: usize,
) -> Result<(), Error> {
    let hidden_size = pre.weight.len();
    check_length("sandwich_norm", "post.weight", post.weight.len(), hidden_size)?;
    check_length("sandwich_norm", "x", x.len(), num_rows * hidden_size)?;
    check_length("sandwich_norm", "out", out.len(), num_rows * hidden_size)?;
    check_length("sandwich_norm", "y", y.len(), num_rows * hidden_size)?;
    if hidden_size > 0 {
        cpu::sandwich_norm(stream, x.as_mut_slice(), out.as_mut_slice(), y.as_slice(), post, pre, num_rows);
    }
    Ok(())
}

/// Work of one call.
pub fn cost(num_rows: usize, hidden_size: usize) -> Cost {
    Cost::new(9 * num_rows * hidden_size, 16 * num_rows * hidden_size + 8 * hidden_size)
}
