//! The norms on both sides of a residual addition, in one pass: `x += RMSNorm(y; post)`, `out = RMSNorm(x; pre)`.
//!
//! | operand       | shape                       | dtype                   | layout                       |
//! |---------------|-----------------------------|-------------------------|------------------------------|
//! | `x`           | `[num_rows, hidden_size]`   | f32                     | row-major, read and replaced |
//! | `out`         | `[num_rows, hidden_size]`   | f32; CUDA: operand type | row-major, overwritten       |
//! | `y`           | `[num_rows, hidden_size]`   | f32; CUDA: operand type | row-major                    |
//! | `post.weight` | `[hidden_size]`             | f32                     | inside [`RmsNorm`]           |
//! | `pre.weight`  | `[hidden_size]`             | f32                     | inside [`RmsNorm`]           |
//!
//! `x` is the residual stream, `y` a block's output, `post` the norm after that block, `pre` the norm before the next one.
//!
//! Rounding: f32; the bits of [`rms_norm`](crate::rms_norm), an addition, and `rms_norm` again.
//! Error bound, with `u = 2^-24`, `k = hidden_size / 32 + 8` and `rms` the root that divides `x`: of `x[i]`,
//! `e[i] = u * (k * |RMSNorm(y; post)[i]| + |x[i]|)`; of `out[i]`,
//! `k * u * |out[i]| + |pre.weight[i]| / rms * (e[i] + |x[i]| / rms * max_j e[j])`. Tests use them.
//! Cost: `16 * num_rows * hidden_size` bytes, memory-bound. `num_rows == 0` is a no-op.
//!
//! On CUDA widths and sums are those of [`rms_norm`](crate::rms_norm); the product with `post.weight` is added to `x` by
//! a fused multiply-add. Error bound: as above with `k = 18`, and the rounding of `out` to the operand type. Cost: 12
//! bytes an element.
//!
//! Errors: [`Error::Length`]; on CUDA [`Error::Parameter`] for another width or type.
//! Source: Ding et al. 2021 ("Sandwich-LN"); Gemma 2; SPEC 7.1.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::rms_norm::RmsNorm;
use crate::{Buffer, Cost, Error, Size, Stream};

/// `x += RMSNorm(y; post)`, `out = RMSNorm(x; pre)` over the first `num_rows` rows; `hidden_size` is the length of `pre`.
pub fn sandwich_norm(
    stream: &Stream,
    x: &mut Buffer,
    out: &mut Buffer,
    y: &Buffer,
    post: RmsNorm<'_>,
    pre: RmsNorm<'_>,
    num_rows: Size,
) -> Result<(), Error> {
    let hidden_size = pre.weight.len();
    check_length("sandwich_norm", "post.weight", post.weight.len(), hidden_size)?;
    check_length("sandwich_norm", "x", x.len(), num_rows.get() * hidden_size)?;
    check_length("sandwich_norm", "out", out.len(), num_rows.get() * hidden_size)?;
    check_length("sandwich_norm", "y", y.len(), num_rows.get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let _timed = stream
        .timed("sandwich_norm", || (String::new(), cost(num_rows.get(), hidden_size, y.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            let post = (post.weight.host()?, post.eps);
            let pre = (pre.weight.host()?, pre.eps);
            cpu::sandwich_norm(cpu, x.host_mut()?, out.host_mut()?, y.host()?, post, pre, num_rows.get());
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::sandwich_norm(cuda, x, out, y, post, pre, num_rows),
    }
}

/// Work of one call with `y` and `out` of `operand_bytes` an element.
pub fn cost(num_rows: usize, hidden_size: usize, operand_bytes: usize) -> Cost {
    let bytes = (8 + 2 * operand_bytes) * num_rows * hidden_size + 8 * hidden_size;
    Cost::new(9 * num_rows * hidden_size, bytes)
}
