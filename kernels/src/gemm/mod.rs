//! Matrix product with a fused epilogue: `d = epilogue(a · bᵀ)`.
//!
//! `d[m, n] = epilogue(sum_k a[m, k] * b[n, k])`, all row-major ("NT": weights as checkpoints store them, `[out, in]`).
//!
//! | operand    | shape         | dtype                   | layout                                        |
//! |------------|---------------|-------------------------|-----------------------------------------------|
//! | `d`        | `[m, n]`      | f32                     | row-major, overwritten                        |
//! | `a`        | `[m, k]`      | f32                     | row-major                                     |
//! | `b`        | `[n, k]`      | f32, f16, bf16 as stored | [`Matrix`]: packed panels, see there         |
//! | `bias`     | `[n]`         | f32                     | inside [`Epilogue`]                           |
//! | `residual` | `[m, n]`      | f32                     | inside [`Epilogue`], row-major                |
//!
//! With a gated matrix, `b` holds a gate and an up projection of `n` rows each, interleaved while packing, and
//! `d = activation(a · gateᵀ) * (a · upᵀ)` (GeGLU and SwiGLU: Shazeer 2020); neither product is stored.
//!
//! `m == 0` is a no-op. `d` may not alias an input (the borrow checker holds that).
//!
//! Rounding: products and sums in f32 with fused multiply-adds. k is cut into equal chunks of at most 512; each chunk is
//! summed in ascending order from zero and the chunk sums are added in ascending order. So an element of `d` depends on its
//! row of `a` and its row of `b` alone: not on `m`, the tile it fell in, or the number of threads.
//! Error bound: `|d - exact| <= (k + 2) * 2^-24 * sum_k |a * b|` before the epilogue; tests use it. The activations add
//! `4e-7 * max(1, |x|)`.
//!
//! Cost: `2 m n k` flops.
//! Errors: [`Error::Length`], [`Error::Parameter`].
//! The inner product of tiles is the `gemm` crate's; tiling, packing, threading and epilogues are ours.

mod cpu;
mod matrix;
#[cfg(test)]
mod tests;

pub use matrix::{Matrix, Part};

use std::ops::Range;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Stream};

/// What happens to an element of `a · bᵀ` before it is stored, while its tile is still in cache.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// Store as is.
    None,
    /// `x + bias[n]`
    Bias(&'a [f32]),
    /// `gelu(x + bias[n])` with the exact (erf) GELU.
    BiasGeluErf(&'a [f32]),
    /// `tanh(x + bias[n])`
    BiasTanh(&'a [f32]),
    /// `x + bias[n] + residual[m, n]`
    BiasResidual(&'a [f32], &'a Buffer),
    /// `activation(gate) * up`, for a gated matrix only.
    Gated(Activation),
}

/// The function of a gated MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU with the exact error function.
    GeluErf,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// `d = epilogue(a · bᵀ)` over the rows of `b` that the parts `parts` hold (see [`Matrix`]); `n` is their number of outputs.
pub fn gemm(
    stream: &Stream,
    d: &mut Buffer,
    a: &Buffer,
    b: &Matrix,
    parts: Range<usize>,
    m: usize,
    epilogue: Epilogue<'_>,
) -> Result<(), Error> {
    if parts.start >= parts.end || parts.end > b.num_parts() {
        return Err(Error::Parameter {
            kernel: "gemm",
            parameter: "parts.end",
            expected: "a non-empty range within the matrix's parts",
            found: parts.end,
        });
    }
    if b.is_gated() != matches!(epilogue, Epilogue::Gated(_)) {
        return Err(Error::Parameter {
            kernel: "gemm",
            parameter: "b.is_gated",
            expected: "a gated matrix with the gated epilogue, and no other",
            found: usize::from(b.is_gated()),
        });
    }
    let n = b.outputs_of(parts.clone());
    check_length("gemm", "d", d.len(), m * n)?;
    check_length("gemm", "a", a.len(), m * b.k())?;
    match epilogue {
        Epilogue::None | Epilogue::Gated(_) => {}
        Epilogue::Bias(bias) | Epilogue::BiasGeluErf(bias) | Epilogue::BiasTanh(bias) => {
            check_length("gemm", "bias", bias.len(), n)?;
        }
        Epilogue::BiasResidual(bias, residual) => {
            check_length("gemm", "bias", bias.len(), n)?;
            check_length("gemm", "residual", residual.len(), m * n)?;
        }
    }
    cpu::gemm(stream, d.as_mut_slice(), a.as_slice(), b, parts, m, epilogue);
    Ok(())
}

/// Work of one call: weights are read once in their stored type, activations in f32. A gated product of `n` outputs has
/// the work of `2 n`, less the write of the half that is not stored.
pub fn cost(m: usize, n: usize, k: usize, weight_bytes: usize) -> Cost {
    Cost::new(2 * m * n * k, 4 * (m * k + m * n) + n * k * weight_bytes)
}
