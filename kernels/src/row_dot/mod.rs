//! A scalar head: `z[i] = x[i] · weight + bias`, and `out[i] = z[i]` or, with a soft-cap, `softcap * tanh(z[i] / softcap)`.
//!
//! | operand   | shape                       | dtype                   | layout      |
//! |-----------|-----------------------------|-------------------------|-------------|
//! | `out`     | `[num_rows]`                | f32                     | overwritten |
//! | `x`       | `[num_rows, hidden_size]`   | f32; CUDA: operand type | row-major   |
//! | `weight`  | `[hidden_size]`             | f32                     |             |
//! | `bias`    | scalar                      | f32                     |             |
//! | `softcap` | scalar or none              | f32                     | positive    |
//!
//! Serves every head that gives one number per row: the classifier of an encoder, a cutoff layer's head with its final
//! soft-cap, and a single logit of a vocabulary, where `weight` is the row of the embedding table that belongs to the token.
//!
//! Rounding: f32 with fused multiply-adds, 16 interleaved partial sums added in a fixed tree; the standard library's tanh.
//! Error bound: `(hidden_size / 16 + 6) * 2^-24 * sum |x * weight| + 2^-24 |z|`; a soft-cap, whose slope is at most 1, adds
//! `6 * 2^-24 |z|` for its division, tanh and product. Tests use both.
//! On CUDA `hidden_size` is a multiple of 8, and a block of four warps sums a row: in fours, over a thread's fours, over
//! lanes, over warps. Error bound: as above with `hidden_size / 512 + 12` in place of `hidden_size / 16 + 6`.
//! Cost: `2 * num_rows * hidden_size` flops. Errors: [`Error::Length`]; on CUDA [`Error::Parameter`].
//! Source: SPEC 3.3, 5, 6; the soft-cap 7.1.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Size, Stream};

/// One score per row, from element `offset` of `out` on; `hidden_size` is the weight's length.
#[allow(clippy::too_many_arguments)]
pub fn row_dot(
    stream: &Stream,
    out: &mut Buffer,
    offset: usize,
    x: &Buffer,
    weight: &Buffer,
    bias: f32,
    softcap: Option<f32>,
    num_rows: Size,
) -> Result<(), Error> {
    let rows = num_rows.get();
    check_length("row_dot", "out", out.len(), offset + rows)?;
    check_length("row_dot", "x", x.len(), rows * weight.len())?;
    let _timed = stream.timed("row_dot", || (String::new(), cost(rows, weight.len(), x.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            let out = &mut out.host_mut()?[offset..offset + rows];
            cpu::row_dot(cpu, out, x.host()?, weight.host()?, bias, softcap);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::row_dot(cuda, out, offset, x, weight, bias, softcap, num_rows),
    }
}

/// Work of one call on rows of elements of `operand_bytes`.
pub fn cost(num_rows: usize, hidden_size: usize, operand_bytes: usize) -> Cost {
    let bytes = operand_bytes * num_rows * hidden_size + 4 * (hidden_size + num_rows);
    Cost::new(2 * num_rows * hidden_size, bytes)
}
