//! RMSNorm: every row divided by its root mean square, then scaled.
//!
//! `out[t, i] = x[t, i] / sqrt(mean_j x[t, j]² + eps) * weight[i]`
//!
//! | operand  | shape                       | dtype                   | layout                 |
//! |----------|-----------------------------|-------------------------|------------------------|
//! | `out`    | `[num_rows, hidden_size]`   | f32; CUDA: operand type | row-major, overwritten |
//! | `x`      | `[num_rows, hidden_size]`   | f32                     | row-major              |
//! | `weight` | `[hidden_size]`             | f32                     | inside [`RmsNorm`]     |
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
//!
//! On CUDA `hidden_size` is a multiple of 8, at most 8192. One block holds a row in registers: as many warps, and in each
//! thread as many groups of four, as its width asks for (`row.rs`). Squares are summed in fours, over a thread's fours, at
//! most eight, over a warp's lanes in pairs, over the warps in pairs: at most 20 roundings one behind the other whatever
//! the width, of which the root halves the effect. Error bound: `18 * 2^-24 * |out|` and the rounding to the operand type.
//! Cost: 6 bytes an element.
//!
//! Errors: [`Error::Length`]; on CUDA [`Error::Parameter`] for another width or type.
//! Source: Zhang and Sennrich 2019, eq. 4; SPEC 5 and 6.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cpu::rms_norm_row;
pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Size, Stream};

/// Scale of an RMSNorm and its epsilon.
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Factor on the normalised row, `[hidden_size]`; with Gemma's checkpoints, 1 + the stored weight.
    pub weight: &'a Buffer,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// `out = RMSNorm(x)` over the first `num_rows` rows; `hidden_size` is the norm's length.
pub fn rms_norm(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    norm: RmsNorm<'_>,
    num_rows: Size,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    check_length("rms_norm", "out", out.len(), num_rows.get() * hidden_size)?;
    check_length("rms_norm", "x", x.len(), num_rows.get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let _timed =
        stream.timed("rms_norm", || (String::new(), cost(num_rows.get(), hidden_size, out.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            let weight = norm.weight.host()?;
            cpu::rms_norm(cpu, out.host_mut()?, x.host()?, weight, norm.eps, num_rows.get());
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::rms_norm(cuda, out, x, norm, num_rows),
    }
}

/// Work of one call that writes elements of `operand_bytes`.
pub fn cost(num_rows: usize, hidden_size: usize, operand_bytes: usize) -> Cost {
    Cost::new(4 * num_rows * hidden_size, (4 + operand_bytes) * num_rows * hidden_size + 4 * hidden_size)
}
