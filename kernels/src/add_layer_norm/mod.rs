//! Residual addition followed by LayerNorm, in one pass: `x = LayerNorm(x + y) * weight + bias`.
//!
//! `LayerNorm(z)[t, i] = (z[t, i] - mean_j z[t, j]) / sqrt(mean_j (z[t, j] - mean)² + eps)`
//!
//! | operand         | shape                       | dtype                   | layout                       |
//! |-----------------|-----------------------------|-------------------------|------------------------------|
//! | `x`             | `[num_rows, hidden_size]`   | f32; CUDA: operand type | row-major, read and replaced |
//! | `y`             | `[num_rows, hidden_size]`   | f32; CUDA: operand type | row-major                    |
//! | `weight` `bias` | `[hidden_size]`             | f32                     |                              |
//!
//! Rounding: f32; sums in 16 interleaved partial sums, the same for a row wherever it stands.
//! Error bound: `1e-6 * (sqrt(hidden_size) + max|z| / sigma) * |weight| + 2^-23 |bias|`; tests use it.
//! Cost: `12 * num_rows * hidden_size` bytes, memory-bound. `num_rows == 0` is a no-op.
//!
//! On CUDA widths and the order of sums are those of [`rms_norm`](crate::rms_norm); all is f32 in registers, from the sum
//! to the one rounding at the end. Error bound, with `zn` the normalised value:
//! `2^-24 * (|weight| * (26 * max|z| / sigma * (1 + |zn|) + 18 * |zn|) + |out|)` and the rounding to the operand type. The
//! first term is the mean's error and its effect on sigma. Cost: 6 bytes an element.
//!
//! Errors: [`Error::Length`]; on CUDA [`Error::Parameter`] for another width or type.
//! Source: Ba et al. 2016, eq. 4; post-norm as in Devlin et al. 2018.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Size, Stream};

/// Scale and shift of a LayerNorm and its epsilon.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Scale, `[hidden_size]`.
    pub weight: &'a Buffer,
    /// Shift, `[hidden_size]`.
    pub bias: &'a Buffer,
    /// Added to the variance.
    pub eps: f32,
}

/// `x = LayerNorm(x + y)` over the first `num_rows` rows; `hidden_size` is the norm's length.
pub fn add_layer_norm(
    stream: &Stream,
    x: &mut Buffer,
    y: &Buffer,
    norm: LayerNorm<'_>,
    num_rows: Size,
) -> Result<(), Error> {
    let hidden_size = norm.weight.len();
    check_length("add_layer_norm", "bias", norm.bias.len(), hidden_size)?;
    check_length("add_layer_norm", "x", x.len(), num_rows.get() * hidden_size)?;
    check_length("add_layer_norm", "y", y.len(), num_rows.get() * hidden_size)?;
    if hidden_size == 0 {
        return Ok(());
    }
    let _timed = stream
        .timed("add_layer_norm", || (String::new(), cost(num_rows.get(), hidden_size, y.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            let (weight, bias) = (norm.weight.host()?, norm.bias.host()?);
            cpu::add_layer_norm(cpu, x.host_mut()?, y.host()?, weight, bias, norm.eps, num_rows.get());
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::add_layer_norm(cuda, x, y, norm, num_rows),
    }
}

/// Work of one call on elements of `operand_bytes`.
pub fn cost(num_rows: usize, hidden_size: usize, operand_bytes: usize) -> Cost {
    Cost::new(9 * num_rows * hidden_size, 3 * operand_bytes * num_rows * hidden_size + 8 * hidden_size)
}
